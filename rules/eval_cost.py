"""The rule eval/cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.evaluation import task_metric
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run


@dataclass(slots=True)
class EvalCost(Rule):
    """Evaluation takes a large share of the run's time.

    ## Why it matters
    The time goes to measuring a model instead of training it. A few hundred rows tell the same as a few thousand: the
    noise of a real evaluation loss is about 0.1 %.

    ## How it decides
    From one evaluation to the next: the evaluations' own run time over the time that passed, all such intervals
    taken together, is more than 30 %. It needs 2 evaluations and records that carry a time; where they do not, the
    `train_runtime` at the end of the run stands in for it.

    ## What to change
    Evaluate half as often, or on a subset of 200 to 500 rows, or in larger batches. `prediction_loss_only=True` spares
    the gathering of logits where no task metric is computed from them.

    ## Known false alarms
    Runs in which evaluation is the point, and short test runs.

    ## Sources
    The limit of 30 % is a choice without another authority. On the public runs it holds for few: logs with times are
    rare there.
    """

    id: ClassVar[str] = "eval/cost"
    title: ClassVar[str] = "Evaluation takes much of the time"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"
    needs_any: ClassVar[tuple[str, ...]] = ("eval_runtime", "eval_*_runtime", "train_runtime")
    suppresses: ClassVar[tuple[str, ...]] = ("perf/overhead",)

    share: float = param(0.30, unit="ratio", help="Share of the time that evaluation may take.")
    evals: int = state(int)
    spent: float = state(float)
    all_spent: float = state(float)
    started: float | None = state(lambda: None)
    rows: float = state(float)

    def missing(self, run: Run) -> tuple[str, ...]:
        """Times: without them the share is not known before the end."""
        if self.evals < 2:
            return (f"2 evaluations ({self.evals} so far)",)
        if self.started is None and "train_runtime" not in run.series:
            return ("records with a time, or train_runtime",)
        return ()

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Add up the evaluations' time beside the time that passed."""
        values = row.values
        total = values.get("train_runtime")
        if total is not None:
            return self._breach(self.all_spent, total, run) if self.started is None else None
        seconds = sum(
            value for name, value in values.items()
            if name.startswith("eval_") and name.endswith("_runtime") and 0.0 <= value < 1e9
        )  # fmt: skip
        self.evals += 1
        self.all_spent += seconds
        speed = values.get("eval_samples_per_second")
        if speed is not None and 0.0 < speed < 1e9:
            self.rows = speed * seconds
        if row.time is None:
            return None
        if self.started is None:
            self.started = row.time
            return None
        self.spent += seconds
        return self._breach(self.spent, row.time - self.started, run)

    def _breach(self, spent: float, total: float, run: Run) -> Breach | None:
        if self.evals < 2 or not total > 0.0 or spent <= self.share * self.easing * total:
            return None
        share = min(spent / total, 1.0)
        return Breach(
            f"evaluation takes {100 * share:.0f} % of the time ({spent:.0f} of {total:.0f} s)",
            {"share": share, "eval_seconds": spent, "seconds": total, "evaluations": self.evals,
             "eval_rows": round(self.rows) or None},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Less often, on fewer rows, without logits."""
        steps, rows = run.number("eval_steps"), breach.evidence["eval_rows"]
        batch = run.number("per_device_eval_batch_size")
        advice: list[Adjustment] = []
        if str(run.fact("eval_strategy", "steps")) != "epoch":  # eval_steps counts only with "steps"
            advice.append(
                Adjustment(
                    "eval_steps", current=steps, proposed=int(2 * steps) if steps and steps >= 1 else "twice as many",
                    direction="up", confidence="medium", apply="resume",
                    why=f"halves the {100 * breach.evidence['share']:.0f} % of the time that evaluation takes",
                    cost="detail: a turning point is seen later",
                )
            )  # fmt: skip
        if rows is None or rows > 500:
            advice.append(
                Adjustment(
                    "", proposed="evaluate on a fixed subset of 200 to 500 rows"
                    + (f" instead of {rows}" if rows else ""),
                    apply="check", confidence="medium",
                    why="the same subset each time gives comparable losses; run the whole set once, at the end",
                )
            )  # fmt: skip
        advice.append(
            Adjustment(
                "per_device_eval_batch_size", current=batch, proposed=int(2 * batch) if batch else "twice as large",
                direction="up", confidence="low", apply="resume",
                why="evaluation keeps no activations for a backward pass, so that larger batches fit",
                cost="memory: logits grow with it",
            )
        )  # fmt: skip
        if run.fact("prediction_loss_only") is not True and task_metric(dict.fromkeys(run.series, 0.0)) is None:
            advice.append(
                Adjustment(
                    "prediction_loss_only", current=run.fact("prediction_loss_only"), proposed=True,
                    confidence="medium", apply="resume",
                    why="spares the gathering of logits",
                    cost="task metrics: compute_metrics is not called any more",
                )
            )  # fmt: skip
        return advice
