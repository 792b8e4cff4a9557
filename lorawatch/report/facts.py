"""The set-up of a run in groups, as a reader looks for it."""

from __future__ import annotations

from dataclasses import dataclass

from lorawatch.run import Fact, Run
from lorawatch.version import __version__

MAX_FACTS = 400

_LORA = frozenset(
    {
        "r", "lora_alpha", "lora_dropout", "target_modules", "exclude_modules", "bias", "modules_to_save", "use_rslora",
        "use_dora", "init_lora_weights", "layers_to_transform", "layers_pattern", "rank_pattern", "alpha_pattern",
        "target_parameters", "peft_type", "finetuning_type", "trainable_parameters", "inference_mode",
        "fan_in_fan_out", "use_qalora", "lora_bias",
    }
)  # fmt: skip
_OPTIMISATION = frozenset(
    {
        "learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "optim_args", "weight_decay",
        "max_grad_norm", "max_steps", "num_train_epochs", "seed", "data_seed", "neftune_noise_alpha",
        "label_smoothing_factor", "loss_type", "beta", "epsilon", "epsilon_high", "num_generations", "temperature",
    }
)  # fmt: skip
_BATCH = frozenset(
    {
        "per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps",
        "total_train_batch_size", "train_batch_size", "auto_find_batch_size", "world_size", "dataset", "train_rows",
        "eval_rows", "max_samples", "val_size", "max_length", "max_seq_length", "max_prompt_length",
        "max_completion_length", "packing", "padding_free", "group_by_length", "train_sampling_strategy",
        "completion_only_loss", "assistant_only_loss", "template", "remove_unused_columns",
    }
)  # fmt: skip
_MODEL = frozenset(
    {
        "model_name_or_path", "base_model_name_or_path", "model_type", "hidden_size", "num_hidden_layers",
        "intermediate_size", "vocab_size", "task_type", "total_parameters", "num_attention_heads",
        "num_key_value_heads", "trainer_class", "tie_word_embeddings",
    }
)  # fmt: skip
_PRECISION = frozenset(
    {
        "bf16", "fp16", "tf32", "fp16_full_eval", "bf16_full_eval", "dtype", "torch_dtype", "gradient_checkpointing",
        "gradient_checkpointing_kwargs", "activation_checkpointing", "quantization", "load_in_4bit", "load_in_8bit",
        "use_liger_kernel", "attn_implementation", "torch_compile", "deepspeed", "fsdp",
    }
)  # fmt: skip
_STARTS = {
    "Optimisation": ("adam_", "warmup_", "lr_"),
    "Batch and data": ("dataset_", "dataloader_"),
    "Precision and memory": ("bnb_", "fsdp_", "torch_compile_"),
    "Evaluation, logging and saving": (
        "eval_", "evaluation_", "logging_", "save_", "load_best", "metric_for", "greater_is", "report_to", "output_dir",
    ),
}  # fmt: skip
GROUPS = (
    "LoRA", "Optimisation", "Batch and data", "Model", "Precision and memory", "Evaluation, logging and saving",
    "Other", "Versions",
)  # fmt: skip
_NAMES = {
    "LoRA": _LORA, "Optimisation": _OPTIMISATION, "Batch and data": _BATCH, "Model": _MODEL,
    "Precision and memory": _PRECISION,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class FactGroup:
    """Facts that belong together, by name.

    Attributes:
        title: Its heading.
        facts: Name and fact.
        left_out: Facts beyond :data:`MAX_FACTS` of all groups together.
    """

    title: str
    facts: list[tuple[str, Fact]]
    left_out: int = 0


def fact_groups(run: Run) -> list[FactGroup]:
    """The facts of a run by group and name; groups without any are left out."""
    found: dict[str, list[tuple[str, Fact]]] = {}
    for name, fact in sorted(run.facts.items()):
        found.setdefault(group_of(name), []).append((name, fact))
    left, groups = MAX_FACTS, []
    for title in GROUPS:
        facts = found.get(title, [])
        if facts:
            groups.append(FactGroup(title, facts[:left], max(len(facts) - left, 0)))
            left = max(left - len(facts), 0)
    return groups


def group_of(name: str) -> str:
    """The group that a fact belongs to."""
    if name.endswith("_version"):
        return "Versions"
    for group, names in _NAMES.items():
        if name in names:
            return group
    for group, starts in _STARTS.items():
        if name.startswith(starts):
            return group
    return "Other"


def versions(run: Run) -> dict[str, str]:
    """Version of lorawatch, and of each library of the run that is known."""
    known = {
        name.removesuffix("_version"): str(fact.value)
        for name, fact in sorted(run.facts.items())
        if name.endswith("_version") and fact.value is not None
    }
    return {"lorawatch": __version__, **dict(list(known.items())[:30])}
