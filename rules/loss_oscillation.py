"""The rule loss/oscillation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import clip_gradients, larger_batch, longer_warmup, look, lower_rate
from lorawatch.rule import Rule, param, state
from lorawatch.run import SUPERVISED, Run


@dataclass(slots=True)
class LossOscillation(Rule):
    """The training loss swings up and down from point to point more than noise does: the steps overshoot.

    ## Why it matters
    Each update goes too far and the next one comes back. The run learns more slowly than it could, and a little more
    rate, or an unlucky batch, makes it diverge. This is instability; noise that comes from small batches looks as
    rough to the eye and is another finding, loss/noisy, with another cure.

    ## How it decides
    Over the last 64 logged points, after a straight line is taken away, the von Neumann ratio (mean squared step over
    the variance) is above 2.8, in two windows in a row that lie 32 points apart; and the noise from point to point is
    more than 3 % of the level. Independent noise gives 2.0, swinging at each point gives 4.0. Once the learning rate
    has fallen below 20 % of its peak it is not judged. Where the loss repeats itself with a period of 3 to 16 points
    the data's order makes it swing: that is loss/periodic.

    ## What to change
    Look first whether two data sets take turns. Half the learning rate. Then a larger effective batch through gradient
    accumulation, up to 32 sequences a step: beyond that LoRA loses quality. Then warm-up and a tighter clip.

    ## Known false alarms
    Two data sets that alternate batch by batch. What logging averages away it cannot see: with a logging interval of
    10 steps, a swing from step to step is gone from the log.

    ## Sources
    Measured: the 99.9th percentile of white noise is 2.72; none of 13 public runs had a window above 2.8. It finds
    74 % of synthetic runs with a correlation of -0.5 between neighbours, 99 % at -0.7. No public run oscillates in
    this sense, so its power on real runs is not known. von Neumann (1941). The larger batch's limit: TRL, *LoRA
    Without Regret*. The user's guide advises the same four remedies, in this order.
    """

    id: ClassVar[str] = "loss/oscillation"
    title: ClassVar[str] = "Training loss oscillates"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    kinds = SUPERVISED
    min_points: ClassVar[int] = 96
    suppresses: ClassVar[tuple[str, ...]] = ("loss/noisy", "loss/not-learning", "loss/slow-start", "loss/plateau")

    swing: float = param(2.8, unit="von Neumann ratio", help="Both windows swing more than this.")
    noise: float = param(0.03, unit="share of the level", help="Least noise from point to point.")
    decayed: float = param(0.2, unit="share of the peak", help="Below this learning rate it is not judged.")
    seen: int = state(int)
    verdict: Breach | None = state(lambda: None)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Look at each new pair of windows; between them the last verdict stands."""
        if run.rhythm.windows != self.seen:
            self.seen = run.rhythm.windows
            self.verdict = self._look(run)
        return self.verdict

    def _look(self, run: Run) -> Breach | None:
        rhythm, level = run.rhythm, run.loss
        limit = 2.0 + (self.swing - 2.0) * self.easing
        swing = min(rhythm.swing, rhythm.swing_before)
        if self.seen < 2 or not swing > limit or rhythm.periodic:
            return None
        noise = level.sigma / max(level.slow, 1e-9)
        if noise <= self.noise * self.easing:
            return None
        rate, peak = run.last("learning_rate"), run.peak_learning_rate
        if rate is not None and peak and rate < self.decayed * peak:
            return None
        return Breach(
            f"loss goes up and down by {100 * noise:.0f} % of its level from one logged point to the next, more "
            f"regularly than noise does (von Neumann ratio {swing:.2f} over 128 points; noise gives 2)",
            {"von_neumann_ratio": swing, "limit": limit, "noise_share": noise, "loss_level": level.slow,
             "learning_rate": rate},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Half the rate; then batch, warm-up, clip."""
        advice = [
            look(
                "do two data sets take turns batch by batch? Then the swing is theirs, and nothing is wrong",
                "alternating data looks the same in the log, and is the one other cause",
            ),
            lower_rate(
                run, 2.0, "the updates overshoot: noise alone does not swing like this", confidence="medium",
                cost="some speed at first",
            ),
            larger_batch(run, "averages the gradient over more sequences", confidence="medium"),
            longer_warmup(run, "lets Adam's averages settle before the full rate", confidence="low"),
            clip_gradients(run, "bounds the largest updates", confidence="low"),
        ]  # fmt: skip
        return [item for item in advice if item is not None]
