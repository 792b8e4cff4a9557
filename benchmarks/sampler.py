"""CPU time that looking at the machine costs: eight cards at 1 Hz, and host and processes of one run beside it.

The driver is the stub of the tests (``tests/machine/nvml_stub.c``) behind the real pynvml: what is measured is the cost
on this side of NVML; what a real driver takes on top differs from card to card and is not in it. Between two looks a
buffer larger than the caches is copied, as a training step would push everything else out of them.
Usage: ``python benchmarks/sampler.py [--seconds 300]``.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import tempfile
import time
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean, median

from results_file import write

from lorawatch.machine.gpus import GpuSampler
from lorawatch.machine.host import HostSampler, Progress
from lorawatch.machine.nvml import NvmlCollector
from lorawatch.machine.processes import this_process
from lorawatch.machine.run_machine import RunMachine

sys.path.insert(0, str(Path(__file__).parent.parent))
from tests.machine.nvml_stub import card, driver

CARDS = 8
WORKERS = 4
BUFFER = 64 * 2**20
"""Bytes that are copied between two looks."""
LIMIT = 3.0
"""Milliseconds of CPU a second that all of it may cost: 0.3 % of a core."""
SKIPPED = 10
"""First seconds, in which libraries are loaded and caches filled: left out."""


class Timed:
    """Adds up the CPU time of one part, by second."""

    def __init__(self) -> None:
        self.spent: list[float] = []

    def __call__(self, work: Callable[..., object], *arguments: object) -> None:
        """Do it, and keep the milliseconds that this thread took for it."""
        before = time.thread_time_ns()
        work(*arguments)
        self.spent.append((time.thread_time_ns() - before) / 1e6)


def measure(folder: Path, seconds: int, *, cold: bool) -> dict[str, list[float]]:
    """Milliseconds of CPU of each second that is played: of the look at the cards, and of the rest."""
    looks, ticks = Timed(), Timed()
    now = 0.0
    with driver(folder, *(card(number, compute=f"{os.getpid()}:{40 * 2**30}") for number in range(CARDS))):
        sampler = GpuSampler([NvmlCollector(clock=lambda: now)], clock=lambda: now)
        host = HostSampler(folder, this_process(), clock=lambda: now)
        machine = RunMachine(host, sampler.view())
        buffer = bytearray(BUFFER)
        for second in range(seconds + SKIPPED):
            now = float(second)
            if cold:
                bytes(buffer)
            looks(sampler.look)
            ticks(machine.tick, now, Progress(0.0, "training", second))
        readings = len(machine.tick(now + 60.0, Progress(0.0)))
        if readings != 2 or machine.problems:
            raise SystemExit(f"not measured: {readings} readings of 2, problems: {list(machine.problems)}")
        sampler.stop()
    return {"cards": looks.spent[SKIPPED:], "host": ticks.spent[SKIPPED:]}


def row(name: str, spent: list[float]) -> str:
    """A line of the table."""
    worst = sorted(spent)[int(0.99 * (len(spent) - 1))]
    return f"| {name} | {fmean(spent):.2f} | {median(spent):.2f} | {worst:.2f} |"


def table(found: dict[str, list[float]]) -> list[str]:
    """The lines of one condition."""
    both = [one + other for one, other in zip(found["cards"], found["host"], strict=True)]
    return [
        row(f"look at {CARDS} cards", found["cards"]),
        row(f"look at the host, trainer and {WORKERS} workers; every tenth time the readings", found["host"]),
        row("**both: what a second costs**", both),
    ]


def workers() -> list[BaseProcess]:
    """Processes that wait, as the workers of a data loader do most of the time."""
    context = multiprocessing.get_context("fork")
    started = [context.Process(target=time.sleep, args=(3600,), daemon=True) for _ in range(WORKERS)]
    for one in started:
        one.start()
    return list(started)


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=int, default=300, help="seconds that are played")
    options = parser.parse_args()
    started = workers()
    try:
        with tempfile.TemporaryDirectory() as folder:
            warm = measure(Path(folder), options.seconds, cold=False)
            cold = measure(Path(folder), options.seconds, cold=True)
    finally:
        for one in started:
            one.terminate()
    spent = fmean(cold["cards"]) + fmean(cold["host"])
    verdict = "It does." if spent <= LIMIT else f"It does not: {spent:.2f} ms."
    lines = ["| caches pushed out between looks | mean | median | p99 |", "|---|---|---|---|", *table(cold)]
    lines += ["", "| back to back | mean | median | p99 |", "|---|---|---|---|", *table(warm)]
    body = (
        "\n".join(lines) + "\n\n"
        "Milliseconds of CPU (thread_time) for each of "
        f"{options.seconds} seconds, played one after the other without waiting, the first {SKIPPED} left out. One "
        "process on each card, the real pynvml on a stub of the driver's library: the time that a real driver spends "
        "in its own calls is not in it. Every tenth second holds the slow fields of the cards and the readings, which "
        f"are the 99th percentile. {BUFFER // 2**20} MiB are copied before each look in the first table. "
        f"Must hold: both together at most {LIMIT:.0f} ms a second, 0.3 % of a core, on average. {verdict}\n"
    )
    write("sampler", "Cost of looking at the machine", body, "nvidia-ml-py", "psutil")


if __name__ == "__main__":
    main()
