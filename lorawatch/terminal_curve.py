"""A small curve in braille characters: each cell is 2 by 4 dots."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

EVAL_MARK = "●"
"""Stands where an evaluation was, so that it differs from the training curve by shape too."""
# Bits of a braille cell by row, left and right column (Unicode 16.0, Braille Patterns).
_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))
_WIDE_RANGE = 50.0


@dataclass(frozen=True, slots=True)
class Plot:
    """A drawn curve.

    Attributes:
        rows: Lines of equal width, from top to bottom.
        low: Value at the bottom edge.
        high: Value at the top edge.
        logarithmic: Whether the vertical axis is.
    """

    rows: list[str]
    low: float
    high: float
    logarithmic: bool


def plot(
    steps: Sequence[int],
    values: Sequence[float],
    marks: Sequence[tuple[int, float]],
    *,
    width: int,
    height: int,
    first: int,
    last: int,
) -> Plot | None:
    """Draw ``values`` over ``steps`` as a line, and ``marks`` as single points upon it; None when there is nothing.

    Args:
        steps: Steps of the values, rising.
        values: Finite values.
        marks: Step and value of each evaluation.
        width: Cells.
        height: Cells.
        first: Step at the left edge.
        last: Step at the right edge.
    """
    shown = [*values, *(value for _, value in marks)]
    if not shown or width < 2 or height < 1:
        return None
    low, high = min(shown), max(shown)
    # A loss that blew up would press all that came before it on the floor.
    logarithmic = low > 0 and high / low > _WIDE_RANGE
    bottom, top = (math.log(low), math.log(high)) if logarithmic else (low, high)
    if top - bottom < 1e-3 * max(abs(top), abs(bottom), 1e-9):  # a flat line runs through the middle
        middle, half = (top + bottom) / 2, max(abs(top), abs(bottom), 1e-9) * 1e-2
        bottom, top = middle - half, middle + half
    columns, lines = width * 2, height * 4
    across = (columns - 1) / max(last - first, 1)
    up = (lines - 1) / (top - bottom)

    def place(step: int, value: float) -> tuple[int, int]:
        level = math.log(value) if logarithmic else value
        column = min(max(round((step - first) * across), 0), columns - 1)
        return column, lines - 1 - round((level - bottom) * up)

    cells = [bytearray(width) for _ in range(height)]
    for column, (upper, lower) in _spans(steps, values, place).items():
        side, cell = column & 1, column >> 1
        for line in range(upper, lower + 1):
            cells[line >> 2][cell] |= _DOTS[line & 3][side]
    rows = [[chr(0x2800 + bits) if bits else " " for bits in row] for row in cells]
    for step, value in marks:
        column, line = place(step, value)
        rows[line >> 2][column >> 1] = EVAL_MARK
    edges = (math.exp(bottom), math.exp(top)) if logarithmic else (bottom, top)
    return Plot(["".join(row) for row in rows], edges[0], edges[1], logarithmic)


def _spans(
    steps: Sequence[int], values: Sequence[float], place: Callable[[int, float], tuple[int, int]]
) -> dict[int, tuple[int, int]]:
    """For each column of dots that the line crosses, its highest and lowest dot there."""
    spans: dict[int, tuple[int, int]] = {}

    def cover(column: int, one: int, other: int) -> None:
        upper, lower = min(one, other), max(one, other)
        known = spans.get(column)
        spans[column] = (upper, lower) if known is None else (min(known[0], upper), max(known[1], lower))

    before: tuple[int, int] | None = None
    for step, value in zip(steps, values, strict=True):
        column, line = place(step, value)
        if before is None or column <= before[0]:
            cover(column, line, before[1] if before is not None and column == before[0] else line)
        else:
            left, start = before
            slope = (line - start) / (column - left)
            at = start
            for between in range(left + 1, column + 1):
                following = round(start + slope * (between - left))
                # From just past the neighbour's dot, so that the line is thin and has no gaps.
                joint = at + (1 if following > at else -1 if following < at else 0)
                cover(between, joint, following)
                at = following
        before = (column, line)
    return spans
