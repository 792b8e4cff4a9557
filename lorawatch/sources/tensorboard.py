"""TensorBoard event files, read without TensorBoard: TFRecord frames around a few protobuf fields."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow, Record
from lorawatch.source import SourceError
from lorawatch.sources.facts import from_mapping
from lorawatch.sources.follow import open_regular
from lorawatch.sources.lines import Follower, LineSource
from lorawatch.sources.names import metric_name

_CHUNK = 1 << 20
_LARGEST = 1 << 30
"""Bytes of the longest frame that is believed; images and histograms are passed over without reading them."""
_double = struct.Struct("<d").unpack_from
_float = struct.Struct("<f").unpack_from
_length = struct.Struct("<Q").unpack_from
# What the Trainer logs once, of the whole run.
_SUMMARY = frozenset(
    {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss"}
)
_DT_FLOAT, _DT_DOUBLE = 1, 2


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
                data = os.pread(descriptor, self._chunk, self._offset)
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


class TensorboardSource(LineSource):
    """Follows one ``events.out.tfevents.*`` file: its scalars, grouped into rows, with their wall time.

    Scalars that were written one after the other for one step are one row. The last row waits until something
    follows, or until a poll finds nothing new.
    """

    format: ClassVar[str] = "tensorboard"
    precedence: ClassVar[int] = 3

    def __init__(self, path: Path, *, chunk: int = _CHUNK) -> None:
        self._row: dict[str, float] = {}
        self._row_step = 0
        self._row_time = 0.0
        self._row_eval = False
        super().__init__(path, chunk=chunk)

    def poll(self) -> Iterable[Record]:
        """Yield the records that appeared since the last call; empty while the file is absent.

        Raises:
            SourceError: the file is not readable, or no event file.
        """
        before = self._follower.cursor()
        yield from super().poll()
        if self._row and self._follower.cursor() == before:
            self._load(b"", last=True)
            yield from super().poll()

    def _follow(self, path: Path, chunk: int) -> Follower:
        return FrameFollower(path, chunk=chunk)

    def _parse(self, block: bytes) -> list[Record]:
        out: list[Record] = []
        at = 0
        while at < len(block):
            (count,) = _length(block, at)
            self._event(block[at + 12 : at + 12 + count], out)
            at += 16 + count
        return out

    def _parse_end(self) -> list[Record]:
        out: list[Record] = []
        self._close_row(out)
        return out

    def _state(self) -> dict[str, Any]:
        row = {name: repr(value) for name, value in self._row.items()}
        return {"row": row, "step": self._row_step, "time": repr(self._row_time), "eval": self._row_eval}

    def _restore(self, state: dict[str, Any]) -> None:
        self._row = {name: float(value) for name, value in state["row"].items()}
        self._row_step, self._row_time, self._row_eval = state["step"], float(state["time"]), state["eval"]

    def _event(self, data: bytes, out: list[Record]) -> None:
        time, step = 0.0, 0
        summary = None
        try:
            for number, value in fields(data):
                if number == 1 and isinstance(value, bytes) and len(value) == 8:
                    (time,) = _double(value)
                elif number == 2 and isinstance(value, int):
                    step = value
                elif number == 5 and isinstance(value, bytes):
                    summary = value
            if summary is None:
                return
            for number, value in fields(summary):
                if number == 1 and isinstance(value, bytes):
                    self._value(value, step, time, out)
        except ValueError:
            self._bad_lines += 1

    def _value(self, data: bytes, step: int, time: float, out: list[Record]) -> None:
        tag, scalar, text = "", None, b""
        for number, value in fields(data):
            if not isinstance(value, bytes):
                continue
            if number == 1:
                tag = value.decode("utf-8", "replace")
            elif number == 2 and len(value) == 4:
                (scalar,) = _float(value)
            elif number == 8:
                scalar, text = _tensor(value)
        if text and tag.partition("/")[0] in {"args", "model_config", "peft_config"}:
            facts = _text_facts(text)
            if facts:
                out.append(FactUpdate(facts, f"{self.path.name[:60]} ({tag[:40]})"))
        if scalar is None or not tag or step >= 1 << 48:
            return
        name = metric_name(tag)
        if name in _SUMMARY:
            if name == "train_runtime":
                self._close_row(out)
                out.append(LifecycleEvent("ended", step=step, time=_known(time)))
            return
        evaluation = tag.startswith(("eval/", "eval_", "val"))
        if self._row and (step != self._row_step or evaluation != self._row_eval or name in self._row):
            self._close_row(out)
        if not self._row:
            self._row_step, self._row_time, self._row_eval = step, time, evaluation
        self._row[name] = scalar

    def _close_row(self, out: list[Record]) -> None:
        row, self._row = self._row, {}
        epoch = row.pop("epoch", None)
        if row:
            out.append(MetricRow(self._row_step, row, epoch, _known(self._row_time)))


def _known(time: float) -> float | None:
    return time if math.isfinite(time) and time > 0 else None


def _tensor(data: bytes) -> tuple[float | None, bytes]:
    """Return the number or the text of a TensorProto that holds one."""
    kind, content, text = 0, b"", b""
    found: float | None = None
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif not isinstance(value, bytes):
            continue
        elif number == 4:
            content = value
        elif number == 5 and len(value) == 4:
            (found,) = _float(value)
        elif number == 6 and len(value) == 8:
            (found,) = _double(value)
        elif number == 8:
            text = value
    if found is None and kind == _DT_FLOAT and len(content) == 4:
        (found,) = _float(content)
    elif found is None and kind == _DT_DOUBLE and len(content) == 8:
        (found,) = _double(content)
    return found, text


def _text_facts(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return from_mapping(found) if isinstance(found, dict) else {}
