"""Writes down what happens to a run and judges it, in one order, whichever thread tells it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import deque
from collections.abc import Callable
from pathlib import Path

from lorawatch.engine import Change, Engine
from lorawatch.findings import Finding
from lorawatch.integrations.journal import Journal
from lorawatch.records import Record

MOST_WAITING = 256
"""Records that wait to be judged before whoever brings another has to judge them itself."""
LONGEST_WAIT = 5.0
"""Seconds that a record waits at most, likewise: a look at a dead network share may hold up who should judge it."""

Changes = list[tuple[Change, Finding]]


class Judgement:
    """One run's records: written down at once, so that none is lost, and judged when there is time for it.

    Records are judged in the order in which they stand in the journal, so that reading it gives the same findings.

    Args:
        engine: Judges the run.
        journal: Where the records go; None to write nothing down.
        unwritable: Told once when the journal cannot be written any more; the run goes on being judged.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        engine: Engine,
        journal: Journal | None,
        unwritable: Callable[[Path, OSError], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.engine = engine
        self._journal = journal
        self._unwritable = unwritable
        self._writing = threading.Lock()  # held for as long as a line takes to be written
        self._judging = threading.Lock()
        self._waiting: deque[Record] = deque()
        self._clock = clock
        self._since = 0.0
        self._changes: Changes = []

    @property
    def overdue(self) -> bool:
        """Whether records wait for too long, or too many do: whoever should judge them does not come."""
        waiting = len(self._waiting)
        return waiting >= MOST_WAITING or (waiting > 1 and self._clock() - self._since > LONGEST_WAIT)

    @property
    def waits(self) -> bool:
        """Whether anything waits to be judged."""
        return bool(self._waiting)

    @property
    def path(self) -> Path | None:
        """The journal; None where nothing is written down."""
        return None if self._journal is None else self._journal.path

    def put(self, *records: Record) -> None:
        """Write records down, to be judged later."""
        with self._writing:
            self._write(*records)
            if not self._waiting:
                self._since = self._clock()
            self._waiting.extend(records)

    def _write(self, *records: Record) -> None:
        if self._journal is None:
            return
        try:
            self._journal.write(records)
        except OSError as error:
            path, self._journal = self._journal.path, None
            self._unwritable(path, error)

    def listen(self) -> None:
        """From now on, tell what changes: what came before is known."""
        self.engine.listeners.append(self._hear)

    def judge(self) -> Changes:
        """Judge all that waits; gives what it changed. Where another thread is at it, waits for that one first."""
        with self._judging:
            while self._waiting:
                self.engine.feed(self._waiting.popleft())
            changes, self._changes = self._changes, []
        return changes

    def close(self, *, for_good: bool = False) -> None:
        """Close the journal; a later :meth:`put` opens it again, unless it is ``for_good``."""
        with self._writing:
            if self._journal is not None:
                self._journal.close()
            if for_good:
                self._journal = None

    def _hear(self, change: Change, finding: Finding) -> None:
        # As it is now: it may change again before it is told.
        self._changes.append((change, dataclasses.replace(finding, adjustments=list(finding.adjustments))))
