"""What the faults of arithmetic do to rows, weights and steps."""

# ruff: noqa: E402  (what is imported below needs what the tests are skipped for)

from __future__ import annotations

import math
import random
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("trl")

from lorawatch.findings import Severity
from lorawatch.trainer.base_model import load_base, load_tokenizer
from lorawatch.trainer.builtin_data import sft_rows
from lorawatch.trainer.faults.numbers import (
    BROKEN,
    BrokenRow,
    NanFromStep,
    NanInTheLog,
    NanPoisonsTheLog,
    TransientNan,
    after_step,
    overflow,
    skip_what_is_not_finite,
)
from lorawatch.trainer.fine_tune import adapter
from lorawatch.trainer.recipe import Amount, Recipe, recipe_of

AMOUNTS: tuple[Amount, ...] = ("plain", "subtle")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of({"max_steps": 200, "output_dir": str(tmp_path)}, "test")


@pytest.mark.parametrize("amount", AMOUNTS)
def test_the_filter_is_on_where_the_log_is_to_hide_it_and_off_where_it_is_to_show_it(
    amount: Amount, recipe: Recipe
) -> None:
    assert NanFromStep(amount).prepare(recipe).logging_nan_inf_filter
    assert TransientNan(amount).prepare(recipe).logging_nan_inf_filter
    assert not NanInTheLog(amount).prepare(recipe).logging_nan_inf_filter
    assert not NanPoisonsTheLog(amount).prepare(recipe).logging_nan_inf_filter


@pytest.mark.parametrize("amount", AMOUNTS)
def test_a_dead_run_is_critical_and_one_that_lives_is_not(amount: Amount, recipe: Recipe) -> None:
    for kind, rule in ((NanFromStep, "sig/hidden-nan"), (NanInTheLog, "sig/nan")):
        first = kind(amount).expected(recipe)[0]
        assert first.rules[0] == rule
        assert first.least is Severity.CRITICAL
        assert first.from_step == kind.step[amount]
    for lives, rule in ((TransientNan, "sig/hidden-nan"), (NanPoisonsTheLog, "sig/nan")):
        first = lives(amount).expected(recipe)[0]
        assert first.rules[0] == rule
        assert first.least < Severity.CRITICAL
        assert first.from_step == lives.step[amount] - 1


def test_one_row_of_the_bad_step_holds_the_broken_token_and_no_other_does(recipe: Recipe) -> None:
    fault = TransientNan()
    placed = fault.prepare(recipe)
    assert placed.train_sampling_strategy == "sequential"
    rows = sft_rows(1600, seed=0, form="prompt-completion")
    assert not any(BROKEN in str(row) for row in rows)
    changed = fault.rows(rows, random.Random(0))  # noqa: S311
    assert [at for at, row in enumerate(changed) if BROKEN in str(row)] == [59 * 8]
    assert changed[472]["completion"] == rows[472]["completion"]
    assert not any(BROKEN in str(row) for row in rows), "the caller's rows are left as they were"


def test_a_prompt_that_is_text_gets_the_token_too() -> None:
    rows = BrokenRow(1).into([{"prompt": "What is it?", "completion": "A map."}])
    assert rows == [{"prompt": "What is it?" + BROKEN, "completion": "A map."}]


def test_only_the_broken_token_makes_the_model_nan(recipe: Recipe) -> None:
    tokenizer, model = load_tokenizer(recipe), load_base(recipe)
    whole = torch.tensor([tokenizer.encode("What does a cup cost?")])
    before = model(input_ids=whole).logits
    row = BrokenRow(1)
    assert row.looked_up(tokenizer) is tokenizer
    row.break_embedding(model)
    assert torch.equal(model(input_ids=whole).logits, before)
    broken = torch.tensor([tokenizer.encode("What does a cup cost?" + BROKEN)])
    assert model(input_ids=broken).logits.isnan().any()


def test_the_overflow_breaks_one_row_of_one_base_weight(recipe: Recipe) -> None:
    model = _adapted(recipe)
    overflow(model)
    broken = {name: int((~one.isfinite()).sum()) for name, one in model.named_parameters() if not one.isfinite().all()}
    [(name, count)] = broken.items()
    assert "base_layer" in name
    assert 0 < count <= model.get_parameter(name).shape[1]
    loss = model(input_ids=torch.tensor([[5, 6, 7]]), labels=torch.tensor([[5, 6, 7]])).loss
    assert bool(loss.isnan())


def test_something_is_done_after_one_step_only() -> None:
    done: list[Any] = []
    callback = after_step(3, done.append)
    for step in range(1, 6):
        callback.on_step_end(None, type("State", (), {"global_step": step}), None, model=step)
    assert done == [3]


def test_the_guard_drops_gradients_that_are_not_finite_and_no_others() -> None:
    model, guard = torch.nn.Linear(2, 1), skip_what_is_not_finite()
    for factor, kept in ((1.0, True), (math.nan, False), (math.inf, False)):
        model.zero_grad()
        (model(torch.ones(1, 2)).sum() * factor).backward()
        guard.on_pre_optimizer_step(None, None, None, model=model)
        assert (model.weight.grad is not None) is kept


def _adapted(recipe: Recipe) -> Any:
    from peft import get_peft_model

    return get_peft_model(load_base(recipe), adapter(recipe))
