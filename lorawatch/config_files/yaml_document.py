"""YAML: only the characters of the value change. PyYAML's marks tell where they are."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import yaml

from lorawatch.config_files.document import UNREAD, ConfigError, Document, Entry, Outline, Section
from lorawatch.config_files.scalars import number_text

DEPTH = 64
"""Levels of nesting that are looked into."""
_TRUE_FALSE = {"true": "false", "yes": "no", "on": "off"}
_FLOAT = re.compile(r"[-+]?[\d_]*\.?[\d_]*[eE][-+]?\d+")
_PLAIN = re.compile(r"[A-Za-z_/][\w/.+\-]*(?:,[\w/.+\-]+)*")
"""Words that are themselves without quotes, where the resolver does not take them for something else."""


@dataclass(frozen=True, slots=True)
class _Seen:
    """An alias: the node that was met as the document's ``number``-th."""

    number: int


class YamlDocument(Document):
    """One YAML document whose top is a mapping.

    Comments, key order, quotes, indentation and line ends stay as they are. What an anchor makes stand in several
    places, blocks of text and values with a tag are left to their owner.
    """

    format: ClassVar[str] = "YAML"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._pairs: dict[Entry, tuple[yaml.Node, yaml.Node]] = {}
        self._mappings: dict[int, yaml.MappingNode] = {}
        self._anchored: set[int] = set()
        if _brackets(text) > DEPTH:  # PyYAML's time goes with their square
            raise ConfigError("nested too deeply to be a configuration")
        try:
            self._anchored = _taken_over(yaml.parse(text, Loader=yaml.SafeLoader))
            root = yaml.compose(text, Loader=yaml.SafeLoader)
            if not isinstance(root, yaml.MappingNode):
                raise ConfigError("the top of the file is no mapping of names to values")
            self._root = root
            self._walk(self._root, (), set(), "", 0)
        except yaml.MarkedYAMLError as error:
            raise ConfigError(_told(error)) from None
        except yaml.YAMLError as error:
            raise ConfigError(f"not valid YAML: {str(error).splitlines()[0]}") from None
        except RecursionError:
            raise ConfigError("nested too deeply to be a configuration") from None

    def _walk(self, mapping: yaml.MappingNode, path: tuple[str, ...], seen: set[int], shared: str, depth: int) -> None:
        if id(mapping) in seen or depth > DEPTH:
            return
        seen.add(id(mapping))
        section = Section(len(self.sections), path, problem=shared)
        if not mapping.value:
            section.problem = section.problem or "is empty"
        self.sections.append(section)
        self._mappings[section.index] = mapping
        below: list[tuple[yaml.MappingNode, tuple[str, ...], str]] = []
        for key, node in mapping.value:
            if not isinstance(key, yaml.ScalarNode):
                continue
            problem = shared or self._problem(key, node)
            if isinstance(node, yaml.MappingNode):
                inner = shared or ("" if problem == _GROUP else f"stands in a group that {problem}")
                below.append((node, (*path, key.value), inner))
                problem = problem or _GROUP
            entry = Entry(
                key.value, _plain(node), section.index, key.start_mark.line + 1,
                node.start_mark.index, _content_end(node, self.text), problem,
            )  # fmt: skip
            section.entries.append(entry)
            self._pairs[entry] = (key, node)
        for node, where, inner in below:
            self._walk(node, where, seen, inner, depth + 1)

    def _problem(self, key: yaml.Node, node: yaml.Node) -> str:
        if _is_alias(key, node):
            return "is an alias of a value that stands elsewhere"
        if node.start_mark.index in self._anchored:
            return "carries an anchor, and another place takes it over"
        if node.start_mark.index < node.end_mark.index and self.text[node.start_mark.index] in "&!":
            return _GROUP if isinstance(node, yaml.MappingNode) else "carries an anchor or a tag"
        if isinstance(node, yaml.ScalarNode) and (
            node.style in ("|", ">") or node.start_mark.line != node.end_mark.line
        ):
            return "is a block of text"
        if isinstance(node, yaml.SequenceNode) and not all(self._simple(item) for item in node.value):
            return "is a list of more than plain words and numbers"
        return _GROUP if isinstance(node, yaml.MappingNode) else ""

    def _simple(self, item: yaml.Node) -> bool:
        start = item.start_mark.index
        return (
            isinstance(item, yaml.ScalarNode)
            and item.style not in ("|", ">")
            and item.start_mark.line == item.end_mark.line
            and self.text[start : start + 1] not in ("&", "!", "*")
            and start not in self._anchored
        )

    def _with_value(self, entry: Entry, value: Any) -> str:
        key, node = self._pairs[entry]
        if isinstance(node, yaml.SequenceNode):
            return self._with_list(key, node, value)
        start, end = node.start_mark.index, node.end_mark.index
        if isinstance(value, list | tuple):
            words = self._flow_list(value, None)
        else:
            assert isinstance(node, yaml.ScalarNode)  # noqa: S101 - _problem() let nothing else through
            words = self._scalar(value, node, flow=bool(self._mappings[entry.section].flow_style))
        gap = " " if start == end and not self.text[:start].endswith((" ", "\t")) else ""
        return self._spliced(start, end, gap + words)

    def _with_list(self, key: yaml.Node, node: yaml.SequenceNode, value: Any) -> str:
        items = node.value
        if isinstance(value, list | tuple) and len(value) == len(items):
            text = self.text
            for item, wanted in reversed(list(zip(items, value, strict=True))):
                if _plain(item) != wanted:
                    start, end = item.start_mark.index, item.end_mark.index
                    text = text[:start] + self._scalar(wanted, item, flow=bool(node.flow_style)) + text[end:]
            return text
        words = self._flow_list(value, node) if isinstance(value, list | tuple) else self._scalar(value, None)
        start, end = node.start_mark.index, _content_end(node, self.text)
        if node.flow_style:
            if re.search(r"(?:^|\s)#", self.text[start:end]):
                raise ConfigError(
                    f"line {self._line(start)}: a comment stands within the list; make the change by hand"
                )
            return self._spliced(start, end, words)
        return self._with_block_list(key, items, words)

    def _with_block_list(self, key: yaml.Node, items: list[yaml.Node], words: str) -> str:
        """``words`` behind the key, instead of the items below it; the items' comments stay where they are."""
        text = self.text
        for number, item in reversed(list(enumerate(items))):
            before = items[number - 1].end_mark.index if number else key.end_mark.index
            dash = text.rfind("-", before, item.start_mark.index)
            if dash < 0 or text[dash + 1 : item.start_mark.index].strip():
                raise ConfigError(f"line {item.start_mark.line + 1}: an unusual list; make the change by hand")
            start = text.rfind("\n", 0, dash) + 1
            end = text.find("\n", item.end_mark.index)
            end = len(text) if end < 0 else end + 1
            left = text[item.end_mark.index : end].strip(" \t")
            indent = text[start:dash]
            text = text[:start] + (indent + left if left.strip() else "") + text[end:]
        colon = text.index(":", key.end_mark.index)
        return text[: colon + 1] + " " + words + text[colon + 1 :]

    def _with_entry(self, after: Entry, name: str, value: Any, comment: str) -> str:
        key, node = self._pairs[after]
        words = f"{name}: " + (
            self._flow_list(value, None) if isinstance(value, list | tuple) else self._scalar(value, None)
        )
        end = key.end_mark.index if _is_alias(key, node) else _content_end(node, self.text)
        if self._mappings[after.section].flow_style:
            return self._spliced(end, end, f", {words}")
        line = " " * key.start_mark.column + words + (f"  # {comment}" if comment else "")
        if end and self.text[end - 1] == "\n":
            return self._spliced(end, end, line + self.newline)  # a block of text ends with its last line
        stop = self.text.find("\n", end)
        if stop < 0:
            return self.text + self.newline + line
        return self._spliced(stop + 1, stop + 1, line + self.newline)

    def _scalar(self, value: Any, like: yaml.ScalarNode | None, *, flow: bool = False) -> str:
        style = like.style if like is not None else None
        old = like.value if like is not None else ""
        if isinstance(value, bool):
            words = self._switch(value, old)
        elif value is None:
            words = "null"
        elif isinstance(value, int | float):
            words = number_text(value, old, dotted=style is None)
            if style and not _is_number(old):
                style = None
        elif isinstance(value, str):
            return _quoted(value, style, flow=flow)
        else:
            raise ConfigError(f"{value!r} is more than a word, a number or a list; make the change by hand")
        if style and (_is_number(old) or old.lower() in ("true", "false")):
            return style + words + style
        return words

    def _switch(self, value: bool, old: str) -> str:
        lower = old.lower()
        for true, false in _TRUE_FALSE.items():
            if lower in (true, false):
                words = true if value else false
                return words.upper() if old.isupper() else words.capitalize() if old[:1].isupper() else words
        titled = len(re.findall(r":\s+(?:True|False)\b", self.text)) > len(
            re.findall(r":\s+(?:true|false)\b", self.text)
        )
        return str(value) if titled else str(value).lower()

    def _flow_list(self, value: list[Any] | tuple[Any, ...], like: yaml.SequenceNode | None) -> str:
        first = (
            like.value[0] if like is not None and like.value and isinstance(like.value[0], yaml.ScalarNode) else None
        )
        return "[" + ", ".join(self._scalar(item, first, flow=True) for item in value) + "]"

    def _outline(self) -> Outline:
        found: Outline = []
        seen: dict[int, int] = {}

        def note(node: yaml.Node, path: tuple[str | int, ...]) -> None:
            if id(node) in seen:
                found.append((path, _Seen(seen[id(node)])))
                return
            seen[id(node)] = len(seen)
            if isinstance(node, yaml.ScalarNode):
                found.append((path, (node.tag, node.value)))
                return
            found.append((path, (type(node).__name__, node.tag)))
            if isinstance(node, yaml.SequenceNode):
                for index, item in enumerate(node.value):
                    note(item, (*path, index))
            elif isinstance(node, yaml.MappingNode):
                for key, item in node.value:
                    if isinstance(key, yaml.ScalarNode):
                        note(item, (*path, key.value))
                    else:
                        note(key, (*path, "?"))
                        note(item, (*path, ":"))

        note(self._root, ())
        shared = {value.number for _, value in found if isinstance(value, _Seen)}
        # A list that becomes a word moves the numbers of what comes after it, but not their order.
        order = {number: rank for rank, number in enumerate(sorted(shared))}
        return [(path, ("shared", order[value.number]) if isinstance(value, _Seen) else value) for path, value in found]


_GROUP = "is a group of settings"


def _told(error: yaml.MarkedYAMLError) -> str:
    mark = error.problem_mark or error.context_mark
    line = f"line {mark.line + 1}: " if mark is not None else ""
    problem = error.problem or error.context or "not valid YAML"
    if "but found another document" in problem:
        return f"{line}holds several documents; give a file with one"
    hint = "; YAML indents with spaces" if "\\t" in problem else ""
    return f"{line}not valid YAML: {problem}{hint}"


def _brackets(text: str) -> int:
    """How many brackets are open at once, at most; those in words count too, and come in pairs."""
    depth = most = 0
    for bracket in re.findall(r"[\[\]{}]", text):
        depth = max(depth + (1 if bracket in "[{" else -1), 0)
        most = max(most, depth)
    return most


def _taken_over(events: Iterable[yaml.Event]) -> set[int]:
    """Where the nodes begin whose anchor another place takes over."""
    places: dict[str, list[int]] = {}
    taken: set[str] = set()
    for event in events:
        if isinstance(event, yaml.AliasEvent) and event.anchor:
            taken.add(event.anchor)
        elif isinstance(event, yaml.NodeEvent) and event.anchor and event.start_mark:
            places.setdefault(event.anchor, []).append(event.start_mark.index)
    return {place for anchor in taken for place in places.get(anchor, ())}


def _is_alias(key: yaml.Node, node: yaml.Node) -> bool:
    return bool(node.start_mark.index < key.end_mark.index)


def _content_end(node: yaml.Node, text: str) -> int:
    """Where a node's text ends: PyYAML's mark of a block collection stands where the next token begins."""
    if isinstance(node, yaml.CollectionNode) and not node.flow_style and node.value:
        last = node.value[-1]
        parts = last if isinstance(last, tuple) else (last,)
        return max(_content_end(part, text) for part in parts)
    return int(node.end_mark.index)


def _plain(node: yaml.Node) -> Any:
    """The value of a scalar, or of a list of scalars; UNREAD for anything else."""
    if isinstance(node, yaml.MappingNode):
        return UNREAD
    if isinstance(node, yaml.SequenceNode):
        if len(node.value) > 1000 or not all(isinstance(item, yaml.ScalarNode) for item in node.value):
            return UNREAD
        return [_plain(item) for item in node.value]
    assert isinstance(node, yaml.ScalarNode)  # noqa: S101 - there is no fourth kind
    if node.style is None and _FLOAT.fullmatch(node.value):
        try:
            return float(node.value)  # 1e-4: words to YAML 1.1, a number to who wrote it and to those that read it
        except ValueError:
            return node.value
    try:
        value = yaml.constructor.SafeConstructor().construct_object(node)
    except (yaml.YAMLError, ValueError, OverflowError):
        return UNREAD
    return value if value is None or isinstance(value, bool | int | float | str) else UNREAD


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _quoted(value: str, style: str | None, *, flow: bool) -> str:
    if not value.isprintable():
        raise ConfigError(f"{value!r} holds characters that do not print; make the change by hand")
    if style == '"':
        return json.dumps(value, ensure_ascii=False)
    if style is None and _PLAIN.fullmatch(value) and not _is_number(value):
        tag: str = yaml.resolver.Resolver().resolve(yaml.ScalarNode, value, (True, False))  # type: ignore[no-untyped-call]
        if tag == "tag:yaml.org,2002:str" and not ("," in value and flow):
            return value
    doubled = value.replace("'", "''")
    return f"'{doubled}'"
