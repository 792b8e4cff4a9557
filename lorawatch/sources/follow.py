"""Reads the bytes that are appended to one file, however it is rotated, truncated or replaced meanwhile.

No descriptor is held between reads: a thousand followed runs cost no open files, and a file on a network share that
went away does no harm. What makes up for it: a rotated file is found again by its inode among its neighbours.
"""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path
from typing import Any

from lorawatch.source import SourceError

CHUNK = 1 << 18
"""Bytes read and parsed at once. What a MiB decodes to no longer fits the cache, and costs 5 % more."""
LINE_LIMIT = 1 << 20
"""Bytes of the longest line that is read; a longer one is skipped and counted."""
_SAMPLE = 256
"""Bytes compared at the head, and before the offset, to see whether a file is still the one that was read."""
_SIBLINGS = 2_000
"""Directory entries looked at for a rotated file."""


_FLAGS = os.O_RDONLY
for _name in ("O_NONBLOCK", "O_NOCTTY", "O_CLOEXEC", "O_BINARY"):  # each where the system knows it
    _FLAGS |= getattr(os, _name, 0)


def read_at(descriptor: int, size: int, offset: int) -> bytes:
    """Read up to ``size`` bytes from ``offset``; raises OSError."""
    if hasattr(os, "pread"):
        return os.pread(descriptor, size, offset)
    os.lseek(descriptor, offset, os.SEEK_SET)  # Windows
    return os.read(descriptor, size)


def open_regular(path: Path) -> int:
    """Open a regular file for reading and return its descriptor.

    Raises:
        FileNotFoundError: nothing is there.
        SourceError: it is no regular file (a FIFO or device would block or be changed by reading) or is not readable.
    """
    try:
        # Before opening, because opening a device can already do something.
        if not stat.S_ISREG(path.stat().st_mode):
            raise SourceError(f"{path}: not a regular file; give a log file or a run folder")
        descriptor = os.open(path, _FLAGS)
    except (FileNotFoundError, NotADirectoryError):
        raise FileNotFoundError(path) from None
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise SourceError(f"{path}: cannot be read ({reason}); check its permissions") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise SourceError(f"{path}: not a regular file; give a log file or a run folder")
    return descriptor


def read_head(path: Path, size: int) -> bytes:
    """Return up to ``size`` bytes from the start of a regular file; raises as :func:`open_regular` does."""
    descriptor = open_regular(path)
    try:
        return _pread(path, descriptor, size, 0)
    finally:
        os.close(descriptor)


def read_tail(path: Path, size: int) -> bytes:
    """Return up to ``size`` bytes from the end of a regular file; raises as :func:`open_regular` does."""
    descriptor = open_regular(path)
    try:
        return _pread(path, descriptor, size, max(os.fstat(descriptor).st_size - size, 0))
    finally:
        os.close(descriptor)


def _pread(path: Path, descriptor: int, size: int, offset: int) -> bytes:
    try:
        return read_at(descriptor, size, offset)
    except OSError as error:
        raise SourceError(f"{path}: cannot be read ({error.strerror}); check the disk or the network share") from None


class FileFollower:
    """Follows one file and returns what was appended, as blocks of whole lines.

    A line ends in a line feed. The file may be missing, appear, grow, be truncated, or be replaced: what was returned
    stays returned, and the new content follows in the same stream.

    Attributes:
        path: The file.
        skipped_lines: Lines left out because they were longer than the limit.
        replacements: How often the file was found truncated or replaced.
    """

    def __init__(
        self, path: Path, *, chunk: int = CHUNK, line_limit: int = LINE_LIMIT, split_returns: bool = False
    ) -> None:
        """Follow a file.

        Args:
            path: The file to follow.
            chunk: Bytes read at once.
            line_limit: Bytes of the longest line that is read.
            split_returns: A line that is too long may be cut at a carriage return: the progress bars of a whole run
                can stand in one line.
        """
        self.path = path
        self.skipped_lines = 0
        self.replacements = 0
        self._chunk = min(chunk, line_limit)
        self._line_limit = line_limit
        self._split_returns = split_returns
        self._offset = 0
        self._skipping = False
        self._identity: tuple[int, int] | None = None
        self._head = b""
        self._before = b""
        self._seen: tuple[int, int] | None = None  # size and mtime at the last look that found nothing

    def read(self) -> bytes:
        """Return the next whole lines, at most one chunk of them; empty when there are none for now.

        Raises:
            SourceError: the path is no regular file, or is not readable.
        """
        while True:
            try:
                descriptor = open_regular(self.path) if self._changed() else -1
            except FileNotFoundError:
                return b""
            if descriptor < 0:
                return b""
            try:
                status = os.fstat(descriptor)
                identity = (status.st_dev, status.st_ino)
                if self._identity is not None and not self._same(descriptor, identity, status.st_size):
                    rest = self._rest_of_rotated(identity)
                    if rest:
                        return rest
                    self._start_over()
                self._identity = identity
                block, more = self._read_from(descriptor)
                if block:
                    return block
                if not more:
                    self._seen = (status.st_size, status.st_mtime_ns)
                    return b""
            finally:
                os.close(descriptor)

    def finish(self) -> bytes:
        """Return the last line although no line end follows it, once the file is known to be complete."""
        try:
            descriptor = open_regular(self.path)
        except FileNotFoundError:
            return b""
        try:
            if self._skipping:
                return b""
            tail = _pread(self.path, descriptor, self._line_limit, self._offset)
            self._advance(descriptor, len(tail))
            return tail + b"\n" if tail else b""
        finally:
            os.close(descriptor)

    def cursor(self) -> dict[str, Any]:
        """Where reading is, as plain JSON."""
        return {
            "offset": self._offset,
            "skipping": self._skipping,
            "identity": list(self._identity) if self._identity else None,
            "head": [len(self._head), _digest(self._head)],
            "before": [len(self._before), _digest(self._before)],
            "skipped_lines": self.skipped_lines,
        }

    def resume(self, cursor: dict[str, Any]) -> None:
        """Go on from where ``cursor`` was taken; from the start when the file is another one now."""
        self._start_over()
        self.replacements = 0
        self.skipped_lines = int(cursor["skipped_lines"])
        identity = cursor["identity"]
        if identity is None:
            return
        self._identity = (int(identity[0]), int(identity[1]))
        self._offset = int(cursor["offset"])
        self._skipping = bool(cursor["skipping"])
        # The bytes themselves are in the file; a cursor only keeps their digests.
        for path in self._candidates():
            try:
                descriptor = open_regular(path)
            except (FileNotFoundError, SourceError):
                continue
            try:
                head = _pread(path, descriptor, int(cursor["head"][0]), 0)
                size = int(cursor["before"][0])
                before = _pread(path, descriptor, size, max(0, self._offset - size))
                if _digest(head) == cursor["head"][1] and _digest(before) == cursor["before"][1]:
                    self._head, self._before = head, before
                    status = os.fstat(descriptor)
                    self._identity = (status.st_dev, status.st_ino)
                    return
            finally:
                os.close(descriptor)
        self._start_over()

    def _candidates(self) -> list[Path]:
        """The file itself, then the neighbour that it may have been rotated to."""
        rotated = self._find_rotated()
        return [self.path, rotated] if rotated else [self.path]

    def _changed(self) -> bool:
        if self._seen is None:
            return True
        status = self.path.stat()
        same = (status.st_size, status.st_mtime_ns) == self._seen and (status.st_dev, status.st_ino) == self._identity
        return not same

    def _same(self, descriptor: int, identity: tuple[int, int], size: int) -> bool:
        """Whether the open file is still the one that was read up to the offset, or a copy that goes on from there."""
        if size < self._offset:
            return False
        # rsync puts a new file in the place of the old one, with the same text and more. A little may be the same in
        # any two logs.
        if identity != self._identity and len(self._before) < _SAMPLE:
            return False
        if _pread(self.path, descriptor, len(self._head), 0) != self._head:
            return False
        # A script that is run again writes the same first lines: what stands before the offset tells more.
        start = self._offset - len(self._before)
        return _pread(self.path, descriptor, len(self._before), start) == self._before

    def _rest_of_rotated(self, new: tuple[int, int]) -> bytes:
        """What was not read yet of the file that stood here before, when it was only renamed."""
        if new == self._identity:
            return b""  # truncated in place: there is no other file
        rotated = self._find_rotated()
        if rotated is None:
            return b""
        try:
            descriptor = open_regular(rotated)
        except (FileNotFoundError, SourceError):
            return b""
        try:
            block, more = self._read_from(descriptor)
            while more and not block:
                block, more = self._read_from(descriptor)
            if not block and not self._skipping:
                tail = _pread(rotated, descriptor, self._line_limit, self._offset)
                self._advance(descriptor, len(tail))
                block = tail + b"\n" if tail else b""
            return block
        finally:
            os.close(descriptor)

    def _find_rotated(self) -> Path | None:
        try:
            with os.scandir(self.path.parent) as entries:
                for count, entry in enumerate(entries):
                    if count >= _SIBLINGS or self._identity is None:
                        break
                    if entry.inode() != self._identity[1] or entry.name == self.path.name:
                        continue
                    # Only a name that was made from this one: a new file elsewhere may reuse the inode.
                    if entry.is_file(follow_symlinks=False) and self.path.stem in entry.name:
                        return Path(entry.path)
        except OSError:
            pass
        return None

    def _start_over(self) -> None:
        self.replacements += 1
        self._offset = 0
        self._skipping = False
        self._head = self._before = b""
        self._identity = self._seen = None

    def _read_from(self, descriptor: int) -> tuple[bytes, bool]:
        """Read one chunk; returns whole lines, and whether there may be more to read."""
        data = _pread(self.path, descriptor, self._chunk, self._offset)
        full = len(data) == self._chunk
        if self._skipping:
            ends = [data.find(b"\n"), data.find(b"\r") if self._split_returns else -1]
            ends = [end for end in ends if end >= 0]
            self._skipping = not ends
            self._advance(descriptor, min(ends) + 1 if ends else len(data))
            return b"", full or bool(ends)
        cut = data.rfind(b"\n") + 1
        if not cut and full and self._chunk < self._line_limit:
            data = _pread(self.path, descriptor, self._line_limit, self._offset)
            full = len(data) == self._line_limit
            cut = data.rfind(b"\n") + 1
        if not cut and full:
            cut = data.rfind(b"\r") + 1 if self._split_returns else 0
            if not cut:
                self._skipping = True
                self.skipped_lines += 1
                self._advance(descriptor, len(data))
                return b"", True
        if cut:
            self._advance(descriptor, cut)
        return data[:cut], full

    def _advance(self, descriptor: int, count: int) -> None:
        self._offset += count
        if len(self._head) < _SAMPLE:
            self._head = read_at(descriptor, min(_SAMPLE, self._offset), 0)
        start = max(0, self._offset - _SAMPLE)
        self._before = read_at(descriptor, self._offset - start, start)
        self._seen = None


def _digest(data: bytes) -> str:
    return hashlib.blake2b(data, digest_size=16).hexdigest()
