"""The framing of TensorBoard's event files, and the wire format of protobuf, read by hand."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lorawatch.source import SourceError
from lorawatch.sources.follow import open_regular, read_at

_LARGEST = 1 << 30
"""Bytes of the longest frame that is believed; images and histograms are passed over without reading them."""
_length = struct.Struct("<Q").unpack_from


def frames(block: bytes) -> Iterator[bytes]:
    """Yield the contents of the whole frames in a block."""
    at = 0
    while at < len(block):
        (count,) = _length(block, at)
        yield block[at + 12 : at + 12 + count]
        at += 16 + count


class _WireError(ValueError):
    """Bytes that are no protobuf message."""


def fields(data: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield number and value of each field of a protobuf message; fixed-size values as their bytes.

    Raises:
        ValueError: the bytes are no message.
    """
    at, size = 0, len(data)
    while at < size:
        key, at = _varint(data, at)
        kind = key & 7
        value: int | bytes
        if kind == 0:
            value, at = _varint(data, at)
        else:
            if kind == 2:
                count, at = _varint(data, at)
            elif kind in {1, 5}:
                count = 8 if kind == 1 else 4
            else:
                raise _WireError("unknown wire type")
            value = data[at : at + count]
            at += count
            if at > size:
                raise _WireError("cut short")
        yield key >> 3, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        if at >= len(data) or shift > 63:
            raise _WireError("bad number")
        byte = data[at]
        at += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, at
        shift += 7


class FrameFollower:
    """Follows one event file and returns what was appended, as blocks of whole frames.

    The writer only ever appends, and each start of a job makes a file of its own: a shorter or other file is a new one.
    """

    def __init__(self, path: Path, *, chunk: int) -> None:
        self.path = path
        self.skipped_lines = 0
        self.replacements = 0
        self._chunk = chunk
        self._offset = 0
        self._identity: list[int] | None = None

    def read(self) -> bytes:
        """Return the next whole frames, empty when there are none for now.

        Raises:
            SourceError: the file is not readable, or no event file.
        """
        while True:
            try:
                descriptor = open_regular(self.path)
            except FileNotFoundError:
                return b""
            try:
                status = os.fstat(descriptor)
                identity = [status.st_dev, status.st_ino]
                if self._identity not in (None, identity) or status.st_size < self._offset:
                    self._offset = 0
                    self.replacements += 1
                self._identity = identity
                data = read_at(descriptor, self._chunk, self._offset)
            except OSError as error:
                raise SourceError(f"{self.path}: cannot be read ({error.strerror}); check the disk") from None
            finally:
                os.close(descriptor)
            block = self._whole(data, status.st_size)
            if block is not None:
                return block

    def _whole(self, data: bytes, size: int) -> bytes | None:
        """Cut after the last whole frame; None when a frame was passed over and there is more to read."""
        at = 0
        while at + 12 <= len(data):
            (count,) = _length(data, at)
            if count > _LARGEST:
                if self._offset == 0 and at == 0:
                    raise SourceError(f"{self.path}: not a TensorBoard event file; give the run's folder or its log")
                self.skipped_lines += 1
                self._offset = size  # frames cannot be found again after a broken one
                return data[:at]
            if at + 16 + count > len(data):
                break
            at += 16 + count
        if at or len(data) < 12:
            self._offset += at
            return data[:at]
        whole = 16 + _length(data, 0)[0]
        if self._offset + whole > size or len(data) < self._chunk:
            return b""  # a torn tail: the rest will come
        self._offset += whole  # larger than a chunk: no scalar is
        return None

    def finish(self) -> bytes:
        """Return nothing: a torn frame cannot be read."""
        return b""

    def cursor(self) -> dict[str, Any]:
        """Where reading is, as plain JSON."""
        return {"offset": self._offset, "identity": self._identity, "skipped_lines": self.skipped_lines}

    def resume(self, cursor: dict[str, Any]) -> None:
        """Go on from where ``cursor`` was taken."""
        self.skipped_lines = int(cursor["skipped_lines"])
        self._offset, self._identity, self.replacements = 0, None, 0
        try:
            status = self.path.stat()
        except OSError:
            return
        if [status.st_dev, status.st_ino] == cursor["identity"] and status.st_size >= cursor["offset"]:
            self._offset, self._identity = int(cursor["offset"]), cursor["identity"]
        elif cursor["identity"] is not None:
            self.replacements += 1
