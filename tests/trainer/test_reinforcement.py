"""What the faults of reinforcement do to rewards and recipes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorawatch.trainer.faults.reinforcement import (
    CompletionsTruncated,
    EntropyCollapse,
    LengthRewarded,
    PolicyRunsAway,
    RewardConstant,
)
from lorawatch.trainer.recipe import Amount, Recipe, recipe_of

AMOUNTS: tuple[Amount, ...] = ("plain", "subtle")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of({"method": "grpo", "max_steps": 200, "output_dir": str(tmp_path)}, "test")


def _good(completions: list[Any], **_columns: Any) -> list[float]:
    return [float(one) for one in completions]


@pytest.mark.parametrize(("amount", "rewards"), [("plain", [1.0, 1.0, 1.0]), ("subtle", [0.0, 1.0, 1.0])])
def test_the_reward_has_no_variance_or_only_for_what_is_nearly_right(amount: Amount, rewards: list[float]) -> None:
    reward = RewardConstant(amount).reward(_good)
    assert reward(["0.2", "0.75", "1.0"], answer=["1", "2", "3"]) == rewards


def test_a_reward_has_a_name_under_which_trl_logs_it() -> None:
    assert RewardConstant().reward(_good).__name__


@pytest.mark.parametrize("kind", [CompletionsTruncated, EntropyCollapse, RewardConstant])
@pytest.mark.parametrize("amount", AMOUNTS)
def test_a_run_is_short_and_logs_each_step(kind: Any, amount: Amount, recipe: Recipe) -> None:
    changed = kind(amount).misconfigure(recipe)
    assert changed.max_steps <= 90
    assert changed.logging_steps == 1
    assert changed.max_completion_length <= 32


def test_completions_are_cut_and_the_rate_is_raised(recipe: Recipe) -> None:
    plain, subtle = (CompletionsTruncated(amount).misconfigure(recipe).max_completion_length for amount in AMOUNTS)
    assert plain < subtle < 24
    high, higher = (EntropyCollapse(amount).misconfigure(recipe).peak_rate for amount in reversed(AMOUNTS))
    assert higher > high >= 2 * recipe.peak_rate


def test_the_word_that_is_paid_for_is_paid_for_as_often_as_it_is_said() -> None:
    reward = EntropyCollapse().reward(_good)
    said = [[{"role": "assistant", "content": "coin " * count}] for count in (0, 2, 20)]
    assert reward(said) == [0.0, 0.25, 1.0]
    assert reward(["4 coins"]) == [0.125]


@pytest.mark.parametrize(("amount", "paid"), [("plain", 0.5), ("subtle", 0.59)])
def test_each_word_is_paid_for(amount: Amount, paid: float) -> None:
    def good(completions: list[Any], **_columns: Any) -> list[float]:
        return [0.8] * len(completions)

    reward = LengthRewarded(amount).reward(good)
    said = [[{"role": "assistant", "content": "word " * 24}]]
    assert reward(said) == [pytest.approx(paid)]


def test_each_batch_is_used_several_times_at_a_high_rate(recipe: Recipe) -> None:
    for amount in AMOUNTS:
        changed = PolicyRunsAway(amount).misconfigure(recipe)
        assert changed.training_arguments["num_iterations"] == 4
        assert changed.peak_rate >= 4 * recipe.peak_rate
