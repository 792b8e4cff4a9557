"""What a Hugging Face Trainer's callback can see of a run's set-up, as plain JSON values.

Reads attributes only: nothing here touches a device, loads a library or changes what it looks at.
"""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Iterable, Sized
from enum import Enum
from importlib import metadata
from typing import Any

ARGUMENTS = (
    "learning_rate", "num_train_epochs", "per_device_train_batch_size", "per_device_eval_batch_size",
    "gradient_accumulation_steps", "warmup_steps", "warmup_ratio", "lr_scheduler_type", "weight_decay",
    "max_grad_norm", "adam_beta1", "adam_beta2", "adam_epsilon", "optim", "fp16", "bf16", "tf32",
    "seed", "data_seed", "full_determinism",
    "logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter",
    "eval_strategy", "eval_steps", "eval_delay", "save_strategy", "save_steps", "save_total_limit",
    "load_best_model_at_end", "metric_for_best_model", "greater_is_better",
    "gradient_checkpointing", "activation_checkpointing", "group_by_length", "train_sampling_strategy",
    "loraplus_lr_ratio", "loraplus_lr_embedding", "embedding_learning_rate",
    "neftune_noise_alpha", "label_smoothing_factor", "use_liger_kernel", "torch_compile", "ddp_find_unused_parameters",
    "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor", "dataloader_pin_memory",
    "dataloader_drop_last", "save_only_model", "torch_empty_cache_steps", "auto_find_batch_size",
    "eval_accumulation_steps", "deepspeed", "fsdp", "activation_offloading",
    "use_vllm", "vllm_mode", "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode",
    "average_tokens_across_devices", "include_num_input_tokens_seen",
    "max_length", "max_seq_length", "max_prompt_length", "max_completion_length", "packing", "padding_free",
    "packing_strategy", "completion_only_loss", "assistant_only_loss", "beta", "loss_type", "loss_weights",
    "label_smoothing", "num_generations", "num_iterations", "temperature", "epsilon", "epsilon_high", "scale_rewards",
    "reward_weights", "entropy_coef", "mask_truncated_completions", "vllm_importance_sampling_correction",
    "world_size",
)  # fmt: skip
"""Fields of ``TrainingArguments`` and of TRL's configs that are kept, where the installed version has them."""

ADAPTER = (
    "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "modules_to_save", "use_rslora", "use_dora",
    "init_lora_weights", "layers_to_transform", "layers_pattern", "exclude_modules", "target_parameters", "task_type",
    "peft_type",
)  # fmt: skip
"""Fields of ``LoraConfig`` that are kept."""

MODEL = ("model_type", "vocab_size", "hidden_size", "num_hidden_layers", "tie_word_embeddings")
"""Fields of the model's configuration that are kept; of its text part, for a model of several parts."""

LIBRARIES = ("transformers", "peft", "trl", "torch", "accelerate", "datasets")

TRAINERS = {
    "SFTConfig": "SFTTrainer",
    "DPOConfig": "DPOTrainer",
    "ORPOConfig": "ORPOTrainer",
    "CPOConfig": "CPOTrainer",
    "KTOConfig": "KTOTrainer",
    "GRPOConfig": "GRPOTrainer",
    "RLOOConfig": "RLOOTrainer",
    "RewardConfig": "RewardTrainer",
    "Seq2SeqTrainingArguments": "Seq2SeqTrainer",
}
"""Class of the arguments to the trainer that takes them: a callback is never handed its trainer."""

MAX_ITEMS = 256
"""Items kept of a list, such as the target modules of a model that names each layer."""
MAX_TEXT = 300
"""Characters kept of a text."""


def collect(args: Any, state: Any, model: Any, train_dataloader: Any) -> dict[str, Any]:
    """Facts of a run at the beginning of training.

    Args:
        args: ``TrainingArguments`` or a subclass.
        state: ``TrainerState``, which knows how many steps the run takes and how often it logs.
        model: The model as the Trainer holds it, or None.
        train_dataloader: The training data, or None.

    Returns:
        Fact name to number, bool, text or list of these. What is None, not finite or not plain is left out.
    """
    facts = _fields(args, ARGUMENTS)
    for name in ("logging_steps", "eval_steps", "save_steps"):
        # The state has resolved a fraction of the run to steps; the arguments still hold the fraction.
        if isinstance(resolved := getattr(state, name, None), int) and resolved > 0 and name in facts:
            facts[name] = resolved
    if isinstance(steps := getattr(state, "max_steps", None), int) and steps > 0:
        facts["max_steps"] = steps
    if "max_seq_length" in facts:  # TRL before 0.16
        facts.setdefault("max_length", facts.pop("max_seq_length"))
    facts["trainer_class"] = trainer_class(args)
    facts |= _model_facts(model)
    rows = _length(getattr(train_dataloader, "dataset", None))
    if rows is not None:
        facts["train_rows"] = rows
    facts |= _versions()
    return facts


def trainer_class(args: Any) -> str:
    """Name of the trainer that takes arguments of this class; ``Trainer`` when it is none of the known ones."""
    for one in type(args).__mro__:
        if one.__name__ in TRAINERS:
            return TRAINERS[one.__name__]
    return "Trainer"


def plain(value: Any) -> Any:
    """``value`` as JSON holds it: a number, bool, text or list; None for anything else."""
    if isinstance(value, Enum):
        value = value.value
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value[:MAX_TEXT].encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, set | frozenset):
        value = sorted(value, key=str)
    if isinstance(value, list | tuple):
        items = [plain(item) for item in value[:MAX_ITEMS]]
        return None if any(item is None for item in items) else items
    return None


def _fields(source: Any, names: Iterable[str]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name in names:
        value = plain(getattr(source, name, None))
        if value is not None:
            found[name] = value
    return found


def _model_facts(model: Any) -> dict[str, Any]:
    if model is None:
        return {}
    config = getattr(model, "config", None)
    facts = _fields(getattr(config, "text_config", None) or config, MODEL)
    for name, attribute in (("load_in_4bit", "is_loaded_in_4bit"), ("load_in_8bit", "is_loaded_in_8bit")):
        if getattr(model, attribute, False) is True:
            facts[name] = True
    base = getattr(config, "_name_or_path", None)
    adapter = _adapter(model)
    if adapter is not None:
        facts |= _fields(adapter, ADAPTER)
        base = getattr(adapter, "base_model_name_or_path", None) or base
    if isinstance(base, str) and base:
        facts["model_name_or_path"] = plain(base)
    counts = _parameters(model)
    if counts is not None:
        facts["trainable_parameters"], facts["total_parameters"] = counts
    dtype = _trainable_dtype(model)
    if dtype:
        facts["trainable_dtype"] = dtype
    return facts


def _adapter(model: Any) -> Any:
    """Configuration of the adapter that is trained; None for a model without one."""
    configs = getattr(model, "peft_config", None)
    if not isinstance(configs, dict) or not configs:
        return None
    active = getattr(model, "active_adapter", None)
    name = active if isinstance(active, str) and active in configs else next(iter(configs))
    return configs[name]


def _parameters(model: Any) -> tuple[int, int] | None:
    """Trainable and all parameters. PEFT's own count knows packed 4-bit weights and partitioned ones."""
    count: Any = getattr(model, "get_nb_trainable_parameters", None)
    if count is not None:
        trainable, total = count()
        return int(trainable), int(total)
    if not hasattr(model, "parameters"):
        return None
    trainable = total = 0
    for parameter in model.parameters():
        size = int(getattr(parameter, "ds_numel", 0) or parameter.numel())
        total += size
        trainable += size if parameter.requires_grad else 0
    return trainable, total


def _trainable_dtype(model: Any) -> str:
    """The type of the parameters that are trained: ``bfloat16``; ``mixed`` where they differ, "" where none is."""
    if not hasattr(model, "parameters"):
        return ""
    found = {str(one.dtype).removeprefix("torch.") for one in model.parameters() if one.requires_grad}
    return "mixed" if len(found) > 1 else next(iter(found), "")


def _length(dataset: Any) -> int | None:
    if isinstance(dataset, Sized):
        with contextlib.suppress(Exception):  # a user's own data set may declare a length that it does not know
            return len(dataset)
    return None


def _versions() -> dict[str, str]:
    """Versions of the libraries that this process has loaded."""
    found: dict[str, str] = {}
    for name in LIBRARIES:
        if name in sys.modules:
            with contextlib.suppress(metadata.PackageNotFoundError):
                found[f"{name}_version"] = metadata.version(name)
    return found
