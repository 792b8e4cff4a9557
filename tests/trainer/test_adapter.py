"""What the faults of the adapter do to gradients and to the optimizer."""

# ruff: noqa: E402  (what is imported below needs what the tests are skipped for)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from lorawatch.findings import Severity
from lorawatch.trainer.base_model import load_base
from lorawatch.trainer.faults.adapter import (
    AdapterFrozen,
    AdapterNotFinite,
    AdapterOnWrongModules,
    AdapterPartlyFrozen,
    OptimizerMadeTooEarly,
    WeightDecayWithWrongSign,
)
from lorawatch.trainer.fine_tune import adapter
from lorawatch.trainer.recipe import Amount, Recipe, recipe_of


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of({"max_steps": 200, "output_dir": str(tmp_path)}, "test")


def _adapted(recipe: Recipe) -> Any:
    from peft import get_peft_model

    return get_peft_model(load_base(recipe), adapter(recipe))


def _gradients(model: Any) -> list[float]:
    model.zero_grad()
    ids = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=ids, labels=ids).loss.backward()
    return [float(one.grad.abs().sum()) for name, one in model.named_parameters() if "lora_B" in name]


def test_misspelt_names_leave_part_of_the_modules_without_an_adapter(recipe: Recipe) -> None:
    whole = sum("lora_A" in name for name, _ in _adapted(recipe).named_modules())
    counts = []
    for amount in ("plain", "subtle"):
        wrong = AdapterOnWrongModules(amount).misconfigure(recipe)
        names = {name.rsplit(".lora_A", 1)[0] for name, _ in _adapted(wrong).named_modules() if "lora_A" in name}
        kinds = {name.rsplit(".", 1)[-1] for name in names}
        assert kinds < set(wrong.target_modules)
        counts.append(len(kinds))
    assert counts == [1, 6]
    assert whole > 0


def test_a_frozen_adapter_gets_gradients_of_zero(recipe: Recipe) -> None:
    model = _adapted(recipe)
    assert min(_gradients(model)) > 0.0
    AdapterFrozen().adapted(model, recipe)
    assert max(_gradients(model)) == 0.0


def test_the_subtle_freeze_begins_late(recipe: Recipe) -> None:
    model, fault = _adapted(recipe), AdapterFrozen("subtle")
    fault.adapted(model, recipe)
    [late] = fault.callbacks(recipe)
    begins = fault.expected(recipe)[0].from_step
    for step, frozen in ((0, False), (begins - 1, False), (begins, True), (begins + 1, True)):
        late.on_step_begin(None, type("State", (), {"global_step": step}), None)
        assert (max(_gradients(model)) == 0.0) is frozen


def test_the_freeze_is_deterministic_evidence_and_therefore_critical(recipe: Recipe) -> None:
    for amount in ("plain", "subtle"):
        assert AdapterFrozen(amount).expected(recipe)[0].least is Severity.CRITICAL


def test_the_early_optimizer_holds_no_weight_of_the_adapter(recipe: Recipe) -> None:
    from peft import get_peft_model

    base = load_base(recipe)
    optimizer = OptimizerMadeTooEarly().optimizer(base, recipe)
    model = get_peft_model(base, adapter(recipe))
    held = {id(one) for group in optimizer.param_groups for one in group["params"]}
    trained = [one for one in model.parameters() if one.requires_grad]
    assert trained
    assert not any(id(one) in held for one in trained)


@pytest.mark.parametrize("amount", ["plain", "subtle"])
def test_the_adapter_of_the_lower_layers_is_frozen(amount: Amount, recipe: Recipe) -> None:
    model = _adapted(recipe)
    AdapterPartlyFrozen(amount).adapted(model, recipe)
    trains = {name.split(".layers.")[1].split(".")[0] for name, one in model.named_parameters() if one.requires_grad}
    count = model.config.num_hidden_layers
    assert trains == {str(layer) for layer in range(1 if amount == "subtle" else count // 2, count)}


def test_weights_grow_once_the_wrong_penalty_acts(recipe: Recipe) -> None:
    model, fault = _adapted(recipe), WeightDecayWithWrongSign()
    [grows] = fault.callbacks(recipe)
    for step, factor in ((fault.at - 1, 1.0), (fault.at, 1.024)):
        before = {name: one.detach().clone() for name, one in model.named_parameters()}
        grows.on_step_end(None, type("State", (), {"global_step": step}), None, model=model)
        for name, one in model.named_parameters():
            assert torch.allclose(one, before[name] * (factor if one.requires_grad else 1.0))


@pytest.mark.parametrize(("amount", "finite"), [("plain", False), ("subtle", True)])
def test_a_nan_in_a_module_that_is_skipped_leaves_the_loss_alone(amount: Amount, finite: bool, recipe: Recipe) -> None:
    model, fault = _adapted(recipe), AdapterNotFinite(amount)
    fault.adapted(model, recipe)
    [writes] = fault.callbacks(recipe)
    writes.on_step_end(None, type("State", (), {"global_step": fault.at}), None, model=model)
    assert sum(not one.isfinite().all() for one in model.parameters()) == 1
    ids = torch.tensor([[5, 6, 7, 8]])
    assert bool(model(input_ids=ids, labels=ids).loss.isfinite()) is finite
