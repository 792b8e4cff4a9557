"""The rules on GPU traces of public runs: each labelled trace is judged as its label says."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

import pytest

from lorawatch.engine import Engine
from lorawatch.findings import Finding, Severity
from lorawatch.records import Card, GpuReading
from lorawatch.registry import builtin_classes
from lorawatch.run import Run

from .gpu_traces import Trace, load_traces

CORPUS = Path(os.environ.get("LORAWATCH_CORPUS", Path(__file__).parents[3] / "shared" / "runs"))
FOLDER = CORPUS / "gpu"
TRACES = load_traces(FOLDER) if FOLDER.is_dir() else []
JUDGED = ("mem/", "hw/", "perf/", "host/")

pytestmark = pytest.mark.skipif(not TRACES, reason="the public GPU traces are not here")


@dataclass(frozen=True, slots=True)
class Replay:
    """What the rules said of a trace."""

    findings: list[Finding]
    cards: list[tuple[float, Card]]

    def named(self, rule: str) -> list[Finding]:
        return [one for one in self.findings if one.rule == rule]

    def full_since(self) -> float:
        """When the card's memory came above 90 % to stay there."""
        below = [time for time, card in self.cards if (card.memory_used or 0) <= 0.9 * (card.memory_total or 1)]
        return next(time for time, _ in self.cards if not below or time > below[-1])


def replay(trace: Trace) -> Replay:
    """All built-in rules over one trace."""
    engine = Engine(Run(trace.file.stem), [rule() for rule in builtin_classes()])
    cards: list[tuple[float, Card]] = []
    for record in trace.records():
        engine.feed(record)
        if isinstance(record, GpuReading):
            cards.append((record.time, record.cards[0]))
    assert engine.rule_errors == {}
    return Replay(engine.findings, cards)


def labelled(label: str) -> list[Trace]:
    return [trace for trace in TRACES if trace.label == label]


def traces(label: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("trace", labelled(label), ids=str)


def test_every_label_is_one_that_a_test_here_knows() -> None:
    assert {trace.label for trace in TRACES} == {"healthy", "low_vram_steady", "other_process", "util_gaps", ""}


@traces("healthy")
def test_a_healthy_trace_gives_no_warning(trace: Trace) -> None:
    found = replay(trace)
    assert found.cards
    bad = [one for one in found.findings if one.rule.startswith(JUDGED) and one.severity >= Severity.WARNING]
    assert bad == []


@traces("low_vram_steady")
def test_low_memory_is_told_a_minute_after_it_became_low(trace: Trace) -> None:
    found = replay(trace)
    (finding,) = found.named("mem/headroom")
    assert finding.severity >= Severity.WARNING
    assert finding.state == "firing"
    assert finding.opened_time is not None
    assert 60.0 <= finding.opened_time - found.full_since() <= 120.0


@traces("other_process")
def test_memory_of_a_card_that_never_worked_is_told_to_be_another_s(trace: Trace) -> None:
    found = replay(trace)
    (finding,) = found.named("mem/headroom")
    assert finding.severity is Severity.WARNING
    assert "probably not this run's" in finding.summary
    assert finding.adjustments[0].parameter == ""
    assert "another process" in finding.adjustments[0].proposed


@traces("util_gaps")
def test_gaps_in_the_use_of_a_card_are_told(trace: Trace) -> None:
    found = replay(trace)
    assert [one.severity for one in found.named("perf/low-gpu")] == [Severity.INFO]
    assert [one for one in found.findings if one.severity >= Severity.WARNING] == []


@traces("")
def test_an_unlabelled_trace_is_judged_without_an_error(trace: Trace) -> None:
    for one in replay(trace).findings:
        print(f"{one.rule} [{one.severity.label}] {one.summary}")  # noqa: T201  (for a person: pytest -rP shows it)
