"""The modules of a base model, and what an adapter's configuration makes of them, as a ``ModelTree`` record.

From a live model (wrapped by PEFT or not), from a configuration alone (the model is built on the meta device: no
weights, no network, no code from the checkpoint), or from names and shapes in the headers of safetensors files.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import msgspec

from lorawatch.lora.applied_adapter import Applied, apply, matches
from lorawatch.lora.base_modules import BaseModel, Module, modules_of_model, modules_of_tensors
from lorawatch.lora.targets import AdapterError, numberless, read_adapter
from lorawatch.lora.tensor_shapes import BrokenCheckpointError, read_json, read_tensor_shapes
from lorawatch.records import ModelTree, ModuleGroup

MAX_GROUPS = 512
"""Groups that a tree holds; what comes after them counts in its sums only."""
MAX_COUNT = 4096
"""Layers, blocks or experts that a configuration may state: each one is built as modules."""
MAX_MODULES = 500_000
"""Layers times experts that a configuration may state."""

_WRAPPERS = ("module", "_orig_mod", "_fsdp_wrapped_module")
"""Names under which DDP, ``torch.compile`` and FSDP hold the whole model that they wrap."""
_COUNTED = re.compile(r"(layers?|blocks?|experts?|depths?|stages?)$|^n_layer$", re.IGNORECASE)
"""Names of fields of a configuration that count modules."""


class UnknownArchitectureError(ValueError):
    """The installed transformers cannot build the model, or it needs code of its own, which is never run: one line."""


def tree_of_model(model: Any, adapter: Any = None, *, time: float | None = None) -> ModelTree:
    """The tree of a live model.

    Args:
        model: A model of torch's, wrapped by PEFT, DDP, FSDP or ``torch.compile``, or by none of them. Only names and
            shapes are read.
        adapter: A configuration that is to be put on it. Where PEFT has wrapped the model already, its own one stands.
        time: Unix time of the record.

    Raises:
        AdapterError: ``adapter`` cannot be read.
    """
    model = _unwrapped(model)
    config = _live_adapter(model)
    base = modules_of_model(model.get_base_model() if hasattr(model, "get_base_model") else model)
    if config is None:
        return _tree(base, "model", None if adapter is None else apply(base, read_adapter(adapter)), time)
    try:
        found = matches(base, read_adapter(config))
    except AdapterError:  # of another sort than LoRA: what it adapts can be seen all the same
        found = Applied()
    found.trainable = _trainable(model)
    return _tree(base, "model", found, time)


def tree_of_config(source: Path | str | Mapping[str, Any], adapter: Any = None) -> ModelTree:
    """The tree of the model that a configuration describes.

    Args:
        source: A checkpoint's folder, its ``config.json``, or what stands in that file.
        adapter: An adapter's configuration (see :func:`lorawatch.lora.targets.read_adapter`), or None.

    Raises:
        UnknownArchitectureError: The installed transformers cannot build it.
        BrokenCheckpointError: There is no readable configuration.
        AdapterError: ``adapter`` cannot be read.
    """
    wanted = None if adapter is None else read_adapter(adapter)
    base = modules_of_model(meta_model(source))
    return _tree(base, "config", None if wanted is None else apply(base, wanted))


def tree_of_weights(path: Path | str, adapter: Any = None) -> ModelTree:
    """The tree that names and shapes in a checkpoint's safetensors files show; the weights are not read.

    Args:
        path: A checkpoint's folder, or one safetensors file.
        adapter: An adapter's configuration, or None.

    Raises:
        BrokenCheckpointError: There is no such file, or it is not a safetensors file.
        AdapterError: ``adapter`` cannot be read.
    """
    wanted = None if adapter is None else read_adapter(adapter)
    base = modules_of_tensors(read_tensor_shapes(Path(path)))
    return _tree(base, "index", None if wanted is None else apply(base, wanted))


def tree_of_checkpoint(folder: Path | str, adapter: Any = None) -> ModelTree:
    """The tree of a checkpoint: by its configuration, or by its tensors where transformers does not know that one.

    Raises:
        UnknownArchitectureError: The installed transformers cannot build it, and there are no safetensors files.
        BrokenCheckpointError: There is no readable configuration, or a safetensors file is broken.
        AdapterError: ``adapter`` cannot be read.
    """
    try:
        return tree_of_config(folder, adapter)
    except UnknownArchitectureError:
        path = Path(folder)
        if path.is_dir() and any(path.glob("*.safetensors*")):
            return tree_of_weights(path, adapter)
        raise


def meta_model(source: Path | str | Mapping[str, Any]) -> Any:
    """The model of a configuration on the meta device: modules and shapes, no weights.

    Its class is the one that ``architectures`` names, else what ``AutoModelForCausalLM`` and its like choose.

    Raises:
        UnknownArchitectureError: The installed transformers cannot build it.
        BrokenCheckpointError: There is no readable configuration.
    """
    values, where = _config_values(source)
    kind = values.get("model_type")
    if not isinstance(kind, str) or not kind:
        raise UnknownArchitectureError(f"{where}: it states no model_type")
    _check_size(values, where)
    import torch  # noqa: PLC0415
    import transformers  # noqa: PLC0415
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING  # noqa: PLC0415

    if kind not in CONFIG_MAPPING:
        raise UnknownArchitectureError(
            f"{where}: transformers {transformers.__version__} does not know model_type {kind[:80]!r}, and code that "
            "comes with a checkpoint is never run"
        )
    # Only what a weight is packed from counts: a quantised checkpoint has the same modules.
    settings = {name: value for name, value in values.items() if name not in ("quantization_config", "auto_map")}
    try:
        config = CONFIG_MAPPING[kind].from_dict(settings)
        model_class = _model_class(config, values.get("architectures"))
        with torch.device("meta"):
            model = model_class._from_config(config, attn_implementation="eager")
            model.tie_weights()
    except Exception as error:  # a configuration may be wrong in any way: the model's own code says in which
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise UnknownArchitectureError(f"{where}: transformers cannot build the model: {reason}") from error
    return model


def _config_values(source: Path | str | Mapping[str, Any]) -> tuple[dict[str, Any], str]:
    if isinstance(source, Mapping):
        return dict(source), "config"
    path = Path(source)
    if path.is_dir():
        path = path / "config.json"
    return read_json(path), str(path)


def _check_size(values: Mapping[str, Any], where: str) -> None:
    """Refuse a configuration that would make modules without end.

    Raises:
        BrokenCheckpointError: It states more than :data:`MAX_COUNT` of something, or too many experts in all.
    """
    layers = experts = 1
    parts = [values, *(part for part in values.values() if isinstance(part, Mapping))]
    for name, value in (item for part in parts for item in part.items()):
        numbers = [one for one in (value if isinstance(value, list) else [value]) if type(one) is int]
        if not numbers or not _COUNTED.search(str(name)):
            continue
        if max(numbers) > MAX_COUNT:
            raise BrokenCheckpointError(f"{where}: {name} is {max(numbers)}: no model has more than {MAX_COUNT}")
        if "expert" in str(name).lower():
            experts = max(experts, *numbers)
        else:
            layers = max(layers, *numbers)
    if layers * experts > MAX_MODULES:
        raise BrokenCheckpointError(f"{where}: {layers} layers of {experts} experts: no model has that many")


def _model_class(config: Any, architectures: Any) -> Any:
    import transformers  # noqa: PLC0415

    for name in architectures[:4] if isinstance(architectures, list) else []:
        found = getattr(transformers, name, None) if isinstance(name, str) and name.isidentifier() else None
        if (
            isinstance(found, type)
            and issubclass(found, transformers.PreTrainedModel)
            and found.config_class is type(config)
        ):
            return found
    for auto in (
        transformers.AutoModelForCausalLM, transformers.AutoModelForImageTextToText, transformers.AutoModelForSeq2SeqLM,
        transformers.AutoModelForMaskedLM, transformers.AutoModel,
    ):  # fmt: skip
        chosen = auto._model_mapping.get(type(config), None)
        if chosen is not None:
            return chosen[0] if isinstance(chosen, list | tuple) else chosen
    raise ValueError(f"it has no model for {type(config).__name__}")


def _unwrapped(model: Any) -> Any:
    """The model without what DDP, FSDP and ``torch.compile`` put around it; PEFT's wrapper stays."""
    for _ in range(8):
        children = dict(model.named_children())
        name = next(iter(children), "")
        if len(children) != 1 or name not in _WRAPPERS:
            break
        model = children[name]
    return model


def _live_adapter(model: Any) -> Any:
    """Configuration of the active adapter of a model that has one; None for any other."""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not configs:
        return None
    active = getattr(model, "active_adapter", None)  # transformers' own mixin has a method of that name
    return configs[active] if isinstance(active, str) and active in configs else next(iter(configs.values()))


def _trainable(model: Any) -> int:
    """Parameters that require a gradient. PEFT's count knows packed and partitioned weights."""
    count = getattr(model, "get_nb_trainable_parameters", None)
    if count is not None:
        return int(count()[0])
    return sum(int(getattr(one, "ds_numel", 0) or one.numel()) for one in model.parameters() if one.requires_grad)


def _tree(base: BaseModel, origin: str, found: Applied | None, time: float | None = None) -> ModelTree:
    tree = ModelTree(
        groups=_groups(base.modules, adapted=found is not None), parameters=base.parameters, layers=base.layers,
        origin=origin, time=time,
    )  # fmt: skip
    if found is None:
        return tree
    return msgspec.structs.replace(tree, targets=found.targets, saved=found.saved, trainable=found.trainable)


def _groups(modules: Iterable[Module], *, adapted: bool) -> list[ModuleGroup]:
    together: dict[tuple[str, str, int, int, int, bool], list[Module]] = {}
    for one in modules:
        key = (numberless(one.name), one.kind, one.inputs, one.outputs, one.parameters, one.tied)
        together.setdefault(key, []).append(one)
    return [
        ModuleGroup(
            name=name, kind=members[0].kind, inputs=inputs, outputs=outputs, count=len(members), parameters=parameters,
            adapted=sum(one.adapted for one in members) if adapted else None, tied=tied,
        )
        for (name, _, inputs, outputs, parameters, tied), members in list(together.items())[:MAX_GROUPS]
    ]  # fmt: skip
