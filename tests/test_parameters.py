"""What rules propose can be set: the name is a field of the run's libraries, the value is sane and new."""

from __future__ import annotations

import ast
import dataclasses
import inspect
import math
from collections.abc import Iterator
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import pytest

from lorawatch.engine import Engine
from lorawatch.findings import Adjustment
from lorawatch.parameters import spell_parameter
from lorawatch.records import FactUpdate
from lorawatch.registry import builtin_classes
from lorawatch.run import Run

from .rule_cases import Case, load_cases

ROOT = Path(__file__).parent.parent
CASES = [case for file in sorted((Path(__file__).parent / "rules").glob("*.toml")) for case in load_cases(file)]

TRANSFORMERS_4_46 = {
    "adam_beta2", "bf16", "eval_steps", "eval_strategy", "gradient_accumulation_steps", "gradient_checkpointing",
    "group_by_length", "ignore_data_skip", "learning_rate", "load_best_model_at_end", "logging_nan_inf_filter",
    "logging_steps", "max_grad_norm", "max_steps", "num_train_epochs", "per_device_eval_batch_size",
    "prediction_loss_only", "save_only_model", "warmup_ratio", "warmup_steps",
    "dataloader_num_workers", "dataloader_persistent_workers", "dataloader_prefetch_factor", "eval_accumulation_steps",
    "optim", "per_device_train_batch_size", "save_steps", "save_total_limit", "torch_compile",
    "torch_empty_cache_steps", "use_liger_kernel", "logging_first_step", "weight_decay",
}  # fmt: skip
"""Fields of transformers 4.46's TrainingArguments among those that rules speak of, read from its wheel."""
TRL_OF_ITS_TIME = {"max_seq_length", "packing", "beta", "label_smoothing", "loss_type"}
TRL_REINFORCEMENT = {
    "num_generations", "temperature", "max_completion_length", "mask_truncated_completions", "epsilon_high",
    "entropy_coef", "num_iterations", "reward_weights", "vllm_importance_sampling_correction",
}  # fmt: skip
"""Spoken of only where the run logs what TRL's GRPOTrainer logs, which had these fields since."""
BASE = {"load_in_4bit"}
"""How the base model is loaded: transformers' BitsAndBytesConfig."""
LORA = {"r", "lora_alpha", "lora_dropout", "bias", "target_modules", "modules_to_save", "use_rslora"}
AXOLOTL = {
    "adam_beta2", "bf16", "eval_batch_size", "eval_steps", "eval_strategy", "gradient_accumulation_steps",
    "gradient_checkpointing", "group_by_length", "learning_rate", "load_best_model_at_end", "logging_steps",
    "lora_alpha", "lora_dropout", "lora_r", "max_grad_norm", "max_steps", "micro_batch_size", "num_epochs",
    "save_only_model", "sequence_len", "warmup_ratio", "warmup_steps", "dataloader_num_workers",
    "dataloader_prefetch_factor", "load_in_4bit", "optimizer", "sample_packing", "save_steps", "save_total_limit",
    "torch_compile", "weight_decay", "lora_target_modules", "lora_modules_to_save", "peft_use_rslora", "rl_beta",
    "dpo_label_smoothing",
}  # fmt: skip
"""Fields of axolotl's AxolotlInputConfig among those that rules speak of, read from its schemas."""
ZERO = {"dataloader_num_workers", "lora_dropout"}
"""Parameters that 0 is a sane value of."""
LLAMAFACTORY = {
    "lora_rank", "lora_alpha", "lora_dropout", "cutoff_len", "packing", "quantization_bit", "enable_liger_kernel",
    "pref_beta", "dpo_label_smoothing", "lora_target", "additional_target", "use_rslora",
}  # fmt: skip
"""LLaMA-Factory's own fields; its training arguments are those of transformers."""


def installed(package: str) -> str | None:
    """The installed version of a package."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


FACTS: dict[str, dict[str, Any]] = {
    "nothing known": {},
    "a LoRA run": {
        "learning_rate": 2e-4, "r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "warmup_steps": 10, "max_steps": 2000,
        "gradient_accumulation_steps": 4, "per_device_train_batch_size": 2, "max_grad_norm": 1.0, "bf16": False,
        "num_train_epochs": 3, "eval_strategy": "steps", "eval_steps": 50, "logging_steps": 1, "adam_beta2": 0.999,
        "max_length": 1024, "assistant_only_loss": True, "completion_only_loss": True, "save_only_model": True,
        "per_device_eval_batch_size": 8, "load_best_model_at_end": False, "logging_nan_inf_filter": True,
    },
    "one as set as can be": {
        "learning_rate": 2e-3, "r": 128, "lora_alpha": 256, "lora_dropout": 0.1, "warmup_ratio": 0.2, "bf16": True,
        "gradient_accumulation_steps": 64, "max_grad_norm": 0.1, "num_train_epochs": 1, "adam_beta2": 0.95,
        "load_best_model_at_end": True, "save_only_model": False, "ignore_data_skip": False,
        "prediction_loss_only": True, "logging_nan_inf_filter": False, "eval_strategy": "epoch", "fp16": False,
    },
    "a rate far too high, in fp16": {"learning_rate": 5.0, "r": 8, "fp16": True, "bf16": False, "warmup_steps": 0},
    "a rate far too low": {"learning_rate": 1e-7, "r": 4, "lora_alpha": 4, "max_steps": 100, "warmup_steps": 0.03},
    "a rate of 0": {"learning_rate": 0.0, "num_train_epochs": 0.5, "eval_steps": 0.1, "max_length": 8},
}  # fmt: skip
LIBRARIES: dict[str, dict[str, Any]] = {
    "installed": {"transformers_version": installed("transformers"), "trl_version": installed("trl")},
    "transformers 4.46": {"transformers_version": "4.46.3", "trl_version": "0.12.1"},
    "axolotl": {"framework": "axolotl"},
    "llamafactory": {"framework": "llamafactory", "transformers_version": "4.46.3"},
}


@cache
def fields(library: str) -> frozenset[str]:
    """What can be set there."""
    if library == "axolotl":
        return frozenset(AXOLOTL)
    if library == "llamafactory":
        return frozenset(LLAMAFACTORY | TRANSFORMERS_4_46)
    if library == "transformers 4.46":
        return frozenset(
            TRANSFORMERS_4_46
            | TRL_OF_ITS_TIME
            | TRL_REINFORCEMENT
            | LORA
            | BASE
            | {"assistant_only_loss", "completion_only_loss"}
        )
    transformers, trl, peft = (pytest.importorskip(name) for name in ("transformers", "trl", "peft"))
    assert set(inspect.signature(transformers.BitsAndBytesConfig).parameters) >= BASE
    known = (transformers.TrainingArguments, trl.SFTConfig, trl.DPOConfig, trl.GRPOConfig, peft.LoraConfig)
    return frozenset(BASE | {field.name for one in known for field in dataclasses.fields(one)})


def advice(case: Case, facts: dict[str, Any]) -> Iterator[tuple[Adjustment, Run]]:
    """What all rules propose on the records of one rule's case."""
    run = Run("advised")
    engine = Engine(run, [rule() for rule in builtin_classes()])
    told: list[Adjustment] = []
    engine.listeners.append(lambda _, finding: told.extend(finding.adjustments))
    engine.feed(FactUpdate(facts, "test"))
    for record in case.all_records():
        engine.feed(FactUpdate(record.values | facts, "test") if isinstance(record, FactUpdate) else record)
    engine.renew_advice()
    assert engine.rule_errors == {}
    for finding in engine.findings:
        told.extend(finding.adjustments)
    yield from ((one, run) for one in told)


@pytest.mark.parametrize("library", LIBRARIES)
@pytest.mark.parametrize("known", FACTS)
def test_each_proposal_can_be_set_and_changes_something(known: str, library: str) -> None:
    names: set[str] = set()
    for case in CASES:
        for one, run in advice(case, FACTS[known] | LIBRARIES[library]):
            where = f"{case}: {one}"
            if not one.parameter:
                assert isinstance(one.proposed, str), where
                continue
            names.add(one.parameter)
            assert one.parameter in fields(library), where
            assert one.proposed != one.current, where
            assert one.why, where
            if isinstance(one.proposed, bool) or not isinstance(one.proposed, int | float):
                continue
            assert math.isfinite(one.proposed), where
            # Without workers the trainer loads the data itself, and no dropout is PEFT's default: settings like others.
            assert one.proposed >= 0 if one.parameter in ZERO else one.proposed > 0, where
            if one.parameter == "learning_rate" and one.direction == "up":
                assert one.proposed <= 2e-3, where
            if one.parameter == "learning_rate" and run.fact("r") is not None and one.direction == "down":
                assert one.proposed <= 2e-3, where
            if isinstance(one.current, int | float) and one.direction in ("up", "down"):
                assert (one.proposed > one.current) == (one.direction == "up"), where
    assert len(names) > 5


def test_each_name_that_a_rule_can_propose_is_a_field_of_the_installed_libraries() -> None:
    names: set[str] = set()
    shared = (ROOT / "lorawatch" / name for name in ("remedies.py", "memory_remedies.py", "data_wait.py"))
    for file in [*(ROOT / "rules").glob("*.py"), *shared]:
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Adjustment":
                name = node.args[0] if node.args else None
                assert isinstance(name, ast.Constant), f"{file.name}:{node.lineno}: name it first, as a literal"
                names.add(str(name.value))
    assert len(names) > 15
    assert names - {""} <= fields("installed")
    old = Run("old")
    old.learn(FactUpdate({"transformers_version": "4.46.3", "trl_version": "0.12.1"}, "test"))
    newer = {"vllm_gpu_memory_utilization", "loss_weights"} | TRL_REINFORCEMENT  # spoken of where the run has them
    assert {spell_parameter(name, 1, old)[0] for name in names - newer} - {""} <= fields("transformers 4.46")


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({"transformers_version": "5.2.0"}, ("warmup_steps", 0.05)),
        ({"transformers_version": "5.2.0", "max_steps": 400, "warmup_steps": 4}, ("warmup_steps", 20)),
        ({"transformers_version": "4.46.3"}, ("warmup_ratio", 0.05)),
        ({"transformers_version": "4.46.3", "warmup_ratio": 0.01, "max_steps": 400}, ("warmup_ratio", 0.05)),
        # Stated steps win over a ratio, which would then change nothing.
        ({"transformers_version": "4.46.3", "warmup_steps": 4, "max_steps": 400}, ("warmup_steps", 20)),
        ({"transformers_version": "4.46.3", "warmup_steps": 4}, ("warmup_steps", "5 % of the run's steps")),
        ({"framework": "axolotl", "transformers_version": "5.2.0"}, ("warmup_ratio", 0.05)),
    ],
)
def test_a_warm_up_is_proposed_in_the_runs_own_unit(facts: dict[str, Any], expected: tuple[str, Any]) -> None:
    run = Run("warm")
    run.learn(FactUpdate(facts, "test"))
    assert spell_parameter("warmup_steps", 0.05, run) == expected


@pytest.mark.parametrize(
    ("version", "expected"),
    [("4.40.2", "evaluation_strategy"), ("4.46.3", "eval_strategy"), ("5.2.0", "eval_strategy")],
)
def test_the_evaluation_strategy_has_had_another_name(version: str, expected: str) -> None:
    run = Run("old")
    run.learn(FactUpdate({"transformers_version": version}, "test"))
    assert spell_parameter("eval_strategy", "steps", run) == (expected, "steps")
