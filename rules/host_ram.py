"""The rule host/ram."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from lorawatch.cards import size
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import HostReading, Judged, ProcessReading
from lorawatch.remedies import look
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run
from lorawatch.spans import Lasting, Thinned
from lorawatch.stats import mann_kendall_z, theil_sen

HELD = 20.0
"""Seconds for which memory must be short: a dip is no danger."""
PRESSED = 60.0
"""Seconds for which it must swap or fault."""
SWAPPED = 500 * 4096.0
"""Bytes a second swapped in that matter: node_exporter's 500 faults, of a page each."""
LEAST_SECONDS = 600.0
"""Seconds of training that a growth must be seen over."""
LEAST_POINTS = 24
TREND = 3.0
"""Mann–Kendall statistic from which memory grows."""
LEAST_GROWTH = 1 << 30
"""Bytes of growth that matter (rule catalogue, mem/leak: TraceML's 1 GiB)."""


@dataclass(slots=True)
class HostRam(Rule):
    """The machine's memory runs short, or grows towards it.

    ## Why it matters
    When it is used up the kernel ends a process, most often the largest: the trainer, without a word. Before that the
    machine swaps, and each step takes many times as long.

    ## How it decides
    - Less than 10 % of the memory is available for 20 s: a warning; less than 5 %: critical. A cgroup's limit counts
      where it is the lower one.
    - More than 2 MB/s are swapped in for 60 s while it trains: a warning. More than 500 major faults a second for
      60 s: a warning where less than 20 % is available, else information, for a data set that is read through a
      memory map faults as well.
    - Growth: what is not available, over the training so far (at most 64 points, over 10 minutes or more): the medians
      of the three thirds rise, by more than 1 GiB; the last half rises, by Mann–Kendall's z above 3 and at a third of
      the mean rate or more. A warning where, at that rate (Theil–Sen), it is full before the run is done, or within a
      day where its length is not known, and within 4 times the time that it was seen for; critical in less than 15
      minutes or a tenth of what is left. Information where it will last, from a tenth of the memory on.

    Which process grows is told by its resident memory. Workers that copy what they share with the trainer
    (copy on write) show nothing there, for shared pages count as theirs already: where neither grows and there are
    workers, that is the likely cause.

    ## What to change
    By who holds or grows. The workers: fewer `dataloader_num_workers`; arrays or Arrow in place of Python lists and
    dictionaries in the data set (their reference counts are written to when read, which copies the page);
    `keep_in_memory=False`. The trainer: what it collects, such as losses with their graph, or predictions
    (`eval_accumulation_steps`). Neither: what else runs on the machine.

    ## Known false alarms
    Other users of a shared machine. Caches that the system counts as taken although it could free them.

    ## Sources
    500 faults a second: node_exporter's alert. Bands and 1 GiB: TraceML, as in `mem/leak`. 10 and 5 %: rule
    catalogue, 60. Simulated, 40 runs of 6 hours each: flat, strongly correlated, a random walk, a cache that fills by
    8 GiB, a saw of 3 GiB: none fires; a leak of 8 GiB an hour is found in all. Measured with a list of 6 million
    strings on Linux 6: a forked worker that reads them keeps its resident memory of 513 MiB, while 394 MiB less are
    available.
    """

    id: ClassVar[str] = "host/ram"
    title: ClassVar[str] = "The machine's memory runs short"
    severity: ClassVar[Severity] = Severity.WARNING
    judges: ClassVar[tuple[type[Judged], ...]] = (HostReading,)

    warning: float = param(0.10, unit="ratio", help="Share of the memory below which what is available is short.")
    critical: float = param(0.05, unit="ratio", help="Share of the memory below which it is critical.")
    faults: float = param(
        500.0, unit="faults a second", help="Major page faults above which the machine is busy with them."
    )
    ahead: float = param(4.0, unit="ratio", help="Time that is forecast, over the time that the growth was seen.")
    much: float = param(
        0.10, unit="ratio", help="Growth, as a share of the memory, that is worth a word while it lasts."
    )
    short: Lasting = state(Lasting)
    shorter: Lasting = state(Lasting)
    swapping: Lasting = state(Lasting)
    faulting: Lasting = state(Lasting)
    growth: _Growth = state(lambda: _Growth())  # noqa: PLW0108  (the class stands below)

    def missing(self, run: Run) -> tuple[str, ...]:
        """The memory that is available."""
        host = run.host
        return () if host is None or host.memory_available is not None else ("the memory that is available",)

    def judge(self, reading: HostReading, run: Run) -> Breach | None:
        """Compare what is available, what is swapped, and how the rest grows."""
        available, total = reading.memory_available, reading.memory_total
        if available is None or not total or total <= 0 or not 0 <= available <= total:
            return None
        share, now = available / total, reading.time
        short = self.short.held(share < self.warning / self.easing, now, HELD)
        critical = self.shorter.held(share < self.critical, now, HELD)
        if short:
            words = f"{size(available)} of the machine's memory are available, {100 * share:.1f} %"
            return self._breach("short", words, reading, Severity.CRITICAL if critical else Severity.WARNING)
        if not run.training:
            return None
        return self._pressed(reading, share) or self._grows(reading, run)

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """By who takes or grows."""
        who = breach.evidence["who"]
        stated = run.number("dataloader_num_workers")
        workers = breach.evidence["workers_seen"] if stated is None else int(min(max(stated, 0.0), 1e6))
        advice: list[Adjustment] = []
        if who == "workers":
            if workers is None or workers > 1:
                advice.append(
                    Adjustment(
                        "dataloader_num_workers", current=workers, proposed=workers // 2 if workers else "half of them",
                        direction="down", apply="resume", confidence="medium",
                        why="each worker is a process that comes to hold its own copy of the data set's Python objects",
                        cost="slower loading, where that is what training waits for",
                    )
                )  # fmt: skip
            advice.append(
                look(
                    "hold the data set in numpy arrays or Arrow (datasets.Dataset, keep_in_memory=False) instead of "
                    "Python lists and dictionaries",
                    "reading a Python object writes to its reference count, which copies the page into each worker",
                )
            )  # fmt: skip
        if who == "trainer":
            advice.append(
                look(
                    "look at what the trainer collects: losses kept without .item(), lists of metrics or samples in a "
                    "callback, predictions of an evaluation (eval_accumulation_steps, prediction_loss_only), data kept "
                    "in memory (keep_in_memory=False)",
                    f"it holds {size(breach.evidence['trainer_bytes'] or 0)} of main memory",
                )
            )  # fmt: skip
        if who in ("others", "not told"):
            advice.append(look("look at what else runs on this machine: top, sorted by memory",
                               "the run's own processes do not account for it" if who == "others" else
                               "which process takes it is not known"))  # fmt: skip
            if (workers or 0) > 1:
                advice.append(look(f"and at its {workers} data-loader workers (dataloader_num_workers)",
                                   "each comes to hold its own copy of the data set's Python objects",
                                   confidence="low"))  # fmt: skip
        if breach.severity is not Severity.INFO:
            advice.append(look("save a checkpoint soon (save_steps)",
                               "a process that the kernel ends leaves what was saved before"))  # fmt: skip
        return advice

    def _pressed(self, reading: HostReading, share: float) -> Breach | None:
        swapped, faults, now = reading.swap_in_rate or 0.0, reading.major_faults_rate or 0.0, reading.time
        if self.swapping.held(swapped > SWAPPED * self.easing, now, PRESSED):
            words = f"the machine swaps in {size(swapped)} a second, for {PRESSED:.0f} s or more"
            return self._breach("swap", f"{words}; {100 * share:.0f} % of its memory is available", reading, None)
        if self.faulting.held(faults > self.faults * self.easing, now, PRESSED):
            words = f"{faults:.0f} major page faults a second for {PRESSED:.0f} s or more"
            return self._breach(
                "faults", f"{words}; {100 * share:.0f} % of the machine's memory is available", reading,
                Severity.WARNING if share < 0.2 else Severity.INFO,
            )  # fmt: skip
        return None

    def _grows(self, reading: HostReading, run: Run) -> Breach | None:
        growth = self.growth
        growth.add(reading, self.easing)
        if not growth.slope > 0.0:
            return None
        lasts, left = (reading.memory_available or 0) / growth.slope, run.seconds_left
        # What was seen for half an hour says little of tomorrow.
        fills = lasts < min(self.ahead * growth.points.span, 86400.0 if left is None else left)
        if not fills and growth.grown < self.much * (reading.memory_total or 0) * self.easing:
            return None
        critical = fills and left is not None and lasts < max(900.0, 0.1 * left)
        severity = Severity.CRITICAL if critical else Severity.WARNING if fills else Severity.INFO
        who, words = growth.blame()
        return self._breach(
            "growth",
            f"memory in use has grown by {size(growth.grown)} in {growth.points.span / 60:.0f} min of training"
            f"{words}; at this rate it is full in {lasts / 3600:.2g} hours"
            + ("" if left is None else f", the run needs {left / 3600:.2g}"),
            reading, severity, who=who, growth_bytes=growth.grown, bytes_a_second=growth.slope, seconds_to_full=lasts,
            seconds_left=left,
        )  # fmt: skip

    def _breach(self, case: str, words: str, reading: HostReading, severity: Severity | None, **more: Any) -> Breach:
        trainer, workers = _resident(reading.processes)
        evidence: dict[str, Any] = {
            "case": case, "available_bytes": reading.memory_available, "total_bytes": reading.memory_total,
            "trainer_bytes": trainer, "worker_bytes": workers, "who": _largest(reading, trainer, workers),
            "workers_seen": _workers_seen(reading.processes),
        }  # fmt: skip
        return Breach(words, evidence | more, severity)


class _Growth:
    """How memory in use grew over the training."""

    def __init__(self) -> None:
        self.grown = 0.0
        self.slope = 0.0
        self.points = Thinned()

    def add(self, reading: HostReading, easing: float) -> None:
        """Take in a reading, and judge anew when it was kept."""
        trainer, workers = _resident(reading.processes)
        used = float((reading.memory_total or 0) - (reading.memory_available or 0))
        if math.isfinite(reading.time) and self.points.add(int(reading.time), used, trainer or 0.0, workers or 0.0):
            self._judge(LEAST_GROWTH * easing)

    def blame(self) -> tuple[str, str]:
        """Who grows, and words for it."""
        resident = self.points.column(1), self.points.column(2)
        trainer, workers = (last - first for first, _, last in map(_thirds, resident))
        if max(trainer, workers) >= 0.5 * self.grown:
            if trainer >= workers:
                return "trainer", f", the trainer's by {size(trainer)}"
            return "workers", f", that of the data-loader workers by {size(workers)}"
        if any(resident[1]):
            return "workers", (
                ", while the resident memory of trainer and workers did not: workers that copy what they share, or "
                "another process"
            )
        return "others", ", while the trainer's did not: another process, or shared memory"

    def _judge(self, least: float) -> None:
        """Set ``slope`` to bytes a second; 0 where it does not grow steadily."""
        points = self.points
        self.slope = 0.0
        if points.span < LEAST_SECONDS or len(points.steps) < LEAST_POINTS:
            return
        used = points.column(0)
        first, middle, last = _thirds(used)
        self.grown = last - first
        recent = used[len(used) // 2 :]
        if not (first <= middle < last and self.grown > least) or mann_kendall_z(recent, TREND) < TREND:
            return
        seconds = max(points.steps[-1] - points.steps[len(used) // 2], 1)
        rate = theil_sen(recent) * (len(recent) - 1) / seconds
        if rate >= 0.5 * self.grown / points.span:  # a third of the mean rate: else it levels off
            self.slope = rate


def _thirds(values: list[float]) -> tuple[float, float, float]:
    third = len(values) // 3
    return median(values[:third]), median(values[third:-third]), median(values[-third:])


def _resident(processes: list[ProcessReading]) -> tuple[float | None, float | None]:
    """Resident bytes of the trainers and of the workers; None where there is none, or none is told."""
    trainers = [float(one.rss) for one in processes if one.rss is not None and one.role != "worker"]
    workers = [float(one.rss) for one in processes if one.rss is not None and one.role == "worker"]
    return sum(trainers) if trainers else None, sum(workers) if workers else None


def _workers_seen(processes: list[ProcessReading]) -> int | None:
    """Data-loader workers of each trainer; None where no trainer is seen."""
    trainers = sum(one.role != "worker" for one in processes)
    return round((len(processes) - trainers) / trainers) if trainers else None


def _largest(reading: HostReading, trainer: float | None, workers: float | None) -> str:
    """Who takes at least half of what is in use; resident memory counts shared pages in each process."""
    if trainer is None:
        return "not told"
    used = (reading.memory_total or 0) - (reading.memory_available or 0)
    if (workers or 0.0) > max(trainer, 0.5 * used):
        return "workers"
    return "trainer" if trainer >= 0.5 * used else "others"
