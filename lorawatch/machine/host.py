"""Looks at the machine that a run trains on, as far as the run may use it: memory, processors, disk, processes."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from lorawatch.machine.cgroup import ROOT, Limits, limits_of
from lorawatch.machine.checkpoint_size import CheckpointSize
from lorawatch.machine.followed_process import FollowedProcess
from lorawatch.machine.host_rates import MOST_BYTES, SYS, MachineCounters, Usable
from lorawatch.machine.problems import Problems
from lorawatch.machine.processes import JobProcesses, Role, Trainer
from lorawatch.machine.trainer_process import ERRORS
from lorawatch.records import HostReading, ProcessReading

LIMITS_INTERVAL = 30.0
"""Seconds for which affinity and the limits of the control group are taken to stay as they are."""

_ORDER: tuple[Role, ...] = ("trainer", "rank", "worker")


@dataclass(frozen=True, slots=True)
class Progress:
    """How far the run is, as its logs or its callback tell.

    Attributes:
        idle: Seconds since the last sign of progress; None when there was none.
        phase: ``training``, ``evaluation``, ``saving``; "" when it is not known.
        step: The trainer's step; None when it is not known.
    """

    idle: float | None = None
    phase: str = ""
    step: int | None = None


class HostSampler:
    """Looks at the machine and at the processes of one run.

    :meth:`look` is to be called about once a second, :meth:`reading` every ten to thirty. Neither ever raises; asking
    for the file system of a network share that went away may hang, so they are called from a thread of their own.

    Attributes:
        folder: The run's folder; may not be there yet.
    """

    def __init__(
        self,
        folder: Path,
        trainer: Trainer | None = None,
        *,
        clock: Callable[[], float] = time.monotonic,
        cgroup: Path = ROOT,
        sys: Path = SYS,
    ) -> None:
        """Make a sampler; nothing is looked at before the first call. Processes are read from ``psutil.PROCFS_PATH``.

        Args:
            folder: The run's folder: its file system is the one that is looked at.
            trainer: The process that trains; None while it is not known.
            clock: Seconds that never go back; given by tests.
            cgroup: Where control groups are mounted; given by tests.
            sys: Where sysfs is mounted; given by tests.
        """
        self.folder = folder
        self._clock = clock
        self._cgroup = cgroup
        self._problems = Problems()
        self._counters = MachineCounters(self._problems, sys=sys)
        self._checkpoint = CheckpointSize(folder, self._problems, clock=clock)
        self._followed: dict[psutil.Process, FollowedProcess] = {}
        self._trainer: Trainer | None = None
        self._job: JobProcesses | None = None
        self._limits = Limits()
        self._processors: frozenset[int] | None = None
        self._limits_read: float | None = None
        self._read: float | None = None
        self._memory_total: int | None = None
        self._memory_lowest: int | None = None
        self._folder_seen = False
        self.trainer = trainer

    @property
    def problems(self) -> Sequence[str]:
        """What cannot be read, one line each, for a person; each is said once."""
        return self._problems.lines

    @property
    def trainer(self) -> Trainer | None:
        """The process that trains; may be set at any time. One that has ended stays until another takes its place."""
        return self._trainer

    @trainer.setter
    def trainer(self, trainer: Trainer | None) -> None:
        if trainer == self._trainer:
            return
        self._trainer = trainer
        self._job = None if trainer is None else JobProcesses(trainer, clock=self._clock)
        self._limits_read = None
        self._processors = None

    @property
    def pids(self) -> frozenset[int]:
        """Ids of the run's processes as they were last seen: trainer, ranks and workers."""
        return frozenset(process.pid for process in self._followed)

    def look(self) -> None:
        """Look at memory and processes.

        Costs 0.12 ms of processor time for a trainer with four workers, and 0.03 ms while none is known. The look for
        new workers, every five seconds or more, adds 1.4 ms on a machine with 90 processes.
        """
        now = self._clock()
        if self._limits_read is None or now - self._limits_read >= LIMITS_INTERVAL:
            self._limits_read = now
            self._read_limits()
        self._look_at_memory()
        members = [] if self._job is None else self._problems.ask("processes of the run", self._job.members) or []
        here = dict(members)
        for process in [process for process in self._followed if process not in here]:
            del self._followed[process]
        for process, role in members:
            one = self._followed.get(process)
            if one is None:
                one = self._followed[process] = FollowedProcess(process)
            one.look(role, now)

    def reading(self, now: float, progress: Progress) -> HostReading:
        """What was seen since the last reading, put together.

        Args:
            now: Unix time.
            progress: How far the run is.
        """
        self.look()
        clock = self._clock()
        seconds = 0.0 if self._read is None else max(clock - self._read, 0.0)
        self._read = clock
        usable = Usable(self._processors, self._limits.quota)
        rates = self._counters.rates(seconds, usable)
        path, total, free = self._disk()
        trainer = self._trainer
        reading = HostReading(
            time=now, seconds=seconds, memory_total=self._memory_total, memory_available=self._memory_lowest,
            swap_in_rate=rates.swap_in, major_faults_rate=rates.major_faults, cpu=rates.cpu,
            cpus=self._problems.ask("processors", lambda: usable.cpus),
            load=self._problems.ask("load average", lambda: psutil.getloadavg()[0]),
            disk_path=path, disk_total=total, disk_free=free, disk_read_rate=rates.disk_read,
            disk_write_rate=rates.disk_write, receive_rate=rates.receive, send_rate=rates.send,
            checkpoint_bytes=self._checkpoint.bytes(), processes=self._processes(),
            alive=None if trainer is None else trainer.alive, idle=progress.idle, phase=progress.phase,
            step=progress.step,
        )  # fmt: skip
        self._memory_total = self._memory_lowest = None
        return reading

    def _read_limits(self) -> None:
        trainer = self._trainer
        if trainer is None:
            self._limits = limits_of(None, root=self._cgroup)
        elif trainer.alive:  # one that has ended is in no group any more: what held for it stays known
            self._limits = limits_of(trainer.pid, root=self._cgroup)
        self._processors = self._problems.ask("affinity", self._affinity) or self._processors

    def _look_at_memory(self) -> None:
        memory = self._problems.ask("memory", psutil.virtual_memory)
        total: int | None = None
        available: int | None = None
        if memory is not None and 0 < memory.total < MOST_BYTES and 0 <= memory.available < MOST_BYTES:
            total, available = memory.total, memory.available
        limit = self._limits.memory_total
        if limit is not None and (total is None or limit < total):
            total, left = limit, self._limits.memory_available()
            if left is None:
                self._problems.say("memory use of the control group: cannot be read; available memory is left out")
                available = None
            else:
                available = left if available is None else min(available, left)
        self._memory_total = total
        if available is not None:
            lowest = self._memory_lowest
            self._memory_lowest = available if lowest is None else min(lowest, available)

    def _processes(self) -> list[ProcessReading]:
        found = [one.reading(self._problems) for one in self._followed.values()]
        # A trainer that was found late stands behind the workers that were followed before it.
        return sorted((one for one in found if one is not None), key=lambda one: _ORDER.index(one.role))

    def _affinity(self) -> frozenset[int] | None:
        """Numbers of the processors that the trainer may run on; None where the system does not tell."""
        if self._trainer is not None:
            try:
                return frozenset(self._trainer.process.cpu_affinity() or ()) or None
            except (*ERRORS, AttributeError):
                # It has ended. What it was bound to stays known; else what lorawatch itself may use is the next best.
                if self._processors is not None:
                    return self._processors
        return frozenset(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None

    def _disk(self) -> tuple[str, int | None, int | None]:
        """The folder whose file system is looked at, its size and what is free of it."""
        place = self.folder
        usage = None
        try:
            if self._folder_seen and not place.exists():
                raise FileNotFoundError(2, "it was there and is gone")
            self._folder_seen = self._folder_seen or place.exists()
            while not place.exists() and place != place.parent:
                place = place.parent
            usage = psutil.disk_usage(str(place))
        except (*ERRORS, RuntimeError) as error:
            reason = getattr(error, "strerror", None) or str(error)
            self._problems.say(f"{self.folder}: its file system does not answer ({reason}); is it mounted?", "disk")
        if usage is None or not 0 < usage.total < MOST_BYTES:  # some network file systems tell 0, or all they can
            return str(place), None, None
        return str(place), usage.total, max(usage.free, 0)
