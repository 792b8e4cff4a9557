"""What the live view remembers of a run, in bounded memory: the curve of a metric, and the pace of the steps."""

from __future__ import annotations

from collections import deque
from itertools import islice

from lorawatch.run import Run, Series

POINTS = 512
"""Points kept of a curve; beyond them, neighbours are merged."""
_PACE_ROWS = 32


class Curve:
    """The points of one series from its start to its end, decimated: never more than :data:`POINTS`.

    A series keeps its first and its last points only; the curve takes what is new at each :meth:`follow` and merges
    neighbours (by their mean) when it grows full, so that it spans the whole run.
    """

    __slots__ = ("_bucket", "_held", "_seen", "_series", "_sum", "steps", "values")

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.values: list[float] = []
        self._series: Series | None = None
        self._seen = 0
        self._bucket = 1
        self._held = 0
        self._sum = 0.0

    def follow(self, series: Series) -> None:
        """Take in what ``series`` got since the last call. O(new points)."""
        if series is not self._series or series.count < self._seen:
            self._restart(series)
            return
        fresh = series.count - self._seen
        if fresh > 0:
            start = max(len(series.recent) - fresh, 0)
            for step, value in zip(islice(series.recent_steps, start, None), islice(series.recent, start, None)):  # noqa: B905
                self._add(step, value)
            self._seen = series.count

    def _restart(self, series: Series) -> None:
        """Take in a series from what it still holds; keep the middle, which it has forgotten, if it is the same run's.

        A run that is read again gets a new engine, whose series hold the same head and end.
        """
        known = list(zip(self.steps, self.values, strict=True))
        recent = list(zip(series.recent_steps, series.recent, strict=True))
        points = list(zip(series.head_steps, series.head, strict=True))
        same = bool(known and points) and known[0][0] >= points[0][0]
        if series.count > len(points) + len(recent) and same:
            head_end, recent_start = points[-1][0], recent[0][0]
            points += [point for point in known if head_end < point[0] < recent_start]
        overlap = max(len(series.head) + len(recent) - series.count, 0)
        points += recent[overlap:]
        self.__init__()  # type: ignore[misc]
        self._series, self._seen = series, series.count
        for step, value in points:
            self._add(step, value)

    def _add(self, step: int, value: float) -> None:
        self._held += 1
        self._sum += value
        if self._held < self._bucket:
            return
        self.steps.append(step)
        self.values.append(self._sum / self._held)
        self._held, self._sum = 0, 0.0
        if len(self.steps) >= POINTS:
            self.steps = self.steps[1::2]
            self.values = [(left + right) / 2 for left, right in zip(self.values[::2], self.values[1::2], strict=True)]
            self._bucket *= 2


class Pace:
    """Seconds a step, from the times that the records carry; never from the clock on the wall."""

    __slots__ = ("_marks", "_run")

    def __init__(self) -> None:
        self._run: Run | None = None
        self._marks: deque[tuple[int, float]] = deque(maxlen=_PACE_ROWS)

    def follow(self, run: Run) -> None:
        """Take in where the run is now."""
        if run is not self._run:
            self._run = run
            self._marks.clear()
            if run.first_step is not None and run.first_time is not None:
                self._marks.append((run.first_step, run.first_time))
        if run.time is None or not run.rows:
            return
        if self._marks and run.step < self._marks[-1][0]:  # resumed from an earlier step
            self._marks.clear()
        if not self._marks or run.step > self._marks[-1][0]:
            self._marks.append((run.step, run.time))

    @property
    def seconds_per_step(self) -> float | None:
        """Mean over the last rows that were seen; None while the records do not tell."""
        if len(self._marks) < 2:
            return None
        (first_step, first_time), (last_step, last_time) = self._marks[0], self._marks[-1]
        spent = last_time - first_time
        return spent / (last_step - first_step) if spent > 0 and last_step > first_step else None


class RunHistory:
    """All that is remembered of one run for its view."""

    __slots__ = ("eval_loss", "loss", "pace")

    def __init__(self) -> None:
        self.loss = Curve()
        self.eval_loss = Curve()
        self.pace = Pace()

    def follow(self, run: Run) -> None:
        """Take in what is new."""
        for name, curve in (("loss", self.loss), ("eval_loss", self.eval_loss)):
            series = run.series.get(name)
            if series is not None:
                curve.follow(series)
        self.pace.follow(run)
