"""The rule perf/data-wait."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import nlargest
from typing import Any, ClassVar

from lorawatch import data_wait
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.loaders import Loaders
from lorawatch.records import HostReading, Judged, Step, StepTiming
from lorawatch.rule import param, state
from lorawatch.run import Run
from lorawatch.step_rule import EVERY, StepRule

WINDOW = 50
"""Steps that it is told from."""
PATIENCE = 60.0
"""Seconds of steps that a verdict waits for a reading of the machine, which tells the cause."""


@dataclass(slots=True)
class PerfDataWait(StepRule):
    """Training waits for its data: the GPU stands idle until the next batch is made.

    ## Why it matters
    The share of the time that goes to waiting is what could be saved: a step can become that much shorter, no more.

    ## How it decides
    Of the last 50 steps, the wait over wait and work, the sums taken together: information from 10 %, a warning from
    20 %, critical from 40 %, where the mean wait is at least 20 ms. A wait counts as at most the third-longest of the
    window, so that one or two slow fetches are no finding; workers that deliver in bursts, with a wait at each eighth
    step and a median of 0, are. The first wait of an epoch, which holds the start of the workers, is left out.

    Unless `logging_nan_inf_filter` is on, work of the GPU can show as wait: then the GPU must have been idle for at
    least half of that share, where there is a reading of it.

    The likely cause is told from the machine's readings of the last minute: **too few workers** (none, or busy ones
    while processors are free), **processors** (workers busy and no processor free), **disk** (loaders in
    uninterruptible sleep), **network** (loaders that do little, while bytes come in or the data set is streamed), or
    not told. Where readings come, it waits for those that tell of it, at most 60 s of steps.

    ## What to change
    More `dataloader_num_workers`, as many as the measured times ask for, no more than there are processors for each
    GPU, and 16 at most. Where that is not the cause: tokenise before training, copy the data to a local disk.
    `dataloader_persistent_workers` and `dataloader_prefetch_factor` smooth the flow, and add no throughput: they are
    named as things to look at.

    ## Known false alarms
    With more than 16 workers that deliver in bursts, fewer than three waits fall into the window, and it stays quiet.
    Where `logging_nan_inf_filter` is off and the GPU cannot be read, work of the GPU may be taken for wait; it is then
    information only.

    ## Sources
    The limits of 10 and 20 % are TraceML's. 20 ms, 40 % and the third-longest wait are choices. That more processes
    than processors do not help is torch's own warning. Measured with torch 2.13's DataLoader on 2 processors and a step
    of 50 ms: without workers the wait was 62 % (a batch that sleeps 80 ms) and 45 % (one that computes 40 ms), with the
    2 workers that it proposed 2 and 4 %. What a GPU leaks into the wait was not measured by this project.
    """

    id: ClassVar[str] = "perf/data-wait"
    title: ClassVar[str] = "Training waits for data"
    severity: ClassVar[Severity] = Severity.WARNING
    judges: ClassVar[tuple[type[Judged], ...]] = (StepTiming, HostReading)
    suppresses: ClassVar[tuple[str, ...]] = ("perf/low-gpu",)

    info: float = param(0.10, unit="ratio", help="Share of waiting that is worth a word.")
    warning: float = param(0.20, unit="ratio", help="Share of waiting that is a warning.")
    critical: float = param(0.40, unit="ratio", help="Share of waiting that is critical.")
    least: float = param(0.02, unit="seconds", help="Mean wait a step below which it does not matter.")
    waits: deque[float] = state(lambda: deque(maxlen=WINDOW))
    works: deque[float] = state(lambda: deque(maxlen=WINDOW))
    loaders: Loaders = state(Loaders)
    waited: float = state(float)

    def missing(self, run: Run) -> tuple[str, ...]:
        """Waits of a whole window."""
        known = len(self.waits)
        if known >= WINDOW:
            return ()
        return self.unseen(run) or (f"data waits of {WINDOW} steps ({known} so far)",)

    def judge(self, record: Any, run: Run, /) -> Breach | None:
        """Take in steps, and beside them what the machine did."""
        if type(record) is HostReading:
            if run.training:
                self.loaders.add(record)
            return self.verdict
        return StepRule.judge(self, record, run)

    def take(self, step: Step) -> bool:
        """Keep wait and work of a step whose wait is known."""
        wait = step.data_wait
        if wait is None:
            return False
        self.waits.append(wait)
        self.works.append(step.forward_backward + step.optimizer)
        return True

    def decide(self, run: Run) -> Breach | None:
        """Compare the share with the limits; look closer only where the plain share is above the lowest."""
        waits, works = self.waits, self.works
        if len(waits) < WINDOW:
            return None
        eased = self.eased
        wait, work = sum(waits), sum(works)
        if not (work > 0.0 and wait >= max(self.info * eased * (wait + work), self.least * eased * WINDOW)):
            self.waited = 0.0
            return None
        wait = _without_outliers(waits)
        share = wait / (wait + work)
        if not (share >= self.info * eased and wait >= self.least * eased * WINDOW) or self._leaks(share, run):
            self.waited = 0.0
            return None
        if self.verdict is None and self._waits_for_a_reading(run):
            return None
        severity, told = self._level(share, run), self.verdict
        if told is not None and told.severity is not None and severity <= told.severity:
            return told
        return self._breach(share, wait / WINDOW, work / WINDOW, severity, run)

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """By the likely cause, told anew: more is known of the machine than when it opened."""
        found = data_wait.diagnose(
            self.loaders.load(), run, breach.evidence["wait_seconds"], breach.evidence["work_seconds"]
        )
        return data_wait.adjustments(found, run)

    def _level(self, share: float, run: Run) -> Severity:
        if share < self.warning or self._unconfirmed(run):
            return Severity.INFO
        return Severity.CRITICAL if share >= self.critical else Severity.WARNING

    def _waits_for_a_reading(self, run: Run) -> bool:
        """Whether readings come that do not tell yet of training, or of the workers, and are worth waiting for."""
        if run.host is None:
            return False
        load = self.loaders.load()
        unseen = load.worker_cpu is None and (run.number("dataloader_num_workers") or 0.0) > 0.0
        if load.seconds > 0.0 and not unseen:
            return False
        self.waited += sum(list(self.waits)[-EVERY:]) + sum(list(self.works)[-EVERY:])
        return self.waited < PATIENCE

    def _leaks(self, share: float, run: Run) -> bool:
        """Whether the GPU was too busy for it to have waited."""
        if run.fact("logging_nan_inf_filter") is True or run.gpu is None:
            return False
        busy = [card.utilization for card in run.gpu.cards if card.utilization is not None]
        return bool(busy) and max(busy) > 1.0 - share / 2.0

    def _unconfirmed(self, run: Run) -> bool:
        """Whether the wait may be work of a GPU of which there is no reading."""
        if run.fact("logging_nan_inf_filter") is not False or run.allocator is None:
            return False
        return run.gpu is None or all(card.utilization is None for card in run.gpu.cards)

    def _breach(self, share: float, wait: float, work: float, severity: Severity, run: Run) -> Breach:
        found = data_wait.diagnose(self.loaders.load(), run, wait, work)
        load = found.load
        seconds = [one + other for one, other in zip(self.waits, self.works, strict=True)]
        return Breach(
            f"training waits for data {100 * share:.0f} % of the time ({data_wait.seconds(wait)} of "
            f"{data_wait.seconds(wait + work)} a step, mean of {WINDOW}); {found.told}; without the wait a step could "
            f"be {1.0 / (1.0 - share):.2g} times as fast at most",
            {
                "share": share, "wait_seconds": wait, "work_seconds": work, "cause": found.cause,
                "longest_step_seconds": max(seconds), "workers": found.workers, "workers_limit": found.limit,
                "workers_proposed": found.proposed, "worker_cpu": load.worker_cpu, "waiting_for_disk": load.blocked,
                "processors": load.cpus, "processors_used": load.cpu, "read_rate": load.read_rate,
                "receive_rate": load.receive_rate, "best_speedup": 1.0 / (1.0 - share),
            },
            severity,
        )  # fmt: skip


def _without_outliers(waits: Sequence[float]) -> float:
    """Sum of the waits, each counted as at most the third-longest of them."""
    longest = nlargest(3, waits)
    return sum(waits) - sum(longest) + 3 * longest[-1]
