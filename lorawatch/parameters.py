"""Names of parameters as the libraries of a run spell them.

Rules speak the newest transformers, TRL and PEFT names. A run may use others: transformers 4.x, LLaMA-Factory,
axolotl. The run says which, by its facts (``transformers_version``, ``framework``); what it does not say is taken
from what is installed beside lorawatch, and failing that the newest names stand.
"""

from __future__ import annotations

import re
from functools import cache
from importlib import metadata
from typing import Any

from lorawatch.run import Kind, Run

Version = tuple[int, ...]
NEWEST: Version = (9999,)

_LLAMAFACTORY = {
    "r": "lora_rank",
    "target_modules": "lora_target",
    "modules_to_save": "additional_target",
    "max_length": "cutoff_len",
    "loss_type": "pref_loss",
    "beta": "pref_beta",
    "label_smoothing": "dpo_label_smoothing",
    "use_rslora": "use_rslora",
    "use_liger_kernel": "enable_liger_kernel",
}
"""LLaMA-Factory's names (its ``hparams`` package); training arguments are those of transformers."""

_AXOLOTL = {
    "r": "lora_r",
    "target_modules": "lora_target_modules",
    "modules_to_save": "lora_modules_to_save",
    "beta": "rl_beta",
    "use_rslora": "peft_use_rslora",
    "per_device_train_batch_size": "micro_batch_size",
    "num_train_epochs": "num_epochs",
    "optim": "optimizer",
    "lr_scheduler_type": "lr_scheduler",
    "max_length": "sequence_len",
    "packing": "sample_packing",
    "label_smoothing": "dpo_label_smoothing",
    "activation_checkpointing": "gradient_checkpointing",
    "eval_strategy": "eval_strategy",
    "per_device_eval_batch_size": "eval_batch_size",
}
"""Axolotl's names (its configuration reference)."""

_TRL_MASKS = {"assistant_only_loss", "completion_only_loss"}
_TRL_PACKING = {"padding_free", "packing_strategy"}
_TRL_REINFORCEMENT = {
    "num_generations", "temperature", "max_completion_length", "mask_truncated_completions", "epsilon_high",
    "entropy_coef", "num_iterations", "reward_weights", "vllm_importance_sampling_correction",
}  # fmt: skip
_LACKS = {
    "axolotl": {
        "logging_nan_inf_filter", "ignore_data_skip", "prediction_loss_only", "dataloader_persistent_workers",
        "torch_empty_cache_steps", "use_liger_kernel", "eval_accumulation_steps", "vllm_gpu_memory_utilization",
        "bias", "logging_first_step",
        *_TRL_MASKS, *_TRL_PACKING, *_TRL_REINFORCEMENT,
    },
    "llamafactory": {"activation_checkpointing", "bias", *_TRL_MASKS, *_TRL_PACKING, *_TRL_REINFORCEMENT},
}  # fmt: skip
"""Parameters that a framework's own configuration has no field for (its pydantic schemas, its ``hparams``).

Axolotl takes Liger's kernels as a plugin, and what GRPO needs in a section of its own (``trl``); LLaMA-Factory
checkpoints activations unless told not to, and does not train by GRPO.
"""


def parse_version(text: str) -> Version:
    """The leading numbers of a version: ``"5.2.0.dev0"`` is ``(5, 2, 0)``. Empty when there are none."""
    found = re.match(r"\d+(?:\.\d+)*", text)
    return tuple(int(part) for part in found.group().split(".")) if found else ()


@cache
def installed_version(package: str) -> Version:
    """Version of an installed package, told from its metadata without importing it; NEWEST when it is absent."""
    try:
        return parse_version(metadata.version(package)) or NEWEST
    except metadata.PackageNotFoundError:
        return NEWEST


def library_version(run: Run, package: str) -> Version:
    """Version of ``package`` that the run says it used, or else the installed one."""
    stated = run.fact(f"{package}_version")
    return (parse_version(str(stated)) if stated is not None else ()) or installed_version(package)


def settable(name: str, run: Run) -> bool:
    """Whether the run's framework has a field for the parameter, by its newest name."""
    framework = str(run.fact("framework", "")).lower()
    if name == "beta" and framework == "axolotl":
        return run.kind in (Kind.DPO, Kind.KTO)  # GRPO's stands in a section of its own, ORPO's has another name
    return name not in _LACKS.get(framework, ())


def spell_parameter(name: str, value: Any, run: Run) -> tuple[str, Any]:
    """``name`` and ``value`` as the run's own libraries spell them.

    Args:
        name: A parameter in its newest name; ``""`` stays as it is.
        value: The value proposed, which changes with the name where the older parameter means it differently.
        run: The run whose facts tell the versions and the framework.
    """
    framework = str(run.fact("framework", "")).lower()
    transformers = library_version(run, "transformers")
    if name == "train_sampling_strategy" and (transformers < (5, 2) or framework == "axolotl"):
        name, value = "group_by_length", value == "group_by_length"
    elif name == "warmup_steps" and isinstance(value, float) and 0 < value < 1:
        name, value = _warmup(value, run, ratio=transformers < (5,) or framework == "axolotl")
    elif name == "eval_strategy" and transformers < (4, 41):
        name = "evaluation_strategy"
    elif name == "activation_checkpointing" and transformers < (5, 23):
        name = "gradient_checkpointing"
    elif name == "max_length" and not framework and library_version(run, "trl") < (0, 16):
        name = "max_seq_length"
    if framework == "llamafactory" and name == "load_in_4bit":
        return "quantization_bit", 4 if value is True else value
    if name == "pad_token" and (framework or library_version(run, "trl") < (0, 17)):
        return "", f"pad_token of the tokenizer: {value}"  # no field of the trainer's
    if framework == "llamafactory" and name == "target_modules" and value == "all-linear":
        value = "all"
    if framework == "axolotl":
        name = _AXOLOTL.get(name, name)
    elif framework == "llamafactory":
        name = _LLAMAFACTORY.get(name, name)
    return name, value


def _warmup(share: float, run: Run, *, ratio: bool) -> tuple[str, Any]:
    """A warm-up over ``share`` of the run. ``ratio``: its libraries know ``warmup_ratio``, and whole steps only."""
    stated, total = run.number("warmup_steps") or 0.0, run.max_steps
    if ratio and not stated > 0:  # stated steps win over a ratio, which would then change nothing
        return "warmup_ratio", share
    if total:
        return "warmup_steps", max(round(share * total), 1)
    return "warmup_steps", f"{100 * share:g} % of the run's steps" if ratio else share
