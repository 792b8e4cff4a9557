"""The rule perf/slowdown."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import ClassVar

import msgspec

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.machine_signs import interrupted, of_the_cards, of_the_host
from lorawatch.records import Step, StepTiming
from lorawatch.remedies import length_grouped, look
from lorawatch.rule import param, state
from lorawatch.run import REINFORCEMENT, Run
from lorawatch.step_rule import StepRule

SKIPPED = 20
"""Steps after the start or a resume that are left out: compilation, caches, clocks."""
BASELINE = 100
"""Steps after these that later ones are compared with."""
RECENT = 20
"""Steps that are compared with them."""


class Point(msgspec.Struct, frozen=True, gc=False):
    """One step, or from outside the mean of a span of them."""

    seconds: float
    size: float
    wait: float
    span: int


@dataclass(slots=True)
class PerfSlowdown(StepRule):
    """Steps take longer than they did, for the same number of tokens.

    ## Why it matters
    The work of a step does not grow by itself. What slows it down comes from outside, and usually stays: a card that
    clocks down in its own heat, another process on the machine, memory that has run short, storage that answers late.

    ## How it decides
    Seconds per token, padding included: the median of the last 20 steps over that of steps 21 to 120, at two decisions
    in a row, ten steps apart. Its logarithm must be above `ln 1.3` and above 4 standard errors of the two medians,
    `1.2533 s sqrt(1/20 + 1/100)`; `s` is 1.4826 times the median absolute deviation of the 100 steps, more where
    neighbours are alike (AR(1)). Logging, evaluation and saving are not part of it. Where the median length of the
    batches has changed by more than a factor of 1.3, nothing is said. After a resume it begins anew.

    Where tokens are not known, seconds per step stand in; not for batches grouped by length, nor for GRPO and RLOO,
    whose answers grow. Where a run is only seen from outside, each span of steps is one point: 20 of them, with 100
    steps or more, are compared with the last 10, with 20 steps or more.

    ## What to change
    What the machine shows: the card's clocks and temperature, other processes, memory, waiting for data. Where it
    shows nothing, a look with `py-spy` or the profiler at what a step does now.

    ## Known false alarms
    A change of the data that lengthens the sequences, where tokens are not known.

    ## Sources
    The test is the rule catalogue's (section 1); the correction for neighbours and the second decision are added. Of
    480 simulated runs of 10,000 steps, lognormal with a variation of 0.1 to 0.6, one fires; of 480 whose neighbours are
    alike (AR 0.4 to 0.8) 31 do. 1.5 times slower is found after 33 steps (variation 0.2) or 92 (0.4). 1.2533 is the
    error of a median over that of a mean.
    """

    id: ClassVar[str] = "perf/slowdown"
    title: ClassVar[str] = "Steps have become slower"
    severity: ClassVar[Severity] = Severity.WARNING

    ratio: float = param(1.3, unit="ratio", help="Time per token against that of the run's beginning.")
    errors: float = param(4.0, unit="standard errors", help="Least rise, in standard errors of the two medians.")
    longer: float = param(1.3, unit="ratio", help="Change of the batches' length above which nothing is compared.")
    mode: str = state(str)
    skipped: int = state(int)
    baseline: list[Point] = state(list)
    baseline_steps: int = state(int)
    recent: deque[Point] = state(lambda: deque(maxlen=RECENT))
    base: float = state(float)
    noise: float = state(float)
    size: float = state(float)
    resumed: int | None = state(lambda: None)
    last: int = state(int)
    slow: bool = state(bool)

    def missing(self, run: Run) -> tuple[str, ...]:
        """The steps to compare, and the steps to compare them with."""
        if self._blind(run):
            return ("tokens of each step: the time of a step follows its length here",)
        known = self.skipped + self.baseline_steps + sum(point.span for point in self.recent)
        needed = SKIPPED + BASELINE + RECENT
        return () if self.base and self._window() else (f"the times of {needed} steps ({min(known, needed)} so far)",)

    def judge(self, timing: StepTiming, run: Run, /) -> Breach | None:
        """Take in the steps, or the span where only that is known; begin anew after a resume."""
        if run.resumed_step != self.resumed or timing.step < self.last:
            self.resumed = run.resumed_step
            self._begin()
        self.last = timing.step
        if timing.steps:
            return StepRule.judge(self, timing, run)
        if timing.seconds is not None and timing.span > 0 and not interrupted(run):
            seconds = timing.seconds - timing.logging - timing.evaluation - timing.saving
            if self._add(Point(seconds / timing.span, 1.0, 0.0, timing.span), "spans"):
                self.verdict = self.decide(run)
        return self.verdict

    def take(self, step: Step) -> bool:
        """Keep the time of a step, and how many tokens it was for."""
        wait, size = step.data_wait, step.padded_tokens
        if wait is None:
            return False
        seconds = wait + step.forward_backward + step.optimizer
        if size is None or self.mode == "steps":
            return self._add(Point(seconds, 1.0, wait, 1), "steps")
        return self._add(Point(seconds, size, wait, 1), "tokens")

    def decide(self, run: Run) -> Breach | None:
        """Compare the last steps with the first; a first breach must be confirmed by the next decision."""
        breach = self._compare(run)
        confirmed, self.slow = self.slow, breach is not None
        return breach if confirmed else None

    def _compare(self, run: Run) -> Breach | None:
        if not self.base:
            return None
        points = self._window()
        if not points:
            return None
        now = median([point.seconds / point.size for point in points])
        if now <= self.ratio**self.eased * self.base:
            return None
        margin = max(math.log(self.ratio), self.errors * self._error(len(points))) * self.eased
        if math.log(now / self.base) <= margin or self._blind(run):
            return None
        size = median([point.size for point in points])
        if not 1.0 / self.longer <= size / self.size <= self.longer:
            return None
        return self.verdict or self._breach(points, now / self.base, run)

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """What else is seen that would explain it."""
        signs = [*of_the_cards(run), *of_the_host(run)]
        if breach.evidence["part"] == "data wait":
            signs.insert(
                0,
                look(
                    "look at what the data loader does: storage, the network, processors that others use",
                    f"the wait for data has grown from {breach.evidence['wait_before']:.2g} to "
                    f"{breach.evidence['wait_now']:.2g} s a step, and explains most of it", confidence="high",
                ),
            )  # fmt: skip
        if run.allocator is not None and run.allocator.alloc_retries > 0:
            signs.append(
                look(
                    "look at the GPU's memory: it is nearly full",
                    f"the allocator has given back its cache and tried again {run.allocator.alloc_retries} times, "
                    "which stops the GPU each time",
                )
            )  # fmt: skip
        if run.fact("torch_compile") is True:
            signs.append(look("run with TORCH_LOGS=recompiles", "new shapes make torch.compile compile again"))
        by_hand = (
            "look at the machine while it is slow: nvidia-smi dmon for clocks and heat, py-spy top for the trainer"
        )
        return signs or [look(by_hand, "no reading shows what holds it up", confidence="low")]

    def _begin(self) -> None:
        self.mode, self.skipped, self.baseline_steps = "", 0, 0
        self.baseline, self.base, self.verdict, self.slow = [], 0.0, None, False
        self.recent.clear()

    def _add(self, point: Point, mode: str) -> bool:
        if mode != self.mode:
            if self.mode:
                return False
            self.mode = mode
        if not (1e-6 < point.seconds < 1e9 and 0 < point.size < 1e12):
            return False
        if self.base:
            self.recent.append(point)
        elif self.skipped < SKIPPED:
            self.skipped += point.span
        else:
            self.baseline.append(point)
            self.baseline_steps += point.span
            if self.baseline_steps >= BASELINE and len(self.baseline) >= RECENT:
                self._set_base()
        return True

    def _set_base(self) -> None:
        rates = [math.log(point.seconds / point.size) for point in self.baseline]
        centre = median(rates)
        self.base = math.exp(centre)
        noise = 1.4826 * median([abs(rate - centre) for rate in rates])
        self.noise = noise * math.sqrt(_inflation([rate - centre for rate in rates]))
        self.size = median([point.size for point in self.baseline])

    def _error(self, points: int) -> float:
        """Standard error of the difference of the two medians, of logarithms."""
        return 1.2533 * self.noise * math.sqrt(1.0 / points + 1.0 / len(self.baseline))

    def _window(self) -> Sequence[Point]:
        """The last steps: 20, and of spans at least 10; empty before there are so many."""
        recent = self.recent
        if self.mode != "spans":
            return recent if len(recent) == RECENT else ()
        points: list[Point] = []
        steps = 0
        for point in reversed(recent):
            points.append(point)
            steps += point.span
            if steps >= RECENT and len(points) >= RECENT // 2:
                return points
        return ()

    def _blind(self, run: Run) -> bool:
        """Whether the time of a step says nothing, for the length of its batch is not known and matters."""
        return self.mode in ("steps", "spans") and (run.kind in REINFORCEMENT or length_grouped(run))

    def _breach(self, points: Sequence[Point], ratio: float, run: Run) -> Breach:
        before, now = median([one.seconds for one in self.baseline]), median([one.seconds for one in points])
        wait_before, wait_now = median([one.wait for one in self.baseline]), median([one.wait for one in points])
        part = "not known"
        if self.mode != "spans":
            part = "data wait" if wait_now - wait_before > 0.5 * (now - before) > 0.0 else "passes and optimizer"
        token = " for the same number of tokens" if self.mode == "tokens" else ""
        grown = {"data wait": ", most of it the wait for data", "passes and optimizer": ", not from waiting for data"}
        return Breach(
            f"a step takes {ratio:.2g} times as long as at the run's beginning{token}: {now:.3g} s, and "
            f"{before:.3g} s then (medians of {sum(one.span for one in points)} and {self.baseline_steps} steps)"
            + grown.get(part, ""),
            {"ratio": ratio, "seconds_before": before, "seconds_now": now, "wait_before": wait_before,
             "wait_now": wait_now, "part": part, "noise": self.noise, "by": self.mode},
        )  # fmt: skip


def _inflation(rest: Sequence[float]) -> float:
    """How much more the mean of neighbours that are alike varies: ``(1 + rho) / (1 - rho)``, for an AR(1) series."""
    power = sum(one * one for one in rest)
    if not power > 0.0:
        return 1.0
    rho = min(max(sum(one * other for one, other in pairwise(rest)) / power, 0.0), 0.9)
    return (1.0 + rho) / (1.0 - rho)
