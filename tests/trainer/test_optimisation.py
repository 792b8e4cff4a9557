"""What the faults of optimisation do to the recipe, the trainer and a checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorawatch.findings import Severity
from lorawatch.trainer.faults import optimisation
from lorawatch.trainer.faults.contract import Fault
from lorawatch.trainer.faults.optimisation import (
    AccumulationLossScale,
    AlphaAbsurd,
    AlwaysClipped,
    BatchTooSmall,
    DropoutExtreme,
    LearningRateTooHigh,
    LearningRateTooLow,
    LearningRateZero,
    ResumeWithoutOptimizer,
    ScheduleEndedEarly,
    WarmUpTooLong,
)
from lorawatch.trainer.recipe import Amount, Recipe, recipe_of

AMOUNTS: tuple[Amount, ...] = ("plain", "subtle")
KINDS = [
    one for one in vars(optimisation).values() if isinstance(one, type) and issubclass(one, Fault) and one is not Fault
]


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of({"max_steps": 200, "output_dir": str(tmp_path)}, "test")


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_either_the_recipe_holds_the_mistake_or_a_remedy_names_it(
    kind: type[Fault], amount: Amount, recipe: Recipe
) -> None:
    fault = kind(amount)
    assert fault.misconfigure(recipe) != recipe or fault.remedy
    assert fault.misconfigure(fault.misconfigure(recipe)).plain(), "it can be changed and checked again"
    for one in fault.expected(fault.misconfigure(recipe)):
        assert one.rules
        assert 0 <= one.from_step < 200
        assert Severity.INFO <= one.least <= Severity.CRITICAL


@pytest.mark.parametrize(
    ("kind", "name", "up"),
    [
        (LearningRateTooHigh, "peak_rate", True),
        (LearningRateTooLow, "peak_rate", False),
        (WarmUpTooLong, "warmup_steps", True),
        (AlwaysClipped, "max_grad_norm", False),
        (BatchTooSmall, "per_device_train_batch_size", False),
        (AlphaAbsurd, "alpha", True),
        (DropoutExtreme, "lora_dropout", True),
    ],
)
def test_the_subtle_amount_lies_between_the_right_value_and_the_plain_one(
    kind: type[Fault], name: str, up: bool, recipe: Recipe
) -> None:
    right, subtle, plain = (
        float(getattr(one, name))
        for one in (recipe, kind("subtle").misconfigure(recipe), kind("plain").misconfigure(recipe))
    )
    assert right < subtle < plain if up else right > subtle > plain


def test_no_rate_is_none_at_all_or_one_that_its_warm_up_never_reaches(recipe: Recipe) -> None:
    assert LearningRateZero().misconfigure(recipe).learning_rate == 0.0
    subtle = LearningRateZero("subtle").misconfigure(recipe)
    assert subtle.peak_rate == recipe.peak_rate
    assert subtle.warmup_steps > 10 * recipe.max_steps


@pytest.mark.parametrize("amount", AMOUNTS)
def test_the_scheduler_is_made_for_a_part_of_the_steps(amount: Amount, recipe: Recipe) -> None:
    asked: list[int] = []

    class Trainer:
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> str:
            asked.append(num_training_steps)
            return "scheduler"

    trainer, fault = Trainer(), ScheduleEndedEarly(amount)
    fault.trainer(trainer, recipe)
    assert trainer.create_scheduler(num_training_steps=200) == "scheduler"
    assert asked == [fault.expected(recipe)[0].from_step]


@pytest.mark.parametrize(("amount", "steps"), [("plain", 4), ("subtle", 2)])
def test_accumulation_keeps_the_effective_batch_and_loses_the_count_of_tokens(
    amount: Amount, steps: int, recipe: Recipe
) -> None:
    fault = AccumulationLossScale(amount)
    prepared = fault.prepare(recipe)
    assert prepared.gradient_accumulation_steps == steps
    assert steps * prepared.per_device_train_batch_size == recipe.per_device_train_batch_size
    seen: list[Any] = []

    class Trainer:
        def compute_loss(
            self, model: Any, inputs: Any, return_outputs: bool = False, num_items_in_batch: Any = None
        ) -> float:
            seen.append(num_items_in_batch)
            return 1.0

    trainer = Trainer()
    fault.trainer(trainer, prepared)
    assert trainer.compute_loss("model", {}, num_items_in_batch=64) == 1.0
    assert seen == [None]


def test_a_resume_finds_no_optimizer(recipe: Recipe, tmp_path: Path) -> None:
    assert ResumeWithoutOptimizer().misconfigure(recipe).save_only_model
    fault = ResumeWithoutOptimizer("subtle")
    assert not fault.misconfigure(recipe).save_only_model
    prepared = fault.prepare(recipe)
    died = fault.interrupted_at(prepared)
    assert died is not None
    assert prepared.save_steps * recipe.max_steps < died < recipe.max_steps
    for name in ("optimizer.pt", "scheduler.pt", "adapter_model.safetensors"):
        (tmp_path / name).touch()
    fault.between(tmp_path)
    assert [one.name for one in tmp_path.iterdir()] == ["adapter_model.safetensors"]
