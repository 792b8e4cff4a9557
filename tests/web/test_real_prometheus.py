"""A real Prometheus scrapes a real server."""

from __future__ import annotations

import json
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from lorawatch.exporter import metrics_collector
from lorawatch.web.server import Server
from tests.terminal.synthetic import SyntheticRun, SyntheticWatch

DEADLINE = 60.0


def free_port() -> int:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        port: int = taken.getsockname()[1]
        return port


@pytest.mark.skipif(shutil.which("prometheus") is None, reason="prometheus is not installed")
def test_prometheus_reads_the_metrics(tmp_path: Path) -> None:
    run = SyntheticRun('odd "name"\n漢字')
    run.train(range(1, 60))
    run.fail(60)
    watch = SyntheticWatch([run])
    port = free_port()
    with Server(watch, metrics_collector(watch, {}), "127.0.0.1:0") as server:
        config = {
            "scrape_configs": [
                {
                    "job_name": "lorawatch",
                    "scrape_interval": "1s",
                    "static_configs": [{"targets": [str(server.address)]}],
                }
            ]
        }
        (tmp_path / "prometheus.yml").write_text(json.dumps(config))  # JSON is YAML
        log = (tmp_path / "log").open("wb")
        prometheus = subprocess.Popen(
            [
                "prometheus", f"--config.file={tmp_path / 'prometheus.yml'}",
                f"--storage.tsdb.path={tmp_path / 'data'}", f"--web.listen-address=127.0.0.1:{port}",
            ],
            stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            [sample] = wait_for(port, 'lorawatch_finding_active{rule="loss/too-high"} == 1', prometheus)
            assert sample["metric"]["severity"] == "warning"
            assert sample["metric"]["run"] == run.name
            [up] = wait_for(port, 'up{job="lorawatch"}', prometheus)
            assert up["value"][1] == "1"
        finally:
            prometheus.kill()
            prometheus.wait()
            log.close()


def wait_for(port: int, expression: str, prometheus: subprocess.Popen[bytes]) -> list[dict[str, Any]]:
    """What ``expression`` gives, once it gives anything."""
    deadline = time.monotonic() + DEADLINE
    while time.monotonic() < deadline:
        assert prometheus.poll() is None, "prometheus ended"
        try:
            answer = httpx.get(f"http://127.0.0.1:{port}/api/v1/query?query={quote(expression)}", trust_env=False)
            found: list[dict[str, Any]] = answer.json()["data"]["result"] if answer.status_code == 200 else []
        except httpx.TransportError:  # it is not listening yet
            found = []
        if found:
            return found
        time.sleep(0.1)
    raise AssertionError(f"{expression} gave nothing within {DEADLINE} s")
