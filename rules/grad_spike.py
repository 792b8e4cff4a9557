"""The rule grad/spike."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import clip_gradients
from lorawatch.rule import Rule, param, state
from lorawatch.run import REINFORCEMENT, Kind, Run

LOG_4 = math.log(4.0)


@dataclass(slots=True)
class GradSpike(Rule):
    """One logged gradient norm stands far above the recent ones.

    ## Why it matters
    A batch with unusual text, or a step into a steep place, gives one large gradient. Clipping takes most of its
    force, and a single one does no harm. Spikes that the loss follows, or that come again and again, come before
    divergence.

    ## How it decides
    Two ways; reinforcement runs are not judged.

    - After 40 logs: the norm is more than 4 times its running level, and the distance on the log scale is more than
      6 sigma. Level: EWMA (1/20) of the log norm; sigma: moving-range estimate of its noise.
    - After 5 logs: the norm is more than 100 times the median of all norms so far (of the last 256). No estimate of
      the noise is needed for that.

    It is information. It becomes a warning when the loss jumps too (6 sigma, and 30 % or 0.2 above its level) within
    20 steps, unless at the last point of an epoch, whose batch is short.

    ## What to change
    After a single spike: nothing. Where the loss follows, or spikes come again: clip tighter and look at the batch.

    ## Known false alarms
    The first batch after a resume, and the last, short batch of an epoch. Both are single points.

    ## Sources
    Measured on public runs, by the first way: 1 in 1,975 points over 4 supervised runs, and 12 in 2,000 on one
    healthy run with heavy tails, which is why it is information only. By the second, none of the healthy ones fires
    (the largest norm is 17 times the median of the 20 before it), and one failure does: 11,140 against 9 (unsloth
    issue 5207). 100 was chosen on these runs, which therefore cannot confirm it. OLMo 2: gradient spikes precede loss
    spikes.
    """

    id: ClassVar[str] = "grad/spike"
    title: ClassVar[str] = "Gradient spike"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[tuple[str, ...]] = ("grad_norm",)
    kinds = frozenset(Kind) - REINFORCEMENT
    min_points: ClassVar[int] = 5

    release: int = param(2, unit="logs", help="Calm logs in a row before it resolves.")
    sigmas: float = param(6.0, unit="sigma", help="Distance above the running level, on the log scale.")
    warmup: int = param(40, unit="logs", help="Logs before the running level is trusted.")
    times: float = param(100.0, unit="ratio", help="Times the median so far that need no estimate of the noise.")
    follow: int = param(20, unit="steps", help="Steps within which a jump of the loss makes it a warning.")
    count: int = state(int)
    level: float = state(float)
    sigma: float = state(float)
    previous: float = state(float)
    spike: Breach | None = state(lambda: None)
    spike_step: int = state(int)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the norm with its running level, then let it teach the level."""
        norm = row.values["grad_norm"]
        if not 0.0 < norm < math.inf:
            return self._after(run) if self.spike is not None else None
        value = math.log(norm)
        self.count = count = self.count + 1
        if count == 1:
            self.level = self.previous = value
            return None
        excess = value - self.level
        found: Breach | None = None
        if excess > LOG_4:
            found = self._judge_spike(norm, excess, run)
        move = 0.8862 * abs(value - self.previous)
        self.previous = value
        limit = 4.0 * self.sigma
        if count > 20:  # an outlier must not teach the level, a lasting shift must
            if move > limit:
                move = limit
            if excess > limit:
                excess = limit
            elif excess < -limit:
                excess = -limit
            self.sigma += 0.05 * (move - self.sigma)
            if self.sigma < 0.01:
                self.sigma = 0.01
            self.level += 0.05 * excess
        else:
            self.sigma += (move - self.sigma) / (count - 1)
            self.level += excess / count
        if found is None and self.spike is not None:
            return self._after(run)
        return found

    def _judge_spike(self, norm: float, excess: float, run: Run) -> Breach | None:
        usual = math.exp(self.level)
        if not (self.count > self.warmup and excess > self.sigmas * self.sigma):
            if self.count <= 5:
                return None
            earlier = run.series["grad_norm"].window(256)[:-1]
            usual = median(earlier) if earlier else norm
            if not norm > self.times * usual > 0.0:
                return None
        self.spike_step = run.step
        self.spike = Breach(
            f"gradient norm {norm:.4g} at step {run.step}, {norm / usual:.0f} times its usual {usual:.3g}",
            {"grad_norm": norm, "usual": usual, "spike_step": run.step, "followed_by_loss": False},
        )
        return self._after(run)

    def _after(self, run: Run) -> Breach | None:
        """The spike, for as long as the loss may follow it."""
        spike, loss = self.spike, run.loss
        if spike is None:
            return None
        if run.step - self.spike_step > max(self.follow, run.logging_interval):
            self.spike = None
            return None
        jumped = loss.count > 20 and loss.z > 6.0 and loss.excess > max(0.3 * (loss.previous - loss.excess), 0.2)
        if jumped and not run.ends_epoch:
            self.spike = Breach(
                f"{spike.summary}, and the loss jumped to {loss.previous:.3g} at step {run.step}",
                spike.evidence | {"followed_by_loss": True, "loss": loss.previous},
                Severity.WARNING,
            )
        return self.spike

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Nothing for a single spike; a tighter clip where the loss follows."""
        step, norm, clip = breach.evidence["spike_step"], breach.evidence["grad_norm"], run.number("max_grad_norm")
        if not breach.evidence["followed_by_loss"]:
            scaled = f"; max_grad_norm={clip:g} scaled this step down {norm / clip:.0f} times" if clip else ""
            return [
                Adjustment(
                    "", proposed="no action for a single spike; if more come, look at the batches behind them",
                    apply="check", confidence="high",
                    why=f"a single spike that the loss does not follow does no harm{scaled}",
                )
            ]  # fmt: skip
        advice = [
            Adjustment(
                "", proposed=f"look at the batch of step {step}: very short or empty answers, broken text, wrong "
                "template", apply="check", confidence="medium",
                why="one batch gave the gradient and the jump of the loss",
            )
        ]  # fmt: skip
        tighter = clip_gradients(run, "limits what one batch can do; the other batches keep their direction")
        if tighter is not None:
            advice.append(tighter)
        return advice
