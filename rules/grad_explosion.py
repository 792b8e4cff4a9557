"""The rule grad/explosion."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import bfloat16, clip_gradients, lower_rate
from lorawatch.rule import Rule, param, state
from lorawatch.run import REINFORCEMENT, Kind, Run


@dataclass(slots=True)
class GradExplosion(Rule):
    """The gradient norm has risen far above its level and stays there.

    ## Why it matters
    A lasting rise by an order of magnitude means that the weights have moved into a steep place. Clipping keeps the
    step's length, not its direction: the next thing in the log is usually the loss.

    ## How it decides
    After 20 logs, either of two; reinforcement runs are not judged.

    - The median of the last 5 norms is more than 10 times the level before them (EWMA, 1/50, of the log norm) and
      more than 1.
    - The norm is above 1,000 and above 50 times `max_grad_norm` (1 where that is not known) for 3 logs in a row.

    It is a warning, for it may pass. It is critical when it has lasted 20 logs, or when the loss goes with it: its
    level stands above where it began, or half above its best.

    ## What to change
    A third of the learning rate, bf16 in place of fp16, and a tighter clip, from the checkpoint before the rise. Delete
    `scheduler.pt` from it: the Trainer otherwise goes on with the old rate.

    ## Known false alarms
    A run that goes on with other data, or whose frozen layers are released on the way.

    ## Sources
    Measured: a public run at lr 2e-3 reached a norm of 2.2e7 just before its loss went from 0.33 to 19.3. None of
    the other supervised public runs fires. The limits 10, 1,000 and 50 are choices without another authority.
    """

    id: ClassVar[str] = "grad/explosion"
    title: ClassVar[str] = "Gradients explode"
    severity: ClassVar[Severity] = Severity.CRITICAL
    needs: ClassVar[tuple[str, ...]] = ("grad_norm",)
    kinds = frozenset(Kind) - REINFORCEMENT
    min_points: ClassVar[int] = 20
    suppresses: ClassVar[tuple[str, ...]] = (
        "grad/spike", "grad/always-clipped", "loss/spike", "loss/noisy", "loss/oscillation", "loss/plateau",
        "eval/overfit", "eval/gap", "lora/growth", "lora/update-size", "gen/*", "base/*",
    )  # fmt: skip

    release: int = param(5, unit="logs", help="Calm logs in a row before it resolves.")
    times: float = param(10.0, unit="ratio", help="Median of the last 5 norms over the level before them.")
    floor: float = param(1.0, unit="norm", help="Norm below which nothing explodes.")
    huge: float = param(1000.0, unit="norm", help="Norm that is too large whatever the level was.")
    clips: float = param(50.0, unit="ratio", help="Times max_grad_norm that such a norm must exceed as well.")
    patience: int = param(20, unit="logs", help="Logs for which it lasts before it is critical.")
    count: int = state(int)
    level: float = state(float)
    last: deque[float] = state(lambda: deque(maxlen=5))
    watching: int = state(int)
    huge_streak: int = state(int)
    lasted: int = state(int)
    since: int = state(int)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the last norms with the level before them."""
        norm = row.values["grad_norm"]
        if not 0.0 < norm < math.inf:
            return None
        value = math.log(norm)
        last = self.last
        if len(last) == 5:
            self.count = count = self.count + 1
            move = last[0] - self.level
            if move > 1.0 and count > 20:  # a rise teaches slowly, so that it is not taken for the new normal
                move = 1.0
            self.level += move / min(count, 50)
        last.append(value)
        if self.count < 15:
            return None
        if norm > self.huge and norm > self.clips * (run.number("max_grad_norm") or 1.0):
            self.huge_streak += 1
        else:
            self.huge_streak = 0
        excess = value - self.level
        if excess > 0.5 and excess > math.log(self.times * self.easing):
            self.watching = 5
        elif self.watching:
            self.watching -= 1
        if not self.watching and self.huge_streak < 3:
            self.lasted = 0
            return None
        return self._judge_level(norm, run)

    def _judge_level(self, norm: float, run: Run) -> Breach | None:
        middle = sorted(self.last)[2]
        risen = middle - self.level > math.log(self.times * self.easing) and middle > math.log(self.floor)
        if not risen and self.huge_streak < 3:
            self.lasted = 0
            return None
        if not self.lasted:
            self.since = run.step
        self.lasted += 1
        loss, usual = run.loss, math.exp(self.level)
        begins = loss.initial if loss.count >= 5 else math.inf
        follows = loss.count >= 20 and (loss.fast > begins or loss.fast > 1.5 * loss.best + 0.05)
        sure = self.lasted >= self.patience or follows
        lasting = f" for {self.lasted} logs" if self.lasted > 1 else ""
        return Breach(
            f"gradient norm {math.exp(middle):.3g} (median of the last 5), {math.exp(middle) / usual:.0f} times its "
            f"level of {usual:.3g} before{lasting}" + (f"; the loss goes with it ({loss.fast:.3g})" if follows else ""),
            {"grad_norm": norm, "median_of_5": math.exp(middle), "level_before": usual, "since_step": self.since,
             "logs": self.lasted, "loss_level": loss.fast},
            None if sure else Severity.WARNING,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """A lower rate from the checkpoint before; a tighter clip; the batch."""
        since = breach.evidence["since_step"]
        advice = [
            lower_rate(
                run, 3, f"the gradients grow since step {since}; resume from a checkpoint before it with a lower rate",
                confidence="medium", cost="the steps since that checkpoint",
            )
        ]  # fmt: skip
        wider = bfloat16(run)
        if wider is not None:
            advice.append(wider)
        clip = clip_gradients(
            run, "limits what each step can do, not its direction: beside a lower rate, not in place of it"
        )
        if clip is not None:
            advice.append(clip)
        advice.append(
            Adjustment(
                "", proposed=f"look at the batches from step {since} on, and at what changed there: data, a resume, "
                "the end of the warm-up", apply="check", confidence="medium",
                why="a rise that begins at one step often has one cause at that step",
            )
        )  # fmt: skip
        return advice
