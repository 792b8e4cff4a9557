"""What rules say: breaches, the findings that the engine makes of them, and the adjustments that mend them."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Literal

Maturity = Literal["stable", "experimental"]
State = Literal["firing", "resolved"]
Confidence = Literal["low", "medium", "high"]
Apply = Literal["restart", "resume", "live", "check"]
Direction = Literal["up", "down", "set"]


class Severity(IntEnum):
    """How bad a finding is. Ordered: ``INFO < WARNING < CRITICAL``."""

    INFO = 0
    WARNING = 1
    CRITICAL = 2

    @property
    def label(self) -> str:
        """The severity in lower case, as it stands in JSON, in metrics and on the command line."""
        return self.name.lower()

    @classmethod
    def parse(cls, label: str) -> Severity:
        """The severity that is written ``label``.

        Raises:
            ValueError: ``label`` is none of info, warning, critical.
        """
        try:
            return cls[label.upper()]
        except KeyError:
            raise ValueError(f"unknown severity {label!r}: use info, warning or critical") from None


@dataclass(frozen=True, slots=True)
class Breach:
    """Why one record broke a rule.

    Attributes:
        summary: One sentence with the numbers, for a person.
        evidence: The numbers behind it, by name; units are in the name where they are not obvious.
        severity: Set where this breach is more or less severe than the rule's own severity.
    """

    summary: str
    evidence: dict[str, Any]
    severity: Severity | None = None


@dataclass(frozen=True, slots=True)
class Adjustment:
    """One change to make.

    Attributes:
        parameter: The parameter to change, in the newest transformers, TRL or PEFT name; :mod:`lorawatch.parameters`
            spells it as the run's own libraries do. ``""`` for something to look at rather than to set.
        proposed: The value to set, or what to do where ``parameter`` is empty.
        why: One sentence: why this helps here.
        current: The value now; None when it is not known.
        cost: What it costs: speed, memory, a restart. ``""`` when nothing worth saying.
        confidence: How sure the advice is: the rule's evidence and the remedy's taken together.
        apply: ``restart`` the run from the start, ``resume`` from a checkpoint, change it ``live``, or only ``check``.
        direction: Which way the value moves; two adjustments of one parameter in opposite directions conflict.
        next: True for the one change to make first. Set by :func:`lorawatch.advice.rank`.
        conflicts: Why this should not be done together with the change that stands first.
    """

    parameter: str
    proposed: Any
    why: str
    current: Any = None
    cost: str = ""
    confidence: Confidence = "medium"
    apply: Apply = "restart"
    direction: Direction = "set"
    next: bool = False
    conflicts: str = ""


@dataclass(slots=True)
class Finding:
    """A breach with a life: it opens, may grow worse, and resolves.

    Attributes:
        rule: Id of the rule, ``loss/diverging``.
        since_step: Step of the first breach in the streak that opened it.
        opened_step: Step at which the engine opened it, after the rule's hold.
        resolved_step: Step at which it resolved; None while it is firing.
        last_step: Last step at which the rule was broken.
        opened_time: Unix time of the record that opened it; None when the records carry no time.
        incident: Id of the finding that is the root cause; its own id when it is one itself.
    """

    rule: str
    title: str
    severity: Severity
    maturity: Maturity
    summary: str
    evidence: dict[str, Any]
    since_step: int
    opened_step: int
    last_step: int
    opened_time: float | None = None
    resolved_step: int | None = None
    state: State = "firing"
    adjustments: list[Adjustment] = field(default_factory=list)
    incident: str = ""

    @property
    def id(self) -> str:
        """Stable identity within its run: the rule and the step at which it opened."""
        return f"{self.rule}@{self.opened_step}"

    @property
    def is_root(self) -> bool:
        """Whether it is the cause of its incident, rather than a symptom folded under another finding."""
        return self.incident in ("", self.id)
