"""The machine under the runs that are followed from outside: who trains them, on which cards, how fast."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from lorawatch.machine.arrivals import Arrivals, age_of
from lorawatch.machine.gpus import GpuSampler
from lorawatch.machine.host import HostSampler, Progress
from lorawatch.machine.processes import TrainerFinder
from lorawatch.machine.run_machine import RunMachine
from lorawatch.records import Reading
from lorawatch.run_watch import RunWatch
from lorawatch.watch import FolderWatch

INTERVAL = 1.0
"""Seconds between two looks."""
FRESH = 900.0
"""Seconds since a run last wrote after which it is looked at only while a process of it is there."""
MOST_RUNS = 16
"""Runs that are looked at; those that wrote last."""


class MachineWatch:
    """Looks at the machine for the runs that are followed, and lets each judge what was seen of it.

    A run that the callback watches from inside is left alone: it tells of its machine itself.

    Args:
        watch: What is followed; what cannot be seen is put among its notes.
        gpus: Looks at the cards; made where it is not given.
        clock: Unix time in seconds.
    """

    def __init__(
        self,
        watch: FolderWatch,
        *,
        gpus: GpuSampler | None = None,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._watch = watch
        self._gpus = gpus or GpuSampler()
        self._clock = clock
        self._observers: dict[str, _Observer] = {}
        self._looked = float("-inf")

    def start(self) -> None:
        """Begin to look at the cards, in a thread."""
        self._gpus.start()

    def stop(self) -> None:
        """Look no longer."""
        self._gpus.stop()

    def poll(self) -> bool:
        """Look once, where a second has passed since the last look. True when a run got something to judge."""
        now = self._clock()
        if 0 <= now - self._looked < INTERVAL:
            return False
        self._looked = now
        runs = [one for one in self._watch.runs if not one.observes_itself and one.rows and not one.engine.run.ended]
        observers: dict[str, _Observer] = {}
        for run in runs:
            observers[run.path] = self._observers.get(run.path) or _Observer(self._gpus)
        self._observers = observers
        fresh = False
        ages = {run.path: age_of(_files(run), now) for run in runs}
        for run in sorted(runs, key=lambda one: ages[one.path])[:MOST_RUNS]:
            readings = observers[run.path].look(run, now, ages[run.path])
            if readings:
                run.observe(readings)
                fresh = True
            for note in observers[run.path].notes:
                self._watch.notes.setdefault(note, run.name)
        return fresh


class _Observer:
    """Looks at one run."""

    def __init__(self, gpus: GpuSampler) -> None:
        self._gpus = gpus
        self._arrivals = Arrivals()
        self._finder: TrainerFinder | None = None
        self._machine: RunMachine | None = None

    @property
    def notes(self) -> list[str]:
        """Which process trains, and what cannot be seen: one line each."""
        finder = self._finder
        found = list(self._machine.problems) if self._machine is not None else []
        if finder is None:
            return found
        return [*found, *finder.problems, *([] if finder.trainer is None else [finder.trainer.evidence])]

    def look(self, run: RunWatch, now: float, age: float) -> list[Reading]:
        files = _files(run)
        readings: list[Reading] = []
        timing = self._arrivals.look(run.engine.run, files, now)
        if timing is not None:
            readings.append(timing)
        known = self._finder is not None and self._finder.trainer is not None
        if age > FRESH and not known:
            return readings
        if self._machine is None or self._finder is None:
            folder = run.files.path if run.files.path.is_dir() else None
            self._finder = TrainerFinder(files, folder)
            host = HostSampler(folder or run.files.path.parent)
            self._machine = RunMachine(host, self._gpus.view())
        self._finder.files = files
        trainer = self._finder.look()
        host, view = self._machine.host, self._machine.gpus
        host.trainer = trainer
        if view is not None and trainer is not None:
            view.visible, view.order = trainer.visible_devices, trainer.device_order
        progress = Progress(self._arrivals.idle(now), step=run.engine.run.step)
        return [*readings, *self._machine.tick(now, progress)]


def _files(run: RunWatch) -> list[Path]:
    return [source.path for source in run.files.sources]
