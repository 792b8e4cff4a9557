"""Real, tiny runs of TRL's trainers that are watched from inside."""

# ruff: noqa: E402  (what is imported below needs what the tests are skipped for)

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest

for needed in ("torch", "transformers", "peft", "datasets", "trl"):
    pytest.importorskip(needed, reason=f"real training runs need {needed}: pip install 'lorawatch[train]'")

from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from lorawatch import LoraWatchCallback
from lorawatch.run import Kind

from . import lab


def trained(trainer: type[Any], watch: LoraWatchCallback, args: Any, **given: Any) -> Any:
    """Train with one of TRL's trainers, which took the tokenizer by another name before 0.12."""
    name = "processing_class" if "processing_class" in inspect.signature(trainer.__init__).parameters else "tokenizer"
    made = trainer(args=args, callbacks=[watch], **{name: lab.tokenizer()}, **given)
    made.train()
    return made


def test_sft_with_accumulation_and_evaluation(tmp_path: Path) -> None:
    watch = LoraWatchCallback(quiet=True)
    args = lab.arguments(
        tmp_path, SFTConfig, max_steps=10, gradient_accumulation_steps=2, eval_strategy="steps", eval_steps=5,
        max_length=32, dataset_text_field="text",
    )  # fmt: skip
    trained(
        SFTTrainer, watch, args, model=lab.base_model(layers=1, hidden=32), peft_config=lab.lora(),
        train_dataset=lab.texts(64), eval_dataset=lab.texts(8, draw=1),
    )  # fmt: skip
    assert watch.engine is not None
    run = watch.engine.run
    assert run.kind is Kind.SFT
    assert run.fact("trainer_class") == "SFTTrainer"
    assert run.fact("max_length") == 32
    assert run.fact("trl_version")
    assert (run.points("loss"), run.points("eval_loss")) == (10, 2)
    assert not watch.engine.rule_errors


def test_dpo_is_told_apart(tmp_path: Path) -> None:
    watch = LoraWatchCallback(quiet=True)
    args = lab.arguments(tmp_path, DPOConfig, max_steps=6, max_length=32, beta=0.2, learning_rate=1e-4)
    trained(
        DPOTrainer, watch, args, model=lab.base_model(layers=1, hidden=32), peft_config=lab.lora(),
        train_dataset=lab.preferences(32),
    )  # fmt: skip
    assert watch.engine is not None
    assert watch.engine.run.kind is Kind.DPO
    assert watch.engine.run.fact("beta") == 0.2
    assert watch.engine.run.points("rewards/margins") == 6
    assert not watch.engine.rule_errors


def test_grpo_is_told_apart(tmp_path: Path) -> None:
    grpo = pytest.importorskip("trl.trainer.grpo_trainer", reason="TRL has GRPO from 0.14 on")
    config = pytest.importorskip("trl.trainer.grpo_config", reason="TRL has GRPO from 0.14 on")
    watch = LoraWatchCallback(quiet=True)
    args = lab.arguments(
        tmp_path, config.GRPOConfig, max_steps=3, num_generations=2, max_completion_length=4, learning_rate=1e-4
    )
    trained(
        grpo.GRPOTrainer, watch, args, model=lab.base_model(layers=1, hidden=32), peft_config=lab.lora(),
        train_dataset=lab.preferences(16).select_columns(["prompt"]),
        reward_funcs=lambda completions, **_: [float(len(set(text.split()))) for text in completions],
    )  # fmt: skip
    assert watch.engine is not None
    run = watch.engine.run
    assert run.kind is Kind.GRPO
    assert run.fact("num_generations") == 2
    assert run.points("reward") == 3
    assert not watch.engine.rule_errors
