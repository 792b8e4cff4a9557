"""The rule host/disk."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any, ClassVar

from lorawatch.cards import size
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import HostReading, Judged
from lorawatch.remedies import look
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run
from lorawatch.spans import Lasting
from lorawatch.stats import theil_sen

SPACING = 60.0
"""Seconds between two points of the trend."""
POINTS = 60
"""Points of the trend: an hour."""
LEAST_POINTS = 30
WRITTEN = 120.0
"""Seconds for which room must lack where checkpoints are deleted: longer than one is written, as a rule."""


@dataclass(slots=True)
class HostDisk(Rule):
    """The disk that the checkpoints go to will be full before the run is done.

    ## Why it matters
    A save that finds no room ends the run with an error, often leaves half a checkpoint, and takes everything with it
    that was learnt since the one before.

    ## How it decides
    Where the size of a checkpoint is known, and another one is to come:

    - free space below 2 checkpoints is a warning, below 1.2 critical. Once there are as many as `save_total_limit`
      allows, a save takes the room of one and gives it back: then only below 1.2, for 120 s, longer than it takes;
    - the saves that are left would need more than is free: a warning that names the step at which it is full. A save
      at each `save_steps` (or epoch) and at the end; with `save_total_limit`, one more than the limit at a time.

    Nothing is judged while a checkpoint is written, where that is known.

    Where it is not known:

    - less than 5 % free is information, less than 3 % a warning;
    - free space falls (Theil–Sen over up to an hour, at least 30 points a minute apart): a warning where less than
      20 % is free and it is full within 4 hours, information where less than 40 % is free and it is full within 24,
      each if the run is not done before.

    ## What to change
    `save_total_limit`: old checkpoints are deleted. `save_only_model=True` leaves out the optimizer, two thirds of a
    LoRA checkpoint, and with it the resuming. Or another disk.

    ## Known false alarms
    A clean-up that runs outside of the Trainer. A checkpoint that grows smaller (`save_only_model` was set meanwhile).

    ## Sources
    40 % and 24 hours, 20 % and 4 hours, 5 and 3 %: node_exporter's alerts. 2 and 1.2 checkpoints: rule catalogue, 60.
    That a last save follows at the end, and that the new one is written before the oldest is deleted: transformers
    5.24, `DefaultFlowCallback` and `_save_checkpoint`.
    """

    id: ClassVar[str] = "host/disk"
    title: ClassVar[str] = "The disk fills up"
    severity: ClassVar[Severity] = Severity.WARNING
    judges: ClassVar[tuple[type[Judged], ...]] = (HostReading,)

    short: float = param(2.0, unit="checkpoints", help="Free space below which it is a warning.")
    critical: float = param(1.2, unit="checkpoints", help="Free space below which it is critical.")
    floor: float = param(0.05, unit="ratio", help="Share of the disk below which free space is worth a word.")
    points: deque[float] = state(lambda: deque(maxlen=POINTS))
    last: float | None = state(lambda: None)
    lacking: Lasting = state(Lasting)
    told: Breach | None = state(lambda: None)

    def missing(self, run: Run) -> tuple[str, ...]:
        """The free space."""
        host = run.host
        return () if host is None or host.disk_free is not None else ("free space of the checkpoints' disk",)

    def judge(self, reading: HostReading, run: Run) -> Breach | None:
        """Compare the free space with what the checkpoints that are to come will take."""
        free = reading.disk_free
        if free is None or free < 0:
            return None
        checkpoint = reading.checkpoint_bytes
        if checkpoint is not None and checkpoint > 0:
            if reading.phase != "saving":
                self.told = self._room(free, checkpoint, reading, run)
            return self.told
        if run.training:  # a data set that is prepared before fills the disk once, and no further
            self._keep(free, reading.time)
        total = reading.disk_total
        if not total or total <= 0:
            return None
        return self._trend(free, total, reading, run) or self._floor(free, total, reading)

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Keep fewer, smaller checkpoints, or others' files off the disk."""
        limit, only = run.number("save_total_limit"), run.fact("save_only_model")
        where = breach.evidence["disk"] or "the output folder's disk"
        free = look(f"delete old checkpoints and caches on {where} (du -sh), or write to another disk (output_dir)",
                    f"{size(breach.evidence['free_bytes'])} are free")  # fmt: skip
        advice: list[Adjustment] = []
        if limit is None or limit > 3:
            advice.append(
                Adjustment(
                    "save_total_limit", current=limit and int(limit), proposed=3, direction="down", apply="resume",
                    confidence="high", why="deletes the oldest checkpoint when a newer one is written",
                    cost="an earlier checkpoint to go back to; with load_best_model_at_end the best one is kept",
                )
            )  # fmt: skip
        if only is not True:
            advice.append(
                Adjustment(
                    "save_only_model", current=only, proposed=True, apply="resume", confidence="medium",
                    why="leaves optimizer and scheduler out: for an adapter in Adam about two thirds of the checkpoint",
                    cost="a run cannot be resumed from such a checkpoint",
                )
            )  # fmt: skip
        if breach.severity is Severity.CRITICAL or not breach.evidence["checkpoint_bytes"]:
            return [free, *advice]
        return [*advice, free]

    def _room(self, free: int, checkpoint: int, reading: HostReading, run: Run) -> Breach | None:
        step = run.step if reading.step is None else reading.step
        every = save_interval(run)
        left = saves_left(step, every, run)
        if left == 0:
            return None
        eased = self.easing
        needed = left if left is None else _kept(left, step, every, run)
        steady = _limit_reached(step, every, run)
        full_at = None
        if steady:
            lacks = free < self.critical * checkpoint / max(eased, 0.9)  # room for two would never be there
            if not self.lacking.held(lacks, reading.time, WRITTEN if eased == 1.0 else 0.0):
                return None
            full_at = (step // (every or 1) + 1) * (every or 1) if free < checkpoint else None
        elif needed is not None and every is not None and needed * checkpoint > free * eased:
            full_at = (step // every + free // checkpoint + 1) * every
            full_at = full_at if run.max_steps is None else min(full_at, run.max_steps)
        if not steady and free * eased >= self.short * checkpoint and full_at is None:
            return None
        words = f"{size(free)} are free, and a checkpoint takes {size(checkpoint)}"
        if full_at is not None:
            words += f": the disk is full at the save of step {full_at}, with {left} saves left"
        return Breach(
            f"{words}{_on(reading)}",
            {"free_bytes": free, "checkpoint_bytes": checkpoint, "saves_left": left, "full_at_step": full_at,
             "disk": reading.disk_path},
            Severity.CRITICAL if free < self.critical * checkpoint else Severity.WARNING,
        )  # fmt: skip

    def _keep(self, free: int, time: float) -> None:
        if self.last is not None and 0.0 <= time - self.last < SPACING:
            return
        if self.last is not None and not 0.0 <= time - self.last < 2.5 * SPACING:
            self.points.clear()  # a trend needs points that are equally far apart
        self.points.append(float(free))
        self.last = time

    def _trend(self, free: int, total: int, reading: HostReading, run: Run) -> Breach | None:
        if len(self.points) < LEAST_POINTS or free > 0.4 * total / self.easing:
            return None
        rate = -theil_sen(list(self.points)) / SPACING
        if not rate > 0.0:
            return None
        seconds, left = free / rate, run.seconds_left
        soon = free < 0.2 * total and seconds < 4 * 3600
        if seconds > 24 * 3600 / self.easing or (left is not None and left < seconds):
            return None
        return self._without_size(
            f"{size(free)} are free, {100 * free / total:.0f} %, and become less by {size(rate * 3600)} an hour: "
            f"full in {seconds / 3600:.2g} hours",
            free, reading, Severity.WARNING if soon else Severity.INFO, {"seconds_to_full": seconds},
        )  # fmt: skip

    def _floor(self, free: int, total: int, reading: HostReading) -> Breach | None:
        if free * self.easing >= self.floor * total:
            return None
        return self._without_size(
            f"{size(free)} are free, {100 * free / total:.1f} % of the disk", free, reading,
            Severity.WARNING if free < 0.6 * self.floor * total else Severity.INFO, {},
        )  # fmt: skip

    def _without_size(
        self, words: str, free: int, reading: HostReading, severity: Severity, more: dict[str, Any]
    ) -> Breach:
        evidence = {"free_bytes": free, "checkpoint_bytes": None, "disk": reading.disk_path, **more}
        return Breach(words + _on(reading), evidence, severity)


def save_interval(run: Run) -> int | None:
    """Steps from one save to the next, as stated; None where it is not known, or where nothing is saved."""
    strategy, total, epochs = run.fact("save_strategy"), run.max_steps, run.number("num_train_epochs")
    if strategy == "epoch":
        return math.ceil(total / epochs) if total and epochs is not None and epochs > 0 else None
    steps = run.number("save_steps")
    if strategy not in (None, "steps") or steps is None or steps <= 0:
        return None
    return int(steps) if steps >= 1 else math.ceil(steps * (total or 0)) or None


def saves_left(step: int, every: int | None, run: Run) -> int | None:
    """Saves that are still to come, the one at the end counted; None where that cannot be told."""
    total = run.max_steps
    if run.fact("save_strategy") == "no" or (total is not None and step >= total):
        return 0
    return None if total is None or every is None else math.ceil(total / every) - step // every


def _kept(left: int, step: int, every: int | None, run: Run) -> int:
    """Checkpoints by which the folder still grows: with a limit, up to one more than it at a time."""
    limit = run.number("save_total_limit")
    if limit is None or limit < 1 or every is None:
        return left
    return min(left, max(int(limit) - step // every, 0) + 1)


def _limit_reached(step: int, every: int | None, run: Run) -> bool:
    """Whether there are as many checkpoints as are kept, so that each new one takes the place of another."""
    limit = run.number("save_total_limit")
    return limit is not None and limit >= 1 and every is not None and step // every >= limit


def _on(reading: HostReading) -> str:
    return f" ({reading.disk_path})" if reading.disk_path else ""
