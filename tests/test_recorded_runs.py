"""What the recorded runs show is found, and nothing else: from the callback's records and from the console alone."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from lorawatch.findings import Severity
from lorawatch.registry import RuleSet
from lorawatch.settings import Settings
from lorawatch.watch import judge

RUNS = Path(__file__).parent / "runs"
RECORDINGS = Path(__file__).parents[1] / "lorawatch" / "recordings"
EXPECTED: dict[str, set[str]] = {
    "healthy-sft": set(),
    "healthy-trl": set(),
    "healthy-dpo": set(),
    "resumed": set(),
    "oscillating": set(),  # the order of its data shows, which is worth an info only
    "labels-masked": {"sig/no-supervision"},
    "nan-from-step-40": {"sig/hidden-nan"},
    "overfit": {"eval/overfit"},
    "lr-too-low": {"loss/not-learning"},
    "lr-too-high": {"loss/at-uniform"},
    "waits-for-data": {"perf/data-wait"},
}
"""Scenario to the causes that are found at warning or above; what is folded under a cause is left out."""

BY_THE_SET_UP = {"lr-too-low": {"cfg/lr-vs-method"}, "lr-too-high": {"cfg/lr-vs-method"}}
"""What the callback's facts show besides; no console tells them."""


def causes(path: Path) -> set[str]:
    judged = judge([path], RuleSet(Settings()))
    assert not judged.errors
    assert len(judged.runs) == 1
    engine = judged.runs[0].engine
    assert not engine.rule_errors
    return {one.rule for one in engine.findings if one.is_root and one.severity >= Severity.WARNING}


def test_every_recorded_run_is_listed() -> None:
    assert {path.name for path in RUNS.iterdir() if path.is_dir()} == set(EXPECTED)


@pytest.mark.parametrize("name", EXPECTED)
def test_what_the_callback_recorded(name: str) -> None:
    assert causes(RUNS / name) == EXPECTED[name] | BY_THE_SET_UP.get(name, set())


@pytest.mark.parametrize("name", sorted(set(EXPECTED) - {"lr-too-high", "waits-for-data"}))
def test_the_console_alone(name: str, tmp_path: Path) -> None:
    # Without the vocabulary's size nothing tells that a loss which settled in ten steps is that of guessing; and no
    # console tells how long a step waited for its data.
    shutil.copy(RUNS / name / "train.log", tmp_path)
    shutil.copy(RUNS / name / "adapter_config.json", tmp_path)
    assert causes(tmp_path) == EXPECTED[name]


def test_the_demo_shows_a_run_that_is_lost() -> None:
    assert causes(RECORDINGS) & {"loss/diverging", "loss/at-uniform", "loss/blow-up"}
