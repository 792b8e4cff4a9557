"""What is seen of one process of a run between two readings."""

from __future__ import annotations

import psutil

from lorawatch.machine.host_rates import MOST_BYTES, difference
from lorawatch.machine.problems import Problems
from lorawatch.machine.processes import Role
from lorawatch.machine.trainer_process import ERRORS, alive
from lorawatch.records import ProcessReading


class FollowedProcess:
    """One process of a run, looked at again and again.

    Args:
        process: Its handle.
    """

    __slots__ = ("_cpu", "_cpu_before", "_looks", "_process", "_read_before", "_readable", "_role", "_time",
                 "_time_before", "_waited")  # fmt: skip

    def __init__(self, process: psutil.Process) -> None:
        self._process = process
        self._role: Role = "worker"
        self._looks = 0
        self._waited = 0
        self._cpu = 0.0
        self._time = 0.0
        self._cpu_before: float | None = None
        self._time_before = 0.0
        self._read_before: float | None = None
        self._readable = True

    def look(self, role: Role, now: float) -> None:
        """Look at its state and processor time; nothing happens when it has ended. Costs 20 µs.

        Args:
            role: What it is to the run.
            now: Seconds that never go back.
        """
        self._role = role
        try:
            with self._process.oneshot():
                state = self._process.status()
                times = self._process.cpu_times()
        except ERRORS:
            return
        self._looks += 1
        self._waited += state == psutil.STATUS_DISK_SLEEP
        self._cpu, self._time = times.user + times.system, now  # of its own: its children are followed themselves
        if self._cpu_before is None:
            self._cpu_before, self._time_before = self._cpu, now

    def reading(self, problems: Problems) -> ProcessReading | None:
        """What was seen since the last reading; None when it has ended or could not be looked at."""
        if not self._looks or not alive(self._process):
            return None
        try:
            rss: int | None = self._process.memory_info().rss
        except ERRORS:
            return None
        if rss is not None and not 0 <= rss < MOST_BYTES:
            rss = None
        seconds = self._time - self._time_before
        read = self._read_bytes(problems)
        reading = ProcessReading(
            self._process.pid, self._role, cpu=difference(self._cpu, self._cpu_before, seconds), rss=rss,
            read_rate=None if read is None else difference(read, self._read_before, seconds),
            waiting_for_disk=self._waited / self._looks,
        )  # fmt: skip
        self._cpu_before, self._time_before, self._read_before = self._cpu, self._time, read
        self._looks = self._waited = 0
        return reading

    def _read_bytes(self, problems: Problems) -> float | None:
        if not self._readable:
            return None
        try:
            return float(self._process.io_counters().read_bytes)
        except psutil.NoSuchProcess:
            return None
        except (*ERRORS, AttributeError, NotImplementedError, RuntimeError):
            # Another user's process, or a system that does not count: that stays so, and is not asked again.
            self._readable = False
            problems.say("what the run's processes read from storage: the system does not tell it; it is left out")
            return None
