"""What the faults of the adapter do to gradients and to the optimizer."""

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
    from peft import get_peft_model  # noqa: PLC0415

    return get_peft_model(load_base(recipe), adapter(recipe))


def _gradients(model: Any) -> list[float]:
    model.zero_grad()
    ids = torch.tensor([[5, 6, 7, 8]])
    model(input_ids=ids, labels=ids).loss.backward()
    return [float(one.grad.abs().sum()) for name, one in model.named_parameters() if "lora_B" in name]
