"""The adapter of a checkpoint folder, in numbers: from ``adapter_model.safetensors`` and ``adapter_config.json`` alone.

Needs numpy and safetensors, but neither torch nor PEFT nor the base model. Nothing is unpickled: an adapter that is
kept as ``adapter_model.bin`` is refused.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorawatch.lora.adapter_health import MAX_MODULES, Factors, LeftOut, base_name, measure
from lorawatch.records import AdaptedModule, AdapterReading

if TYPE_CHECKING:
    from numpy.typing import NDArray

WEIGHTS = "adapter_model.safetensors"
CONFIG = "adapter_config.json"
MAX_CONFIG_BYTES = 16 << 20
MAX_STATE_BYTES = 256 << 20
BASE_BLOCK = 1 << 22
"""Elements of a base weight that are read at a time: 32 MiB in float64."""
MAX_PATTERN = 256
"""Characters of an entry of ``alpha_pattern``."""

_TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2"}
_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<which>[AB])(?:\.(?P<rest>.+))?$")
_PREFIX = re.compile(r"^(?:base_model\.model\.)+")
_STEP = re.compile(r"checkpoint-(\d{1,12})")
_REPEATED_GROUP = re.compile(r"\)[*+{?]")
_DETOUR_FORMS = {"use_qalora": "QALoRA", "use_bdlora": "BdLoRA", "arrow_config": "Arrow", "kasa_config": "KaSA",
                 "monteclora_config": "MonteCLoRA"}  # fmt: skip
"""Entries of a configuration that make the update something other than scale·B·A, and what they are called."""


class AdapterFileError(ValueError):
    """An adapter on disk that cannot be read; the message says what is wrong and what to do, in one or two lines."""


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """One tensor of a safetensors file, not yet read.

    Attributes:
        file: The file.
        dtype: safetensors' name of its type: ``F32``, ``BF16``.
        shape: Its shape.
        offset: Place of its first byte in the file.
    """

    file: Path
    dtype: str
    shape: tuple[int, ...]
    offset: int

    @property
    def readable(self) -> bool:
        """Whether it holds floating-point numbers of 16 bits or more."""
        return self.dtype in _TYPES

    def array(self, first: int = 0, count: int | None = None) -> NDArray[Any]:
        """``count`` of its elements from ``first`` on, flat, mapped from the file; bfloat16 is widened to float32."""
        import numpy as np  # noqa: PLC0415

        kind = np.dtype(_TYPES[self.dtype])
        length = math.prod(self.shape) - first if count is None else count
        flat: NDArray[Any] = np.memmap(self.file, kind, "r", self.offset + first * kind.itemsize, (length,))
        if self.dtype != "BF16":
            return flat
        return (flat.astype(np.uint32) << 16).view(np.float32)  # bfloat16 is the upper half of a float32


def stored_tensors(file: Path) -> dict[str, StoredTensor]:
    """The tensors of a safetensors file, by name; nothing but its header is read.

    Raises:
        AdapterFileError: It is not there, or is no sound safetensors file.
    """
    try:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415
    except ImportError:
        raise AdapterFileError(
            "reading an adapter needs safetensors and numpy: pip install safetensors numpy"
        ) from None
    try:
        # The library checks the header: sizes, offsets, and that the file is as long as it says.
        with safe_open(str(file), framework="numpy"):
            pass
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            header: dict[str, Any] = json.loads(stream.read(length))
    except (SafetensorError, ValueError, RecursionError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise AdapterFileError(
            f"{file} is damaged: {reason}. Copy it anew, or take an earlier checkpoint: it may have been cut off "
            "while it was written"
        ) from None
    except OSError as error:
        raise AdapterFileError(f"{file} cannot be read: {error.strerror or error}") from None
    return {
        name: StoredTensor(file, entry["dtype"], tuple(entry["shape"]), 8 + length + entry["data_offsets"][0])
        for name, entry in header.items() if name != "__metadata__"
    }  # fmt: skip


def read_adapter(folder: str | Path, base: str | Path | None = None, *, step: int | None = None) -> AdapterReading:
    """The adapter that a folder holds, in numbers.

    Args:
        folder: A checkpoint folder, or whatever folder ``save_pretrained`` of PEFT wrote.
        base: Folder of the base model's safetensors, for the norms of the weights that are adapted. They are read in
            full: some seconds for a model of 7B.
        step: Optimizer step. By default the number in the folder's name, or that of its ``trainer_state.json``; 0
            where neither tells.

    Raises:
        AdapterFileError: A file is missing or damaged, it is no LoRA adapter, A and B do not fit each other, or the
            adapter does not fit the base model.
    """
    began = time.perf_counter()
    folder = Path(folder)
    config = read_config(folder)
    stored, left_out = _stored_modules(folder, config)
    weights = {} if base is None else _matching_weights(stored, Path(base), config.get("fan_in_fan_out") is True)
    modules: list[AdaptedModule] = []
    for one in stored:  # one at a time: an adapter in half precision is widened as it is read
        factors = one.factors()
        factors.base = _norm(weights[one.name]) if one.name in weights else None
        modules += measure([factors])
    return AdapterReading(
        step=_step_of(folder) if step is None else step,
        modules=modules,
        left_out=left_out.total,
        why_left_out=str(left_out),
        seconds=time.perf_counter() - began,
        time=(folder / WEIGHTS).stat().st_mtime,
        origin=folder.resolve().name,
    )


def read_config(folder: Path) -> dict[str, Any]:
    """The adapter's configuration.

    Raises:
        AdapterFileError: There is none, it is no JSON object, or it is not that of a LoRA adapter.
    """
    if not folder.is_dir():
        raise AdapterFileError(f"{folder}: no such folder")
    file = folder / CONFIG
    try:
        if file.stat().st_size > MAX_CONFIG_BYTES:
            raise AdapterFileError(f"{file} is larger than {MAX_CONFIG_BYTES >> 20} MiB: that is no configuration")
        config = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise AdapterFileError(
            f"{folder} has no {CONFIG}: give the folder that PEFT's save_pretrained wrote (output_dir/checkpoint-500)"
        ) from None
    except OSError as error:
        raise AdapterFileError(f"{file} cannot be read: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise AdapterFileError(f"{file} is no JSON: {str(error)[:200]}") from None
    if not isinstance(config, dict):
        raise AdapterFileError(f"{file} holds no JSON object")
    kind = config.get("peft_type")
    if kind != "LORA":
        raise AdapterFileError(f"{file} is of an adapter of type {str(kind)[:40]!r}: only LORA adapters can be judged")
    return config


def _step_of(folder: Path) -> int:
    named = _STEP.fullmatch(folder.resolve().name)
    if named:
        return int(named[1])
    state = folder / "trainer_state.json"
    try:
        if state.stat().st_size <= MAX_STATE_BYTES:
            step = json.loads(state.read_text(encoding="utf-8")).get("global_step")
            return step if isinstance(step, int) and step >= 0 else 0
    except (OSError, ValueError, RecursionError, AttributeError):
        pass
    return 0


@dataclass(slots=True)
class _StoredModule:
    """One module's factors in a file, not yet read."""

    name: str
    rank: int
    scale: float
    experts: int
    a: StoredTensor
    b: StoredTensor
    embedding: bool = False
    additive: bool = True

    def factors(self) -> Factors:
        """Read them, or rather map them."""
        a = self.a.array().reshape(self.experts, self.rank, -1)
        b = self.b.array().reshape(self.b.shape[0], self.rank, self.experts)
        # With several experts A is [experts · rank, inputs] and B [outputs, rank · experts]: PEFT's ParamWrapper.
        return Factors(self.name, self.rank, self.scale, a, b.transpose(2, 1, 0), additive=self.additive)

    @property
    def inputs(self) -> int:
        """Columns of A."""
        return math.prod(self.a.shape[1:])

    @property
    def outputs(self) -> int:
        """Rows of B."""
        return self.b.shape[0]


def _stored_modules(folder: Path, config: Mapping[str, Any]) -> tuple[list[_StoredModule], LeftOut]:
    file = folder / WEIGHTS
    if not file.is_file():
        if (folder / "adapter_model.bin").is_file():
            raise AdapterFileError(
                f"{folder} keeps its adapter as a pickle (adapter_model.bin), which is not opened: save it with "
                "safe_serialization=True"
            )
        raise AdapterFileError(f"{folder} has no {WEIGHTS}: the adapter was not saved here")
    tensors = stored_tensors(file)
    pairs: dict[str, dict[str, StoredTensor]] = {}
    embeddings: set[str] = set()
    doras: set[str] = set()
    others: set[str] = set()
    for name, tensor in tensors.items():
        found = _FACTOR.match(name)
        if found is None:
            module, dora, _ = name.partition(".lora_magnitude_vector")
            (doras if dora else others).add(module if dora else name.rpartition(".")[0])
        elif not (found["rest"] or "").endswith("bias"):
            pairs.setdefault(found["module"], {})[found["which"]] = tensor
            if found["embedding"]:
                embeddings.add(found["module"])
    if not pairs:
        raise AdapterFileError(f"{file} holds no LoRA factors (lora_A, lora_B) among its {len(tensors)} tensors")
    left_out = LeftOut()
    left_out.add("trained in full (modules_to_save or the like)", len(others))
    form = next((title for key, title in _DETOUR_FORMS.items() if config.get(key)), "")
    if form:
        left_out.add(f"of the form {form}", len(pairs))
        return [], left_out
    stored: list[_StoredModule] = []
    for module in _in_order(pairs):
        one = _stored_module(module, pairs[module], config, file)
        if isinstance(one, str):
            left_out.add(one)
        elif len(stored) >= MAX_MODULES:
            left_out.add(f"beyond the first {MAX_MODULES}")
        else:
            one.embedding = module in embeddings
            one.additive = module not in doras and not config.get("use_dora")
            stored.append(one)
    return stored, left_out


def _in_order(modules: Iterable[str]) -> list[str]:
    """Layer 2 before layer 10; within a layer as they stand in the file."""
    return sorted(modules, key=lambda name: [int(part) for part in name.split(".") if re.fullmatch("[0-9]{1,9}", part)])


def _stored_module(
    module: str, pair: Mapping[str, StoredTensor], config: Mapping[str, Any], file: Path
) -> _StoredModule | str:
    if len(pair) < 2:
        there, missing = ("A", "B") if "A" in pair else ("B", "A")
        raise AdapterFileError(
            f"{file}: {_shown(module)} has lora_{there} but no lora_{missing}: the file is incomplete"
        )
    a, b = pair["A"], pair["B"]
    if len(a.shape) < 2 or len(b.shape) < 2 or 0 in a.shape + b.shape:
        return "with factors of no rows: sharded weights that were not gathered before they were saved"
    if not (a.readable and b.readable):
        return f"of the type {b.dtype if a.readable else a.dtype}"
    rows, columns = a.shape[0], math.prod(b.shape[1:])
    if len(b.shape) > 2 and columns < rows and rows % columns == 0:
        return "of grouped convolutions"
    if rows != columns:
        raise AdapterFileError(
            f"{file}: A and B of {_shown(module)} do not fit each other: {list(a.shape)} and {list(b.shape)}; B must "
            "have as many columns as A has rows"
        )
    name, source = base_name(module), file.parent / CONFIG
    stated = _stated(config, "r", "rank_pattern", name, source)
    experts = 1
    if config.get("target_parameters") and stated is not None and 0 < stated < rows and rows % stated == 0:
        experts = int(rows // stated)
        name = _PREFIX.sub("", module)  # parameters of one module wrap each other: which is which the file does not say
    rank = rows // experts
    alpha = _stated(config, "lora_alpha", "alpha_pattern", base_name(module), source)
    if alpha is None:
        raise AdapterFileError(f"{source} says no lora_alpha: the scale of the update is not known")
    return _StoredModule(name, rank, alpha / (math.sqrt(rank) if config.get("use_rslora") else rank), experts, a, b)


def _stated(config: Mapping[str, Any], key: str, pattern_key: str, module: str, source: Path) -> float | None:
    """A number of the configuration for one module: of the first entry of a pattern that matches, as PEFT does it."""
    value: Any = config.get(key)
    patterns = config.get(pattern_key)
    if isinstance(patterns, dict):
        for pattern, number in patterns.items():
            if _matches(pattern, module, f"{source}: an entry of {pattern_key}"):
                value = number
                break
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return value


def _matches(pattern: str, module: str, what: str) -> bool:
    if len(pattern) > MAX_PATTERN or _REPEATED_GROUP.search(pattern):  # could take for ever to match
        raise AdapterFileError(f"{what} is too involved to be matched safely: {_shown(pattern)}")
    try:
        return re.match(rf"(?:.*\.)?(?:{pattern})$", module) is not None
    except re.error:
        raise AdapterFileError(f"{what} is no regular expression: {_shown(pattern)}") from None


def _shown(name: str) -> str:
    return repr(name if len(name) <= 120 else f"{name[:60]}…{name[-57:]}")


def _matching_weights(stored: Sequence[_StoredModule], folder: Path, fan_in_fan_out: bool) -> dict[str, StoredTensor]:
    """The base model's weight of each module that has one in the folder; the adapter must fit it."""
    weights = _base_weights(folder)
    found: dict[str, StoredTensor] = {}
    ordinary = [one for one in stored if one.experts == 1]
    prefixes: tuple[str, str] | None = None
    for one in ordinary:
        name = f"{one.name}.weight"
        prefixes = prefixes or _prefixes_of(name, weights)
        weight = weights.get(prefixes[1] + name.removeprefix(prefixes[0])) if prefixes else None
        if weight is None:
            continue
        shape = (one.outputs, one.inputs)
        if len(weight.shape) == 2 and weight.readable:
            turned = one.embedding or fan_in_fan_out
            if weight.shape != (shape[::-1] if turned else shape):
                raise AdapterFileError(
                    f"the adapter does not fit {folder}: {_shown(one.name)} is {list(weight.shape)} there, and the "
                    f"adapter changes {list(shape[::-1] if turned else shape)}"
                )
        found[one.name] = weight
    if ordinary and not found:
        raise AdapterFileError(
            f"the adapter does not fit {folder}: none of its modules is there, {_shown(ordinary[0].name)} for one"
        )
    return {name: weight for name, weight in found.items() if weight.readable}


def _prefixes_of(name: str, weights: Mapping[str, StoredTensor]) -> tuple[str, str] | None:
    """What to take from the front of a name, and what to put there, to have its name in the base model's files."""
    if name in weights:
        return "", ""
    parts = name.split(".")
    for place in range(1, len(parts) - 1):  # transformer.h.0.attn.c_attn is h.0.attn.c_attn in GPT-2's file
        rest = ".".join(parts[place:])
        if rest in weights:
            return name.removesuffix(rest), ""
    longer = next((one for one in weights if one.endswith(f".{name}")), None)
    return None if longer is None else ("", longer.removesuffix(name))


def _base_weights(folder: Path) -> dict[str, StoredTensor]:
    files = sorted(folder.glob("*.safetensors")) if folder.is_dir() else []
    files = [file for file in files if file.name != WEIGHTS]
    if not files:
        raise AdapterFileError(f"{folder} holds no safetensors of a base model")
    found: dict[str, StoredTensor] = {}
    for file in files:
        found |= stored_tensors(file)
    return found


def _norm(stored: StoredTensor) -> float | None:
    import numpy as np  # noqa: PLC0415

    total, size = 0.0, math.prod(stored.shape)
    for first in range(0, size, BASE_BLOCK):
        block = stored.array(first, min(BASE_BLOCK, size - first)).astype(np.float64)
        total += float(block @ block)
    return math.sqrt(total) if math.isfinite(total) else None
