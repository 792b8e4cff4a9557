"""The rule lora/growth."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from lorawatch.adapter_start import unusual_start
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import AdapterReading, Judged
from lorawatch.remedies import lower_rate
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run


@dataclass(slots=True)
class LoraGrowth(Rule):
    """The adapter grows faster and faster while the loss no longer falls.

    ## Why it matters
    Early in a run the update grows about as fast as the steps are taken, and the loss falls for it. Growth that speeds
    up and buys no loss is the way into divergence, or into directions that have nothing to do with the base model's
    (*intruder dimensions*) and cost what it could do.

    ## How it decides
    The largest singular value of scale·B·A, the median over modules, in the last 5 readings after the warm-up. All of
    these must hold.

    - It doubles within less than 10 % of the run, at the rate of these readings.
    - It speeds up: its mean rate over the later half of the steps is above 1.5 times that over the earlier half.
      An update that grows in step with the training (which doubles quickly too, while it is young) does not.
    - The slow level of the loss is not below where it stood at the first of these readings, by 1 %.

    The run's length must be known. Adapters that do not begin with B at 0 are not judged.

    ## What to change
    A third of the learning rate, from a checkpoint before it began; weight decay holds the norms down.

    ## Known false alarms
    A learning rate that rises again (restarts), and a loss that is noisy enough to hide its fall.

    ## Sources
    Intruder dimensions: Shuttleworth et al. (arXiv 2410.21228). The test and its limits are this project's, without
    another authority.
    """

    id: ClassVar[str] = "lora/growth"
    title: ClassVar[str] = "The adapter grows ever faster"
    severity: ClassVar[Severity] = Severity.WARNING
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (AdapterReading,)
    needs_facts: ClassVar[tuple[str, ...]] = ("max_steps",)

    release: int = param(2, unit="readings", help="Readings of slower growth, in a row, before it resolves.")
    readings: int = param(5, unit="readings", help="Readings that are judged together.")
    doubling: float = param(0.1, unit="share of run", help="Steps in which it doubles, over those of the run.")
    faster: float = param(1.5, unit="ratio", help="Rate of the later half over the earlier one's that is speeding up.")
    fall: float = param(0.01, unit="share", help="Fall of the loss that is worth the growth.")
    seen: deque[tuple[int, float, float | None]] = state(deque)

    def missing(self, run: Run) -> tuple[str, ...]:
        """Enough readings of an update that began at 0, and a loss beside them."""
        start = unusual_start(run)
        if start:
            return (start,)
        if len(self.seen) < self.readings:
            return (f"{self.readings} readings of the adapter after the warm-up ({len(self.seen)} so far)",)
        return () if self.seen[0][2] is not None else ("loss",)

    def judge(self, reading: AdapterReading, run: Run) -> Breach | None:
        """Note how large the update is; judge the last readings together."""
        sizes = [module.largest for module in reading.modules if module.largest is not None]
        if not sizes or reading.step <= run.warmup_steps or unusual_start(run):
            return None
        seen = self.seen
        if seen and reading.step <= seen[-1][0]:
            seen.clear()  # the run goes on from an earlier step
        level = run.loss.slow
        seen.append((reading.step, median(sizes), level if math.isfinite(level) else None))
        while len(seen) > self.readings:
            seen.popleft()
        return self._judged(run) if len(seen) == self.readings else None

    def _judged(self, run: Run) -> Breach | None:
        (first, small, before), (last, large, now) = self.seen[0], self.seen[-1]
        total = run.max_steps
        if not total or before is None or now is None or not large > small > 0.0:
            return None
        doubling = (last - first) / math.log2(large / small)
        middle, between, _ = min(self.seen, key=lambda one: abs(one[0] - (first + last) / 2))
        if not first < middle < last:
            return None
        early, late = (between - small) / (middle - first), (large - between) / (last - middle)
        speeding = late > self.faster * self.easing * max(early, 0.0)
        if doubling >= self.doubling * total / self.easing or not speeding or now < before * (1.0 - self.fall):
            return None
        return Breach(
            f"the adapter's largest singular value went from {small:.3g} to {large:.3g} between steps {first} and "
            f"{last}, ever faster (it doubles in {doubling:.0f} steps), and the loss did not fall "
            f"({before:.4g} to {now:.4g})",
            {"from_step": first, "to_step": last, "singular_value_before": small, "singular_value": large,
             "doubling_steps": doubling, "speed_up": late / early if early > 0.0 else None, "loss_before": before,
             "loss": now},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """A lower rate from before; and weight decay."""
        since = breach.evidence["from_step"]
        advice = [
            lower_rate(
                run, 3, f"the growth begins about step {since}; resume from a checkpoint before it with a lower rate",
                confidence="medium", cost="the steps since that checkpoint",
            )
        ]  # fmt: skip
        decay = run.number("weight_decay")
        if decay is None or decay < 0.01:
            advice.append(
                Adjustment(
                    "weight_decay", current=decay, proposed=0.01, apply="restart", confidence="low", direction="up",
                    why="pulls A and B back towards 0 at each step, so that they grow only where the loss pays for it",
                )
            )  # fmt: skip
        return advice
