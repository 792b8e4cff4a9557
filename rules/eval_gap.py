"""The rule eval/gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.evaluation import task_at_best
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.rule import Rule, param, state
from lorawatch.run import SUPERVISED, Run


@dataclass(slots=True)
class EvalGap(Rule):
    """The gap between training loss and evaluation loss grows while the evaluation no longer improves.

    ## Why it matters
    A gap by itself is no fault: other masking, packing or dropout set the two losses apart from the first evaluation
    on. A gap that grows while the evaluation stands still means that what is learnt now does not carry over. It often
    comes before the evaluation loss rises (`eval/overfit`).

    ## How it decides
    At each evaluation the training loss is the mean of the losses logged since the evaluation before (the last 32 at
    most). Gap: (evaluation - training) / evaluation. Either of two:

    - From the 4th evaluation: the gap is more than 0.3 above that of the first (or above 0, where that is
      negative: the first interval holds the high losses of the start), and the evaluation has not been
      better than its best by 0.1 % for 3 evaluations.
    - From the 2nd evaluation: since the best one the evaluation has risen by 3 % or more, while the training loss has
      fallen by 20 % or more, and the gap is above 0.3.

    It is information. It becomes a warning when the first has lasted with a growth of more than 0.5 for 5
    evaluations, unless a task metric (accuracy, F1, word error rate) has improved and stands at its best.

    ## What to change
    As for `eval/overfit`, with less hurry: nothing is lost yet. Stop at the end of the epoch, keep the best
    checkpoint, fewer epochs in the next run.

    ## Known false alarms
    Training data with a few sources that are easily learnt by heart, beside an evaluation set without them.

    ## Sources
    A heuristic without outside authority, which is why it warns at most. Of the public runs with two evaluations or
    more none that is healthy with high or medium confidence fires. The second way was made for logs with few
    evaluations (nanoGPT issue 97: training 0.98 to 0.67, evaluation 3.75 to 3.90), which therefore cannot confirm it.
    """

    id: ClassVar[str] = "eval/gap"
    title: ClassVar[str] = "Evaluation falls behind training"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"
    needs: ClassVar[tuple[str, ...]] = ("eval_loss",)
    kinds = SUPERVISED
    min_points: ClassVar[int] = 2
    suppresses: ClassVar[tuple[str, ...]] = ("loss/memorised", "loss/stairs")

    release: int = param(2, unit="evaluations", help="Calm evaluations in a row before it resolves.")
    cooldown: int = param(500, unit="steps", help="A breach this soon after it resolved reopens the same finding.")
    growth: float = param(0.3, unit="ratio", help="Growth of the gap since the first evaluation.")
    warn_growth: float = param(0.5, unit="ratio", help="Growth of the gap that makes a warning when it lasts.")
    stale: int = param(3, unit="evaluations", help="Evaluations in a row without a new best.")
    lasting: int = param(5, unit="evaluations", help="Evaluations in a row without a new best that make a warning.")
    rise: float = param(0.03, unit="ratio", help="Rise of the evaluation that is no noise.")
    fall: float = param(0.20, unit="ratio", help="Fall of the training loss beside it.")
    seen: int = state(int)
    evals: int = state(int)
    first_gap: float = state(float)
    best: float = state(float)
    best_step: int = state(int)
    best_epoch: float | None = state(lambda: None)
    best_train: float = state(float)
    without_best: int = state(int)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the two losses at an evaluation."""
        value, series = row.values["eval_loss"], run.series.get("loss")
        if not 0.0 < value < 1e9 or series is None:
            return None
        new = series.count - self.seen
        if new > 0:
            recent = series.window(min(new, 32))
            train = sum(recent) / len(recent)
        elif self.evals and series.count:
            train = series.recent[-1]
        else:
            return None
        self.seen = series.count
        self.evals += 1
        gap = (value - train) / value
        if self.evals == 1:
            self.first_gap = max(gap, 0.0)  # below 0 it tells of the first training losses, not of the data
        if self.evals == 1 or value < self.best * 0.999:
            self.best, self.best_step, self.best_epoch, self.best_train = value, run.step, row.epoch, train
            self.without_best = 0
            return None
        self.without_best += 1
        grown = gap - self.first_gap
        risen, fallen = value / self.best - 1.0, 1.0 - train / self.best_train if self.best_train > 0 else 0.0
        evidence = {
            "eval_loss": value, "train_loss": train, "gap": gap, "first_gap": self.first_gap, "best": self.best,
            "best_step": self.best_step, "best_epoch": self.best_epoch, "evaluations_without_best": self.without_best,
        }  # fmt: skip
        if self.evals >= 4 and self.without_best >= self.stale and grown > self.growth * self.easing:
            sure = grown > self.warn_growth and self.without_best >= self.lasting and not task_at_best(run)
            return Breach(
                f"eval_loss stands at {value:.4g} (best {self.best:.4g} at step {self.best_step}, "
                f"{self.without_best} evaluations ago) while the training loss is down to {train:.3g}: the gap grew "
                f"from {100 * self.first_gap:.0f} % to {100 * gap:.0f} %",
                evidence,
                Severity.WARNING if sure else None,
            )
        if risen >= self.rise * self.easing and fallen >= self.fall * self.easing and gap > self.growth:
            return Breach(
                f"since step {self.best_step} eval_loss rose from {self.best:.4g} to {value:.4g} "
                f"({100 * risen:+.1f} %) while the training loss fell from {self.best_train:.3g} to {train:.3g}; "
                f"{self.evals} evaluations are few: a sign, not proof",
                evidence,
            )
        return None

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Keep the best checkpoint; fewer epochs; then data and dropout."""
        told = breach.evidence
        epoch, epochs, dropout = told["best_epoch"], run.number("num_train_epochs"), run.number("lora_dropout")
        advice = [
            Adjustment(
                "", proposed=f"keep the checkpoint nearest to step {told['best_step']} (eval_loss {told['best']:.4g}), "
                "and watch the next two evaluations", apply="check", confidence="high",
                why="what is learnt now does not carry over to unseen data; if the evaluation rises, that one is best",
            )
        ]  # fmt: skip
        if isinstance(epoch, float) and epochs is not None and epoch >= 0.75 and round(epoch + 0.25) < epochs:
            advice.append(
                Adjustment(
                    "num_train_epochs", current=epochs, proposed=max(round(epoch + 0.25), 1), direction="down",
                    confidence="medium",
                    why=f"the evaluation has not improved since epoch {epoch:.3g}",
                )
            )  # fmt: skip
        if run.fact("eval_strategy") in ("epoch", None) and told["evaluations_without_best"] < 3:
            advice.append(
                Adjustment(
                    "eval_strategy", current=run.fact("eval_strategy"), proposed="steps", confidence="medium",
                    why="with an evaluation every tenth of an epoch the turning point can be seen, and kept",
                    cost="the time of the evaluations",
                )
            )  # fmt: skip
        if told["evaluations_without_best"] >= self.lasting and (dropout is None or dropout < 0.05):
            advice.append(
                Adjustment(
                    "lora_dropout", current=dropout, proposed=0.05, direction="up", confidence="low",
                    why="0.05 to 0.1 is what the guide advises against a gap; its measured effect is small",
                    cost="speed, memory and Unsloth's fast path",
                )
            )  # fmt: skip
        return advice
