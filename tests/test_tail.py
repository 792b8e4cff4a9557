"""``lorawatch tail`` as a process: it waits, follows, survives kill -9, and ends with a summary."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from lorawatch.registry import RuleSet
from lorawatch.settings import Settings
from lorawatch.watch import judge

KILLS = 50
ROWS = [
    {"step": 10 * (index + 1), "loss": 2.5 - index / 50 if index < 60 else 1.3 + (index - 60) / 10, "max_steps": 1000}
    for index in range(100)
]
LINES = [json.dumps(row).encode() + b"\n" for row in ROWS]


@contextmanager
def tail(path: Path, *words: str) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-u", "-m", "lorawatch.cli.main", "tail", str(path), "--format", "jsonl", *words]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def events(stream: IO[str] | None) -> Iterator[dict[str, Any]]:
    assert stream is not None
    for line in stream:
        yield json.loads(line)


def until(stream: Iterator[dict[str, Any]], **wanted: Any) -> dict[str, Any]:
    for event in stream:
        if all(event.get(name) == value for name, value in wanted.items()):
            return event
    raise AssertionError(f"tail ended before {wanted}")


def expected(path: Path) -> set[tuple[str, int]]:
    [watch] = judge([path], RuleSet(Settings())).runs
    return {(finding.rule, finding.opened_step) for finding in watch.engine.findings}


def found(told: list[dict[str, Any]]) -> set[tuple[str, int]]:
    return {
        (event["finding"]["rule"], event["finding"]["opened_step"])
        for event in told
        if event["event"] == "finding" and event["change"] == "opened"
    }


def append(file: Path, lines: list[bytes]) -> None:
    with file.open("ab") as out:
        out.writelines(lines)


def test_it_waits_for_the_files_follows_them_and_ends_on_ctrl_c(tmp_path: Path) -> None:
    run = tmp_path / "run"
    with tail(run, "--web.listen-address", "") as process:
        told = events(process.stdout)
        assert "run" in until(told, event="waiting")["waiting_for"]
        run.mkdir()
        append(run / "log.jsonl", LINES[:50])
        until(told, event="progress", step=500)
        append(run / "log.jsonl", LINES[50:])
        opened = until(told, event="finding", change="opened")
        assert opened["finding"]["rule"].startswith("loss/")
        process.send_signal(signal.SIGINT)
        until(told, event="end")
        assert process.wait(10) == 0


def test_killed_at_random_moments_and_restarted_it_finds_the_same(tmp_path: Path) -> None:
    rng = random.Random(9)  # noqa: S311
    file = tmp_path / "log.jsonl"
    data = b"".join(LINES)
    cuts = sorted(rng.sample(range(1, len(data)), KILLS))
    for start, end in zip([0, *cuts[:-1]], cuts, strict=True):
        append(file, [data[start:end]])
        with tail(file, "--web.listen-address", "") as process:
            told = events(process.stdout)
            for _ in range(rng.randint(0, 3)):
                if next(told)["event"] == "progress":
                    break  # it has told all that there is: the next line would never come
            process.send_signal(signal.SIGKILL)
    append(file, [data[cuts[-1] :]])
    with tail(file, "--web.listen-address", "") as process:
        told = events(process.stdout)
        seen = []
        for event in told:
            seen.append(event)
            if event["event"] == "progress" and event["step"] == ROWS[-1]["step"]:
                process.send_signal(signal.SIGINT)
            if event["event"] == "end":
                break
    assert expected(file)
    assert found(seen) == expected(file)


def test_it_serves_the_metrics_while_it_follows(tmp_path: Path) -> None:
    append(tmp_path / "log.jsonl", LINES)
    command = [
        sys.executable,
        "-u",
        "-m",
        "lorawatch.cli.main",
        "tail",
        str(tmp_path),
        "--web.listen-address",
        "127.0.0.1:0",
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        try:
            address = next(line for line in process.stdout if "/metrics" in line).split()[-1]
            for line in process.stdout:
                if "step 1000" in line:
                    break
            with urllib.request.urlopen(address, timeout=10) as answer:  # noqa: S310
                text = answer.read().decode()
            assert 'lorawatch_step{run="' in text
            assert "lorawatch_finding_active{" in text
        finally:
            process.kill()


def test_a_taken_port_is_said_in_one_line(tmp_path: Path) -> None:
    import socket

    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        command = [
            sys.executable,
            "-m",
            "lorawatch.cli.main",
            "tail",
            str(tmp_path),
            "--web.listen-address",
            f"127.0.0.1:{port}",
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 2
    assert f"port {port} is taken" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the memory from /proc")
def test_it_stays_within_50_mib(tmp_path: Path) -> None:
    append(tmp_path / "log.jsonl", LINES)
    with tail(tmp_path, "--web.listen-address", "127.0.0.1:0") as process:
        until(events(process.stdout), event="progress", step=1000)
        status = Path(f"/proc/{process.pid}/status").read_text()
    peak = int(next(line for line in status.splitlines() if line.startswith("VmHWM")).split()[1]) / 1024
    assert peak < 50, f"{peak:.0f} MiB on {os.uname().machine}"
