from __future__ import annotations

import os
import re
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import msgspec
import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorawatch.machine import checkpoint_size
from lorawatch.machine.cgroup import limits_of
from lorawatch.machine.host import HostSampler, Progress
from lorawatch.machine.processes import find_trainer, this_process, trainer_of
from lorawatch.records import HostReading
from tests.machine import jobs

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="reads Linux's /proc")

GIB = 1 << 30
NOW = 1_790_000_000.0


class Machine:
    """A sampler of a made-up machine: its /proc, /sys and control groups are files that a test writes."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.proc, self.sys, self.cgroup = root / "proc", root / "sys", root / "cgroup"
        self.run = root / "run"
        self.run.mkdir()
        self.now = 0.0
        self.write("proc/meminfo", meminfo(64, 40))
        self.counters(0)
        self.sampler = HostSampler(self.run, clock=lambda: self.now, cgroup=self.cgroup, sys=self.sys)

    def write(self, path: str, text: str | bytes) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(text if isinstance(text, bytes) else text.encode())

    def counters(self, amount: int) -> None:
        """Set each counter of the machine to ``amount`` of its units."""
        self.write("proc/stat", f"cpu {amount * 100} 0 0 {amount * 900} 0 0 0 0 0 0\nbtime 1700000000\n")
        self.write("proc/vmstat", f"pgfault 1\npgmajfault {amount}\npswpin {amount}\npswpout 0\n")
        disk = "{} {} {} 1 0 {sectors} 0 1 0 {sectors} 0 0 0 0\n"
        self.write(
            "proc/diskstats",
            "".join(
                disk.format(8, minor, name, sectors=amount)
                for minor, name in enumerate(("sda", "sda1", "dm-0", "loop0"))
            ),
        )
        nic = "{}: {n} 0 0 0 0 0 0 0 {n} 0 0 0 0 0 0 0\n"
        self.write(
            "proc/net/dev",
            "a\nb\n" + "".join(nic.format(name, n=amount) for name in ("lo", "eth0", "docker0", "bond0")),
        )

    def worked(self, **seconds: float) -> None:
        """Set for how long each processor has worked, named as in /proc/stat."""
        ticks = {name: round(each * os.sysconf("SC_CLK_TCK")) for name, each in seconds.items()}
        lines = [
            f"{name} {each} 0 0 900000 0 0 0 0 0 0" for name, each in {"cpu": sum(ticks.values()), **ticks}.items()
        ]
        self.write("proc/stat", "\n".join([*lines, "btime 1700000000", ""]))

    def later(self, seconds: float) -> HostReading:
        self.now += seconds
        return self.sampler.reading(NOW + self.now, Progress())


def meminfo(total: int, available: int) -> str:
    """Text of /proc/meminfo, sizes in GiB."""
    names = ("MemFree", "Buffers", "Cached", "Shmem", "Active", "Inactive", "SwapTotal", "SwapFree")
    return "".join(
        f"{name}: {gib * (1 << 20)} kB\n"
        for name, gib in {"MemTotal": total, "MemAvailable": available, **dict.fromkeys(names, 1)}.items()
    )


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Machine:
    monkeypatch.setattr(psutil, "PROCFS_PATH", str(tmp_path / "proc"))
    bind(monkeypatch, *range(4), of=4)
    return Machine(tmp_path)


def bind(monkeypatch: pytest.MonkeyPatch, *processors: int, of: int) -> None:
    """Let lorawatch run on these processors of a made-up machine."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(processors))
    monkeypatch.setattr(psutil, "cpu_count", lambda: of)


@pytest.fixture
def here(tmp_path: Path) -> HostSampler:
    """A sampler of the real machine, that does not know the trainer."""
    return HostSampler(tmp_path)


def test_the_real_machine_tells_what_it_has_and_no_rates_at_first(here: HostSampler, tmp_path: Path) -> None:
    here.look()
    reading = here.reading(NOW, Progress(idle=3.5, phase="saving", step=12))
    assert (reading.time, reading.seconds) == (NOW, 0.0)
    assert (reading.idle, reading.phase, reading.step) == (3.5, "saving", 12)
    assert reading.memory_total is not None
    assert reading.memory_available is not None
    assert 0 < reading.memory_available <= reading.memory_total
    assert reading.cpus is not None
    assert 0 < reading.cpus <= os.cpu_count()  # type: ignore[operator]
    assert reading.load is not None
    assert reading.disk_path == str(tmp_path)
    assert reading.disk_total is not None
    assert reading.disk_free is not None
    assert 0 < reading.disk_free <= reading.disk_total
    rates = (
        reading.cpu, reading.swap_in_rate, reading.major_faults_rate, reading.disk_read_rate,
        reading.disk_write_rate, reading.receive_rate, reading.send_rate,
    )  # fmt: skip
    assert rates == (None,) * 7
    assert (reading.alive, reading.processes, reading.checkpoint_bytes) == (None, [], None)
    assert here.problems == ()


def test_rates_are_what_counters_grew_by_a_second(machine: Machine) -> None:
    machine.write("sys/block/sda/device", "")
    machine.write("sys/class/net/eth0/device", "")
    assert machine.later(0).cpu is None
    machine.counters(1000)
    reading = machine.later(10)
    assert reading.seconds == 10
    assert reading.cpu == pytest.approx(1000 * 100 / os.sysconf("SC_CLK_TCK") / 10)
    assert reading.major_faults_rate == 100
    assert reading.swap_in_rate == 100 * os.sysconf("SC_PAGE_SIZE")
    assert reading.disk_read_rate == reading.disk_write_rate == 100 * 512, "the disk alone, not its parts"
    assert reading.receive_rate == reading.send_rate == 100, "the card alone, neither loopback nor bridge"


def test_where_no_device_is_hardware_as_in_a_container_all_count_but_loopback(machine: Machine) -> None:
    machine.later(0)
    machine.counters(1000)
    assert machine.later(10).receive_rate == 300


def test_counters_that_go_back_give_no_rate_for_that_time_only(machine: Machine) -> None:
    machine.counters(1000)
    machine.later(0)
    machine.counters(10)
    reading = machine.later(10)
    assert (reading.cpu, reading.swap_in_rate, reading.major_faults_rate) == (None, None, None)
    assert (reading.disk_read_rate, reading.disk_write_rate) == (None, None)
    assert (reading.receive_rate, reading.send_rate) == (None, None)
    machine.counters(20)
    assert machine.later(10).major_faults_rate == 1


def test_a_device_that_appears_does_not_count_for_what_it_did_before(machine: Machine) -> None:
    machine.later(0)
    nics = (machine.proc / "net" / "dev").read_text()
    machine.write("proc/net/dev", nics + "eth1: 999999 0 0 0 0 0 0 0 999999 0 0 0 0 0 0 0\n")
    assert machine.later(10).receive_rate == 0


def test_what_is_missing_is_none_and_said_once(machine: Machine) -> None:
    for name in ("stat", "vmstat", "diskstats", "net/dev", "meminfo"):
        (machine.proc / name).unlink()
    machine.later(10)
    reading = machine.later(10)
    assert (reading.memory_total, reading.memory_available, reading.cpu) == (None, None, None)
    assert (reading.swap_in_rate, reading.major_faults_rate, reading.receive_rate) == (None, None, None)
    assert reading.cpus is not None
    subjects = sorted(problem.partition(":")[0] for problem in machine.sampler.problems)
    assert subjects == sorted(
        {"memory", "processor times", "/proc/vmstat", "network counters", "load average"} & {*subjects}
    )
    assert "memory" in subjects
    assert "/proc/vmstat" in subjects
    assert all("\n" not in problem for problem in machine.sampler.problems)


def test_memory_is_that_of_the_lowest_look_since_the_reading_before(machine: Machine) -> None:
    for available in (30, 8, 20):
        machine.write("proc/meminfo", meminfo(64, available))
        machine.sampler.look()
    reading = machine.later(10)
    assert (reading.memory_total, reading.memory_available) == (64 * GIB, 8 * GIB)
    assert machine.later(10).memory_available == 20 * GIB


V2 = {
    "proc/self/cgroup": "0::/slice/job/step\n",
    "cgroup/slice/job/step/memory.max": "max\n",
    "cgroup/slice/job/memory.max": f"{16 * GIB}\n",
    "cgroup/slice/job/memory.current": f"{12 * GIB}\n",
    "cgroup/slice/job/memory.stat": f"anon {6 * GIB}\ninactive_file {5 * GIB}\nactive_file {GIB}\n",
    "cgroup/slice/memory.max": f"{32 * GIB}\n",
    "cgroup/slice/memory.current": f"{30 * GIB}\n",
    "cgroup/slice/memory.stat": "inactive_file 0\n",
    "cgroup/slice/job/step/cpu.max": "max 100000\n",
    "cgroup/slice/job/cpu.max": "150000 100000\n",
    "cgroup/slice/cpu.max": "800000 100000\n",
}
V1 = {
    "proc/self/cgroup": "5:memory:/docker/abc\n4:cpu,cpuacct:/docker/abc\n1:name=systemd:/\n",
    "cgroup/memory/docker/abc/memory.limit_in_bytes": f"{8 * GIB}\n",
    "cgroup/memory/docker/abc/memory.usage_in_bytes": f"{7 * GIB}\n",
    "cgroup/memory/docker/abc/memory.stat": f"inactive_file 1\ntotal_inactive_file {2 * GIB}\n",
    "cgroup/memory/memory.limit_in_bytes": "9223372036854771712\n",
    "cgroup/cpu,cpuacct/docker/abc/cpu.cfs_quota_us": "50000\n",
    "cgroup/cpu,cpuacct/docker/abc/cpu.cfs_period_us": "100000\n",
    "cgroup/cpu,cpuacct/cpu.cfs_quota_us": "-1\n",
}


@pytest.mark.parametrize(
    ("tree", "total", "available", "cpus"),
    [
        (V2, 16, 2, 1.5),  # the slice around the job has less left than the job's own limit leaves
        (V1, 8, 3, 0.5),
        ({**V2, "cgroup/slice/memory.max": "max\n"}, 16, 9, 1.5),
        ({**V2, "cgroup/slice/memory.max": f"{10 * GIB}"}, 10, 0, 1.5),
        ({**V2, "proc/meminfo": meminfo(64, 1)}, 16, 1, 1.5),
        # A container without a cgroup namespace: the machine's path, its own group mounted as the root.
        ({"proc/self/cgroup": "0::/kube/pod\n", "cgroup/memory.max": f"{4 * GIB}", "cgroup/memory.current": "0",
          "cgroup/cpu.max": "25000 100000"}, 4, 4, 0.25),
        ({**V1, "cgroup/memory/docker/abc/memory.usage_in_bytes": f"{9 * GIB}",
          "cgroup/memory/docker/abc/memory.stat": ""}, 8, 0, 0.5),
    ],
    ids=["version 2", "version 1", "one level", "outer one", "machine full", "container", "above its limit"],
)  # fmt: skip
def test_the_tightest_limit_of_the_control_groups_counts(
    tree: dict[str, str], total: int, available: int, cpus: float, machine: Machine
) -> None:
    for path, text in tree.items():
        machine.write(path, text)
    reading = machine.later(0)
    assert (reading.memory_total, reading.memory_available) == (total * GIB, available * GIB)
    assert reading.cpus == cpus


@pytest.mark.parametrize(
    "tree",
    [
        {},
        {"proc/self/cgroup": "0::/../../other\n", "cgroup/memory.max": f"{4 * GIB}"},
        {"proc/self/cgroup": "0::/\n", "cgroup/memory.max": f"{128 * GIB}", "cgroup/memory.current": "0"},
        {"proc/self/cgroup": "4:memory:/\n", "cgroup/memory/memory.limit_in_bytes": "9223372036854771712"},
    ],
    ids=["none", "a group out of sight", "more than the machine has", "unlimited"],
)
def test_without_a_lower_limit_the_machine_counts(tree: dict[str, str], machine: Machine) -> None:
    for path, text in tree.items():
        machine.write(path, text)
    reading = machine.later(0)
    assert (reading.memory_total, reading.memory_available) == (64 * GIB, 40 * GIB)
    assert reading.cpus == len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("processors", "cpus", "cpu"), [({0}, 1, 1.0), ({1}, 1, 0.1), ({0, 2}, 2, 1.5), ({0, 1, 2, 3}, 4, 2.6)]
)
def test_processors_in_use_are_those_that_the_run_may_use(
    processors: set[int], cpus: float, cpu: float, machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind(monkeypatch, *processors, of=4)
    machine.worked(cpu0=100, cpu1=100, cpu2=100, cpu3=100)
    assert machine.later(0).cpu is None
    machine.worked(cpu0=110, cpu1=101, cpu2=105, cpu3=110)
    reading = machine.later(10)
    assert reading.cpus == cpus
    assert reading.cpu == pytest.approx(cpu)


def test_processors_keep_their_numbers_where_others_are_offline(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind(monkeypatch, 4, of=3)
    machine.write("sys/devices/system/cpu/online", "0-1,4\n")
    machine.worked(cpu0=0, cpu1=0, cpu4=0)
    machine.later(0)
    machine.worked(cpu0=10, cpu1=10, cpu4=3)
    assert machine.later(10).cpu == pytest.approx(0.3)


def test_processors_that_the_system_does_not_tell_of_leave_out_what_is_in_use(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind(monkeypatch, 40, of=2)
    machine.worked(cpu0=0, cpu1=0)
    machine.later(0)
    machine.worked(cpu0=10, cpu1=10)
    reading = machine.later(10)
    assert (reading.cpus, reading.cpu) == (1, None)
    assert [one for one in machine.sampler.problems if "bound to 40, told of 0,1" in one]


def test_affinity_is_read_at_the_start_and_every_half_minute(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[float] = []

    def affinity(_: int) -> set[int]:
        asked.append(machine.now)
        return {0} if machine.now < 20 else {0, 1}

    monkeypatch.setattr(os, "sched_getaffinity", affinity)
    machine.worked(cpu0=0, cpu1=0, cpu2=0, cpu3=0)
    found: list[tuple[float | None, float | None]] = []
    for now in range(0, 60, 10):
        machine.worked(cpu0=now, cpu1=now / 2, cpu2=now, cpu3=0)
        reading = machine.later(10 if now else 0)
        found.append((reading.cpus, reading.cpu and round(reading.cpu, 3)))
    assert asked == [0, 30]
    # The first rate of other processors would be of two that do not compare.
    assert found == [(1, None), (1, 1.0), (1, 1.0), (2, None), (2, 1.5), (2, 1.5)]


USED_V2 = ("cgroup/slice/job/cpu.stat", "usage_usec {}\nuser_usec 1\n", 10**6)
USED_V1 = ("cgroup/cpu,cpuacct/docker/abc/cpuacct.usage", "{}\n", 10**9)
USED_APART = ("cgroup/cpuacct/docker/abc/cpuacct.usage", "{}\n", 10**9)


@pytest.mark.parametrize(
    ("tree", "usage", "cpus"),
    [(V2, USED_V2, 1.5), (V1, USED_V1, 0.5), (V1, USED_APART, 0.5)],
    ids=["version 2", "version 1", "version 1, counted apart"],
)
def test_under_a_quota_what_its_group_uses_counts(
    tree: dict[str, str], usage: tuple[str, str, int], cpus: float, machine: Machine
) -> None:
    path, text, unit = usage
    for file, content in tree.items():
        machine.write(file, content)
    machine.worked(cpu0=0, cpu1=0, cpu2=0, cpu3=0)
    machine.write(path, text.format(7 * unit))
    assert machine.later(0).cpu is None
    machine.worked(cpu0=10, cpu1=8, cpu2=0, cpu3=0)
    machine.write(path, text.format(11 * unit))
    reading = machine.later(10)
    assert reading.cpus == cpus
    assert reading.cpu == pytest.approx(0.4), "not the 1.8 of the whole machine"
    machine.worked(cpu0=20, cpu1=18, cpu2=10, cpu3=8)  # others leave 0.2 of a processor
    machine.write(path, text.format(12 * unit))
    assert machine.later(10).cpu == pytest.approx(cpus - 0.2)


def test_a_quota_that_leaves_more_than_the_affinity_does_not_count(
    machine: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    bind(monkeypatch, 3, of=4)
    for file, content in V2.items():
        machine.write(file, content)
    machine.worked(cpu0=0, cpu1=0, cpu2=0, cpu3=0)
    machine.later(0)
    machine.worked(cpu0=10, cpu1=10, cpu2=10, cpu3=7)
    reading = machine.later(10)
    assert reading.cpus == 1
    assert reading.cpu == pytest.approx(0.7)


def test_a_quota_whose_use_cannot_be_read_leaves_out_what_is_in_use(machine: Machine) -> None:
    for file, content in V2.items():
        machine.write(file, content)
    machine.later(0)
    machine.counters(1000)
    reading = machine.later(10)
    assert (reading.cpus, reading.cpu) == (1.5, None)
    assert [one for one in machine.sampler.problems if one.startswith("processor use of the control group")]


def test_a_limit_whose_use_cannot_be_read_leaves_out_what_is_available(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "0::/\n")
    machine.write("cgroup/memory.max", f"{4 * GIB}")
    machine.later(0)
    reading = machine.later(10)
    assert (reading.memory_total, reading.memory_available) == (4 * GIB, None)
    assert [problem for problem in machine.sampler.problems if "control group" in problem] == [
        "memory use of the control group: cannot be read; available memory is left out"
    ]


def test_the_largest_number_of_version_1_is_no_limit(machine: Machine) -> None:
    machine.write("proc/self/cgroup", "4:memory:/\n")
    machine.write("cgroup/memory/memory.limit_in_bytes", "9223372036854771712")
    assert limits_of(None, root=machine.cgroup).memory == ()


def test_the_limits_of_a_trainer_that_ended_stay_known(machine: Machine) -> None:
    files = machine.proc / str(os.getpid())
    for name in ("stat", "status", "statm", "cmdline", "environ"):
        machine.write(f"proc/{os.getpid()}/{name}", Path(f"/proc/{os.getpid()}/{name}").read_bytes())
    machine.write(f"proc/{os.getpid()}/cgroup", "0::/job\n")
    machine.write("cgroup/job/memory.max", f"{4 * GIB}")
    machine.write("cgroup/job/memory.current", "0")
    machine.sampler.trainer = this_process()
    reading = machine.later(0)
    assert (reading.alive, reading.memory_total) == (True, 4 * GIB)
    shutil.rmtree(files)
    reading = machine.later(60)
    assert (reading.alive, reading.memory_total, reading.processes) == (False, 4 * GIB, [])


def test_limits_are_read_again_every_half_minute(machine: Machine) -> None:
    machine.later(0)
    machine.write("proc/self/cgroup", "0::/\n")
    machine.write("cgroup/memory.max", f"{4 * GIB}")
    machine.write("cgroup/memory.current", "0")
    assert machine.later(29).memory_total == 64 * GIB
    assert machine.later(1).memory_total == 4 * GIB


@pytest.fixture
def src(tmp_path: Path) -> Path:
    return tmp_path / "src"


BUSY = """
from job import *
import time
kept = [start_worker('fork', b'pt_data_worker') for _ in range(2)]
ready()
"""


class Stepped:
    """A sampler of a real job, with a clock that the test moves."""

    def __init__(self, folder: Path, pid: int) -> None:
        self.now = 0.0
        self.sampler = HostSampler(folder, trainer_of(psutil.Process(pid), "a test"), clock=lambda: self.now)

    def reading(self, seconds: float) -> HostReading:
        self.now += seconds
        return self.sampler.reading(NOW + self.now, Progress())


@pytest.fixture
def job(tmp_path: Path, src: Path) -> Iterator[jobs.Job]:
    script = jobs.write(src, "train.py", BUSY)
    with jobs.running([script], cwd=src) as job:
        yield job


def test_the_trainer_stands_first_and_its_workers_behind(job: jobs.Job, tmp_path: Path) -> None:
    stepped = Stepped(tmp_path, job.pid)
    first = stepped.reading(0)
    assert [(one.role, one.cpu) for one in first.processes] == [("trainer", None), ("worker", None), ("worker", None)]
    assert first.processes[0].pid == job.pid
    second = stepped.reading(10)
    assert second.alive is True
    for one in second.processes:
        assert one.cpu is not None
        assert one.cpu >= 0
        assert one.rss is not None
        assert one.rss > 1 << 20
        assert one.read_rate is not None
        assert one.waiting_for_disk == 0
    assert stepped.sampler.problems == ()


def test_a_process_uses_as_many_cores_as_its_own_time_tells(tmp_path: Path) -> None:
    stepped = Stepped(tmp_path, os.getpid())
    stepped.reading(0)
    until = time.process_time() + 0.1
    while time.process_time() < until:
        pass
    cpu = stepped.reading(1).processes[0].cpu
    assert cpu is not None
    assert 0.05 < cpu < 1


def test_looks_at_which_a_process_waits_for_the_disk_are_counted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    states = iter(["sleeping", psutil.STATUS_DISK_SLEEP, psutil.STATUS_DISK_SLEEP, "running"])
    stepped = Stepped(tmp_path, os.getpid())
    with monkeypatch.context() as patch:
        patch.setattr(psutil.Process, "status", lambda _: next(states, "running"))
        for _ in range(3):
            stepped.sampler.look()
            stepped.now += 1
        assert stepped.reading(0).processes[0].waiting_for_disk == 0.5
        assert stepped.reading(0).processes[0].waiting_for_disk == 0


def test_what_a_process_of_another_user_reads_is_left_out_and_said_once(
    job: jobs.Job, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []

    def denied(self: psutil.Process) -> None:
        asked.append(self.pid)
        raise psutil.AccessDenied(self.pid)

    monkeypatch.setattr(psutil.Process, "io_counters", denied)
    stepped = Stepped(tmp_path, job.pid)
    stepped.reading(0)
    reading = stepped.reading(10)
    assert [one.read_rate for one in reading.processes] == [None] * 3
    assert [one.cpu is None for one in reading.processes] == [False] * 3
    assert len(asked) == 3, "each is asked once"
    assert len(stepped.sampler.problems) == 1


def test_a_trainer_that_ends_is_not_alive_and_leaves_the_list(job: jobs.Job, tmp_path: Path) -> None:
    one = min(os.sched_getaffinity(0))
    os.sched_setaffinity(job.pid, {one})
    stepped = Stepped(tmp_path, job.pid)
    first = stepped.reading(0)
    assert first.alive is True
    bound = first.cpus
    os.close(job.go)
    job.go = -1
    os.waitid(os.P_PID, job.pid, os.WEXITED | os.WNOWAIT)
    for _ in range(2):  # as a zombie first, and then gone
        reading = stepped.reading(1)
        assert reading.alive is False
        assert job.pid not in [one.pid for one in reading.processes]
        job.process.wait()
    reading = stepped.reading(10)
    assert reading.memory_total is not None
    assert reading.cpus == bound


def test_a_trainer_that_is_found_later_is_taken_up(job: jobs.Job, tmp_path: Path) -> None:
    sampler = HostSampler(tmp_path)
    assert sampler.reading(NOW, Progress()).alive is None
    sampler.trainer = trainer_of(psutil.Process(job.pid), "a test")
    reading = sampler.reading(NOW + 10, Progress())
    assert reading.alive is True
    assert [one.role for one in reading.processes] == ["trainer", "worker", "worker"]


def test_processes_that_are_gone_are_forgotten(job: jobs.Job, tmp_path: Path) -> None:
    stepped = Stepped(tmp_path, job.pid)
    stepped.reading(0)
    stepped.sampler.trainer = trainer_of(psutil.Process(), "a test")
    assert [one.pid for one in stepped.reading(1).processes if one.role == "trainer"] == [os.getpid()]
    job.end()
    stepped.reading(10)
    assert len(stepped.sampler._followed) == 1


def test_processors_are_those_that_the_trainer_may_use(job: jobs.Job, tmp_path: Path) -> None:
    one = min(os.sched_getaffinity(0))
    os.sched_setaffinity(job.pid, {one})
    assert Stepped(tmp_path, job.pid).reading(0).cpus == 1


def test_a_watched_log_leads_to_readings_of_who_writes_it(src: Path, tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    script = jobs.write(src, "train.py", BUSY)
    with jobs.running([script], log=log, cwd=src) as job:
        sampler = HostSampler(tmp_path, find_trainer([log], None).trainer)
        assert [one.role for one in sampler.reading(NOW, Progress()).processes] == ["trainer", "worker", "worker"]
        assert sampler.trainer is not None
        assert sampler.trainer.pid == job.pid


def test_before_the_folder_is_there_the_nearest_folder_above_it_is_looked_at(tmp_path: Path) -> None:
    sampler = HostSampler(tmp_path / "out" / "run")
    assert sampler.reading(NOW, Progress()).disk_path == str(tmp_path)
    (tmp_path / "out" / "run").mkdir(parents=True)
    assert sampler.reading(NOW, Progress()).disk_path == str(tmp_path / "out" / "run")
    assert sampler.problems == ()


def test_a_folder_that_went_away_does_not_show_another_file_system(tmp_path: Path) -> None:
    folder = tmp_path / "mount"
    folder.mkdir()
    sampler = HostSampler(folder)
    sampler.reading(NOW, Progress())
    folder.rmdir()
    for _ in range(2):
        reading = sampler.reading(NOW, Progress())
        assert (reading.disk_path, reading.disk_total, reading.disk_free) == (str(folder), None, None)
    assert sampler.problems == (
        f"{folder}: its file system does not answer (it was there and is gone); is it mounted?",
    )
    folder.mkdir()
    assert sampler.reading(NOW, Progress()).disk_total is not None


def test_a_file_system_that_fails_or_has_no_size_is_not_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(path: str) -> None:
        raise OSError(116, "Stale file handle")

    sampler = HostSampler(tmp_path)
    monkeypatch.setattr(psutil, "disk_usage", stale)
    for _ in range(2):
        assert sampler.reading(NOW, Progress()).disk_free is None
    assert sampler.problems == (f"{tmp_path}: its file system does not answer (Stale file handle); is it mounted?",)
    monkeypatch.setattr(psutil, "disk_usage", lambda _: SimpleNamespace(total=0, free=0))
    reading = sampler.reading(NOW, Progress())
    assert (reading.disk_total, reading.disk_free) == (None, None)


def save(run: Path, step: int, *sizes: int) -> None:
    folder = run / f"checkpoint-{step}"
    folder.mkdir(exist_ok=True)
    for number, size in enumerate(sizes):
        (folder / f"{number}.bin").write_bytes(bytes(size))


def test_a_checkpoint_is_measured_once_it_does_not_change_any_more(machine: Machine) -> None:
    save(machine.run, 9, 100)
    assert machine.later(0).checkpoint_bytes is None
    save(machine.run, 9, 100, 50)
    assert machine.later(29).checkpoint_bytes is None
    assert machine.later(1).checkpoint_bytes is None, "it has grown since the look before"
    assert machine.later(30).checkpoint_bytes == 150
    save(machine.run, 10, 1)
    assert machine.later(30).checkpoint_bytes == 150, "the new one may still be written"
    save(machine.run, 10, 1, 2000)
    assert machine.later(30).checkpoint_bytes == 150
    assert machine.later(30).checkpoint_bytes == 2001


def test_links_in_a_checkpoint_are_not_followed_and_folders_in_it_count(machine: Machine, tmp_path: Path) -> None:
    (tmp_path / "base.bin").write_bytes(bytes(5000))
    save(machine.run, 9, 100)
    (machine.run / "checkpoint-9" / "base.bin").symlink_to(tmp_path / "base.bin")
    (machine.run / "checkpoint-9" / "loop").symlink_to(machine.run)
    (machine.run / "checkpoint-9" / "global_step9").mkdir()
    (machine.run / "checkpoint-9" / "global_step9" / "rank0.pt").write_bytes(bytes(40))
    (machine.run / "checkpoint-99").symlink_to(machine.run / "checkpoint-9")
    (machine.run / "checkpoint-100").write_bytes(b"a file")
    machine.later(0)
    assert machine.later(30).checkpoint_bytes == 140


def test_a_checkpoint_of_too_many_files_is_not_measured(machine: Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint_size, "_MOST", 5)
    save(machine.run, 9, *range(6))
    for _ in range(3):
        assert machine.later(30).checkpoint_bytes is None
    assert "checkpoint-9: more than 5 files; its size is not measured" in machine.sampler.problems


GARBAGE = st.one_of(
    st.binary(max_size=200),
    st.text(alphabet="0123456789-. :\nmaxcpulo/kB", max_size=200).map(str.encode),
    st.sampled_from([b"", b"\x00" * 64, b"-1", b"9" * 400, b"max max max", b"0 0", b"cpu\n", b"0::/" + b"a/" * 3000]),
)
PROCESS_FILES = ("stat", "status", "statm", "io", "cmdline", "cgroup", "environ")
FILES = (
    "proc/meminfo", "proc/stat", "proc/vmstat", "proc/diskstats", "proc/net/dev", "proc/loadavg", "proc/self/cgroup",
    "cgroup/memory.max", "cgroup/memory.current", "cgroup/memory.stat", "cgroup/cpu.max",
    "cgroup/memory/memory.limit_in_bytes", "cgroup/memory/memory.usage_in_bytes", "cgroup/memory/memory.stat",
    "cgroup/cpu/cpu.cfs_quota_us", "cgroup/cpu/cpu.cfs_period_us", "cgroup/cpu.stat", "cgroup/cpuacct/cpuacct.usage",
    "sys/devices/system/cpu/online",
)  # fmt: skip


ODD_NUMBERS = ("9" * 400, "18446744073709551615", "-5", "nan", "1e999", "")


def spoilt(content: bytes, number: str, every: int) -> bytes:
    """The content with each ``every``-th of its numbers replaced."""
    count = iter(range(1_000_000))
    return re.sub(rb"\b\d+\b", lambda found: number.encode() if next(count) % every == 0 else found[0], content)


def check(reading: HostReading) -> None:
    assert msgspec.json.decode(msgspec.json.encode(reading), type=HostReading) == reading
    for value in (reading.memory_available, reading.cpu, reading.receive_rate, reading.major_faults_rate):
        assert value is None or value >= 0


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(FILES), GARBAGE, min_size=1, max_size=6))
def test_whatever_stands_in_the_files_of_the_machine_nothing_is_raised(
    machine: Machine, garbage: dict[str, bytes]
) -> None:
    machine.write("proc/self/cgroup", "0::/\n4:memory:/\n3:cpu:/\n")
    for path, content in garbage.items():
        machine.write(path, content)
    machine.sampler.look()
    check(machine.later(30))
    limits = limits_of(None, root=machine.cgroup)
    assert limits.cpus is None or limits.cpus > 0
    assert len(machine.sampler.problems) <= 32


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.dictionaries(st.sampled_from(["proc/stat", "sys/devices/system/cpu/online"]), GARBAGE, min_size=1))
def test_whatever_is_told_of_the_processors_that_a_run_is_bound_to_nothing_is_raised(
    machine: Machine, monkeypatch: pytest.MonkeyPatch, garbage: dict[str, bytes]
) -> None:
    bind(monkeypatch, 0, of=4)
    machine.worked(cpu0=1, cpu1=1)
    check(machine.later(30))
    for path, content in garbage.items():
        machine.write(path, content)
    check(machine.later(30))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from(FILES[:5]), st.sampled_from(ODD_NUMBERS), st.integers(1, 7), st.booleans())
def test_whatever_numbers_the_counters_hold_nothing_is_raised(
    machine: Machine, path: str, number: str, every: int, first: bool
) -> None:
    machine.write("proc/meminfo", meminfo(64, 40))
    machine.counters(10)
    if not first:
        check(machine.later(10))
    machine.write(path, spoilt((machine.root / path).read_bytes(), number, every))
    check(machine.later(10))
    machine.write("proc/meminfo", meminfo(64, 40))
    machine.counters(20)
    check(machine.later(10))


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.dictionaries(st.sampled_from(PROCESS_FILES), GARBAGE, max_size=3),
    st.sampled_from(PROCESS_FILES), st.sampled_from(ODD_NUMBERS), st.integers(1, 7),
)  # fmt: skip
def test_whatever_stands_in_the_files_of_the_trainer_nothing_is_raised(
    machine: Machine, garbage: dict[str, bytes], path: str, number: str, every: int
) -> None:
    real = {name: Path(f"/proc/{os.getpid()}/{name}").read_bytes() for name in PROCESS_FILES}
    for name, content in real.items():
        machine.write(f"proc/{os.getpid()}/{name}", content)
    machine.sampler.trainer = this_process()
    check(machine.later(10))
    for name, content in ({path: spoilt(real[path], number, every)} | garbage).items():
        machine.write(f"proc/{os.getpid()}/{name}", content)
    check(machine.later(10))
    check(machine.later(10))
    find_trainer([], machine.run)
