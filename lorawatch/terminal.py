"""What ``lorawatch tail`` shows: the live view on a terminal, one line an event elsewhere, JSON lines on request.

All three are fed alike: :meth:`View.heard` listens to the watch, :meth:`View.update` is called after each look at the
files, :meth:`View.close` ends. None starts a thread. Nothing that came from a log reaches the terminal raw.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import IO, Any, Literal, Protocol

import msgspec

from lorawatch.engine import Change
from lorawatch.exporter import Watched, Watching
from lorawatch.findings import Finding
from lorawatch.machine_text import machine_words
from lorawatch.render import adjustment_json, adjustment_text, finding_json, json_ready, number, printable

Format = Literal["text", "jsonl"]
_SHOWN = ("loss", "eval_loss", "grad_norm", "learning_rate")
_ROWS_A_LINE = 100
"""Rows between two lines of progress where the length of the run is not known; else each twentieth of the run."""


class View(Protocol):
    """Shows what is watched."""

    def heard(self, watched: Watched, change: Change, finding: Finding) -> None:
        """A finding of ``watched`` changed. To be put among the watch's listeners."""
        ...

    def update(self, watching: Watching) -> None:
        """Show what is new. To be called after each look at the files, and once a second while nothing happens."""
        ...

    def close(self, summary: str = "") -> None:
        """Leave the terminal as it was, with ``summary`` on it. Nothing may be shown after it."""
        ...


def make_view(
    stream: IO[str],
    *,
    form: Format = "text",
    color: bool = True,
    metrics_address: str = "",
    clock: Callable[[], float] = time.time,
) -> View:
    """The view that fits ``stream``: live on a terminal that can, plain lines elsewhere, JSON lines when asked for.

    Args:
        stream: Where to show it, usually ``sys.stdout``.
        form: ``jsonl`` for one JSON object an event.
        color: False for ``--no-color``. ``NO_COLOR`` in the environment does the same.
        metrics_address: Where ``/metrics`` is, to be shown.
        clock: Unix time in seconds, for the age of the last row.
    """
    if form == "jsonl":
        return JsonlView(stream)
    utf8 = (getattr(stream, "encoding", None) or "utf-8").lower().replace("-", "") == "utf8"
    if not (stream.isatty() and utf8):
        return PlainView(stream, metrics_address)
    # rich costs 3 MiB and 30 ms: only a terminal pays for it.
    from rich.console import Console  # noqa: PLC0415

    from lorawatch.terminal_live import LiveView  # noqa: PLC0415

    console = Console(file=stream, no_color=True if not color else None, highlight=False, markup=False, emoji=False)
    if console.is_dumb_terminal or not console.is_terminal:
        return PlainView(stream, metrics_address)
    return LiveView(console, metrics_address, clock)


class PlainView:
    """One line an event, and a line of progress now and then: for pipes, files and job logs.

    When it speaks depends on steps and rows only, so that the same log gives the same lines.
    """

    def __init__(self, stream: IO[str], metrics_address: str = "") -> None:
        self._stream = stream
        self._address = metrics_address
        self._said: dict[str, int] = {}
        self._introduced: set[str] = set()
        self._ended: set[str] = set()
        self._waiting = ""
        self._problems: set[str] = set()

    def heard(self, watched: Watched, change: Change, finding: Finding) -> None:
        """Print a finding that changed, and what to do when it is new or worse."""
        self._introduce(watched)
        run = watched.engine.run
        step = (
            finding.resolved_step if change == "resolved" else finding.opened_step if change == "opened" else run.step
        )
        self._print(
            f"{watched.name} step {step}: {finding.severity.label.upper()} {finding.rule} {change}: {finding.title}. "
            f"{finding.summary}"
        )
        if change in ("opened", "escalated", "reopened"):
            for adjustment in finding.adjustments:
                if adjustment.next:
                    cost = f"; cost: {adjustment.cost}" if adjustment.cost else ""
                    self._print(
                        f"{watched.name} next: {adjustment_text(adjustment)} – {adjustment.why} "
                        f"({adjustment.apply}, {adjustment.confidence} confidence{cost})"
                    )

    def update(self, watching: Watching) -> None:
        """Print progress where there was enough of it."""
        if self._address:
            self._print(f"metrics: {self._address}")
            self._address = ""
        for path, message in watching.problems.items():
            if path not in self._problems:
                self._problems.add(path)
                self._print(f"cannot read: {message}")
        for note in [note for note in watching.notes if note not in self._problems]:
            self._problems.add(note)
            self._print(f"note: {note}")
        if not watching.runs and watching.waiting_for != self._waiting:
            self._waiting = watching.waiting_for
            self._print(f"waiting for {self._waiting}")
        for watched in list(watching.runs):
            self._progress(watched)

    def close(self, summary: str = "") -> None:
        """Print the summary."""
        for words in summary.splitlines():
            self._print(words)

    def _progress(self, watched: Watched) -> None:
        run = watched.engine.run
        if not run.rows:
            return
        share = run.progress
        mark = run.rows // _ROWS_A_LINE if share is None else int(share * 20)
        self._introduce(watched)
        if self._said.get(watched.path) != mark:
            self._said[watched.path] = mark
            total = f" of {run.max_steps}" if run.max_steps else ""
            values = "".join(f", {name} {number(value)}" for name in _SHOWN if (value := run.last(name)) is not None)
            seconds = run.typical_step_seconds
            pace = "" if seconds is None else f", {number(seconds)} s/step"
            self._print(f"{watched.name} step {run.step}{total}{values}{pace}{machine_words(run)}")
        if run.ended != (watched.path in self._ended):
            self._ended ^= {watched.path}
            self._print(f"{watched.name} {'ended' if run.ended else 'goes on'} at step {run.step}")

    def _introduce(self, watched: Watched) -> None:
        if watched.path not in self._introduced:
            self._introduced.add(watched.path)
            self._print(f"{watched.name}: {watched.engine.run.kind.value}, {', '.join(watched.sources)}")

    def _print(self, words: str) -> None:
        _write(self._stream, printable(" ".join(words.splitlines())))


class JsonlView:
    """One JSON object a line: ``run``, ``progress``, ``finding``, ``waiting``, ``problem``, ``note``, ``end``.

    Strict JSON in ASCII: numbers that are not finite are the strings ``"NaN"``, ``"Infinity"`` and ``"-Infinity"``.
    """

    def __init__(self, stream: IO[str]) -> None:
        self._stream = stream
        self._shown: dict[str, tuple[int, bool]] = {}
        self._waiting = ""
        self._problems: dict[str, str] = {}

    def heard(self, watched: Watched, change: Change, finding: Finding) -> None:
        """Write a finding that changed, with the change to make next."""
        self._introduce(watched)
        engine = watched.engine
        chosen = engine.next_adjustment()
        self._say(
            "finding", run=watched.name, path=watched.path, change=change, step=engine.run.step, time=engine.run.time,
            finding=finding_json(finding), next=None if chosen is None else adjustment_json(chosen),
        )  # fmt: skip

    def update(self, watching: Watching) -> None:
        """Write where each run is that got new rows: one object for all rows of one look at the files."""
        for path, message in watching.problems.items():
            if self._problems.get(path) != message:
                self._problems[path] = message
                self._say("problem", path=path, message=message)
        for note in [note for note in watching.notes if note not in self._problems]:
            self._problems[note] = note
            self._say("note", run=watching.notes[note], message=note)
        if not watching.runs and watching.waiting_for != self._waiting:
            self._waiting = watching.waiting_for
            self._say("waiting", waiting_for=self._waiting)
        for watched in list(watching.runs):
            run = watched.engine.run
            self._introduce(watched)
            now = (run.rows, run.ended)
            if self._shown[watched.path] == now:
                continue
            self._shown[watched.path] = now
            if run.rows:
                self._say(
                    "progress", run=watched.name, path=watched.path, step=run.step, max_steps=run.max_steps,
                    epoch=run.epoch, time=run.time, rows=run.rows, ended=run.ended,
                    metrics={name: value for name in _SHOWN if (value := run.last(name)) is not None},
                    gpu=None if run.gpu is None else msgspec.to_builtins(run.gpu),
                    host=None if run.host is None else msgspec.to_builtins(run.host),
                )  # fmt: skip

    def close(self, summary: str = "") -> None:
        """Write the end."""
        self._say("end", summary=summary)

    def _introduce(self, watched: Watched) -> None:
        if watched.path not in self._shown:
            self._shown[watched.path] = (0, False)
            kind = watched.engine.run.kind.value
            self._say("run", run=watched.name, path=watched.path, kind=kind, sources=list(watched.sources))

    def _say(self, event: str, **values: Any) -> None:
        _write(self._stream, json.dumps({"event": event, **json_ready(values)}, allow_nan=False))


def _write(stream: IO[str], words: str) -> None:
    """Write a line at once, whatever the stream's encoding can hold."""
    encoding = getattr(stream, "encoding", None) or "utf-8"
    stream.write(words.encode(encoding, "replace").decode(encoding) + "\n")
    stream.flush()
