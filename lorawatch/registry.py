"""Finds rules: the built-in ones, third parties' through entry points, and those of a file or folder.

A third-party package names its rules in its own ``pyproject.toml``::

    [project.entry-points."lorawatch.rules"]
    my_rules = "my_package.rules"

The entry point is a module, or a :class:`~lorawatch.rule.Rule` subclass.
"""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import sys
from collections.abc import Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from functools import cache
from importlib.metadata import entry_points
from pathlib import Path
from types import ModuleType
from typing import Any

from lorawatch.rule import Rule
from lorawatch.settings import Settings, SettingsError, nearest

ENTRY_POINT_GROUP = "lorawatch.rules"


@cache
def builtin_classes() -> tuple[type[Rule], ...]:
    """The rules that come with lorawatch, sorted by id."""
    found: list[type[Rule]] = []
    package = importlib.import_module("lorawatch.rules")
    for module in pkgutil.iter_modules(package.__path__):
        found.extend(_classes(importlib.import_module(f"{package.__name__}.{module.name}")))
    return tuple(sorted(found, key=lambda rule: rule.id))


def rule_classes(paths: Iterable[str] = ()) -> list[type[Rule]]:
    """Every known rule class, sorted by id: built in, from entry points, and from ``paths``.

    Raises:
        SettingsError: A path cannot be loaded, or two rules have one id.
    """
    known = {rule.id: rule for rule in builtin_classes()}
    for rule in (*_from_entry_points(), *_from_paths(paths)):
        other = known.get(rule.id)
        if other is not None and other is not rule:
            raise SettingsError(f"two rules have the id {rule.id!r}: {other.__module__} and {rule.__module__}")
        known[rule.id] = rule
    return sorted(known.values(), key=lambda rule: rule.id)


class RuleSet:
    """The rules that the settings ask for, with their parameters; makes fresh instances for each run.

    Raises:
        SettingsError: The settings name a rule, family or parameter that does not exist, or a value of a wrong type.
    """

    def __init__(self, settings: Settings) -> None:
        classes = rule_classes(settings.rules_paths)
        ids = [rule.id for rule in classes]
        for pattern in (*settings.select, *settings.ignore):
            if not any(_matches(pattern, rule_id) for rule_id in ids):
                raise SettingsError(f"no rule matches {pattern!r}{nearest(pattern, [*ids, *_families(ids)])}")
        for rule_id in settings.rules:
            if rule_id not in ids:
                raise SettingsError(f'[rules."{rule_id}"]: no such rule{nearest(rule_id, ids)}')
        self._made: list[tuple[type[Rule], dict[str, Any]]] = []
        for rule in classes:
            table = dict(settings.rules.get(rule.id, {}))
            enabled = table.pop("enabled", True)
            if not isinstance(enabled, bool):
                raise SettingsError(f'[rules."{rule.id}"]: enabled must be true or false, is {enabled!r}')
            values = _checked_parameters(rule, table)
            selected = not settings.select or any(_matches(pattern, rule.id) for pattern in settings.select)
            ignored = any(_matches(pattern, rule.id) for pattern in settings.ignore)
            if enabled and selected and not ignored:
                self._made.append((rule, values))

    def make(self) -> list[Rule]:
        """Fresh instances, for one run."""
        return [rule(**values) for rule, values in self._made]

    @property
    def classes(self) -> list[type[Rule]]:
        """The classes that are asked for."""
        return [rule for rule, _ in self._made]


def _matches(pattern: str, rule_id: str) -> bool:
    return rule_id == pattern or rule_id.startswith(f"{pattern}/") or fnmatchcase(rule_id, pattern)


def _families(ids: Iterable[str]) -> set[str]:
    return {rule_id.split("/")[0] for rule_id in ids}


def _checked_parameters(rule: type[Rule], table: Mapping[str, Any]) -> dict[str, Any]:
    declared = {parameter.name: parameter for parameter in rule.parameters()}
    values: dict[str, Any] = {}
    for name, value in table.items():
        where = f'[rules."{rule.id}"]'
        parameter = declared.get(name)
        if parameter is None:
            raise SettingsError(f"{where}: unknown parameter {name!r}{nearest(name, [*declared, 'enabled'])}")
        if isinstance(parameter.default, bool) != isinstance(value, bool) or not isinstance(value, int | float):
            raise SettingsError(f"{where}: {name} must be a {_type_name(parameter.default)}, is {value!r}")
        if isinstance(parameter.default, int) and not isinstance(value, bool | int):
            raise SettingsError(f"{where}: {name} must be a whole number of {parameter.unit}, is {value!r}")
        if not value >= 0:
            raise SettingsError(f"{where}: {name} must not be negative, is {value!r}")
        values[name] = float(value) if isinstance(parameter.default, float) else value
    return values


def _type_name(default: Any) -> str:
    if isinstance(default, bool):
        return "true or false"
    return "whole number" if isinstance(default, int) else "number"


def _classes(module: ModuleType) -> Iterator[type[Rule]]:
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, Rule) and value.__module__ == module.__name__:
            yield value


def _from_entry_points() -> Iterator[type[Rule]]:
    for entry in entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded = entry.load()
        except Exception as error:
            raise SettingsError(f"rules of {entry.name} ({entry.value}) cannot be loaded: {error}") from None
        if isinstance(loaded, ModuleType):
            yield from _classes(loaded)
        elif isinstance(loaded, type) and issubclass(loaded, Rule):
            yield loaded
        else:
            raise SettingsError(f"{entry.value} (entry point {entry.name}) is neither a module nor a rule")


def _from_paths(paths: Iterable[str]) -> Iterator[type[Rule]]:
    for text in paths:
        path = Path(text)
        if not path.exists():
            raise SettingsError(f"--rules {text}: no such file or folder")
        files = sorted(path.glob("*.py")) if path.is_dir() else [path]
        for file in files:
            yield from _classes(_load(file))


def _load(file: Path) -> ModuleType:
    name = f"lorawatch_user_rules_{file.stem}_{abs(hash(str(file.resolve())))}"
    known = sys.modules.get(name)
    if known is not None:
        return known
    spec = importlib.util.spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise SettingsError(f"--rules {file}: is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise SettingsError(f"--rules {file}: cannot be loaded: {type(error).__name__}: {error}") from None
    return module
