"""The ledger of a run: what was changed in its configuration after it was judged, when, and why.

``lorawatch fix --write`` adds a line to ``lorawatch-ledger.jsonl`` in the run's folder, so that ``compare`` can say
later whether the change helped. The file is local, and never sent anywhere.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

LEDGER = "lorawatch-ledger.jsonl"
SCHEMA = 1
LIMIT = 4 << 20
"""Bytes of a ledger that are read, from its end: thousands of changes."""
_CLOSE = 2e-3
"""Relative difference up to which two numbers are one that was printed in four digits."""


@dataclass(frozen=True, slots=True)
class LedgerChange:
    """One setting that was changed.

    Attributes:
        name: As the configuration spells it.
        parameter: As the facts of a run spell it.
        before: Its value before; None where it was not set.
        after: The value that it got.
    """

    name: str
    parameter: str
    before: Any
    after: Any


@dataclass(frozen=True, slots=True)
class LedgerEntry:
    """One adjustment that was made in a configuration.

    Attributes:
        time: Unix time at which it was made.
        run: Name of the run that was judged.
        started: Unix time of that run's first record; None where its records carry no time.
        last_step: Its last step when it was judged.
        rows: Rows of metrics that it had.
        rule: The rule whose finding asked for it.
        finding: Id of the finding.
        severity: Its severity: info, warning or critical.
        summary: What the finding said.
        why: Why the adjustment helps.
        apply: ``restart``, ``resume`` or ``live``.
        config: The file that was changed.
        backup: The file as it was before.
        changes: What was changed, the adjustment's own parameter first.
        lorawatch: Version of lorawatch.
    """

    time: float
    run: str
    started: float | None
    last_step: int
    rows: int
    rule: str
    finding: str
    severity: str
    summary: str
    why: str
    apply: str
    config: str
    backup: str
    changes: tuple[LedgerChange, ...]
    lorawatch: str = ""

    def is_of(self, run: str, started: float | None, last_step: int, rows: int) -> bool:
        """Whether it followed from this run as far as it has come: nothing was trained since."""
        return (self.run, self.started, self.last_step, self.rows) == (run, started, last_step, rows)


def ledger_path(run_path: Path) -> Path:
    """Where the ledger of a run stands: in its folder, or beside its log."""
    return (run_path if run_path.is_dir() else run_path.parent) / LEDGER


def append_entry(path: Path, entry: LedgerEntry) -> None:
    """Add one entry to a ledger. A line that an earlier writer left torn stays as it is, on a line of its own.

    Raises:
        OSError: The ledger cannot be written.
    """
    line = json.dumps({"type": "change", "schema": SCHEMA, **asdict(entry)}, allow_nan=False, ensure_ascii=True)
    with path.open("ab+") as opened:
        end = opened.seek(0, os.SEEK_END)
        if end:
            opened.seek(end - 1)
            if opened.read(1) != b"\n":
                line = "\n" + line
        opened.write(line.encode() + b"\n")
        opened.flush()
        os.fsync(opened.fileno())


def read_ledger(folder: Path) -> list[LedgerEntry]:
    """The changes that a run's ledger holds, oldest first; none where it has no ledger that can be read.

    Lines that are torn, or of another kind, are passed over.

    Args:
        folder: The run's folder, or its log.
    """
    path = ledger_path(folder)
    try:
        if not path.is_file():
            return []
        with path.open("rb") as opened:
            size = opened.seek(0, os.SEEK_END)
            opened.seek(max(size - LIMIT, 0))
            data = opened.read(LIMIT)
    except OSError:
        return []
    found = (_entry(line) for line in data.split(b"\n"))
    return [entry for entry in found if entry is not None]


def adoption(entries: Iterable[LedgerEntry], fact: Callable[[str], Any]) -> list[tuple[LedgerEntry, bool | None]]:
    """Which of the changes a later run was started with: True, False, or None where its facts do not tell.

    Args:
        entries: The ledger of the run before.
        fact: Gives the later run's value of a fact; None where it is not known.
    """
    found: list[tuple[LedgerEntry, bool | None]] = []
    for entry in entries:
        told = [(change.after, fact(change.parameter)) for change in entry.changes]
        known = [_alike(wanted, value) for wanted, value in told if value is not None]
        found.append((entry, all(known) if known else None))
    return found


def adoption_notes(entries: Iterable[LedgerEntry], fact: Callable[[str], Any]) -> list[str]:
    """:func:`adoption` in sentences, for a person who compares the run before with a later one.

    What stands in a ledger may be hostile: to be made printable before it reaches a terminal.
    """
    words = {
        True: "the second run was started with it",
        False: "the second run was not started with it",
        None: "the second run does not tell whether it was started with it",
    }
    notes: list[str] = []
    for entry, taken in adoption(entries, fact):
        made = ", ".join(f"{one.name} {_shown(one.before)} → {_shown(one.after)}" for one in entry.changes)
        notes.append(f"lorawatch fix changed {made} for {entry.rule}: {words[taken]}")
    return notes


def _shown(value: Any) -> str:
    return "not set" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def _alike(wanted: Any, value: Any) -> bool:
    numbers = [one for one in (wanted, value) if isinstance(one, int | float) and not isinstance(one, bool)]
    if len(numbers) == 2:
        return math.isclose(float(numbers[0]), float(numbers[1]), rel_tol=_CLOSE)
    if isinstance(wanted, list) and isinstance(value, list):
        return sorted(map(str, wanted)) == sorted(map(str, value))
    return bool(wanted == value)


def _entry(line: bytes) -> LedgerEntry | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or row.get("type") != "change" or not isinstance(row.get("changes"), list):
        return None
    started, time = row.get("started"), row.get("time")
    if not _is_number(time) or not (started is None or _is_number(started)):
        return None
    counts = [row.get("last_step"), row.get("rows")]
    if not all(isinstance(count, int) and not isinstance(count, bool) for count in counts):
        return None
    changes: list[LedgerChange] = []
    for one in row["changes"]:
        if (
            not isinstance(one, dict)
            or not isinstance(one.get("name"), str)
            or not isinstance(one.get("parameter"), str)
        ):
            return None
        changes.append(LedgerChange(one["name"], one["parameter"], one.get("before"), one.get("after")))
    names = ("run", "rule", "finding", "severity", "summary", "why", "apply", "config", "backup", "lorawatch")
    words = {name: str(row.get(name, "")) for name in names}
    return LedgerEntry(
        time=float(row["time"]), started=None if started is None else float(started), last_step=row["last_step"],
        rows=row["rows"], changes=tuple(changes), **words,
    )  # fmt: skip


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
