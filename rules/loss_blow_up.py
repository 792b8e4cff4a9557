"""The rule loss/blow-up."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import bfloat16, clip_gradients, length_grouped, longer_warmup, lower_rate
from lorawatch.rule import Rule, param, state
from lorawatch.run import SUPERVISED, Run


@dataclass(slots=True)
class LossBlowUp(Rule):
    """The training loss is far above where it started: the run is blowing up.

    ## Why it matters
    The updates are so large that the model loses what it knew. Nothing that it learns afterwards is worth its cost,
    and each further step is wasted.

    ## How it decides
    The median of the last 3 logged losses is above 1.5 times the start and above the start plus 1. It needs 3 points,
    so that it speaks long before a trend could.

    - The start is the first logged loss; from the tenth point on it is the larger of that and the median of the first
      ten, because one small first batch may read low by chance. 3 of the last 16 points must then be above the
      limit, and the limit is at least 4 sigma of the first ten points' noise above the start.
    - From point 19 on also where 12 of the last 16 are above the limit, with the median of the first three for that of
      the first ten: a run that is ruined by its fourth step must not pass for one with a high start.
    - The points before the tenth must reach more, because the first alone is the start: 2.1 times the start and the
      start plus 2; where a point is the mean of fewer than 5 steps, 3 times the start and the start plus 4.
    - Where batches are grouped by length the median is over 9 points.

    A run that starts below 0.3 is left alone.

    ## What to change
    Stop. A learning rate above 1e-3 is divided by 10, a lower one by 3; then a warm-up over 5 % of the run, bf16 in
    place of fp16, and a tighter clip. Start anew from the base model: a checkpoint from after the rise is damaged.

    ## Known false alarms
    Batches grouped by length, when the run does not say that they are: short answers have a higher loss per token.
    Data that is ordered from easy to hard.

    ## Sources
    Measured on 24 public runs: catches both real blow-ups at the third point, one of them a run of 10 points at a
    learning rate of 5e-3 (1.0 → 29.6), and no other. The larger start from point 10 on, and the higher limit before it
    where single steps are logged, were chosen on the wider public runs (one starts at 5.7, 9.2, 9.4 by chance and
    diverges at step 80), which therefore cannot confirm them. A run of this project whose loss went 3.2, 2.6, 2.4,
    7.2 and stayed near 5.6 was missed without the second test. Of 960 synthetic healthy runs
    (`benchmarks/false_alarms.py`, seeds not used for choosing) 7 fire, all with noise of 25 %. Tinker's sweep places
    divergence 5–10 times above the best rate.
    """

    id: ClassVar[str] = "loss/blow-up"
    title: ClassVar[str] = "Training loss is blowing up"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    kinds = SUPERVISED
    min_points: ClassVar[int] = 3
    suppresses: ClassVar[tuple[str, ...]] = (
        "loss/diverging", "loss/plateau", "loss/not-learning", "loss/slow-start", "loss/spike", "loss/oscillation",
        "loss/noisy", "loss/stairs", "loss/periodic", "eval/overfit", "eval/gap", "grad/*", "lora/*",
        "gen/*", "base/*",
    )  # fmt: skip

    release: int = param(16, unit="points", help="Points in a row below the eased limit before it resolves.")
    relative: float = param(1.5, unit="ratio", help="The last losses must be above this many times the start.")
    absolute: float = param(1.0, unit="nats", help="The last losses must be above the start plus this.")
    sigmas: float = param(4.0, unit="sigma", help="From the tenth point on, also this far above, in early noise.")
    floor: float = param(0.3, unit="nats", help="A run that starts below this is not judged.")
    lasting: int = param(
        16, unit="points", help="Points of which 3 in 4 must be above, where the first ten are ruined too."
    )
    single: int = param(5, unit="steps", help="Below this logging interval a logged loss is that of few batches.")
    settled: bool = state(bool)
    limit: float = state(float)
    lasting_limit: float = state(float)
    start: float = state(float)
    needed: int = state(lambda: 3)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the last points with the start."""
        loss = row.values["loss"]
        if loss - loss != 0.0 or (self.settled and loss <= self.lasting_limit and self.easing == 1.0):
            return None
        level = run.loss
        count = level.count
        if not self.settled:
            self._set_limit(run)
        if count < self.needed or self.start < self.floor:
            return None
        losses = run.series["loss"]
        last = median(losses.window(self.needed))
        if last <= self.limit * self.easing or (
            self.settled and sum(value > self.limit * self.easing for value in losses.window(16)) < 3
        ):
            if not self.settled or count < self.lasting + 3:
                return None
            # The lower quartile: nearly all of them are above.
            last = sorted(losses.window(self.lasting))[self.lasting // 4]
            if last <= self.lasting_limit * self.easing:
                return None
        rate, first = run.peak_learning_rate, losses.head[0]
        return Breach(
            f"loss is {last:.4g} (median of the last logged), {last / first:.1f} times its start of {first:.4g}"
            + (f", at a learning rate of {rate:.2g}" if rate else ""),
            {"loss_median": last, "first_loss": first, "limit": self.limit, "learning_rate": rate},
        )

    def _set_limit(self, run: Run) -> None:
        first, self.settled = run.series["loss"].head[:10], run.loss.count >= 10
        if self.easing != 1.0:  # the start is not taught by the blow-up itself
            return
        self.start = max(first[0], median(first)) if self.settled else first[0]
        factor = 1.0 if self.settled else 2.0 if run.logging_interval < self.single else 1.4
        self.limit = max(factor * self.relative * self.start, self.start + factor * factor * self.absolute)
        if self.settled:
            self.limit = max(self.limit, self.start + self.sigmas * run.loss.sigma)
            # Of the first three, not of ten: a run that is ruined by its fourth step must not pass for a high start.
            start = max(first[0], median(first[:3]))
            self.lasting_limit = max(self.relative * start, start + self.absolute)
        self.needed = 9 if length_grouped(run) else 3

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """A much lower learning rate from the start; warm-up; clipping."""
        rate = run.peak_learning_rate
        factor = 10.0 if rate and rate > 1e-3 else 3.0
        advice = [
            lower_rate(
                run, factor, "the loss left its start upwards: the updates are too large; start again from the base "
                "model, not from a checkpoint after the rise", apply="restart", cost="the steps so far",
            ),
            longer_warmup(run, "the first updates of Adam are the wildest: let the rate rise over 5 % of the run"),
            bfloat16(run, apply="restart"),
            clip_gradients(run, "a tighter clip bounds what one batch can do", apply="restart"),
        ]  # fmt: skip
        return [item for item in advice if item is not None]
