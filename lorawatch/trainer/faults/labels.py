"""Faults of the labels: tokens that should be trained on and are masked, or cut off."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer.faults.contract import Collator, Expected, Fault, Row
from lorawatch.trainer.recipe import Recipe, RecipeError, changed

IGNORED = -100
"""Label of a token that is not trained on."""
OTHER_TEMPLATE = "### Response:"
"""Start of a reply in Alpaca's template, which no ChatML-like text holds."""
OTHER_ROLE = "gpt"
"""Name of the role that replies, in ShareGPT's files."""


class ReplyOnlyCollator:
    """A collator that looks for the start of the reply and masks all before it; all of a row where there is none.

    It does what TRL's ``DataCollatorForCompletionOnlyLM`` did before version 0.20.

    Args:
        collator: Makes the batch.
        start: Token ids with which a reply starts.
    """

    def __init__(self, collator: Collator, start: list[int]) -> None:
        self._collator, self._start = collator, start

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """Make a batch."""
        batch = self._collator(rows)
        for ids, labels in zip(batch["input_ids"].tolist(), batch["labels"], strict=True):
            labels[: reply_begins(ids, self._start)] = IGNORED
        return batch


def reply_begins(ids: list[int], start: list[int]) -> int:
    """Index of the first token after the last place where ``start`` stands; the length where it stands nowhere."""
    for at in range(len(ids) - len(start), -1, -1):
        if ids[at : at + len(start)] == start:
            return at + len(start)
    return len(ids)


class TokenMaskingCollator:
    """A collator that masks every label of one token, as where padding is told by its id.

    Args:
        collator: Makes the batch.
        token: Id of the token.
        spared: Every row of a batch whose number is divisible by it is left as it is; 0 to spare none.
    """

    def __init__(self, collator: Collator, token: int, spared: int = 0) -> None:
        self._collator, self._token, self._spared = collator, token, spared

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """Make a batch."""
        batch = self._collator(rows)
        for number, labels in enumerate(batch["labels"]):
            if not self._spared or number % self._spared:
                labels[labels == self._token] = IGNORED
        return batch


class LabelsAllMasked(Fault):
    """Plain: no reply starts as the collator thinks. Subtle: those of a second file do not, read after the first."""

    name: ClassVar[str] = "labels-all-masked"
    cause: ClassVar[str] = (
        "the collator looks for a start of the reply that the rows do not have, and masks every label"
    )
    remedy: ClassVar[tuple[str, ...]] = ("labels", "response template")

    def __init__(self, amount: Any = "plain") -> None:
        super().__init__(amount)
        self._start: list[int] = []

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Loss and gradient norm of exactly 0: from the first step on, or from the second file on."""
        roots = ("sig/no-supervision", "cfg/label-audit")
        if not self.subtle:
            return (Expected(("sig/no-supervision",), Severity.CRITICAL, 0, roots, within=0.1),)
        return (Expected(("sig/no-supervision",), Severity.CRITICAL, recipe.max_steps // 2, roots, within=0.6),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Two files, one after the other."""
        if not self.subtle:
            return recipe
        steps = recipe.max_steps if recipe.max_steps > 0 else 200
        rows = steps * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
        return changed(recipe, max_steps=steps, train_rows=rows, train_sampling_strategy="sequential")

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """The second half has another name for the role that replies."""
        if not self.subtle:
            return rows
        half = len(rows) // 2
        return rows[:half] + [in_other_role(row) for row in rows[half:]]

    def tokenizer(self, tokenizer: Any) -> Any:
        """Where the collator thinks that a reply starts."""
        text = start_of_reply(tokenizer) if self.subtle else OTHER_TEMPLATE
        self._start = tokenizer.encode(text, add_special_tokens=False)
        return tokenizer

    def collator(self, collator: Collator, recipe: Recipe) -> Collator:
        """Train on what comes after it only."""
        return ReplyOnlyCollator(collator, self._start)


def start_of_reply(tokenizer: Any) -> str:
    """What the chat template puts before a reply, line breaks at its ends taken away."""
    asked = [{"role": "user", "content": "?"}]
    question = str(tokenizer.apply_chat_template(asked, tokenize=False))
    prompt = str(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True))
    return prompt.removeprefix(question).strip("\n")


def in_other_role(row: Row) -> Row:
    """The row with its reply in the role that ShareGPT's files call ``gpt``.

    Raises:
        RecipeError: The row is no chat.
    """
    column = "completion" if "completion" in row else "messages"
    if not isinstance(row.get(column), list):
        raise RecipeError("--inject labels-all-masked:subtle: needs rows that are chats, with roles")
    return row | {
        column: [
            message | {"role": OTHER_ROLE} if message["role"] == "assistant" else message for message in row[column]
        ]
    }


class LabelsEosMasked(Fault):
    """Plain: in every row. Subtle: in three of four, as where one of several files was prepared otherwise."""

    name: ClassVar[str] = "labels-eos-masked"
    cause: ClassVar[str] = (
        "the padding token is the end-of-turn token, and its labels are masked: no reply learns to end"
    )
    remedy: ClassVar[tuple[str, ...]] = ("pad_token", "end-of-turn", "eos")

    def __init__(self, amount: Any = "plain") -> None:
        super().__init__(amount)
        self._token = -1

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The labels of the first batches show it; the samples may, later on."""
        return (Expected(("cfg/label-audit",), roots=("cfg/label-audit", "gen/no-eos"), within=0.1),)

    def tokenizer(self, tokenizer: Any) -> Any:
        """The token that ends a turn."""
        self._token = int(tokenizer.eos_token_id)
        return tokenizer

    def collator(self, collator: Collator, recipe: Recipe) -> Collator:
        """Mask it."""
        return TokenMaskingCollator(collator, self._token, 4 if self.subtle else 0)


class LabelsTruncated(Fault):
    """Plain: four replies of five lose their end. Subtle: the longest fifth of them."""

    name: ClassVar[str] = "labels-truncated"
    cause: ClassVar[str] = "max_length is shorter than the rows: replies are cut, or cut off"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The first batches show rows that fill ``max_length`` and end without the end-of-turn token."""
        return (Expected(("cfg/label-audit",), roots=("cfg/label-audit", "gen/no-eos"), within=0.1),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """A short ``max_length``."""
        return changed(recipe, max_length=84 if self.subtle else 56)


class EvaluationWithoutLabels(Fault):
    """Plain: all rows. Subtle: the last batch of them."""

    name: ClassVar[str] = "evaluation-without-labels"
    cause: ClassVar[str] = "evaluation rows have no label left: their mean loss is one over no tokens"
    remedy: ClassVar[tuple[str, ...]] = ("evaluation rows",)

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """An evaluation loss of NaN beside gradients that are in order."""
        return (Expected(("sig/nan",), Severity.WARNING),)

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Evaluation rows that were prepared wrongly, and the loss of plain transformers.

        TRL's own loss makes 0 of a batch without labels, so that such a row lowers ``eval_loss`` and no more.
        """
        data = trainer.eval_dataset
        first = len(data) - recipe.per_device_eval_batch_size if self.subtle else 0
        trainer.eval_dataset = data.map(
            lambda row, at: {"labels": [IGNORED] * len(row["labels"])} if at >= first else {}, with_indices=True
        )
        trainer.compute_loss_func = mean_loss


def mean_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """The loss of a causal language model as ``transformers.Trainer`` has it: a mean over the labels of the batch."""
    from transformers.loss.loss_utils import ForCausalLMLoss  # noqa: PLC0415  (loads torch)

    logits = outputs.logits
    return ForCausalLMLoss(logits, labels, logits.shape[-1], num_items_in_batch=num_items_in_batch)
