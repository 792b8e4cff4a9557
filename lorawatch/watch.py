"""The wiring: the one place where sources, engines and listeners meet.

:func:`judge` reads a finished run; :class:`FolderWatch` follows a path while its runs are written. Both put the same
records through the same engine in the same order. Where following has to go another way for a moment (a fact became
known late, a lesser source told an earlier step), the run is read again from its start: an engine is quick, and what
it found then is what ``check`` would find.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lorawatch.engine import Change, Engine
from lorawatch.findings import Finding
from lorawatch.merge import Coverage, merged
from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow, Record
from lorawatch.registry import RuleSet
from lorawatch.run import Run
from lorawatch.source import Source, SourceError
from lorawatch.sources.discover import RunFiles, discover
from lorawatch.sources.facts import read_fact_file

Listener = Callable[["RunWatch", Change, Finding], None]


@dataclass(frozen=True, slots=True)
class Unusable:
    """Something that could not be judged: which path, and why, in one line."""

    path: str
    message: str


class RunWatch:
    """The sources and the engine of what :func:`~lorawatch.sources.discover.discover` takes for one run.

    One console log may hold several runs, one after another: :attr:`engines` has one engine for each, oldest first.

    Args:
        files: The run's files.
        rules: The rules to judge by.
        timed: Measure the time that each rule takes.
    """

    def __init__(self, files: RunFiles, rules: RuleSet, *, timed: bool = False) -> None:
        self.files = files
        self.engines: list[Engine] = []
        self.listeners: list[Listener] = []
        self.unread_facts: list[str] = []
        self._rules = rules
        self._timed = timed
        self._starts = [source.cursor() for source in files.sources]
        self._facts: list[FactUpdate] = []
        self._fact_stamps: list[tuple[int, int]] = []
        self._primary: Source | None = None
        self._coverage = Coverage()
        self._told: dict[tuple[int, str], tuple[str, int]] = {}
        self._late_rows = 0
        self._begin()

    @property
    def name(self) -> str:
        """Name of the run: its folder or file."""
        return self.files.name

    @property
    def path(self) -> str:
        """Where the run is."""
        return str(self.files.path)

    @property
    def engine(self) -> Engine:
        """The engine of the newest run."""
        return self.engines[-1]

    @property
    def rows(self) -> int:
        """Rows of metrics read, over all runs of these files."""
        return sum(engine.run.rows for engine in self.engines)

    @property
    def skipped_lines(self) -> int:
        """Lines that looked like metrics and could not be read."""
        return sum(source.skipped_lines for source in self.files.sources)

    @property
    def sources(self) -> list[str]:
        """Each source as format and file name, best first."""
        return [f"{source.format} {source.path.name}" for source in self.files.sources]

    def run_name(self, index: int) -> str:
        """Name of the run that ``engines[index]`` judges: numbered where the files hold several."""
        return self.name if len(self.engines) == 1 else f"{self.name}#{index + 1}"

    def read(self, *, finished: bool = True) -> None:
        """Judge all that the files hold, from their start; tells the listeners what is new.

        Args:
            finished: The files are complete: a torn last line is read too.

        Raises:
            SourceError: A file cannot be used.
        """
        for source, start in zip(self.files.sources, self._starts, strict=True):
            source.resume(start)
        self._begin()
        self._facts_changed()
        for update in self._facts:
            self.engine.feed(update)
        sources = self.files.sources
        several = len(sources) > 1 and sources[0].format != "lorawatch"
        for record in merged(sources, finished=finished):
            self._feed(record)
            if several:
                self._coverage.add(record)
        self._primary = sources[0] if sources else None
        self._late_rows = 0
        if finished:
            for engine in self.engines:
                engine.renew_advice()
        self._announce()

    def poll(self) -> bool:
        """Judge what was appended since the last call. True when anything was new.

        Raises:
            SourceError: A file cannot be used any more.
        """
        if self._primary is None:
            self.read(finished=False)
            return self.rows > 0
        if self._facts_changed():
            self.read(finished=False)
            return True
        fresh = self._poll_best()
        if len(self.files.sources) > 1 and self._primary.format != "lorawatch" and self._poll_lesser():
            self.read(finished=False)
            fresh = True
        if fresh:
            self._announce()
        return fresh

    def _begin(self) -> None:
        self.engines = []
        self._coverage = Coverage()
        self._new_engine()

    def _new_engine(self) -> None:
        run = Run(self.name, self.path)
        self.engines.append(Engine(run, self._rules.make(), timed=self._timed))
        for update in self._facts:
            self.engine.feed(update)

    def _feed(self, record: Record) -> None:
        if isinstance(record, LifecycleEvent) and record.event == "started" and self.engine.run.rows:
            self._new_engine()
        self.engine.feed(record)

    def _poll_best(self) -> bool:
        fresh = False
        several = len(self.files.sources) > 1
        for record in self.files.sources[0].poll():
            self._feed(record)
            if several:
                self._coverage.add(record)
            fresh = True
        return fresh

    def _poll_lesser(self) -> bool:
        """Whether a lesser source told something that the run must be read again for."""
        again = False
        for source in self.files.sources[1:]:
            for record in source.poll():
                if type(record) is MetricRow:
                    # While the better source is being written, what it tells it will tell of later steps too.
                    self._late_rows += self._coverage.uncovered(record, open_ended=True) is not None
                elif isinstance(record, FactUpdate) and not record.inferred:
                    known = self.engine.run.facts
                    again |= any(
                        name not in known or known[name].value != value for name, value in record.values.items()
                    )
        # Reading again costs the whole history: do it when it grew by a tenth, so that the sum stays linear.
        return again or self._late_rows > max(self.rows // 10, 0)

    def _facts_changed(self) -> bool:
        """Read the files that state facts, if any was written since; True when they say something else now."""
        stamps = [_stamp(path) for path in self.files.fact_files]
        if stamps == self._fact_stamps:
            return False
        self._fact_stamps = stamps
        facts: list[FactUpdate] = []
        self.unread_facts = []
        for path in self.files.fact_files:
            try:
                facts += read_fact_file(path)
            except SourceError as error:  # a run is judged without the facts that cannot be read
                self.unread_facts.append(str(error))
        changed = facts != self._facts
        self._facts = facts
        return changed

    def inherit(self, other: RunWatch) -> None:
        """Take over what ``other``, which watched the same run before, told the listeners."""
        self.listeners = other.listeners
        self._told = other._told

    def _announce(self) -> None:
        """Tell the listeners what differs from what they were told before."""
        if not self.listeners:
            return
        for index, engine in enumerate(self.engines):
            for finding in engine.findings:
                key = (index, finding.id)
                before = self._told.get(key)
                now = (finding.state, int(finding.severity))
                if before == now:
                    continue
                self._told[key] = now
                if before is None:
                    self._tell("opened", finding)
                    if finding.state == "resolved":
                        self._tell("resolved", finding)
                elif before[0] != now[0]:
                    self._tell("resolved" if finding.state == "resolved" else "reopened", finding)
                else:
                    self._tell("escalated", finding)

    def _tell(self, change: Change, finding: Finding) -> None:
        for listener in self.listeners:
            listener(self, change, finding)


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
    """

    def __init__(self, path: Path, rules: RuleSet, *, timed: bool = False) -> None:
        self.path = path
        self.runs: list[RunWatch] = []
        self.listeners: list[Listener] = []
        self.waiting_for = f"{path} to hold a training log"
        self.problems: dict[str, str] = {}
        self._rules = rules
        self._timed = timed
        self._listing: object = None

    def poll(self) -> bool:
        """Take in all that is new. True when anything was; never raises for what the files hold."""
        fresh = self._look_around()
        for watch in self.runs:
            try:
                fresh |= watch.poll()
            except SourceError as error:
                self.problems[watch.path] = str(error)
        return fresh

    def finish(self) -> None:
        """Read every run once more, whole: what ``check`` would find now."""
        self._look_around()
        for watch in self.runs:
            try:
                watch.read()
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
        known = {watch.path: watch for watch in self.runs}
        changed = False
        for files in found:
            watch = known.get(str(files.path))
            if watch is not None and _same_sources(watch.files, files):
                continue
            fresh = RunWatch(files, self._rules, timed=self._timed)
            if watch is None:
                fresh.listeners.append(self._tell)
            else:
                fresh.inherit(watch)
                self.runs.remove(watch)
            self.runs.append(fresh)
            changed = True
        return changed

    def _tell(self, watch: RunWatch, change: Change, finding: Finding) -> None:
        for listener in self.listeners:
            listener(watch, change, finding)


_LISTED = 20_000


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)


def _same_sources(before: RunFiles, now: RunFiles) -> bool:
    return [source.path for source in before.sources] == [source.path for source in now.sources] and (
        before.fact_files == now.fact_files
    )


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
            size = 0 if root in followed else min(_stamp(root)[1], 1 << 20)
            entries.append((folder, 0, size))
        except OSError:
            continue
    entries.sort()
    return entries
