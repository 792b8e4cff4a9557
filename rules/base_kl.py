"""The rule base/kl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import Judged, SampleReading
from lorawatch.remedies import look, lower_rate
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run


@dataclass(slots=True)
class BaseKl(Rule):
    """The model moved away from its base by a leap: the KL divergence on task prompts more than tripled.

    ## Why it matters
    How much a model forgets follows how far it moves from its base on the new task, by the forward KL divergence. It
    should grow and then settle; a leap between two looks means that something broke in between.

    ## How it decides
    The mean forward KL divergence a token (base first, then tuned), on the task prompts with the reference replies or
    the base model's own, is more than three times that of the look before, and above 0.3 nats. The first two looks are
    not judged: a new adapter starts at 0. It is information: no value of it is wrong in general.

    ## What to change
    Look at loss and gradient norm in that span; a lower learning rate, or fewer epochs.

    ## Known false alarms
    Looks that are far apart, early in a run with a long warm-up.

    ## Sources
    RL's Razor (arXiv 2509.04259) fits forgetting by a quadratic function of this divergence. Rule catalogue B1 asks
    for the factor of three. The floor of 0.3 nats is a choice without another authority: below it a leap is small.
    """

    id: ClassVar[str] = "base/kl"
    title: ClassVar[str] = "Leap away from the base model"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (SampleReading,)

    factor: float = param(3.0, unit="ratio", help="KL divergence over that of the look before.")
    floor: float = param(0.3, unit="nats/token", help="KL divergence below which a leap does not count.")
    looks: int = state(int)
    before: float = state(float)
    before_step: int = state(int)

    def missing(self, run: Run) -> tuple[str, ...]:
        """Looks that measured it."""
        return () if self.looks > 2 else (f"3 looks with a KL divergence from the base model ({self.looks} so far)",)

    def judge(self, reading: SampleReading, run: Run) -> Breach | None:
        """Hold the divergence against that of the look before."""
        now = reading.kl
        if now is None or not now >= 0.0:
            return None
        before, step = self.before, self.before_step
        self.looks += 1
        self.before, self.before_step = now, reading.step
        if self.looks <= 2 or now <= self.factor * self.easing * before or now <= self.floor:
            return None
        return Breach(
            f"KL divergence from the base model went from {before:.2f} to {now:.2f} nats a token between steps {step} "
            f"and {reading.step}",
            {"kl": now, "kl_before": before, "step_before": step},
        )

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Find the moment, then take smaller steps."""
        since = breach.evidence["step_before"]
        return [
            look(f"loss and grad_norm since step {since}", "a leap has a moment, and a batch or a rate behind it"),
            lower_rate(run, 2, "smaller steps move the model less far from its base", confidence="low"),
        ]
