"""Which processes of this machine have a file open for writing, and which write into a pipe. Linux only.

Asks ``/proc`` itself rather than :meth:`psutil.Process.open_files`: that one leaves out pipes, and asks for the status
of every open file, which never returns for one on a network share that went away. Here only links are read, and the
status is asked of files alone that bear a log's name.
"""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import psutil

_MOST_DESCRIPTORS = 4096
"""Descriptors looked at per process; a server may have a hundred thousand."""
_OWN_FOLDERS = re.compile(
    r"(?:tmp-)?checkpoint-\d+\Z|(?:runs|logs?|tensorboard|tb|tb_logs|logging|wandb|files)\Z"
)  # as in discover.py: other folders below a run's are other runs'
_FLAGS = re.compile(rb"^flags:\s*([0-7]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a file of the run open for writing.

    Attributes:
        pid: Its id.
        file: Name of the file.
        listed: Whether the file is one of those asked for, rather than another below the folder.
    """

    pid: int
    file: str
    listed: bool


@dataclass(slots=True)
class Holders:
    """What a look at all processes found.

    Attributes:
        found: Who holds a file, at most one entry for each process and file.
        unreadable: Processes that may not be looked into.
    """

    found: list[Holder] = field(default_factory=list)
    unreadable: list[int] = field(default_factory=list)


def supported() -> bool:
    """Whether this system shows what processes have open, as Linux does."""
    return (_proc() / "self" / "fd").is_dir()


def holders(files: Collection[Path], folder: Path | None) -> Holders:
    """Who has one of ``files``, or a file of the run below ``folder``, open for writing. Never raises.

    A listed file is known by device and inode, so that it is found from another mount namespace too (a container whose
    volume has another path); one below the folder by its path.
    """
    wanted = _identities(files)
    below = None if folder is None else _prefix(folder)
    result = Holders()
    for pid in psutil.pids():
        seen: set[str] = set()
        try:
            for descriptor, target in _links(pid):
                match = _matches(pid, descriptor, target, wanted, below)
                if match is not None and match.file not in seen and _writes(pid, descriptor):
                    seen.add(match.file)
                    result.found.append(match)
        except PermissionError:
            result.unreadable.append(pid)
        except OSError:  # it has just ended
            continue
    return result


def stdin_pipe(pid: int) -> str:
    """The pipe that a process reads as its standard input; "" when it reads none, or cannot be looked into."""
    target = _link(pid, 0)
    return target if target.startswith("pipe:") else ""


def writers(pipe: str) -> list[int]:
    """Processes whose standard output or standard error is the pipe."""
    return [pid for pid in psutil.pids() if pipe in {_link(pid, 1), _link(pid, 2)}]


def _proc() -> Path:
    return Path(psutil.PROCFS_PATH)


def _link(pid: int, descriptor: int) -> str:
    try:
        return os.readlink(f"{psutil.PROCFS_PATH}/{pid}/fd/{descriptor}")  # noqa: PTH115  (a thousand processes)
    except OSError:
        return ""


def _links(pid: int) -> Iterator[tuple[str, str]]:
    """Descriptor and target of what a process has open and has a path; raises OSError."""
    folder = f"{psutil.PROCFS_PATH}/{pid}/fd"
    for descriptor in os.listdir(folder)[:_MOST_DESCRIPTORS]:  # noqa: PTH208  (a thousand processes: no Path objects)
        try:
            target = os.readlink(f"{folder}/{descriptor}")  # noqa: PTH115  (likewise)
        except FileNotFoundError:  # closed meanwhile
            continue
        if target.startswith("/"):
            yield descriptor, target


def _matches(
    pid: int, descriptor: str, target: str, wanted: dict[str, set[tuple[int, int]]], below: str | None
) -> Holder | None:
    name = target.rpartition("/")[2]
    identities = wanted.get(name)
    if identities is not None:
        try:
            status = os.stat(f"{psutil.PROCFS_PATH}/{pid}/fd/{descriptor}")  # noqa: PTH116  (likewise)
        except OSError:
            return None
        if (status.st_dev, status.st_ino) in identities:
            return Holder(pid, name, True)
    if below is None or not target.startswith(below) or target.endswith(" (deleted)"):
        return None
    folders = target[len(below) :].split("/")[:-1]
    if folders and not _OWN_FOLDERS.match(folders[0]):
        return None
    return Holder(pid, name, False)


def _writes(pid: int, descriptor: str) -> bool:
    try:
        with open(f"{psutil.PROCFS_PATH}/{pid}/fdinfo/{descriptor}", "rb") as file:  # noqa: PTH123  (likewise)
            flags = _FLAGS.search(file.read(4096))
    except OSError:
        return False
    return flags is not None and int(flags[1], 8) & os.O_ACCMODE != os.O_RDONLY


def _identities(files: Collection[Path]) -> dict[str, set[tuple[int, int]]]:
    wanted: dict[str, set[tuple[int, int]]] = {}
    for file in files:
        try:
            status = file.stat()
            names = {file.name, file.resolve().name}
        except (OSError, ValueError, RuntimeError):
            continue
        for name in names:
            wanted.setdefault(name, set()).add((status.st_dev, status.st_ino))
    return wanted


def _prefix(folder: Path) -> str | None:
    try:
        return f"{folder.resolve()}/" if folder.resolve() != Path("/") else None
    except (OSError, ValueError, RuntimeError):
        return None
