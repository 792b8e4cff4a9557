"""The rule pref/reversed."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import look
from lorawatch.reward_signs import average, evaluated_rows
from lorawatch.rule import Rule, param
from lorawatch.run import Kind, Run


@dataclass(slots=True)
class PrefReversed(Rule):
    """Training and evaluation prefer the opposite: in one of the two sets chosen and rejected are exchanged.

    ## Why it matters
    A model that learns exchanged pairs learns to give the worse reply, and its loss, accuracy and margin in training
    look perfect. Only pairs that were built another way can contradict them.

    ## How it decides
    At each evaluation from step 20 on. `eval_rewards/accuracies` is below one half by 3 standard errors (of a share of
    as many rows as its run time and speed tell; 50 where they do not) and below 0.4, its margin is below 0, and
    `rewards/accuracies` in training is above 0.6 (mean of the last 20 logs, 5 at least). Overfitting cannot do that: a
    model that learnt nothing of use is right half of the time.

    Where both sets are exchanged nothing contradicts, and no logged number tells: DPO learns whichever reply is called
    chosen. That chosen replies are less likely than rejected ones at the start is no sign of it: `logps/*` are sums,
    and tell which replies are longer.

    ## What to change
    Compare the order of the columns in both sets, at the place where they are built, and start again.

    ## Known false alarms
    An evaluation set of another kind, in which a habit learnt in training (longer replies win) is wrong more often than
    right.

    ## Sources
    A binomial test, 3 standard errors. Reference trainer, seed 0, at step 20, with all and three in four of the
    training pairs exchanged: 0.82 and 0.62 in training, 0.0 in evaluation. With labels drawn by lot the evaluation
    ends at 0.63, with right pairs at 1.0.
    """

    id: ClassVar[str] = "pref/reversed"
    title: ClassVar[str] = "Pairs are reversed"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[str, ...]] = ("eval_rewards/accuracies", "eval_rewards/margins")
    kinds = frozenset({Kind.DPO, Kind.ORPO})
    suppresses: ClassVar[tuple[str, ...]] = (
        "pref/margin-explosion", "pref/likelihood-displacement", "eval/overfit", "eval/gap",
    )  # fmt: skip

    release: int = param(2, unit="evaluations", help="Calm evaluations in a row before it resolves.")
    steps: int = param(20, unit="steps", help="Steps before it is judged.")
    below: float = param(0.4, unit="accuracy", help="Accuracy of the evaluation that it must be below.")
    errors: float = param(3.0, unit="standard errors", help="How far below one half it must be.")
    trained: float = param(0.6, unit="accuracy", help="Accuracy in training that it must be above.")

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the accuracy of the evaluation with that in training."""
        values = row.values
        accuracy, margin = values["eval_rewards/accuracies"], values["eval_rewards/margins"]
        rows = evaluated_rows(values) or 50
        limit = min(self.below, 0.5 - self.errors * 0.5 / math.sqrt(rows))
        if run.step < self.steps or not accuracy < limit or not margin < 0.0:
            return None
        if run.points("rewards/accuracies") < 5:
            return None
        trained = average(run, "rewards/accuracies", 20)
        if not trained > self.trained * self.easing:
            return None
        return Breach(
            f"the evaluation prefers the rejected reply in {100 * (1 - accuracy):.0f} % of {rows} pairs, training the "
            f"chosen one in {100 * trained:.0f} %: chosen and rejected are exchanged in one of the two sets",
            {"eval_accuracy": accuracy, "eval_margin": margin, "eval_rows": rows, "train_accuracy": trained},
        )

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Look at the order of the columns."""
        return [
            look(
                "compare the order of chosen and rejected in the training set and in the evaluation set, where each is "
                "built: read five pairs of both as the trainer gets them; then start again from the base model",
                "the two sets contradict each other; which of them is wrong only the text tells",
                confidence="high",
            )
        ]

    def missing(self, run: Run) -> tuple[str, ...]:
        """The accuracy in training, which it compares with."""
        return () if run.points("rewards/accuracies") else ("rewards/accuracies of training",)
