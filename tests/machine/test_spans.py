"""How long something has held, for what share of the time, and its course: the same however often one looks."""

from __future__ import annotations

import math

import pytest

from lorawatch.fit import fit_curve
from lorawatch.spans import Lasting, Share, Thinned


@pytest.mark.parametrize("interval", [1.0, 10.0, 15.0, 30.0])
def test_a_minute_is_a_minute_however_often_one_looks(interval: float) -> None:
    lasting = Lasting()
    held = [lasting.held(True, index * interval, 60.0) for index in range(int(120 / interval))]
    assert held.index(True) * interval == 60.0


def test_a_break_or_a_clock_that_goes_back_begins_anew() -> None:
    lasting = Lasting()
    assert not lasting.held(True, 100.0, 60.0)
    assert not lasting.held(False, 130.0, 60.0)
    assert not lasting.held(True, 170.0, 60.0)
    assert not lasting.held(True, 10.0, 60.0)
    assert lasting.held(True, 70.0, 60.0)


@pytest.mark.parametrize("interval", [1.0, 7.0, 10.0, 15.0, 25.0, 30.0])
def test_a_window_of_thirty_seconds_is_covered_at_any_interval(interval: float) -> None:
    share = Share()
    for index in range(1, 100):
        share.add(index * interval, interval, 10, float(index >= 50), window=30.0, least=3)
    assert share.covered >= 30.0
    assert share.value == 1.0


def test_few_looks_are_kept_for_longer_than_the_window() -> None:
    share = Share()
    for index in range(1, 10):
        share.add(index * 30.0, 30.0, 1, 1.0, window=30.0, least=3)
    assert share.looks == 3


def test_readings_without_a_duration_do_not_count() -> None:
    share = Share()
    share.add(1.0, 0.0, 1, 1.0, window=30.0, least=3)
    share.add(1.0, math.nan, 1, 1.0, window=30.0, least=3)
    assert (share.covered, share.looks, share.value) == (0.0, 0, 0.0)


def test_the_course_of_a_long_run_stays_bounded_and_evenly_spread() -> None:
    course = Thinned()
    for step in range(0, 100_000, 10):
        course.add(step, float(step))
    assert 32 <= len(course.steps) <= Thinned.MOST
    assert course.column(0) == [float(step) for step in course.steps]
    gaps = [after - before for before, after in zip(course.steps, course.steps[1:], strict=False)]
    assert max(gaps) <= 2 * min(gaps)


def test_a_parabola_is_found_where_there_is_one_and_a_line_else() -> None:
    xs = [float(x) for x in range(1, 9)]
    line = fit_curve(xs, [3.0 + 2.0 * x for x in xs])
    assert line is not None
    assert (line.bend, round(line.at(20.0), 6)) == (0.0, 43.0)
    curve = fit_curve(xs, [3.0 + 2.0 * x + 0.5 * x * x for x in xs])
    assert curve is not None
    assert curve.at(20.0) == pytest.approx(243.0)
    assert curve.reaches(243.0, 8.0, 40.0) == pytest.approx(20.0)
    assert fit_curve([1.0, 1.0, 1.0], [1.0, 2.0, 3.0]) is None
    assert fit_curve(xs, [5.0] * len(xs)) is None
