"""The processes of a run that is watched from outside: which one trains it, its ranks, its data-loader workers.

The evidence that names a trainer stands in :mod:`lorawatch.machine.process_search`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable, Sequence
from pathlib import Path
from typing import Literal

import psutil

from lorawatch.machine import process_kinds
from lorawatch.machine.problems import Problems
from lorawatch.machine.process_search import Search, find_trainer
from lorawatch.machine.trainer_process import (
    ERRORS,
    Trainer,
    children_of,
    command_of,
    name_of,
    parent_of,
    this_process,
    trainer_of,
)

__all__ = ["JobProcesses", "Role", "Search", "Trainer", "TrainerFinder", "find_trainer", "this_process", "trainer_of"]

Role = Literal["trainer", "rank", "worker"]
MOST_PROCESSES = 64
"""Processes of one run that are looked at."""
_SEARCH_SHARE = 500.0
"""A search waits at least this many times as long as the one before took: 0.2 % of a core, however many processes the
machine has. Measured: 3 to 6 ms among 90 processes, 69 ms among 990."""
_LOOK_SHARE = 2000.0
"""Likewise for a look for workers, 0.05 % of a core. Measured: 1.4 ms among 90 processes, 14 ms among 990."""


class TrainerFinder:
    """Looks for the trainer again and again, at a bounded cost.

    It searches every 15 s while no living trainer is known, and every 60 s otherwise: a later search may be surer, or
    see more ranks.

    Attributes:
        files: The run's logs; may be changed at any time.
        folder: The run's own folder, or None: see :func:`find_trainer`.
        trainer: The last that was found, until one that is certain takes its place; it may have ended.
        note: Why the last search found none; "" when it found one.
    """

    MISSING = 15.0
    """Seconds between searches while no living trainer is known."""
    FOUND = 60.0
    """Seconds between searches while one is."""

    def __init__(
        self,
        files: Collection[Path],
        folder: Path | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        find: Callable[[Collection[Path], Path | None], Search] = find_trainer,
    ) -> None:
        """Make a finder; nothing is searched before the first look.

        Args:
            files: The run's logs.
            folder: The run's own folder, or None.
            clock: Seconds that never go back; given by tests.
            find: Searches once; given by tests.
        """
        self.files = files
        self.folder = folder
        self.trainer: Trainer | None = None
        self.note = ""
        self._clock = clock
        self._find = find
        self._searched: float | None = None
        self._cost = 0.0
        self._problems = Problems()

    @property
    def problems(self) -> Sequence[str]:
        """Why a trainer that should be there was not found, each reason said once."""
        return self._problems.lines

    def look(self) -> Trainer | None:
        """The trainer, searched for when a search is due. Never raises."""
        now = self._clock()
        known = self.trainer
        alive = known is not None and known.alive
        pause = max(self.FOUND if alive else self.MISSING, _SEARCH_SHARE * self._cost)
        if self._searched is not None and now - self._searched < pause:
            return known
        self._searched = now
        before = time.thread_time()
        search = self._find(self.files, self.folder)
        self._cost = time.thread_time() - before
        self.note = search.note
        found = search.trainer
        if found is None:
            if search.expected and known is None:  # of one that ended it is known that it did
                self._problems.say(search.note)
        elif known is None or found.certain or found.process == known.process:
            # One that is not certain takes no other's place: in a sweep the next job trains in the same folder.
            self.trainer = found
        return self.trainer


class JobProcesses:
    """The trainer, its ranks and their data-loader workers as they come and go.

    Workers are looked for every 5 s at most: it takes a look at every process of the machine.
    """

    REFRESH = 5.0
    """Seconds between looks for workers."""

    def __init__(self, trainer: Trainer, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Make it for one trainer.

        Args:
            trainer: The trainer.
            clock: Seconds that never go back; given by tests.
        """
        self.trainer = trainer
        self._clock = clock
        self._workers: list[psutil.Process] = []
        self._looked: float | None = None
        self._cost = 0.0

    def members(self) -> list[tuple[psutil.Process, Role]]:
        """The processes of the job, at most 64, the trainer first, then the ranks. Some may have just ended."""
        now = self._clock()
        if self._looked is None or now - self._looked >= max(self.REFRESH, _LOOK_SHARE * self._cost):
            self._looked = now
            before = time.thread_time()
            self._workers = self._find_workers()
            self._cost = time.thread_time() - before
        trainer = self.trainer
        return [*_as("trainer", [trainer.process]), *_as("rank", trainer.ranks), *_as("worker", self._workers)][
            :MOST_PROCESSES
        ]

    def _find_workers(self) -> list[psutil.Process]:
        trainers = {self.trainer.process, *self.trainer.ranks}
        commands: dict[int, list[str]] = {one.pid: command_of(one) for one in trainers}
        workers: list[psutil.Process] = []
        for child in self._descendants():
            command = commands[child.pid] = command_of(child)
            try:
                parent = commands.get(child.ppid(), [])
            except ERRORS:  # it has just ended
                continue
            if child not in trainers and process_kinds.is_worker(name_of(child), command, parent):
                workers.append(child)
        return workers

    def _descendants(self) -> list[psutil.Process]:
        """All descendants of trainer and ranks, parents before their children."""
        if not self.trainer.ranks:
            return children_of(self.trainer.process, recursive=True)
        launcher = parent_of(self.trainer.process)
        if launcher is not None and process_kinds.is_launcher(command_of(launcher)):
            return children_of(launcher, recursive=True)  # one look at all processes instead of one a rank
        return [
            child for one in (self.trainer.process, *self.trainer.ranks) for child in children_of(one, recursive=True)
        ]


def _as(role: Role, processes: Iterable[psutil.Process]) -> list[tuple[psutil.Process, Role]]:
    return [(process, role) for process in processes]
