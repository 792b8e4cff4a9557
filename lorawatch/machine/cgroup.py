"""What a control group leaves of the machine's memory and processors, versions 1 and 2 of Linux's cgroups.

A group lies in others, and each may set a limit: the tightest counts. A file that is missing, or holds what it should
not, sets no limit.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil

ROOT = Path("/sys/fs/cgroup")
_LEVELS = 32
"""Groups within groups that are looked at."""
_UNLIMITED = 1 << 60
"""Bytes from which version 1 means no limit: it writes the largest number of whole pages that fits 63 bits."""
_STAT_BYTES = 1 << 16
"""Bytes read of ``memory.stat`` and of ``/proc/PID/cgroup``."""


@dataclass(frozen=True, slots=True)
class Names:
    """The files of one version that tell of memory."""

    limit: str
    usage: str
    reclaimable: bytes


V2 = Names("memory.max", "memory.current", b"inactive_file ")
V1 = Names("memory.limit_in_bytes", "memory.usage_in_bytes", b"total_inactive_file ")


@dataclass(frozen=True, slots=True)
class MemoryLimit:
    """One group that limits memory.

    Attributes:
        folder: The group's folder.
        names: Its files.
        limit: Bytes that it allows.
    """

    folder: Path
    names: Names
    limit: int

    def available(self) -> int | None:
        """Bytes that are still to be had: limit less use, page cache that can be dropped at once counted as free.

        That is what Kubernetes calls the working set: ``memory.current`` less ``inactive_file``.
        """
        usage = _number(self.folder / self.names.usage)
        if usage is None:
            return None
        reclaimable = min(_stat(self.folder / "memory.stat", self.names.reclaimable), usage)
        return max(0, min(self.limit, self.limit - usage + reclaimable))


@dataclass(frozen=True, slots=True)
class CpuQuota:
    """One group that limits processor time.

    Attributes:
        cpus: Processors' worth of time that it allows.
        usage: Files that tell what was used of it, the first that can be read counts: ``cpu.stat`` of version 2,
            ``cpuacct.usage`` of version 1.
    """

    cpus: float
    usage: tuple[Path, ...]

    def used(self) -> float | None:
        """Seconds of processor time that all processes of the group have used; None where it cannot be read."""
        for file in self.usage:
            if file.name == "cpu.stat":
                used, unit = _field(file, b"usage_usec "), 1e-6
            else:
                used, unit = _number(file), 1e-9
            if used is not None:
                return used * unit
        return None


@dataclass(frozen=True, slots=True)
class Limits:
    """The limits that hold for one process.

    Attributes:
        memory: The groups that limit memory, the tightest first; empty when none does.
        quota: The group that leaves the least processor time; None when none limits it.
    """

    memory: tuple[MemoryLimit, ...] = ()
    quota: CpuQuota | None = None

    @property
    def cpus(self) -> float | None:
        """Processors' worth of time that may be used; None when there is no quota."""
        return None if self.quota is None else self.quota.cpus

    @property
    def memory_total(self) -> int | None:
        """The tightest limit in bytes; None when there is none."""
        return self.memory[0].limit if self.memory else None

    def memory_available(self) -> int | None:
        """Bytes that are still to be had within all limits; None when there is none, or use cannot be read."""
        return min((left for one in self.memory if (left := one.available()) is not None), default=None)


def limits_of(pid: int | None, *, root: Path = ROOT) -> Limits:
    """The limits of a process; None as the pid is lorawatch's own. Never raises.

    Args:
        pid: The process.
        root: Where the groups are mounted; given by tests.
    """
    memory: list[MemoryLimit] = []
    quotas: list[CpuQuota] = []
    for controllers, path in _groups(pid):
        if controllers == {""}:
            base = root / "unified" if (root / "unified").is_dir() else root
            for folder in _levels(base, path):
                memory += _memory_limit(folder, V2)
                quotas += _quota_v2(folder)
        elif "memory" in controllers:
            for folder in _levels(root / "memory", path):
                memory += _memory_limit(folder, V1)
        if "cpu" in controllers:
            base = root / "cpu" if (root / "cpu").is_dir() else root / "cpu,cpuacct"
            for folder in _levels(base, path):
                quotas += _quota_v1(folder, root / "cpuacct" / folder.relative_to(base))
    memory.sort(key=lambda one: one.limit)
    return Limits(tuple(memory), min(quotas, key=lambda one: one.cpus, default=None))


def _groups(pid: int | None) -> Iterator[tuple[set[str], str]]:
    """Controllers and path of each group that a process is in; version 2 has the controller ""."""
    text = _read(Path(psutil.PROCFS_PATH) / ("self" if pid is None else str(pid)) / "cgroup", _STAT_BYTES)
    for line in text.decode(errors="replace").splitlines():
        fields = line.split(":", 2)
        if len(fields) == 3:
            yield set(fields[1].split(",")), fields[2]


def _levels(base: Path, path: str) -> Iterator[Path]:
    """The folders of a group and of those that it lies in.

    Folders that are not there are passed over: a container without a cgroup namespace is told the machine's path, and
    finds its own group mounted as the root.
    """
    parts = [part for part in path.split("/") if part not in {"", "."}][:_LEVELS]
    if ".." in parts:  # the process is in a group that cannot be seen from here
        return
    for depth in range(len(parts), -1, -1):
        yield base.joinpath(*parts[:depth])


def _memory_limit(folder: Path, names: Names) -> list[MemoryLimit]:
    limit = _number(folder / names.limit)
    return [] if limit is None or limit >= _UNLIMITED else [MemoryLimit(folder, names, limit)]


def _quota_v2(folder: Path) -> list[CpuQuota]:
    fields = _read(folder / "cpu.max", 64).split()
    if len(fields) != 2:
        return []
    return _share(_whole(fields[0]), _whole(fields[1]), folder / "cpu.stat")


def _quota_v1(folder: Path, accounts: Path) -> list[CpuQuota]:
    """The quota of a group; ``accounts`` is its folder where processor time is counted by a controller apart."""
    quota, period = _number(folder / "cpu.cfs_quota_us"), _number(folder / "cpu.cfs_period_us")
    return _share(quota, period, folder / "cpuacct.usage", accounts / "cpuacct.usage")


def _share(quota: int | None, period: int | None, *usage: Path) -> list[CpuQuota]:
    return [CpuQuota(quota / period, usage)] if quota and period else []


def _number(path: Path) -> int | None:
    return _whole(_read(path, 64).strip())


def _whole(text: bytes) -> int | None:
    """A whole number that is not negative; None for anything else (``max``, ``-1``)."""
    return int(text) if text.isdigit() and len(text) < 20 else None


def _stat(path: Path, name: bytes) -> int:
    """A value of ``memory.stat``; 0 when it is not there: then no cache counts as free."""
    return _field(path, name) or 0


def _field(path: Path, name: bytes) -> int | None:
    """The value of a line of the form ``name value``; None when it is not there."""
    for line in _read(path, _STAT_BYTES).splitlines():
        if line.startswith(name):
            return _whole(line[len(name) :].strip())
    return None


def _read(path: Path, size: int) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(size)
    except (OSError, ValueError):
        return b""
