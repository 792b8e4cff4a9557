"""Rows per CPU second and peak memory: parsing alone, and the whole check, beside mtail and pandas on the same files.

Each arm is a process of its own, pinned to one core where the system allows it; its figures are those that the system
counted for it. Usage: ``python benchmarks/ingest.py [--mib 100] [--repeat 3]``.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from results_file import write

PARSE = """
import sys
from pathlib import Path
from lorawatch.sources.discover import source_for_file
from lorawatch.records import MetricRow
source = source_for_file(Path(sys.argv[1]))
rows = 0
for record in source.poll():
    rows += type(record) is MetricRow
print(rows)
"""
FLOOR = """
import sys
rows = 0
with open(sys.argv[1], "rb") as lines:
    for line in lines:
        rows += 1
print(rows)
"""
PANDAS = """
import sys, pandas
print(len(pandas.read_json(sys.argv[1], lines=True)))
"""
MTAIL_CONSOLE = r"""gauge loss
/'loss': '?(?P<value>[0-9.]+)'?, 'grad_norm': '?(?P<norm>[0-9.]+)/ {
  loss = $value
}
"""
MTAIL_JSONL = r"""gauge loss
/"loss": (?P<value>[0-9.]+)/ {
  loss = $value
}
"""


@dataclass(frozen=True, slots=True)
class Cost:
    """What one process cost: CPU seconds, wall seconds, peak resident MiB."""

    cpu: float
    wall: float
    peak: float


LAUNCH = """
import os, sys, time
before = time.monotonic()
quiet = [(os.POSIX_SPAWN_OPEN, 1, os.devnull, 1, 0)]
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=quiet)
_, status, usage = os.wait4(child, 0)
print(os.waitstatus_to_exitcode(status), usage.ru_utime + usage.ru_stime, time.monotonic() - before, usage.ru_maxrss)
"""
"""A bare interpreter that starts the command: a new process counts the memory of the one that started it as its own
until it has loaded its program, and this benchmark is larger than a bare interpreter."""


def cost_of(command: Sequence[str]) -> Cost:
    """Run a command to its end and return what it cost.

    Raises:
        RuntimeError: It failed.
    """
    told = subprocess.run(
        [sys.executable, "-I", "-S", "-c", LAUNCH, *command], check=True, capture_output=True, text=True
    ).stdout.split()
    if told[0] not in ("0", "1"):  # check exits with 1 when it found something
        raise RuntimeError(f"{command[:3]} failed with exit code {told[0]}")
    return Cost(float(told[1]), float(told[2]), int(told[3]) / 1024)


def make_console(file: Path, mib: int) -> int:
    """Write a console log as transformers 5 prints it, bars merged in; returns its rows."""
    rng = random.Random(1)  # noqa: S311
    rows = 0
    total = 35_000 * mib
    with file.open("w", encoding="utf-8") as out:
        while out.tell() < mib << 20:
            for _ in range(200):
                rows += 1
                step = rows * 10
                loss = 1.2 + 1.8 / (1 + rows / 50) + rng.gauss(0, 0.05)
                for bar in (step - 5, step):
                    out.write(f"\r {100 * step // total:3d}%|███       | {bar}/{total} [12:04<10:11,  1.38it/s]")
                out.write(
                    f"\r{' ' * 60}\r{{'loss': '{loss:.4g}', 'grad_norm': '{abs(rng.gauss(0.5, 0.1)):.4g}', "
                    f"'learning_rate': '{2e-4 * (1 - step / total):.4g}', 'epoch': '{step / 1000:.4g}'}}\n"
                )
    return rows


def make_jsonl(file: Path, mib: int) -> int:
    """Write a LLaMA-Factory trainer log; returns its rows."""
    rng = random.Random(2)  # noqa: S311
    rows = 0
    total = 70_000 * mib
    with file.open("w", encoding="utf-8") as out:
        while out.tell() < mib << 20:
            for _ in range(200):
                rows += 1
                step = rows * 10
                row = {
                    "current_steps": step,
                    "total_steps": total,
                    "loss": round(1.2 + 1.8 / (1 + rows / 50) + rng.gauss(0, 0.05), 4),
                    "lr": 2e-4 * (1 - step / total),
                    "epoch": step / 1000,
                    "percentage": round(100 * step / total, 2),
                    "elapsed_time": "0:12:04",
                    "remaining_time": "5:01:13",
                }
                out.write(json.dumps(row) + "\n")
    return rows


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mib", type=int, default=100, help="size of each file")
    parser.add_argument("--repeat", type=int, default=3)
    options = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    python = sys.executable
    mtail = shutil.which("mtail")
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        files = {"console with bars": place / "train.log", "JSONL": place / "trainer_log.jsonl"}
        rows = {
            "console with bars": make_console(files["console with bars"], options.mib),
            "JSONL": make_jsonl(files["JSONL"], options.mib),
        }
        programs = {"console with bars": MTAIL_CONSOLE, "JSONL": MTAIL_JSONL}
        bare = min(cost_of([python, "-c", "pass"]).peak for _ in range(3))
        lines = [
            f"Files of {options.mib} MiB, medians of {options.repeat}, one core. A bare interpreter: {bare:.0f} MiB.",
            "",
            "| file | what | rows | rows / CPU s | CPU s | peak MiB | over bare |",
            "|---|---|---|---|---|---|---|",
        ]
        for kind, file in files.items():
            arms: dict[str, list[str]] = {
                "floor: for line in binary file": [python, "-c", FLOOR, str(file)],
                "**lorawatch, parse**": [python, "-c", PARSE, str(file)],
                "**lorawatch check, all rules**": [python, "-m", "lorawatch.cli.main", "check", str(file)],
            }
            if kind == "JSONL":
                arms["pandas read_json(lines=True)"] = [python, "-c", PANDAS, str(file)]
            if mtail:
                program = place / f"{kind[:4]}.mtail"
                program.write_text(programs[kind], encoding="utf-8")
                arms["mtail --one_shot"] = [
                    mtail, "--one_shot", "--progs", str(program), "--logs", str(file),
                ]  # fmt: skip
            costs: dict[str, list[Cost]] = {arm: [] for arm in arms}
            for _ in range(options.repeat):
                for arm, command in arms.items():  # interleaved, so that a slow moment hits every arm
                    costs[arm].append(cost_of(command))
            for arm, seen in costs.items():
                cpu = median(cost.cpu for cost in seen)
                peak = median(cost.peak for cost in seen)
                rate = f"{rows[kind]:,} | {rows[kind] / cpu:,.0f} | {cpu:.2f}"
                lines.append(f"| {kind} | {arm} | {rate} | {peak:.0f} | {peak - bare:+.0f} |")
        small = place / "small"
        small.mkdir()
        make_small(small / "train.log")
        walls = sorted(cost_of([python, "-m", "lorawatch.cli.main", "check", str(small)]).wall for _ in range(7))
        lines += ["", f"`lorawatch check` of a 1,000-row run, start-up included: {median(walls):.2f} s (median of 7)."]
        if not mtail:
            lines += ["", "mtail is not installed here (Debian package `mtail`): its arm is left out."]
    write("ingest", "Reading logs", "\n".join(lines), "msgspec", "pandas")
    return 0


def make_small(file: Path) -> None:
    """Write a run of 1,000 rows."""
    full = file.with_suffix(".full")
    make_console(full, 1)
    wanted, kept = 1000, 0
    with full.open(encoding="utf-8", newline="") as source, file.open("w", encoding="utf-8", newline="") as out:
        for line in source:
            out.write(line)
            kept += 1
            if kept == wanted:
                break
    full.unlink()


if __name__ == "__main__":
    sys.exit(main())
