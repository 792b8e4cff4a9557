"""Judges a run's set-up before it starts: the rules of the callback's first step, a label audit, memory, length.

Everything is local, and every part stands by itself: what is missing or broken is a line in :attr:`Preflight.problems`,
and the other checks still run.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from lorawatch.engine import Engine
from lorawatch.lora.dataset_rows import RowError, first_items, label_rows
from lorawatch.lora.label_audit import MAX_ROWS, LabelError, audit_labels
from lorawatch.lora.library_defaults import fields_of
from lorawatch.lora.target_files import Target, count_rows, model_numbers
from lorawatch.lora.targets import AdapterError, numberless
from lorawatch.lora.tensor_shapes import BrokenCheckpointError, Tensors, read_tensor_shapes
from lorawatch.lora.vram import (
    Choice,
    Dtype,
    Estimate,
    NoEstimateError,
    Settings,
    choices,
    estimate,
    scale_of,
    widths_of,
)
from lorawatch.parameters import NEWEST, installed_version, parse_version
from lorawatch.records import FactUpdate, LabelAudit, ModelTree
from lorawatch.registry import RuleSet
from lorawatch.remedies import is_adapter
from lorawatch.render import printable
from lorawatch.run import PREFERENCE, REINFORCEMENT, Kind, Run

WEIGHTS = "adapter_model.safetensors"
_JUDGED = {FactUpdate, ModelTree, LabelAudit}
_NUMBERS = (
    "model_type", "vocab_size", "hidden_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads",
    "intermediate_size", "max_position_embeddings", "tie_word_embeddings",
)  # fmt: skip
_UNUSUAL = 1 << 22
"""Tokens of a row that no model takes: a ``max_length`` above is not believed."""


@dataclass(frozen=True, slots=True)
class Plan:
    """How long the run is. What is not known is None.

    Attributes:
        rows: Training rows.
        steps: Optimizer steps.
        exact: Whether they are what the Trainer will count; with packing they are an estimate.
        tokens: Tokens that it sees, about: by the mean of the rows that were looked at.
        trained_tokens: Of these, those that are trained on.
        hours: Wall time, by the run's own seconds a step; None where no step was timed.
    """

    rows: int | None = None
    steps: int | None = None
    exact: bool = True
    tokens: float | None = None
    trained_tokens: float | None = None
    hours: float | None = None


@dataclass(slots=True)
class Preflight:
    """What was found.

    Attributes:
        target: What was judged.
        engine: Facts, findings and what was abstained.
        tree: The model's modules; None where they could not be had.
        audit: Of the labels; None where there were no rows or no tokenizer.
        settings: What the memory was reckoned for; None where it was not.
        assumed: What of it was assumed, one line each.
        estimate: Of the memory, as configured.
        ways: Of the memory, as configured and in neighbouring ways.
        plan: How long it is.
        problems: What could not be read or checked, one line each.
    """

    target: Target
    engine: Engine
    tree: ModelTree | None = None
    audit: LabelAudit | None = None
    settings: Settings | None = None
    assumed: list[str] = field(default_factory=list)
    estimate: Estimate | None = None
    ways: list[Choice] = field(default_factory=list)
    plan: Plan = field(default_factory=Plan)
    problems: list[str] = field(default_factory=list)


def preflight(target: Target, rules: RuleSet, *, measured: float | None = None) -> Preflight:
    """Judge a target.

    Args:
        target: What is known.
        rules: The rules; those that judge facts, modules or labels are asked.
        measured: Torch's ``max_memory_allocated`` after a step of this very set-up, in bytes, to calibrate by.
    """
    run = Run(target.name)
    engine = Engine(run, [rule for rule in rules.make() if set(rule.judges) & _JUDGED])
    found = Preflight(target, engine, problems=list(target.problems))
    numbers = _numbers(found)
    found.tree = _tree(found)
    if target.adapter_folder is not None:
        _check_weights(found, target.adapter_folder / WEIGHTS)
    if target.model is not None:
        _check_shards(found, target.model)
    rows = None if target.dataset is None else count_rows(target.dataset)
    _state_facts(found, numbers, rows)
    if target.run is not None:
        run.kind = target.run.engine.run.kind  # told by the metrics that it logged, too
    for update in target.facts:  # stated facts take precedence over inferred ones, whatever their order
        engine.feed(update)
    found.audit = _audit(found)
    if found.audit is None and target.run is not None:
        found.audit = target.run.engine.run.labels
    for record in (found.tree, found.audit):
        if record is not None:
            engine.feed(record)
    _reckon(found, numbers, measured)
    found.plan = _plan(found)
    engine.renew_advice()
    return found


# ---- model and adapter


def _numbers(found: Preflight) -> dict[str, Any]:
    if found.target.model is None:
        return {}
    try:
        return model_numbers(found.target.model)
    except BrokenCheckpointError as error:
        found.problems.append(str(error))
        return {}


def _tree(found: Preflight) -> ModelTree | None:
    target = found.target
    if target.model is None:
        return None if target.run is None else target.run.engine.run.model
    from lorawatch.lora.model_tree import UnknownArchitectureError, tree_of_checkpoint, tree_of_weights  # noqa: PLC0415

    def of(adapter: Mapping[str, Any] | None) -> ModelTree:
        assert target.model is not None  # noqa: S101 - asked above
        try:
            return tree_of_checkpoint(target.model, adapter)
        except ImportError as error:
            if not any(target.model.glob("*.safetensors*")):
                raise UnknownArchitectureError(
                    f"the model's modules need {error.name or 'torch and transformers'}: pip install 'lorawatch[train]'"
                ) from None
            return tree_of_weights(target.model, adapter)

    try:
        return of(target.adapter)
    except AdapterError as error:
        found.problems.append(f"adapter: {error}")
    except (UnknownArchitectureError, BrokenCheckpointError) as error:
        found.problems.append(str(error))
        return None
    try:
        return of(None)
    except (AdapterError, UnknownArchitectureError, BrokenCheckpointError) as error:
        found.problems.append(str(error))
        return None


def _check_weights(found: Preflight, file: Path) -> None:
    """See that an adapter's weights are whole, and fit the model."""
    if not file.is_file():
        return
    shapes = _whole(found, file)
    tree = found.tree
    if shapes is None or tree is None:
        return
    known: dict[str, set[tuple[int, int]]] = {}
    for group in tree.groups:
        known.setdefault(group.name, set()).add((group.inputs, group.outputs))
    strange: list[str] = []
    unfit: list[str] = []
    modules = 0
    for name, (shape, _) in shapes.items():
        module, dot, which = name.partition(".lora_")
        if not dot or len(shape) != 2 or which[:1] not in ("A", "B"):
            continue
        modules += which[:1] == "A"
        plain = module.removeprefix("base_model.model.")
        widths = known.get(numberless(plain))
        if widths is None:
            if which[:1] == "A":
                strange.append(plain)
            continue
        side = 0 if which[:1] == "A" else 1
        width = shape[1] if side == 0 else shape[0]
        if all(one[side] not in (0, width) for one in widths):
            here = " or ".join(str(one[side]) for one in sorted(widths))
            unfit.append(f"{plain} has {'an input' if side == 0 else 'an output'} of {width}, the model's {here}")
    if unfit:
        found.problems.append(
            f"{file}: the adapter does not fit the model in {len(unfit)} places: {printable(unfit[0])[:200]}"
        )
    if strange:
        found.problems.append(
            f"{file}: {len(strange)} of {modules} adapted modules are not in the model: {printable(strange[0])[:120]}"
        )


def _check_shards(found: Preflight, folder: Path) -> None:
    """See that the files of the base's weights, where there are any, are whole."""
    for file in sorted(folder.glob("*.safetensors")):
        if not file.name.startswith("adapter_"):
            _whole(found, file)


def _whole(found: Preflight, file: Path) -> Tensors | None:
    """Shapes of a file that is as long as its header says; None, and a line, for any other."""
    try:
        shapes = read_tensor_shapes(file)
        _open_whole(file)
    except BrokenCheckpointError as error:
        found.problems.append(str(error))
        return None
    return shapes


def _open_whole(file: Path) -> None:
    """Compare sizes and offsets of a safetensors file; nothing is read. Nothing is done where the library is absent.

    Raises:
        BrokenCheckpointError: It is cut off, or its offsets are wrong.
    """
    try:
        from safetensors import SafetensorError, safe_open  # noqa: PLC0415
    except ImportError:
        return
    try:
        with safe_open(str(file), framework="numpy"):
            pass
    except (SafetensorError, OSError) as error:
        reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
        raise BrokenCheckpointError(
            f"{file}: damaged, it may have been cut off while it was written ({printable(reason)})"
        ) from None


def _state_facts(found: Preflight, numbers: Mapping[str, Any], rows: int | None) -> None:
    target, tree = found.target, found.tree
    known = {name: numbers[name] for name in _NUMBERS if isinstance(numbers.get(name), int | float | str | bool)}
    more: list[FactUpdate] = [FactUpdate(known, "the model's config.json", inferred=True)] if known else []
    if rows is not None and target.value("train_rows") is None:
        assert target.dataset is not None  # noqa: S101 - rows were counted in it
        more.append(FactUpdate({"train_rows": _without_held_out(rows, target.value("val_size"))}, target.dataset.name))
    if tree is not None:
        counts = {"total_parameters": tree.parameters + (tree.trainable or 0)}
        if tree.trainable is not None:
            counts["trainable_parameters"] = tree.trainable
        more.append(FactUpdate(counts, "the model's modules", inferred=True))
    target.facts += more


def _without_held_out(rows: int, held_out: Any) -> int:
    """Rows that are left to train on; ``val_size`` is a share or a count."""
    if not isinstance(held_out, int | float) or isinstance(held_out, bool) or not 0 < held_out < rows:
        return rows
    return rows - (math.ceil(rows * held_out) if held_out < 1 else int(held_out))


# ---- labels


def _audit(found: Preflight) -> LabelAudit | None:
    target = found.target
    if target.dataset is None:
        return None
    run = found.engine.run
    if target.family in ("axolotl", "llamafactory"):
        found.problems.append(
            f"labels: {target.family} makes them in its own way; the callback audits its rows at the first step"
        )
        return None
    if run.kind not in (Kind.SFT, Kind.UNKNOWN):
        found.problems.append(f"labels: a {run.kind.value} trainer makes none that could be audited beforehand")
        return None
    tokenizer = _tokenizer(found)
    if tokenizer is None:
        return None
    length = run.number("max_length")
    limit = int(length) if length is not None and 1 <= length < _UNUSUAL else None
    completion_only = run.fact("completion_only_loss")
    try:
        batches = label_rows(
            first_items(target.dataset, MAX_ROWS), tokenizer, text_field=str(run.fact("dataset_text_field", "text")),
            assistant_only=run.fact("assistant_only_loss") is True,
            completion_only=completion_only if isinstance(completion_only, bool) else None,
            max_length=None if run.fact("packing") is True else limit,
        )  # fmt: skip
        return audit_labels(batches, tokenizer, max_length=limit, cuts=run.fact("packing") is not True)
    except (RowError, LabelError) as error:
        found.problems.append(f"labels: {error}")
        return None


def _tokenizer(found: Preflight) -> Any:
    folder = found.target.adapter_folder
    places = [one for one in (folder, found.target.model) if one is not None]
    place = next((one for one in places if (one / "tokenizer_config.json").is_file()), None)
    if place is None:
        where = f" in {places[-1]}" if places else ""
        found.problems.append(f"labels: no tokenizer{where} (tokenizer_config.json): the rows cannot be looked at")
        return None
    try:
        from transformers import AutoTokenizer  # noqa: PLC0415

        return AutoTokenizer.from_pretrained(str(place), local_files_only=True, trust_remote_code=False)
    except Exception as error:  # a tokenizer's files may be wrong in any way, or transformers be absent
        said = " ".join(str(error).split())[:160] or type(error).__name__
        found.problems.append(f"labels: the tokenizer in {place} cannot be loaded: {printable(said)}")
        return None


# ---- memory


def _reckon(found: Preflight, numbers: Mapping[str, Any], measured: float | None) -> None:
    run, tree = found.engine.run, found.tree
    if tree is None:
        return
    if not is_adapter(run) or tree.trainable is None:
        why = "no adapter is configured" if not is_adapter(run) else "the number of trained parameters is not known"
        found.problems.append(f"memory: {why}; it is reckoned for LoRA only")
        return
    known = {**{name: fact.value for name, fact in run.facts.items()}, **numbers}
    rank = int(run.number("r") or 8)
    settings, found.assumed = memory_settings(run, found.target.family, numbers)
    try:
        widths = widths_of(tree, known, rank)
        made = estimate(tree, widths, settings)
        scale = _scale(found, made, measured)
        found.ways = choices(tree, widths, settings, rank, scale=scale)
    except NoEstimateError as error:
        found.problems.append(f"memory: {error}")
        return
    found.settings, found.estimate = settings, found.ways[0].estimate
    if run.kind in REINFORCEMENT:
        found.assumed.append("generation (its cache, vLLM) is not in it")


def _scale(found: Preflight, made: Estimate, measured: float | None) -> float | None:
    """What a measured step says of the estimate: a stated one, or what a run's own allocator said; None without."""
    peak = measured
    if peak is None and found.target.run is not None:
        allocator = found.target.run.engine.run.allocator
        peak = None if allocator is None else float(allocator.peak_allocated)
    if peak is None:
        return None
    try:
        return scale_of(made, peak)
    except NoEstimateError as error:
        found.problems.append(f"memory: {error}")
        return None


def memory_settings(run: Run, family: str, numbers: Mapping[str, Any]) -> tuple[Settings, list[str]]:
    """What of a run's facts sets its memory, and what had to be assumed, one line each.

    Args:
        run: The run.
        family: Whose configuration it is: ``transformers``, ``axolotl``, ``llamafactory`` or "".
        numbers: The model's configuration.
    """
    assumed: list[str] = []
    batch, length = run.number("per_device_train_batch_size"), run.number("max_length")
    if run.kind in REINFORCEMENT and length is None:
        length = (run.number("max_prompt_length") or 512) + (run.number("max_completion_length") or 256)
    if batch is None or batch < 1:
        assumed.append("per_device_train_batch_size 1")
    if length is None or not 1 <= length < _UNUSUAL:
        assumed.append("rows of 1024 tokens, for no max_length is known")
        length = 1024.0
    bits = _bits(run)
    dtype, where = _dtype(run, family, numbers)
    assumed += [f"weights in {dtype}{where}"] if where else []
    half = run.fact("bf16") is True or run.fact("fp16") is True
    chunked = _chunks_loss(run, family)
    attention = str(run.fact("attn_implementation", "sdpa"))
    settings = Settings(
        batch=int(batch) if batch is not None and batch >= 1 else 1, length=int(length), dtype=dtype, autocast=half,
        adapter_dtype="bfloat16" if bits != 16 and family in ("transformers", "") else "float32", bits=bits,
        double_quant=True in (run.fact("bnb_4bit_use_double_quant"), run.fact("use_bnb_nested_quant")),
        checkpointing=True in (run.fact("activation_checkpointing"), run.fact("gradient_checkpointing")),
        dropout=run.number("lora_dropout") or 0.0, optim=str(run.fact("optim", "adamw_torch_fused")),
        whole_logits=not (chunked or run.fact("use_liger_kernel") is True),
        attention="flash" if "flash" in attention else "eager" if attention == "eager" else "sdpa",
        copies=2 if run.kind in PREFERENCE and run.kind is not Kind.KTO else 1,
    )  # fmt: skip
    return settings, assumed


def _bits(run: Run) -> int:
    stated = run.number("quantization_bit")
    if run.fact("load_in_4bit") is True or stated == 4:
        return 4
    return 8 if run.fact("load_in_8bit") is True or stated == 8 else 16


def _dtype(run: Run, family: str, numbers: Mapping[str, Any]) -> tuple[Dtype, str]:
    """Type of the base's weights, and words that say where it was taken from; none where it was stated."""
    stored = str(numbers.get("dtype") or numbers.get("torch_dtype") or "").removeprefix("torch.")
    stated = str(run.fact("dtype") or run.fact("torch_dtype") or "").removeprefix("torch.")
    if stated == "auto":
        stated = stored
    short: dict[str, Dtype] = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32",
                               "bfloat16": "bfloat16", "float16": "float16", "float32": "float32"}  # fmt: skip
    if stated in short:
        return short[stated], ""
    default = fields_of("ModelConfig").get("dtype")
    if family == "transformers" and run.fact("use_peft") is True and default in short:
        return short[default], ", TRL's default where dtype is not set"
    if family in ("axolotl", "llamafactory"):
        return ("float16" if run.fact("fp16") is True else "bfloat16"), f", as {family} loads them"
    if stored in short:
        return short[stored], ", as its config.json says"
    return "bfloat16", ", for nothing says so"


def _chunks_loss(run: Run, family: str) -> bool:
    """Whether the loss is computed in chunks: by TRL's SFTTrainer from 1.16 on."""
    stated = run.fact("trl_version")
    version = parse_version(str(stated)) if stated is not None else installed_version("trl")
    return family in ("transformers", "") and run.fact("trainer_class") == "SFTTrainer" and (1, 16) <= version < NEWEST


# ---- length


def _plan(found: Preflight) -> Plan:
    run, audit = found.engine.run, found.audit
    rows = run.number("train_rows")
    epochs = run.number("num_train_epochs") or 3.0
    mean = audit.tokens / audit.rows if audit is not None and audit.rows else None
    plan = Plan(rows=None if rows is None else int(rows))
    batch, accumulation = run.number("per_device_train_batch_size"), run.number("gradient_accumulation_steps") or 1
    length = run.number("max_length")
    packed = run.fact("packing") is True
    if run.max_steps:
        plan = replace(plan, steps=run.max_steps)
    elif rows and batch:
        sequences = rows
        if packed:
            if mean is None or not length:
                return plan
            sequences = max(math.ceil(rows * mean / length), 1)
        micro = math.ceil(sequences / (batch * (run.number("world_size") or 1)))
        # transformers' Trainer: a last, incomplete accumulation is a step too
        plan = replace(plan, steps=math.ceil(epochs * max(math.ceil(micro / accumulation), 1)), exact=not packed)
    if mean is not None and rows:
        seen = rows * epochs
        if run.max_steps and batch and not packed:
            seen = run.max_steps * batch * accumulation * (run.number("world_size") or 1)
        assert audit is not None  # noqa: S101 - the mean is of it
        plan = replace(plan, tokens=seen * mean, trained_tokens=seen * audit.trained / audit.rows)
    seconds = None if found.target.run is None else _seconds_per_step(found.target.run.engine.run)
    if seconds is not None and plan.steps:
        plan = replace(plan, hours=plan.steps * seconds / 3600)
    return plan


def _seconds_per_step(run: Run) -> float | None:
    """Seconds of a step of a run that took some: as they were timed, or by the times of its rows."""
    if run.typical_step_seconds is not None:
        return run.typical_step_seconds
    began, ended, first = run.first_time, run.time, run.first_step
    if began is None or ended is None or first is None or run.step <= first or ended <= began:
        return None
    return (ended - began) / (run.step - first)


__all__ = ["Plan", "Preflight", "memory_settings", "preflight"]
