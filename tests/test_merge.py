"""Several sources of one run: which wins, and what the others add."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lorawatch.merge import Coverage, merged
from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow, Record
from lorawatch.source import SourceError


class Listed:
    """A source that says what it was given."""

    format: ClassVar[str] = "listed"
    precedence: ClassVar[int] = 0
    path = Path("listed")
    skipped_lines = 0

    def __init__(self, *records: Record) -> None:
        self.records = records
        self.place = 0

    def poll(self) -> Iterable[Record]:
        while self.place < len(self.records):
            self.place += 1
            yield self.records[self.place - 1]

    def finish(self) -> Iterable[Record]:
        return ()

    def cursor(self) -> dict[str, Any]:
        return {"place": self.place}

    def resume(self, cursor: dict[str, Any]) -> None:
        self.place = cursor["place"]


class Broken(Listed):
    def poll(self) -> Iterable[Record]:
        yield from super().poll()
        raise SourceError("no longer readable")


class Journal(Listed):
    format: ClassVar[str] = "lorawatch"


def row(step: int, **values: float) -> MetricRow:
    return MetricRow(step, values)


def test_the_better_source_wins_where_both_tell_a_metric() -> None:
    console = Listed(row(10, loss=1.0), row(20, loss=0.9))
    state = Listed(row(10, loss=1.0001), row(20, loss=0.9001))
    assert list(merged([console, state])) == [row(10, loss=1.0), row(20, loss=0.9)]


def test_a_lesser_source_adds_other_metrics_at_their_steps() -> None:
    log = Listed(row(10, loss=1.0), row(20, loss=0.9))
    state = Listed(row(10, loss=1.0, grad_norm=3.0), row(20, loss=0.9, grad_norm=2.0))
    assert list(merged([log, state])) == [
        row(10, loss=1.0), row(10, grad_norm=3.0), row(20, loss=0.9), row(20, grad_norm=2.0),
    ]  # fmt: skip


def test_a_lesser_source_adds_the_steps_before_and_after() -> None:
    console = Listed(row(30, loss=0.8), row(40, loss=0.7))
    state = Listed(row(10, loss=1.0), row(20, loss=0.9), row(30, loss=0.8), row(50, loss=0.6))
    assert [record.step for record in merged([console, state]) if isinstance(record, MetricRow)] == [10, 20, 30, 40, 50]


def test_what_a_lesser_source_states_comes_first_and_its_events_do_not_count() -> None:
    console = Listed(row(10, loss=1.0), LifecycleEvent("ended"))
    stated = FactUpdate({"max_steps": 100}, "trainer_state.json")
    state = Listed(row(10, loss=1.0), stated, LifecycleEvent("ended"))
    assert list(merged([console, state])) == [stated, row(10, loss=1.0), LifecycleEvent("ended")]


def test_a_source_without_rows_leaves_the_lead_to_the_next() -> None:
    empty = Listed(FactUpdate({"seed": 1}, "console"))
    state = Listed(FactUpdate({"max_steps": 9}, "state"), row(1, loss=1.0), LifecycleEvent("ended"))
    records = list(merged([empty, state]))
    assert records == [*empty.records, *state.records]


def test_a_lesser_source_that_breaks_does_not_spoil_the_run_and_the_best_one_does() -> None:
    log, state = Listed(row(10, loss=1.0)), Broken(row(10, grad_norm=2.0))
    assert list(merged([log, state])) == [row(10, loss=1.0), row(10, grad_norm=2.0)]
    with pytest.raises(SourceError):
        list(merged([Broken(row(10, loss=1.0)), Listed()]))


def test_the_journal_of_the_callback_needs_no_other_source() -> None:
    journal = Journal(row(10, loss=1.0))
    assert list(merged([journal, Listed(row(20, loss=9.0, eval_loss=1.0))])) == [row(10, loss=1.0)]


def test_a_log_of_several_runs_is_not_mixed_with_a_state_of_the_last() -> None:
    console = Listed(row(10, loss=1.0), row(20, loss=0.9), LifecycleEvent("started"), row(10, loss=2.0))
    state = Listed(row(10, loss=2.0, grad_norm=1.0))
    assert list(merged([console, state])) == list(console.records)


def test_while_the_better_source_is_written_it_covers_what_is_to_come() -> None:
    coverage = Coverage()
    coverage.add(row(10, loss=1.0))
    assert coverage.uncovered(row(20, loss=1.0)) == row(20, loss=1.0)
    assert coverage.uncovered(row(20, loss=1.0), open_ended=True) is None
    assert coverage.uncovered(row(20, loss=1.0, grad_norm=1.0), open_ended=True) == row(20, grad_norm=1.0)
    assert coverage.uncovered(MetricRow(None, {"reward": 1.0})) is None
