"""JSON: only the characters of the value change. A small reader keeps their places, which :mod:`json` does not tell."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from typing import Any, ClassVar

from lorawatch.config_files.document import UNREAD, ConfigError, Document, Entry, Outline, Section
from lorawatch.config_files.scalars import number_text

DEPTH = 64
"""Levels of nesting that are looked into; deeper files are refused."""
_BLANK = re.compile(r"[ \t\r\n]*")
_DECODER = json.JSONDecoder()


@dataclass(frozen=True, slots=True)
class _Value:
    """A value and its place; ``members`` of an object, ``items`` of an array."""

    start: int
    end: int
    plain: Any = None
    members: tuple[_Member, ...] | None = None
    items: tuple[_Value, ...] | None = None


@dataclass(frozen=True, slots=True)
class _Member:
    """One name with its value; ``start`` and ``end`` are the name's place, its quotes included."""

    name: str
    start: int
    end: int
    value: _Value


class JsonDocument(Document):
    """A JSON document whose top is an object. JSON has no comments: a file with some is refused."""

    format: ClassVar[str] = "JSON"
    comments: ClassVar[bool] = False

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._members: dict[Entry, _Member] = {}
        try:
            if not isinstance(json.loads(text), dict):
                raise ConfigError("the top of the file is no object of names to values")
        except json.JSONDecodeError as error:
            raise ConfigError(_told(error, text)) from None
        except (RecursionError, ValueError):  # ValueError: an integer of thousands of digits
            raise ConfigError("nested too deeply, or a number too long, to be a configuration") from None
        self._root = self._value(_skip(text, 0), 0)
        self._walk(self._root, ())

    def _value(self, at: int, depth: int) -> _Value:
        """The value that begins at ``at``, in text that is known to be valid."""
        text, first = self.text, self.text[at]
        if depth > DEPTH:
            raise ConfigError("nested too deeply to be a configuration")
        if first == "{":
            members: list[_Member] = []
            here = _skip(text, at + 1)
            while text[here] != "}":
                name, end = _DECODER.raw_decode(text, here)
                inner = self._value(_skip(text, _skip(text, end) + 1), depth + 1)
                members.append(_Member(name, here, end, inner))
                here = _skip(text, inner.end)
                here = _skip(text, here + 1) if text[here] == "," else here
            return _Value(at, here + 1, UNREAD, members=tuple(members))
        if first == "[":
            items: list[_Value] = []
            here = _skip(text, at + 1)
            while text[here] != "]":
                items.append(self._value(here, depth + 1))
                here = _skip(text, items[-1].end)
                here = _skip(text, here + 1) if text[here] == "," else here
            scalars = all(item.members is None and item.items is None for item in items)
            return _Value(at, here + 1, [item.plain for item in items] if scalars else UNREAD, items=tuple(items))
        plain, end = _DECODER.raw_decode(text, at)
        return _Value(at, end, plain)

    def _walk(self, value: _Value, path: tuple[str, ...]) -> None:
        section = Section(len(self.sections), path, problem="" if value.members else "is empty")
        self.sections.append(section)
        for member in value.members or ():
            inner = member.value
            problem = ""
            if inner.members is not None:
                problem = "is a group of settings"
            elif inner.plain is UNREAD:
                problem = "is a list of more than plain words and numbers"
            entry = Entry(
                member.name, inner.plain, section.index, self._line(inner.start), inner.start, inner.end, problem
            )
            section.entries.append(entry)
            self._members[entry] = member
        for member in value.members or ():
            if member.value.members is not None:
                self._walk(member.value, (*path, member.name))

    def _with_value(self, entry: Entry, value: Any) -> str:
        old = self._members[entry].value
        if old.items is not None and isinstance(value, list | tuple) and len(value) == len(old.items):
            text = self.text
            for item, wanted in reversed(list(zip(old.items, value, strict=True))):
                if item.plain != wanted:
                    text = text[: item.start] + self._written(wanted, item) + text[item.end :]
            return text
        return self._spliced(old.start, old.end, self._written(value, old))

    def _with_entry(self, after: Entry, name: str, value: Any, comment: str) -> str:
        text, member = self.text, self._members[after]
        before = text[text.rfind("\n", 0, member.start) + 1 : member.start]
        gap = self.newline + before if not before.strip() and "\n" in text[: member.start] else " "
        colon = text[member.end : member.value.start]
        words = f",{gap}{json.dumps(name)}{colon}{self._written(value, None)}"
        return self._spliced(member.value.end, member.value.end, words)

    def _written(self, value: Any, old: _Value | None) -> str:
        like = "" if old is None else self.text[old.start : old.end]
        if isinstance(value, list | tuple):
            return "[" + ", ".join(self._written(item, None) for item in value) + "]"
        if isinstance(value, int | float) and not isinstance(value, bool):
            quoted = like.startswith('"') and _is_number(like.strip('"'))
            words = number_text(value, like.strip('"'))
            return f'"{words}"' if quoted else words
        if value is None or isinstance(value, bool | str):
            return json.dumps(value, ensure_ascii=False)
        raise ConfigError(f"{value!r} is more than a word, a number or a list; make the change by hand")

    def _outline(self) -> Outline:
        found: Outline = []

        def note(value: _Value, path: tuple[str | int, ...]) -> None:
            if value.members is not None:
                found.append((path, "object"))
                for member in value.members:
                    note(member.value, (*path, member.name))
            elif value.items is not None:
                found.append((path, "array"))
                for index, item in enumerate(value.items):
                    note(item, (*path, index))
            else:
                found.append((path, (type(value.plain), self.text[value.start : value.end])))

        note(self._root, ())
        return found


def _skip(text: str, at: int) -> int:
    found = _BLANK.match(text, at)
    return found.end() if found else at


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _told(error: json.JSONDecodeError, text: str) -> str:
    rest = text[error.pos : error.pos + 2]
    if rest in ("//", "/*") or rest.startswith("#"):
        return f"line {error.lineno}: a comment, which JSON does not have; take it out, or keep the settings as YAML"
    return f"line {error.lineno}: not valid JSON: {error.msg}"
