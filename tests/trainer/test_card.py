"""What can be told of the faults of a card without one: what they do to rows and recipe, and what they expect."""

from __future__ import annotations

import functools
import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from peft import get_peft_model

from lorawatch.trainer import builtin_data
from lorawatch.trainer.base_model import load_base, load_tokenizer
from lorawatch.trainer.faults.card import (
    AllocatorFragmentation,
    DeviceMemoryLeak,
    GrowingSequences,
    OomByLongBatches,
    VramHeadroom,
    conversations,
    tokens_of,
)
from lorawatch.trainer.fine_tune import adapter
from lorawatch.trainer.recipe import Recipe, RecipeError, recipe_of

ON_CARD = (VramHeadroom, GrowingSequences, OomByLongBatches, AllocatorFragmentation, DeviceMemoryLeak)


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of({"max_steps": 200, "output_dir": str(tmp_path)}, "test")


def messages_of(row: dict[str, Any]) -> list[dict[str, str]]:
    return list(row["messages"]) if "messages" in row else row["prompt"] + row["completion"]


@functools.cache
def _tokenizer(recipe_model: str) -> Any:
    return load_tokenizer(recipe_of({"model": recipe_model}, "test"))


def length(row: dict[str, Any], recipe: Recipe) -> int:
    return len(_tokenizer(recipe.model).apply_chat_template(messages_of(row), tokenize=True)["input_ids"])


@pytest.mark.parametrize("kind", ON_CARD)
def test_they_need_a_card_and_expect_a_finding_about_memory_within_the_run(kind: type[Any], recipe: Recipe) -> None:
    for fault in (kind("plain"), kind("subtle")):
        assert fault.needs == "cuda"
        wrong = fault.misconfigure(recipe)
        for expected in fault.expected(wrong):
            assert all(rule.startswith("mem/") for rule in expected.rules)
            assert expected.from_step < 0.6 * wrong.max_steps
        assert fault.remedy or wrong.per_device_train_batch_size > recipe.per_device_train_batch_size


@pytest.mark.parametrize("form", ["prompt-completion", "messages"])
def test_sequences_grow_from_the_shortest_to_the_longest(form: Any, recipe: Recipe) -> None:
    rows = builtin_data.sft_rows(240, seed=0, split="train", form=form)
    fault = GrowingSequences()
    grown = fault.rows(rows, random.Random(0))  # noqa: S311
    lengths = [length(row, recipe) for row in grown]
    tenths = [sum(lengths[at : at + 24]) / 24 for at in range(0, 240, 24)]
    assert tenths == sorted(tenths)
    assert tenths[-1] > 2 * tenths[0], "the forecast needs a ratio of 1.5"
    wrong = fault.misconfigure(recipe)
    assert wrong.train_sampling_strategy == "sequential"
    assert wrong.train_rows == wrong.max_steps * wrong.per_device_train_batch_size, "the run reaches its last row"


@pytest.mark.parametrize("form", ["prompt-completion", "messages"])
def test_lengths_of_conversations_are_as_asked(form: Any, recipe: Recipe) -> None:
    rows = builtin_data.sft_rows(60, seed=0, split="train", form=form)
    asked = [150.0 + 5 * number for number in range(60)]
    for row, made, wanted in zip(rows, conversations(rows, asked), asked, strict=True):
        messages = messages_of(made)
        spoken = [one["role"] for one in messages if one["role"] != "system"]
        assert spoken == ["user", "assistant"] * (len(spoken) // 2)
        assert messages[-1] == messages_of(row)[-1], "the reply that is learnt is the row's own"
        assert 0.5 * wanted < length(made, recipe) < 1.15 * wanted


def test_a_row_that_is_long_enough_stays_as_it_is() -> None:
    rows = builtin_data.sft_rows(3, seed=0, split="train", form="prompt-completion")
    assert conversations(rows, [1.0, 1.0, 1.0]) == rows
    assert conversations([{"text": "plain words"}], [400.0]) == [{"text": "plain words"}]


def test_a_system_message_stays_one_and_in_front() -> None:
    system = {"role": "system", "content": "Be short."}
    rows = [
        {"prompt": [system, {"role": "user", "content": f"question {n}"}],
         "completion": [{"role": "assistant", "content": f"answer {n}"}]}
        for n in range(20)
    ]  # fmt: skip
    last = conversations(rows, [100.0] * 20)[-1]
    assert len(last["prompt"]) > 4
    assert last["prompt"][0] == system
    assert system not in last["prompt"][1:]


def test_most_rows_are_of_a_usual_length_and_a_few_are_long(recipe: Recipe) -> None:
    rows = builtin_data.sft_rows(1000, seed=0, split="train", form="prompt-completion")
    dice = random.Random(0)  # noqa: S311
    lengths = sorted(tokens_of(row) for row in OomByLongBatches().rows(rows, dice))
    assert 60 < lengths[500] < 110
    assert 2.5 * lengths[500] < lengths[-1] < OomByLongBatches().misconfigure(recipe).max_length


@pytest.mark.parametrize(("amount", "kept_at"), [("plain", [0, 1, 2, 3]), ("subtle", [0, 3])])
def test_a_leak_keeps_what_the_last_layers_give_in_training(amount: Any, kept_at: list[int], recipe: Recipe) -> None:
    model: Any = get_peft_model(load_base(recipe), adapter(recipe))
    trainer = SimpleNamespace(model=model, training_step=None, state=SimpleNamespace(global_step=0))
    fault = DeviceMemoryLeak(amount)
    fault.trainer(trainer, recipe)
    tokens = torch.ones((2, 5), dtype=torch.long)
    grown = []
    for step in range(4):
        trainer.state.global_step = step
        before = len(fault.kept)
        model.train()(input_ids=tokens)
        if len(fault.kept) - before == 9:
            grown.append(step)
        kept = len(fault.kept)
        model.eval()(input_ids=tokens)
        assert len(fault.kept) == kept, "an evaluation keeps nothing"
    assert grown == kept_at
    assert {tuple(one.shape[:2]) for one in fault.kept} == {(2, 5)}


def test_fragmentation_cannot_be_had_with_expandable_segments(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    assert AllocatorFragmentation().prepare(recipe) == recipe
    monkeypatch.setenv("PYTORCH_ALLOC_CONF", "expandable_segments:True")
    with pytest.raises(RecipeError, match="expandable segments"):
        AllocatorFragmentation().prepare(recipe)
