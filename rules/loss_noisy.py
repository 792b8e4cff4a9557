"""The rule loss/noisy."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import effective_batch, larger_batch
from lorawatch.rule import Rule, param, state
from lorawatch.run import LANGUAGE_MODELLING, Run


@dataclass(slots=True)
class LossNoisy(Rule):
    """The training loss is rough because its batches are small: noise, not instability.

    ## Why it matters
    A rough curve frightens, and people lower the learning rate because of it. Here the points jump independently of
    each other, as a sample of few tokens does. Training is not unstable; what suffers is that trends are hard to see,
    by eye and by rules.

    ## How it decides
    Over the last 64 logged points the noise of one step is more than 25 % of the level, and the von Neumann ratio is
    between 1.6 and 2.6, which is what independent noise gives. The noise of one step is that of a logged point times
    the square root of the logging interval, so that the interval does not change the verdict. A level below 0.3 is
    left alone, and so is a loss with a period.

    ## What to change
    Often nothing. A larger effective batch through accumulation, at most 32 sequences a step. `logging_steps` up
    smooths the log only. Not the learning rate: this is no sign that it is too high.

    ## Known false alarms
    Data that mixes easy and hard tasks is rough with any batch.

    ## Sources
    Measured on 24 public runs: relative noise spans 0.2 % to 60 %, so that no fixed limit means trouble; 25 % is a
    heuristic, hence info. Noise falls with the square root of the tokens a step (textbook, not measured here). TRL's
    *LoRA Without Regret* page: LoRA tolerates large batches less than full fine-tuning does.
    """

    id: ClassVar[str] = "loss/noisy"
    title: ClassVar[str] = "Training loss is noisy"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    kinds = LANGUAGE_MODELLING
    min_points: ClassVar[int] = 64

    noise: float = param(0.25, unit="share of the level", help="Noise of one step above which it is told.")
    least_swing: float = param(1.6, unit="von Neumann ratio", help="Below this the loss wanders rather than jumps.")
    most_swing: float = param(2.6, unit="von Neumann ratio", help="Above this it oscillates.")
    floor: float = param(0.3, unit="nats", help="A level below this is not judged.")
    seen: int = state(int)
    verdict: Breach | None = state(lambda: None)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Look at each new window; between them the last verdict stands."""
        if run.rhythm.windows != self.seen:
            self.seen = run.rhythm.windows
            self.verdict = self._look(run)
        return self.verdict

    def _look(self, run: Run) -> Breach | None:
        rhythm, level = run.rhythm, run.loss
        if level.slow < self.floor or rhythm.periodic or not self.least_swing <= rhythm.swing <= self.most_swing:
            return None
        noise = level.sigma * math.sqrt(max(run.logging_interval, 1)) / level.slow
        if noise <= self.noise * self.easing:
            return None
        return Breach(
            f"loss of one step varies by {100 * noise:.0f} % of its level, independently from step to step: batch "
            "noise, not instability",
            {"noise_share": noise, "limit": self.noise, "von_neumann_ratio": rhythm.swing, "loss_level": level.slow,
             "logging_steps": run.logging_interval, "effective_batch": effective_batch(run)},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """A larger batch, within LoRA's limits; a smoother log."""
        batch = larger_batch(
            run, "noise falls with the square root of the batch; LoRA tolerates batches beyond 32 less well",
            confidence="low",
        )  # fmt: skip
        interval = run.logging_interval
        smoother = Adjustment(
            "logging_steps", current=interval, proposed=10, direction="up", confidence="low", apply="restart",
            why="each logged value is the mean of more steps: the curve is easier to read, training is the same",
        )  # fmt: skip
        return [item for item in (batch, smoother if interval < 10 else None) if item is not None]
