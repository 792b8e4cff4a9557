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
STEP_NAMES = (
    "step",
    "global_step",
    "current_steps",
    "train/global_step",
    "iter",
    "iteration",
    "iteration_num",
    "_step",
    "steps",
)
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
    re.findall(
        r"\S+",
        """
    _n_gpu activation_checkpointing activation_offloading adam_beta1 adam_beta2 adam_epsilon aligner_lr
    alpha_pattern assistant_only_loss auto_find_batch_size average_tokens_across_devices best_global_step
    best_metric best_model_checkpoint beta bf16 bf16_full_eval bias completion_only_loss cutoff_len
    data_seed dataloader_drop_last dataloader_num_workers dataloader_persistent_workers
    dataloader_pin_memory dataloader_prefetch_factor dataset ddp_backend ddp_find_unused_parameters
    deepspeed disable_tqdm do_eval do_train dtype early_stopping_patience embedding_learning_rate
    embedding_lr entropy_coef epsilon epsilon_high eval_accumulation_steps eval_delay eval_on_start
    eval_rows eval_steps eval_strategy evaluation_strategy exclude_modules finetuning_type fp16
    fp16_full_eval fp16_opt_level fsdp fsdp_config full_determinism gradient_accumulation_steps
    gradient_checkpointing greater_is_better group_by_length half_precision_backend hidden_size
    ignore_data_skip include_num_input_tokens_seen init_lora_weights intermediate_size label_pad_token_id
    label_smoothing label_smoothing_factor layers_pattern layers_to_transform learning_rate
    length_column_name load_best_model_at_end load_in_4bit load_in_8bit local_rank log_level
    logging_first_step logging_nan_inf_filter logging_steps logging_strategy lora_alpha lora_dropout
    lora_rank lora_target lorap_lr_ratio loraplus_lr_embedding loraplus_lr_ratio loss_type loss_weights lr
    lr_groups lr_scheduler_kwargs lr_scheduler_type mask_truncated_completions max_completion_length
    max_grad_norm max_length max_position_embeddings max_prompt_length max_samples max_seq_length max_steps
    metric_for_best_model micro_batch_size mm_projector_lr model_name_or_path model_type modules_to_save
    n_gpu neftune_noise_alpha no_cuda num_attention_heads num_generations num_hidden_layers num_iterations
    num_key_value_heads num_train_epochs optim optim_args output_dir packing packing_strategy padding_free
    peft_type peft_version per_device_eval_batch_size per_device_train_batch_size prediction_loss_only
    pref_beta pref_ftx pref_loss quantization_bit r rank_pattern reward_weights rpo_alpha run_name
    save_only_model save_steps save_strategy save_total_limit scale_rewards seed stage target_modules
    target_parameters task_type temperature template tf32 tie_word_embeddings torch_compile torch_dtype
    torch_empty_cache_steps torch_version total_parameters total_train_batch_size train_batch_size
    train_rows train_sampling_strategy trainable_dtype trainable_parameters trained_tokens_per_row
    trainer_class transformers_version trl_version use_cpu use_dora use_liger_kernel use_rslora use_vllm
    val_size vit_lr vllm_enable_sleep_mode vllm_gpu_memory_utilization vllm_importance_sampling_correction
    vllm_mode vocab_size warmup_ratio warmup_steps weight_decay world_size
    """,
    )
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
