"""The rule loss/stairs."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import look, lower_rate
from lorawatch.rule import Rule, param, state
from lorawatch.run import SUPERVISED, Run
from lorawatch.stats import linear_fit


@dataclass(slots=True)
class LossStairs(Rule):
    """The training loss drops at the boundary of an epoch: the model remembers what it has seen.

    ## Why it matters
    Within an epoch each row is new, and the loss is as honest as an evaluation. At the boundary the rows come again,
    and a sudden drop is what was remembered of them in one pass. A large one means that more epochs mostly add memory.

    ## How it decides
    At each boundary the quarter epoch after it is compared with the quarter before it (4 to 64 points a side, without
    the last point of the epoch). Of the drop, what the trend of the epoch's second half lets expect is taken away.
    What is left is at least 10 %, and 5 standard errors. Info; a warning when the evaluation loss has risen 1 % above
    its best by then as well.

    ## What to change
    Take the checkpoint with the best evaluation and plan as many epochs; remove duplicates; then half the rate.

    ## Known false alarms
    Stairs are common in healthy runs of 2 or 3 epochs: without a rise of the evaluation loss it is a remark.

    ## Sources
    fast.ai, *Can LLMs learn from a single example?*. Measured: a true memoriser drops by 25–37 % at each of 3
    boundaries, five healthy runs of several epochs by at most 2 %; runs that memorise slowly (25–50 epochs) show
    nothing at the first boundaries. The catalogue also warns at a second boundary of 20 %: public runs that were read
    as healthy do that (2.5 to 0.1 over 12 epochs), so that a warning here asks for the evaluation.
    """

    id: ClassVar[str] = "loss/stairs"
    title: ClassVar[str] = "Loss drops at epoch boundaries"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    kinds = SUPERVISED
    min_points: ClassVar[int] = 12

    drop: float = param(0.1, unit="ratio", help="Least drop at the boundary, beyond the trend.")
    errors: float = param(5.0, unit="standard errors", help="Least drop, in standard errors.")
    points: int = param(4, unit="points", help="Least points on either side.")
    eval_rise: float = param(0.01, unit="ratio", help="Rise of the evaluation loss over its best that warns.")
    due: float = state(lambda: 1.0)
    boundary: int = state(lambda: 1)
    boundaries: int = state(int)
    verdict: Breach | None = state(lambda: None)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Look when enough points have come after a boundary; between that the last verdict stands."""
        epoch = row.epoch
        if epoch is None or epoch < self.due:
            return self.verdict
        if epoch < self.boundary:
            self.boundary, self.due = math.floor(epoch) + 1, float(math.floor(epoch) + 1)
            return self.verdict
        if epoch == self.due == self.boundary:  # the boundary itself still belongs to the epoch before it
            return self.verdict
        share = epoch / max(run.train_rows, 1)
        if epoch - self.boundary >= 1.0:
            self.boundary = math.floor(epoch)
        width = int(min(0.25 / share, 64.0)) if share > 0 else 0
        if width < self.points:
            self.due = math.inf
            return None
        if epoch - self.boundary < width * share:
            self.due = self.boundary + width * share
            return self.verdict
        self.verdict = self._look(width, round((epoch - self.boundary) / share), share, run)
        self.boundary = math.floor(epoch) + 1
        self.due = float(self.boundary)
        return self.verdict

    def _look(self, width: int, after_count: int, share: float, run: Run) -> Breach | None:
        half = min(int(0.5 / share), 180)
        points = run.series["loss"].window(after_count + half)
        if len(points) < after_count + max(half, width + 1):
            return None
        after, trend = points[-after_count:][:width], points[: len(points) - after_count - 1]
        before = trend[-width:]
        if len(after) < self.points or len(before) < self.points:
            return None
        size = len(trend)
        _, slope = linear_fit(trend)
        slope = min(slope, 0.0)
        centre, mean_trend = (size - 1) / 2, sum(trend) / size
        residuals = [value - mean_trend - slope * (index - centre) for index, value in enumerate(trend)]
        variance = sum(value * value for value in residuals) / max(size - 2, 1)
        gap = width / 2 + len(after) / 2 + 1
        mean_before, mean_after = sum(before) / len(before), sum(after) / len(after)
        fall = mean_before - mean_after + slope * gap
        error = math.sqrt(variance * (1 / len(before) + 1 / len(after) + 12 * gap * gap / size**3))
        error = max(error, 0.005 * mean_before / math.sqrt(width), 1e-6)
        if mean_before <= 0.0 or fall < self.drop * mean_before or fall < self.errors * error:
            return None
        self.boundaries += 1
        worse = ""
        evals = run.series.get("eval_loss")
        if evals is not None and evals.count >= 2:
            values = evals.window(256)
            best = min(values)
            if values[-1] > (1.0 + self.eval_rise) * best:
                worse = f", while evaluation rose from {best:.4g} to {values[-1]:.4g}"
        return Breach(
            f"loss dropped by {100 * fall / mean_before:.0f} % at the start of epoch {self.boundary + 1} "
            f"({mean_before:.3g} to {mean_after:.3g}), beyond its trend: rows seen before are remembered{worse}",
            {"relative_drop": fall / mean_before, "standard_errors": fall / error, "before": mean_before,
             "after": mean_after, "boundary": self.boundary, "boundaries": self.boundaries},
            Severity.WARNING if worse else None,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """As many epochs as evaluation likes; deduplicate; then the rate."""
        epochs, boundary = run.number("num_train_epochs"), breach.evidence["boundary"]
        advice = [
            look(
                "compare the evaluation at the end of each epoch and keep the best checkpoint; look for duplicate rows",
                "a drop at the boundary shows memory, not skill",
            )
        ]
        if breach.severity is not None:
            if epochs is None or epochs > boundary:
                advice.append(
                    Adjustment(
                        "num_train_epochs", current=epochs, proposed=max(int(boundary), 1), direction="down",
                        confidence="medium", apply="restart", why=f"evaluation is past its best after epoch {boundary}",
                    )
                )  # fmt: skip
            advice.append(
                lower_rate(run, 2.0, "slower memorising, if fewer epochs do not help", confidence="low",
                           apply="restart")
            )  # fmt: skip
        return advice
