"""What the faults of the labels do to rows, collators and evaluation sets."""

from __future__ import annotations

import pickle
import random
from pathlib import Path
from typing import Any

import pytest

from lorawatch.trainer.builtin_data import sft_rows
from lorawatch.trainer.faults.labels import (
    IGNORED,
    EvaluationWithoutLabels,
    LabelsAllMasked,
    LabelsEosMasked,
    LabelsTruncated,
    ReplyOnlyCollator,
    mean_loss,
    reply_begins,
    start_of_reply,
)
from lorawatch.trainer.recipe import Recipe, RecipeError, recipe_of

torch = pytest.importorskip("torch")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of({"max_steps": 200, "output_dir": str(tmp_path)}, "test")


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from lorawatch.trainer.base_model import load_tokenizer

    return load_tokenizer(Recipe())


def _collate(rows: list[Any]) -> dict[str, Any]:
    """Ids padded with 0, all of them with a label."""
    width = max(map(len, rows))
    ids = torch.tensor([[*row, *[0] * (width - len(row))] for row in rows])
    return {"input_ids": ids, "labels": ids.clone()}


def _batch(fault: Any, rows: list[Any], tokenizer: Any, recipe: Recipe) -> dict[str, Any]:
    fault.tokenizer(tokenizer)
    collator = pickle.loads(pickle.dumps(fault.collator(_collate, recipe)))  # noqa: S301
    ids = [
        tokenizer.apply_chat_template(row["prompt"] + row["completion"], tokenize=True, return_dict=False)
        for row in rows
    ]
    batch: dict[str, Any] = collator(ids)
    return batch


def test_a_reply_begins_after_the_last_place_of_its_start() -> None:
    assert reply_begins([1, 2, 3, 1, 2, 4], [1, 2]) == 5
    assert reply_begins([1, 2, 3], [7]) == 3
    assert reply_begins([7], [7, 8]) == 1


def test_the_start_of_a_reply_is_what_the_chat_template_puts_before_it(tokenizer: Any) -> None:
    assert start_of_reply(tokenizer) == "<|im_start|>assistant"


def test_a_template_that_no_row_holds_masks_every_label(tokenizer: Any, recipe: Recipe) -> None:
    rows = sft_rows(4, seed=0, form="prompt-completion")
    assert bool((_batch(LabelsAllMasked(), rows, tokenizer, recipe)["labels"] == IGNORED).all())


def test_the_subtle_mask_leaves_the_replies_of_the_first_file_and_none_of_the_second(
    tokenizer: Any, recipe: Recipe
) -> None:
    fault = LabelsAllMasked("subtle")
    rows = sft_rows(4, seed=0, form="prompt-completion")
    mixed = fault.rows(rows, random.Random(0))  # noqa: S311
    assert mixed[:2] == rows[:2]
    labels = _batch(fault, mixed, tokenizer, recipe)["labels"]
    trained = [tokenizer.decode(row[row != IGNORED], skip_special_tokens=True).strip() for row in labels]
    assert trained == [row["completion"][0]["content"] for row in rows[:2]] + ["", ""]


def test_the_subtle_mask_needs_rows_with_roles() -> None:
    with pytest.raises(RecipeError, match="chats"):
        LabelsAllMasked("subtle").rows([{"prompt": "a", "completion": "b"}] * 2, random.Random(0))  # noqa: S311


def test_the_second_file_comes_at_half_of_the_run(recipe: Recipe) -> None:
    fault = LabelsAllMasked("subtle")
    changed = fault.misconfigure(recipe)
    assert (changed.train_rows, changed.train_sampling_strategy) == (1600, "sequential")
    assert fault.expected(changed)[0].from_step == 100
    assert LabelsAllMasked().misconfigure(recipe) == recipe


@pytest.mark.parametrize(
    ("amount", "masked"), [("plain", [True, True, True, True]), ("subtle", [False, True, True, True])]
)
def test_the_end_of_turn_loses_its_label_in_every_row_or_in_three_of_four(
    amount: Any, masked: list[bool], tokenizer: Any, recipe: Recipe
) -> None:
    rows = sft_rows(4, seed=0, form="prompt-completion")
    batch = _batch(LabelsEosMasked(amount), rows, tokenizer, recipe)
    ends = batch["input_ids"] == tokenizer.eos_token_id
    for row, lost in enumerate(masked):
        assert bool((batch["labels"][row][ends[row]] == IGNORED).all()) is lost
    others = ~ends
    assert bool((batch["labels"][others] == batch["input_ids"][others]).all())


def test_a_short_max_length_cuts_most_replies_or_the_longest_ones(tokenizer: Any, recipe: Recipe) -> None:
    lengths = [len(tokenizer.apply_chat_template(row["messages"], return_dict=False)) for row in sft_rows(200, seed=0)]
    cut = {
        amount: sum(length > LabelsTruncated(amount).misconfigure(recipe).max_length for length in lengths) / 200
        for amount in ("plain", "subtle")
    }
    assert cut["plain"] > 0.75
    assert 0.05 < cut["subtle"] < 0.3


def test_a_mean_over_no_labels_is_nan_and_one_over_some_is_not() -> None:
    class Outputs:
        logits = torch.zeros(1, 3, 5)

    assert bool(mean_loss(Outputs, torch.tensor([[IGNORED, IGNORED, IGNORED]])).isnan())
    assert mean_loss(Outputs, torch.tensor([[IGNORED, 1, IGNORED]])).item() == pytest.approx(1.609, abs=1e-3)


@pytest.mark.parametrize(("amount", "kept"), [("plain", 0), ("subtle", 16)])
def test_evaluation_rows_lose_their_labels(amount: Any, kept: int, recipe: Recipe) -> None:
    from datasets import Dataset  # type: ignore[import-untyped, unused-ignore]

    class Trainer:
        eval_dataset: Any = Dataset.from_list([{"labels": [IGNORED, 3]}] * 32)
        compute_loss_func: Any = None

    EvaluationWithoutLabels(amount).trainer(Trainer, recipe)
    assert [row["labels"] for row in Trainer.eval_dataset] == [[IGNORED, 3]] * kept + [[IGNORED] * 2] * (32 - kept)
    assert Trainer.compute_loss_func is mean_loss


def test_the_collator_keeps_what_the_inner_one_made() -> None:
    batch = ReplyOnlyCollator(_collate, [7])([[1, 7, 2], [1, 2]])
    assert batch["input_ids"].tolist() == [[1, 7, 2], [1, 2, 0]]
    assert batch["labels"].tolist() == [[IGNORED, IGNORED, 2], [IGNORED] * 3]
