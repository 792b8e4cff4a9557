"""lorawatch's own ``lorawatch.jsonl``: one record a line. The callback writes it, everything else reads it."""

from __future__ import annotations

import math
import re
from typing import Any, ClassVar

import msgspec

from lorawatch.records import FactUpdate, MetricRow, Record
from lorawatch.sources.lines import LineSource

# Lax, because JSON has no NaN: "NaN" in the place of a float is one.
_decode_all = msgspec.json.Decoder(list[Record], strict=False).decode
_decode_line = msgspec.json.Decoder(Record, strict=False).decode
_encode_line = msgspec.json.Encoder(enc_hook=str).encode
_UNKNOWN_TYPE = re.compile(r"Invalid value '")


def encode(record: Record) -> bytes:
    """Return the line of a record, with its line end.

    Numbers that are not finite become the strings "NaN", "Infinity" and "-Infinity", so that the line is strict JSON;
    in a row they are read back as numbers, in facts, which may hold anything, they stay words.
    About 1 µs for a row, so that it may run inside a training loop.
    """
    if type(record) is MetricRow:
        for value in record.values.values():
            # x - x is 0 for every finite number, and NaN for the rest.
            if value - value != 0.0:
                return _encode_line(_Strict.row(record)) + b"\n"
        if (record.epoch or 0.0) - (record.epoch or 0.0) != 0.0 or (record.time or 0.0) - (record.time or 0.0) != 0.0:
            return _encode_line(_Strict.row(record)) + b"\n"
    elif type(record) is FactUpdate:
        return _encode_line(FactUpdate(_words(record.values), record.origin, record.inferred)) + b"\n"
    return _encode_line(record) + b"\n"


class _Strict(msgspec.Struct, tag_field="type", tag="metrics", omit_defaults=True):
    """A row in whose values words may stand."""

    step: int | None
    values: dict[str, Any]
    epoch: float | str | None = None
    time: float | str | None = None
    estimated: bool = False

    @classmethod
    def row(cls, row: MetricRow) -> _Strict:
        return cls(row.step, _words(row.values), _words(row.epoch), _words(row.time), row.estimated)


def _words(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(name): _words(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_words(item) for item in value]
    return value


class LorawatchSource(LineSource):
    """Follows ``lorawatch.jsonl``. Records and fields that a newer lorawatch added are passed over."""

    format: ClassVar[str] = "lorawatch"
    precedence: ClassVar[int] = 0

    def _parse(self, block: bytes) -> list[Record]:
        out: list[Record] = []
        self._lines(block.rstrip(b"\r\n").split(b"\n"), out)
        return out

    def _lines(self, lines: list[bytes], out: list[Record]) -> None:
        if len(lines) > 1:
            try:
                found = _decode_all(b"[" + b",".join(lines) + b"]")
            except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
                found = []
            if len(found) == len(lines):
                out += found
                return
            half = len(lines) // 2
            self._lines(lines[:half], out)
            self._lines(lines[half:], out)
            return
        try:
            out.append(_decode_line(lines[0]))
        except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
            newer = isinstance(error, msgspec.ValidationError) and _UNKNOWN_TYPE.match(str(error))
            self._bad_lines += bool(lines[0].strip()) and not newer
