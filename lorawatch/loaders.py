"""What the processes that load the data did, as the readings of the machine show it."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import Any

from lorawatch.records import HostReading, ProcessReading

RECENT = 60.0
"""Seconds of readings that are taken together."""


@dataclass(frozen=True, slots=True)
class Load:
    """What the machine and the run's processes did, means over the last readings. None where it was not told.

    Attributes:
        seconds: Time that it covers.
        cpus: Processors that may be used.
        cpu: Cores of these in use, all processes together.
        ranks: Trainers on this machine: this one and those of other ranks.
        workers: Data-loader workers of this machine; 0 where the trainer was seen, and no worker.
        worker_cpu: Cores a worker.
        blocked: Share of the looks in uninterruptible sleep, of a worker, or of the trainer where there is none.
        trainer_cpu: Cores of the trainer.
        own_cpu: Cores of the trainers and workers together.
        read_rate: Bytes a second that workers and trainers read from storage.
        disk_read_rate: Bytes a second read from all disks.
        receive_rate: Bytes a second from the network.
    """

    seconds: float = 0.0
    cpus: float | None = None
    cpu: float | None = None
    ranks: int = 1
    workers: int | None = None
    worker_cpu: float | None = None
    blocked: float | None = None
    trainer_cpu: float | None = None
    own_cpu: float | None = None
    read_rate: float | None = None
    disk_read_rate: float | None = None
    receive_rate: float | None = None

    @property
    def free(self) -> float | None:
        """Processors that nobody uses."""
        return None if self.cpus is None or self.cpu is None else max(self.cpus - self.cpu, 0.0)

    @property
    def storage_rate(self) -> float:
        """Bytes a second from storage, 0 where nothing was told."""
        return max(self.read_rate or 0.0, self.disk_read_rate or 0.0)


class Loaders:
    """The last readings of the machine while the run trained: at most :data:`RECENT` seconds, and 64 of them."""

    def __init__(self) -> None:
        self._readings: deque[HostReading] = deque(maxlen=64)

    def add(self, reading: HostReading) -> None:
        """Take in a reading; one without rates, or taken during evaluation or saving, tells nothing of training."""
        readings = self._readings
        if not reading.seconds > 0.0 or reading.phase in ("evaluation", "saving"):
            return
        readings.append(reading)
        while reading.time - readings[0].time > RECENT:
            readings.popleft()

    def load(self) -> Load:
        """The means."""
        readings = self._readings
        if not readings:
            return Load()
        last = readings[-1]
        trainers = [one for reading in readings for one in reading.processes if one.role != "worker"]
        workers = [one for reading in readings for one in reading.processes if one.role == "worker"]
        seen = [reading for reading in readings if reading.processes]
        count = round(len(workers) / len(seen)) if seen else None
        return Load(
            seconds=sum(reading.seconds for reading in readings),
            cpus=last.cpus if last.cpus is not None and 0.0 < last.cpus < math.inf else None,
            cpu=_mean([reading.cpu for reading in readings]),
            ranks=max(sum(one.role != "worker" for one in last.processes), 1),
            workers=count,
            worker_cpu=_mean([one.cpu for one in workers]),
            blocked=_mean([one.waiting_for_disk for one in workers or trainers]),
            trainer_cpu=_mean([one.cpu for one in trainers if one.role == "trainer"]),
            own_cpu=_mean([_total(reading.processes, "cpu") for reading in seen]),
            read_rate=_mean([_total(reading.processes, "read_rate") for reading in seen]),
            disk_read_rate=_mean([reading.disk_read_rate for reading in readings]),
            receive_rate=_mean([reading.receive_rate for reading in readings]),
        )


def _mean(values: list[float | None]) -> float | None:
    told = [value for value in values if value is not None and math.isfinite(value)]
    return sum(told) / len(told) if told else None


def _total(processes: list[ProcessReading], field: str) -> float | None:
    values: list[Any] = [getattr(one, field) for one in processes]
    told = [value for value in values if value is not None]
    return sum(told) if told else None
