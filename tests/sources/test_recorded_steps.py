"""The steps that the console log of a recorded run gives, beside those that the callback wrote down."""

from __future__ import annotations

from pathlib import Path

import pytest

from lorawatch.records import LifecycleEvent, MetricRow
from lorawatch.source import Source
from lorawatch.sources.console import ConsoleSource
from lorawatch.sources.lorawatch_jsonl import LorawatchSource

from .samples import events, facts

RUNS = sorted(path.parent for path in (Path(__file__).parents[1] / "runs").glob("*/train.log"))
UNPRINTED = {"resumed": [64]}
"""Rows that only the callback has: this run was interrupted at step 130, between the callback and the print."""


def records(source: Source) -> list[MetricRow | LifecycleEvent]:
    return [*source.poll(), *source.finish()]  # type: ignore[list-item]


def rows_with(name: str, found: list[MetricRow | LifecycleEvent]) -> list[MetricRow]:
    return [one for one in found if isinstance(one, MetricRow) and name in one.values]


@pytest.mark.parametrize("run", RUNS, ids=lambda path: path.name)
@pytest.mark.parametrize("metric", ["loss", "eval_loss"])
def test_the_console_gives_the_steps_that_the_callback_saw(run: Path, metric: str) -> None:
    # Of these runs the estimates are right, too.
    told = rows_with(metric, records(ConsoleSource(run / "train.log")))
    truth = rows_with(metric, records(LorawatchSource(run / "lorawatch.jsonl")))
    if metric == "loss":
        for index in UNPRINTED.get(run.name, []):
            del truth[index]
    assert [one.step for one in told] == [one.step for one in truth]
    assert [one.values[metric] for one in told] == pytest.approx([one.values[metric] for one in truth], rel=1e-3)


def test_a_resumed_run_goes_on_from_its_checkpoint() -> None:
    run = next(path for path in RUNS if path.name == "resumed")
    found = events(records(ConsoleSource(run / "train.log")))
    assert [(one.event, one.step) for one in found] == [("resumed", 100), ("ended", 240)]


def test_rows_that_were_held_back_are_estimates_and_their_spacing_is_told() -> None:
    run = next(path for path in RUNS if path.name == "healthy-trl")
    found = records(ConsoleSource(run / "train.log"))
    loss = rows_with("loss", found)
    # Sure where the bar before a batch of rows stood at the last of them: 40, 80 and 120.
    assert [one.step for one in loss if not one.estimated] == [40, 80, 120]
    assert facts(found) == {"logging_steps": 2, "max_steps": 120}
