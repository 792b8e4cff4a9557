"""The contracts of sources: what follows a file and yields records, and what looks at the GPUs of a machine."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar, Protocol

from lorawatch.records import Card, Record


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


class GpuCollector(Protocol):
    """Looks at the GPUs of one vendor. Adding a vendor is one class that keeps this contract.

    What a card does not tell is None, never 0. :meth:`look` may take long or never return: it is called from a thread
    of its own, on which nothing waits.
    """

    vendor: ClassVar[str]
    """Name of the vendor, in lower case: ``nvidia``."""

    @property
    def problems(self) -> Sequence[str]:
        """What cannot be read, one line each, for a person; each is said once."""
        ...

    def look(self) -> list[Card]:
        """Every card and MIG instance as it is now, in the driver's order; empty without driver or card. Never raises.

        Each :class:`~lorawatch.records.Card` has ``samples=1``; ``own`` and ``own_memory`` are left to the caller, who
        knows the run's processes.
        """
        ...

    def close(self) -> None:
        """Let go of the driver."""
        ...
