"""The live view: the whole screen, redrawn when something is new, at most once a second.

It owns no thread and no timer: whoever watches calls :meth:`LiveView.update` after each look at the files. A redraw
for rows alone waits until a second has passed since the last one; a finding that opens is drawn at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.color import ColorSystem
from rich.console import Console
from rich.text import Text

from lorawatch import terminal_panels as panels
from lorawatch.engine import Change
from lorawatch.exporter import Watched, Watching
from lorawatch.findings import Finding, Severity
from lorawatch.render import printable
from lorawatch.terminal_advice import advice
from lorawatch.terminal_history import RunHistory
from lorawatch.terminal_machine import machine
from lorawatch.terminal_samples import samples
from lorawatch.terminal_text import (
    BOLD,
    DIM,
    NEXT,
    PLAIN,
    SEVERITY_STYLES,
    Line,
    Part,
    clean,
    duration,
    line,
    spread,
    wrapped,
)

_REDRAW_SECONDS = 1.0
_CLOCK_SECONDS = 5.0
"""How often the age of the last row is brought up to date while nothing else happens."""
_MAX_WIDTH = 132
_MIN_WIDTH = 18
"""A terminal that is narrower still cuts the lines off."""
_MAX_CURVE = 16
_MIN_CURVE = 4
_MAX_HISTORIES = 64
_MAX_SUMMARY_LINE = 2_000
_COLOR_SYSTEMS = {
    "standard": ColorSystem.STANDARD, "256": ColorSystem.EIGHT_BIT, "truecolor": ColorSystem.TRUECOLOR,
}  # fmt: skip


class LiveView:
    """Shows one run in full and the others in a line each.

    Args:
        console: Where to draw; a real terminal.
        metrics_address: Where ``/metrics`` is, to be shown; ``""`` when it is not served.
        clock: Unix time in seconds; only for the age of the last row and to limit redraws, never for a judgement.
    """

    def __init__(self, console: Console, metrics_address: str = "", clock: Callable[[], float] = time.time) -> None:
        self._console = console
        self._address = metrics_address
        self._clock = clock
        self._histories: dict[str, RunHistory] = {}
        self._focus = ""
        self._urgent = True
        self._drawn_at = 0.0
        self._drawn: object = None
        self._row_at: dict[str, tuple[int, float]] = {}
        self._colors = _COLOR_SYSTEMS.get(console.color_system or "")
        self._screen: list[str] | None = None
        self._screen_size = (0, 0)
        self.redraws = 0

    def heard(self, watched: Watched, change: Change, finding: Finding) -> None:
        """Listen to the watch: what changes in the findings is drawn at the next update."""
        self._urgent = True

    def update(self, watching: Watching) -> None:
        """Redraw if there is something new and it is time to."""
        now = self._clock()
        runs = list(watching.runs)
        for watched in runs:
            run = watched.engine.run
            if self._row_at.get(watched.path, (0, 0.0))[0] != run.rows:
                self._row_at[watched.path] = (run.rows, now)
        since = now - self._drawn_at
        state = (
            self._console.size, watching.waiting_for, len(watching.problems),
            [
                (one.path, one.engine.run.rows, one.engine.run.ended, one.engine.run.host, one.skipped_lines)
                for one in runs
            ],
        )  # fmt: skip
        due = _CLOCK_SECONDS if state == self._drawn else _REDRAW_SECONDS
        if not self._urgent and 0 <= since < due:
            return
        self._drawn, self._drawn_at, self._urgent = state, now, False
        self._redraw(watching, runs, now)

    def close(self, summary: str = "") -> None:
        """Give the screen back, and leave ``summary`` (which may have several lines) on it."""
        if self._screen is not None:
            self._screen = None
            self._console.show_cursor(True)
            self._console.set_alt_screen(False)
        for words in summary.splitlines():
            self._console.print(_cleaned_line(words), markup=False, highlight=False, soft_wrap=True)

    def _redraw(self, watching: Watching, runs: Sequence[Watched], now: float) -> None:
        width, height = size = self._console.size
        lines = self.lines(watching, runs, now, min(max(width - 2, _MIN_WIDTH), _MAX_WIDTH), height)
        self._draw(
            [text.render(width, self._colors, colored=not self._console.no_color) for text in lines[:height]],
            (size.width, size.height),
        )
        self.redraws += 1

    def _draw(self, lines: list[str], size: tuple[int, int]) -> None:
        """Write the lines that differ from those on the screen, in one go."""
        if self._screen is None:
            self._console.set_alt_screen(True)
            self._console.show_cursor(False)
        out: list[str] = []
        before = self._screen or []
        if not before or size != self._screen_size:
            before = []
            out.append("\x1b[2J")
        for index, words in enumerate(lines):
            if index >= len(before) or before[index] != words:
                out.append(f"\x1b[{index + 1};1H{words}\x1b[K")
        if len(lines) < len(before):
            out.append(f"\x1b[{len(lines) + 1};1H\x1b[J")
        self._screen, self._screen_size = lines, size
        self._console.file.write("".join(out))
        self._console.file.flush()

    def lines(self, watching: Watching, runs: Sequence[Watched], now: float, width: int, height: int) -> list[Line]:
        """The screen as lines, at most ``height`` of at most ``width`` cells, with a margin of one cell left."""
        focus = self._focused(runs)
        if focus is None:
            return _margin(_waiting(watching, self._address, width))
        history = self._history(focus)
        run = focus.engine.run
        history.follow(run)
        top = panels.header(focus, self._address, width)
        top += [Line(), *panels.progress(run, history, width), Line(), panels.metrics(run, width)]
        about = machine(run, width, most_cards=4 if height >= 30 else 1)
        if height < 24:
            about = about[:2]
        top += [Line(), *about] if about and height >= 30 else about
        said = samples(run, width, most=2 if height >= 50 else 1) if height >= 36 else []
        top += [Line(), *said] if said else []
        most_others = 4 if height >= 30 else 2
        bottom = panels.others(runs, focus, width, most_others) if len(runs) > 1 else []
        bottom += panels.abstained(focus.engine, width, most=1 if height < 30 else 2)
        bottom += [_footer(watching, focus, self._age(focus, now), width)]
        room = height - len(top) - len(bottom)
        middle = _middle(focus, width, room)
        free = room - len(middle) - 2  # an empty line above each of the two
        if free > _MIN_CURVE:
            free -= 1  # and one below, where there is room
        chart = panels.curve(history, width, min(free, _MAX_CURVE)) if free >= _MIN_CURVE else []
        body = [*top, *_spaced(chart), *_spaced(middle)]
        body += [Line()] * (height - len(body) - len(bottom))
        return _margin([*body[: height - len(bottom)], *bottom])

    def _focused(self, runs: Sequence[Watched]) -> Watched | None:
        """The run to show in full: the one that is shown already while it is live, or else the newest live one."""
        if not runs:
            return None
        begun = [one for one in runs if one.engine.run.rows] or list(runs)
        live = [one for one in begun if not one.engine.run.ended]
        for one in live or begun:
            if one.path == self._focus:
                return one
        chosen = (live or begun)[-1]
        self._focus = chosen.path
        return chosen

    def _history(self, watched: Watched) -> RunHistory:
        history = self._histories.get(watched.path)
        if history is None:
            if len(self._histories) >= _MAX_HISTORIES:
                self._histories.clear()
            history = self._histories[watched.path] = RunHistory()
        return history

    def _age(self, watched: Watched, now: float) -> str:
        run = watched.engine.run
        if not run.rows:
            return ""
        # By the record's own time where there is one; a log without times tells only when its row was seen here.
        stamp = run.time if run.time is not None else self._row_at.get(watched.path, (0, now))[1]
        return f"last row {duration(now - stamp)} ago"


def _middle(focus: Watched, width: int, room: int) -> list[Line]:
    """Findings and advice, in as much detail as leaves room for the curve, or else as fits."""
    found: list[Line] = []
    for spare in (_MIN_CURVE + 2, 1):
        for detail in (3, 2, 1) if spare > 1 else (1, 0):
            found = panels.findings(focus.engine, width, detail)
            plan = advice(focus.engine, width, detail)
            if len(found) + len(plan) + 1 + spare <= room:
                return [*found, Line(), *plan] if plan else found
    plan = advice(focus.engine, width, 0)
    kept = max(room - len(plan) - 3, 1)
    if len(found) > kept:
        found = [*found[: kept - 1], line([(f"and {len(found) - kept + 1} more findings", DIM)], width)]
    return [*found, *plan]


def _footer(watching: Watching, focus: Watched, age: str, width: int) -> Line:
    parts: list[Part] = [(age, DIM)]
    if focus.skipped_lines:
        parts.append((f"   {focus.skipped_lines:,} lines skipped", DIM))
    failed = len(focus.engine.rule_errors)
    if failed:
        parts.append((f"   {panels.count(failed, 'rule')} failed", SEVERITY_STYLES[Severity.WARNING]))
    if watching.problems:
        message = next(iter(watching.problems.values()))
        parts.append((f"   {clean(message, 200)}", SEVERITY_STYLES[Severity.WARNING]))
    elif watching.notes:
        parts.append((f"   {clean(list(watching.notes)[-1], 200)}", DIM))
    return spread(parts, [("Ctrl-C ends the watch", DIM)], width)


def _waiting(watching: Watching, address: str, width: int) -> list[Line]:
    lines = [line([("lorawatch  ", NEXT), ("○ waiting", DIM)], width)]
    if address:
        lines.append(line([(clean(address, 80), DIM)], width))
    lines += [Line(), *wrapped(f"Waiting for {clean(watching.waiting_for)}", width, 0, BOLD)]
    for message in list(watching.problems.values())[:3]:
        lines += wrapped(clean(message), width, 0, SEVERITY_STYLES[Severity.WARNING], most=2)
    return [*lines, Line(), line([("Ctrl-C ends the watch", DIM)], width)]


def _spaced(lines: list[Line]) -> list[Line]:
    return [Line(), *lines] if lines else []


def _margin(lines: list[Line]) -> list[Line]:
    for text in lines:
        text.parts.insert(0, (" ", PLAIN))
        text.cells += 1
    return lines


def _cleaned_line(words: str) -> Text:
    """A line of a summary: its spaces are kept, they align it."""
    return Text(printable(words)[:_MAX_SUMMARY_LINE], PLAIN)
