"""A real server on a real socket."""

from __future__ import annotations

import http.client
import socket
import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from lorawatch.exporter import metrics_collector
from lorawatch.web.address import ListenError
from lorawatch.web.server import Server
from tests.terminal.synthetic import SyntheticRun, SyntheticWatch


def serve(watch: SyntheticWatch, listen: str = "127.0.0.1:0", *, insecure: bool = False) -> Server:
    return Server(watch, metrics_collector(watch, {}), listen, insecure=insecure)


@pytest.fixture
def watch() -> SyntheticWatch:
    return SyntheticWatch([])


@pytest.fixture
def client(watch: SyntheticWatch) -> Iterator[httpx.Client]:
    with serve(watch) as server, httpx.Client(base_url=server.url, trust_env=False, timeout=10) as client:
        yield client


def test_it_is_healthy_at_once_and_ready_with_the_first_run(client: httpx.Client, watch: SyntheticWatch) -> None:
    assert client.get("/-/healthy").status_code == 200
    waiting = client.get("/-/ready")
    assert (waiting.status_code, waiting.text) == (503, "lorawatch waits for /runs to hold a training log.\n")
    watch.runs.append(SyntheticRun())
    assert client.get("/-/ready").status_code == 200


def test_metrics_are_those_of_the_moment(client: httpx.Client, watch: SyntheticWatch) -> None:
    run = SyntheticRun()
    watch.runs.append(run)
    for step in (1, 2):
        run.row(step, loss=1.0 / step)
        families = {family.name: family for family in text_string_to_metric_families(client.get("/metrics").text)}
        assert [sample.value for sample in families["lorawatch_loss"].samples] == [1.0 / step]


@pytest.mark.parametrize(
    ("accept", "content_type"),
    [
        ("", "text/plain; version=0.0.4; charset=utf-8"),
        ("*/*", "text/plain; version=0.0.4; charset=utf-8"),
        ("application/openmetrics-text;version=1.0.0;q=0.5,text/plain;q=0.2", "application/openmetrics-text"),
        ("text/plain;version=1.0.0;escaping=allow-utf-8", "text/plain; version=1.0.0"),
    ],
)
def test_the_format_is_negotiated(client: httpx.Client, watch: SyntheticWatch, accept: str, content_type: str) -> None:
    run = SyntheticRun()
    run.row(1, loss=1.0)
    watch.runs.append(run)
    answer = client.get("/metrics", headers={"accept": accept})
    assert answer.headers["content-type"].startswith(content_type)
    if "openmetrics" in content_type:
        families = list(parse_openmetrics(answer.text))  # type: ignore[no-untyped-call]
        assert "lorawatch_loss" in {family.name for family in families}


def test_it_is_compressed_when_asked_for(client: httpx.Client) -> None:
    packed = client.get("/metrics", headers={"accept-encoding": "gzip"})
    plain = client.get("/metrics", headers={"accept-encoding": "identity"})
    assert packed.headers["content-encoding"] == "gzip"
    assert "content-encoding" not in plain.headers
    assert packed.text.splitlines()[0] == plain.text.splitlines()[0]


def test_the_page_lists_the_runs_and_escapes_what_comes_from_files(client: httpx.Client, watch: SyntheticWatch) -> None:
    assert "waiting for /runs" in client.get("/").text
    run = SyntheticRun("<script>alert(1)</script>\udcff\x1b")
    run.learn(max_steps=100)
    run.fail(1)
    watch.runs.append(run)
    answer = client.get("/")
    assert "<script" not in answer.text
    assert "&lt;script&gt;" in answer.text
    assert "2 of 100" in answer.text
    assert "warning: Training loss is too high" in answer.text
    assert answer.headers["content-security-policy"].startswith("default-src 'none'")
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert "date" in answer.headers


def test_only_get_is_answered_and_unknown_pages_are_not_found(client: httpx.Client) -> None:
    assert client.post("/metrics").status_code == 405
    assert client.get("/etc/passwd").status_code == 404
    assert client.head("/metrics").status_code == 200


def test_a_page_that_rebinds_its_name_reads_nothing(client: httpx.Client) -> None:
    answer = client.get("/metrics", headers={"host": "evil.example"})
    assert answer.status_code == 403
    assert "lorawatch_" not in answer.text
    assert client.get("/metrics", headers={"host": "localhost:9999"}).status_code == 200


def test_a_taken_port_is_one_clear_line() -> None:
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        with pytest.raises(
            ListenError, match=rf"^cannot listen on 127.0.0.1:{port}: port {port} is taken; choose "
        ) as e:
            serve(SyntheticWatch(), f"127.0.0.1:{port}")
    assert "\n" not in str(e.value)


def test_an_address_that_others_can_reach_is_refused_unless_it_is_asked_for() -> None:
    with pytest.raises(ListenError, match="can be reached by other machines"):
        serve(SyntheticWatch(), "0.0.0.0:0")
    with serve(SyntheticWatch(), "0.0.0.0:0", insecure=True) as server:
        port = server.address.port
        answer = httpx.get(f"http://127.0.0.1:{port}/metrics", headers={"host": "node-7"}, trust_env=False)
        assert answer.status_code == 200


def test_a_name_that_does_not_resolve_is_one_clear_line() -> None:
    with pytest.raises(ListenError, match=r"^cannot listen on no-such-host.invalid:0: "):
        serve(SyntheticWatch(), "no-such-host.invalid:0", insecure=True)


def test_the_real_port_is_told() -> None:
    server = serve(SyntheticWatch())
    assert server.address.port > 0
    assert server.url == f"http://127.0.0.1:{server.address.port}"
    server.stop()


def test_it_stops_and_gives_the_port_back() -> None:
    server = serve(SyntheticWatch()).start()
    with httpx.Client(base_url=server.url, trust_env=False) as client:
        client.get("/-/healthy")
        server.stop()
    server.stop()
    assert not any(thread.name == "lorawatch-web" for thread in threading.enumerate())
    again = serve(SyntheticWatch(), str(server.address))
    again.stop()


def test_it_stops_while_a_caller_dawdles() -> None:
    server = serve(SyntheticWatch()).start()
    with socket.create_connection((server.address.host, server.address.port)) as dawdler:
        dawdler.sendall(b"GET /metrics HTTP/1.1\r\nHost: loc")
        before = time.monotonic()
        server.stop()
        assert time.monotonic() - before < 3.0


def test_a_request_right_after_the_start_is_answered() -> None:
    with serve(SyntheticWatch()) as server:
        connection = http.client.HTTPConnection(server.address.host, server.address.port, timeout=10)
        connection.request("GET", "/-/healthy")
        with connection.getresponse() as response:
            assert response.status == 200
            response.read()
        connection.close()


def test_garbage_and_oversized_requests_do_it_no_harm(client: httpx.Client) -> None:
    address = (client.base_url.host, client.base_url.port or 0)
    for garbage in (b"\x00\xff\x16\x03\x01" * 50 + b"\r\n\r\n", b"GET / HTTP/1.1\r\nX: " + b"a" * 100_000):
        with socket.create_connection(address, timeout=10) as rude:
            try:
                rude.sendall(garbage)
                rude.recv(100)
            except ConnectionError:
                pass
    assert client.get("/-/healthy").status_code == 200
