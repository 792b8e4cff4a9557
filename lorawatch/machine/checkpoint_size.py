"""How large the newest checkpoint of a run is, once it is whole."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable
from pathlib import Path

from lorawatch.machine.problems import Problems

_CHECKPOINT = re.compile(r"checkpoint-(\d{1,18})\Z")
_MOST = 10_000
"""Entries looked at in the run's folder, and in a checkpoint."""


class CheckpointSize:
    """Measures the newest ``checkpoint-N`` folder of a run.

    A checkpoint is whole when two looks, 30 s apart, found the same files with the same sizes: trainers write into the
    folder itself, for seconds or minutes. Its own time stamps would tell sooner, but a file server's clock may differ.
    Links are not followed.
    """

    INTERVAL = 30.0
    """Seconds between looks."""

    def __init__(self, folder: Path, problems: Problems, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Make it; nothing is looked at before the first call.

        Args:
            folder: The run's folder; may be missing.
            problems: Is told what cannot be measured.
            clock: Seconds that never go back; given by tests.
        """
        self._folder = folder
        self._problems = problems
        self._clock = clock
        self._looked: float | None = None
        self._seen: tuple[str, dict[str, int]] | None = None
        self._bytes: int | None = None

    def bytes(self) -> int | None:
        """Bytes of the newest whole checkpoint; None before there is one. Never raises."""
        now = self._clock()
        if self._looked is None or now - self._looked >= self.INTERVAL:
            self._looked = now
            seen = self._look()
            if seen is not None and seen == self._seen:
                self._bytes = sum(seen[1].values())
            self._seen = seen
        return self._bytes

    def _look(self) -> tuple[str, dict[str, int]] | None:
        """The newest checkpoint's name and the sizes of its files; None without one."""
        try:
            name = self._newest()
            if name is None:
                return None
            sizes: dict[str, int] = {}
            return (name, sizes) if self._measure(self._folder / name, sizes) and sizes else None
        except (OSError, ValueError):  # it is being deleted, or the folder is gone
            return None

    def _newest(self) -> str | None:
        newest: tuple[int, str] | None = None
        with os.scandir(self._folder) as entries:
            for _, entry in zip(range(_MOST), entries, strict=False):
                match = _CHECKPOINT.match(entry.name)
                if match is not None and entry.is_dir(follow_symlinks=False):
                    newest = max(newest or (-1, ""), (int(match[1]), entry.name))
        return None if newest is None else newest[1]

    def _measure(self, checkpoint: Path, sizes: dict[str, int]) -> bool:
        """Add the size of every file below; False when there are too many."""
        folders = [str(checkpoint)]
        looked = 0
        while folders:
            with os.scandir(folders.pop()) as entries:
                for entry in entries:
                    looked += 1
                    if looked > _MOST:
                        self._problems.say(
                            f"{checkpoint.name}: more than {_MOST} files; its size is not measured", "checkpoint"
                        )
                        return False
                    if entry.is_dir(follow_symlinks=False):
                        folders.append(entry.path)
                    elif entry.is_file(follow_symlinks=False):
                        sizes[entry.path] = entry.stat(follow_symlinks=False).st_size
        return True
