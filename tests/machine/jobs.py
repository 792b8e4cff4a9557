"""Small real processes that stand in for trainings: they write a log, start workers and ranks, and wait."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

LIBRARY = '''
import ctypes, mmap, multiprocessing, os, subprocess, sys

READY, GO = int(os.environ["JOB_READY"]), int(os.environ["JOB_GO"])

def ready():
    """Say that everything stands, and wait until the test is over."""
    os.write(READY, b"r")
    os.read(GO, 1)

def attend(connection, name):
    """What a worker does: say that it stands, and wait."""
    if name:
        ctypes.CDLL(None).prctl(15, name, 0, 0, 0)
    connection.send("up")
    connection.recv()

def start_worker(method, name=b""):
    """Start a worker as multiprocessing's ``method`` does, and wait until it stands."""
    context = multiprocessing.get_context(method)
    here, there = context.Pipe()
    worker = context.Process(target=attend, args=(there, name), daemon=True)
    worker.start()
    here.recv()
    return worker, here, there

def child(*command, **environment):
    return subprocess.Popen([sys.executable, *command], pass_fds=(READY, GO), env={**os.environ, **environment})

def load_torch(folder):
    """Map a file that is named like torch's library."""
    path = os.path.join(folder, "libtorch_cpu.so")
    with open(path, "wb") as file:
        file.write(bytes(4096))
    return mmap.mmap(os.open(path, os.O_RDONLY), 4096, prot=mmap.PROT_READ)
'''
PLAIN = "from job import *\nprint({'loss': 1.0}, flush=True)\nready()\n"


@dataclass
class Job:
    """A running process, and the ends of the pipes by which it is told from and let go."""

    process: subprocess.Popen[bytes]
    ready: int
    go: int
    open_files: list[IO[Any]] = field(default_factory=list)

    @property
    def pid(self) -> int:
        return self.process.pid

    def wait_ready(self, count: int) -> None:
        for _ in range(count):
            assert os.read(self.ready, 1) == b"r", "a process of the job ended before it was ready"

    def end(self) -> None:
        """Let every process of the job go, and wait for the first."""
        if self.go >= 0:
            os.close(self.go)
            self.go = -1
        self.process.wait(timeout=20)


def write(folder: Path, name: str, text: str) -> Path:
    """A script that may use what stands in :data:`LIBRARY`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "job.py").write_text(LIBRARY)
    path = folder / name
    path.write_text(text)
    return path


@contextmanager
def running(
    command: Sequence[str | Path],
    *,
    log: Path | None = None,
    cwd: Path | None = None,
    env: Mapping[str, str] | None = None,
    processes: int = 1,
    in_shell: bool = False,
) -> Iterator[Job]:
    """Start a job, wait until ``processes`` of it are ready, and end it at last.

    Args:
        command: Arguments of Python, or one line for the shell.
        log: Where its standard output goes.
        cwd: Its working directory.
        env: Added to the environment.
        processes: How many of its processes say that they are ready.
        in_shell: The command is a line for the shell.
    """
    ready, ready_in = os.pipe()
    go, go_in = os.pipe()
    words = ["sh", "-c", str(command[0])] if in_shell else [sys.executable, *map(str, command)]
    environment = {key: value for key, value in os.environ.items() if key not in {"RANK", "WORLD_SIZE", "SLURM_PROCID"}}
    environment |= {"JOB_READY": str(ready_in), "JOB_GO": str(go), **(env or {})}
    output = subprocess.DEVNULL if log is None else log.open("ab")
    process = subprocess.Popen(
        words, stdout=output, stderr=subprocess.DEVNULL, stdin=subprocess.DEVNULL, cwd=cwd, env=environment,
        pass_fds=(ready_in, go),
    )  # fmt: skip
    if not isinstance(output, int):
        output.close()  # or the test would be one that has the log open
    os.close(ready_in)
    os.close(go)
    job = Job(process, ready, go_in)
    try:
        job.wait_ready(processes)
        yield job
    finally:
        try:
            job.end()
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        os.close(ready)
