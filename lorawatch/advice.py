"""From the rules' proposals to one plan: spelled for the installed libraries, one change first, conflicts named.

More than one optimisation change at a time makes it impossible to tell which one helped: one adjustment of a run is
marked ``next``, the rest stand behind it (rule catalogue section 7).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence

from lorawatch.findings import Adjustment, Finding, Severity
from lorawatch.parameters import settable, spell_parameter
from lorawatch.run import Run


def spell(adjustments: Iterable[Adjustment], run: Run) -> list[Adjustment]:
    """The same adjustments in the parameter names of the libraries that the run uses, without what they cannot set."""
    spelled: list[Adjustment] = []
    for adjustment in adjustments:
        if not settable(adjustment.parameter, run):
            continue
        name, value = spell_parameter(adjustment.parameter, adjustment.proposed, run)
        current = run.number(name) if name == "warmup_ratio" else adjustment.current
        if value != current or not name:  # what is already so is no advice
            spelled.append(dataclasses.replace(adjustment, parameter=name, proposed=value, current=current))
    return spelled


def rank(findings: Sequence[Finding]) -> None:
    """Mark the one adjustment to make next, and say where another conflicts with it.

    ``findings`` are those that are firing, worst and causes first. A symptom's adjustments never come first: mending
    the cause may mend it. An adjustment that is only something to look at is free, and is never marked; nor is one of
    low confidence for a finding that is only information: a run that is fine needs no change; nor where the advice
    begins with a look of high confidence, which may show that none is needed.
    """
    chosen: Adjustment | None = None
    for finding in findings:
        if not finding.is_root:
            continue
        first = finding.adjustments[0] if finding.adjustments else None
        looks_first = first is not None and not first.parameter and first.confidence == "high"
        unsure = finding.severity is Severity.INFO or looks_first
        chosen = next(
            (item for item in finding.adjustments if item.parameter and not (unsure and item.confidence == "low")), None
        )
        if chosen is not None:
            break
    for finding in findings:
        finding.adjustments = [_marked(item, chosen) for item in finding.adjustments]


def lay_down(finding: Finding) -> None:
    """None of its adjustments is to be made now: the finding has resolved."""
    finding.adjustments = [_marked(item, None) for item in finding.adjustments]


def _marked(item: Adjustment, chosen: Adjustment | None) -> Adjustment:
    first = item is chosen
    conflicts = "" if first or chosen is None else conflict(item, chosen)
    if item.next == first and item.conflicts == conflicts:
        return item
    return dataclasses.replace(item, next=first, conflicts=conflicts)


_PAIRS = {
    frozenset({"learning_rate", "lora_alpha"}): "alpha and the learning rate act together: change one",
    frozenset({"learning_rate", "gradient_accumulation_steps"}):
        "the effective batch and the learning rate act together: change one at a time",
    frozenset({"r", "lora_dropout"}): "both change capacity: change one at a time",
}  # fmt: skip


def conflict(item: Adjustment, chosen: Adjustment) -> str:
    """Why ``item`` should not be done together with ``chosen``; empty when nothing speaks against it."""
    if not item.parameter:
        return ""
    if item.parameter == chosen.parameter:
        if {item.direction, chosen.direction} == {"up", "down"}:
            return f"contradicts the change that stands first ({chosen.parameter} {chosen.direction})"
        return ""
    return _PAIRS.get(frozenset({item.parameter, chosen.parameter}), "")
