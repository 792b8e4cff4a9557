"""The rule loss/at-uniform."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import clip_gradients, lower_rate
from lorawatch.rule import Rule, param, state
from lorawatch.run import LANGUAGE_MODELLING, Run


@dataclass(slots=True)
class LossAtUniform(Rule):
    """The loss has risen to that of guessing at random: the model is destroyed.

    ## Why it matters
    ln V is the loss of a model that gives each of the V tokens the same chance. A model that started below it and
    stands there now has lost everything it knew. It does not recover, and its checkpoints are worth nothing.

    ## How it decides
    The median of the last 5 logged losses (3 at the start) is at 0.9 ln V or above, and the run started below 0.7 ln V.
    Needs the vocabulary size (`vocab_size`, from the model's config.json).

    ## What to change
    Stop. Start again from the base model, never from a checkpoint of this run after the rise, with a tenth of the
    learning rate.

    ## Known false alarms
    Three or more bad batches in a row look like it while they last. Training from scratch starts at ln V and is not
    judged.

    ## Sources
    Measured: a public run with a learning rate of 5.0 went 1.64 → 11.81 → 10.3735, which is ln 32000 exactly. Two
    batches of binary data in a row, logged each step, reach it too, and the run goes on as before: the median is of 5
    points, not of 3 (reference trainer, bad-batches). ln V is the loss of the uniform distribution: 10.37 (V = 32,000),
    11.76 (128,256), 11.93 (151,936), 12.48 (262,144).
    """

    id: ClassVar[str] = "loss/at-uniform"
    title: ClassVar[str] = "Model guesses at random"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    needs_facts: ClassVar[tuple[str, ...]] = ("vocab_size",)
    kinds = LANGUAGE_MODELLING
    min_points: ClassVar[int] = 3
    suppresses: ClassVar[tuple[str, ...]] = ("loss/*", "eval/*", "grad/*", "lora/*", "gen/*", "base/*")

    release: int = param(16, unit="points", help="Points in a row below the eased limit before it resolves.")
    uniform: float = param(0.9, unit="share of ln V", help="The last losses are at this share of ln V or above.")
    points: int = param(5, unit="points", help="Last points whose median is compared.")
    start: float = param(0.7, unit="share of ln V", help="A run that starts above this share is not judged.")
    limit: float = state(float)
    exempt: float | None = state(lambda: None)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the last points with ln V."""
        loss = row.values["loss"]
        if loss - loss != 0.0 or (loss < self.limit and self.easing == 1.0) or run.loss.count < 3:
            return None
        vocabulary = run.number("vocab_size")
        if vocabulary is None or vocabulary < 2 or vocabulary == self.exempt:
            return None
        most = math.log(vocabulary)
        self.limit = self.uniform * most
        first = run.series["loss"].head[0]
        if first >= self.start * most:
            self.exempt = vocabulary  # the first loss stays what it was: no later row is judged
            return None
        last = median(run.series["loss"].window(self.points))
        if last < self.limit * self.easing:
            return None
        return Breach(
            f"loss is {last:.4g}: the model, which started at {first:.4g}, now does no better than guessing among "
            f"{vocabulary:.0f} tokens (ln V = {most:.4g})",
            {"loss_median": last, "ln_vocab": most, "limit": self.limit, "first_loss": first},
        )

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """From the base model again, with a tenth of the rate."""
        advice = [
            lower_rate(
                run, 10.0, "the model is destroyed: restart from the base model, not from a checkpoint of this run",
                apply="restart", cost="the whole run so far",
            ),
            clip_gradients(run, "bounds what one batch can do", apply="restart"),
        ]  # fmt: skip
        return [item for item in advice if item is not None]
