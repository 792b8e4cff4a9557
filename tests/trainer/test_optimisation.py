"""What the faults of optimisation do to the recipe, the trainer and a checkpoint."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorawatch.findings import Severity
from lorawatch.trainer.faults import optimisation
from lorawatch.trainer.faults.contract import Fault
from lorawatch.trainer.faults.optimisation import (
    AccumulationLossScale,
    AlphaAbsurd,
    AlternatingSources,
    AlwaysClipped,
    BatchTooSmall,
    DropoutExtreme,
    GradientExplosion,
    LearningRateTooHigh,
    LearningRateTooLow,
    LearningRateZero,
    ResumeWithFreshAdapter,
    ResumeWithoutOptimizer,
    ScheduleEndedEarly,
    ScheduleJumpsUp,
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


@pytest.mark.parametrize(("amount", "factor"), [("plain", 30.0), ("subtle", 18.0)])
def test_the_schedule_jumps_up_once_and_keeps_its_course(amount: Amount, factor: float, recipe: Recipe) -> None:
    class Trainer:
        def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
            return SimpleNamespace(lr_lambdas=[lambda step: 1.0 - step / num_training_steps, lambda _step: 0.5])

    trainer, fault = Trainer(), ScheduleJumpsUp(amount)
    fault.trainer(trainer, recipe)
    decaying, constant = trainer.create_scheduler(num_training_steps=200).lr_lambdas
    assert [decaying(79), decaying(80), decaying(199)] == pytest.approx([0.605, 0.6 * factor, 0.005 * factor])
    assert [constant(79), constant(80)] == [0.5, 0.5 * factor]
    assert fault.expected(recipe)[0].from_step == 80


@pytest.mark.parametrize("amount", AMOUNTS)
def test_an_explosion_is_not_clipped(amount: Amount, recipe: Recipe) -> None:
    wrong = GradientExplosion(amount).misconfigure(recipe)
    assert wrong.max_grad_norm == 0.0
    assert wrong.peak_rate > recipe.peak_rate


@pytest.mark.parametrize(("amount", "shares"), [("plain", [0, 4, 0, 4]), ("subtle", [0, 2, 0, 2])])
def test_sources_take_turns_batch_by_batch(amount: Amount, shares: list[int], recipe: Recipe) -> None:
    fault = AlternatingSources(amount)
    prepared = fault.prepare(recipe_of({"per_device_train_batch_size": 4, "output_dir": recipe.output_dir}, "test"))
    assert prepared.train_sampling_strategy == "sequential"
    assert prepared.logging_steps == 1
    texts: list[dict[str, Any]] = [{"prompt": f"{at}?", "completion": f"{at}."} for at in range(8)]
    chats: list[dict[str, Any]] = [
        {"prompt": [{"role": "user", "content": f"{at}?"}], "completion": [{"role": "assistant", "content": f"{at}."}]}
        for at in range(8)
    ]
    for rows in (texts, chats):
        changed = fault.rows([*rows, *rows], random.Random(0))  # noqa: S311
        assert [sum("reference" in str(one) for one in changed[at : at + 4]) for at in (0, 4, 8, 12)] == shares
        assert not any("reference" in str(one) for one in rows)
        assert all(new["prompt"] == old["prompt"] for new, old in zip(changed, [*rows, *rows], strict=True))


@pytest.mark.parametrize(("amount", "fitting"), [("plain", 0), ("subtle", 1)])
def test_names_in_the_checkpoint_do_not_fit(amount: Amount, fitting: int, recipe: Recipe, tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    files = pytest.importorskip("safetensors.torch")
    weights = {f"base_model.model.layers.0.{name}.lora_A.weight": torch.ones(2) for name in ("self_attn.q", "mlp.up")}
    files.save_file(weights, tmp_path / "adapter_model.safetensors")
    fault = ResumeWithFreshAdapter(amount)
    assert fault.interrupted_at(fault.prepare(recipe))
    fault.between(tmp_path)
    kept = files.load_file(tmp_path / "adapter_model.safetensors")
    assert len(kept) == len(weights)
    assert len(kept.keys() & weights.keys()) == fitting
