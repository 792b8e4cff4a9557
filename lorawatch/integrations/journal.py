"""Appends records to ``lorawatch.jsonl``, so that each survives whatever happens to the process after it."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from lorawatch.records import Record
from lorawatch.sources.follow import read_at
from lorawatch.sources.lorawatch_jsonl import encode

_FLAGS = os.O_RDWR | os.O_APPEND | os.O_CREAT
for _name in ("O_CLOEXEC", "O_BINARY"):  # each where the system knows it; O_BINARY, or Windows writes \r\n
    _FLAGS |= getattr(os, _name, 0)


class Journal:
    """The ``lorawatch.jsonl`` of one training process, opened for appending.

    Each record is one write of one whole line, straight to the operating system: a kill at any instant loses at most
    the line that was being written, and a reader that follows the file sees a row as soon as it is judged.

    Args:
        path: The file; its folder is made where it is missing.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._descriptor: int | None = None

    def write(self, records: Iterable[Record]) -> None:
        """Append ``records``, a line each, opening the file where it is not open.

        Raises:
            OSError: The file cannot be opened, or the disk is full.
        """
        for record in records:
            line = encode(record)
            if self._descriptor is None:
                self._descriptor = self._open()
            written = os.write(self._descriptor, line)
            while written < len(line):
                # A full disk takes a part and refuses the rest: the second write is what raises.
                written += os.write(self._descriptor, line[written:])

    def close(self) -> None:
        """Close the file; a later :meth:`write` opens it again."""
        descriptor, self._descriptor = self._descriptor, None
        if descriptor is not None:
            os.close(descriptor)

    def __del__(self) -> None:
        self.close()

    def _open(self) -> int:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, _FLAGS, 0o666)
        size = os.fstat(descriptor).st_size
        if size and read_at(descriptor, 1, size - 1) != b"\n":
            os.write(descriptor, b"\n")  # an earlier process was cut off within a line: leave it torn, start a new one
        return descriptor
