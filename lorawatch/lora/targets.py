"""Which modules an adapter's configuration names, and how many parameters that makes: plain arithmetic on names.

PEFT matches names of modules with the entries of ``target_modules`` (``peft.tuners.tuners_utils``,
``check_target_module_exists``, 0.21). :func:`takes` restates that function for places where PEFT is not to be loaded;
a test holds the two together.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from lorawatch.records import ModelTree, ModuleGroup

ALL_LINEAR = "all-linear"
"""The entry of ``target_modules`` that stands for every linear layer but the output head."""
MAX_ENTRIES = 8192
"""Entries that a list of names may have: more than the modules of any model that is adapted by name."""
MAX_PATTERN = 20_000
"""Characters that a regular expression may have."""

ATTENTION = frozenset({
    "q_proj", "k_proj", "v_proj", "o_proj", "qkv_proj", "out_proj", "query", "key", "value", "query_key_value",
    "q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "kv_b_proj", "c_attn", "qkv", "Wqkv", "W_pack", "q", "k", "v", "o",
    "to_q", "to_k", "to_v", "q_lin", "k_lin", "v_lin", "out_lin", "self_attn", "attn", "attention",
})  # fmt: skip
"""Last parts of names that belong to attention, in the models of transformers 5."""
_ATTENTION_PART = re.compile(r"(?:^|_)(?:attn|attention|selfattention|mha)(?:$|_)", re.IGNORECASE)
HEADS = frozenset({"lm_head", "score", "classifier", "qa_outputs", "embed_out", "output_projection", "v_head"})
"""Last parts of names of output heads."""

CLASSIFIERS = ("classifier", "score")
"""Modules that PEFT trains whole by itself for SEQ_CLS and TOKEN_CLS (``peft_model.py``)."""
_SAVED_BY_TASK = {"SEQ_CLS": CLASSIFIERS, "TOKEN_CLS": CLASSIFIERS, "QUESTION_ANS": ("qa_outputs",)}
_UNCOUNTED = (
    "layer_replication", "use_bdlora", "arrow_config", "kasa_config", "monteclora_config", "velora_config",
    "use_qalora", "eva_config", "megatron_config", "ensure_weight_tying",
)  # fmt: skip
"""Options of ``LoraConfig`` that change the number of parameters in ways that are not restated here."""


class AdapterError(ValueError):
    """An adapter's configuration that cannot be read: one line says what is wrong in it."""


@dataclass(frozen=True, slots=True)
class AdapterConfig:
    """What of a ``LoraConfig`` says which modules it takes and how many parameters that makes; names are its own.

    Attributes:
        uncounted: An option that changes the number of parameters in a way that is not restated here; else empty.
        automatic: Entries of ``modules_to_save`` that PEFT adds by itself for the task, whether they match or not.
    """

    target_modules: tuple[str, ...] | str | None = None
    exclude_modules: tuple[str, ...] | str | None = None
    layers_to_transform: tuple[int, ...] | None = None
    layers_pattern: tuple[str, ...] = ()
    modules_to_save: tuple[str, ...] = ()
    target_parameters: tuple[str, ...] | None = None
    rank_pattern: dict[str, int] = field(default_factory=dict)
    trainable_token_indices: tuple[int, ...] | dict[str, tuple[int, ...]] | None = None
    r: int = 8
    lora_alpha: float = 8.0
    lora_dropout: float = 0.0
    bias: str = "none"
    use_dora: bool = False
    lora_bias: bool = False
    task_type: str = ""
    peft_type: str = "LORA"
    uncounted: str = ""
    automatic: tuple[str, ...] = ()

    @property
    def entries(self) -> tuple[str, ...]:
        """The entries of ``target_modules``: one for a regular expression or ``all-linear``."""
        if self.target_modules is None:
            return ()
        return (self.target_modules,) if isinstance(self.target_modules, str) else self.target_modules

    @property
    def all_linear(self) -> bool:
        """Whether it names every linear layer."""
        return isinstance(self.target_modules, str) and self.target_modules.lower() == ALL_LINEAR

    def rank(self, name: str) -> int:
        """Rank of the module of that name (``peft.utils.other.get_pattern_key``)."""
        for pattern, rank in self.rank_pattern.items():
            if re.match(rf"(.*\.)?({pattern})$", name):
                return rank
        return self.r


def read_adapter(source: Any) -> AdapterConfig:
    """The parts of a configuration that matter here.

    Args:
        source: A mapping as ``adapter_config.json`` holds it, or a ``LoraConfig``. Unknown keys are left alone.

    Raises:
        AdapterError: A field is not of the sort that PEFT takes, or a pattern is no regular expression.
    """

    def get(name: str, default: Any = None) -> Any:
        value = source.get(name) if isinstance(source, Mapping) else getattr(source, name, None)
        return default if value is None else getattr(value, "value", value)  # an Enum of PEFT's

    kept = get("layers_to_transform")
    task = str(get("task_type", "")).upper()
    automatic = _SAVED_BY_TASK.get(task, ())
    given = _names(get("modules_to_save"), "modules_to_save")
    parameters = get("target_parameters")
    if get("megatron_config") is not None or isinstance(get("eva_config"), Mapping):
        uncounted = "megatron_config or eva_config"
    else:
        uncounted = next((name for name in _UNCOUNTED if get(name)), "")
    config = AdapterConfig(
        target_modules=_names_or_pattern(get("target_modules"), "target_modules"),
        exclude_modules=_names_or_pattern(get("exclude_modules"), "exclude_modules"),
        layers_to_transform=None if kept is None else _numbers(kept, "layers_to_transform") or None,
        layers_pattern=_names(get("layers_pattern"), "layers_pattern"),
        modules_to_save=tuple(dict.fromkeys((*given, *automatic))),
        target_parameters=None if parameters is None else _names(parameters, "target_parameters"),
        rank_pattern=_ranks(get("rank_pattern", {})),
        trainable_token_indices=_tokens(get("trainable_token_indices")),
        r=_whole(get("r", 8), "r"),
        lora_alpha=_number(get("lora_alpha", 8), "lora_alpha"),
        lora_dropout=_number(get("lora_dropout", 0.0), "lora_dropout"),
        bias=str(get("bias", "none")),
        use_dora=get("use_dora", False) is True,
        lora_bias=get("lora_bias", False) is True,
        task_type=task,
        peft_type=str(get("peft_type", "LORA")).upper(),
        uncounted=uncounted,
        automatic=automatic,
    )
    patterns = [*config.modules_to_save, *config.rank_pattern, *config.layers_pattern]
    patterns += [one for one in (config.target_modules, config.exclude_modules) if isinstance(one, str)]
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            if pattern.lower() != ALL_LINEAR:
                raise AdapterError(f"{pattern[:80]!r} is no regular expression: {error}") from None
    return config


def excludes(config: AdapterConfig, name: str) -> bool:
    """Whether a module gets no adapter whatever ``target_modules`` says: it is excluded, or trained whole."""
    excluded = config.exclude_modules
    if isinstance(excluded, str):
        if excluded and re.fullmatch(excluded, name):
            return True
    elif excluded and not set(excluded).isdisjoint(_suffixes(name)):
        return True
    return any(re.match(rf"(^|.*\.){one}($|\..*)", name) for one in config.modules_to_save)


def takes(config: AdapterConfig, name: str) -> bool:
    """Whether PEFT puts an adapter on the module of that name, ``all-linear`` aside."""
    return bool(matching_entries(config, name))


def matching_entries(config: AdapterConfig, name: str) -> list[str]:
    """The entries of ``target_modules`` that take the module of that name; a regular expression is one entry."""
    wanted = config.target_modules
    if not wanted or excludes(config, name):
        return []
    if isinstance(wanted, str):
        return [wanted] if re.fullmatch(wanted, name) else []
    chosen = set(wanted)
    matching = [suffix for suffix in _suffixes(name) if suffix in chosen]
    kept = config.layers_to_transform
    if not matching or kept is None or name in chosen or layer_of(config, name) in kept:
        return matching
    return []


def _suffixes(name: str) -> list[str]:
    """The name, and what is left of it after each of its dots: ``a.b.c``, ``b.c``, ``c``."""
    parts = name.split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def layer_of(config: AdapterConfig, name: str) -> int | None:
    """Number of the layer that a module stands in, as ``layers_to_transform`` counts; None where it is in none."""
    patterns = [rf"(?:^|.*?\.){one}\.(?P<idx>\d+)\." for one in config.layers_pattern]
    for pattern in patterns or [r".*?\.[^.]*\.(?P<idx>\d+)\."]:
        found = re.match(pattern, name)
        if found is not None:
            return int(found["idx"])
    return None


def takes_parameter(entries: Iterable[str], name: str) -> list[str]:
    """The entries of ``target_parameters`` that name the parameter (``BaseTuner._inject_parameters``)."""
    return [one for one in entries if name == one or name.endswith(f".{one}")]


def numberless(name: str) -> str:
    """``name`` with each number between dots made a ``*``."""
    return ".".join("*" if part.isdecimal() else part for part in name.split("."))


def is_attention(name: str) -> bool:
    """Whether a module belongs to attention, by its name."""
    parts = name.split(".")
    return parts[-1] in ATTENTION or any(_ATTENTION_PART.search(part) for part in parts[:-1])


def is_head(name: str) -> bool:
    """Whether a module is an output head, by its name."""
    return name.rsplit(".", 1)[-1] in HEADS


def nearest_modules(entry: str, tree: ModelTree, most: int = 3) -> list[str]:
    """Names of the model's own modules that an entry may have been meant for, likeliest first."""
    depth = entry.count(".") + 1
    names = {
        ".".join(group.name.split(".")[-depth:]): None
        for group in tree.groups
        if group.kind in ("linear", "embedding", "experts")
    }
    return difflib.get_close_matches(entry[:200], [name for name in names if name != entry], n=most, cutoff=0.6)


def lora_parameters(tree: ModelTree, rank: float) -> int | None:
    """Parameters of B and A, at one rank for all modules; None where the tree does not tell which are adapted.

    Fused experts are left out: their number of experts is not in the tree.
    """
    adapted = [group for group in tree.groups if group.adapted]
    if not adapted or any(group.kind in ("experts", "other") or not group.inputs for group in adapted):
        return None
    return int(sum(rank * (group.inputs + group.outputs) * (group.adapted or 0) for group in adapted))


def full_rank(group: ModuleGroup) -> float:
    """Rank at which B and A hold as many numbers as the weight that they adapt."""
    return group.inputs * group.outputs / max(group.inputs + group.outputs, 1)


def _names_or_pattern(value: Any, field_name: str) -> tuple[str, ...] | str | None:
    if isinstance(value, str):
        if len(value) > MAX_PATTERN:
            raise AdapterError(f"{field_name}: a pattern of {len(value)} characters, at most {MAX_PATTERN} are read")
        return value
    return None if value is None else _names(value, field_name)


def _names(value: Any, field_name: str) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str):
        return (value,)
    if not isinstance(value, list | tuple | set | frozenset) or not all(isinstance(one, str) for one in value):
        raise AdapterError(f"{field_name}: names are expected, not {_short(value)}")
    if len(value) > MAX_ENTRIES:
        raise AdapterError(f"{field_name}: {len(value)} entries, at most {MAX_ENTRIES} are read")
    return tuple(sorted(value)) if isinstance(value, set | frozenset) else tuple(dict.fromkeys(value))


def _numbers(value: Any, field_name: str) -> tuple[int, ...]:
    values = value if isinstance(value, list | tuple | set | range) else [value]
    return tuple(_whole(one, field_name, least=0) for one in values)


def _ranks(value: Any) -> dict[str, int]:
    if not isinstance(value, Mapping):
        raise AdapterError(f"rank_pattern: names with ranks are expected, not {_short(value)}")
    return {str(name): _whole(rank, "rank_pattern") for name, rank in value.items()}


def _tokens(value: Any) -> tuple[int, ...] | dict[str, tuple[int, ...]] | None:
    if value is None:
        return None
    if isinstance(value, Mapping):
        return {str(name): _numbers(one, "trainable_token_indices") for name, one in value.items()}
    return _numbers(value, "trainable_token_indices")


def _whole(value: Any, field_name: str, least: int = 1) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise AdapterError(f"{field_name}: a whole number from {least} on is expected, not {_short(value)}")
    return value


def _number(value: Any, field_name: str) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not abs(value) < 1e300:
        raise AdapterError(f"{field_name}: a number is expected, not {_short(value)}")
    return float(value)


def _short(value: Any) -> str:
    return repr(value)[:60]
