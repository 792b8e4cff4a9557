"""The rule loss/slow-start."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from statistics import median
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import is_adapter, larger_rank, longer_warmup, look, raise_rate
from lorawatch.rule import Rule, param, state
from lorawatch.run import SUPERVISED, Kind, Run
from lorawatch.stats import welch_t


@dataclass(slots=True)
class LossSlowStart(Rule):
    """The training loss falls only slowly at the start of the run.

    ## Why it matters
    Most of what a LoRA run learns comes early: the loss usually falls by a quarter within 100 steps. One that barely
    moves will often finish undertrained. A common reason is a learning rate that was meant for full fine-tuning:
    `SFTConfig` defaults to 2e-5, LoRA takes about ten times that.

    ## How it decides
    100 steps, or 5 % of the run, after warm-up, with at least 20 points (10 where each is the mean of 25 steps or
    more), the mean of the last 10 losses lies less than 5 % below the start: the median of the first five, or the
    first one if that is higher. For an adapter with a learning rate below 5e-5 the first one counts less 2 standard
    deviations of the noise (from the median difference of neighbours among the first 20): it may be one step's loss,
    high by chance. Where the run's learning rate is known to be 5e-5 or more, a fall of 2 % is enough.

    Info by itself. A warning where an adapter trains with a learning rate below 5e-5, or where the fall is below 2 %
    and yet significant (Welch's t of 3): it learns, too slowly. It resolves when the loss has fallen by 7 %.

    ## What to change
    The guide's order: learning rate up (for LoRA to 2e-4, in one step from below 5e-5, else three times it); check
    data, labels and adapter; then the rank up, with alpha. Never rate and alpha together: they act alike.

    ## Known false alarms
    Full fine-tuning at a low rate (a healthy run at 1e-5 had fallen by 3 % at step 100); a strong model on data close
    to what it knows; prompt tuning and other methods with few parameters.

    ## Sources
    Measured on 16 healthy SFT runs: fall at step 100 of 3 % to 84 %, median 27 %. The curve alone cannot tell that
    the rate is too low: in Tinker's sweep 1e-4 and 4e-4 end within 2 % of each other. So a low rate is judged by the
    prior: TRL's PEFT page recommends 2e-4 for SFT with LoRA. The band's edge of 5e-5 is a heuristic.
    The start less noise: by it none of 68 healthy public logs (high confidence) falls by less than 5 %, as by the
    start without it; by the median of the first five alone 5 do, by that of the first ten 50. Of 7 runs of the
    reference trainer at 2e-6 to 2e-5 it finds all, before none; 2 sigma was chosen with them in view. Its price: of
    960 synthetic healthy runs (`benchmarks/false_alarms.py`, seeds 0 to 59) that state an adapter and 2e-5, 65 are told
    to be slow, before 43; for this all runs of another rate keep their start.
    """

    id: ClassVar[str] = "loss/slow-start"
    title: ClassVar[str] = "Training loss falls slowly at the start"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    kinds = SUPERVISED
    min_points: ClassVar[int] = 10

    drop: float = param(0.05, unit="ratio", help="Fall below which the start is slow.")
    tiny: float = param(0.02, unit="ratio", help="Fall below which it is slow whatever the learning rate.")
    steps: int = param(100, unit="steps", help="Steps after warm-up at which it is judged.")
    share: float = param(0.05, unit="share of the run", help="Or this much of the run, if that is later.")
    points: int = param(20, unit="points", help="Points before it is judged.")
    wide: int = param(25, unit="steps", help="From this logging interval on, half as many points are enough.")
    low_rate: float = param(5e-5, unit="learning rate", help="A LoRA run below this has an unusually low rate.")
    noise: float = param(2.0, unit="sigma", help="How much higher the first point may lie by noise, at a low rate.")
    floor: float = param(0.3, unit="nats", help="A run that starts below this is not judged.")
    due: int = state(lambda: 10)
    verdict: Breach | None = state(lambda: None)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Judge once when it is due; while the finding is open, every 10 points again."""
        count = run.loss.count
        if count >= self.due:
            self._look(count, run)
        return self.verdict

    def _look(self, count: int, run: Run) -> None:
        needed = self.points // 2 if max(run.logging_interval, 1) >= self.wide else self.points
        wanted = run.warmup_steps + max(self.steps, self.share * (run.max_steps or 0))
        if count < needed or run.step < wanted or run.warming_up:
            self.due = count + 1 if count >= needed or needed - count < 10 else needed
            return
        self.due = count + 10
        series = run.series["loss"]
        known = run.number("learning_rate")
        low = known is not None and known < self.low_rate and is_adapter(run)
        first = series.head[0]  # a run may fall within its first points, which their median hides
        if low:
            first -= self.noise * _sigma(series.head[:20])
        start = max(run.loss.initial, first)
        size = min(10, count // 2)
        before, after = series.head[:size], series.window(size)
        level = sum(after) / size
        fall = 1.0 - level / start if start > 0 else 1.0
        limit = (self.tiny if known is not None and known >= self.low_rate else self.drop) / self.easing
        if not -0.1 < fall < limit or start < self.floor or run.resumed_step is not None:
            self.verdict = None
            self.due = 1 << 62
            return
        sure = low or (fall < self.tiny and welch_t(before, after) >= 3.0)
        severity = Severity.WARNING if sure else None
        if self.verdict is not None and self.verdict.severity is severity:
            return  # told already
        rate = run.peak_learning_rate
        why = f", at a learning rate of {rate:.2g}, low for LoRA" if low and rate else ""
        self.verdict = Breach(
            f"loss went from {start:.4g} to {level:.4g} in {run.step} steps ({-100 * fall:+.1f} %){why}"
            + ("" if run.kind is Kind.CLASSIFICATION else "; the median of 16 healthy runs is -27 % at step 100"),
            {"relative_fall": fall, "limit": limit, "first_level": start, "level": level, "steps": run.step,
             "learning_rate": rate},
            severity,
        )  # fmt: skip

    def missing(self, run: Run) -> tuple[str, ...]:
        """What a short run lacks."""
        wanted = run.warmup_steps + max(self.steps, self.share * (run.max_steps or 0))
        return (f"{wanted:.0f} steps ({run.step} so far)",) if run.step < wanted else ()

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """The guide's order: rate up; data, labels, adapter; rank up with alpha."""
        low = breach.severity is not None
        warm, total = run.warmup_steps, run.max_steps
        long_warmup = bool(total and warm > 0.2 * total)
        advice = [
            Adjustment(
                "warmup_steps", current=warm, proposed=0.05, direction="down", confidence="medium", apply="restart",
                why="warm-up takes more than a fifth of the run",
            ) if long_warmup else None,
            raise_rate(
                run, "small steps are a common cause of a slow start; 2e-4 is the usual rate of LoRA",
                confidence="medium" if low else "low",
            ),
            look(
                "does the data ask for anything that the model does not do yet, are the labels there and right, and do "
                "all target_modules match layers of this model?",
                "the guide's second step: data, labels, adapter",
            ),
            longer_warmup(run, "bears a higher rate", share=0.03, confidence="low") if not warm else None,
            *larger_rank(run, "more capacity, once rate and data are right"),
        ]  # fmt: skip
        return [item for item in advice if item is not None]


def _sigma(values: list[float]) -> float:
    """Standard deviation of the point-to-point noise: robust, so that a fall or an outlier among them adds little.

    The median absolute difference of two independent Gaussian values is 0.6745 times root 2 standard deviations.
    """
    return median(abs(one - other) for one, other in pairwise(values)) / 0.954
