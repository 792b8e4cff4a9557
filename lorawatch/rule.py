"""The contract of a rule: one named judgement of one record, with the run in view.

A rule is a dataclass with slots. Class attributes say what it is and what it needs; ``param`` fields are its settings,
with unit and help, settable in ``lorawatch.toml``; ``state`` fields are what it remembers, O(1) per run. Its docstring
is its page: see :data:`DOC_HEADINGS`.
"""

from __future__ import annotations

import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from lorawatch.findings import Adjustment, Breach, Maturity, Severity
from lorawatch.records import Judged, MetricRow
from lorawatch.run import Kind, Run

DOC_HEADINGS = (
    "## Why it matters",
    "## How it decides",
    "## What to change",
    "## Known false alarms",
    "## Sources",
)
"""The headings that every rule's docstring has, in this order, after a first paragraph that says what it means."""


def param(default: Any, *, unit: str, help: str) -> Any:  # noqa: A002  (the field's own word)
    """A setting of a rule: declared once, settable in ``lorawatch.toml`` under ``[rules."family/name"]``."""
    return dataclasses.field(default=default, metadata={"unit": unit, "help": help})


def state(factory: Callable[[], Any]) -> Any:
    """Something that a rule remembers from record to record; made anew for each run."""
    return dataclasses.field(init=False, default_factory=factory, repr=False)


@dataclass(frozen=True, slots=True)
class Parameter:
    """One declared setting of a rule."""

    name: str
    default: Any
    unit: str
    help: str


@dataclass(slots=True)
class Rule(ABC):
    """One named judgement.

    The engine calls :meth:`judge` for each record of the types in ``judges``, after it was added to the run: of the
    rows, for those that carry every metric in ``needs`` (and one of ``needs_any``). The rule returns a breach, or None
    when all is well; the engine alone decides when breaches become a finding (``hold``), when the finding resolves
    (``release``), and what it is folded under.

    Readings of the machine come when they come: ten seconds apart, or thirty. A rule that judges them counts seconds
    and steps, not records, and says by :meth:`missing` which values it lacks. They are not judged once a run has ended.
    A rule that judges facts is asked whenever one of them changes, before the first row as a rule.

    While its finding is open, :attr:`easing` is below 1: a rule multiplies the threshold that it compares with by it,
    so that a finding resolves at a lower level than the one that opened it.
    """

    id: ClassVar[str]
    title: ClassVar[str]
    severity: ClassVar[Severity]
    """The severity of a breach that names none."""
    maturity: ClassVar[Maturity] = "stable"
    judges: ClassVar[tuple[type[Judged], ...]] = (MetricRow,)
    """Types of the records that it judges: rows, facts, or readings of the machine or the model."""
    needs: ClassVar[tuple[str, ...]] = ()
    """Metrics that a row must carry, all of them, to be judged."""
    needs_any: ClassVar[tuple[str, ...]] = ()
    """Metrics of which a row must carry at least one; a name may hold a ``*`` (``eval_*_loss``)."""
    needs_facts: ClassVar[tuple[str, ...]] = ()
    """Facts without which the rule abstains."""
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind)
    """Kinds of run that it judges; of the others it abstains."""
    min_points: ClassVar[int] = 1
    """Points of its first needed metric (the best known one of ``needs_any``) before which no breach counts."""
    latched: ClassVar[bool] = False
    """True when the finding, once open, stays open to the end of the run: what it tells cannot be undone by it."""
    retells: ClassVar[bool] = False
    """True when an open finding is told anew where the breach's ``case`` (in its evidence) changes."""
    suppresses: ClassVar[tuple[str, ...]] = ()
    """Rules (or ``family/*``) whose findings are symptoms of this one: they are folded under its incident."""

    hold: int = param(1, unit="judgements", help="Breaches in a row before a finding opens.")
    release: int = param(2, unit="judgements", help="Calm judgements in a row before it resolves.")
    cooldown: int = param(50, unit="steps", help="A breach this soon after it resolved reopens the same finding.")
    easing: float = dataclasses.field(init=False, default=1.0, repr=False)

    @abstractmethod
    def judge(self, record: Any, run: Run, /) -> Breach | None:
        """Judge one record, of a type in ``judges``; ``run`` already holds it. Returns why it is wrong, or None."""

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """What to change, best first. Called when a finding opens or grows worse."""
        return []

    def missing(self, run: Run) -> tuple[str, ...]:
        """What keeps it from judging that ``needs`` cannot say; asked for reports only, never on the way of a row."""
        return ()

    @classmethod
    def parameters(cls) -> Iterator[Parameter]:
        """The declared settings, in order."""
        for item in dataclasses.fields(cls):
            if "unit" in item.metadata:
                yield Parameter(item.name, item.default, item.metadata["unit"], item.metadata["help"])
