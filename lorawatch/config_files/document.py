"""A configuration's text with the place of every setting in it, and how to change one without touching the rest."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, ClassVar, Final, Self


class ConfigError(Exception):
    """A configuration cannot be read, or not be changed as asked: says in one line where, and why."""


class _Unread:
    """Stands for the value of a setting that is no literal."""

    def __repr__(self) -> str:
        return "UNREAD"


UNREAD: Final = _Unread()


@dataclass(frozen=True, slots=True, eq=False)
class Entry:
    """One setting.

    Attributes:
        name: Its key, keyword or variable, as the file spells it.
        value: What it is set to, as plain Python; :data:`UNREAD` where that is computed, or no scalar and no list.
        section: Number of its section in :attr:`Document.sections`.
        line: Line of the value, from 1.
        start: Where the value's text begins.
        end: Where it ends.
        problem: Why it cannot be changed here, as the end of a sentence that begins with its name; "" when it can.
    """

    name: str
    value: Any
    section: int
    line: int
    start: int
    end: int
    problem: str = ""


@dataclass(slots=True, eq=False)
class Section:
    """Settings that stand together: a mapping, a call with keywords, a dict, the assignments of a module.

    Attributes:
        index: Its number in :attr:`Document.sections`.
        path: Keys that lead to it from the top; in Python, what is called or assigned.
        entries: Its settings, in the file's order.
        problem: Why nothing can be added to it, as the end of a sentence that begins with its name; "" when it can.
    """

    index: int
    path: tuple[str, ...]
    entries: list[Entry] = field(default_factory=list)
    problem: str = ""

    @property
    def name(self) -> str:
        """What to call it: its key, or what is called."""
        return ".".join(self.path)


Outline = list[tuple[tuple[str | int, ...], object]]
"""Every value of a document by its path, in the file's order."""


class Document(ABC):
    """The text of a configuration. It is never changed: an edit gives a new document.

    Every edit is read again before it is given back: it must hold the intended value, and everything else as before.

    Args:
        text: The file's text, without a byte order mark, with its own line ends.

    Raises:
        ConfigError: It is not valid in its format, or holds no settings.
    """

    format: ClassVar[str]
    comments: ClassVar[bool] = True

    def __init__(self, text: str) -> None:
        self.text = text
        self.newline = "\r\n" if "\r\n" in text else "\n"
        self.sections: list[Section] = []

    @property
    def entries(self) -> Iterator[Entry]:
        """All settings, in the order of their sections."""
        return (entry for section in self.sections for entry in section.entries)

    def replace(self, entry: Entry, value: Any) -> Self:
        """The document with another value for ``entry``, written in the style of the old one.

        Raises:
            ConfigError: The value stands in a form that cannot be changed in place.
        """
        if entry.problem:
            raise ConfigError(f"line {entry.line}: {entry.name} {entry.problem}")
        found = self._again(self._with_value(entry, value))
        self._verify(found, self.sections[entry.section], entry, value)
        return found

    def insert(self, after: Entry, name: str, value: Any, comment: str = "") -> Self:
        """The document with one more setting below ``after``, in the same section.

        Args:
            after: The setting to stand below.
            name: The new setting's name.
            value: Its value.
            comment: What to write beside it, where the format has comments and the setting gets a line of its own.

        Raises:
            ConfigError: Nothing can be added there.
        """
        section = self.sections[after.section]
        if section.problem:
            raise ConfigError(f"{section.name} {section.problem}")
        found = self._again(self._with_entry(after, name, value, comment))
        self._verify(found, section, None, value, name)
        return found

    def _again(self, text: str) -> Self:
        try:
            return type(self)(text)
        except ConfigError as error:
            raise ConfigError(f"the change would leave a file that cannot be read ({error}); make it by hand") from None

    def _verify(self, found: Self, section: Section, entry: Entry | None, value: Any, name: str = "") -> None:
        name = name if entry is None else entry.name
        there = found.sections[section.index] if section.index < len(found.sections) else Section(-1, ())
        settings = [one for one in there.entries if one.name == name]
        if len(settings) != 1 or not same(settings[0].value, value):
            raise ConfigError(f"{name} = {value!r} would not be read back as that; make the change by hand")
        if not self._only_differs_in(found, entry, settings[0]):
            raise ConfigError(f"setting {name} would change something else too; make the change by hand")

    def _only_differs_in(self, found: Document, entry: Entry | None, now: Entry) -> bool:
        path = (*found.sections[now.section].path, now.name)

        def rest(outline: Outline) -> Outline:
            return [(where, value) for where, value in outline if where[: len(path)] != path]

        return rest(self._outline()) == rest(found._outline())

    def _spliced(self, start: int, end: int, words: str) -> str:
        return self.text[:start] + words + self.text[end:]

    def _line(self, position: int) -> int:
        return self.text.count("\n", 0, position) + 1

    @abstractmethod
    def _with_value(self, entry: Entry, value: Any) -> str: ...

    @abstractmethod
    def _with_entry(self, after: Entry, name: str, value: Any, comment: str) -> str: ...

    @abstractmethod
    def _outline(self) -> Outline: ...


def same(value: Any, wanted: Any) -> bool:
    """Whether a value that was read is the one that was meant: a number in quotes is that number, True is not 1."""
    if isinstance(value, list | tuple) and isinstance(wanted, list | tuple):
        return len(value) == len(wanted) and all(map(same, value, wanted))
    if isinstance(value, bool) or isinstance(wanted, bool) or value is None or wanted is None:
        return value is wanted
    if isinstance(wanted, int | float):
        if not isinstance(value, int | float | str):
            return False
        try:
            return float(value) == float(wanted)
        except (ValueError, OverflowError):
            return False
    return type(value) is type(wanted) and bool(value == wanted)
