"""Runs the pages beside the watch: uvicorn in a thread of its own, on a socket that is bound before the thread starts.

uvicorn's own main loop wakes ten times a second to refresh the Date header and to see whether it should stop. Both are
done otherwise here (the pages put their own Date on, stopping is an event), so that an idle server costs no CPU.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import socket
import threading
from types import TracebackType
from typing import Any, Self

import uvicorn

from lorawatch.exporter import MetricsCollector, Watching
from lorawatch.web.address import ListenAddress, ListenError, parse_listen_address
from lorawatch.web.app import create_app

_BACKLOG = 64
_MAX_CONNECTIONS = 64
_LAST_TURNS = 5
"""Turns of the loop in which a connection that was accepted just before the end is made."""


class Server:
    """Serves ``/metrics`` and the health pages. The socket is bound and listens once this returns.

    Args:
        watching: What is watched.
        collector: What ``/metrics`` shows: :func:`lorawatch.exporter.metrics_collector`.
        listen: Where to listen, ``HOST:PORT``; port 0 takes a free one.
        insecure: Allow an address that other machines can reach. There is neither TLS nor a password.

    Raises:
        ListenError: The address is wrong, taken, or reachable by others without ``insecure``.
    """

    def __init__(
        self,
        watching: Watching,
        collector: MetricsCollector,
        listen: str = "127.0.0.1:10910",
        *,
        insecure: bool = False,
    ) -> None:
        wanted = parse_listen_address(listen)
        if not (insecure or wanted.is_loopback):
            raise ListenError(
                f"{wanted} can be reached by other machines, and there is no password: listen on 127.0.0.1 and forward "
                "the port"
            )
        self._socket = _bind(wanted)
        host, port = self._socket.getsockname()[:2]
        self.address = ListenAddress(host, port)
        config = uvicorn.Config(
            create_app(watching, collector, bound=host if wanted.is_loopback else None),
            # Everything that would be looked for at import time is named, so that nothing more is loaded.
            http="h11", loop="asyncio", ws="none", interface="asgi3", lifespan="off", log_config=None,
            log_level="critical", access_log=False, proxy_headers=False, server_header=False, date_header=False,
            limit_concurrency=_MAX_CONNECTIONS, timeout_graceful_shutdown=1, h11_max_incomplete_event_size=16_384,
        )  # fmt: skip
        self._server = _QuietServer(config)
        self._thread = threading.Thread(target=self._serve, name="lorawatch-web", daemon=True)

    @property
    def url(self) -> str:
        """The real address, as a person or Prometheus calls it: ``http://127.0.0.1:10910``."""
        return f"http://{self.address}"

    def start(self) -> Self:
        """Begin to answer. A request that comes before the thread is up waits in the socket's queue."""
        self._thread.start()
        return self

    def stop(self, timeout: float = 3.0) -> None:
        """Stop answering, close the socket, and wait at most ``timeout`` seconds for the thread. May be called twice.

        An answer that is under way has a second to end.
        """
        self._server.finish()
        if self._thread.ident is not None:
            self._thread.join(timeout)
        self._socket.close()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def _serve(self) -> None:
        asyncio.run(self._server.serve(sockets=[self._socket]))


class _QuietServer(uvicorn.Server):
    """uvicorn without its ten ticks a second."""

    def __init__(self, config: uvicorn.Config) -> None:
        super().__init__(config)
        self._lock = threading.Lock()
        self._stop: tuple[asyncio.AbstractEventLoop, asyncio.Event] | None = None

    async def main_loop(self) -> None:
        """Wait until :meth:`finish`."""
        event = asyncio.Event()
        with self._lock:
            self._stop = (asyncio.get_running_loop(), event)
        if not self.should_exit:
            await event.wait()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop taking connections, let those that are being made be made, and close all."""
        # asyncio leaks a connection that was accepted in the very turn in which its server is closed
        # (https://github.com/python/cpython/issues/109564).
        loop = asyncio.get_running_loop()
        for taken in sockets or []:
            with contextlib.suppress(NotImplementedError):  # Windows
                loop.remove_reader(taken)
        for _ in range(_LAST_TURNS):
            await asyncio.sleep(0)
        await super().shutdown(sockets)

    def finish(self) -> None:
        """Ask the server, from another thread, to stop."""
        with self._lock:
            self.should_exit = True
            if self._stop is not None:
                loop, event = self._stop
                with contextlib.suppress(RuntimeError):  # the loop is closed: it has stopped
                    loop.call_soon_threadsafe(event.set)


def _bind(wanted: ListenAddress) -> socket.socket:
    try:
        family, kind, protocol, _, place = socket.getaddrinfo(
            wanted.host, wanted.port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
    except (OSError, UnicodeError) as error:
        raise ListenError(f"cannot listen on {wanted}: {error}") from None
    bound = socket.socket(family, kind, protocol)
    try:
        # So that a restarted daemon gets its port back while connections of the last one fade away.
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        bound.bind(place)
        bound.listen(_BACKLOG)
    except OSError as error:
        bound.close()
        raise ListenError(f"cannot listen on {wanted}: {_reason(error, wanted)}") from None
    return bound


def _reason(error: OSError, wanted: ListenAddress) -> str:
    if error.errno == errno.EADDRINUSE:
        return f"port {wanted.port} is taken; choose another with --web.listen-address, or port 0 for a free one"
    if error.errno == errno.EACCES:
        return f"port {wanted.port} needs privileges; choose one above 1023"
    if error.errno == errno.EADDRNOTAVAIL:
        return f"{wanted.host} is not an address of this machine"
    text: Any = os.strerror(error.errno) if error.errno else error
    return str(text)
