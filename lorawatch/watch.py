"""The wiring: the one place where sources, engines and listeners meet.

:func:`judge` reads finished runs; :class:`FolderWatch` follows a path while its runs are written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lorawatch.engine import Change
from lorawatch.findings import Finding
from lorawatch.registry import RuleSet
from lorawatch.run_watch import Listener, RunWatch, stamp
from lorawatch.source import SourceError
from lorawatch.sources.discover import RunFiles, discover, rotated_from

__all__ = ["FolderWatch", "Judged", "Listener", "RunWatch", "Unusable", "judge"]


@dataclass(frozen=True, slots=True)
class Unusable:
    """Something that could not be judged: which path, and why, in one line."""

    path: str
    message: str


@dataclass(slots=True)
class Judged:
    """What ``check`` found under the paths that it was given."""

    runs: list[RunWatch] = field(default_factory=list)
    errors: list[Unusable] = field(default_factory=list)


def judge(paths: Iterable[Path], rules: RuleSet) -> Judged:
    """Judge every run under ``paths``, whole. What cannot be used is told in ``errors``; the rest is still judged."""
    judged = Judged()
    for path in paths:
        try:
            found = discover(path)
        except SourceError as error:
            judged.errors.append(Unusable(str(path), str(error)))
            continue
        for files in found:
            watch = RunWatch(files, rules)
            try:
                watch.read()
            except SourceError as error:
                judged.errors.append(Unusable(str(files.path), str(error)))
                continue
            if watch.rows:
                judged.runs.append(watch)
            else:
                judged.errors.append(Unusable(str(files.path), f"{files.path}: holds no logged metrics"))
    return judged


class FolderWatch:
    """Follows a path: a file, a run folder, or a folder of runs, which need not exist yet.

    Args:
        path: What to follow.
        rules: The rules to judge by.
        timed: Measure the time that each rule takes.

    Attributes:
        notes: What was found out of the machine and what cannot be seen of it, one line each, to the run's name.
    """

    def __init__(self, path: Path, rules: RuleSet, *, timed: bool = False) -> None:
        self.path = path
        self.runs: list[RunWatch] = []
        self.listeners: list[Listener] = []
        self.waiting_for = f"{path} to hold a training log"
        self.problems: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self._rules = rules
        self._timed = timed
        self._listing: object = None

    def poll(self) -> bool:
        """Take in all that is new. True when anything was; never raises for what the files hold."""
        fresh = self._look_around()
        for watch in self.runs:
            try:
                fresh |= watch.poll()
                self.problems.pop(watch.path, None)
            except SourceError as error:
                self.problems[watch.path] = str(error)
        return fresh

    def finish(self) -> None:
        """Read every run once more, whole: what ``check`` would find now."""
        self._look_around()
        for watch in self.runs:
            try:
                watch.read()
                self.problems.pop(watch.path, None)
            except SourceError as error:
                self.problems[watch.path] = str(error)

    @property
    def ended(self) -> bool:
        """Whether every run that is followed has ended."""
        return bool(self.runs) and all(watch.engine.run.ended for watch in self.runs)

    def _look_around(self) -> bool:
        followed = {source.path for watch in self.runs for source in watch.files.sources}
        listing = _listing(self.path, followed)
        if listing == self._listing:
            return False
        self._listing = listing
        try:
            found = discover(self.path)
        except SourceError as error:
            # A run that is being followed is not forgotten because its files are gone for a moment.
            self.waiting_for = str(error)
            return False
        return self._follow([files for files in found if not _rotated(files, followed)])

    def _follow(self, found: list[RunFiles]) -> bool:
        """Follow the runs that were found; goes on with those that are followed already. True when any is new."""
        claimed = {source.path for files in found for source in files.sources}
        runs: list[RunWatch] = []
        replaced: list[RunWatch] = []
        for files in found:
            before = self._before(files)
            if before is not None and before not in runs and _goes_on(before.files, files, claimed):
                files.sources = before.files.sources  # as far as they were read
                before.files = files
                runs.append(before)
                continue
            watch = RunWatch(files, self._rules, timed=self._timed)
            if before is None:
                watch.listeners.append(self._tell)
            else:
                watch.inherit(before)
                replaced.append(before)
            runs.append(watch)
        # A run whose files are gone stays; one whose files are another's now is followed there.
        runs += [watch for watch in self.runs if watch not in runs and watch not in replaced]
        new = runs != self.runs
        self.runs = runs
        paths = {watch.path for watch in runs}
        self.problems = {path: problem for path, problem in self.problems.items() if path in paths}
        return new

    def _before(self, files: RunFiles) -> RunWatch | None:
        """The watch that follows a run already, under this path or, as files came and went beside it, another."""
        paths = {source.path for source in files.sources}
        shared = [watch for watch in self.runs if paths & {source.path for source in watch.files.sources}]
        known = [watch for watch in self.runs if watch.files.path == files.path]
        return next(iter([*known, *shared]), None)

    def _tell(self, watch: RunWatch, change: Change, finding: Finding) -> None:
        for listener in self.listeners:
            listener(watch, change, finding)


_LISTED = 20_000


def _rotated(files: RunFiles, followed: set[Path]) -> bool:
    """Whether this is what was rotated away of logs that are followed: it was read already."""
    return all(rotated_from(source.path) in followed for source in files.sources)


def _goes_on(before: RunFiles, now: RunFiles, claimed: set[Path]) -> bool:
    """Whether a run that is followed has no other sources than before, or only lacks one that is empty just now."""
    had = {(source.format, source.path) for source in before.sources}
    has = {(source.format, source.path) for source in now.sources}
    return has <= had and all(path.is_file() and path not in claimed for _, path in had - has)


def _listing(root: Path, followed: set[Path], depth: int = 4) -> list[tuple[str, int, int]]:
    """What stands below ``root``, to notice cheaply that files came or went.

    A file that is not followed yet counts with its size: a log is only known for one once it holds a row.
    """
    entries: list[tuple[str, int, int]] = []
    folders = [(str(root), depth)]
    while folders and len(entries) < _LISTED:
        folder, left = folders.pop()
        try:
            with os.scandir(folder) as listed:
                for entry in listed:
                    if entry.is_dir(follow_symlinks=False):
                        if left:
                            folders.append((entry.path, left - 1))
                        entries.append((entry.path, entry.inode(), -1))
                    elif entry.is_file():
                        size = 0 if Path(entry.path) in followed else min(entry.stat().st_size, 1 << 20)
                        entries.append((entry.path, 0 if size == 0 else entry.inode(), size))
        except NotADirectoryError:
            size = 0 if root in followed else min(stamp(root)[1], 1 << 20)
            entries.append((folder, 0, size))
        except OSError:
            continue
    entries.sort()
    return entries
