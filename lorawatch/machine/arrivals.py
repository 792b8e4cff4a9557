"""How fast a run goes, seen from outside: by when its rows arrive and how its progress bar moves."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lorawatch.records import StepTiming
from lorawatch.run import Run
from lorawatch.source import SourceError
from lorawatch.sources.console_text import read_bar
from lorawatch.sources.follow import read_tail

SPAN_SECONDS = 10.0
"""Least time that one timing covers: rows of a log that is not flushed arrive in heaps."""
_TAIL = 2_048


class Arrivals:
    """Times the steps of one run, and tells when it last gave a sign."""

    def __init__(self) -> None:
        self._mark: tuple[int, float] | None = None
        self._step = self._row_step = 0
        self._stamps: dict[Path, tuple[float, int]] = {}
        self._sign: float | None = None

    def look(self, run: Run, files: Sequence[Path], now: float) -> StepTiming | None:
        """Take in where the run is; gives a timing where enough time has passed since the last one.

        Args:
            run: What is known of it from its rows.
            files: The files that it writes.
            now: Unix time in seconds.
        """
        if run.step < self._row_step:  # another run in the same files, or a resume
            self._step, self._mark = run.step, None
        self._row_step = run.step
        step = max(self._step, run.step)
        for file in files:
            try:
                status = file.stat()
            except OSError:
                continue
            stamp = (status.st_mtime, status.st_size)
            if self._stamps.get(file) == stamp:
                continue
            self._stamps[file] = stamp
            # A clock that runs ahead, as on a file server, must not make it younger than now.
            self._sign = max(self._sign or 0.0, min(status.st_mtime, now))
            step = max(step, _bar_step(file, run) or 0)
        self._step, mark = step, self._mark
        if mark is None:
            self._mark = (step, now)
            return None
        if step == mark[0] or now - mark[1] < SPAN_SECONDS:
            return None
        self._mark = (step, now)
        return StepTiming(step=step, span=step - mark[0], seconds=now - mark[1], time=now)

    def idle(self, now: float) -> float | None:
        """Seconds since the run last wrote to one of its files; None before that is known."""
        return None if self._sign is None else max(now - self._sign, 0.0)


def age_of(files: Sequence[Path], now: float) -> float:
    """Seconds since one of the files was written; infinite where none is there. Costs a look at each."""
    newest = float("-inf")
    for file in files:
        try:
            newest = max(newest, file.stat().st_mtime)
        except OSError:
            continue
    return now - newest


def _bar_step(file: Path, run: Run) -> int | None:
    """The step that the last progress bar of a console log shows; None where it has none of the training's."""
    if file.suffix in {".json", ".jsonl"} or "tfevents" in file.name or run.max_steps is None:
        return None
    try:
        end = read_tail(file, _TAIL)
    except (FileNotFoundError, SourceError):
        return None
    for segment in reversed(end.replace(b"\n", b"\r").split(b"\r")):
        bar = read_bar(segment)
        if bar is not None and bar.total == run.max_steps:
            return bar.n
    return None
