"""The pages: ``/metrics`` for Prometheus, ``/-/healthy`` and ``/-/ready`` for supervisors, ``/`` for a person."""

from __future__ import annotations

import gzip
import html
from collections.abc import Callable
from email.utils import formatdate
from typing import Any

from prometheus_client.exposition import choose_encoder, gzip_accepted
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lorawatch.exporter import MetricsCollector, Watched, Watching
from lorawatch.render import number, printable
from lorawatch.version import __version__
from lorawatch.web.address import host_allowed

_POLICY = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
_MAX_LISTED = 200


def create_app(watching: Watching, collector: MetricsCollector, *, bound: str | None = "127.0.0.1") -> Starlette:
    """The application.

    Args:
        watching: What is watched.
        collector: What ``/metrics`` shows.
        bound: Address that the server is bound to: a request for another host than this or loopback is refused.
            None answers any host.
    """

    async def metrics(request: Request) -> Response:
        return _metrics(collector, request.headers)

    async def healthy(_: Request) -> Response:
        return PlainTextResponse("lorawatch is healthy.\n")

    async def ready(_: Request) -> Response:
        if watching.runs:
            return PlainTextResponse("lorawatch is ready.\n")
        return PlainTextResponse(f"lorawatch waits for {printable(watching.waiting_for)}.\n", status_code=503)

    async def page(_: Request) -> Response:
        return HTMLResponse(_page(watching))

    return Starlette(
        routes=[
            Route("/", page),
            Route("/metrics", metrics),
            Route("/-/healthy", healthy),
            Route("/-/ready", ready),
        ],
        middleware=[Middleware(_Guard, bound=bound)],
    )


def _metrics(collector: MetricsCollector, headers: Headers) -> Response:
    encode: Callable[[Any], bytes]
    encode, content_type = choose_encoder(headers.get("accept", ""))
    body = encode(collector)
    answer = {"content-type": content_type, "vary": "Accept, Accept-Encoding"}
    if gzip_accepted(headers.get("accept-encoding", "")):
        body = gzip.compress(body, compresslevel=3, mtime=0)
        answer["content-encoding"] = "gzip"
    return Response(body, headers=answer)


def _page(watching: Watching) -> str:
    watched = list(watching.runs)
    rows = "".join(_row(one) for one in watched[:_MAX_LISTED])
    if len(watched) > _MAX_LISTED:
        rows += f'<tr><td colspan="5">and {len(watched) - _MAX_LISTED} more</td></tr>'
    if not watched:
        rows = f'<tr><td colspan="5">waiting for {_escaped(watching.waiting_for)}</td></tr>'
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>lorawatch</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        "<style>body{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:60rem;padding:0 1rem;"
        "color-scheme:light dark}table{border-collapse:collapse;width:100%}"
        "td,th{text-align:left;padding:.3rem .8rem .3rem 0;border-bottom:1px solid #8884;overflow-wrap:anywhere}"
        "</style>"
        f"<h1>lorawatch {_escaped(__version__)}</h1>"
        "<table><tr><th>Run<th>Kind<th>Step<th>Loss<th>Firing</tr>" + rows + "</table>"
        '<p><a href="/metrics">metrics</a> · <a href="/-/healthy">healthy</a> · <a href="/-/ready">ready</a></p></html>'
    )


def _row(watched: Watched) -> str:
    engine = watched.engine
    run = engine.run
    loss, total = run.last("loss"), run.max_steps
    firing = ", ".join(f"{finding.severity.label}: {finding.title}" for finding in engine.active())
    cells = (
        watched.name,
        run.kind.value,
        f"{run.step} of {total}" if total else str(run.step),
        "" if loss is None else number(loss),
        firing or "none",
    )
    return "<tr>" + "".join(f"<td>{_escaped(cell)}</td>" for cell in cells) + "</tr>"


def _escaped(text: str) -> str:
    return html.escape(printable(text))


class _Guard:
    """Refuses requests for foreign hosts, and puts the headers on that every answer carries."""

    def __init__(self, app: ASGIApp, bound: str | None) -> None:
        self._app = app
        self._bound = bound

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["date"] = formatdate(usegmt=True)
                headers["cache-control"] = "no-store"
                headers["x-content-type-options"] = "nosniff"
                headers["referrer-policy"] = "no-referrer"
                headers["content-security-policy"] = _POLICY
            await send(message)

        if self._bound is not None and not host_allowed(Headers(scope=scope).get("host", ""), self._bound):
            refusal = PlainTextResponse(
                "lorawatch answers requests for localhost and for the address it listens on, not for this host.\n", 403
            )
            await refusal(scope, receive, answer)
            return
        await self._app(scope, receive, answer)
