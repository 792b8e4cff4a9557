"""The rule loss/plateau."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import larger_rank, look, raise_rate
from lorawatch.rule import Rule, param, state
from lorawatch.run import RECENT, SUPERVISED, Run
from lorawatch.stats import is_steep, linear_fit, mann_kendall_z, power_about_line, theil_sen


@dataclass(slots=True)
class LossPlateau(Rule):
    """The training loss has stopped falling well before the end of the run.

    ## Why it matters
    The rest of the run may be wasted, or the model may have learnt what this set-up can. Loss falls with the
    logarithm of the steps, so that a flat stretch is expected late: this is a remark, not an alarm.

    ## How it decides
    Over the last 64 logged points, or a tenth of the run if that is longer (256 points at most, averaged down to 64),
    the Theil–Sen slope amounts to a change of less than 0.5 %, and no trend is significant (Mann–Kendall, |z| < 1.96).
    The noise must be small enough to tell (standard error of the change below 2 %). The learning rate is above 30 %
    of its peak, more than 30 % of the run is left, and evaluation does not improve. Looked at each time the number of
    points has grown by a quarter.

    ## What to change
    If evaluation is flat too, stop here: it saves the rest of the run. Otherwise more or better data, a higher
    learning rate if it is low, or twice the rank with alpha.

    ## Known false alarms
    Nearly every long run. That is why it is never more than info.

    ## Sources
    Theil (1950), Sen (1968), Mann (1945), Kendall (1975). That loss is about linear in log steps: Thinking Machines,
    *LoRA Without Regret*. The limits are heuristics; the limit on noise was added because a slope that cannot be told
    from ±2 % says nothing.
    """

    id: ClassVar[str] = "loss/plateau"
    title: ClassVar[str] = "Training loss has levelled out"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    needs_facts: ClassVar[tuple[str, ...]] = ("max_steps",)
    kinds = SUPERVISED
    min_points: ClassVar[int] = 64

    change: float = param(0.005, unit="ratio", help="Change over the window below which the loss is flat.")
    error: float = param(0.02, unit="ratio", help="Largest standard error of that change.")
    share: float = param(0.1, unit="share of the run", help="The window, if that is more than 64 points.")
    decayed: float = param(0.3, unit="share of the peak", help="Below this learning rate it is not judged.")
    left: float = param(0.3, unit="share of the run", help="Least part of the run that is still to come.")
    floor: float = param(0.2, unit="nats", help="A level below this is not judged.")
    due: int = state(lambda: 64)
    verdict: Breach | None = state(lambda: None)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Look when a quarter more points have come; between that the last verdict stands."""
        count = run.loss.count
        if count >= self.due:
            self.due = count + max(count // 4, 16)
            self.verdict = self._look(count, run)
        return self.verdict

    def _look(self, count: int, run: Run) -> Breach | None:
        progress, total = run.progress, run.max_steps
        if progress is None or total is None or progress > 1.0 - self.left or run.loss.slow < self.floor:
            return None
        rate, peak = run.last("learning_rate"), run.peak_learning_rate
        if run.warming_up or (rate is not None and peak and rate < self.decayed * peak):
            return None
        group = min(max(math.ceil(self.share * total / max(run.logging_interval, 1) / 64), 1), RECENT // 64)
        points = run.series["loss"].window(64 * group)
        if len(points) < 64 * group:
            return None
        values = points
        if group > 1:
            values = [sum(points[at : at + group]) / group for at in range(0, len(points), group)]
        level = sum(values) / 64
        _, slope = linear_fit(values)
        if abs(slope * 64) > 3.0 * self.change * level:  # far from flat: spare the costly tests
            return None
        error = math.sqrt(12 * power_about_line(values) / 62 / 64) / level
        if error > self.error or _improves(run) or abs(mann_kendall_z(values, 1.96)) >= 1.96:
            return None
        if is_steep(values, self.change / self.easing * level / 64):
            return None
        if self.verdict is not None:  # told already: nobody asks for the slope again, which is dear to find
            return self.verdict
        change = theil_sen(values) * 64 / level
        if abs(change) >= self.change / self.easing:
            return None
        steps = 64 * group * run.logging_interval
        return Breach(
            f"loss has stood at {level:.4g} for {steps} steps (change {100 * change:+.2f} %), with "
            f"{100 * (1 - progress):.0f} % of the run to come",
            {"loss_level": level, "relative_change": change, "standard_error": error, "window_steps": steps,
             "progress": progress},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Stop if evaluation is flat too; else data, rate, rank."""
        left = 1.0 - breach.evidence["progress"]
        has_eval = run.points("eval_loss") > 0
        advice = [
            look(
                f"is evaluation flat too? Then stopping now saves {100 * left:.0f} % of the run"
                + ("" if has_eval else " (this run evaluates nothing: set eval_strategy)"),
                "a flat loss late in a run is normal; only evaluation tells whether more steps help",
            ),
            raise_rate(run, "if the rate is low, a higher one may leave the plateau"),
            *larger_rank(run, "if more data and rate do not help, more capacity may"),
        ]
        return [item for item in advice if item is not None]


def _improves(run: Run) -> bool:
    """Whether the last evaluation is the best of the last four by half a percent."""
    series = run.series.get("eval_loss")
    if series is None or series.count < 2:
        return False
    last = series.window(4)
    return last[-1] < 0.995 * min(last[:-1])
