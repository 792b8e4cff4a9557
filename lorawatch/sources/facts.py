"""Files that state a run's set-up: adapter_config.json, training arguments in JSON or YAML, a model's config.json."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lorawatch.records import FactUpdate
from lorawatch.source import SourceError
from lorawatch.sources.follow import read_head
from lorawatch.sources.history import read_document
from lorawatch.sources.names import FACT_ALIASES, FACT_NAMES

JSON_LIMIT = 8 << 20
YAML_LIMIT = 256 << 10
"""PyYAML reads about 100 KiB a second; configurations are a few KiB."""
FACT_FILES = (
    "adapter_config.json",
    "training_args.json",
    "config.json",
    "config.yaml",
    "args.json",
    "trainer_config.json",
)
_TEXT = 300
_ITEMS = 200
_NESTED = ("text_config", "llm_config", "peft_config", "lora_config", "training_args", "training_arguments")


def from_mapping(found: dict[Any, Any]) -> dict[str, Any]:
    """Return the facts in a configuration, under the names of TrainingArguments and LoraConfig.

    A name that is spelt as the field itself wins over another tool's spelling of it.
    """
    facts: dict[str, Any] = {}
    aliased: dict[str, Any] = {}
    for name, value in found.items():
        # wandb's config.yaml wraps each value.
        plain = (
            value["value"]
            if isinstance(value, dict) and set(value) <= {"value", "desc"} and "value" in value
            else value
        )
        if not isinstance(name, str) or plain is None:
            continue
        if name in _NESTED and isinstance(plain, dict):
            aliased |= from_mapping(plain)
            continue
        kept = _plain(plain)
        if kept is None:
            continue
        if name in FACT_ALIASES:
            aliased[FACT_ALIASES[name]] = _targets(kept) if FACT_ALIASES[name] == "target_modules" else kept
        elif name in FACT_NAMES:
            facts[name] = kept
    return {**aliased, **facts}


def read_fact_file(path: Path) -> list[FactUpdate]:
    """Return what a file states; nothing when it is missing, no mapping, or states nothing that is known.

    ``training_args.bin`` is a pickle, and never opened.

    Raises:
        SourceError: the file is not readable, or too large.
    """
    document: Any = None
    if path.suffix in {".yaml", ".yml"}:
        document = _read_yaml(path)
    elif path.suffix == ".json":
        document = read_document(path, JSON_LIMIT)
    facts = from_mapping(document) if isinstance(document, dict) else {}
    return [FactUpdate(facts, path.name)] if facts else []


def _read_yaml(path: Path) -> Any:
    try:
        data = read_head(path, YAML_LIMIT + 1)
    except FileNotFoundError:
        return None
    if len(data) > YAML_LIMIT:
        raise SourceError(f"{path}: larger than {YAML_LIMIT >> 10} KiB; no training configuration is")
    import yaml  # noqa: PLC0415 - most runs have none

    try:
        return yaml.load(data.decode("utf-8", "replace"), _loader(yaml))  # noqa: S506 - a SafeLoader, without aliases
    except (yaml.YAMLError, ValueError, RecursionError, OverflowError, TypeError, AttributeError, KeyError):
        return None


def _loader(yaml: Any) -> Any:
    class Loader(yaml.SafeLoader):  # type: ignore[misc]
        """Refuses aliases: ten nested ones make a gigabyte of a hundred bytes."""

        def compose_node(self, parent: Any, index: Any) -> Any:
            if self.check_event(yaml.AliasEvent):
                raise yaml.YAMLError("aliases are not read")
            return super().compose_node(parent, index)

    return Loader


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        return _as_number(value[:_TEXT])
    if isinstance(value, bool | int | float):
        return value
    if isinstance(value, list | tuple | set):
        items = [item for item in list(value)[:_ITEMS] if isinstance(item, str | int | float | bool)]
        return [item[:_TEXT] if isinstance(item, str) else item for item in items]
    if isinstance(value, dict):
        pairs = list(value.items())[:_ITEMS]
        return {str(name)[:_TEXT]: item for name, item in pairs if isinstance(item, str | int | float | bool)}
    return None


def _as_number(text: str) -> Any:
    """YAML reads ``1e-4`` as words; the writers meant a number."""
    try:
        return float(text) if text[:1] in "0123456789.+-" and "e" in text.lower() else text
    except ValueError:
        return text


def _targets(value: Any) -> Any:
    return [part.strip() for part in value.split(",")] if isinstance(value, str) and "," in value else value
