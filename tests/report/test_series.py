"""Series: read once more in full, bounded, thinned without losing what stands out."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pytest

pytest.importorskip("pandas")

from hypothesis import given, settings
from hypothesis import strategies as st

from lorawatch.records import LifecycleEvent, MetricRow, Step, StepTiming
from lorawatch.registry import RuleSet
from lorawatch.report import history as history_module
from lorawatch.report.history import Column, RunHistory, read_history
from lorawatch.report.panels import _LOSS, _PLANS, _REWARD, Line, Panel
from lorawatch.report.picture import Mark, nice, picture
from lorawatch.report.series import at, drawn, summary
from lorawatch.settings import Settings
from lorawatch.watch import judge
from tests.report.runs import rows, write

ANY = st.floats(allow_nan=True, allow_infinity=True)


def column(values: list[float], steps: list[int] | None = None) -> Column:
    made = Column()
    for step, value in zip(steps or range(1, len(values) + 1), values, strict=True):
        made.add(step, value)
    return made


class TestThinning:
    def test_a_million_points_become_two_thousand_and_keep_every_spike(self) -> None:
        draw = random.Random(3)  # noqa: S311
        values = [2.0 + draw.random() for _ in range(1_000_000)]
        spikes = [123_456, 500_001, 999_998]
        for place in spikes:
            values[place] = 50.0 + place / 1e6
        curve = drawn(column(values), 2_000, smooth=True)
        assert curve is not None
        points = [point for piece in curve.pieces for point in piece]
        assert len(points) <= 2_000
        assert {(place + 1, values[place]) for place in spikes} <= set(points)
        assert len(curve.middle) <= 400
        assert all(2.3 < value < 2.7 for _, value in curve.middle)
        assert (curve.low, curve.high) == (min(values), max(values))

    @settings(deadline=None, max_examples=50)
    @given(st.lists(ANY, min_size=1, max_size=300), st.integers(2, 50))
    def test_extremes_stay_points_are_few_and_none_is_made_up(self, values: list[float], points: int) -> None:
        curve = drawn(column(values), points, smooth=True)
        finite = [min(max(value, -1e300), 1e300) for value in values if math.isfinite(value)]
        if not finite:
            assert curve is None
            return
        assert curve is not None
        told = [point for piece in curve.pieces for point in piece]
        assert len(told) <= points + points % 2
        assert {min(finite), max(finite)} <= {value for _, value in told} or len(finite) > points
        assert all(min(max(values[step - 1], -1e300), 1e300) == value for step, value in told)
        assert [step for step, _ in told] == sorted({step for step, _ in told})

    def test_a_curve_is_parted_where_values_are_not_finite(self) -> None:
        curve = drawn(column([1.0, 2.0, math.nan, math.inf, 3.0, 4.0, math.nan]), 100, smooth=False)
        assert curve is not None
        assert curve.pieces == [[(1, 1.0), (2, 2.0)], [(5, 3.0), (6, 4.0)]]
        assert curve.holes == [(3, 4), (7, 7)]
        assert math.isnan(curve.last)

    def test_what_was_logged_twice_counts_as_it_was_logged_last(self) -> None:
        found = summary("loss", column([3.0, 2.0, 5.0, 1.0], [1, 2, 2, 1]))
        assert (found.points, found.first, found.last, found.high) == (2, 1.0, 5.0, 5.0)

    def test_a_summary_tells_a_last_value_that_is_not_finite_as_it_is(self) -> None:
        found = summary("loss", column([3.0, math.inf, 1.0, math.nan]))
        assert (found.points, found.not_finite, found.low, found.middle, found.high) == (4, 2, 1.0, 2.0, 3.0)
        assert math.isnan(found.last)

    def test_a_value_is_looked_up_at_or_before_a_step(self) -> None:
        assert at(column([1.0, math.nan, 3.0], [10, 20, 30]), [5, 10, 25, 99]) == [None, 1.0, 1.0, 3.0]


class TestReadingAgain:
    def test_memory_is_bounded_and_the_extremes_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(history_module, "BUDGET", 20_000)
        found = RunHistory()
        for step in range(1, 60_001):
            loss = 99.0 if step == 31_234 else math.nan if step == 777 else 1.0 + step % 7
            found.take(MetricRow(step, {"loss": loss, "grad_norm": 1.0}))
        assert sum(map(len, found.columns.values())) <= 20_000
        assert found.thinned > 0
        values = found.columns["loss"].values
        assert max(value for value in values if math.isfinite(value)) == 99.0
        assert any(math.isnan(value) for value in values)
        assert list(found.columns["loss"].steps) == sorted(found.columns["loss"].steps)

    def test_names_are_bounded(self) -> None:
        found = RunHistory()
        for index in range(1_000):
            found.take(MetricRow(index, {f"metric {index}": 1.0}))
        found.take(MetricRow(1_001, {"loss": 1.0, "metric 0": 2.0}))
        assert len(found.columns) == history_module.MAX_COLUMNS + 1
        assert len(found.columns["loss"]) == 1
        assert len(found.columns["metric 0"]) == 2
        assert found.dropped_values == 1_000 - history_module.MAX_COLUMNS

    def test_steps_beyond_what_fits_do_no_harm(self) -> None:
        found = RunHistory()
        for step in (1, 10**30, -(10**30)):
            found.take(MetricRow(step, {"loss": 1.0}))
        curve = drawn(found.columns["loss"], 100, smooth=False)
        assert curve is not None
        assert curve.count == 3

    def test_step_times_come_from_inside_where_they_are_told_there(self) -> None:
        found = RunHistory()
        for row in rows([2.0, 1.9, 1.8]):
            found.take(row)
        assert list(found.columns["step seconds"].values) == [1.5, 1.5]
        found.take(StepTiming(20, 2, [Step(None, 1.0, 0.1), Step(0.2, 1.0, 0.1, tokens=650)], 3.0))
        assert list(found.columns["step seconds"].values) == pytest.approx([1.3])
        assert list(found.columns["tokens per second"].values) == pytest.approx([500.0])
        assert found.inside

    def test_what_came_after_the_step_of_a_resume_is_forgotten(self) -> None:
        found = RunHistory()
        for row in rows([2.0, 1.9, 1.8]):
            found.take(row)
        found.take(LifecycleEvent("resumed", 5))
        assert list(found.columns["loss"].steps) == [5]
        assert found.step == 5

    def test_the_watch_stays_as_it_was(self, tmp_path: Path) -> None:
        [watch] = judge([write(tmp_path / "run", rows([2.0, 1.9, 1.8]))], RuleSet(Settings())).runs
        found = read_history(watch)
        assert (found.rows, found.step) == (3, 15)
        assert watch.engine.run.rows == 3
        assert not watch.poll()


def test_every_metric_that_a_picture_names_is_kept_whatever_else_is_logged() -> None:
    named = {name for plan in (_LOSS, _REWARD, *_PLANS) for name, _ in plan.lines}
    measured = {name for name in named if name.split(" ")[0] in {"memory", "generation", "adapter", "step", "tokens"}}
    assert {name for name in named - measured if "*" not in name and "?" not in name} == history_module.DRAWN


class TestPicture:
    @settings(deadline=None, max_examples=50)
    @given(st.lists(ANY, min_size=2, max_size=40), st.booleans())
    def test_any_values_make_a_picture_whose_numbers_are_finite(self, values: list[float], main: bool) -> None:
        panel = Panel("loss", "Loss", "", [Line("loss", "loss", column(values), smooth=True, dotted=True)], main=main)
        text = picture(panel, [Mark(1, "critical", "x", 0, 3, 10**18)], 1, len(values), points=50)
        assert bool(text) == any(map(math.isfinite, values))
        drawing = " ".join(part.split('"')[1] for part in text.split(" d=")[1:])
        assert "nan" not in drawing
        assert "inf" not in drawing

    @settings(deadline=None, max_examples=50)
    @given(st.floats(-1e300, 1e300), st.floats(-1e300, 1e300))
    def test_ticks_are_few_and_within(self, one: float, other: float) -> None:
        low, high = sorted((one, other))
        ticks = nice(low, high, 4)
        assert len(ticks) <= 6
        assert all(low <= tick <= high for tick in ticks)

    def test_badges_that_would_stand_on_one_another_get_rows_of_their_own(self) -> None:
        panel = Panel("loss", "Loss", "", [Line("loss", "loss", column([float(one) for one in range(100)]))])
        marks = [Mark(number, "info", "x", 50, 50 + number, 60) for number in range(1, 4)]
        text = picture(panel, marks, 1, 100, points=50)
        assert [text.count(f'cy="{10 + 19 * lane}"') for lane in range(4)] == [1, 1, 1, 0]

    def test_a_single_spike_does_not_press_the_curve_on_the_floor(self) -> None:
        values = [1.5 + (index % 7) / 100 for index in range(400)]
        values[200] = 40.0
        panel = Panel("x", "X", "", [Line("x", "x", column(values))])
        assert "logarithmic" in picture(panel, [], 1, 400, points=50)

    def test_a_blow_up_gets_a_logarithmic_axis_and_a_learning_rate_never(self) -> None:
        values = [1e-3, 1e-2, 1.0, 1e6]
        for linear in (False, True):
            panel = Panel("x", "X", "", [Line("x", "x", column(values))], linear=linear)
            assert ("logarithmic" in picture(panel, [], 1, 4, points=50)) is not linear
