"""One run, followed: its sources, its engines, and what the listeners were told of it.

Following puts the same records through the same engine in the same order as reading the finished files does. Where it
has to go another way for a moment (a fact became known late, a lesser source told an earlier step), the run is read
again from its start: an engine is quick, and what it found then is what ``check`` would find.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from lorawatch.engine import Change, Engine
from lorawatch.findings import Finding, State
from lorawatch.merge import Coverage, merged
from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow, Reading, Record
from lorawatch.registry import RuleSet
from lorawatch.run import Run
from lorawatch.source import SourceError
from lorawatch.sources.discover import RunFiles
from lorawatch.sources.facts import read_fact_file
from lorawatch.sources.lines import LineSource
from lorawatch.sources.trainer_state import GROWING_FACTS

Listener = Callable[["RunWatch", Change, Finding], None]


@dataclass(frozen=True, slots=True)
class _Told:
    state: State
    severity: int
    finding: Finding


class RunWatch:
    """The sources and the engines of what :func:`~lorawatch.sources.discover.discover` takes for one run.

    One console log may hold several runs, one after another: :attr:`engines` has one engine for each, oldest first.
    A run that stands in no file any more, because a new one wrote over it, keeps its engine and its findings.

    Args:
        files: The run's files.
        rules: The rules to judge by.
        timed: Measure the time that each rule takes.
    """

    def __init__(self, files: RunFiles, rules: RuleSet, *, timed: bool = False) -> None:
        self.files = files
        self.listeners: list[Listener] = []
        self.unread_facts: list[str] = []
        self._rules = rules
        self._timed = timed
        self._starts = [source.cursor() for source in files.sources]
        self._facts: list[FactUpdate] = []
        self._fact_stamps: list[tuple[int, int]] = []
        self._coverage = Coverage()
        self._told: dict[tuple[int, str, int], _Told] = {}
        self._late_rows = 0
        self._past: list[Engine] = []  # of runs that stand in no file any more
        self._unread = True  # the files are to be read from their start
        self._cut = False  # the beginning of the newest run stands in no file any more
        self._replacements = 0
        self._observed: set[type] = set()  # types of records that came from looking, and stand in no file
        self.engines: list[Engine] = [self._new_engine()]

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
        """Judge all that the files hold, from their start; tells the listeners what is new, and what is gone.

        When the beginning of the run was rotated away, what was judged of it is kept, and only the rest is read.

        Args:
            finished: The files are complete: a torn last line is read too.

        Raises:
            SourceError: A file cannot be used; what was found before is kept, and the next poll reads again.
        """
        if self._cut:
            self._poll_best(finished=finished)
        else:
            self._read_all(finished)
        if finished:
            for engine in self.engines:
                engine.renew_advice()
        self._announce()

    def poll(self) -> bool:
        """Judge what was appended since the last call. True when anything was new.

        Raises:
            SourceError: A file cannot be used any more.
        """
        if self._unread:
            self.read(finished=False)
            return self.rows > 0
        if self._facts_changed():
            if not self._cut:
                self.read(finished=False)
                return True
            for update in self._facts:
                self.engine.feed(update)
        fresh = False
        try:
            fresh = self._poll_best()
            if self._several and self._poll_lesser():
                self._read_all(finished=False)
                fresh = True
        finally:
            if fresh:
                self._announce()
        return fresh

    def observe(self, readings: Iterable[Reading]) -> None:
        """Judge what was seen of the newest run from outside; it is kept when the files are read again."""
        for reading in readings:
            self._observed.add(type(reading))
            self.engine.feed(reading)
        self._announce()

    @property
    def observes_itself(self) -> bool:
        """Whether the run tells of its machine itself: the callback looks at it from inside."""
        return self.files.sources[0].format == "lorawatch"

    def inherit(self, other: RunWatch) -> None:
        """Take over what ``other``, which watched the same run before, kept and told the listeners."""
        self.listeners = list(other.listeners)
        self._told = dict(other._told)
        self._past = list(other._past)
        self._observed = set(other._observed)
        self.engines = list(other.engines)

    @property
    def _several(self) -> bool:
        """Whether lesser sources have something to add; the callback tells lorawatch.jsonl all that the others say."""
        sources = self.files.sources
        return len(sources) > 1 and sources[0].format != "lorawatch"

    def _read_all(self, finished: bool) -> None:
        self._unread = True
        for source, start in zip(self.files.sources, self._starts, strict=True):
            source.resume(start)
        self._facts_changed()
        # Aside, so that nobody sees a half-read run, and what was found stays when a file cannot be read.
        engines, coverage = [self._renewed(0)], Coverage()
        for record in merged(self.files.sources, finished=finished):
            self._feed(record, engines)
            if self._several:
                coverage.add(record)
        self.engines, self._coverage = [*self._past, *engines], coverage
        self._late_rows = 0
        self._replacements = self._replaced()
        self._unread = False

    def _new_engine(self) -> Engine:
        engine = Engine(Run(self.name, self.path), self._rules.make(), timed=self._timed)
        for update in self._facts:
            engine.feed(update)
        return engine

    def _renewed(self, index: int) -> Engine:
        """An engine to read the files' run ``index`` again, with what was seen of that run from outside."""
        engine, place = self._new_engine(), len(self._past) + index
        if self._observed and not self.observes_itself and place < len(self.engines):
            engine.adopt(self.engines[place], self._observed)
        return engine

    def _feed(self, record: Record, engines: list[Engine]) -> None:
        if isinstance(record, LifecycleEvent) and record.event == "started" and engines[-1].run.rows:
            engines.append(self._new_engine() if engines is self.engines else self._renewed(len(engines)))
        engines[-1].feed(record)

    def _poll_best(self, *, finished: bool = False) -> bool:
        best = self.files.sources[0]
        fresh = False
        for record in best.finish() if finished else best.poll():
            self._look_for_cut()
            runs = len(self.engines)
            self._feed(record, self.engines)
            if self._cut and len(self.engines) > runs:
                # A new run wrote over the old one: the file holds the new one from its beginning.
                self._past, self._cut = self.engines[:-1], False
                self._coverage = Coverage()
            if self._several:
                self._coverage.add(record)
            fresh = True
        self._look_for_cut()
        return fresh

    def _replaced(self) -> int:
        best = self.files.sources[0]
        return best.replacements if isinstance(best, LineSource) else 0

    def _look_for_cut(self) -> None:
        replaced = self._replaced()
        if replaced != self._replacements:
            self._replacements = replaced
            self._cut = self._cut or self.engine.run.rows > 0

    def _poll_lesser(self) -> bool:
        """Whether a lesser source told something that the run must be read again for."""
        again = False
        for source in self.files.sources[1:]:
            try:
                for record in source.poll():
                    if type(record) is MetricRow:
                        # While the better source is being written, what it tells it will tell of later steps too.
                        self._late_rows += self._coverage.uncovered(record, open_ended=True) is not None
                    elif isinstance(record, FactUpdate) and not record.inferred:
                        again |= self._must_read_again(record)
            except SourceError:  # the best source is enough to go on
                continue
        # Reading again costs the whole history: do it when it grew by a tenth, so that the sum stays linear.
        return (again or self._late_rows > self.rows // 10) and not self._cut

    def _must_read_again(self, update: FactUpdate) -> bool:
        known = self.engine.run.facts
        new = {name for name, value in update.values.items() if name not in known or known[name].value != value}
        if new <= GROWING_FACTS or self._cut:
            self.engine.feed(update)
            return False
        return bool(new)

    def _facts_changed(self) -> bool:
        """Read the files that state facts, if any was written since; True when they say something else now."""
        stamps = [stamp(path) for path in self.files.fact_files]
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

    def _announce(self) -> None:
        """Tell the listeners what differs from what they were told before.

        A finding is known by its run, its rule and its number among the rule's findings: reading again may move the
        step at which it opened, and that is no news.
        """
        if not self.listeners:
            return
        here: set[tuple[int, str, int]] = set()
        for index, engine in enumerate(self.engines):
            numbers: Counter[str] = Counter()
            for finding in engine.findings:
                key = (index, finding.rule, numbers[finding.rule])
                numbers[finding.rule] += 1
                here.add(key)
                self._tell_news(self._told.get(key), finding)
                self._told[key] = _Told(finding.state, int(finding.severity), finding)
        for key, before in self._told.items():
            if key not in here and before.state == "firing":
                gone = before.finding
                gone.state, gone.resolved_step = "resolved", gone.last_step
                self._told[key] = _Told("resolved", before.severity, gone)
                self._tell("resolved", gone)

    def _tell_news(self, before: _Told | None, finding: Finding) -> None:
        if before is None:
            self._tell("opened", finding)
            if finding.state == "resolved":
                self._tell("resolved", finding)
        elif before.state != finding.state:
            self._tell("resolved" if finding.state == "resolved" else "reopened", finding)
        elif before.severity < finding.severity:
            self._tell("escalated", finding)

    def _tell(self, change: Change, finding: Finding) -> None:
        for listener in self.listeners:
            listener(self, change, finding)


def stamp(path: Path) -> tuple[int, int]:
    """Time and size by which a change of a file is noticed; zeros while it is missing."""
    try:
        status = path.stat()
    except OSError:
        return (0, 0)
    return (status.st_mtime_ns, status.st_size)
