"""The contract of a source: something that follows one place and yields records."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lorawatch.records import Record


class SourceError(Exception):
    """A source cannot be read: says in one line what, where and what to do."""


class Source(Protocol):
    """Follows one file and yields what it says, in order.

    A source owns parsing and resuming; it knows no rule. It never raises for what a log contains: a line that cannot
    be read is counted in ``skipped_lines``. It raises :class:`SourceError` when the file as a whole cannot be used.
    """

    format: ClassVar[str]
    """Name of the format, as ``lorawatch check -v`` shows it: ``console``, ``trainer_state``."""
    precedence: ClassVar[int]
    """Which source wins when two tell the same metric of one run: the smaller number."""

    path: Path
    skipped_lines: int
    """Lines that looked like metrics and could not be read, or were longer than the limit."""

    def poll(self) -> Iterable[Record]:
        """Yield the records that appeared since the last call; empty while the file is absent.

        Yields lazily: memory stays bounded however long the file is.
        """
        ...

    def finish(self) -> Iterable[Record]:
        """Yield what a torn last line still holds, once the file is known to be complete."""
        ...

    def cursor(self) -> dict[str, Any]:
        """Where the source is, as plain JSON: enough for :meth:`resume` in another process to go on from here."""
        ...

    def resume(self, cursor: dict[str, Any]) -> None:
        """Go on from where ``cursor`` was taken. A file that has been replaced since then is read from its start."""
        ...
