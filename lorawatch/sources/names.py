"""The one table of names: how other writers spell what Hugging Face's Trainer and PEFT name."""

from __future__ import annotations

import math
import re
from typing import Any

_METRICS = {
    "train_loss": "loss",
    "train/loss": "loss",
    "train loss": "loss",
    "training_loss": "loss",
    "training loss": "loss",
    "train.loss": "loss",
    "loss/train": "loss",
    "val_loss": "eval_loss",
    "valid_loss": "eval_loss",
    "validation_loss": "eval_loss",
    "val/loss": "eval_loss",
    "valid/loss": "eval_loss",
    "validation/loss": "eval_loss",
    "loss/val": "eval_loss",
    "loss/eval": "eval_loss",
    "val loss": "eval_loss",
    "valid loss": "eval_loss",
    "validation loss": "eval_loss",
    "eval loss": "eval_loss",
    "eval/loss": "eval_loss",
    "test_loss": "test_loss",
    "lr": "learning_rate",
    "learning rate": "learning_rate",
    "train/lr": "learning_rate",
    "train_lr": "learning_rate",
    "lr-adamw": "learning_rate",
    "gradnorm": "grad_norm",
    "grad norm": "grad_norm",
    "gradient_norm": "grad_norm",
    "train_grad_norm": "grad_norm",
    "valid accuracy": "eval_accuracy",
    "val_acc": "eval_accuracy",
    "val_accuracy": "eval_accuracy",
    "valid_accuracy": "eval_accuracy",
    "valid/accuracy": "eval_accuracy",
    "accuracy/val": "eval_accuracy",
}
STEP_NAMES = ("step", "global_step", "current_steps", "train/global_step", "iter", "iteration", "iteration_num", "_step", "steps")
EPOCH_NAMES = ("epoch", "train/epoch", "epochs")
TIME_NAMES = ("timestamp", "_timestamp", "time", "wall_time", "unix_time")
_CAPITALS = re.compile(r"[A-Z]")
_SPELLINGS: dict[str, str] = {}


def metric_name(name: str) -> str:
    """Return the Trainer's name of a metric; the name itself when it is none of the known spellings."""
    known = _SPELLINGS.get(name)
    if known is None:
        known = _metric_name(name)
        if len(_SPELLINGS) < 4_096:  # names come from a log: the memory for them has to end
            _SPELLINGS[name] = known
    return known


def _metric_name(name: str) -> str:
    lower = name.lower() if _CAPITALS.search(name) else name
    if lower in _METRICS:
        return _METRICS[lower]
    if lower in {"loss", "eval_loss", "learning_rate", "grad_norm"}:
        return lower
    for prefix, short in (("train/", ""), ("eval/", "eval_"), ("validation/", "eval_"), ("val/", "eval_")):
        if name.startswith(prefix):
            return short + name[len(prefix) :]
    return name


FACT_ALIASES = {
    "lr": "learning_rate",
    "lora_rank": "r",
    "lora_r": "r",
    "rank": "r",
    "lora_target": "target_modules",
    "lora_target_modules": "target_modules",
    "use_dora": "use_dora",
    "micro_batch_size": "per_device_train_batch_size",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "batch_size": "per_device_train_batch_size",
    "gradient_accumulation": "gradient_accumulation_steps",
    "grad_accumulation_steps": "gradient_accumulation_steps",
    "cutoff_len": "max_length",
    "max_seq_length": "max_length",
    "sequence_len": "max_length",
    "num_epochs": "num_train_epochs",
    "epochs": "num_train_epochs",
    "lr_scheduler": "lr_scheduler_type",
    "evaluation_strategy": "eval_strategy",
    "optimizer": "optim",
    "base_model": "model_name_or_path",
    "base_model_name_or_path": "model_name_or_path",
    "model_name": "model_name_or_path",
    "model_id": "model_name_or_path",
    "grad_norm_clip": "max_grad_norm",
    "pref_beta": "beta",
    "val_set_size": "val_size",
}
"""Spelling in another tool's configuration to the field's name in TrainingArguments or LoraConfig."""

FACT_NAMES = frozenset(
    """
    adam_beta1 adam_beta2 adam_epsilon auto_find_batch_size average_tokens_across_devices bf16 bf16_full_eval
    completion_only_loss assistant_only_loss data_seed dataloader_drop_last dataloader_num_workers ddp_backend
    ddp_find_unused_parameters deepspeed disable_tqdm do_eval do_train early_stopping_patience eval_accumulation_steps
    eval_delay eval_on_start eval_steps eval_strategy evaluation_strategy fp16 fp16_full_eval fp16_opt_level fsdp
    full_determinism gradient_accumulation_steps gradient_checkpointing group_by_length half_precision_backend
    include_num_input_tokens_seen label_smoothing_factor learning_rate length_column_name load_best_model_at_end
    local_rank log_level logging_first_step logging_nan_inf_filter logging_steps logging_strategy lr_scheduler_kwargs
    lr_scheduler_type max_grad_norm max_steps metric_for_best_model greater_is_better neftune_noise_alpha no_cuda
    num_train_epochs optim optim_args output_dir per_device_eval_batch_size per_device_train_batch_size run_name
    save_steps save_strategy save_total_limit seed tf32 torch_compile train_batch_size use_cpu use_liger_kernel
    warmup_ratio warmup_steps weight_decay world_size packing max_seq_length max_length max_prompt_length
    max_completion_length num_generations beta loss_type epsilon scale_rewards label_pad_token_id padding_free
    r lora_alpha lora_dropout target_modules modules_to_save bias use_rslora use_dora init_lora_weights rank_pattern
    alpha_pattern layers_to_transform task_type peft_type peft_version trl_version transformers_version trainer_class
    vocab_size train_rows eval_rows lora_rank lora_target lr cutoff_len micro_batch_size n_gpu _n_gpu
    total_train_batch_size trainable_parameters total_parameters model_name_or_path finetuning_type stage
    quantization_bit load_in_4bit load_in_8bit template dataset torch_dtype dtype model_type hidden_size
    num_hidden_layers num_attention_heads num_key_value_heads intermediate_size tie_word_embeddings
    max_position_embeddings best_metric best_model_checkpoint best_global_step max_samples val_size
    """.split()
)
"""Names that are believed when a log or a file states them."""


def scalar(text: str) -> Any:
    """Read a printed argument: number, bool, None, or the words themselves without their quotes."""
    text = text.strip()
    lower = text.lower()
    if lower in {"none", "null", "~", ""}:
        return None
    if lower in {"true", "false"}:
        return lower == "true"
    try:
        return int(text)
    except ValueError:
        pass
    try:
        value = float(text)
    except ValueError:
        return text.strip("'\"")[:300]
    return value if math.isfinite(value) else text
