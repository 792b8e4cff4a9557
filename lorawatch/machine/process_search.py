"""One search, through all processes of the machine, for the one that trains a run.

Evidence, the strongest first: a process has a file of the run open for writing; it prints into a pipe, or was started
by a process, that has; its command line says that the output goes to the run's folder; it is the only training that
works there while the run is being written. What stays ambiguous is said, never guessed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil

from lorawatch.machine import open_files, process_kinds, unseen
from lorawatch.machine.trainer_process import (
    ERRORS,
    Trainer,
    children_of,
    command_of,
    cwd_of,
    environment_of,
    is_python,
    job_of,
    name_of,
    parent_of,
    process_of,
    rank_of,
    trainer_of,
)

LIVE = 600.0
"""Seconds since the last write within which a run is taken to be going on, where nothing else tells. Chosen, not
measured: twice the 300 s after which a silent run counts as stalled."""
_PIPES = 4
"""Pipes followed from a log to the process that prints into it: ``python train.py | ts | tee train.log`` has two."""
_ABOVE = 3
"""Folders above the run's in which a training may have been started: ``saves/llama3-8b/lora`` is three below it."""
_CLOCK_SKEW = 5.0
"""Seconds by which the clock of a file server may differ from this machine's. Chosen, not measured."""
_MAPS = 1 << 22
"""Bytes of a process's memory map that are looked at; torch 2.13 for CPUs makes 0.05 MiB of it."""
_NAMED = 4
"""Candidates that are named where several are left."""


@dataclass(frozen=True, slots=True)
class Search:
    """What one search came to.

    Attributes:
        trainer: The process, None when none is known.
        note: Why none is known; "" when one is.
        expected: Whether one should be there: the run is being written, or several processes could be it.
    """

    trainer: Trainer | None
    note: str = ""
    expected: bool = False


def find_trainer(files: Collection[Path], folder: Path | None, *, now: float | None = None) -> Search:
    """Look through all processes for the one that trains a run. Never raises.

    Reading the command line of a process that hangs in the kernel may hang too: call it from a thread of its own.

    Args:
        files: The run's logs.
        folder: The run's own folder; None when it shares its folder with others, and only ``files`` are its own.
        now: Unix time; the wall clock's when it is not given.
    """
    try:
        return _Search(files, folder, time.time() if now is None else now).run()
    except Exception as error:  # /proc is closed or not there, or psutil meets in it what it does not expect
        return Search(None, f"the processes of this machine cannot be read ({error}); the trainer is not known", True)


@dataclass(frozen=True, slots=True)
class _Candidate:
    process: psutil.Process
    command: list[str]
    evidence: str

    @property
    def title(self) -> str:
        return _title(self.process, self.command)


class _Search:
    def __init__(self, files: Collection[Path], folder: Path | None, now: float) -> None:
        self._files = files
        self._folder = folder
        self._written = _last_write(files)
        self._live = self._written is not None and now - self._written < LIVE
        self._hidden = 0

    def run(self) -> Search:
        held = open_files.holders(self._files, self._folder) if open_files.supported() else open_files.Holders()
        for listed in (True, False):
            holding = {holder.pid: holder.file for holder in held.found if holder.listed is listed}
            for look in (self._themselves, self._through_pipes, self._by_descent, self._through_wandb):
                candidates = list(look(holding))
                if candidates:
                    return self._choose(candidates, certain=True)
        pythons = [(one, command) for one in _all() if process_kinds.is_python(command := command_of(one))]
        self._hidden = sum(one.pid in held.unreadable and process_kinds.looks_like_training(it) for one, it in pythons)
        candidates = list(self._by_command_line(pythons))
        if candidates:
            return self._choose(candidates, certain=True)
        candidates = list(self._by_working_directory(pythons))
        if candidates:
            return self._choose(candidates, certain=False)
        if held.found:
            note = f"{_holder(held.found[0].pid, held.found[0].file)}, and no training in Python belongs to it"
            return Search(None, note, self._live)
        return Search(None, unseen.why(self._files, self._folder, live=self._live, hidden=self._hidden), self._live)

    def _themselves(self, holding: Mapping[int, str]) -> Iterator[_Candidate]:
        for pid, file in holding.items():
            one = _candidate(process_of(pid), f"has {file} open")
            if one is not None and not process_kinds.is_launcher(one.command):
                yield one

    def _through_pipes(self, holding: Mapping[int, str]) -> Iterator[_Candidate]:
        for holder, file in holding.items():
            ends, seen = {holder}, {holder}
            for _ in range(_PIPES):
                pipes = {open_files.stdin_pipe(pid) for pid in ends} - {""}
                ends = {pid for pipe in pipes for pid in open_files.writers(pipe)} - seen
                seen |= ends
                for pid in sorted(ends):
                    one = _candidate(process_of(pid), f"prints into {_holder(holder, file)}")
                    if one is not None:
                        yield one

    def _by_descent(self, holding: Mapping[int, str]) -> Iterator[_Candidate]:
        for holder, file in holding.items():
            process = None if holder == os.getpid() else process_of(holder)
            for child in [] if process is None else children_of(process, recursive=True):
                one = _candidate(child, f"was started by {_holder(holder, file)}")
                if one is not None:
                    yield one

    def _through_wandb(self, holding: Mapping[int, str]) -> Iterator[_Candidate]:
        """Wandb writes the run's files from a program of its own, which the trainer starts."""
        for holder, file in holding.items():
            process = process_of(holder)
            if process is not None and process_kinds.program(command_of(process)) == "wandb-core":
                one = _candidate(parent_of(process), f"started {_holder(holder, file)}")
                if one is not None:
                    yield one

    def _by_command_line(self, pythons: Iterable[tuple[psutil.Process, list[str]]]) -> Iterator[_Candidate]:
        if self._folder is None:
            return
        places = {str(self._folder.absolute()), os.path.realpath(self._folder)}
        for process, command in pythons:
            cwd = cwd_of(process)
            if any(process_kinds.names_output(command, place, cwd) for place in places) and self._may_write(process):
                one = _candidate(process, f"names {self._folder.name} as its output")
                if one is not None:
                    yield one

    def _by_working_directory(self, pythons: Iterable[tuple[psutil.Process, list[str]]]) -> Iterator[_Candidate]:
        place = self._folder or next((file.parent for file in self._files), None)
        if place is None or not self._live:
            return
        above = {os.path.realpath(folder) for folder in (place, *place.absolute().parents[:_ABOVE])} - {"/"}
        for process, command in pythons:
            if not process_kinds.looks_like_training(command) or cwd_of(process) not in above:
                continue
            if self._may_write(process) and not self._prints_elsewhere(process):
                one = _candidate(process, f"is the only training that runs in {cwd_of(process)}")
                if one is not None:
                    yield one

    def _may_write(self, process: psutil.Process) -> bool:
        """Whether it was there already when the run was last written."""
        try:
            return self._written is None or process.create_time() <= self._written + _CLOCK_SKEW
        except ERRORS:
            return False

    def _prints_elsewhere(self, process: psutil.Process) -> bool:
        """Whether its output goes to a file that is none of the run's: then it trains another one."""
        own = {os.path.realpath(file) for file in self._files}
        for descriptor in (1, 2):
            try:
                target = str(Path(f"{psutil.PROCFS_PATH}/{process.pid}/fd/{descriptor}").readlink())
            except OSError:
                continue
            if target.startswith("/") and not target.startswith("/dev/") and target not in own:
                return True
        return False

    def _choose(self, candidates: Iterable[_Candidate], *, certain: bool) -> Search:
        left = list({one.process.pid: one for one in candidates}.values())
        for narrow in (_without_launchers, _lowest_rank, _with_torch):
            if len(left) > 1:
                left = narrow(left)
        left = [one for one in left if not process_kinds.is_launcher(one.command)]
        if not left:
            return Search(None, "only the launcher of the training runs so far, none of its processes", False)
        if len(left) > 1:
            names = ", ".join(one.title for one in left[:_NAMED])
            more = f" and {len(left) - _NAMED} more" if len(left) > _NAMED else ""
            note = f"{names}{more} could each be the trainer, so none is taken; let each run write a log of its own"
            return Search(None, note, True)
        one = left[0]
        return Search(trainer_of(one.process, f"{one.title} {one.evidence}", certain=certain))


def _all() -> Iterator[psutil.Process]:
    for pid in psutil.pids():
        process = process_of(pid)
        if process is not None:
            yield process


def _candidate(process: psutil.Process | None, evidence: str) -> _Candidate | None:
    """The process as a candidate; None when it is lorawatch, no Python, a helper, or a worker of another one."""
    if process is None or process.pid == os.getpid():
        return None
    command = command_of(process)
    if not command or not is_python(process, command) or process_kinds.is_helper(command):
        return None
    parent = parent_of(process)
    if process_kinds.is_worker(name_of(process), command, [] if parent is None else command_of(parent)):
        return None
    return _Candidate(process, command, evidence)


def _title(process: psutil.Process, command: list[str]) -> str:
    return f"pid {process.pid} ({process_kinds.shown(command, name_of(process))})"


def _holder(pid: int, file: str) -> str:
    process = process_of(pid)
    name = f"pid {pid}" if process is None else _title(process, command_of(process))
    return f"{name}, which has {file} open"


def _without_launchers(candidates: list[_Candidate]) -> list[_Candidate]:
    """Leave out what only started another candidate."""
    above: set[int] = set()
    for one in candidates:
        try:
            above.update(parent.pid for parent in one.process.parents())
        except ERRORS:
            continue
    return [
        one
        for one in candidates
        if one.process.pid not in above
        or not (process_kinds.is_launcher(one.command) or process_kinds.is_driver(one.command))
    ]


def _lowest_rank(candidates: list[_Candidate]) -> list[_Candidate]:
    """Of ranks of one job, the one that writes: the first."""
    environments = [(one, environment_of(one.process)) for one in candidates]
    ranks = [(rank, one, job_of(it)) for one, it in environments if (rank := rank_of(it)) is not None]
    if not ranks or len({job for _, _, job in ranks}) > 1:
        return candidates
    lowest = min(rank for rank, _, _ in ranks)
    return [one for rank, one, _ in ranks if rank == lowest]


def _with_torch(candidates: list[_Candidate]) -> list[_Candidate]:
    """Those that have loaded torch, which a script that starts the training has not; all of them when none has."""
    return [one for one in candidates if _has_torch(one.process.pid)] or candidates


def _has_torch(pid: int) -> bool:
    try:
        with open(f"{psutil.PROCFS_PATH}/{pid}/maps", "rb") as file:  # noqa: PTH123  (a path of /proc)
            return b"libtorch" in file.read(_MAPS)
    except OSError:
        return False


def _last_write(files: Collection[Path]) -> float | None:
    times: list[float] = []
    for file in files:
        try:
            times.append(file.stat().st_mtime)
        except (OSError, ValueError):
            continue
    return max(times, default=None)
