"""The rule loss/memorised."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.evaluation import task_at_best
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import look, lower_rate
from lorawatch.rule import Rule, param, state
from lorawatch.run import LANGUAGE_MODELLING, Run


@dataclass(slots=True)
class LossMemorised(Rule):
    """The training loss is so low that the model recites its training data.

    ## Why it matters
    Natural text is not predictable to 0.2 nats a token. A loss that low on whole answers mostly means that the model
    has learnt them by heart; it then answers anything else worse than before.

    ## How it decides
    The slow level of the loss is below 0.2, in a run that started above 0.6, with 20 points. Info. A warning when
    evaluation speaks for it: the last evaluation loss is more than 10 % above the best, and above the one before, and
    no task metric (accuracy, F1, word error rate) has improved and stands at its best.

    ## What to change
    An earlier checkpoint, or 1 to 3 epochs; more data, or fewer duplicates; then half the learning rate.

    ## Known false alarms
    Short or formal answers (labels, JSON, code, fewer than 32 tokens) may well be predictable. Classification is not
    judged. A loss over the prompt too, where all prompts are alike, is low without any answer being known.

    ## Sources
    The figure 0.2 is widely cited from Unsloth's guide; it is not verified. A public run at 0.23 had a fine
    evaluation (0.31). Hence info.
    """

    id: ClassVar[str] = "loss/memorised"
    title: ClassVar[str] = "Training data is being memorised"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    kinds = LANGUAGE_MODELLING
    min_points: ClassVar[int] = 20
    suppresses: ClassVar[tuple[str, ...]] = ("loss/plateau", "loss/noisy", "loss/stairs")

    release: int = param(8, unit="points", help="Points in a row above the limit before it resolves.")
    level: float = param(0.2, unit="nats", help="Level below which whole texts are probably known by heart.")
    start: float = param(0.6, unit="nats", help="A run that starts below this is not judged.")
    rise: float = param(0.1, unit="ratio", help="Rise of the evaluation loss over its best that makes it a warning.")
    known: Breach | None = state(lambda: None)
    evals: int = state(int)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the slow level with the limit."""
        loss = run.loss
        if loss.slow >= self.level / self.easing or loss.count < 20:
            self.known = None
            return None
        series = run.series.get("eval_loss")
        evals = series.count if series is not None else 0
        if self.known is not None and evals == self.evals:
            return self.known
        self.evals = evals
        start = max(loss.initial, run.series["loss"].head[0])
        if start < self.start or loss.slow <= 0.0:
            return None
        worse = ""
        evidence = {"loss_level": loss.slow, "limit": self.level, "first_level": start, "epoch": run.epoch}
        if series is not None and evals >= 2:
            values = series.window(256)
            best = min(values)
            evidence |= {"eval_loss": values[-1], "best_eval_loss": best}
            if values[-1] > (1.0 + self.rise) * best and values[-1] > values[-2] and not task_at_best(run):
                worse = f", while evaluation rose from {best:.4g} to {values[-1]:.4g}"
        self.known = Breach(
            f"loss is at {loss.slow:.3g}, down from {start:.3g}: below {self.level:g} whole answers are mostly known "
            f"by heart{worse}",
            evidence,
            Severity.WARNING if worse else None,
        )
        return self.known

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Fewer epochs, more data; then the rate."""
        epochs = run.number("num_train_epochs")
        advice = [
            look(
                "are the answers short or formal (labels, JSON, under 32 tokens)? Then so low a loss may be fine; "
                "otherwise compare checkpoints on held-out data and take an earlier one",
                "the loss alone cannot tell a predictable answer from a memorised one",
            )
        ]
        if epochs is None or epochs > 1:
            advice.append(
                Adjustment(
                    "num_train_epochs", current=epochs, proposed="1 to 3" if epochs is None else 3 if epochs > 3 else 1,
                    direction="down", confidence="low" if breach.severity is None else "medium", apply="restart",
                    why="each repetition of the same data adds to memory, little to skill",
                )
            )  # fmt: skip
        if breach.severity is not None:
            advice.append(
                lower_rate(run, 2.0, "slower memorising, if fewer epochs do not help", confidence="low",
                           apply="restart")
            )  # fmt: skip
        return advice
