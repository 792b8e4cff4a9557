"""What all sources that read a growing file of lines share: laziness, cursors, torn last lines."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from operator import length_hint
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lorawatch.records import Record
from lorawatch.sources.follow import CHUNK, FileFollower


class Follower(Protocol):
    """Reads what was appended to a file, in blocks of whole lines or frames."""

    skipped_lines: int
    replacements: int

    def read(self) -> bytes:
        """Return the next block, empty when there is none for now."""
        ...

    def finish(self) -> bytes:
        """Return the last line although nothing ends it."""
        ...

    def cursor(self) -> dict[str, Any]:
        """Where reading is, as plain JSON."""
        ...

    def resume(self, cursor: dict[str, Any]) -> None:
        """Go on from where ``cursor`` was taken."""
        ...


class LineSource(ABC):
    """Follows one file of lines or frames; a sub-class parses blocks of them.

    A cursor is the state before the current block plus the number of its records that were handed out already. So a
    cursor may be taken at any moment, also half-way through a :meth:`poll`, and costs nothing a record. It relies on
    parsing that does not depend on where a block ends, which the tests demand of every format.

    Attributes:
        skipped_lines: Lines that looked like metrics and could not be read, or were longer than the limit.
    """

    format: ClassVar[str]
    precedence: ClassVar[int]
    split_returns: ClassVar[bool] = False

    def __init__(self, path: Path, *, chunk: int = CHUNK) -> None:
        self.path = path
        self.skipped_lines = 0
        self._bad_lines = 0
        self._follower = self._follow(path, chunk)
        self._pending: Iterator[Record] = iter(())
        self._before = self._checkpoint()
        self._loaded = 0
        self._to_drop = 0

    @property
    def replacements(self) -> int:
        """How often the file was found truncated or replaced, so that what was read before stands in it no more."""
        return self._follower.replacements

    def poll(self) -> Iterable[Record]:
        """Yield the records that appeared since the last call; empty while the file is absent.

        Raises:
            SourceError: the path is no regular file, or is not readable.
        """
        while True:
            yield from self._pending
            self._loaded = 0
            self._before = self._checkpoint()
            block = self._follower.read()
            self._count()
            if not block:
                return
            self._load(block)

    def finish(self) -> Iterable[Record]:
        """Yield what a torn last line still holds, once the file is known to be complete."""
        yield from self.poll()
        self._load(self._follower.finish(), last=True)
        yield from self._pending
        self._loaded = 0
        self._before = self._checkpoint()

    def cursor(self) -> dict[str, Any]:
        """Where the source is, as plain JSON."""
        # A list's iterator knows how much it still holds: counting each record would cost more than making it.
        given = self._loaded - length_hint(self._pending) if self._loaded else 0
        return {**self._before, "given": given + self._to_drop}

    def resume(self, cursor: dict[str, Any]) -> None:
        """Go on from where ``cursor`` was taken. A file that was replaced since then is read from its start."""
        self._follower.resume(cursor["file"])
        self._bad_lines = int(cursor["bad_lines"])
        self._restore(cursor["state"])
        self._pending = iter(())
        # After a replacement the records of the old block are gone, and none of the new ones were given.
        self._to_drop = 0 if self._follower.replacements else int(cursor["given"])
        self._loaded = 0
        self._before = self._checkpoint()
        self._count()

    def _load(self, block: bytes, last: bool = False) -> None:
        records = self._parse(block) if block else []
        if last:
            records += self._parse_end()
        dropped = min(self._to_drop, len(records))
        self._loaded = len(records)
        self._pending = iter(records[dropped:] if dropped else records)
        # A block may end elsewhere than it did when the cursor was taken: the rest is dropped from the next one.
        self._to_drop -= dropped
        self._count()

    def _count(self) -> None:
        self.skipped_lines = self._bad_lines + self._follower.skipped_lines

    def _checkpoint(self) -> dict[str, Any]:
        return {"file": self._follower.cursor(), "bad_lines": self._bad_lines, "state": self._state()}

    def _follow(self, path: Path, chunk: int) -> Follower:
        """Return what reads the file."""
        return FileFollower(path, chunk=chunk, split_returns=self.split_returns)

    @abstractmethod
    def _parse(self, block: bytes) -> list[Record]:
        """Return the records of whole lines, in order. Must not depend on how the file was cut into blocks."""

    def _parse_end(self) -> list[Record]:
        """Return what the parser held back for lines that never came."""
        return []

    def _state(self) -> dict[str, Any]:
        """Return what the parser has learnt so far, as plain JSON."""
        return {}

    def _restore(self, state: dict[str, Any]) -> None:  # noqa: B027 - most formats have no state to take over
        """Take over what :meth:`_state` returned."""
