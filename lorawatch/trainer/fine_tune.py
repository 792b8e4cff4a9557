"""One LoRA fine-tuning run by TRL and PEFT, as users make it, with lorawatch attached: recipe in, run folder out."""

from __future__ import annotations

import dataclasses
import random
import shutil
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import datasets  # type: ignore[import-untyped]
import torch
import yaml
from peft import LoraConfig
from transformers import EarlyStoppingCallback, TrainerCallback, trainer_utils
from transformers.utils import logging
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from lorawatch.integrations.transformers import LoraWatchCallback
from lorawatch.lora.probes import Probe, ProbeSet, task_probes
from lorawatch.settings import load_settings
from lorawatch.trainer import builtin_data
from lorawatch.trainer.base_model import load_base, load_tokenizer
from lorawatch.trainer.faults.catalogue import fault_of
from lorawatch.trainer.faults.contract import Fault, Row
from lorawatch.trainer.machine_needs import unmet
from lorawatch.trainer.outcome import Outcome
from lorawatch.trainer.recipe import BUILTIN, Recipe, RecipeError
from lorawatch.trainer.replies import generate
from lorawatch.trainer.rows import Rows, load_rows

RECIPE_FILE = "recipe.yaml"
PROBE_TOKENS = 64


class InterruptedRunError(Exception):
    """The job died on purpose, to be resumed."""


def fine_tune(
    recipe: Recipe,
    *,
    callbacks: tuple[Any, ...] = (),
    quiet: bool = False,
    probes: bool = False,
    tell: Callable[[str], None] = lambda _line: None,
) -> Outcome:
    """Train as the recipe says; everything that can be wrong with it is told before training starts.

    Args:
        recipe: The run. A fault of configuration must be in it already: see :func:`misconfigured`.
        callbacks: Further callbacks.
        quiet: No progress bar, and nothing said by the callback.
        probes: Ask the built-in probes before and after (built-in data only).
        tell: Takes a line for the person who waits.

    Raises:
        RecipeError: The run cannot be made as asked.
    """
    fault = fault_of(recipe)
    if missing := unmet(type(fault)):
        raise RecipeError(f"--inject {fault.name}: needs {missing}")
    recipe = fault.prepare(recipe)
    folder = Path(recipe.output_dir)
    arguments(recipe)  # wrong ones are told before anything is loaded
    _checkpoint(recipe)
    if quiet:
        datasets.disable_progress_bars()
        logging.disable_progress_bar()  # type: ignore[no-untyped-call, unused-ignore]
    rows = load_rows(recipe)
    dice = random.Random(recipe.seed)  # noqa: S311  (which rows a fault takes is no secret)
    rows = Rows(fault.rows(rows.train, dice), fault.evaluation_rows(rows.evaluation, dice))
    tokenizer = fault.tokenizer(load_tokenizer(recipe))
    _make(folder)
    died = fault.interrupted_at(recipe)
    if died is not None:
        _half(recipe, fault, rows, tokenizer, step=died, quiet=quiet)
        last = _last_checkpoint(str(folder))
        if last is None:
            raise RecipeError(f"--inject {recipe.inject}: no checkpoint before step {died}; lower save_steps")
        fault.between(Path(last))
        recipe = dataclasses.replace(recipe, resume_from_checkpoint=last)
    trainer, watch = _trainer(recipe, fault, rows, tokenizer, callbacks=callbacks, quiet=quiet)
    (folder / RECIPE_FILE).write_text(yaml.safe_dump(recipe.plain(), sort_keys=False), encoding="utf-8")
    asked = probes and recipe.dataset == BUILTIN
    before = _probe(trainer, tokenizer) if asked else {}
    if not quiet:
        tell(_opening(recipe, trainer, rows))
    began = time.monotonic()
    trainer.train(resume_from_checkpoint=_checkpoint(recipe))
    seconds = time.monotonic() - began
    if trainer.is_world_process_zero():
        trainer.save_model()
        trainer.save_state()
    outcome = Outcome(folder, trainer.state.global_step, seconds, trainer, watch)
    if asked:
        after = _probe(trainer, tokenizer)
        outcome.probes = {kind: (share, after[kind]) for kind, share in before.items()}
    return outcome


def misconfigured(recipe: Recipe) -> Recipe:
    """The recipe with the mistake of its fault in it, where that is one of configuration.

    Raises:
        RecipeError: There is no such fault, or the method cannot have it.
    """
    return fault_of(recipe).misconfigure(recipe)


class _Dies(TrainerCallback):
    """Ends the first half of a run that is to be resumed."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step >= self.step:
            raise InterruptedRunError


def _half(recipe: Recipe, fault: Fault, rows: Rows, tokenizer: Any, *, step: int, quiet: bool) -> None:
    """Train until the job dies."""
    for old in Path(recipe.output_dir).glob("checkpoint-*"):  # of an earlier run: this one must not resume from it
        shutil.rmtree(old)
    trainer, watch = _trainer(recipe, fault, rows, tokenizer, callbacks=(_Dies(step),), quiet=quiet)
    try:
        trainer.train()
    except InterruptedRunError:
        watch.on_train_end(trainer.args, trainer.state, trainer.control)


def _trainer(
    recipe: Recipe, fault: Fault, rows: Rows, tokenizer: Any, *, callbacks: tuple[Any, ...], quiet: bool
) -> tuple[Any, LoraWatchCallback]:
    """TRL's trainer for the recipe, with the fault in it."""
    base = load_base(recipe)
    fault.base(base, recipe)
    optimizer = fault.optimizer(base, recipe)
    # Short runs on a slow machine could not afford a look within the usual share of their time: these are asked for.
    settings = replace(load_settings(), sample_steps=recipe.sample_steps, sample_share=1.0)
    watch = LoraWatchCallback(settings, quiet=quiet, probes=_probes(recipe, rows, tokenizer))
    attached: list[Any] = [watch, *callbacks, *fault.callbacks(recipe)]
    if recipe.early_stopping_patience is not None:
        attached.append(EarlyStoppingCallback(recipe.early_stopping_patience))
    data: dict[str, Any] = {
        "train_dataset": datasets.Dataset.from_list(rows.train),
        "eval_dataset": datasets.Dataset.from_list(rows.evaluation) if rows.evaluation else None,
    }
    if recipe.method == "grpo":
        data["reward_funcs"] = fault.reward(_reward(recipe))
    kind: Any = {"sft": SFTTrainer, "dpo": DPOTrainer, "grpo": GRPOTrainer}[recipe.method]
    try:
        trainer = kind(
            model=base, args=arguments(recipe, quiet=quiet, evaluates=bool(rows.evaluation)),
            processing_class=tokenizer, peft_config=adapter(recipe), callbacks=attached,
            optimizers=(optimizer, None), **data,
        )  # fmt: skip
    except ValueError as error:  # PEFT on target modules, TRL on rows, transformers on arguments
        raise RecipeError(" ".join(str(error).split())[:300]) from None
    fault.adapted(trainer.model, recipe)
    if recipe.method != "grpo":
        trainer.train_dataset = fault.dataset(trainer.train_dataset, recipe)
    _collate_training_batches_by(fault, trainer, recipe)
    fault.trainer(trainer, recipe)
    return trainer, watch


def _collate_training_batches_by(fault: Fault, trainer: Any, recipe: Recipe) -> None:
    """Let the fault's collator make the training batches, and only these: an evaluation is not to be broken by it."""
    own = trainer.data_collator
    wrapped = fault.collator(own, recipe)
    if wrapped is own:
        return
    make = trainer.get_train_dataloader

    def get_train_dataloader() -> Any:
        trainer.data_collator = wrapped
        try:
            return make()
        finally:
            trainer.data_collator = own

    trainer.get_train_dataloader = get_train_dataloader


def adapter(recipe: Recipe) -> LoraConfig:
    """The adapter's configuration."""
    return LoraConfig(
        r=recipe.r, lora_alpha=recipe.alpha, lora_dropout=recipe.lora_dropout, bias=recipe.bias,
        target_modules=recipe.target_modules, modules_to_save=recipe.modules_to_save, use_rslora=recipe.use_rslora,
        task_type="CAUSAL_LM",
    )  # fmt: skip


def arguments(recipe: Recipe, *, quiet: bool = False, evaluates: bool = True) -> Any:
    """The training arguments: ``SFTConfig``, ``DPOConfig`` or ``GRPOConfig``.

    Raises:
        RecipeError: ``training_arguments`` names a field that the installed version lacks, or a value is refused.
    """
    kind: Any = {"sft": SFTConfig, "dpo": DPOConfig, "grpo": GRPOConfig}[recipe.method]
    known = {item.name for item in dataclasses.fields(kind)}
    on_card = torch.cuda.is_available()
    bf16 = recipe.bf16 if recipe.bf16 is not None else on_card and torch.cuda.is_bf16_supported() and not recipe.fp16
    given: dict[str, Any] = {
        "output_dir": recipe.output_dir, "report_to": "none", "use_cpu": not on_card, "disable_tqdm": quiet,
        "bf16": bf16, "fp16": recipe.fp16, "dataloader_pin_memory": on_card, "learning_rate": recipe.peak_rate,
        "eval_strategy": "steps" if evaluates else "no", "save_strategy": "steps", "data_seed": recipe.seed,
    }  # fmt: skip
    checkpointing = "activation_checkpointing" if "activation_checkpointing" in known else "gradient_checkpointing"
    given[checkpointing] = recipe.activation_checkpointing
    for name in _SAME_NAME:
        value = getattr(recipe, name)
        if name in known and value is not None:
            given[name] = value
    if recipe.early_stopping_patience is not None or recipe.load_best_model_at_end:
        given |= {
            "load_best_model_at_end": True,
            "metric_for_best_model": "eval_loss",
            "save_steps": given["eval_steps"],
        }
    if recipe.warmup_steps >= 1:
        given["warmup_steps"] = int(recipe.warmup_steps)
    if recipe.method == "grpo" and recipe.per_device_train_batch_size % recipe.num_generations:
        raise RecipeError(
            f"per_device_train_batch_size {recipe.per_device_train_batch_size} must be a multiple of num_generations "
            f"{recipe.num_generations}"
        )
    from lorawatch.settings import nearest  # noqa: PLC0415

    for name, value in recipe.training_arguments.items():
        if name not in known:
            raise RecipeError(f"training_arguments: {kind.__name__} has no field {name!r}{nearest(name, known)}")
        given[name] = value
    try:
        return kind(**given)
    except (TypeError, ValueError) as error:
        raise RecipeError(f"training arguments: {' '.join(str(error).split())[:300]}") from None


_SAME_NAME = (
    "lr_scheduler_type", "warmup_steps", "optim", "adam_beta1", "adam_beta2", "weight_decay", "max_grad_norm",
    "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "num_train_epochs",
    "max_steps", "max_length", "packing", "train_sampling_strategy", "beta", "loss_type", "label_smoothing",
    "num_generations", "max_completion_length", "temperature", "eval_steps", "eval_accumulation_steps", "save_steps",
    "save_total_limit", "save_only_model", "logging_steps", "logging_first_step", "logging_nan_inf_filter",
    "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor", "seed",
)  # fmt: skip
"""Fields of the recipe that the training arguments have under the same name."""


def _probes(recipe: Recipe, rows: Rows, tokenizer: Any) -> ProbeSet | None:
    """What to ask while it trains: beside prompts of the data, what the tiny base can do; None for another base."""
    if recipe.dataset != BUILTIN:
        return None
    general = tuple(
        Probe(
            probe["messages"][-1]["content"], "general", tuple(probe["messages"]), answer=probe["answer"],
            judge=partial(builtin_data.is_right, probe),
        )
        for probe in builtin_data.general_probes()
    )  # fmt: skip
    return ProbeSet(
        task_probes(rows.evaluation or rows.train, tokenizer), general, tuple(builtin_data.general_passages())
    )


def _reward(recipe: Recipe) -> Callable[..., list[float]]:
    """The reward: the built-in data's own score, or whether the reply holds the answer."""

    def text(completion: Any) -> str:
        return completion if isinstance(completion, str) else str(completion[-1]["content"])

    def reward(completions: list[Any], **columns: Any) -> list[float]:
        given = [{name: values[at] for name, values in columns.items() if isinstance(values, list) and len(values) == len(completions)} for at in range(len(completions))]  # fmt: skip  # noqa: E501
        if recipe.dataset == BUILTIN:
            return [builtin_data.score(text(one), row) for one, row in zip(completions, given, strict=True)]
        return [float(str(row["answer"]) in text(one)) for one, row in zip(completions, given, strict=True)]

    return reward


def _probe(trainer: Any, tokenizer: Any) -> dict[str, float]:
    """Share of right answers to the built-in probes, by kind."""
    shares = {}
    for kind, probes in (("task", builtin_data.task_probes()), ("general", builtin_data.general_probes())):
        replies = generate(
            trainer.model, tokenizer, [list(probe["messages"]) for probe in probes], max_new_tokens=PROBE_TOKENS
        )
        right = sum(builtin_data.is_right(probe, reply) for probe, reply in zip(probes, replies, strict=True))
        shares[kind] = right / len(probes)
    return shares


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise RecipeError(f"output_dir {folder}: cannot be made: {error.strerror}") from None


def _checkpoint(recipe: Recipe) -> str | None:
    if recipe.resume_from_checkpoint is None:
        return None
    if recipe.resume_from_checkpoint != "last":
        if not (Path(recipe.resume_from_checkpoint) / "trainer_state.json").is_file():
            raise RecipeError(f"resume_from_checkpoint {recipe.resume_from_checkpoint}: holds no trainer_state.json")
        return recipe.resume_from_checkpoint
    last = _last_checkpoint(recipe.output_dir)
    if last is None:
        raise RecipeError(f"resume_from_checkpoint: {recipe.output_dir} holds no checkpoint")
    return last


def _last_checkpoint(folder: str) -> str | None:
    if not Path(folder).is_dir():
        return None
    found: Any = trainer_utils  # untyped
    last = found.get_last_checkpoint(folder)
    return None if last is None else str(last)


def _opening(recipe: Recipe, trainer: Any, rows: Rows) -> str:
    trained, total = trainer.model.get_nb_trainable_parameters()
    return (
        f"{recipe.method} of {recipe.model} on {len(rows.train)} rows: {trained:,} of {total:,} parameters train "
        f"(r {recipe.r}, alpha {recipe.alpha}), learning rate {recipe.peak_rate:g}, into {recipe.output_dir}"
    )


__all__ = ["Outcome", "Row", "adapter", "arguments", "fine_tune", "misconfigured"]
