"""What the faults of the data do to rows, tokenizers and recipes."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from lorawatch.registry import builtin_classes
from lorawatch.trainer.builtin_data import sft_rows
from lorawatch.trainer.faults.catalogue import faults
from lorawatch.trainer.faults.contract import Fault
from lorawatch.trainer.faults.data import (
    BadBatches,
    DuplicatedData,
    LengthGroupedRipple,
    OrderedSources,
    PaddingWaste,
    ShuffledLabels,
    TinyDataset,
    TooManyEpochs,
    UnlearnableReplies,
    WrongTokenizer,
    as_row,
    garbage,
    reply_of,
    with_ids_shifted,
    with_reply,
)
from lorawatch.trainer.recipe import Amount, Recipe, RecipeError, recipe_of

AMOUNTS: tuple[Amount, ...] = ("plain", "subtle")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of({"max_steps": 200, "output_dir": str(tmp_path)}, "test")


def _dice() -> random.Random:
    return random.Random(0)  # noqa: S311


def _rows(count: int) -> list[dict[str, Any]]:
    return sft_rows(count, seed=0, form="prompt-completion")


@pytest.mark.parametrize(
    "row",
    [
        {"prompt": [{"role": "user", "content": "a"}], "completion": [{"role": "assistant", "content": "b"}]},
        {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        {"prompt": "a", "completion": "b"},
        {"text": "b"},
    ],
    ids="+".join,
)
def test_a_reply_is_read_and_replaced_in_every_form_of_row(row: dict[str, Any]) -> None:
    before = repr(row)
    assert reply_of(row) == "b"
    other = with_reply(row, "c")
    assert reply_of(other) == "c"
    assert repr(with_reply(other, "b")) == before == repr(row)


def test_a_chat_takes_the_form_of_the_rows_beside_it() -> None:
    chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    assert as_row(chat, {"messages": []}) == {"messages": chat}
    assert as_row(chat, {"prompt": [], "completion": []}) == {"prompt": chat[:1], "completion": chat[1:]}
    with pytest.raises(RecipeError, match="chats"):
        as_row(chat, {"prompt": "a", "completion": "b"})


@pytest.mark.parametrize(("amount", "bad_batches", "bad_rows"), [("plain", 8, 64), ("subtle", 2, 2)])
def test_bad_rows_lie_in_neighbouring_batches_from_the_step_that_is_told(
    amount: Amount, bad_batches: int, bad_rows: int, recipe: Recipe
) -> None:
    fault = BadBatches(amount)
    changed = fault.prepare(fault.misconfigure(recipe))
    rows = _rows(changed.train_rows or 0)
    spoilt = [at for at, (row, bad) in enumerate(zip(rows, fault.rows(rows, _dice()), strict=True)) if row != bad]
    batches = sorted({at // 8 for at in spoilt})
    assert (len(batches), len(spoilt)) == (bad_batches, bad_rows)
    assert batches[1] == batches[0] + 1
    assert batches[0] == fault.expected(changed)[0].from_step
    assert changed.train_sampling_strategy == "sequential"


def test_binary_data_as_text_has_its_length_and_no_blanks() -> None:
    text = garbage(_dice(), 300)
    assert len(text) == 300
    assert " " not in text
    assert any(ord(letter) > 0x7F for letter in text)


@pytest.mark.parametrize("kind", [ShuffledLabels, TinyDataset, TooManyEpochs])
@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("batch", [4, 8])
def test_few_rows_are_counted_in_epochs_and_the_run_is_no_longer_with_a_smaller_batch(
    kind: Any, amount: Amount, batch: int, recipe: Recipe
) -> None:
    changed = kind(amount).misconfigure(replace(recipe, per_device_train_batch_size=batch))
    assert changed.max_steps == -1
    assert 220 <= (changed.train_rows or 0) / batch * changed.num_train_epochs <= 380
    assert changed.eval_rows >= 50  # fewer are information only


@pytest.mark.parametrize(("amount", "epochs"), [("plain", 16), ("subtle", 10)])
def test_many_epochs_are_what_is_told(amount: Amount, epochs: int, recipe: Recipe) -> None:
    assert TooManyEpochs(amount).misconfigure(recipe).num_train_epochs == epochs


@pytest.mark.parametrize(("amount", "different"), [("plain", 24), ("subtle", 64)])
def test_copies_take_the_place_of_rows(amount: Amount, different: int) -> None:
    rows = [{"prompt": str(number), "completion": str(number)} for number in range(1600)]
    copied = DuplicatedData(amount).rows(rows, _dice())
    assert len(copied) == 1600
    assert len({row["prompt"] for row in copied}) == different


@pytest.mark.parametrize(("amount", "moved"), [("plain", 1.0), ("subtle", 0.5)])
def test_replies_go_to_other_prompts_and_none_is_lost(amount: Amount, moved: float) -> None:
    rows = [{"prompt": str(number), "completion": str(number)} for number in range(400)]
    mixed = ShuffledLabels(amount).rows(rows, _dice())
    assert [row["prompt"] for row in mixed] == [row["prompt"] for row in rows]
    assert sorted(row["completion"] for row in mixed) == sorted(row["completion"] for row in rows)
    wrong = sum(row["prompt"] != row["completion"] for row in mixed) / 400
    assert wrong == pytest.approx(moved, abs=0.02)


@pytest.mark.parametrize(("amount", "most"), [("plain", 0.1), ("subtle", 0.9)])
def test_words_drawn_by_lot_have_the_number_of_the_reply(amount: Amount, most: float) -> None:
    rows = _rows(100)
    drawn = UnlearnableReplies(amount).rows(rows, _dice())
    pairs = [(reply_of(row).split(), reply_of(other).split()) for row, other in zip(rows, drawn, strict=True)]
    assert all(len(before) == len(after) for before, after in pairs)
    same = sum(a == b for before, after in pairs for a, b in zip(before, after, strict=True))
    assert same / sum(len(before) for before, _ in pairs) < most


@pytest.mark.parametrize("amount", AMOUNTS)
def test_a_block_of_the_length_grouped_sampler_is_a_period_that_the_rule_can_see(
    amount: Amount, recipe: Recipe
) -> None:
    fault = LengthGroupedRipple(amount)
    changed = fault.misconfigure(recipe)
    assert changed.train_sampling_strategy == "group_by_length"
    # transformers sorts len // (4 * batch) batches at a time
    assert (changed.train_rows or 0) // (4 * changed.per_device_train_batch_size) == fault.block
    assert 3 <= fault.block <= 16


@pytest.mark.parametrize(("amount", "share"), [("plain", 1 / 2), ("subtle", 1 / 3)])
def test_receipts_are_mixed_in(amount: Amount, share: float) -> None:
    mixed = LengthGroupedRipple(amount).rows(_rows(400), _dice())
    assert sum(reply_of(row).startswith("Receipt") for row in mixed) / 400 == pytest.approx(share, abs=0.06)


@pytest.mark.parametrize(("amount", "share"), [("plain", 1.0), ("subtle", 1 / 2)])
def test_blocks_of_four_batches_take_turns(amount: Amount, share: float, recipe: Recipe) -> None:
    fault = OrderedSources(amount)
    changed = fault.prepare(fault.misconfigure(recipe))
    rows = _rows(4 * 32)
    mixed = fault.rows(rows, _dice())
    blocks = [
        sum(a != b for a, b in zip(rows[at : at + 32], mixed[at : at + 32], strict=True)) / 32
        for at in range(0, 128, 32)
    ]
    assert blocks == [0.0, share, 0.0, share]
    assert changed.train_sampling_strategy == "sequential"


def test_a_tokenizer_with_one_more_token_gives_other_ids_from_there_on() -> None:
    tokenizer = _tokenizer()
    other = with_ids_shifted(tokenizer, 400)
    before, after = tokenizer.get_vocab(), other.get_vocab()
    assert {token: after[token] for token, number in before.items() if number < 400} == {
        token: number for token, number in before.items() if number < 400
    }
    assert all(after[token] in (number + 1, 400) for token, number in before.items() if number >= 400)
    assert sorted(after.values()) == sorted(before.values())
    text = "What does a lantern cost?"
    assert other.decode(other.encode(text)) == tokenizer.decode(tokenizer.encode(text))
    assert other.chat_template == tokenizer.chat_template


def test_a_tokenizer_trained_anew_keeps_the_special_tokens_and_few_of_the_ids() -> None:
    tokenizer, fault = _tokenizer(), WrongTokenizer()
    fault.rows(_rows(300), _dice())
    other = fault.tokenizer(tokenizer)
    assert (other.eos_token_id, other.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert other.chat_template == tokenizer.chat_template
    assert max(other.get_vocab().values()) < len(tokenizer)
    before = tokenizer.get_vocab()
    same = sum(before.get(token) == number for token, number in other.get_vocab().items() if number > 300)
    assert same < 30


def _tokenizer() -> Any:
    pytest.importorskip("torch")
    from lorawatch.trainer.base_model import load_tokenizer

    return load_tokenizer(Recipe())


@pytest.mark.parametrize(("amount", "ratio"), [("plain", 6.0), ("subtle", 2.5)])
def test_long_rows_stand_among_short_ones(amount: Amount, ratio: float) -> None:
    lengths = sorted(len(reply_of(row)) for row in PaddingWaste(amount).rows(_rows(300), _dice()))
    assert lengths[290] > ratio * lengths[150]


@pytest.mark.parametrize("amount", AMOUNTS)
def test_the_padding_is_counted_for_long_enough(amount: Amount, recipe: Recipe) -> None:
    assert PaddingWaste(amount).misconfigure(recipe).max_steps // 8 >= 30


LATER = {
    "cfg/label-audit", "cfg/lr-vs-method", "gen/loop", "gen/no-eos", "gen/empty-gibberish", "gen/language-copy",
    "base/ability-drop", "base/ppl", "pref/no-signal", "pref/margin-explosion", "pref/likelihood-displacement",
    "rl/no-variance", "rl/truncation", "rl/entropy-collapse",
}  # fmt: skip
"""Rules of the catalogue that come with other issues."""


def _faults() -> list[type[Fault]]:
    modules = ("data", "generations", "labels", "preference", "reinforcement")
    return [kind for kind in faults().values() if kind.__module__.rpartition(".")[2] in modules]


@pytest.mark.parametrize("kind", _faults(), ids=lambda kind: kind.name)
@pytest.mark.parametrize("amount", AMOUNTS)
def test_what_is_expected_of_a_fault_can_come(kind: type[Fault], amount: Amount, tmp_path: Path) -> None:
    known = {rule.id: rule for rule in builtin_classes()}
    fault = kind(amount)
    given = {"max_steps": 200, "method": min(kind.methods), "output_dir": str(tmp_path)}
    wrong = fault.misconfigure(recipe_of(given, "test"))
    for one in fault.expected(wrong):
        assert {*one.rules, *one.roots} <= {*known, *LATER}
        assert one.rules[0] in (one.roots or one.rules)
        assert 0.0 < one.within <= 1.0
        assert wrong.max_steps < 0 or one.from_step < one.within * wrong.max_steps
    assert all(word == word.lower() for word in kind.remedy)
    # A cause is either in the recipe, where advice can change it, or has words by which a person finds it.
    assert bool(kind.remedy) or wrong != recipe_of(given, "test")
