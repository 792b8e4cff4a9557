"""Python: the literals of keyword arguments, dicts and assignments. The file is parsed, and never run."""

from __future__ import annotations

import ast
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

from lorawatch.config_files.document import UNREAD, ConfigError, Document, Entry, Outline, Section
from lorawatch.config_files.scalars import number_text

_SETTINGS = re.compile(r"(?:Arguments|Args|Config)\Z|\A(?:get_peft_model|from_pretrained|dict)\Z")
"""Last names of what is called with settings as keywords: ``SFTConfig``, ``FastLanguageModel.get_peft_model``."""
_LINE_END = re.compile(r"\r\n|\n|\r")
_REST = re.compile(r"[ \t]*(?P<comma>,)?[ \t]*(?:#[^\r\n]*)?(?=\r|\n|\Z)")
_SHOWN = 40


@dataclass(frozen=True, slots=True)
class _Place:
    """Where a setting stands in the tree.

    Attributes:
        whole: The node of the setting with its name: a keyword, an assignment, a dict's key.
        value: The node of the value that is changed.
        holder: The node, or the list, that holds ``value``.
        slot: Its attribute's name, or its index.
    """

    whole: ast.AST
    value: ast.expr
    holder: Any
    slot: str | int


class PythonDocument(Document):
    """A script. Its sections are the calls that take settings, dict literals with names, and assignments.

    A keyword that takes a constant's name is changed where the constant is set, if that is one literal in one place.
    """

    format: ClassVar[str] = "Python"

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._places: dict[Entry, _Place] = {}
        self._nodes: dict[int, ast.AST] = {}
        self._starts = [0, *(found.end() for found in _LINE_END.finditer(text))]
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # what the script's author escaped is not ours to judge
                self._tree = ast.parse(text)
            self._constants = _constants(self._tree)
            self._scan()
        except SyntaxError as error:
            raise ConfigError(f"line {error.lineno}: not valid Python: {error.msg}") from None
        except (RecursionError, MemoryError):
            raise ConfigError("nested too deeply to be read") from None
        except ValueError as error:
            raise ConfigError(f"not valid Python: {error}") from None

    def _scan(self) -> None:
        queue: list[ast.AST] = [self._tree]
        for node in queue:
            queue += ast.iter_child_nodes(node)
            if isinstance(node, ast.Call):
                self._scan_call(node)
            elif isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Dict):
                self._scan_dict(node, node.value)
            elif isinstance(node, ast.Module | ast.ClassDef):
                self._scan_assignments(node)

        self._scan_later()

    def _scan_later(self) -> None:
        """What is set on an object after it was made: ``args.learning_rate = 1e-5``, ``config["r"] = 8``."""
        section = self._section(("set later",), "are assignments: one more would reach nothing", self._tree)
        for node in ast.walk(self._tree):
            if not isinstance(node, ast.Assign | ast.AnnAssign | ast.AugAssign) or node.value is None:
                continue
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            name = _member(targets[0])
            if name and isinstance(node, ast.AugAssign):
                start, end = self._span(node.value)
                problem = f"is computed ({ast.unparse(node)[:_SHOWN]}); make the change by hand"
                section.entries.append(Entry(name, UNREAD, section.index, node.lineno, start, end, problem))
            elif name and not isinstance(node, ast.AugAssign):
                self._add(section, name, _Place(node, node.value, node, "value"))

    def _scan_call(self, call: ast.Call) -> None:
        name = _last_name(call.func)
        if not _SETTINGS.search(name) or not call.keywords:
            return
        hidden = any(keyword.arg is None for keyword in call.keywords)
        section = self._section(
            (name,), "takes settings from a ** as well: it may be set there" if hidden else "", call
        )
        for keyword in call.keywords:
            if keyword.arg is not None:
                self._add(section, keyword.arg, _Place(keyword, keyword.value, keyword, "value"))

    def _scan_dict(self, statement: ast.Assign | ast.AnnAssign, value: ast.Dict) -> None:
        names = statement.targets if isinstance(statement, ast.Assign) else [statement.target]
        hidden = any(key is None for key in value.keys)
        problem = "takes settings from a ** as well: it may be set there" if hidden else ""
        section = self._section((ast.unparse(names[0])[:_SHOWN],), problem, value)
        for index, key in enumerate(value.keys):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                self._add(section, key.value, _Place(key, value.values[index], value.values, index))

    def _scan_assignments(self, node: ast.Module | ast.ClassDef) -> None:
        path = (f"class {node.name}",) if isinstance(node, ast.ClassDef) else ("assignments",)
        section = self._section(path, "are assignments: one more would reach nothing", node)
        for statement in node.body:
            target = _target(statement)
            if target is not None and isinstance(statement, ast.Assign | ast.AnnAssign) and statement.value is not None:
                self._add(section, target, _Place(statement, statement.value, statement, "value"))

    def _section(self, path: tuple[str, ...], problem: str, node: ast.AST) -> Section:
        section = Section(len(self.sections), path, problem=problem)
        self.sections.append(section)
        self._nodes[section.index] = node
        return section

    def _add(self, section: Section, name: str, place: _Place) -> None:
        value, problem = _literal(place.value), ""
        if value is UNREAD and isinstance(place.value, ast.Name):
            place, problem = self._followed(name, place)
            value = _literal(place.value)
        if value is UNREAD and not problem:
            shown = ast.unparse(place.value).splitlines()[0][:_SHOWN]
            problem = f"is computed ({shown}); make the change by hand"
        start, end = self._span(place.value)
        entry = Entry(name, value, section.index, place.value.lineno, start, end, problem)
        section.entries.append(entry)
        self._places[entry] = place

    def _followed(self, name: str, place: _Place) -> tuple[_Place, str]:
        """The place of the constant that a setting takes, and why it cannot be changed there."""
        assert isinstance(place.value, ast.Name)  # noqa: S101 - _add() asked
        constant = place.value.id
        statement = self._constants.literals.get(constant)
        if statement is None or statement.value is None:
            return place, f"takes {constant}, which is not set by one literal in one place; make the change by hand"
        others = self._constants.used_by.get(constant, set()) - {name}
        if others:
            return place, f"takes {constant}, as {', '.join(sorted(others))} does; make the change by hand"
        return _Place(place.whole, statement.value, statement, "value"), ""

    def _with_value(self, entry: Entry, value: Any) -> str:
        node = self._places[entry].value
        old = self.text[entry.start : entry.end]
        if isinstance(node, ast.List | ast.Tuple) and isinstance(value, list | tuple) and len(value) == len(node.elts):
            text = self.text
            for item, wanted in reversed(list(zip(node.elts, value, strict=True))):
                if _literal(item) != wanted:
                    start, end = self._span(item)
                    text = text[:start] + self._written(wanted, text[start:end]) + text[end:]
            return text
        if "#" in old and "\n" in old:
            raise ConfigError(f"line {entry.line}: a comment may stand within {entry.name}; make the change by hand")
        return self._spliced(entry.start, entry.end, self._written(value, old))

    def _with_entry(self, after: Entry, name: str, value: Any, comment: str) -> str:
        text, whole = self.text, self._places[after].whole
        in_dict = isinstance(self._nodes[after.section], ast.Dict)
        start, end = self._span(whole)
        if in_dict:  # a key: its value ends the setting
            dictionary = self._nodes[after.section]
            assert isinstance(dictionary, ast.Dict)  # noqa: S101
            end = self._span(dictionary.values[dictionary.keys.index(whole)])[1]  # type: ignore[arg-type]
        words = f"{self._written(name, text[start:end])}: " if in_dict else f"{name}{self._equals(start, end)}"
        words += self._written(value, "")
        indent = text[self._starts[whole.lineno - 1] : start]  # type: ignore[attr-defined]
        rest = _REST.match(text, end)
        if indent.strip() or rest is None:
            return self._spliced(end, end, f", {words}")
        note = f"  # {comment}" if comment else ""
        comma = "" if rest["comma"] else ","
        stop = _LINE_END.search(text, rest.end())
        if stop is None:
            return self._spliced(end, end, f", {words}")
        line = f"{indent}{words},{note}{self.newline}"
        return text[:end] + comma + text[end : stop.end()] + line + text[stop.end() :]

    def _equals(self, start: int, end: int) -> str:
        found = re.match(r"\w+(\s*=\s*)", self.text[start:end])
        return found[1] if found and "\n" not in found[1] else "="

    def _written(self, value: Any, old: str) -> str:
        if isinstance(value, bool) or value is None:
            return repr(value)
        if isinstance(value, int | float):
            like = old.strip("'\"")
            words = number_text(value, like)
            return f"{old[0]}{words}{old[0]}" if old[:1] in ("'", '"') and like.replace(".", "", 1).isdigit() else words
        if isinstance(value, str):
            words = repr(value)
            counts = Counter(re.findall(r"[\"']", old if re.search(r"[\"']", old) else self.text))
            if counts['"'] >= counts["'"] and '"' not in value and words[0] == "'" and "\\" not in words:
                return f'"{words[1:-1]}"'
            return words
        if isinstance(value, list | tuple):
            return "[" + ", ".join(self._written(item, old if '"' in old or "'" in old else "") for item in value) + "]"
        raise ConfigError(f"{value!r} is more than a word, a number or a list; make the change by hand")

    def _span(self, node: Any) -> tuple[int, int]:
        """Where a node's text begins and ends; Python counts columns in bytes of UTF-8."""
        return self._index(node.lineno, node.col_offset), self._index(node.end_lineno, node.end_col_offset)

    def _index(self, line: int, column: int) -> int:
        start = self._starts[line - 1]
        words = self.text[start : start + column]  # a character has a byte at least
        return start + (column if words.isascii() else len(words.encode()[:column].decode()))

    def _only_differs_in(self, found: Document, entry: Entry | None, now: Entry) -> bool:
        """Whether the two trees are equal when the value is left out of both, or the new setting out of the new one."""
        assert isinstance(found, PythonDocument)  # noqa: S101 - an edit of this document
        if entry is not None:
            return self._without_value(entry) == found._without_value(now)
        return ast.dump(self._tree) == found._without_setting(now)

    def _without_value(self, entry: Entry) -> str:
        place = self._places[entry]
        _put(place, ast.Constant(0))
        try:
            return ast.dump(self._tree)
        finally:
            _put(place, place.value)

    def _without_setting(self, entry: Entry) -> str:
        node, place = self._nodes[entry.section], self._places[entry]
        if isinstance(node, ast.Call) and isinstance(place.whole, ast.keyword):
            index = node.keywords.index(place.whole)
            node.keywords.remove(place.whole)
            try:
                return ast.dump(self._tree)
            finally:
                node.keywords.insert(index, place.whole)
        assert isinstance(node, ast.Dict)  # noqa: S101 - nothing is added to assignments
        index = next(number for number, key in enumerate(node.keys) if key is place.whole)
        key, value = node.keys.pop(index), node.values.pop(index)
        try:
            return ast.dump(self._tree)
        finally:
            node.keys.insert(index, key)
            node.values.insert(index, value)

    def _outline(self) -> Outline:
        return [((*self.sections[entry.section].path, entry.name), entry.value) for entry in self.entries]


def _put(place: _Place, value: ast.expr) -> None:
    if isinstance(place.slot, int):
        place.holder[place.slot] = value
    else:
        setattr(place.holder, place.slot, value)


def _last_name(node: ast.expr) -> str:
    return node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""


def _member(target: ast.expr) -> str:
    """The name of an attribute or item that is assigned; "" for anything else, and for an object's own ``self.x``."""
    if isinstance(target, ast.Attribute):
        return "" if isinstance(target.value, ast.Name) and target.value.id == "self" else target.attr
    if isinstance(target, ast.Subscript) and isinstance(target.slice, ast.Constant):
        return target.slice.value if isinstance(target.slice.value, str) else ""
    return ""


def _target(statement: ast.stmt) -> str | None:
    if isinstance(statement, ast.Assign) and len(statement.targets) == 1 and isinstance(statement.targets[0], ast.Name):
        return statement.targets[0].id
    if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name):
        return statement.target.id
    return None


def _literal(node: ast.expr) -> Any:
    """The value of a scalar literal, or of a list or tuple of them; UNREAD for anything else."""
    if not isinstance(node, ast.Constant | ast.UnaryOp | ast.List | ast.Tuple):
        return UNREAD
    try:
        value = ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        return UNREAD
    items = value if isinstance(value, list | tuple) else [value]
    if not all(item is None or isinstance(item, bool | int | float | str) for item in items):
        return UNREAD
    return list(value) if isinstance(value, tuple) else value


@dataclass(frozen=True, slots=True)
class _Constants:
    """What names stand for.

    Attributes:
        literals: The assignment of each name that is bound once, and to a literal.
        used_by: Keywords and dict keys whose value takes a name, by that name.
    """

    literals: dict[str, ast.Assign | ast.AnnAssign]
    used_by: dict[str, set[str]]


def _constants(tree: ast.Module) -> _Constants:
    bound: Counter[str] = Counter()
    literals: dict[str, ast.Assign | ast.AnnAssign] = {}
    used_by: dict[str, set[str]] = {}
    for node in ast.walk(tree):
        bound.update(_bound(node))
        if isinstance(node, ast.Assign | ast.AnnAssign) and node.value is not None:
            target = _target(node)
            if target is not None and _literal(node.value) is not UNREAD:
                literals[target] = node
        for name, value in _named(node):
            for inner in ast.walk(value):
                if isinstance(inner, ast.Name):
                    used_by.setdefault(inner.id, set()).add(name)
    return _Constants({name: node for name, node in literals.items() if bound[name] == 1}, used_by)


def _named(node: ast.AST) -> Iterator[tuple[str, ast.expr]]:
    if isinstance(node, ast.keyword) and node.arg is not None:
        yield node.arg, node.value
    elif isinstance(node, ast.Dict):
        for key, value in zip(node.keys, node.values, strict=True):
            if isinstance(key, ast.Constant) and isinstance(key.value, str):
                yield key.value, value


def _bound(node: ast.AST) -> Iterator[str]:
    """Names that a node binds."""
    if isinstance(node, ast.Name) and not isinstance(node.ctx, ast.Load):
        yield node.id
    elif isinstance(node, ast.arg):
        yield node.arg
    elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.alias):
        yield (node.asname or node.name).partition(".")[0]
    elif isinstance(node, ast.Global | ast.Nonlocal):
        yield from node.names
