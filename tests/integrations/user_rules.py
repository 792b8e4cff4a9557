"""Rules for the tests, loaded as a user's own would be: ``Settings(rules_paths=(…,))``."""

from __future__ import annotations

from dataclasses import dataclass

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.rule import Rule, param
from lorawatch.run import Run


@dataclass(slots=True)
class From(Rule):
    """Fires from a given step on."""

    id = "loss/from-step"
    title = "Late steps"
    severity = Severity.CRITICAL
    needs = ("loss",)

    first: int = param(5, unit="steps", help="Step from which it fires.")

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        if run.step < self.first:
            return None
        return Breach(f"step {run.step} is not before step {self.first}", {"step": run.step})

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        return [Adjustment("learning_rate", 1e-5, "it is only a test", current=run.fact("learning_rate"))]


@dataclass(slots=True)
class Faulty(Rule):
    """Raises."""

    id = "base/faulty"
    title = "Faulty"
    severity = Severity.INFO
    needs = ("loss",)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        raise RuntimeError("a rule's own fault")
