"""``lorawatch.toml``, ``LORAWATCH_*`` and flags: what a person may set, and clear words for what they may not.

Later ones win: the file, then the environment, then flags.
"""

from __future__ import annotations

import difflib
import os
import tomllib
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

DEFAULT_LISTEN_ADDRESS = "127.0.0.1:10910"
FILE_NAME = "lorawatch.toml"


class SettingsError(Exception):
    """A setting is wrong: says in one line which, where, and what to write instead."""


@dataclass(frozen=True, slots=True)
class Settings:
    """What a person set.

    Attributes:
        rules: Parameters by rule id: ``{"loss/spike": {"sigmas": 8.0}}``; ``enabled = false`` switches one off.
        select: Rules or families to judge by (``loss/spike``, ``loss``, ``loss/*``); empty means all.
        ignore: Rules or families to leave out.
        rules_paths: Files or folders with further rules.
        fail_on: Severity from which ``check`` exits with 1: info, warning, critical or never.
        listen_address: Where ``tail`` serves ``/metrics``; ``""`` for nowhere.
        machine: Look at GPU, host and the time of the steps too; False for the logged metrics alone.
        model: Let the callback look at the model itself too: its modules, the labels of its first rows and its adapter;
            False for none of it.
        adapter_steps: Steps between two looks at the adapter's weights, fewer in a run of less than 20 times as many; 0
            for none.
        sample_steps: Steps between two looks at what the model says, at least; 0 for none.
        sample_share: Share of the run's wall time that these looks may take together; 1 for whatever they take.
        probes: File with prompts to ask (.jsonl, .csv or .txt); ``""`` for the first prompts of the run's own data.
    """

    rules: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    select: tuple[str, ...] = ()
    ignore: tuple[str, ...] = ()
    rules_paths: tuple[str, ...] = ()
    fail_on: str = "warning"
    listen_address: str = DEFAULT_LISTEN_ADDRESS
    machine: bool = True
    model: bool = True
    adapter_steps: int = 100
    sample_steps: int = 100
    sample_share: float = 0.02
    probes: str = ""


_LISTS = {"select", "ignore", "rules_paths"}
_TEXTS = {"fail_on", "listen_address", "probes"}
_SWITCHES = {"machine", "model"}
_COUNTS = {"adapter_steps", "sample_steps"}
_SHARES = {"sample_share"}
_WORDS = {"true": True, "1": True, "yes": True, "on": True, "false": False, "0": False, "no": False, "off": False}
_FAIL_ON = ("info", "warning", "critical", "never")
_ENVIRONMENT = {f"LORAWATCH_{name.upper()}": name for name in sorted(_LISTS | _TEXTS | _SWITCHES | _COUNTS | _SHARES)}


def nearest(name: str, known: Iterable[str]) -> str:
    """Words that name the known name nearest to a misspelt one: ``; did you mean 'sigmas'?`` or nothing."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.5)
    return f"; did you mean {close[0]!r}?" if close else ""


def load_settings(file: Path | None = None, environment: Mapping[str, str] | None = None) -> Settings:
    """Settings from ``file`` (or ``lorawatch.toml`` in the working directory, if there is one) and the environment.

    Raises:
        SettingsError: The file cannot be read, or holds something that is not a setting.
    """
    if file is None:
        default = Path(FILE_NAME)
        settings = _read(default) if default.is_file() else Settings()
    else:
        settings = _read(file)
    variables = os.environ if environment is None else environment
    for variable, name in _ENVIRONMENT.items():
        text = variables.get(variable)
        if text is None:
            continue
        value: Any = text
        if name in _LISTS:
            value = tuple(part.strip() for part in text.split(",") if part.strip())
        elif name in _SWITCHES:
            value = _WORDS.get(text.strip().lower(), text)
        elif name in _COUNTS:
            value = int(text) if text.strip().isdecimal() else text
        elif name in _SHARES:
            with suppress(ValueError):
                value = float(text)
        settings = _checked(replace(settings, **{name: value}), variable)
    return settings


def _read(file: Path) -> Settings:
    try:
        document = tomllib.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingsError(f"{file}: cannot be read: {error.strerror or error}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise SettingsError(f"{file}: is not valid TOML: {error}") from None
    known = {"rules", *_LISTS, *_TEXTS, *_SWITCHES, *_COUNTS, *_SHARES}
    given: dict[str, Any] = {}
    for name, value in document.items():
        if name not in known:
            raise SettingsError(f"{file}: unknown setting {name!r}{nearest(name, known)}")
        if name == "rules":
            given[name] = _tables(value, file)
        elif name in _LISTS:
            if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
                raise SettingsError(f"{file}: {name} must be a list of strings, is {value!r}")
            given[name] = tuple(value)
        elif name in _SWITCHES or name in _COUNTS or name in _SHARES:
            given[name] = value
        else:
            if not isinstance(value, str):
                raise SettingsError(f"{file}: {name} must be a string, is {value!r}")
            given[name] = value
    return _checked(Settings(**given), str(file))


def _tables(value: Any, file: Path) -> dict[str, dict[str, Any]]:
    if not isinstance(value, dict) or not all(isinstance(table, dict) for table in value.values()):
        raise SettingsError(f'{file}: write a rule\'s parameters under [rules."family/name"]')
    return value


def _checked(settings: Settings, where: str) -> Settings:
    if settings.fail_on not in _FAIL_ON:
        raise SettingsError(f"{where}: fail_on must be one of {', '.join(_FAIL_ON)}, is {settings.fail_on!r}")
    for name in sorted(_SWITCHES):
        value = getattr(settings, name)
        if not isinstance(value, bool):
            raise SettingsError(f"{where}: {name} must be true or false, is {value!r}")
    for name in sorted(_COUNTS):
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 0:
            raise SettingsError(f"{where}: {name} must be a whole number of steps, 0 or more, is {value!r}")
    for name in sorted(_SHARES):
        value = getattr(settings, name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise SettingsError(f"{where}: {name} must be a share above 0 and up to 1, is {value!r}")
    return settings
