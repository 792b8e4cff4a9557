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
from lorawatch.trainer.faults.adapter import AdapterFrozen, AdapterOnWrongModules, OptimizerMadeTooEarly
from lorawatch.trainer.fine_tune import adapter
from lorawatch.trainer.recipe import Recipe, recipe_of


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
