"""The recipe of a fine-tuning run: every parameter that ``lorawatch train`` takes, from flags or from YAML.

Names are those of transformers, TRL and PEFT. Defaults are the tuning guide's: rank and alpha by the ratio 1 to 2, no
dropout, every linear layer, no bias.
"""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints

from lorawatch.settings import nearest

Method = Literal["sft", "dpo", "grpo"]
Amount = Literal["plain", "subtle"]

TINY = "tiny"
"""Name of the base model that comes with lorawatch."""
BUILTIN = "builtin"
"""Name of the data that comes with lorawatch."""

USUAL_RATE: dict[Method, float] = {"sft": 2e-4, "dpo": 5e-6, "grpo": 1e-5}
"""Learning rates for a LoRA adapter, by method (TRL's page on PEFT)."""
TINY_RATE: dict[Method, float] = {"sft": 2e-3, "dpo": 5e-4, "grpo": 1e-3}
"""Learning rates for the tiny base: a model of a million parameters has further to go in its 200 steps."""


class RecipeError(Exception):
    """The run cannot be made as asked: says in a line or two what is wrong, where, and what to do."""


def option(default: Any, help: str) -> Any:  # noqa: A002  (argparse's own word)
    """A field of the recipe: declared once, and a flag and a name in YAML by that."""
    return field(default=default, metadata={"help": help})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Everything that makes one run. A field's ``metadata["help"]`` is the help of its flag."""

    model: str = option(TINY, "folder or hub id of a base model, or 'tiny', which comes with lorawatch")
    dataset: str = option(BUILTIN, "hub id, JSONL, CSV or Parquet file, or 'builtin'")
    eval_dataset: str | None = option(None, "data to evaluate on (default: a held-out part of the dataset)")
    method: Method = option("sft", "sft, dpo or grpo")
    output_dir: str = option("lorawatch-run", "folder of the run: checkpoints, logs, samples, findings")

    r: int = option(16, "rank of the adapter")
    lora_alpha: int | None = option(None, "alpha of the adapter (default: twice r)")
    lora_dropout: float = option(0.0, "dropout of the adapter")
    target_modules: str | list[str] = option("all-linear", "modules that get an adapter, comma-separated")
    modules_to_save: list[str] | None = option(None, "further modules that are trained whole, comma-separated")
    bias: Literal["none", "all", "lora_only"] = option("none", "biases that are trained")
    use_rslora: bool = option(False, "scale by alpha / sqrt(r) instead of alpha / r")
    load_in_4bit: bool = option(False, "quantise the base to 4 bit (needs bitsandbytes and a CUDA card)")

    learning_rate: float | None = option(None, "peak learning rate (default: the usual one of the method)")
    lr_scheduler_type: str = option("cosine", "course of the learning rate")
    warmup_steps: float = option(0.05, "steps of warm-up; below 1 a share of the run")
    optim: str = option("adamw_torch", "optimizer")
    adam_beta1: float = option(0.9, "AdamW's first decay")
    adam_beta2: float = option(0.999, "AdamW's second decay")
    weight_decay: float = option(0.0, "weight decay")
    max_grad_norm: float = option(1.0, "clip of the gradient norm; 0 for none")
    per_device_train_batch_size: int = option(8, "sequences in a micro-batch")
    per_device_eval_batch_size: int = option(16, "sequences in a batch of the evaluation")
    gradient_accumulation_steps: int = option(1, "micro-batches in an optimizer step")
    num_train_epochs: float = option(1.0, "epochs, where max_steps is not given")
    max_steps: int = option(-1, "optimizer steps")
    max_length: int = option(1024, "tokens of a sequence at most; longer ones are cut")
    packing: bool = option(False, "pack several rows into one sequence (sft)")
    train_sampling_strategy: str = option("random", "random, sequential or group_by_length")
    activation_checkpointing: bool = option(False, "compute activations twice to save memory")
    bf16: bool | None = option(None, "train in bf16 (default: where a card can)")
    fp16: bool = option(False, "train in fp16")

    beta: float | None = option(None, "strength of the pull to the base model (dpo, grpo)")
    loss_type: str | None = option(None, "loss, where the method has several")
    label_smoothing: float = option(0.0, "share of pairs taken to be labelled wrongly (dpo)")
    num_generations: int = option(4, "completions of a prompt (grpo)")
    max_completion_length: int = option(64, "tokens of a completion at most (grpo)")
    temperature: float = option(1.0, "temperature of the completions (grpo)")

    train_rows: int | None = option(None, "rows to train on at most")
    eval_rows: int = option(128, "rows to evaluate on at most; 0 for no evaluation")
    eval_steps: float = option(0.1, "steps between evaluations; below 1 a share of the run")
    eval_accumulation_steps: int | None = option(None, "evaluation steps before predictions leave the device")
    save_steps: float = option(0.25, "steps between checkpoints; below 1 a share of the run")
    save_total_limit: int | None = option(2, "checkpoints to keep")
    save_only_model: bool = option(False, "checkpoints without optimizer: smaller, but not to resume from")
    load_best_model_at_end: bool = option(False, "end with the checkpoint of the lowest eval_loss")
    early_stopping_patience: int | None = option(None, "stop after so many evaluations without a new best")
    logging_steps: float = option(2, "steps between rows of the log")
    logging_first_step: bool = option(True, "log the first step too")
    logging_nan_inf_filter: bool = option(False, "hide a NaN loss in the log, as the Trainer does by default")
    sample_steps: int = option(100, "steps between sample generations; 0 for none")
    dataloader_num_workers: int = option(0, "processes that load data")
    dataloader_persistent_workers: bool = option(False, "keep these processes between epochs")
    dataloader_prefetch_factor: int | None = option(None, "batches that each of them makes ahead")
    seed: int = option(0, "seed of the adapter's start and of the order of the data")
    resume_from_checkpoint: str | None = option(None, "checkpoint folder to resume from, or 'last'")

    inject: str | None = option(None, "fault to inject: NAME or NAME:subtle (see --list-faults)")
    training_arguments: dict[str, Any] = field(
        default_factory=dict,
        metadata={"help": "any other field of TrainingArguments: NAME=VALUE, repeatable", "flag": "set"},
    )

    @property
    def is_tiny(self) -> bool:
        """Whether it trains the base model that comes with lorawatch."""
        return self.model == TINY

    @property
    def alpha(self) -> int:
        """``lora_alpha``, or twice the rank."""
        return 2 * self.r if self.lora_alpha is None else self.lora_alpha

    @property
    def peak_rate(self) -> float:
        """``learning_rate``, or the usual one of the method."""
        if self.learning_rate is not None:
            return self.learning_rate
        return (TINY_RATE if self.is_tiny else USUAL_RATE)[self.method]

    @property
    def fault(self) -> tuple[str, Amount] | None:
        """Name and amount of the fault to inject, or None.

        Raises:
            RecipeError: The amount is neither ``plain`` nor ``subtle``.
        """
        if self.inject is None:
            return None
        name, _, amount = self.inject.partition(":")
        if amount not in ("", *get_args(Amount)):
            raise RecipeError(f"--inject {self.inject}: the amount is plain or subtle, not {amount!r}")
        return name, "subtle" if amount == "subtle" else "plain"

    def plain(self) -> dict[str, Any]:
        """The fields that differ from the defaults, as YAML holds them."""
        found = {}
        for item in dataclasses.fields(self):
            value = getattr(self, item.name)
            if value != (item.default if item.default is not dataclasses.MISSING else {}):
                found[item.name] = value
        return found


FIELDS: dict[str, dataclasses.Field[Any]] = {item.name: item for item in dataclasses.fields(Recipe)}
_TYPES = get_type_hints(Recipe)


def recipe_of(given: Mapping[str, Any], where: str) -> Recipe:
    """A recipe from plain values, checked.

    Args:
        given: Field name to value. Text is read as the field's type, since flags are text, and YAML takes ``2e-4`` for
            text.
        where: What to name in an error: ``run.yaml``, or ``command line``.

    Raises:
        RecipeError: A name is no field, or a value is not of its type or out of its range.
    """
    values: dict[str, Any] = {}
    for name, value in given.items():
        if name not in FIELDS:
            raise RecipeError(f"{where}: unknown parameter {name!r}{nearest(name, FIELDS)}")
        values[name] = _read(name, value, where)
    recipe = Recipe(**values)
    _check(recipe, where)
    return recipe


def load_recipe(file: Path) -> dict[str, Any]:
    """The plain values of a YAML file, not yet checked.

    Raises:
        RecipeError: It cannot be read, or holds no mapping.
    """
    import yaml  # noqa: PLC0415  (only where a file is given)

    try:
        document = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise RecipeError(f"{file}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    except yaml.YAMLError as error:
        raise RecipeError(f"{file}: is not valid YAML: {' '.join(str(error).split())}") from None
    if document is None:
        return {}
    if not isinstance(document, dict) or not all(isinstance(name, str) for name in document):
        raise RecipeError(f"{file}: must hold one 'name: value' a line, with the names of 'lorawatch train --help'")
    return document


def changed(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe with some fields changed, checked like any other."""
    merged = replace(recipe, **changes)
    _check(merged, "recipe")
    return merged


def _alternatives(kind: Any) -> Iterator[Any]:
    if get_origin(kind) in (types.UnionType, typing.Union):
        for one in get_args(kind):
            yield from _alternatives(one)
    else:
        yield kind


def _read(name: str, value: Any, where: str) -> Any:
    """``value`` as the type of the field; flags and YAML both come here."""
    kinds = list(_alternatives(_TYPES[name]))
    if isinstance(value, str) and "," in value:  # several names, where the field takes several
        kinds.sort(key=_takes_one)
    for kind in kinds:
        try:
            return _as(kind, value)
        except (TypeError, ValueError):
            continue
    names = " or ".join(_kind_name(kind) for kind in kinds)
    raise RecipeError(f"{where}: {name} must be {names}, is {value!r}")


def _takes_one(kind: Any) -> bool:
    return get_origin(kind) is not list


_WORDS = {"true": True, "yes": True, "on": True, "1": True, "false": False, "no": False, "off": False, "0": False}


def _as(kind: Any, value: Any) -> Any:
    if kind is type(None):
        if value is None or value in ("none", "null"):
            return None
    elif get_origin(kind) is Literal:
        if value in get_args(kind):
            return value
    elif kind is bool:
        if isinstance(value, bool):
            return value
        if isinstance(value, str) and value.lower() in _WORDS:
            return _WORDS[value.lower()]
    elif kind is int:
        number = float(value) if isinstance(value, int | float | str) and not isinstance(value, bool) else None
        if number is not None and number == int(number):
            return int(number)
    elif kind is float:
        if isinstance(value, int | float | str) and not isinstance(value, bool):
            return float(value)
    elif kind is str:
        if isinstance(value, str):
            return value
    elif get_origin(kind) is list:
        if isinstance(value, str):
            return [part.strip() for part in value.split(",") if part.strip()]
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return list(value)
    elif get_origin(kind) is dict and isinstance(value, Mapping) and all(isinstance(key, str) for key in value):
        return dict(value)
    raise ValueError(value)


def _kind_name(kind: Any) -> str:
    if get_origin(kind) is Literal:
        return ", ".join(str(one) for one in get_args(kind))
    return {
        bool: "true or false", int: "a whole number", float: "a number", str: "text", type(None): "none",
    }.get(kind, "a list of names" if get_origin(kind) is list else "a mapping")  # fmt: skip


_AT_LEAST: dict[str, float] = {
    "r": 1, "lora_alpha": 0, "learning_rate": 0, "warmup_steps": 0, "weight_decay": 0, "max_grad_norm": 0,
    "per_device_train_batch_size": 1, "per_device_eval_batch_size": 1, "gradient_accumulation_steps": 1,
    "max_length": 8, "num_generations": 2, "max_completion_length": 1, "train_rows": 1, "eval_rows": 0,
    "save_total_limit": 1, "early_stopping_patience": 1, "sample_steps": 0, "dataloader_num_workers": 0,
}  # fmt: skip


def _check(recipe: Recipe, where: str) -> None:
    """Raises RecipeError for what no run can have."""
    for name, least in _AT_LEAST.items():
        value = getattr(recipe, name)
        if value is not None and not value >= least:
            raise RecipeError(f"{where}: {name} must be at least {least:g}, is {value!r}")
    for name in ("num_train_epochs", "logging_steps", "eval_steps", "save_steps", "temperature"):
        if not getattr(recipe, name) > 0:
            raise RecipeError(f"{where}: {name} must be above 0, is {getattr(recipe, name)!r}")
    if not 0 <= recipe.lora_dropout < 1:
        raise RecipeError(f"{where}: lora_dropout must be from 0 to below 1, is {recipe.lora_dropout!r}")
    if recipe.max_steps == 0 or recipe.max_steps < -1:
        raise RecipeError(f"{where}: max_steps must be above 0, or -1 to count epochs, is {recipe.max_steps!r}")
    if recipe.packing and recipe.method != "sft":
        raise RecipeError(f"{where}: packing is for sft, not for {recipe.method}")
    _ = recipe.fault
