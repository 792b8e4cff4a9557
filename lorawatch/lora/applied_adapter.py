"""An adapter's configuration put on a base model: which modules each of its entries takes, and what is trained.

Nothing is built. PEFT's own function matches names where PEFT is installed; the count of parameters follows its
layers (``peft/tuners/lora/layer.py``, 0.21), and a test compares it with models that PEFT has wrapped.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from lorawatch.lora.base_modules import BaseModel, Module
from lorawatch.lora.targets import AdapterConfig, excludes, matching_entries, takes, takes_parameter

MAX_COMPARISONS = 5_000_000
"""Names times entries up to which PEFT's function is asked; it compares each with each."""


@dataclass(slots=True)
class Applied:
    """What a configuration makes of a base.

    Attributes:
        targets: Entries of ``target_modules`` and ``target_parameters`` to the number of modules that each matches.
        saved: Entries of ``modules_to_save`` to the same; those that PEFT adds for the task only where they match.
        trainable: Parameters that are trained; None where that cannot be told.
    """

    targets: dict[str, int] = field(default_factory=dict)
    saved: dict[str, int] = field(default_factory=dict)
    trainable: int | None = None


def apply(base: BaseModel, config: AdapterConfig) -> Applied:
    """Put ``config`` on ``base``, whose modules learn whether they are adapted."""
    countable = not config.uncounted and config.peft_type == "LORA"
    if config.target_modules is None:
        config = dataclasses.replace(config, target_modules=_default_targets(base.model_type))
    converted = _converted(base, config)
    used = config if converted is None or converted is _REFUSED else converted
    known = _adapt(base, used)
    found = _matches(base, config)
    if converted is not None:
        _add_fused(found.targets, base, config)
    if converted is _REFUSED:
        known = False
    if countable and known:
        found.trainable = _count(base, used)
    return found


def matches(base: BaseModel, config: AdapterConfig) -> Applied:
    """How many modules each entry matches, of a base whose adapter is on it already; nothing is counted."""
    return _matches(base, config)


_REFUSED = AdapterConfig()
"""Stands for a configuration that PEFT does not take."""


def _default_targets(model_type: str) -> tuple[str, ...] | str | None:
    """The modules that PEFT takes by itself for a model of that type; None where it has none, and refuses."""
    try:
        from peft.utils.constants import TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING as DEFAULTS  # noqa: PLC0415
    except ImportError:
        return None
    names = DEFAULTS.get(model_type)
    return names if names is None or isinstance(names, str) else tuple(names)


def _matcher(base: BaseModel, config: AdapterConfig) -> Callable[[str], bool]:
    """Whether the module of a name gets an adapter: by PEFT's own function, or by the restatement of it."""
    if config.all_linear:
        linear = {module.name for module in base.modules if module.kind == "linear"} - {base.head}
        return lambda name: name in linear and not excludes(config, name)
    if config.target_modules is None or len(config.entries) * len(base.names) > MAX_COMPARISONS:
        return lambda name: takes(config, name)
    try:
        from peft.tuners.tuners_utils import check_target_module_exists as check  # noqa: PLC0415
    except ImportError:
        return lambda name: takes(config, name)
    theirs: Any = config
    return lambda name: bool(check(theirs, name))


def _adapt(base: BaseModel, config: AdapterConfig) -> bool:
    """Mark the modules that get an adapter. False where PEFT would refuse, or its parameters cannot be counted."""
    match = _matcher(base, config)
    adaptable = {module.name: module for module in base.modules if module.adaptable}
    known = True
    for name in base.names:
        if not name or not match(name):
            continue
        module = adaptable.get(name)
        if module is None:  # a block, or a layer of a form that LoRA does not know: PEFT raises
            known = False
            continue
        module.adapted = True
        known = known and module.known
    for module in base.modules:
        if any(takes_parameter(config.target_parameters or (), f"{module.name}.{key}") for key in module.shapes):
            known = known and not module.adapted  # PEFT refuses both at once
            module.adapted = True
    return known


def _matches(base: BaseModel, config: AdapterConfig) -> Applied:
    found = Applied(dict.fromkeys(config.entries, 0))
    names = [module.name for module in base.modules if module.adaptable]
    if config.all_linear:
        match = _matcher(base, config)
        found.targets[config.entries[0]] = sum(match(name) for name in names)
    else:
        counts = Counter(entry for name in names for entry in matching_entries(config, name))
        found.targets.update(counts)
    for entry in config.target_parameters or ():
        found.targets[entry] = sum(
            bool(takes_parameter((entry,), f"{module.name}.{key}")) for module in base.modules for key in module.shapes
        )
    counts = Counter(entry for name in base.names if name for entry in saving_entries(config, name))
    found.saved = {
        entry: counts[entry] for entry in config.modules_to_save if counts[entry] or entry not in config.automatic
    }
    return found


def saving_entries(config: AdapterConfig, name: str) -> list[str]:
    """The entries of ``modules_to_save`` by which a module is trained whole (PEFT's ``_set_trainable``)."""
    return [entry for entry in config.modules_to_save if name.endswith(entry)]


# ---- mixtures of experts whose experts were separate layers before transformers 5


def _fused_names(model_type: str) -> dict[str, str]:
    """Old names of experts' layers to the fused parameters that took their place, where PEFT translates them."""
    try:
        conversion: Any = importlib.import_module("peft.utils.transformers_weight_conversion")
        family = conversion._MODEL_TO_CONVERSION_PATTERN.get(model_type)
        return dict(conversion._MOE_TARGET_MODULE_MAPPING.get(family, {}))
    except (ImportError, AttributeError):  # an older PEFT, or one that keeps it elsewhere
        return {}


def _converted(base: BaseModel, config: AdapterConfig) -> AdapterConfig | None:
    """``config`` as PEFT translates it for this model; None where it does not, and ``_REFUSED`` where it raises."""
    if base.live is None or not _fused_names(base.model_type):
        return None
    from peft import LoraConfig  # noqa: PLC0415
    from peft.utils.transformers_weight_conversion import convert_peft_config_for_transformers  # noqa: PLC0415

    wanted, excluded = config.target_modules, config.exclude_modules
    theirs: Any = LoraConfig(
        r=config.r, lora_alpha=int(config.lora_alpha), rank_pattern=dict(config.rank_pattern),
        target_modules=list(wanted) if isinstance(wanted, tuple) else wanted,
        exclude_modules=list(excluded) if isinstance(excluded, tuple) else excluded,
        modules_to_save=list(config.modules_to_save) or None,
        target_parameters=None if config.target_parameters is None else list(config.target_parameters),
    )  # fmt: skip
    try:
        convert_peft_config_for_transformers(theirs, model=base.live, conversions=None)
    except ValueError:  # some of the layers that were fused into one parameter, not all
        return _REFUSED
    names = theirs.target_modules
    return dataclasses.replace(
        config,
        target_modules=names if isinstance(names, str) else tuple(sorted(names or ())),
        target_parameters=tuple(sorted(theirs.target_parameters or ())) or None,
        rank_pattern=dict(theirs.rank_pattern or {}),
    )


def _add_fused(targets: dict[str, int], base: BaseModel, config: AdapterConfig) -> None:
    """Count the fused parameters for the entries that name layers of before the fusion."""
    if isinstance(config.target_modules, str):
        targets[config.target_modules] = sum(module.adapted for module in base.modules)
        return
    for old, new in _fused_names(base.model_type).items():
        for entry in config.entries:
            if entry == old or entry.endswith(f".{old}"):
                targets[entry] += sum(
                    bool(takes_parameter((new,), f"{module.name}.{key}")) for module in base.modules
                    for key in module.shapes if not module.adaptable
                )  # fmt: skip


# ---- parameters


def _count(base: BaseModel, config: AdapterConfig) -> int | None:
    """Parameters that are trained; None where an option makes that more than arithmetic on widths."""
    total = 0
    whole = [name for name in base.names if name and saving_entries(config, name)]
    if any(inner.startswith(f"{outer}.") for outer in whole for inner in whole):
        return None
    for module in base.modules:
        saved = any(module.name == name or module.name.startswith(f"{name}.") for name in whole)
        if saved:
            total += module.parameters
            continue
        if module.adapted:
            added = _added(module, config)
            if added is None:
                return None
            total += added
        if config.bias == "all" or (config.bias == "lora_only" and module.adapted):
            total += module.biases
    tokens = _token_parameters(base, config)
    return None if tokens is None else total + tokens


def _added(module: Module, config: AdapterConfig) -> int | None:
    """Parameters that the adapter adds to one module."""
    if module.adaptable:
        added = config.rank(module.name) * (module.inputs + module.outputs)
        if config.lora_bias:
            if module.kind == "embedding":
                return None  # PEFT refuses it
            added += module.outputs
        return added + (module.outputs if config.use_dora else 0)
    if config.use_dora or config.lora_bias or config.lora_dropout:
        return None  # PEFT refuses these with target_parameters
    added = 0
    for key, shape in module.shapes.items():
        if takes_parameter(config.target_parameters or (), f"{module.name}.{key}"):
            if len(shape) not in (2, 3):
                return None
            experts = shape[0] if len(shape) == 3 else 1
            added += config.rank(f"{module.name}.{key}") * experts * (shape[-1] + shape[-2])
    return added


def _token_parameters(base: BaseModel, config: AdapterConfig) -> int | None:
    """Parameters of ``trainable_token_indices``: rows of the embedding; None where several layers share them."""
    tokens = config.trainable_token_indices
    if not tokens:
        return 0
    if isinstance(tokens, dict):
        if len(tokens) > 1:
            return None
        ((name, rows),) = tokens.items()
    else:
        name, rows = base.embedding, tokens
    chosen = [module for module in base.modules if name and module.name.endswith(name)]
    return len(rows) * chosen[0].outputs if len(chosen) == 1 and chosen[0].kind == "embedding" else None
