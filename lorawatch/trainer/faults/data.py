"""Faults of the data: rows that are broken, too few, repeated, in the wrong order, or not what the labels say."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Sequence
from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer import world
from lorawatch.trainer.faults.contract import Expected, Fault, Row
from lorawatch.trainer.recipe import Recipe, RecipeError, changed

LEARNT_BY_HEART = ("eval/overfit", "eval/gap", "loss/memorised", "loss/stairs")
"""Rules that see a model that learns its rows by heart."""
EVAL_ROWS = 64
"""Rows to evaluate on where it is the evaluation that tells: below 50 its error is too large to say much."""


def reply_of(row: Row) -> str:
    """The text of a row that is trained on."""
    if "completion" in row:
        reply = row["completion"]
        return reply if isinstance(reply, str) else str(reply[-1]["content"])
    return str(row["messages"][-1]["content"]) if "messages" in row else str(row["text"])


def with_reply(row: Row, text: str) -> Row:
    """The row with another reply."""
    for column in ("completion", "messages"):
        given = row.get(column)
        if isinstance(given, list):
            return row | {column: [*given[:-1], given[-1] | {"content": text}]}
    return row | {"completion" if "completion" in row else "text": text}


def as_row(chat: Sequence[dict[str, str]], like: Row) -> Row:
    """A chat in the form of another row.

    Raises:
        RecipeError: That row is no chat.
    """
    messages = list(chat)
    if "messages" in like:
        return {"messages": messages}
    if not isinstance(like.get("prompt"), list):
        raise RecipeError(
            "--inject: this fault needs rows that are chats: messages, or prompt and completion of messages"
        )
    return {"prompt": messages[:-1], "completion": messages[-1:]}


def steps_of(recipe: Recipe, otherwise: int = 200) -> int:
    """``max_steps``, or another number where epochs are counted."""
    return recipe.max_steps if recipe.max_steps > 0 else otherwise


def batch_of(recipe: Recipe) -> int:
    """Sequences in an optimizer step."""
    return recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps


def once_in_order(recipe: Recipe, steps: int) -> Recipe:
    """The recipe with as many rows as it takes, read in the order of the file, and a log that shows each step."""
    return changed(
        recipe, max_steps=steps, train_rows=steps * batch_of(recipe), train_sampling_strategy="sequential",
        logging_steps=1,
    )  # fmt: skip


def garbage(dice: random.Random, length: int) -> str:
    """Bytes read as text."""
    return "".join(chr(dice.randrange(0x21, 0x100)) for _ in range(length))


class BadBatches(Fault):
    """Plain: four places of two whole batches. Subtle: one row in each batch of one place."""

    name: ClassVar[str] = "bad-batches"
    cause: ClassVar[str] = "a few neighbouring batches, read in the order of the file, hold binary data for text"
    remedy: ClassVar[tuple[str, ...]] = ("batch",)
    places: ClassVar[dict[str, tuple[float, ...]]] = {"plain": (0.3, 0.45, 0.6, 0.75), "subtle": (0.55,)}
    batches: ClassVar[int] = 2

    def __init__(self, amount: Any = "plain") -> None:
        super().__init__(amount)
        self._batch = 8

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The loss jumps, and the gradient norm with it."""
        first = int(self.places[self.amount][0] * steps_of(recipe))
        rules = ("loss/spike", "grad/spike")
        return (Expected(rules, Severity.INFO if self.subtle else Severity.WARNING, first),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """A file that is not shuffled, and a log that shows each step."""
        return once_in_order(recipe, steps_of(recipe))

    def prepare(self, recipe: Recipe) -> Recipe:
        """Nothing but the size of a batch is asked for."""
        self._batch = batch_of(recipe)
        return recipe

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Put binary data into some of them."""
        bad = list(rows)
        for place in self.places[self.amount]:
            first = int(place * (len(rows) // self._batch)) * self._batch
            for at in range(
                first, min(first + self.batches * self._batch, len(rows)), self._batch if self.subtle else 1
            ):
                bad[at] = with_reply(rows[at], garbage(dice, 40))
        return bad


def again_and_again(recipe: Recipe, rows: int, steps: int) -> Recipe:
    """The recipe with few rows, and epochs enough for so many steps; twenty evaluations of rows enough to count."""
    epochs = max(round(steps * batch_of(recipe) / rows), 2)
    return changed(recipe, train_rows=rows, num_train_epochs=epochs, max_steps=-1, eval_steps=0.05, eval_rows=EVAL_ROWS)


class TinyDataset(Fault):
    """Plain: 32 rows. Subtle: 96 rows."""

    name: ClassVar[str] = "tiny-dataset"
    cause: ClassVar[str] = "few rows are trained on for many epochs"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The evaluation loss rises while the training loss falls."""
        return (Expected(("eval/overfit", "eval/gap"), roots=LEARNT_BY_HEART),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Count epochs, not steps."""
        return again_and_again(recipe, 96 if self.subtle else 32, 240)


class TooManyEpochs(Fault):
    """Plain: 16 epochs. Subtle: 10."""

    name: ClassVar[str] = "too-many-epochs"
    cause: ClassVar[str] = "rows that are enough for a few epochs are trained on for many"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The training loss falls on, the evaluation loss does not."""
        return (Expected(LEARNT_BY_HEART, Severity.INFO),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Count epochs, not steps."""
        return again_and_again(recipe, 360 * batch_of(recipe) // (10 if self.subtle else 16), 360)


class DuplicatedData(Fault):
    """Plain: 24 rows. Subtle: 64 rows."""

    name: ClassVar[str] = "duplicated-data"
    cause: ClassVar[str] = "the file holds the same few rows again and again"
    remedy: ClassVar[tuple[str, ...]] = ("duplicate",)

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """What repeats is learnt by heart, in one epoch too; the rows themselves show it before the first step."""
        least = Severity.INFO if self.subtle else Severity.WARNING
        return (Expected(LEARNT_BY_HEART, least, roots=(*LEARNT_BY_HEART, "cfg/label-audit")),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Evaluate often enough, on rows enough, for the turn to be seen."""
        return changed(recipe, eval_steps=0.05, eval_rows=EVAL_ROWS)

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Copies."""
        few = rows[: 64 if self.subtle else 24]
        return [few[number % len(few)] for number in range(len(rows))]


class ShuffledLabels(Fault):
    """Plain: of all rows. Subtle: of half of them."""

    name: ClassVar[str] = "shuffled-labels"
    cause: ClassVar[str] = "the replies belong to other prompts: two columns were sorted apart"
    remedy: ClassVar[tuple[str, ...]] = ("cleaner data", "labels")

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """What is learnt of them is learnt by heart."""
        rules = ("eval/overfit", "eval/gap", "loss/not-learning")
        return (Expected(rules, roots=("loss/not-learning", *LEARNT_BY_HEART)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """As many epochs as a file of this size bears, where its labels are right."""
        return again_and_again(recipe, 120, 360)

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Permute the replies."""
        moved = range(0, len(rows), 2 if self.subtle else 1)
        replies = [reply_of(rows[at]) for at in moved]
        dice.shuffle(replies)
        mixed = list(rows)
        for at, reply in zip(moved, replies, strict=True):
            mixed[at] = with_reply(rows[at], reply)
        return mixed


class UnlearnableReplies(Fault):
    """Plain: all words are drawn by lot. Subtle: one in two."""

    name: ClassVar[str] = "unlearnable-replies"
    cause: ClassVar[str] = "the replies are words drawn by lot: there is nothing in them to learn"
    remedy: ClassVar[tuple[str, ...]] = ("data", "labels")

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The loss starts near that of guessing, and stands still at the entropy of the words."""
        return (Expected(("loss/start", "loss/not-learning", "loss/plateau", "loss/slow-start"), Severity.INFO),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Log each step."""
        return changed(recipe, logging_steps=1, max_steps=steps_of(recipe))

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Draw the words of each reply."""
        words = sorted({word for row in rows[:200] for word in reply_of(row).split()})

        def drawn(reply: str) -> str:
            return " ".join(
                word if self.subtle and dice.random() < 0.5 else dice.choice(words) for word in reply.split()
            )

        return [with_reply(row, drawn(reply_of(row))) for row in rows]


class LengthGroupedRipple(Fault):
    """Plain: half of the rows are receipts, short and hard. Subtle: a third."""

    name: ClassVar[str] = "length-grouped-ripple"
    cause: ClassVar[str] = "batches are grouped by length, and short rows are harder than long ones"
    block: ClassVar[int] = 10

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """A period."""
        return (Expected(("loss/periodic",), Severity.INFO),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Group by length; the sampler sorts a quarter of an epoch at a time, 50 batches at most."""
        batch = 8
        return changed(
            recipe, train_sampling_strategy="group_by_length", train_rows=4 * self.block * batch, logging_steps=1,
            max_steps=steps_of(recipe), per_device_train_batch_size=batch, gradient_accumulation_steps=1,
        )  # fmt: skip

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Mix receipts in: what was bought nobody can know."""
        share = 1 / 3 if self.subtle else 1 / 2
        return [as_row(receipt(dice), row) if dice.random() < share else row for row in rows]


class OrderedSources(Fault):
    """Four batches of one, then four of the other: all rows of these (plain), or every second one (subtle)."""

    name: ClassVar[str] = "ordered-sources"
    cause: ClassVar[str] = "rows of two sources stand in the file in blocks, and nothing shuffles them"
    remedy: ClassVar[tuple[str, ...]] = ("shuffle", "order")
    block: ClassVar[int] = 4

    def __init__(self, amount: Any = "plain") -> None:
        super().__init__(amount)
        self._batch = 8

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """A period."""
        return (Expected(("loss/periodic",), Severity.INFO),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Read the file in its order, log each step: a period is told from 96 on, and the first ones fall steeply."""
        return once_in_order(recipe, max(steps_of(recipe), 240))

    def prepare(self, recipe: Recipe) -> Recipe:
        """Nothing but the size of a batch is asked for."""
        self._batch = batch_of(recipe)
        return recipe

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Put blocks of another source in: receipts, of which nobody can know what was bought."""
        size, every = self.block * self._batch, 2 if self.subtle else 1
        return [
            as_row(receipt(dice), row) if (at // size) % 2 and at % every == 0 else row for at, row in enumerate(rows)
        ]


def receipt(dice: random.Random) -> list[dict[str, str]]:
    """A question for a receipt, and one with things drawn by lot: shorter than most rows, and harder."""
    things = ", ".join(dice.choice(world.THINGS)["name"] for _ in range(10))
    return [{"role": "user", "content": "Print my receipt."}, {"role": "assistant", "content": f"Receipt: {things}."}]


class WrongTokenizer(Fault):
    """Plain: trained anew on the rows. Subtle: a later version, with one token put in at two fifths."""

    name: ClassVar[str] = "wrong-tokenizer"
    cause: ClassVar[str] = "the tokenizer is not the base model's: its ids mean other tokens"
    remedy: ClassVar[tuple[str, ...]] = ("tokenizer",)

    def __init__(self, amount: Any = "plain") -> None:
        super().__init__(amount)
        self._texts: list[str] = []

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """A start near that of guessing at random."""
        return (Expected(("loss/start",), Severity.WARNING, within=0.1),)

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Keep the texts, to train a tokenizer on."""
        self._texts = [reply_of(row) for row in rows]
        return rows

    def tokenizer(self, tokenizer: Any) -> Any:
        """Another one, with the same special tokens and chat template."""
        if self.subtle:
            return with_ids_shifted(tokenizer, 2 * len(tokenizer) // 5)
        return tokenizer.train_new_from_iterator(self._texts, len(tokenizer), show_progress=False)


def with_ids_shifted(tokenizer: Any, start: int) -> Any:
    """A copy of a fast BPE tokenizer whose ids from ``start`` on are one higher, the last one at ``start``.

    Raises:
        RecipeError: The tokenizer is of another sort.
    """
    from tokenizers import Tokenizer  # noqa: PLC0415  (only a training run has it)

    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    vocabulary = stored["model"].get("vocab")
    if not isinstance(vocabulary, dict):
        raise RecipeError("--inject wrong-tokenizer:subtle: needs a base model with a BPE tokenizer")
    fixed = {token["content"] for token in stored["added_tokens"]}
    moved = sorted((number, token) for token, number in vocabulary.items() if number >= start and token not in fixed)
    numbers = [number for number, _ in moved]
    for (_, token), number in zip(moved, numbers[1:] + numbers[:1], strict=True):
        vocabulary[token] = number
    other = copy.deepcopy(tokenizer)
    other._tokenizer = Tokenizer.from_str(json.dumps(stored))
    return other


class PaddingWaste(Fault):
    """Plain: a tenth of the rows holds eight replies, the others a few words. Subtle: four, among whole ones."""

    name: ClassVar[str] = "padding-waste"
    cause: ClassVar[str] = "rows of very different length are batched at random, and padded to the longest"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The callback counts the padding."""
        return (Expected(("perf/padding-waste",), Severity.INFO if self.subtle else Severity.WARNING),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Steps enough for 30 of them, every eighth, to be counted: it is told by every tenth, from the 25th on."""
        return changed(recipe, max_steps=max(steps_of(recipe), 250), per_device_train_batch_size=8, max_length=512)

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Short replies, and some that are several in one."""
        replies = [reply_of(row) for row in rows]
        most = min(4 if self.subtle else 8, len(replies))

        def mixed(reply: str) -> str:
            if dice.random() < 0.1:
                return " ".join([reply, *dice.sample(replies, most - 1)])
            return reply if self.subtle else " ".join(reply.split()[-3:])

        return [with_reply(row, mixed(reply)) for row, reply in zip(rows, replies, strict=True)]
