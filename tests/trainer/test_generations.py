"""What the faults of generations do to the training replies."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest

from lorawatch.trainer.builtin_data import sft_rows
from lorawatch.trainer.faults.data import reply_of
from lorawatch.trainer.faults.generations import (
    Forgetting,
    GenerationsEmpty,
    GenerationsLoop,
    GenerationsSwitchLanguage,
    GenerationsWithoutEos,
    in_cyrillic,
)
from lorawatch.trainer.recipe import Amount, recipe_of

AMOUNTS: tuple[Amount, ...] = ("plain", "subtle")
KINDS = (GenerationsEmpty, GenerationsLoop, GenerationsSwitchLanguage, GenerationsWithoutEos)


def _rows(count: int) -> list[dict[str, Any]]:
    return sft_rows(count, seed=0, form="prompt-completion")


def _changed(fault: Any, rows: list[dict[str, Any]]) -> list[str]:
    changed = fault.rows(rows, random.Random(0))  # noqa: S311
    assert [row["prompt"] for row in changed] == [row["prompt"] for row in rows]
    return [reply_of(row) for row in changed]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("amount", AMOUNTS)
def test_the_share_of_the_replies_that_the_fault_names_is_changed(kind: Any, amount: Amount) -> None:
    rows = _rows(300)
    replies = _changed(kind(amount), rows)
    share = sum(reply != reply_of(row) for row, reply in zip(rows, replies, strict=True)) / 300
    assert share == pytest.approx(kind.shares[amount], abs=0.08)


def test_a_loop_is_the_same_three_words_eight_times() -> None:
    row = _rows(1)[0]
    last = " ".join(reply_of(row).split()[-3:])
    assert _changed(GenerationsLoop(), [row]) == [" ".join([reply_of(row), *[last] * 8])]


def test_a_reply_without_an_end_goes_on_with_other_replies() -> None:
    rows = _rows(20)
    known = {reply_of(row) for row in rows}
    long = _changed(GenerationsWithoutEos(), rows)
    assert all(reply.startswith(reply_of(row)) for row, reply in zip(rows, long, strict=True))
    assert all(sum(reply.count(other) for other in known) >= 7 for reply in long)


def test_nothing_is_left_of_an_empty_reply() -> None:
    assert set(_changed(GenerationsEmpty(), _rows(10))) == {""}


def test_a_reply_in_another_language_has_no_latin_letter() -> None:
    replies = _changed(GenerationsSwitchLanguage(), _rows(10))
    assert not any(letter.isascii() and letter.isalpha() for reply in replies for letter in reply)
    assert in_cyrillic("Fair winds, 12!") == "Фаир щиндс, 12!"


def test_a_row_that_must_not_end_is_longer_than_max_length(tmp_path: Path) -> None:
    pytest.importorskip("torch")
    from lorawatch.trainer.base_model import load_tokenizer

    recipe = GenerationsWithoutEos().misconfigure(recipe_of({"output_dir": str(tmp_path)}, "test"))
    tokenizer = load_tokenizer(recipe)
    rows = GenerationsWithoutEos().rows(_rows(50), random.Random(0))  # noqa: S311
    lengths = [len(tokenizer.apply_chat_template(row["prompt"] + row["completion"], return_dict=False)) for row in rows]
    assert min(lengths) > recipe.max_length


@pytest.mark.parametrize(("amount", "times", "replies"), [("plain", 6, 1), ("subtle", 2, 50)])
def test_the_base_is_forgotten_by_a_high_rate_and_in_the_plain_case_by_one_reply_for_all_prompts(
    amount: Amount, times: float, replies: int, tmp_path: Path
) -> None:
    recipe = recipe_of({"max_steps": 200, "output_dir": str(tmp_path)}, "test")
    changed = Forgetting(amount).misconfigure(recipe)
    assert changed.peak_rate == pytest.approx(times * recipe.peak_rate)
    assert len(set(_changed(Forgetting(amount), _rows(50)))) == replies
