"""The rows that a run trains on: built-in ones, a file, or a data set of the hub, checked before training starts."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorawatch.trainer import builtin_data
from lorawatch.trainer.recipe import BUILTIN, Recipe, RecipeError

Row = dict[str, Any]

BUILTIN_ROWS = 1600
"""Rows of built-in data for an epoch: 200 steps of 8."""
_READERS = {".jsonl": "json", ".json": "json", ".csv": "csv", ".parquet": "parquet"}
_FORMS: dict[str, tuple[tuple[str, ...], ...]] = {
    "sft": (("messages",), ("prompt", "completion"), ("text",)),
    "dpo": (("prompt", "chosen", "rejected"), ("chosen", "rejected")),
    "grpo": (("prompt", "answer"),),
}
"""Columns that a method takes, best form first."""


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows to train and to evaluate on."""

    train: list[Row]
    evaluation: list[Row]


def load_rows(recipe: Recipe) -> Rows:
    """The rows that the recipe names; a held-out part of them for evaluation, where it names no other.

    Raises:
        RecipeError: The data cannot be had, is empty, or lacks the columns that the method takes.
    """
    if recipe.dataset == BUILTIN:
        make = {"sft": builtin_data.sft_rows, "dpo": builtin_data.dpo_rows, "grpo": builtin_data.grpo_rows}[
            recipe.method
        ]
        count = recipe.train_rows or BUILTIN_ROWS
        more = {"form": "prompt-completion"} if recipe.method == "sft" else {}
        train = make(count, seed=recipe.seed, split="train", **more)
        evaluation = make(max(recipe.eval_rows, 1), seed=0, split="test", **more)[: recipe.eval_rows]
    else:
        train = _read(recipe.dataset, recipe.method)
        evaluation = []
        if recipe.eval_dataset is None:  # the last tenth is kept out of training
            kept = min(recipe.eval_rows, len(train) // 10)
            train, evaluation = train[: len(train) - kept], train[len(train) - kept :]
        train = train[: recipe.train_rows]
    if recipe.eval_dataset is not None:
        evaluation = _read(recipe.eval_dataset, recipe.method)[: recipe.eval_rows]
    return Rows(train, evaluation)


def _read(name: str, method: str) -> list[Row]:
    from datasets import load_dataset, logging  # type: ignore[import-untyped] # noqa: PLC0415

    path = Path(name).expanduser()
    loudness = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)  # what it would say of a file that it cannot read is said below, in a line
    try:
        if path.is_file():
            kind = _READERS.get(path.suffix.lower())
            if kind is None:
                raise RecipeError(f"dataset {name}: is none of {', '.join(_READERS)}")
            data = load_dataset(kind, data_files=str(path), split="train")
        elif path.suffix.lower() in _READERS or path.is_absolute() or name.startswith((".", "~")):
            raise RecipeError(f"dataset {name}: there is no such file")
        else:
            data = load_dataset(name, split="train")
    except RecipeError:
        raise
    except Exception as error:  # the library raises what its readers and the hub's client raise
        cause = error.__cause__ or error
        text = " ".join(str(cause).split())
        if "offline" in text.lower() or "connect" in text.lower() or "Couldn't reach" in str(error):
            text = "it is no file here, and the hub cannot be reached; give a file, or download it first"
        raise RecipeError(f"dataset {name}: {text[:200]}") from None
    finally:
        logging.set_verbosity(loudness)
    columns = list(data.column_names)
    form = next((form for form in _FORMS[method] if set(form) <= set(columns)), None)
    if form is None:
        wanted = " or ".join(" + ".join(form) for form in _FORMS[method])
        raise RecipeError(f"dataset {name}: {method} needs the columns {wanted}; it has {', '.join(columns) or 'none'}")
    rows: list[Row] = data.select_columns(list(form)).to_list()
    if not rows:
        raise RecipeError(f"dataset {name}: it is empty")
    for number, row in enumerate(rows[:100], start=1):
        empty = [column for column in form if row[column] in (None, "", [])]
        if empty:
            raise RecipeError(f"dataset {name}: row {number} has nothing in {empty[0]!r}")
    return [_split(row) for row in rows] if form == ("messages",) else rows


def _split(row: Row) -> Row:
    """A conversation as prompt and last reply, so that only the reply is trained on."""
    messages = row["messages"]
    if len(messages) > 1 and messages[-1].get("role") == "assistant":
        return {"prompt": messages[:-1], "completion": messages[-1:]}
    return row
