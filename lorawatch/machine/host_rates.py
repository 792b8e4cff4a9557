"""Rates of the machine, from counters that only grow: processors, disks, network, swap, page faults."""

from __future__ import annotations

import math
import mmap
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from lorawatch.machine.cgroup import CpuQuota
from lorawatch.machine.problems import Problems

SYS = Path("/sys")
_VMSTAT_BYTES = 1 << 16
MOST_BYTES = 1 << 60
"""Bytes that no machine has: a number beyond is none."""
_MOST_PROCESSORS = 1 << 16
"""Processors that no machine has."""
Counters = Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Usable:
    """The processors that a run may use.

    Attributes:
        processors: Their numbers, as its affinity tells them; None where the system does not tell: all of them then.
        quota: The group that limits its processor time; None when none does.
    """

    processors: frozenset[int] | None = None
    quota: CpuQuota | None = None

    @property
    def count(self) -> int | None:
        """How many processors it may run on, whatever its quota."""
        return psutil.cpu_count() if self.processors is None else len(self.processors)

    @property
    def cpus(self) -> float | None:
        """Processors' worth of time that it may use."""
        known = [self.count, None if self.quota is None else self.quota.cpus]
        return min((float(one) for one in known if one is not None), default=None)


ALL = Usable()
"""The whole machine."""


@dataclass(frozen=True, slots=True)
class MachineRates:
    """Rates since the reading before; None where a counter is not told, is new, or went back.

    Attributes:
        cpu: Mean cores that are taken, of those that the run may use; see :meth:`MachineCounters.rates`.
        disk_read: Bytes a second read from disks.
        disk_write: Bytes a second written to disks.
        receive: Bytes a second from the network, loopback left out.
        send: Bytes a second to the network, likewise.
        swap_in: Bytes a second swapped in.
        major_faults: Page faults a second that had to read from storage.
    """

    cpu: float | None = None
    disk_read: float | None = None
    disk_write: float | None = None
    receive: float | None = None
    send: float | None = None
    swap_in: float | None = None
    major_faults: float | None = None


class MachineCounters:
    """Reads the machine's counters and tells how fast they grew.

    Args:
        problems: Is told what cannot be read.
        sys: Where sysfs is mounted; given by tests.
    """

    def __init__(self, problems: Problems, *, sys: Path = SYS) -> None:
        self._problems = problems
        self._sys = sys
        self._before: dict[str, Counters] = {}

    def rates(self, seconds: float, usable: Usable = ALL) -> MachineRates:
        """Rates since the last call; all None at the first. Never raises.

        Processors in use are those of ``usable``, whoever uses them. Where a quota leaves less than the affinity does,
        what its group uses counts, or what others leave of the processors where that is less still.

        Args:
            seconds: Time since the last call.
            usable: The processors that the run may use. At the first call after a change ``cpu`` is None.
        """
        ask = self._problems.ask
        disks = ask("disk counters", self._disks) or ({}, {})
        network = ask("network counters", self._network) or ({}, {})
        memory = ask("/proc/vmstat", _vmstat) or {}
        return MachineRates(
            cpu=self._cores(usable, seconds),
            disk_read=self._rate("disk_read", disks[0], seconds),
            disk_write=self._rate("disk_write", disks[1], seconds),
            receive=self._rate("receive", network[0], seconds),
            send=self._rate("send", network[1], seconds),
            swap_in=self._rate("swap_in", _only(memory, "pswpin", mmap.PAGESIZE), seconds),
            major_faults=self._rate("major_faults", _only(memory, "pgmajfault"), seconds),
        )

    def _rate(self, name: str, counters: Counters | None, seconds: float) -> float | None:
        before = self._before.get(name, {})
        self._before[name] = counters or {}
        if not counters or seconds <= 0:
            return None
        grown = [value - before[key] for key, value in counters.items() if key in before]
        # A counter that goes back belongs to another boot, or to a container that was moved.
        if not grown or not all(0 <= one < math.inf for one in grown):
            return None
        return sum(grown) / seconds

    def _cores(self, usable: Usable, seconds: float) -> float | None:
        counters = self._problems.ask("processor times", lambda: self._busy(usable))
        busy = self._rate("cpu", counters, seconds)
        quota, count = usable.quota, usable.count
        if quota is None or (count is not None and count <= quota.cpus):
            self._before.pop("quota", None)
            return busy
        used = quota.used()
        if used is None:
            self._problems.say("processor use of the control group: cannot be read; processors in use are left out")
        by_group = self._rate("quota", None if used is None else {str(quota.usage): used}, seconds)
        if by_group is None:
            return None
        free = math.inf if busy is None or count is None else max(count - busy, 0.0)
        return max(by_group, quota.cpus - free)

    def _busy(self, usable: Usable) -> Counters:
        """Seconds for which the processors have worked; another set of processors is another counter."""
        processors, count = usable.processors, psutil.cpu_count()
        if processors is None or (count is not None and len(processors) >= count):
            return {"": _worked(psutil.cpu_times())}
        times = psutil.cpu_times(percpu=True)
        # psutil leaves out their numbers, which have gaps where a processor is offline.
        online = _numbers(self._sys / "devices/system/cpu/online")
        each = dict(zip(online if len(online) == len(times) else range(len(times)), times, strict=True))
        if not processors <= each.keys():  # a container may number those that it shows anew
            raise LookupError(f"bound to {_words(processors)}, told of {_words(each)}")
        return {_words(processors): math.fsum(_worked(each[number]) for number in processors)}

    def _disks(self) -> tuple[Counters, Counters]:
        counters = psutil.disk_io_counters(perdisk=True, nowrap=False)
        names = self._real(counters, "block")
        return (
            {name: float(counters[name].read_bytes) for name in names},
            {name: float(counters[name].write_bytes) for name in names},
        )

    def _network(self) -> tuple[Counters, Counters]:
        counters = psutil.net_io_counters(pernic=True, nowrap=False)
        names = self._real([name for name in counters if name not in {"lo", "lo0"}], "class/net")
        return (
            {name: float(counters[name].bytes_recv) for name in names},
            {name: float(counters[name].bytes_sent) for name in names},
        )

    def _real(self, names: Mapping[str, object] | list[str], kind: str) -> list[str]:
        """The devices that are hardware, else all of them.

        A bond, a bridge, a logical volume counts what its members count once more, and a partition what its disk does.
        In a container none is hardware: its one interface is virtual.
        """
        return [name for name in names if (self._sys / kind / name / "device").exists()] or list(names)


def difference(new: float, old: float | None, seconds: float) -> float | None:
    """How fast one counter grew a second; None at the first look, or when it went back."""
    if old is None or seconds <= 0 or not 0 <= new - old < math.inf:
        return None
    return (new - old) / seconds


def _worked(times: Any) -> float:
    # Guest time is part of user time; stolen time was another machine's.
    parts = ("user", "nice", "system", "irq", "softirq")
    return math.fsum(getattr(times, part, 0.0) for part in parts)


def _words(numbers: Iterable[int]) -> str:
    return ",".join(map(str, sorted(numbers)))


def _numbers(path: Path) -> list[int]:
    """The numbers of a list such as ``0-3,8``; none where the file is not there or holds something else."""
    found: list[int] = []
    try:
        for part in path.read_text(encoding="ascii").strip().split(","):
            first, _, last = part.partition("-")
            found += range(int(first), min(int(last or first), int(first) + _MOST_PROCESSORS - len(found)) + 1)
    except (OSError, ValueError):
        return []
    return found


def _vmstat() -> dict[str, float]:
    # psutil.swap_memory() takes twice as long, and tells 0 where it cannot tell.
    with (Path(psutil.PROCFS_PATH) / "vmstat").open("rb") as file:
        text = file.read(_VMSTAT_BYTES)
    found: dict[str, float] = {}
    for line in text.splitlines():
        name, _, value = line.partition(b" ")
        if name in {b"pswpin", b"pgmajfault"} and value.isdigit() and len(value) < 20:
            found[name.decode()] = float(value)
    return found


def _only(counters: Counters, name: str, unit: int = 1) -> Counters:
    return {name: counters[name] * unit} if name in counters else {}
