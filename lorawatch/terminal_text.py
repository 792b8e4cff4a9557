"""Lines of text for a terminal: cleaned, styled, fitted to a width in cells."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from rich.cells import cell_len, set_cell_size
from rich.color import ColorSystem
from rich.style import Style

from lorawatch.findings import Finding, Severity
from lorawatch.render import printable

PLAIN = Style()
DIM = Style(dim=True)
BOLD = Style(bold=True)
GOOD = Style(color="green")
ACCENT = Style(color="cyan")
NEXT = Style(color="cyan", bold=True)
SEVERITY_STYLES = {
    Severity.CRITICAL: Style(color="red", bold=True),
    Severity.WARNING: Style(color="yellow", bold=True),
    Severity.INFO: Style(color="blue", bold=True),
}
SEVERITY_SIGNS = {Severity.CRITICAL: "✖", Severity.WARNING: "▲", Severity.INFO: "•"}
"""Each severity has a shape and a word besides its colour."""

Part = tuple[str, Style]
"""Clean words and how they look."""
MAX_TEXT = 600
_ELLIPSIS = "…"


class Line:
    """One line of a screen: clean parts in a row, and how many cells they take.

    In place of ``rich.text.Text``, whose markup, wrapping and justification cost ten times the CPU, each second.
    """

    __slots__ = ("cells", "parts")

    def __init__(self, parts: Iterable[Part] = ()) -> None:
        self.parts: list[Part] = []
        self.cells = 0
        for words, style in parts:
            self.append(words, style)

    def append(self, words: str, style: Style = PLAIN) -> None:
        """Add clean words at the right end."""
        if words:
            self.parts.append((words, style))
            self.cells += cell_len(words)

    @property
    def plain(self) -> str:
        """The words without their looks."""
        return "".join(words for words, _ in self.parts)

    def render(self, width: int, color_system: ColorSystem | None, *, colored: bool = True) -> str:
        """As a terminal takes it, in at most ``width`` cells; with bold and dim alone unless ``colored``."""
        parts = self.parts if self.cells <= width else [(cut(self.plain, width), PLAIN)]
        return "".join(
            (style if colored else style.without_color).render(words, color_system=color_system) if style else words
            for words, style in parts
        )


def clean(text: object, limit: int = MAX_TEXT) -> str:
    """``text`` on one line, without anything that acts on a terminal, and at most ``limit`` characters long."""
    words = str(text)
    if len(words) > 4 * limit:
        words = words[: 4 * limit]
    words = printable(" ".join(words.split()))
    return words if len(words) <= limit else words[: limit - 1] + _ELLIPSIS


def cut(text: str, width: int) -> str:
    """``text``, which is clean, in at most ``width`` cells."""
    if cell_len(text) <= width:
        return text
    return set_cell_size(text, width - 1).rstrip() + _ELLIPSIS if width > 1 else text[:0]


def line(parts: Iterable[Part], width: int, indent: int = 0) -> Line:
    """One line of styled, clean parts; what does not fit is cut off."""
    text = Line([(" " * indent, PLAIN)])
    for words, style in parts:
        if text.cells >= width:
            break
        fitted = cut(words, width - text.cells)
        text.append(fitted, style)
        if len(fitted) < len(words):
            break
    return text


def spread(left: Sequence[Part], right: Sequence[Part], width: int) -> Line:
    """One line with parts at either end; the left end gives way where both do not fit."""
    needed = sum(cell_len(words) for words, _ in right)
    if needed > width - 12:  # too narrow for both: what stands left matters more
        return line(left, width)
    text = line(left, width - needed - 2)
    text.append(" " * (width - needed - text.cells))
    for words, style in right:
        text.append(words, style)
    return text


def wrapped(text: str, width: int, indent: int, style: Style = PLAIN, most: int = 4) -> list[Line]:
    """Clean ``text`` over at most ``most`` lines, broken between words, or within one that is too long."""
    room = max(width - indent, 8)
    lines: list[str] = []
    current = ""
    for word in text.split(" "):
        joined = f"{current} {word}" if current else word
        if cell_len(joined) <= room:
            current = joined
            continue
        if current:
            lines.append(current)
        while cell_len(word) > room:
            head = set_cell_size(word, room).rstrip() or word[:1]
            lines.append(head)
            word = word[len(head) :]  # noqa: PLW2901
        current = word
    if current:
        lines.append(current)
    if len(lines) > most:
        kept = lines[: most - 1]
        kept.append(cut(f"{lines[most - 1]} {_ELLIPSIS}", room) if most else "")
        lines = kept
    return [line([(words, style)], width, indent) for words in lines]


def severity_parts(finding: Finding) -> list[Part]:
    """Sign and word of a finding's severity."""
    style = SEVERITY_STYLES[finding.severity]
    return [(f"{SEVERITY_SIGNS[finding.severity]} {finding.severity.label.upper()}", style)]


def duration(seconds: float) -> str:
    """A stretch of time in its two largest units: ``45 s``, ``3 min``, ``2 h 05 min``, ``3 d 4 h``."""
    if seconds < 60:
        return f"{max(seconds, 0.0):.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    hours, minutes = divmod(minutes, 60)
    if hours < 48:
        return f"{hours} h {minutes:02d} min"
    return f"{hours // 24} d {hours % 24} h"
