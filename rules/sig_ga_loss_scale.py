"""The rule sig/ga-loss-scale."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.parameters import library_version
from lorawatch.records import MetricRow
from lorawatch.rule import Rule, param, state
from lorawatch.run import LANGUAGE_MODELLING, Run


@dataclass(slots=True)
class SigGaLossScale(Rule):
    """The training loss is as many times the evaluation loss as there are gradient accumulation steps.

    ## Why it matters
    Several versions of transformers summed the loss over the micro-batches of an accumulation instead of averaging
    it. The logged loss is then too high by that factor, and, in some of them, so are the gradients: the run trains
    with a multiple of the chosen learning rate, held back only by clipping.

    ## How it decides
    At the first 6 evaluations, with `gradient_accumulation_steps` of 2 or more known: the mean of the last training
    losses (5 at most, none from before the evaluation before) over the evaluation loss is within 20 % of the number of
    accumulation steps. With 2 or 3 steps, where a loss that falls fast looks the same, at three evaluations in a row.

    ## What to change
    Upgrade transformers (and TRL with it). If that cannot be: divide the learning rate by the accumulation steps, and
    read the logged training loss divided by them.

    ## Known false alarms
    Training and evaluation data that differ in difficulty or masking by just that factor; most likely with 2 steps.

    ## Sources
    transformers issues 37197 (gemma 3: a loss of about 1 without accumulation, 8 to 10 with 4 steps), 35438 and
    37766. The tolerance of 20 % is a choice, not a measurement: none of the public runs states its accumulation
    steps beside an evaluation and shows the bug. A healthy run of the reference trainer with 2 steps and a row every
    tenth (2.19, 0.96; evaluations 1.33, 0.71) fired while old losses were taken into the mean. With the bug put into
    that trainer and 2 steps the ratio stays at 1.8 to 2.0, since rows that are trained on are known a little better;
    in healthy runs it falls from 1.7 at most to about 1 within three evaluations.
    """

    id: ClassVar[str] = "sig/ga-loss-scale"
    title: ClassVar[str] = "Loss multiplied by gradient accumulation"
    severity: ClassVar[Severity] = Severity.WARNING
    maturity = "experimental"
    needs: ClassVar[tuple[str, ...]] = ("eval_loss",)
    needs_facts: ClassVar[tuple[str, ...]] = ("gradient_accumulation_steps",)
    kinds = LANGUAGE_MODELLING
    latched: ClassVar[bool] = True
    suppresses: ClassVar[tuple[str, ...]] = ("loss/start", "eval/gap", "grad/always-clipped")

    tolerance: float = param(0.2, unit="ratio", help="How far the ratio may be from the accumulation steps.")
    evals: int = param(6, unit="evaluations", help="Evaluations, from the first, that are judged.")
    in_a_row: int = param(3, unit="evaluations", help="Evaluations in a row, where there are 2 or 3 steps.")
    judged: int = state(int)
    seen: int = state(int)
    matches: int = state(int)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare training and evaluation loss at an early evaluation."""
        if self.judged >= self.evals:
            return None
        value = row.values["eval_loss"]
        steps = run.number("gradient_accumulation_steps") or 1.0
        series = run.series.get("loss")
        if steps < 2 or series is None or not series.count or not value > 0.0:
            return None
        self.judged += 1
        recent = series.window(min(max(series.count - self.seen, 1), 5))
        self.seen = series.count
        ratio = sum(recent) / len(recent) / value
        self.matches = self.matches + 1 if abs(ratio / steps - 1.0) <= self.tolerance else 0
        if self.matches < (1 if steps >= 4 else self.in_a_row):
            return None
        return Breach(
            f"the training loss is {ratio:.2g} times the evaluation loss, and gradient_accumulation_steps is "
            f"{steps:.0f}: the loss is summed over the micro-batches instead of averaged",
            {"ratio": ratio, "gradient_accumulation_steps": steps, "train_loss": ratio * value, "eval_loss": value},
        )

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Upgrade; else a lower rate."""
        steps, rate = breach.evidence["gradient_accumulation_steps"], run.peak_learning_rate
        lower = f"{rate / steps:.2g}" if rate else f"1/{steps:.0f} of it"
        version = run.fact("transformers_version")
        installed = library_version(run, "transformers") if version is not None else ()
        return [
            Adjustment(
                "", proposed="upgrade transformers"
                + (f" (the run uses {version})" if installed else "")
                + ", then compare one step with and without accumulation: the loss must be the same",
                apply="check", confidence="medium",
                why="several versions sum the loss over the micro-batches (transformers issues 37197, 35438, 37766)",
                cost="the loss curve is not comparable with the old one",
            ),
            Adjustment(
                "", proposed=f"if you cannot upgrade, and the gradient norm is too large by the same factor as well: a "
                f"learning rate of {lower}" + (f" instead of {rate:.4g}" if rate else ""), apply="check",
                confidence="low", why="summed gradients act like a rate that is as many times higher",
            ),
        ]  # fmt: skip
