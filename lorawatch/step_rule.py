"""What rules share that follow the optimizer steps one by one: the same verdict however records batch the steps."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

from lorawatch.findings import Breach, Severity
from lorawatch.records import Judged, Step, StepTiming
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run

EVERY = 10
"""Steps from one decision to the next: medians and sums over a window are too dear for each step."""
EASED = 0.7
"""Share of its threshold below which an open verdict is withdrawn."""


@dataclass(slots=True)
class StepRule(Rule):
    """A rule that takes in every step, and decides at each tenth of them.

    A record holds one step or twenty, as the callback sees fit. Decisions fall on the same steps either way, and a
    verdict stands until the next: that is why it needs no ``hold``, and why it is eased by its own verdict and not by
    :attr:`~lorawatch.rule.Rule.easing`, which changes between records only.
    """

    judges: ClassVar[tuple[type[Judged], ...]] = (StepTiming,)

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")
    steps: int = state(int)
    verdict: Breach | None = state(lambda: None)

    @property
    def eased(self) -> float:
        """What thresholds are multiplied by: less than 1 while the verdict is a breach."""
        return 1.0 if self.verdict is None else EASED

    def unseen(self, run: Run) -> tuple[str, ...]:
        """For ``missing``: that no times within the steps came; empty where some did."""
        inside = self.steps or (run.timing is not None and run.timing.steps)
        return () if inside else ("times within the steps (only the callback takes them)",)

    def judge(self, timing: Any, run: Run, /) -> Breach | None:
        """Take in the steps of a record; the worst of what was decided on the way, or else what was decided before."""
        worst, decided = None, False
        for step in timing.steps:
            if not self.take(step):
                continue
            self.steps = steps = self.steps + 1
            if steps % EVERY == 0:
                self.verdict = verdict = self.decide(run)
                worst, decided = self._worse(worst, verdict), True
        return worst if decided else self.verdict

    @abstractmethod
    def take(self, step: Step) -> bool:
        """Take in one step; False when it does not count."""

    @abstractmethod
    def decide(self, run: Run) -> Breach | None:
        """Judge what was taken in so far."""

    def _worse(self, one: Breach | None, other: Breach | None) -> Breach | None:
        if one is None or other is None:
            return one or other
        return other if self._severity(other) > self._severity(one) else one

    def _severity(self, breach: Breach) -> Severity:
        return self.severity if breach.severity is None else breach.severity
