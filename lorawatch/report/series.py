"""The series of a run as pandas sees them: sorted, thinned, smoothed, summed up."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from lorawatch.report.history import Column

SMOOTHED_FROM = 30
"""Points from which a curve gets a rolling median: before, one reads the points themselves."""
_WIDEST = 1_001
_CLIP = 1e300
"""Beyond it a difference of two values is infinite."""

Points = list[tuple[int, float]]


@dataclass(frozen=True, slots=True)
class Summary:
    """One series in numbers, of its finite values.

    Attributes:
        name: The metric.
        points: How many values were logged.
        not_finite: How many of them are NaN or infinite.
        first: The first finite value; NaN where there is none, as in the others.
        last: The last value, finite or not.
        low: The lowest.
        middle: The median.
        high: The highest.
    """

    name: str
    points: int
    not_finite: int
    first: float
    last: float
    low: float
    middle: float
    high: float


@dataclass(frozen=True, slots=True)
class Drawn:
    """What is drawn of one series.

    Attributes:
        pieces: Points of the curve, parted where a value was not finite.
        middle: The rolling median; empty where there are too few points for one.
        window: Points that the median is taken over.
        holes: First and last step of each stretch of values that are not finite, at most a hundred.
        low: The lowest value.
        high: The highest.
        usual: The level that one value in a hundred exceeds.
        last: The last value, which may be NaN or infinite.
        count: Values before thinning.
    """

    pieces: list[Points]
    middle: Points
    window: int
    holes: list[tuple[int, int]]
    low: float
    high: float
    usual: float
    last: float
    count: int


def series_of(column: Column) -> pd.Series[float]:
    """A column by step, ascending; of what was logged twice at one step, the later value."""
    values = pd.Series(np.array(column.values, np.float64), index=np.array(column.steps, np.int64))
    if not values.index.is_monotonic_increasing:
        values = values.sort_index(kind="stable")
    return values if values.index.is_unique else values[~values.index.duplicated(keep="last")]


def summary(name: str, column: Column) -> Summary:
    """Sum a column up; what stands twice at one step counts once."""
    values = series_of(column)
    finite = values[np.isfinite(values)]
    if finite.empty:
        nan = float("nan")
        return Summary(name, len(values), len(values), nan, nan, nan, nan, nan)
    return Summary(
        name, len(values), len(values) - len(finite), float(finite.iloc[0]), float(values.iloc[-1]),
        float(finite.min()), float(finite.median()), float(finite.max()),
    )  # fmt: skip


def drawn(column: Column, points: int, *, smooth: bool) -> Drawn | None:
    """What to draw of a column in at most ``points`` points; None where it has no finite value.

    Thinning keeps the lowest and the highest value of each of ``points / 2`` stretches of equal length, so that no
    spike is lost (the M4 idea of Jugel and others, VLDB 2014, without its first and last).
    """
    values = series_of(column)
    finite = values[np.isfinite(values)].clip(-_CLIP, _CLIP)
    if finite.empty:
        return None
    odd = values.index[~np.isfinite(values)].to_numpy()
    window = _window(len(finite))
    middle: Points = []
    if smooth and len(finite) >= SMOOTHED_FROM:
        rolled = finite.rolling(window, center=True, min_periods=window // 2 + 1).median().dropna()
        middle = _points(_thinned(rolled, min(points, 400)))
    return Drawn(
        _parted(_points(_thinned(finite, points)), odd), middle, window, _stretches(values), float(finite.min()),
        float(finite.max()), float(finite.quantile(0.99)), float(values.iloc[-1]), len(values),
    )  # fmt: skip


def at(column: Column, steps: list[int]) -> list[float | None]:
    """The last finite value at or before each of ``steps``; None before the first."""
    values = series_of(column)
    finite = values[np.isfinite(values)]
    places = np.searchsorted(finite.index.to_numpy(), np.array(steps, dtype=np.int64), side="right") - 1
    return [None if place < 0 else float(finite.iloc[place]) for place in places]


def _window(count: int) -> int:
    """An odd number of points: a fortieth of the run."""
    return min(max(count // 40, 5), _WIDEST) | 1


def _thinned(values: pd.Series[float], points: int) -> pd.Series[float]:
    if len(values) <= points:
        return values
    steps = values.index.to_numpy().astype(np.float64)
    stretches = max(points // 2, 1)
    span = max(steps[-1] - steps[0], 1.0)
    stretch = np.minimum((steps - steps[0]) / span * stretches, stretches - 1).astype(np.int64)
    grouped: Any = values.groupby(stretch)
    kept = np.union1d(grouped.idxmin().to_numpy(), grouped.idxmax().to_numpy())
    return values.loc[kept]


def _points(values: pd.Series[float]) -> Points:
    return list(zip(values.index.tolist(), values.tolist(), strict=True))


def _parted(points: Points, odd: np.ndarray[Any, Any]) -> list[Points]:
    """The points, parted where a value that is not finite lies between two of them."""
    if not len(odd):
        return [points]
    places = np.searchsorted(odd, np.array([step for step, _ in points]))
    pieces: list[Points] = [[points[0]]]
    for before, after, point in zip(places[:-1], places[1:], points[1:], strict=True):
        if before == after:
            pieces[-1].append(point)
        else:
            pieces.append([point])
    return pieces


def _stretches(values: pd.Series[float], most: int = 100) -> list[tuple[int, int]]:
    odd = ~np.isfinite(values.to_numpy())
    if not odd.any():
        return []
    edges = np.flatnonzero(np.diff(np.concatenate(([False], odd, [False])).astype(np.int8)))
    steps = values.index.to_numpy()
    return [(int(steps[first]), int(steps[last - 1])) for first, last in zip(edges[::2], edges[1::2], strict=True)][
        :most
    ]
