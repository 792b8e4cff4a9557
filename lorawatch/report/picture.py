"""A picture of some series as SVG that stretches to the width of the page while its text keeps its size.

Curves are drawn in a box of their own that is scaled without keeping its shape; grid, text and marks are placed by per
cent around it. Nothing in it needs a script, and no attribute is a style: the page's policy forbids both.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorawatch.render import number
from lorawatch.report.panels import Line, Panel
from lorawatch.report.series import Drawn, Points, at, drawn
from lorawatch.report.words import escaped

WIDE = 1000
"""Units across the box of the curves."""
_LANE = 19
_LANES = 4
_MARKS = 40
_WIDE_RANGE = 50.0
_SPIKED = 5.0
"""Times the usual level from which a single value would press the rest on the floor."""
_STRIPS = 64
"""Columns that tell their values when one points at them."""
_NEAR = 4.6
"""Per cent of the width that two badges are apart at least, to stand in one lane on a phone."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One incident on a picture.

    Attributes:
        number: Its number, which its badge shows and its link leads to.
        severity: In lower case.
        title: What it is.
        since: Step at which it began.
        step: Step at which it was found.
        until: Step at which it resolved, or the last.
        symptom: Whether it is a symptom, folded under the finding that has the number.
    """

    number: int
    severity: str
    title: str
    since: int
    step: int
    until: int
    symptom: bool = False


@dataclass(frozen=True, slots=True)
class _Scale:
    """The vertical axis: from a value to its height in the box."""

    bottom: float
    top: float
    height: int
    logarithmic: bool

    def y(self, value: float) -> float:
        level = math.log10(max(value, 1e-300)) if self.logarithmic else value
        share = (level / 2 - self.bottom / 2) / (self.top / 2 - self.bottom / 2)  # halves: their difference is finite
        return round(min(max(self.height * (1 - share), -5.0), self.height + 5.0), 1)


def picture(panel: Panel, marks: Sequence[Mark], first: int, last: int, *, points: int) -> str:
    """A panel as a figure; "" where no series has a finite value.

    Args:
        panel: What to draw.
        marks: The incidents to mark.
        first: Step at the left edge.
        last: Step at the right edge.
        points: Points a curve has at most.
    """
    found = [(line, drawn(line.column, points, smooth=line.smooth)) for line in panel.lines]
    lines = [(line, curve) for line, curve in found if curve is not None]
    if not lines:
        return ""
    last = max(last, first + 1)
    height = 210 if panel.main else 130
    scale = _scale([curve for _, curve in lines], [line.limit for line, _ in lines if line.limit is not None],
                   height, linear=panel.linear)  # fmt: skip

    def x(step: int) -> float:
        return min(max((step - first) / (last - first), 0.0), 1.0)

    lanes = _lanes([x(one.step) for one in marks])
    head = _LANE * (max(lanes, default=-1) + 1) + 8
    grid, labels = _grid(scale, head, panel.unit)
    drawing = [
        grid,
        _steps(first, last, head + height),
        *(_band(one, x, head, height) for one in marks),
        (
            f'<svg y="{head}" width="100%" height="{height}" viewBox="0 0 {WIDE} {height}" preserveAspectRatio="none"'
            ' overflow="visible" aria-hidden="true">'
        ),
        *(_curve(line, curve, index, scale, x) for index, (line, curve) in enumerate(lines)),
        "</svg>",
        labels,
        *(_badge(one, lane, x, head, height) for one, lane in zip(marks, lanes, strict=True)),
        _strips([line for line, _ in lines], first, last, head, height),
    ]
    return (
        f'<figure class="{"panel main" if panel.main else "panel"}" id="c-{panel.key}">'
        f"<figcaption><h3>{escaped(panel.title)}</h3>"
        f"{_legend(panel, lines, logarithmic=scale.logarithmic)}</figcaption>"
        f'<svg class="plot" width="100%" height="{head + height + 22}" role="group" '
        f'aria-label="{_words(panel, lines, marks, first, last)}">{"".join(drawing)}</svg></figure>'
    )


def _scale(curves: Sequence[Drawn], limits: Sequence[float], height: int, *, linear: bool) -> _Scale:
    low, high = min(one.low for one in curves), max([one.high for one in curves] + list(limits))
    # A value that blew up would press all that came before it on the floor.
    spiked = high > _SPIKED * max(one.usual for one in curves) and not limits
    if not linear and low > 0 and (high / low > _WIDE_RANGE or spiked) and high / low < math.inf:
        bottom, top = math.log10(low), math.log10(high)
        return _Scale(bottom - 0.04 * (top - bottom), top + 0.04 * (top - bottom), height, logarithmic=True)
    if low >= 0 and low < 0.35 * high:
        low = 0.0
    if high - low <= 1e-3 * max(abs(high), abs(low), 1e-12):  # a flat line runs through the middle
        half = max(abs(high), abs(low), 1e-12) * 0.1
        low, high = low - half, high + half
    room = (high / 2 - low / 2) * 0.1
    return _Scale(low if low == 0.0 else low - room, high + room, height, logarithmic=False)


def _ticks(scale: _Scale) -> list[float]:
    if scale.logarithmic:
        powers = range(math.ceil(scale.bottom), math.floor(scale.top) + 1)
        every = -(-len(powers) // 4)
        found = [10.0**power for power in powers if abs(power) <= 300][::every]
        if len(found) >= 2:
            return found
        fine = [step * 10.0**power for power in range(math.floor(scale.bottom), math.ceil(scale.top) + 1)
                for step in (1, 2, 5)]  # fmt: skip
        return [one for one in fine if scale.bottom <= math.log10(one) <= scale.top]
    return nice(scale.bottom, scale.top, 4 if scale.height > 150 else 3)


def nice(low: float, high: float, count: int) -> list[float]:
    """Round numbers between ``low`` and ``high``, at most ``count`` + 1 of them."""
    span = high / count - low / count
    if not 0 < span < math.inf:
        return [low]
    power = 10.0 ** math.floor(math.log10(span))
    width = next((step * power for step in (1, 2, 2.5, 5, 10) if step * power >= span), 10 * power)
    start = math.ceil(low / width)
    return [index * width for index in range(start, start + count + 2) if low <= index * width <= high]


def _grid(scale: _Scale, head: int, unit: str) -> tuple[str, str]:
    """The lines of the grid, and what stands on them: the curves run between the two."""
    lines, labels = ['<g class="grid" aria-hidden="true">'], ['<g class="grid" aria-hidden="true">']
    ticks = [one for one in _ticks(scale) if scale.y(one) >= 0]
    for index, tick in enumerate(ticks):
        y = scale.y(tick) + head
        words = number(float(f"{tick:.6g}"))
        if index == len(ticks) - 1 and unit:
            words += f" {unit}"
        lines.append(f'<line x1="0" x2="100%" y1="{y:g}" y2="{y:g}"/>')
        labels.append(f'<text x="0" y="{y - 4:g}">{escaped(words)}</text>')
    return "".join(lines) + "</g>", "".join(labels) + "</g>"


def _steps(first: int, last: int, y: int) -> str:
    ticks = [step for step in nice(first, last, 5) if step == int(step)]
    out = [f'<g class="axis" aria-hidden="true"><line x1="0" x2="100%" y1="{y}" y2="{y}"/>']
    for step in ticks:
        place = (step - first) / (last - first)
        if 0.05 < place < 0.95:
            out.append(f'<text x="{place:.2%}" y="{y + 16}" text-anchor="middle">{number(step)}</text>')
    out.append(f'<text x="0" y="{y + 16}">{"step " if first < 10_000 else ""}{number(first)}</text>')
    out.append(f'<text x="100%" y="{y + 16}" text-anchor="end">{number(last)}</text></g>')
    return "".join(out)


def _curve(line: Line, curve: Drawn, index: int, scale: _Scale, x: Callable[[int], float]) -> str:
    def path(points: Points) -> str:
        out, before = [], ""
        for step, value in points:
            here = f"{x(step) * WIDE:.1f} {scale.y(value):g}"
            if here != before:
                out.append(here)
            before = here
        return f"M{out[0]}h.01" if len(out) == 1 else "M" + "L".join(out)

    out = [f'<g class="l{index}">']
    if line.limit is not None:
        out.append(f'<path class="limit" d="M0 {scale.y(line.limit):g}H{WIDE}"/>')
    out.append(f'<path class="{"raw" if curve.middle else "line"}" d="{"".join(path(one) for one in curve.pieces)}"/>')
    if curve.middle:
        out.append(f'<path class="line" d="{path(curve.middle)}"/>')
    elif line.dotted:
        dots = "".join(
            f"M{x(step) * WIDE:.1f} {scale.y(value):g}h.01" for piece in curve.pieces for step, value in piece
        )
        out.append(f'<path class="dots" d="{dots}"/>')
    for start, end in curve.holes:
        left = x(start) * WIDE
        width = max(x(end) * WIDE - left, 2.0)
        out.append(f'<rect class="hole" x="{left:.1f}" y="{scale.height - 5}" width="{width:.1f}" height="5"/>')
    return "".join(out) + "</g>"


def _band(one: Mark, x: Callable[[int], float], head: int, height: int) -> str:
    left, right = x(one.since), x(one.until)
    return (
        f'<rect class="band {one.severity}" x="{left:.2%}" y="{head}" width="{max(right - left, 0.0):.2%}" '
        f'height="{height}" aria-hidden="true"/>'
    )


def _badge(one: Mark, lane: int, x: Callable[[int], float], head: int, height: int) -> str:
    place, y = f"{x(one.step):.2%}", lane * _LANE + 10
    words = escaped(f"{one.number}: {one.title}, {one.severity}, step {one.step}")
    return (
        f'<a class="mark {one.severity}{" symptom" if one.symptom else ""}" href="#f{one.number}" '
        f'aria-label="Finding {words}"><title>{words}</title>'
        f'<line x1="{place}" x2="{place}" y1="{y}" y2="{head + height}"/><circle cx="{place}" cy="{y}" r="9"/>'
        f'<text x="{place}" y="{y + 4}" text-anchor="middle">{one.number}</text></a>'
    )


def _strips(lines: Sequence[Line], first: int, last: int, head: int, height: int) -> str:
    """Columns that cannot be seen; the browser shows what they say where one points at them."""
    width = (last - first) / _STRIPS
    steps = sorted({round(first + width * (index + 0.5)) for index in range(_STRIPS)})
    columns = [(line, at(line.column, steps)) for line in lines]
    out = ['<g class="strips" aria-hidden="true">']
    for index, step in enumerate(steps):
        left = (step - first) / (last - first) - 0.5 / len(steps)
        told = [f"{line.label} {number(values[index] or 0.0)}" for line, values in columns if values[index] is not None]
        out.append(
            f'<rect x="{max(left, 0.0):.2%}" y="{head}" width="{1 / len(steps):.2%}" height="{height}"><title>'
            f"{escaped('; '.join([f'step {step}', *told]), 600)}</title></rect>"
        )
    return "".join(out) + "</g>"


def _lanes(places: Sequence[float]) -> list[int]:
    """A row for each badge, so that no two stand on one another, as far as the rows go."""
    ends = [-100.0] * _LANES
    found: list[int] = [0] * len(places)
    for index in sorted(range(len(places)), key=lambda index: places[index]):
        here = places[index] * 100
        lane = next((lane for lane, end in enumerate(ends) if here - end >= _NEAR), len(ends) - 1)
        found[index] = lane
        ends[lane] = here
    return found


def _legend(panel: Panel, lines: Sequence[tuple[Line, Drawn]], *, logarithmic: bool) -> str:
    out = ['<p class="legend">']
    for index, (line, curve) in enumerate(lines):
        unit = f" {panel.unit}" if panel.unit else ""
        words = f"{escaped(line.label, 60)} <b>{escaped(number(curve.last) + unit)}</b>"
        if curve.middle:
            words += f", median of {curve.window}"
        if line.limit is not None:
            words += f", of {number(line.limit)}"
        out.append(
            f'<span class="key l{index}"><svg width="18" height="8" aria-hidden="true"><path class="line" d="M0 4h18"/>'
            f"</svg> {words}</span> "
        )
    if panel.left_out:
        out.append(f"<span>{panel.left_out} further series are left out</span> ")
    if any(curve.holes for _, curve in lines):
        hole = '<svg width="18" height="8" aria-hidden="true"><rect class="hole" y="2" width="18" height="5"/></svg>'
        out.append(f'<span class="key">{hole} not finite</span> ')
    if logarithmic:
        out.append("<span>logarithmic</span>")
    return "".join(out) + "</p>"


def _words(panel: Panel, lines: Sequence[tuple[Line, Drawn]], marks: Sequence[Mark], first: int, last: int) -> str:
    told = [
        f"{line.label}: {curve.count} values from {number(curve.low)} to {number(curve.high)}, "
        f"last {number(curve.last)}"
        for line, curve in lines
    ]
    found = f"; {len(marks)} {'finding is' if len(marks) == 1 else 'findings are'} marked" if marks else ""
    return escaped(f"{panel.title} over steps {first} to {last}. {'; '.join(told)}{found}.", 900)


def most_marks(marks: Sequence[Mark]) -> list[Mark]:
    """The marks that are drawn: the first forty."""
    return list(marks[:_MARKS])
