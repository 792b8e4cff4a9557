"""What the faults of preference do to pairs and recipes."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from lorawatch.trainer.builtin_data import dpo_rows
from lorawatch.trainer.faults.preference import (
    MarginExplosion,
    PairsNearlyIdentical,
    PreferenceRandom,
    PreferenceSwapped,
    swapped,
)
from lorawatch.trainer.recipe import Amount, recipe_of


@pytest.mark.parametrize(
    ("kind", "amount", "share"),
    [
        (PreferenceSwapped, "plain", 1.0),
        (PreferenceSwapped, "subtle", 0.75),
        (PreferenceRandom, "plain", 0.5),
        (PreferenceRandom, "subtle", 0.4),
    ],
)
def test_a_share_of_the_pairs_is_exchanged(
    kind: type[PreferenceSwapped | PreferenceRandom], amount: Amount, share: float
) -> None:
    rows = dpo_rows(400, seed=0)
    mixed = kind(amount).rows(rows, random.Random(0))  # noqa: S311
    exchanged = [row == swapped(before) for row, before in zip(mixed, rows, strict=True)]
    assert all(row == before or moved for row, before, moved in zip(mixed, rows, exchanged, strict=True))
    assert sum(exchanged) / 400 == pytest.approx(share, abs=0.06)


def test_a_pair_exchanged_twice_is_as_it_was() -> None:
    row = dpo_rows(1, seed=0)[0]
    assert swapped(row)["chosen"] == row["rejected"]
    assert swapped(swapped(row)) == row


@pytest.mark.parametrize("amount", ["plain", "subtle"])
def test_the_margin_explodes_by_the_rate_and_the_epochs(amount: Amount, tmp_path: Path) -> None:
    recipe = recipe_of({"method": "dpo", "max_steps": 200, "output_dir": str(tmp_path)}, "test")
    changed = MarginExplosion(amount).misconfigure(recipe)
    assert changed.peak_rate > 3 * recipe.peak_rate
    assert 200 * 8 / (changed.train_rows or 1600) >= 4


def test_the_rejected_reply_differs_from_the_chosen_one_in_its_last_word() -> None:
    rows = dpo_rows(40, seed=0)
    made = PairsNearlyIdentical().rows(rows, random.Random(0))  # noqa: S311
    for row, before in zip(made, rows, strict=True):
        assert row["chosen"] == before["chosen"]
        chosen, rejected = (row[name][-1]["content"].split() for name in ("chosen", "rejected"))
        assert chosen[:-1] == rejected[:-1]
    assert sum(row["chosen"] != row["rejected"] for row in made) > 35
