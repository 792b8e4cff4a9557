"""The modules of a base model, as a live model or the tensors of a checkpoint show them, before any adapter.

A live model is read only: attributes and shapes, no values, so that nothing is gathered or synchronised.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Literal

from lorawatch.lora.targets import HEADS
from lorawatch.lora.tensor_shapes import Tensors

Kind = Literal["linear", "embedding", "norm", "experts", "other"]

_HOLDERS = ("_fsdp_wrapped_module", "_checkpoint_wrapped_module", "_orig_mod")
"""Names under which FSDP, activation checkpointing and ``torch.compile`` hold a module that they wrap."""


@dataclass(slots=True)
class Module:
    """One module of the base model, with what counting needs to know of it.

    Attributes:
        name: Dotted name in the base model.
        kind: As in :class:`lorawatch.records.ModuleGroup`.
        inputs: Width of its input; for an embedding, its rows.
        outputs: Width of its output.
        shapes: Its own parameters by name; a packed weight has the shape of what was packed, where that is known.
        packed: Parameters of a packed weight whose shape is not known.
        known: Whether LoRA's parameters for it follow from its widths.
        adaptable: Whether LoRA can take it.
        adapted: Whether an adapter is on it, or would be.
        tied: Whether its weight is an earlier module's.
    """

    name: str
    kind: Kind = "other"
    inputs: int = 0
    outputs: int = 0
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    packed: int = 0
    known: bool = True
    adaptable: bool = False
    adapted: bool = False
    tied: bool = False

    @property
    def parameters(self) -> int:
        """Its own parameters."""
        return sum(prod(shape) for shape in self.shapes.values()) + self.packed

    @property
    def biases(self) -> int:
        """Parameters of its bias."""
        return prod(self.shapes["bias"]) if "bias" in self.shapes else 0


@dataclass(slots=True)
class BaseModel:
    """A base model, as far as adapters are concerned.

    Attributes:
        modules: Modules with parameters of their own, or that an adapter could take, in the order of the model.
        names: Names of all modules.
        parameters: All parameters, tied ones once.
        layers: Decoder layers; 0 where they cannot be told.
        head: Name of the output head, which ``all-linear`` leaves out; empty where there is none.
        embedding: Name of the input embedding; empty where it is not known.
        model_type: As the configuration names it; empty where there is none.
        live: The model, where there is one.
    """

    modules: list[Module] = field(default_factory=list)
    names: list[str] = field(default_factory=list)
    parameters: int = 0
    layers: int = 0
    head: str = ""
    embedding: str = ""
    model_type: str = ""
    live: Any = None


def modules_of_model(model: Any) -> BaseModel:
    """The base of a live model: its modules as they are called without PEFT's layers around them."""
    import torch  # noqa: PLC0415

    config = getattr(model, "config", None)
    base = BaseModel(model_type=str(getattr(config, "model_type", "") or ""), live=model)
    names: dict[int, str] = {}
    owners: dict[int, str] = {}
    for name, module, adapted in _walk(model):
        names[id(module)] = name
        base.names.append(name)
        own = dict(module.named_parameters(recurse=False))
        described = _described(name, module, {key: _shape(one) for key, one in own.items()}, torch)
        described.adapted = adapted
        if "weight" in own:
            described.tied = owners.get(id(own["weight"]), name) != name
        base.parameters += described.parameters
        for key, one in own.items():
            if id(one) in owners:
                base.parameters -= prod(described.shapes[key])
            owners.setdefault(id(one), name)
        if own or described.adaptable:
            base.modules.append(described)
    base.layers = _layers(config, base.names)
    base.head = names.get(id(_head(model)), "")
    base.embedding = names.get(id(_bare(_quietly(getattr(model, "get_input_embeddings", None)))), "")
    return base


def modules_of_tensors(tensors: Tensors) -> BaseModel:
    """The base that the tensors of a checkpoint show: names and dimensions stand for what classes would say."""
    found: dict[str, Module] = {}
    for full in sorted(tensors, key=_in_order):
        shape, dtype = tensors[full]
        name, _, key = full.rpartition(".")
        if not name or ".weight." in full:  # constants beside a 4-bit weight
            continue
        module = found.setdefault(name, Module(name))
        if dtype == "U8" and key == "weight":
            module.packed = 2 * prod(shape)
        else:
            module.shapes[key] = shape
    modules = [_told_by_name(module) for module in found.values()]
    names = list(found)
    return BaseModel(
        modules=modules, names=names, parameters=sum(module.parameters for module in modules),
        layers=_layers(None, names), head=next((name for name in names if name.rsplit(".", 1)[-1] in HEADS), ""),
        embedding=next((module.name for module in modules if module.kind == "embedding"), ""),
    )  # fmt: skip


def _walk(model: Any) -> Iterator[tuple[str, Any, bool]]:
    """Each module of the base model once, with its name there, and whether an active adapter is on it."""
    layers, whole = _wrapper_classes()
    seen: set[int] = set()

    def visit(name: str, module: Any) -> Iterator[tuple[str, Any, bool]]:
        adapted = False
        while isinstance(module, layers + whole):  # several targeted parameters of a module nest several layers
            seen.add(id(module))
            if isinstance(module, layers):
                adapted = adapted or _active(module)
                module = module.base_layer
            else:
                module = module.original_module
        if id(module) in seen:
            return
        seen.add(id(module))
        yield name, module, adapted
        for child_name, child in module.named_children():
            yield from visit(name if child_name in _HOLDERS else _joined(name, child_name), child)

    yield from visit("", model)


def _joined(name: str, child: str) -> str:
    return f"{name}.{child}" if name else child


def _wrapper_classes() -> tuple[tuple[Any, ...], tuple[Any, ...]]:
    """PEFT's classes that stand in the place of a module: layers of adapters, and modules that are trained whole."""
    if "peft" not in sys.modules:
        return (), ()
    from peft.tuners.tuners_utils import BaseTunerLayer  # noqa: PLC0415
    from peft.utils import other  # noqa: PLC0415

    whole = getattr(other, "AuxiliaryTrainingWrapper", None) or other.ModulesToSaveWrapper  # before PEFT 0.15
    return (BaseTunerLayer,), (whole,)


def _active(layer: Any) -> bool:
    """Whether one of the layer's active adapters is on it."""
    ranks = getattr(layer, "r", None)
    return any(name in ranks for name in layer.active_adapters) if isinstance(ranks, Mapping) else True


def _bare(module: Any) -> Any:
    """A module without PEFT's layers around it."""
    layers, whole = _wrapper_classes()
    while isinstance(module, layers + whole):
        module = module.base_layer if isinstance(module, layers) else module.original_module
    return module


def _quietly(call: Callable[[], Any] | None) -> Any:
    """What ``call`` gives; None where there is none, or where the model does not have it."""
    try:
        return call() if call is not None else None
    except (NotImplementedError, AttributeError):
        return None


def _head(model: Any) -> Any:
    """The output head that ``all-linear`` leaves out (PEFT's ``_maybe_include_all_linear_layers``)."""
    for head in (
        _quietly(getattr(model, "get_output_embeddings", None)),
        getattr(model, "score", None),
        getattr(model, "classifier", None),
    ):
        if head is not None:
            return _bare(head)
    return None


def _shape(parameter: Any) -> tuple[int, ...]:
    """The whole shape of a parameter, of one that ZeRO-3 has partitioned too."""
    return tuple(int(one) for one in getattr(parameter, "ds_shape", parameter.shape))


def _described(name: str, module: Any, shapes: dict[str, tuple[int, ...]], torch: Any) -> Module:
    """What kind of module it is, how wide, and what parameters it has of its own."""
    found = Module(name, shapes=shapes)
    kind, weight = type(module).__name__, shapes.get("weight", ())
    widths = getattr(module, "in_features", None), getattr(module, "out_features", None)
    if isinstance(module, torch.nn.Embedding):
        found.kind, found.adaptable = "embedding", True
        found.inputs, found.outputs = module.num_embeddings, module.embedding_dim
    elif kind == "Conv1D" and len(weight) == 2:  # of GPT-2
        found.kind, found.adaptable = "linear", True
        found.inputs, found.outputs = weight
    elif isinstance(widths[0], int) and isinstance(widths[1], int) and ("Linear" in kind or hasattr(module, "qweight")):
        found.kind, found.adaptable = "linear", True
        found.inputs, found.outputs = widths[0], widths[1]
        # A 4-bit weight is packed: the widths tell what was. GPTQ's and AWQ's lie in buffers.
        shapes["weight"] = (found.outputs, found.inputs)
    elif "Norm" in kind:
        found.kind = "norm"
    elif isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d | torch.nn.MultiheadAttention):
        found.adaptable, found.known = True, False
    elif any(len(shape) == 3 for shape in shapes.values()):
        found.kind = "experts"
        width = getattr(module, "hidden_dim", None) or getattr(module, "hidden_size", None)
        found.inputs = found.outputs = width if isinstance(width, int) else 0
    return found


def _layers(config: Any, names: Iterable[str]) -> int:
    """Decoder layers: what the configuration of the text part says, or the longest numbered list of modules."""
    text = config.get_text_config(decoder=True) if hasattr(config, "get_text_config") else config
    for name in ("num_hidden_layers", "n_layer", "num_layers"):
        stated = getattr(text, name, None)
        if isinstance(stated, int) and not isinstance(stated, bool) and stated > 0:
            return stated
    lists: dict[str, set[str]] = {}
    for name in names:
        found = re.match(r"(.*?)\.(\d+)(?:\.|$)", name)
        if found is not None:
            lists.setdefault(found[1], set()).add(found[2])
    return max((len(numbers) for numbers in lists.values()), default=0)


def _in_order(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() and len(part) < 9 else (-1, part) for part in name.split(".")]


def _told_by_name(module: Module) -> Module:
    last = module.name.rsplit(".", 1)[-1].lower()
    weight = module.shapes.get("weight", ())
    if any(len(shape) == 3 for shape in module.shapes.values()):
        module.kind = "experts"
    elif "norm" in last or last.startswith("ln_"):
        module.kind = "norm"
    elif last in ("wte", "wpe") or ("embed" in last and "out" not in last):
        module.kind, module.adaptable = "embedding", True
        if len(weight) == 2:
            module.inputs, module.outputs = weight
    elif len(weight) == 2 or module.packed or "qweight" in module.shapes or weight == ():
        module.kind, module.adaptable = "linear", True
        if len(weight) == 2:
            module.outputs, module.inputs = weight
    module.known = bool(module.inputs and module.outputs)
    return module
