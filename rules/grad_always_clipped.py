"""The rule grad/always-clipped."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import lower_rate
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run


@dataclass(slots=True)
class GradAlwaysClipped(Rule):
    """Nearly every step is clipped, and by a factor of three or more.

    ## Why it matters
    Clipping is meant for the rare large gradient. Where it acts on each step, every gradient has the same length: a
    batch with much to teach counts no more than one with little. With Adam it changes little else, and many good runs
    look like this. Report, not alarm.

    ## How it decides
    Over each block of 100 logs: more than 90 of them have a norm above `max_grad_norm`, and more than half of them a
    norm above 3 times that. Where the run does not say its `max_grad_norm`, 1.0 is taken, the default of
    transformers, and the sentence says so. `max_grad_norm=0` means no clipping, and is not judged.

    ## What to change
    Nothing has to. If the loss falls well, leave it. Else raise the clip to the usual norm, or lower the rate. Norms of
    more than 10 times the clip are no reason for a higher one.

    ## Known false alarms
    A run with another clip than 1.0 that does not say so.

    ## Sources
    Measured: a healthy public run has 91 % of its norms above 1, with a median of 1.7; others, as healthy, have a
    median of 4.8. That is why this is information only, and asks for a median of 3 times the clip.
    """

    id: ClassVar[str] = "grad/always-clipped"
    title: ClassVar[str] = "Nearly every step is clipped"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[tuple[str, ...]] = ("grad_norm",)
    min_points: ClassVar[int] = 100

    block: int = param(100, unit="logs", help="Logs that are judged together.")
    share: float = param(0.9, unit="ratio", help="Share of them that must be clipped.")
    times: float = param(3.0, unit="ratio", help="Times max_grad_norm that half of them must exceed.")
    most: float = param(10.0, unit="ratio", help="Times max_grad_norm up to which a higher one is proposed.")
    seen: int = state(int)
    clipped: int = state(int)
    strongly: int = state(int)
    clip: float = state(lambda: -1.0)
    verdict: Breach | None = state(lambda: None)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Count; at the end of each block, judge it."""
        seen = self.seen
        if seen == 0:
            known = run.number("max_grad_norm")
            self.clip = 1.0 if known is None else known
        self.seen = seen = seen + 1
        norm, clip = row.values["grad_norm"], self.clip
        if norm > clip:
            self.clipped += 1
            if norm > self.times * clip:
                self.strongly += 1
        if seen >= self.block:
            self.verdict = self._judge_block(run)
            self.seen = self.clipped = self.strongly = 0
        return self.verdict

    def _judge_block(self, run: Run) -> Breach | None:
        if not (self.clip > 0.0 and self.clipped > self.share * self.seen and 2 * self.strongly > self.seen):
            return None
        recent = sorted(run.series["grad_norm"].window(self.block))
        usual = recent[len(recent) // 2] if recent else 0.0
        said = "" if run.number("max_grad_norm") is not None else " (transformers' default; the run does not say)"
        return Breach(
            f"{100 * self.clipped / self.seen:.0f} % of the last {self.seen} logged steps were clipped: median norm "
            f"{usual:.3g} against max_grad_norm {self.clip:g}{said}",
            {"share_clipped": self.clipped / self.seen, "median_grad_norm": usual, "max_grad_norm": self.clip},
        )

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Nothing, or a higher clip."""
        usual, clip = breach.evidence["median_grad_norm"], breach.evidence["max_grad_norm"]
        advice = [
            Adjustment(
                "", proposed="no action while the loss falls well", apply="check", confidence="high",
                why="with Adam the length of a constantly clipped gradient cancels out; many good runs look like this",
            )
        ]  # fmt: skip
        if usual <= self.most * clip:
            advice.append(
                Adjustment(
                    "max_grad_norm", current=run.number("max_grad_norm"), proposed=float(f"{1.5 * usual:.2g}"),
                    direction="up", confidence="low",
                    why="clips the rare large step again, and lets batches differ in weight",
                    cost="some protection: spikes pass with more force",
                )
            )  # fmt: skip
        advice.append(
            lower_rate(
                run, 2, "if the loss is unsteady as well: large norms throughout mean steep places", confidence="low",
                apply="restart",
            )
        )  # fmt: skip
        return advice
