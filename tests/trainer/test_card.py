"""What can be told of the faults of a card without one: what they do to rows and recipe, and what they expect."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from lorawatch.trainer import builtin_data
from lorawatch.trainer.base_model import load_tokenizer
from lorawatch.trainer.faults.card import (
    LONGEST_TOKENS,
    AllocatorFragmentation,
    DeviceMemoryLeak,
    GrowingSequences,
    OomByLongBatches,
    VramHeadroom,
    growing,
)
from lorawatch.trainer.recipe import Recipe, RecipeError, recipe_of

ON_CARD = (VramHeadroom, OomByLongBatches, AllocatorFragmentation, DeviceMemoryLeak)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of({"max_steps": 200, "output_dir": str(tmp_path)}, "test")


@pytest.mark.parametrize("kind", ON_CARD)
def test_they_need_a_card_and_expect_a_finding_about_memory_within_the_run(kind: type[Any], recipe: Recipe) -> None:
    for fault in (kind("plain"), kind("subtle")):
        assert fault.needs == "cuda"
        wrong = fault.misconfigure(recipe)
        for expected in fault.expected(wrong):
            assert all(rule.startswith("mem/") for rule in expected.rules)
            assert expected.from_step < 0.6 * wrong.max_steps
        assert fault.remedy or wrong.train_sampling_strategy == "sequential"


@pytest.mark.parametrize("form", ["prompt-completion", "messages"])
def test_sequences_grow_from_short_ones_to_the_longest(form: Any, recipe: Recipe) -> None:
    rows = builtin_data.sft_rows(240, seed=0, split="train", form=form)
    grown = growing(rows, LONGEST_TOKENS)
    tokenizer = load_tokenizer(recipe)
    lengths = []
    for row in grown:
        messages = row["messages"] if form == "messages" else row["prompt"] + row["completion"]
        spoken = [one["role"] for one in messages if one["role"] != "system"]
        assert spoken == ["user", "assistant"] * (len(spoken) // 2)
        lengths.append(len(tokenizer.apply_chat_template(messages, tokenize=True)["input_ids"]))
    tenths = [sum(lengths[at : at + 24]) / 24 for at in range(0, 240, 24)]
    assert all(after > before for before, after in zip(tenths, tenths[1:], strict=False))
    assert max(lengths[:60]) < 0.5 * LONGEST_TOKENS
    assert 0.75 * LONGEST_TOKENS < max(lengths) <= GrowingSequences().misconfigure(recipe).max_length
    last = (grown[-1]["messages"] if form == "messages" else grown[-1]["completion"])[-1]
    assert last in [(row["messages"] if form == "messages" else row["completion"])[-1] for row in rows]


def test_a_system_message_stays_one_and_in_front() -> None:
    system = {"role": "system", "content": "Be short."}
    rows = [
        {"prompt": [system, {"role": "user", "content": f"question {n}"}],
         "completion": [{"role": "assistant", "content": f"answer {n}"}]}
        for n in range(20)
    ]  # fmt: skip
    last = growing(rows, 100)[-1]
    assert len(last["prompt"]) > 4
    assert last["prompt"][0] == system
    assert system not in last["prompt"][1:]


def test_the_subtle_sequences_grow_half_as_long_and_each_run_reaches_its_last_row(recipe: Recipe) -> None:
    rows = builtin_data.sft_rows(100, seed=0, split="train", form="prompt-completion")
    plain, subtle = (GrowingSequences(amount).rows(rows, Any) for amount in ("plain", "subtle"))  # type: ignore[arg-type]
    assert len(subtle[-1]["prompt"]) < len(plain[-1]["prompt"])
    wrong = OomByLongBatches().misconfigure(recipe)
    assert wrong.train_rows == wrong.max_steps * wrong.per_device_train_batch_size


def test_fragmentation_cannot_be_had_with_expandable_segments(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert AllocatorFragmentation().prepare(recipe) == recipe
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    with pytest.raises(RecipeError, match="expandable segments"):
        AllocatorFragmentation().prepare(recipe)
