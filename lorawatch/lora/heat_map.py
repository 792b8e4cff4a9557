"""The adapter as a picture, modules × layers: for a terminal in block characters, for a page as inline SVG.

Names come from a log or a checkpoint, which is hostile input: control characters are replaced, and markup is escaped.
"""

from __future__ import annotations

import html
import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from lorawatch.records import AdaptedModule, AdapterReading

Value = Literal["update/base", "norm_b"]

BLOCKS = "▁▂▃▄▅▆▇█"
NOTHING, BROKEN, ABSENT = "·", "!", " "
MAX_ROWS = 40
"""Module names that are shown; further ones are counted."""
MAX_LAYERS = 256
"""Columns that are kept apart; more layers share them."""

_TITLES: dict[Value, str] = {
    "update/base": "size of the update over that of the weight, ‖s·B·A‖ / ‖W‖",
    "norm_b": "norm of B",
}


@dataclass(frozen=True, slots=True)
class Cell:
    """One module, or several that share a place: then the largest value, and broken where one is.

    Attributes:
        value: What is shown; None where it is not known.
        broken: Whether a number of the adapter is NaN or infinite.
    """

    value: float | None
    broken: bool = False


@dataclass(frozen=True, slots=True)
class HeatMap:
    """Values of an adapter by module name and layer.

    Attributes:
        what: What the values are.
        step: Step of the reading.
        rows: Name of each row, as short as it is unambiguous: ``self_attn.q_proj``.
        layers: Title of each column: a layer's number, ``"8-9"`` where layers share it, ``""`` for modules that are in
            no layer.
        cells: A row of cells a name; None where there is no such module.
        largest: The largest finite value; 0.0 where there is none.
        hidden: Names beyond :data:`MAX_ROWS`.
    """

    what: Value
    step: int
    rows: list[str]
    layers: list[str]
    cells: list[list[Cell | None]]
    largest: float
    hidden: int = 0

    @property
    def title(self) -> str:
        """What it shows, in words."""
        return f"Adapter at step {self.step}: {_TITLES[self.what]}"


def heat_map(reading: AdapterReading, what: Value | None = None, *, columns: int = MAX_LAYERS) -> HeatMap | None:
    """The reading by module name and layer; None where it holds no module.

    Args:
        reading: The adapter's weights.
        what: What to show: the size of the update over that of the weight, or the norm of B. By default the former,
            where it is known for half of the modules or more.
        columns: Columns at most; layers that are more share them.
    """
    if not reading.modules:
        return None
    if what is None:
        known = sum(_value(module, "update/base") is not None for module in reading.modules)
        what = "update/base" if 2 * known >= len(reading.modules) else "norm_b"
    places: dict[str, dict[int, Cell]] = {}
    for module in reading.modules:
        pattern, layer = _place(module.name)
        row = places.setdefault(pattern, {})
        row[layer] = _joined(row.get(layer), Cell(_value(module, what), not module.finite))
    hidden = max(len(places) - MAX_ROWS, 0)
    shown = dict(list(places.items())[:MAX_ROWS])
    titles, column_of = _columns(sorted({layer for row in shown.values() for layer in row}), max(columns, 2))
    cells: list[list[Cell | None]] = [[None] * len(titles) for _ in shown]
    for line, row in zip(cells, shown.values(), strict=True):
        for layer, cell in row.items():
            line[column_of[layer]] = _joined(line[column_of[layer]], cell)
    values = [cell.value for line in cells for cell in line if cell is not None and cell.value is not None]
    return HeatMap(what, reading.step, _short(list(shown)), titles, cells, max(values, default=0.0), hidden)


def _value(module: AdaptedModule, what: Value) -> float | None:
    if what == "norm_b":
        value = module.norm_b
    else:
        value = module.update / module.base if module.update is not None and module.base else None
    return value if value is not None and math.isfinite(value) else None


def _place(name: str) -> tuple[str, int]:
    """A module's name with ``*`` for its numbers, and its layer: the first of them; -1 where it has none."""
    numbers = [int(part) for part in name.split(".") if re.fullmatch("[0-9]{1,6}", part)]
    return re.sub(r"(?<=\.)[0-9]{1,6}(?=\.|$)|^[0-9]{1,6}(?=\.)", "*", name), numbers[0] if numbers else -1


def _joined(one: Cell | None, other: Cell) -> Cell:
    if one is None:
        return other
    known = [value for value in (one.value, other.value) if value is not None]
    return Cell(max(known, default=None), one.broken or other.broken)


def _columns(layers: Sequence[int], most: int) -> tuple[list[str], dict[int, int]]:
    """Titles of the columns, and the column of each layer; what is in no layer stands first."""
    titles = [""] if -1 in layers else []
    column_of = {-1: 0} if titles else {}
    numbered = [layer for layer in layers if layer >= 0]
    share = -(-len(numbered) // (most - len(titles))) if numbered else 1
    for start in range(0, len(numbered), share):
        together = numbered[start : start + share]
        column_of |= dict.fromkeys(together, len(titles))
        titles.append(str(together[0]) if len(together) == 1 else f"{together[0]}-{together[-1]}")
    return titles, column_of


def _short(patterns: Sequence[str]) -> list[str]:
    """The last parts of each name, two or as many more as tell it from the others."""
    found: list[str] = []
    for pattern in patterns:
        parts = pattern.split(".")
        short = pattern
        for count in range(min(2, len(parts)), len(parts) + 1):
            short = ".".join(parts[-count:])
            if parts[-count] != "*" and sum(f".{other}".endswith(f".{short}") for other in patterns) == 1:
                break
        found.append(_printable(short))
    return found


def _printable(text: str) -> str:
    return "".join(character if character.isprintable() else "\ufffd" for character in text)[:120]


def heat_text(shown: HeatMap) -> list[str]:
    """Lines for a terminal: a title, a line a module name, and a legend. Each column is one character wide."""
    width = max(len(row) for row in shown.rows)
    lines = [shown.title]
    for row, cells in zip(shown.rows, shown.cells, strict=True):
        lines.append(f"{row:>{width}} {''.join(_character(cell, shown.largest) for cell in cells)}")
    numbered = [title for title in shown.layers if title]
    if numbered:
        first, last = numbered[0].partition("-")[0], numbered[-1].rpartition("-")[2]
        apart = "; the first column is what is in no layer" if "" in shown.layers else ""
        lines.append(f"{'':>{width}} layers {first} to {last}, from the left{apart}")
    lines.append(f"{'':>{width}} {NOTHING} 0   {BLOCKS[0]} to {BLOCKS[-1]} up to {shown.largest:.3g}{_marks(shown)}")
    if shown.hidden:
        lines.append(f"{'':>{width}} and {shown.hidden} more names")
    return lines


def _marks(shown: HeatMap) -> str:
    cells = [cell for line in shown.cells for cell in line if cell is not None]
    marks = f"   {BROKEN} NaN or infinity" if any(cell.broken for cell in cells) else ""
    return marks + ("   ? not known" if any(cell.value is None and not cell.broken for cell in cells) else "")


def _character(cell: Cell | None, largest: float) -> str:
    if cell is None:
        return ABSENT
    if cell.broken:
        return BROKEN
    if cell.value is None:
        return "?"
    if cell.value <= 0.0 or largest <= 0.0:
        return NOTHING
    return BLOCKS[min(int(cell.value / largest * len(BLOCKS)), len(BLOCKS) - 1)]


_CELL, _GAP, _LABEL, _TOP = 14, 2, 7, 22
"""Pixels: side of a cell, space between cells, width of a character of a label, height of the line of layers."""
_SHADES = 6


def heat_svg(shown: HeatMap, *, label_id: str = "heat-map") -> str:
    """Inline SVG, in the colour of the text around it: the stronger the larger, on light and dark pages alike.

    Every cell has its name and value as a tooltip; the whole has a title and a description for who does not see it.
    It needs no style sheet and no script.

    Args:
        shown: What to draw.
        label_id: Start of the ids of its title and description: unique in the page.
    """
    pitch = _CELL + _GAP
    left = _LABEL * min(max(len(row) for row in shown.rows), 40) + 8
    width = left + max(pitch * len(shown.layers), _LABEL * _columns_of(_legend_text(shown)) + _CELL * _SHADES + 32)
    grid = _TOP + pitch * len(shown.rows)
    height = grid + 34 + (16 if shown.hidden else 0)
    title, about = f"{label_id}-title", f"{label_id}-about"
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
        f'role="img" aria-labelledby="{_escape(title)} {_escape(about)}" font-family="ui-monospace, monospace" '
        'font-size="11" fill="currentColor">'
    )
    parts = [
        opening,
        f'<title id="{_escape(title)}">{_escape(shown.title)}</title>',
        f'<desc id="{_escape(about)}">{_escape(describe(shown))}</desc>',
    ]
    every = max(-(-(_LABEL * max(len(one) for one in shown.layers) + 6) // pitch), 1)
    for column, layer in enumerate(shown.layers):
        if layer and (column - shown.layers.count("")) % every == 0:
            middle = left + pitch * column + _CELL / 2
            parts.append(f'<text x="{middle:g}" y="{_TOP - 8}" text-anchor="middle">{_escape(layer)}</text>')
    for line, (row, cells) in enumerate(zip(shown.rows, shown.cells, strict=True)):
        top = _TOP + pitch * line
        name = row if len(row) <= 40 else f"…{row[-39:]}"
        parts.append(f'<text x="{left - 8}" y="{top + 11}" text-anchor="end">{_escape(name)}</text>')
        for column, cell in enumerate(cells):
            if cell is not None:
                where = f"layer {shown.layers[column]}" if shown.layers[column] else "in no layer"
                parts.append(_rectangle(left + pitch * column, top, cell, shown.largest, f"{row}, {where}"))
    parts += _legend(shown, left, grid + 8)
    if shown.hidden:
        parts.append(f'<text x="{left}" y="{grid + 42}">and {shown.hidden} more names</text>')
    parts.append("</svg>")
    return "".join(parts)


def describe(shown: HeatMap) -> str:
    """What the picture shows, in a sentence or two: for a screen reader, or in its place."""
    values = [
        (cell.value, row, layer)
        for row, cells in zip(shown.rows, shown.cells, strict=True)
        for layer, cell in zip(shown.layers, cells, strict=True) if cell is not None and cell.value is not None
    ]  # fmt: skip
    broken = sum(cell.broken for cells in shown.cells for cell in cells if cell is not None)
    numbered = sum(1 for layer in shown.layers if layer)
    text = f"{_count(len(shown.rows), 'module name')} over {_count(numbered, 'column')} of layers."
    if values:
        (low, *_), (high, row, layer) = min(values), max(values)
        text += f" Values from {low:.3g} to {high:.3g}, the largest at {row}" + (f", layer {layer}." if layer else ".")
    if broken:
        text += f" {_count(broken, 'cell')} with NaN or infinity."
    return text


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"


def _rectangle(x: float, y: float, cell: Cell, largest: float, name: str) -> str:
    """One cell with its tooltip. Zero is an empty frame; what is broken is red and crossed, what is unknown dashed."""
    place = f'x="{x:g}" y="{y:g}" width="{_CELL}" height="{_CELL}" rx="2"'
    if cell.broken:
        mark = f'<path d="M{x + 3:g} {y + 3:g}l8 8m0 -8l-8 8" stroke="#fff" stroke-width="2"/>'
        return f'<g><title>{_escape(name)}: NaN or infinity</title><rect {place} fill="#d03b3b"/>{mark}</g>'
    if cell.value is None:
        return (
            f'<rect {place} fill="none" stroke="currentColor" stroke-opacity="0.35" stroke-dasharray="2 2">'
            f"<title>{_escape(name)}: not known</title></rect>"
        )
    share = min(max(cell.value / largest, 0.0), 1.0) if largest > 0.0 else 0.0
    return (
        f'<rect {place} fill-opacity="{share:.2f}" stroke="currentColor" stroke-opacity="0.25">'
        f"<title>{_escape(name)}: {cell.value:.3g}</title></rect>"
    )


def _legend(shown: HeatMap, x: float, y: float) -> Iterable[str]:
    for place in range(_SHADES):
        opacity = f'fill-opacity="{place / (_SHADES - 1):.2f}" stroke="currentColor" stroke-opacity="0.25"'
        yield f'<rect x="{x + 16 + _CELL * place}" y="{y}" width="{_CELL}" height="{_CELL}" {opacity}/>'
    yield f'<text x="{x}" y="{y + 11}">0</text>'
    yield f'<text x="{x + 24 + _CELL * _SHADES}" y="{y + 11}">{_escape(_legend_text(shown))}</text>'


def _legend_text(shown: HeatMap) -> str:
    return f"{shown.largest:.3g}  {_TITLES[shown.what]}"


def _columns_of(text: str) -> int:
    """Characters that a text is wide, in a font that gives two columns to what may be wide, as to ``‖``."""
    return sum(2 if unicodedata.east_asian_width(one) in "WFA" else 1 for one in text)


def _escape(text: str) -> str:
    return html.escape(text, quote=True)
