"""The first rows of a data file as TRL's SFTTrainer would tokenise and label them, without TRL, datasets or a cache.

A restatement of ``SFTTrainer._prepare_dataset`` (TRL 1.16) for language-modelling, prompt-completion and conversational
rows; a test compares it with the trainer's own. Packing is left out: it moves rows, not labels.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path
from typing import Any

MAX_LINE = 4 << 20
"""Characters of a line that is read."""
MAX_FILE = 256 << 20
"""Bytes of a JSON file, which has to be read whole."""
IGNORED = -100


class RowError(ValueError):
    """Rows that cannot be read or tokenised: one line says why."""


def first_items(file: Path, count: int) -> list[dict[str, Any]]:
    """The first rows of a JSONL, JSON or CSV file.

    Raises:
        RowError: It cannot be read, holds no rows, or a row is no mapping.
    """
    try:
        items = list(islice(_items(file), count))
    except OSError as error:
        raise RowError(f"{file}: {error.strerror or error}") from None
    except UnicodeDecodeError:
        raise RowError(f"{file}: not UTF-8") from None
    except (ValueError, RecursionError, csv.Error) as error:
        raise RowError(f"{file}: {str(error)[:160] or 'nested too deeply'}") from None
    if not items:
        raise RowError(f"{file}: no rows in it")
    for number, item in enumerate(items, start=1):
        if not isinstance(item, dict):
            raise RowError(f"{file}: row {number} is no mapping of columns to values")
    return items


def _items(file: Path) -> Iterator[Any]:
    if file.suffix == ".json":
        if file.stat().st_size > MAX_FILE:
            raise ValueError(f"larger than {MAX_FILE >> 20} MiB; give it as JSONL")
        found = json.loads(file.read_text(encoding="utf-8"))
        yield from found if isinstance(found, list) else []
    elif file.suffix == ".csv":
        with file.open(encoding="utf-8", newline="") as opened:
            yield from csv.DictReader(opened)
    else:
        with file.open(encoding="utf-8") as opened:
            for number, line in enumerate(iter(lambda: opened.readline(MAX_LINE), ""), start=1):
                if len(line) == MAX_LINE:
                    raise ValueError(f"line {number} is longer than {MAX_LINE >> 20} MiB")
                if line.strip():
                    try:
                        yield json.loads(line)
                    except ValueError:
                        raise ValueError(f"line {number} is not JSON") from None


def label_rows(
    items: list[dict[str, Any]], tokenizer: Any, *, text_field: str = "text", assistant_only: bool = False,
    completion_only: bool | None = None, max_length: int | None = None,
) -> list[dict[str, list[list[int]]]]:  # fmt: skip
    """Batches of one row each, with ``input_ids``, ``labels`` and ``attention_mask``, as the trainer would have them.

    Rows that are wholly masked once they are cut are left out by the trainer; they are kept here, to be told.

    Args:
        items: Rows of the data.
        tokenizer: The tokenizer.
        text_field: Column of plain text (``dataset_text_field``).
        assistant_only: ``assistant_only_loss``.
        completion_only: ``completion_only_loss``; by default True where rows have a prompt.
        max_length: Tokens at which rows are cut.

    Raises:
        RowError: The columns are of no form that SFTTrainer takes, or the tokenizer fails on a row.
    """
    batches: list[dict[str, list[list[int]]]] = []
    for number, item in enumerate(items, start=1):
        try:
            ids, labels = _row(_chatml(item), tokenizer, text_field, assistant_only, completion_only)
        except RowError:
            raise
        except Exception as error:  # whatever a template or tokenizer raises
            said = " ".join(f"{type(error).__name__}: {error}".split())[:160]
            raise RowError(f"row {number} cannot be tokenised: {said}") from None
        ids, labels = ids[:max_length], labels[:max_length]
        if ids:
            batches.append({"input_ids": [ids], "labels": [labels], "attention_mask": [[1] * len(ids)]})
    return batches


def _chatml(item: Mapping[str, Any]) -> dict[str, Any]:
    """Turns of ``from`` and ``value`` as ``role`` and ``content`` (``trl.data_utils.maybe_convert_to_chatml``)."""
    found = dict(item)
    for name in ("prompt", "completion", "messages", "conversations"):
        turns = found.get(name)
        if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) and "from" in turns[0]:
            found[name] = [{"role": turn.get("from"), "content": turn.get("value")} for turn in turns]
    if "conversations" in found and "messages" not in found:
        found["messages"] = found.pop("conversations")
    return found


def _row(
    item: dict[str, Any], tokenizer: Any, text_field: str, assistant_only: bool, completion_only: bool | None
) -> tuple[list[int], list[int]]:
    eos = str(getattr(tokenizer, "eos_token", None) or "")
    masks: list[list[int]] = []
    if assistant_only and not isinstance(item.get("prompt", item.get("messages")), list):
        raise RowError("assistant_only_loss is set, and the rows are no conversations: SFTTrainer refuses them")
    if "prompt" in item and "completion" in item:
        prompt, completion = item["prompt"], item["completion"]
        if isinstance(prompt, list):
            before = _chat(tokenizer, prompt, item, prompt=True)[0]
            ids, assistant = _chat(tokenizer, prompt + completion, item, mask=assistant_only)
            masks += [] if assistant is None else [assistant]
        else:
            text = str(completion)
            before = _plain(tokenizer, str(prompt))
            ids = _plain(tokenizer, str(prompt) + (text if not eos or text.endswith(eos) else text + eos))
        if completion_only is not False:
            shared = next((at for at, (one, two) in enumerate(zip(before, ids, strict=False)) if one != two), None)
            start = min(len(before), len(ids)) if shared is None else shared
            masks.append([0] * start + [1] * (len(ids) - start))
    elif isinstance(item.get("messages"), list):
        ids, assistant = _chat(tokenizer, item["messages"], item, mask=assistant_only)
        masks += [] if assistant is None else [assistant]
    elif isinstance(item.get(text_field), str):
        text = item[text_field]
        ids = _plain(tokenizer, text if not eos or text.endswith(eos) else text + eos)
    else:
        columns = ", ".join(str(name)[:40] for name in list(item)[:6])
        raise RowError(
            f"the columns ({columns}) are neither messages, nor prompt and completion, nor {text_field}; "
            "labels can only be told for these"
        )
    labels = [one if all(mask[at] for mask in masks) else IGNORED for at, one in enumerate(ids)]
    return ids, labels


def _plain(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text)["input_ids"])


def _chat(
    tokenizer: Any, messages: list[Any], item: Mapping[str, Any], *, prompt: bool = False, mask: bool = False
) -> tuple[list[int], list[int] | None]:
    found = tokenizer.apply_chat_template(
        messages, tools=item.get("tools"), add_generation_prompt=prompt, tokenize=True, return_dict=True,
        return_assistant_tokens_mask=mask,
    )  # fmt: skip
    assistant = found.get("assistant_masks") if mask else None
    return list(found["input_ids"]), None if assistant is None else list(assistant)
