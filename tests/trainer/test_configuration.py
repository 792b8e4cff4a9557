"""What the faults of configuration change in a recipe, and in the adapter that it makes."""

# ruff: noqa: E402  (what is imported below needs what the tests are skipped for)

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from lorawatch.trainer.base_model import load_base
from lorawatch.trainer.faults.configuration import (
    AdapterInHalfPrecision,
    BiasTrained,
    FewModulesAdapted,
    RateOfFullFineTuning,
    RunWithoutEyes,
    SavedModulesMisspelt,
)
from lorawatch.trainer.faults.contract import Fault
from lorawatch.trainer.fine_tune import adapter
from lorawatch.trainer.recipe import Amount, Recipe, recipe_of

AMOUNTS: tuple[Amount, ...] = ("plain", "subtle")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of({"max_steps": 200, "output_dir": str(tmp_path)}, "test")


def _adapted(fault: Fault, recipe: Recipe) -> Any:
    from peft import get_peft_model

    changed = fault.misconfigure(recipe)
    model = get_peft_model(load_base(changed), adapter(changed))
    fault.adapted(model, changed)
    return model


@pytest.mark.parametrize(("amount", "kinds"), [("plain", {"o_proj"}), ("subtle", {"q_proj", "v_proj"})])
def test_few_kinds_of_modules_have_an_adapter(amount: Amount, kinds: set[str], recipe: Recipe) -> None:
    model = _adapted(FewModulesAdapted(amount), recipe)
    assert {
        name.split(".lora_A")[0].rsplit(".", 1)[-1] for name, _ in model.named_modules() if ".lora_A" in name
    } == kinds


@pytest.mark.parametrize(("amount", "dtype"), [("plain", torch.float16), ("subtle", torch.bfloat16)])
def test_what_trains_is_in_16_bit_and_nothing_else_is(amount: Amount, dtype: Any, recipe: Recipe) -> None:
    model = _adapted(AdapterInHalfPrecision(amount), recipe)
    assert {one.dtype for one in model.parameters() if one.requires_grad} == {dtype}
    assert {one.dtype for one in model.parameters() if not one.requires_grad} == {torch.float32}


@pytest.mark.parametrize(("amount", "saved"), [("plain", 0), ("subtle", 1)])
def test_peft_takes_misspelt_names_without_a_word(
    amount: Amount, saved: int, recipe: Recipe, recwarn: pytest.WarningsRecorder
) -> None:
    model = _adapted(SavedModulesMisspelt(amount), recipe)
    assert sum(name.endswith("modules_to_save") for name, _ in model.named_modules()) == saved
    assert not [one for one in recwarn if "modules_to_save" in str(one.message)]


def test_each_changes_the_recipe_as_it_says(recipe: Recipe) -> None:
    assert [BiasTrained(amount).misconfigure(recipe).bias for amount in AMOUNTS] == ["all", "lora_only"]
    assert [RateOfFullFineTuning(amount).misconfigure(recipe).peak_rate for amount in AMOUNTS] == [2e-5, 4e-5]
    plain, subtle = (RunWithoutEyes(amount).misconfigure(recipe) for amount in AMOUNTS)
    assert (plain.eval_rows, plain.logging_steps, plain.logging_nan_inf_filter) == (0, 0.1, True)
    assert (subtle.eval_rows, subtle.logging_steps) == (recipe.eval_rows, 0.05)
