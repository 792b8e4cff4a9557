"""The process that trains a run, and what may be asked of any process without ever raising."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import psutil

from lorawatch.machine import process_kinds

RANKS = ("RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID")
"""What launchers put into the environment of a rank; the first that is there counts (torchrun, MPI, Slurm)."""
JOBS = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT", "SLURM_JOB_ID", "SLURM_STEP_ID")
"""What ranks of one job share."""
ERRORS = (psutil.Error, OSError, ValueError, LookupError, ArithmeticError)
"""What psutil raises for a process that ends, belongs to another user, or whose ``/proc`` makes no sense."""


@dataclass(frozen=True, slots=True)
class Trainer:
    """The process that trains a run.

    Attributes:
        process: Its handle, which tells it from a later process with the same id.
        command: Interpreter and program, without arguments: these may hold secrets.
        evidence: How it was found, a sentence for a person.
        certain: False when only its working directory speaks for it.
        ranks: The other ranks of the same job on this machine.
        visible_devices: ``CUDA_VISIBLE_DEVICES`` as the process was started with; None when unset or not readable.
        device_order: ``CUDA_DEVICE_ORDER``, likewise.
    """

    process: psutil.Process
    command: str
    evidence: str
    certain: bool = True
    ranks: tuple[psutil.Process, ...] = ()
    visible_devices: str | None = None
    device_order: str | None = None

    @property
    def pid(self) -> int:
        """Its process id, in lorawatch's own pid namespace."""
        return self.process.pid

    @property
    def alive(self) -> bool:
        """Whether it is still there: the same process, and no zombie."""
        return alive(self.process)


def trainer_of(process: psutil.Process, evidence: str, *, certain: bool = True) -> Trainer:
    """Describe a process that is known to train: its ranks and devices. What cannot be read is left out."""
    environment: Mapping[str, str] = os.environ if process.pid == os.getpid() else environment_of(process)
    return Trainer(
        process, process_kinds.shown(command_of(process)), evidence, certain, _other_ranks(process, environment),
        environment.get("CUDA_VISIBLE_DEVICES"), environment.get("CUDA_DEVICE_ORDER"),
    )  # fmt: skip


def this_process() -> Trainer:
    """The process that asks, as a trainer: for a callback, which needs no search."""
    return trainer_of(psutil.Process(), "lorawatch runs inside it")


def rank_of(environment: Mapping[str, str]) -> int | None:
    """The rank that a launcher gave to a process; None when it gave none."""
    for name in RANKS:
        text = environment.get(name)
        if text is not None:
            return int(text) if text.isascii() and text.isdigit() and len(text) < 10 else None
    return None


def job_of(environment: Mapping[str, str]) -> tuple[str | None, ...]:
    """What tells the job of a rank from another job."""
    return tuple(environment.get(name) for name in JOBS)


def alive(process: psutil.Process) -> bool:
    """Whether a process is still there: the same one, and no zombie."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except ERRORS:
        return False


def process_of(pid: int) -> psutil.Process | None:
    """The handle of a process; None when it is not there."""
    try:
        return psutil.Process(pid)
    except ERRORS:
        return None


def command_of(process: psutil.Process) -> list[str]:
    """Its command line; empty when it cannot be read, or for a thread of the kernel."""
    try:
        return process.cmdline()
    except ERRORS:
        return []


def name_of(process: psutil.Process) -> str:
    """Its name; "" when it cannot be read."""
    try:
        return process.name()
    except ERRORS:
        return ""


def environment_of(process: psutil.Process) -> dict[str, str]:
    """The environment that it was started with; empty when it cannot be read."""
    try:
        return process.environ()
    except ERRORS:
        return {}


def cwd_of(process: psutil.Process) -> str:
    """Its working directory; "" when it cannot be read."""
    try:
        return process.cwd()
    except ERRORS:
        return ""


def executable_of(process: psutil.Process) -> str:
    """Path of its program; "" when it cannot be read."""
    try:
        return process.exe()
    except ERRORS:
        return ""


def is_python(process: psutil.Process, command: list[str]) -> bool:
    """Whether Python runs it; asks for its program only where the command line does not tell."""
    return process_kinds.is_python(command) or process_kinds.is_python([], executable_of(process))


def parent_of(process: psutil.Process) -> psutil.Process | None:
    """The process that started it; None when that is gone or cannot be told."""
    try:
        return process.parent()
    except ERRORS:
        return None


def children_of(process: psutil.Process, *, recursive: bool = False) -> list[psutil.Process]:
    """Its children, or all its descendants; looks at every process of the machine."""
    try:
        return process.children(recursive=recursive)
    except ERRORS:
        return []


def _other_ranks(process: psutil.Process, environment: Mapping[str, str]) -> tuple[psutil.Process, ...]:
    """The siblings that the same launcher gave another rank of the same job."""
    own = rank_of(environment)
    parent = None if own is None else parent_of(process)
    if parent is None:
        return ()
    found: dict[int, psutil.Process] = {}
    for sibling in children_of(parent):
        other = {} if sibling == process else environment_of(sibling)
        rank = rank_of(other)
        if rank is None or rank == own or job_of(other) != job_of(environment):
            continue
        if is_python(sibling, command_of(sibling)):
            found.setdefault(rank, sibling)
    return tuple(found[rank] for rank in sorted(found))
