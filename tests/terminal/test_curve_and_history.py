"""The curve, and what the live view remembers to draw it."""

from __future__ import annotations

import math

from lorawatch.run import Run, Series
from lorawatch.terminal_curve import EVAL_MARK, plot
from lorawatch.terminal_history import POINTS, Curve, Pace
from tests.terminal.synthetic import SyntheticRun


def drawn(values: list[float], marks: list[tuple[int, float]] | None = None, width: int = 20, height: int = 4) -> str:
    steps = list(range(1, len(values) + 1))
    picture = plot(steps, values, marks or [], width=width, height=height, first=1, last=max(len(values), 1))
    assert picture is not None
    assert [len(row) for row in picture.rows] == [width] * height
    return "\n".join(picture.rows)


class TestPlot:
    def test_a_falling_line_goes_from_the_upper_left_to_the_lower_right(self) -> None:
        rows = drawn([10 - 0.1 * index for index in range(100)]).splitlines()
        assert rows[0][0] != " "
        assert rows[-1][-1] != " "
        assert rows[0][-1] == rows[-1][0] == " "

    def test_a_line_between_two_far_points_has_no_gap(self) -> None:
        assert all(any(row[column] != " " for row in drawn([0.0, 9.0]).splitlines()) for column in range(20))

    def test_evaluations_differ_by_shape(self) -> None:
        assert drawn([3.0, 2.0, 1.0], [(2, 2.0), (3, 1.5)]).count(EVAL_MARK) == 2

    def test_evaluations_alone_are_drawn(self) -> None:
        assert plot([], [], [(5, 1.0)], width=10, height=3, first=5, last=5) is not None

    def test_a_single_or_flat_curve_runs_through_the_middle(self) -> None:
        for values in ([1.0], [0.0, 0.0], [2.5] * 50):
            rows = drawn(values, height=3).splitlines()
            assert rows[0].strip() == rows[2].strip() == ""
            assert rows[1].strip() != ""

    def test_a_blow_up_is_drawn_on_a_logarithmic_scale(self) -> None:
        picture = plot([1, 2, 3], [1.0, 2.0, 1e6], [], width=10, height=4, first=1, last=3)
        assert picture is not None
        assert picture.logarithmic
        assert (round(picture.low), round(picture.high)) == (1, 1_000_000)

    def test_negative_losses_are_drawn_on_a_linear_scale(self) -> None:
        picture = plot([1, 2], [-1e6, 1e6], [], width=10, height=4, first=1, last=2)
        assert picture is not None
        assert not picture.logarithmic

    def test_steps_that_run_backwards_are_drawn_within_the_frame(self) -> None:
        assert plot([5, 3, 900, -4], [1.0, 2.0, 3.0, 4.0], [], width=10, height=4, first=1, last=10) is not None

    def test_extreme_values_are_drawn(self) -> None:
        for values in ([1e308, -1e308 / 2], [5e-324, 1.0], [1e300, 1e300]):
            assert plot([1, 2], values, [], width=10, height=4, first=1, last=2) is not None

    def test_nothing_gives_nothing(self) -> None:
        assert plot([], [], [], width=10, height=4, first=1, last=1) is None


class TestCurve:
    def test_it_spans_the_whole_run_in_bounded_memory(self) -> None:
        series, curve = Series(), Curve()
        for step in range(1, 20_001):
            series.add(float(step), step)
            if step % 50 == 0:
                curve.follow(series)
        assert len(curve.steps) <= POINTS
        assert curve.steps[0] < 200
        assert curve.steps[-1] > 19_800
        assert curve.steps == sorted(curve.steps)
        assert all(abs(value - step) < 200 for step, value in zip(curve.steps, curve.values, strict=True))

    def test_a_short_run_is_kept_point_by_point(self) -> None:
        series, curve = Series(), Curve()
        for step in range(1, 100):
            series.add(1.0 / step, step)
            curve.follow(series)
        assert curve.steps == list(range(1, 100))

    def test_a_run_that_is_read_again_keeps_the_middle_that_its_series_has_forgotten(self) -> None:
        first, again, curve = Series(), Series(), Curve()
        for step in range(1, 1001):
            first.add(float(step), step)
            curve.follow(first)
            again.add(float(step), step)
        before = len(curve.steps)
        curve.follow(again)
        assert len(curve.steps) > before / 2
        gaps = [after - step for step, after in zip(curve.steps, curve.steps[1:], strict=False)]
        assert max(gaps) < 20

    def test_another_run_starts_a_new_curve(self) -> None:
        first, other, curve = Series(), Series(), Curve()
        for step in range(500, 600):
            first.add(1.0, step)
        curve.follow(first)
        other.add(2.0, 1)
        curve.follow(other)
        assert (curve.steps, curve.values) == ([1], [2.0])

    def test_head_and_end_that_overlap_are_not_counted_twice(self) -> None:
        series, curve = Series(), Curve()
        for step in range(1, 301):
            series.add(1.0, step)
        curve.follow(series)
        assert curve.steps == list(range(1, 301))


class TestPace:
    def test_it_comes_from_the_records_times(self) -> None:
        run, pace = SyntheticRun(), Pace()
        for step in range(10, 200, 10):
            run.row(step, 1000 + 2.5 * step, loss=1.0)
            pace.follow(run.engine.run)
        assert pace.seconds_per_step is not None
        assert math.isclose(pace.seconds_per_step, 2.5)

    def test_a_finished_log_read_at_once_has_a_pace_too(self) -> None:
        run, pace = SyntheticRun(), Pace()
        run.train(range(1, 100))
        pace.follow(run.engine.run)
        assert pace.seconds_per_step is not None
        assert math.isclose(pace.seconds_per_step, 1.1)

    def test_after_a_resume_it_starts_anew(self) -> None:
        run, pace = SyntheticRun(), Pace()
        run.row(100, 1000.0, loss=1.0)
        pace.follow(run.engine.run)
        run.row(50, 9000.0, loss=1.0)
        pace.follow(run.engine.run)
        run.row(60, 9010.0, loss=1.0)
        pace.follow(run.engine.run)
        assert pace.seconds_per_step == 1.0

    def test_without_times_it_is_not_known(self) -> None:
        run, pace = Run("x"), Pace()
        pace.follow(run)
        assert pace.seconds_per_step is None
