"""Why no process is seen to write a run that is being written: what a person can do about it."""

from __future__ import annotations

import os
from collections.abc import Collection
from pathlib import Path

import psutil

from lorawatch.machine.trainer_process import ERRORS

_MACHINE_NAMESPACE = 0xEFFFFFFC
"""Inode of the machine's first pid namespace (``PROC_PID_INIT_INO`` in Linux's include/linux/proc_ns.h)."""
_NETWORK = ("nfs", "cifs", "smb", "lustre", "gpfs", "beegfs", "ceph", "glusterfs", "fuse.", "9p", "afs", "wekafs")
"""How the types of file systems begin that another machine may write too (``fuse.sshfs``, ``nfs4``)."""


def why(files: Collection[Path], folder: Path | None, *, live: bool, hidden: int) -> str:
    """One line: that nobody is seen to write a run, why that may be, and what to do.

    Args:
        files: The run's logs.
        folder: Its own folder, where it has one.
        live: Whether the run is being written.
        hidden: Training processes that lorawatch may not look into.
    """
    path = folder if folder is not None else next(iter(files), None)
    what = next((file.name for file in files), "the run" if folder is None else folder.name)
    if hidden:
        them = "a training of another user" if hidden == 1 else f"{hidden} trainings of other users"
        return (
            f"no process is seen to write {what}; {them} cannot be looked into: run lorawatch as that user or as root"
        )
    if not live or path is None:
        return f"no process here writes {what}"
    if in_container():
        return (
            f"no process here writes {what}; lorawatch sees only its own container's processes: show it the machine's "
            "(docker run --pid=host) or the pod's (shareProcessNamespace: true)"
        )
    system = network_file_system(path)
    if system:
        return f"no process here writes {what}; it is on {system}, so another machine may: run lorawatch there"
    return f"no process here writes {what}; it may run in another container or on another machine"


def in_container() -> bool:
    """Whether lorawatch sees only the processes of a pid namespace of its own."""
    try:
        return os.stat(f"{psutil.PROCFS_PATH}/self/ns/pid").st_ino != _MACHINE_NAMESPACE  # noqa: PTH116  (a path of /proc)
    except OSError:
        return False


def network_file_system(path: Path) -> str:
    """Type of the network file system that a path is on; "" when it is on none."""
    try:
        place = f"{os.path.realpath(path)}/"
        mounts = [one for one in psutil.disk_partitions(all=True) if place.startswith(one.mountpoint.rstrip("/") + "/")]
    except ERRORS:
        return ""
    kind = max(mounts, key=lambda one: len(one.mountpoint)).fstype if mounts else ""
    return kind if kind.startswith(_NETWORK) else ""
