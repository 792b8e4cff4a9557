"""From an adjustment to the edits of a configuration: one change, with what has to move along with it."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lorawatch.config_files.document import UNREAD, ConfigError, Document, Entry, same
from lorawatch.config_files.families import Family, parameter_of, place_for, setting_of
from lorawatch.config_files.scalars import comma_list
from lorawatch.findings import Adjustment, Direction
from lorawatch.sources.names import FACT_NAMES

_LIKE = 0.85
"""Likeness from which a name is taken for a misspelling."""
_CLOSE = 2e-3
"""Relative difference up to which a value is the one that a log printed in four digits."""


class AlreadySoError(Exception):
    """The configuration says already what is proposed, or more of it."""


@dataclass(frozen=True, slots=True)
class Edit:
    """One setting that changes.

    Attributes:
        name: As the file spells it.
        parameter: As the facts of a run spell it.
        before: Its value; None where it was not set.
        after: The value that it gets.
        line: Its line in the new text, from 1.
    """

    name: str
    parameter: str
    before: Any
    after: Any
    line: int


@dataclass(slots=True)
class Change:
    """One adjustment made in a configuration.

    Attributes:
        before: The document as it is.
        after: The document as it is to be.
        edits: What differs, the adjustment's own first.
        differs: Names of which the file says something else than the run that was judged, with both values.
    """

    before: Document
    after: Document
    edits: list[Edit] = field(default_factory=list)
    differs: list[str] = field(default_factory=list)

    def diff(self, name: str) -> list[str]:
        """The change as the lines of a unified diff, without line ends."""
        old, new = (document.text.splitlines(keepends=True) for document in (self.before, self.after))
        lines: list[str] = []
        for line in difflib.unified_diff(old, new, name, name):
            lines.append(line.rstrip("\r\n"))
            if not line.endswith(("\n", "\r")):
                lines.append("\\ No newline at end of file")
        return lines


def in_words(adjustment: Adjustment) -> bool:
    """Whether an adjustment is something to do or to look at, rather than a value to set."""
    proposed = adjustment.proposed
    if not adjustment.parameter or proposed is None or isinstance(proposed, dict):
        return True
    number = isinstance(adjustment.current, int | float) and not isinstance(adjustment.current, bool)
    return isinstance(proposed, str) and (number or any(char.isspace() for char in proposed))


def companions(adjustment: Adjustment, advised: Sequence[Adjustment]) -> list[Adjustment]:
    """The adjustments that keep something as it is while this one is made: alpha for a rank, accumulation for a batch.

    Args:
        adjustment: The one to make.
        advised: All adjustments of its finding, in their order.
    """
    place = next((index for index, item in enumerate(advised) if item is adjustment), None)
    following = () if place is None else advised[place + 1 : place + 2]
    return [item for item in following if item.parameter and item.why.startswith(("keeps ", "keep "))]


def change(document: Document, family: Family, adjustments: Sequence[Adjustment], comment: str = "") -> Change:
    """Make one adjustment, and its companions, in a configuration.

    Args:
        document: The configuration.
        family: Whose names it uses; the adjustments speak them already, as the run's framework.
        adjustments: The adjustment, then its :func:`companions`.
        comment: What to write beside a setting that is new.

    Raises:
        ConfigError: It has to be made by hand, with the reason.
        AlreadySoError: The file says it already.
    """
    made = Change(document, document)
    for number, adjustment in enumerate(adjustments):
        if in_words(adjustment):
            raise ConfigError(f"{adjustment.parameter}: {adjustment.proposed}; its value now is not known")
        name, value = _spelled(made.after, family, adjustment)
        entry = setting_of(made.after, name)
        if entry is not None and _done(entry, value, adjustment.direction):
            if number == 0:
                words = "already" if same(entry.value, value) else f"already, which goes past {_shown(value)}"
                raise AlreadySoError(f"line {entry.line} says {entry.name} {_shown(entry.value)} {words}")
            continue
        if entry is not None and _another(entry, adjustment):
            made.differs.append(
                f"{entry.name} is {_shown(entry.value)} here, and was {_shown(adjustment.current)} in the run"
            )
        _make(made, entry, name, value, comment)
        if parameter_of(name) == "bf16" and value is True:
            _without_half_precision(made)
    return made


def _without_half_precision(made: Change) -> None:
    """No configuration may ask for bf16 and fp16 at once."""
    entry = setting_of(made.after, "fp16")
    if entry is not None and entry.value not in (False, None):
        _make(made, entry, "fp16", False, "")


def _make(made: Change, entry: Entry | None, name: str, value: Any, comment: str) -> None:
    document = made.after
    if entry is not None:
        # A list takes a word's place, and a word a list's, as the family writes it.
        after = document.replace(entry, value)
        name, before = entry.name, entry.value
    else:
        _no_misspelling(document, name)
        neighbour, name = place_for(document, name)
        after = document.insert(neighbour, name, value, comment)
        before = None
    now = setting_of(after, name)
    line = now.line if now is not None else 0
    made.after = after
    made.edits.append(Edit(name, parameter_of(name), None if before is UNREAD else before, value, line))


def _spelled(document: Document, family: Family, adjustment: Adjustment) -> tuple[str, Any]:
    """Name and value as this file has them, which may be older than the libraries beside lorawatch."""
    name, value = adjustment.parameter, adjustment.proposed
    parameter = parameter_of(name)
    if parameter == "target_modules":
        if value == "all-linear" and family == "axolotl":
            return "lora_target_linear", True  # beside which the list of names only adds to it
        if family == "llamafactory":
            return name, "all" if value == "all-linear" else comma_list(value)
    if parameter == "train_sampling_strategy" and _only(document, "group_by_length", parameter):
        return "group_by_length", value == "group_by_length"
    if name == "warmup_steps" and isinstance(value, float) and 0 < value < 1 and _only(document, "warmup_ratio", name):
        return "warmup_ratio", value
    if isinstance(value, tuple):
        value = list(value)
    return name, value


def _only(document: Document, older: str, newer: str) -> bool:
    return setting_of(document, older) is not None and setting_of(document, newer) is None


def _done(entry: Entry, value: Any, direction: Direction) -> bool:
    if entry.value is UNREAD:
        return False
    if same(entry.value, value):
        return True
    now, wanted = number_of(entry.value), number_of(value)
    if now is None or wanted is None:
        return False
    return (direction == "down" and now < wanted) or (direction == "up" and now > wanted)


def _another(entry: Entry, adjustment: Adjustment) -> bool:
    """Whether the file says something else than the run used: then it is not what started this run."""
    if isinstance(entry.value, bool) and isinstance(adjustment.current, bool):
        return entry.value is not adjustment.current
    now, then = number_of(entry.value), number_of(adjustment.current)
    if adjustment.parameter.startswith("warmup") or now is None or then is None:
        return False
    return not is_close(now, then)


def is_close(one: float, other: float) -> bool:
    """Whether two numbers are one that was printed in four digits."""
    return abs(one - other) <= _CLOSE * max(abs(one), abs(other))


def number_of(value: Any) -> float | None:
    """A value as a number, also where it stands in quotes; None for anything else."""
    if value is None or isinstance(value, bool):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def _no_misspelling(document: Document, name: str) -> None:
    for entry in document.entries:
        if entry.name != name and parameter_of(entry.name) == entry.name and entry.name not in FACT_NAMES:
            likeness = difflib.SequenceMatcher(None, entry.name, name).ratio()
            if likeness >= _LIKE:
                raise ConfigError(f"line {entry.line}: unknown setting {entry.name!r}; did you mean {name!r}?")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
