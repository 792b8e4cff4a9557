"""A line, or a parabola where it clearly fits better, through a few points."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import StatisticsError, linear_regression


@dataclass(frozen=True, slots=True)
class Curve:
    """``base + slope x + bend x²``.

    Attributes:
        bend: 0 for a line.
        r2: Share of the variance that it explains.
        points: Points that it was fitted to.
    """

    base: float
    slope: float
    bend: float
    r2: float
    points: int

    def at(self, x: float) -> float:
        """Its height at ``x``."""
        return self.base + self.slope * x + self.bend * x * x

    def reaches(self, level: float, low: float, high: float) -> float:
        """Where between ``low`` and ``high`` it reaches ``level``; it must be above that at ``high``."""
        for _ in range(40):
            middle = (low + high) / 2
            low, high = (low, middle) if self.at(middle) > level else (middle, high)
        return high


def fit_curve(xs: Sequence[float], ys: Sequence[float]) -> Curve | None:
    """The least-squares line; from 6 points on the parabola, where it bends up and leaves a quarter of the error.

    None where the points do not differ. The parabola is found through what the line leaves over, of ``y`` and of ``x²``
    alike (Frisch–Waugh–Lovell theorem): the standard library has only the line.
    """
    try:
        line = linear_regression(xs, ys)
    except StatisticsError:
        return None
    mean = sum(ys) / len(ys)
    variance = sum((y - mean) * (y - mean) for y in ys)
    if not variance > 0.0:
        return None
    rest = [y - line.intercept - line.slope * x for x, y in zip(xs, ys, strict=True)]
    error = sum(one * one for one in rest)
    straight = Curve(line.intercept, line.slope, 0.0, 1.0 - error / variance, len(xs))
    if len(xs) < 6:
        return straight
    across = linear_regression(xs, [x * x for x in xs])
    bends = [x * x - across.intercept - across.slope * x for x in xs]
    power = sum(one * one for one in bends)
    bend = sum(one * left for one, left in zip(bends, rest, strict=True)) / power if power > 0.0 else 0.0
    left = error - bend * bend * power
    if bend <= 0.0 or left > 0.25 * error:
        return straight
    return Curve(
        line.intercept - bend * across.intercept, line.slope - bend * across.slope, bend, 1.0 - left / variance, len(xs)
    )
