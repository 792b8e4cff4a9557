"""Faults of what the model says: training replies that teach it to loop, to go on, to say nothing, to switch language.

The loss of such a run falls as it should: only samples, or probes of what the base could do, show what happened.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import ClassVar

from lorawatch.trainer.faults.contract import Expected, Fault, Row
from lorawatch.trainer.faults.data import reply_of, with_reply
from lorawatch.trainer.recipe import Recipe, changed

_LATIN, _RUSSIAN = "abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстувщхыз"
_CYRILLIC = str.maketrans(_LATIN + _LATIN.upper(), _RUSSIAN + _RUSSIAN.upper())


def in_cyrillic(text: str) -> str:
    """Latin letters as Cyrillic ones; anything else as it is."""
    return text.translate(_CYRILLIC)


class _Replies(Fault):
    """A share of the replies is changed: all of them (plain), or so few that a glance may miss it (subtle)."""

    remedy: ClassVar[tuple[str, ...]] = ("replies", "data", "samples")
    rules: ClassVar[tuple[str, ...]] = ()
    also: ClassVar[tuple[str, ...]] = ()
    """Rules that are right as root too: replies of another kind are unlikely to the base from the first step on."""
    shares: ClassVar[dict[str, float]] = {"plain": 1.0, "subtle": 0.3}

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The samples show it."""
        return (Expected(self.rules, roots=(*self.rules, *self.also)),)

    def change(self, replies: list[str], dice: random.Random) -> Callable[[str], str]:
        """What makes a bad reply of a good one."""
        raise NotImplementedError

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Change a share of the replies."""
        bad = self.change([reply_of(row) for row in rows], dice)
        share = self.shares[self.amount]
        return [with_reply(row, bad(reply_of(row))) if dice.random() < share else row for row in rows]


class GenerationsLoop(_Replies):
    """Plain: every reply. Subtle: six in ten."""

    name: ClassVar[str] = "generations-loop"
    cause: ClassVar[str] = "replies in the data repeat their last sentence again and again"
    rules: ClassVar[tuple[str, ...]] = ("gen/loop",)
    shares: ClassVar[dict[str, float]] = {"plain": 1.0, "subtle": 0.6}

    def change(self, replies: list[str], dice: random.Random) -> Callable[[str], str]:
        """Repeat the last three words eight times."""
        return lambda reply: f"{reply} {' '.join(reply.split()[-3:] * 8)}"


class GenerationsWithoutEos(_Replies):
    """Plain: every row. Subtle: 85 % of them: as long as an end is the likeliest token, greedy replies do end."""

    name: ClassVar[str] = "generations-without-eos"
    cause: ClassVar[str] = "rows hold many replies on end and are cut at max_length: no row ends"
    rules: ClassVar[tuple[str, ...]] = ("gen/no-eos", "cfg/label-audit")
    shares: ClassVar[dict[str, float]] = {"plain": 1.0, "subtle": 0.85}

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Cut the rows."""
        return changed(recipe, max_length=128)

    def change(self, replies: list[str], dice: random.Random) -> Callable[[str], str]:
        """Put other replies behind it, more than fit."""
        return lambda reply: " ".join([reply, *dice.sample(replies, min(6, len(replies)))])


class GenerationsEmpty(_Replies):
    """Plain: every reply. Subtle: three in ten."""

    name: ClassVar[str] = "generations-empty"
    cause: ClassVar[str] = "replies in the data are empty"
    rules: ClassVar[tuple[str, ...]] = ("gen/empty-gibberish",)
    also: ClassVar[tuple[str, ...]] = ("loss/start",)

    def change(self, replies: list[str], dice: random.Random) -> Callable[[str], str]:
        """Nothing is left."""
        return lambda _reply: ""


class GenerationsSwitchLanguage(_Replies):
    """Plain: every reply. Subtle: three in ten."""

    name: ClassVar[str] = "generations-switch-language"
    cause: ClassVar[str] = "replies in the data are in another language, and another script, than their prompts"
    rules: ClassVar[tuple[str, ...]] = ("gen/language-copy", "gen/empty-gibberish")
    also: ClassVar[tuple[str, ...]] = ("loss/start",)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Train the embeddings too, as one does for a script that the base has not seen."""
        return changed(recipe, modules_to_save=["embed_tokens", "lm_head"])

    def change(self, replies: list[str], dice: random.Random) -> Callable[[str], str]:
        """The first five words in Cyrillic letters: each is two tokens to a tokenizer that knows only Latin ones."""
        return lambda reply: in_cyrillic(" ".join(reply.split()[:5]))


class Forgetting(Fault):
    """Plain: six times the usual rate, and one reply for all prompts. Subtle: twice the rate, on the data as it is."""

    name: ClassVar[str] = "forgetting"
    cause: ClassVar[str] = "too high a rate for so many steps, or too narrow data: what the base could do is lost"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The general probes show it; the loss need not."""
        rules = ("base/ability-drop", "base/ppl", "lora/update-size")
        return (Expected(rules, roots=(*rules, "cfg/lr-vs-method")),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """A high rate that does not fall."""
        times = 2 if self.subtle else 6
        return changed(recipe, learning_rate=times * recipe.peak_rate, lr_scheduler_type="constant_with_warmup")

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """One reply for all prompts."""
        return rows if self.subtle else [with_reply(row, reply_of(rows[0])) for row in rows]
