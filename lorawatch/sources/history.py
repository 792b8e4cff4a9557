"""What sources share that read a whole history at once from files which are rewritten at every save."""

from __future__ import annotations

import base64
import json
import os
import zlib
from abc import ABC, abstractmethod
from collections.abc import Iterable
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import msgspec

from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow, Record
from lorawatch.source import SourceError
from lorawatch.sources.follow import open_regular
from lorawatch.sources.lorawatch_jsonl import encode

SIZE_LIMIT = 64 << 20
"""Bytes of the largest JSON document that is read: 300,000 rows, decoded in about 0.5 GiB."""
_decode = msgspec.json.Decoder().decode


def read_document(path: Path, limit: int = SIZE_LIMIT) -> Any:
    """Return the value of a JSON file, bare NaN and Infinity accepted; None when it is missing or half written.

    Raises:
        SourceError: it is no regular file, not readable, or larger than ``limit`` bytes.
    """
    try:
        descriptor = open_regular(path)
    except FileNotFoundError:
        return None
    with os.fdopen(descriptor, "rb") as file:
        try:
            data = file.read(limit + 1)
        except OSError as error:
            raise SourceError(f"{path}: cannot be read ({error.strerror}); check the disk") from None
    if len(data) > limit:
        raise SourceError(f"{path}: larger than {limit >> 20} MiB; give the console log or trainer_log.jsonl instead")
    try:
        return _decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        pass
    try:
        return json.loads(data.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return None


class HistorySource(ABC):
    """Follows files that hold a run's whole history and are rewritten as it grows.

    Each time, only what lies beyond the records given before comes out. Where a rewritten history differs from what
    was given, the run was resumed: ``resumed`` says from which step, and the new records follow.
    """

    format: ClassVar[str]
    precedence: ClassVar[int]

    def __init__(self, path: Path) -> None:
        self.path = path
        self.skipped_lines = 0
        self._given = bytearray()  # four bytes a record, which is enough to see where two histories part
        self._facts: dict[str, Any] = {}
        self._seen: list[Any] = []
        self._understood = False

    def poll(self) -> Iterable[Record]:
        """Yield the records that appeared since the last call; empty while the file is absent or half written.

        Raises:
            SourceError: a file is not readable or too large.
        """
        seen = [signature(path) for path in self._files()]
        if seen == self._seen or not any(seen):
            return
        loaded = self._load()
        if loaded is None:
            return
        facts, rows = loaded
        self._understood = True
        news = {name: value for name, value in facts.items() if name not in self._facts or self._facts[name] != value}
        if news:
            self._facts.update(news)
            yield FactUpdate(news, self.path.name)
        yield from self._beyond(rows)
        self._seen = seen

    def finish(self) -> Iterable[Record]:
        """Yield what is left, once the files are complete.

        Raises:
            SourceError: nothing in them could be understood, or the history is empty.
        """
        yield from self.poll()
        if not self._understood and any(signature(path) for path in self._files()):
            raise SourceError(f"{self.path}: no readable history (cut short or no JSON); give the run's console log")
        if self._understood and not self._given:
            raise SourceError(f"{self.path}: the history is empty; nothing was logged yet (see logging_steps)")

    def cursor(self) -> dict[str, Any]:
        """Where the source is, as plain JSON."""
        return {"given": base64.b64encode(self._given).decode("ascii"), "facts": dict(self._facts)}

    def resume(self, cursor: dict[str, Any]) -> None:
        """Go on from where ``cursor`` was taken."""
        self._given = bytearray(base64.b64decode(cursor["given"]))
        self._facts = dict(cursor["facts"])
        self._seen = []

    def usable(self) -> bool:
        """Whether there is a history with rows in it now."""
        try:
            loaded = self._load()
        except SourceError:
            return False
        return loaded is not None and bool(loaded[1])

    def _beyond(self, rows: list[Record]) -> Iterable[Record]:
        marks = [zlib.crc32(encode(row)).to_bytes(4, "big") for row in rows]
        given = self._given
        common = 0
        for mark in marks:
            if given[common * 4 : common * 4 + 4] != mark:
                break
            common += 1
        if common == len(rows):
            return  # nothing new, or an older file was put back
        if common * 4 < len(given):
            del given[common * 4 :]
            before = [row.step for row in rows[:common] if isinstance(row, MetricRow) and row.step is not None]
            yield LifecycleEvent("resumed", step=before[-1]) if before else LifecycleEvent("started")
        for row, mark in zip(rows[common:], marks[common:], strict=True):
            given += mark
            yield row

    def _files(self) -> list[Path]:
        """Return the files that hold the history."""
        return [self.path]

    @abstractmethod
    def _load(self) -> tuple[dict[str, Any], list[Record]] | None:
        """Return facts and the whole history, None when nothing can be understood yet."""


def signature(path: Path) -> list[int] | None:
    """What tells that a file was changed or replaced; None while it is missing."""
    try:
        status = path.stat()
    except (OSError, ValueError):
        return None
    return [status.st_ino, status.st_size, status.st_mtime_ns]


def with_restarts(rows: list[MetricRow | LifecycleEvent]) -> list[Record]:
    """Return rows with an event wherever training steps go back within one history."""
    out: list[Record] = rows[:1]  # type: ignore[assignment]
    first = next((row.step for row in rows if isinstance(row, MetricRow) and "loss" in row.values), None)
    last: int | None = None
    for before, row in pairwise(rows):
        if isinstance(before, MetricRow) and "loss" in before.values:
            last = before.step
        trained = isinstance(row, MetricRow) and "loss" in row.values
        if trained and row.step is not None and last is not None and row.step < last:
            anew = first is None or row.step <= first
            out.append(LifecycleEvent("started") if anew else LifecycleEvent("resumed", step=row.step))
        out.append(row)
    return out
