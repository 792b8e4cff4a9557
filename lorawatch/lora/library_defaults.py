"""Fields of the installed libraries' configuration classes, and their defaults, read from source: nothing is imported.

Importing TRL takes many seconds and hundreds of megabytes; its classes of settings are dataclasses whose defaults stand
as literals in small files. Only literals are read. What is not installed, or is written in another way, is not known.
"""

from __future__ import annotations

import ast
import importlib.util
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Final

MAX_BYTES = 1 << 20


class _Unknown:
    """Stands for the default of a field that is no literal."""

    def __repr__(self) -> str:
        return "UNKNOWN"


UNKNOWN: Final = _Unknown()

_PLACES: Mapping[str, tuple[tuple[str, str, str], ...]] = {
    "TrainingArguments": (("transformers", "training_args.py", "TrainingArguments"),),
    "ModelConfig": (("trl", "trainer/model_config.py", "ModelConfig"),),
    "ScriptArguments": (("trl", "scripts/utils.py", "ScriptArguments"),),
    "LoraConfig": (
        ("peft", "config.py", "PeftConfigMixin"),
        ("peft", "config.py", "PeftConfig"),
        ("peft", "tuners/lora/config.py", "LoraConfig"),
    ),
    **{
        name: (
            ("transformers", "training_args.py", "TrainingArguments"),
            ("trl", "trainer/base_config.py", "_BaseConfig"),
            ("trl", f"trainer/{file}_config.py", name),
        )
        for name, file in (
            ("SFTConfig", "sft"), ("DPOConfig", "dpo"), ("GRPOConfig", "grpo"), ("KTOConfig", "kto"),
            ("RLOOConfig", "rloo"), ("RewardConfig", "reward"), ("ORPOConfig", "orpo"), ("CPOConfig", "cpo"),
        )
    },
}  # fmt: skip
"""Class to the places of its fields: package, file in it, class; what comes later takes precedence."""


def fields_of(name: str) -> dict[str, Any]:
    """Fields of one of the configuration classes to their defaults, :data:`UNKNOWN` where that is no literal.

    Args:
        name: ``SFTConfig``, ``TrainingArguments``, ``LoraConfig``, TRL's ``ModelConfig`` …

    Returns:
        Empty where the class itself is not known, or its library is not installed.
    """
    found: dict[str, Any] = {}
    own: dict[str, Any] = {}
    for package, file, cls in _PLACES.get(name, ()):
        own = _classes(package, file).get(cls, {})
        found |= own
    return found if own else {}


@cache
def _classes(package: str, file: str) -> dict[str, dict[str, Any]]:
    path = _folder(package)
    if path is None:
        return {}
    try:
        source = path / file
        if source.stat().st_size > MAX_BYTES:
            return {}
        tree = ast.parse(source.read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError, RecursionError):
        return {}
    return {node.name: _fields(node) for node in tree.body if isinstance(node, ast.ClassDef)}


def _folder(package: str) -> Path | None:
    try:
        spec = importlib.util.find_spec(package)
    except (ImportError, ValueError):
        return None
    places = None if spec is None else spec.submodule_search_locations
    return Path(next(iter(places))) if places else None


def _fields(node: ast.ClassDef) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for statement in node.body:
        if not isinstance(statement, ast.AnnAssign) or not isinstance(statement.target, ast.Name):
            continue
        if "ClassVar" in ast.unparse(statement.annotation):
            continue
        found[statement.target.id] = _default(statement.value)
    return found


def _default(value: ast.expr | None) -> Any:
    if isinstance(value, ast.Call):
        keywords = {keyword.arg: keyword.value for keyword in value.keywords}
        value = keywords.get("default")
    if value is None:
        return UNKNOWN
    try:
        return ast.literal_eval(value)
    except ValueError:
        return UNKNOWN
