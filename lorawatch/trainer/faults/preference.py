"""Faults of preference data and of its optimisation (DPO)."""

from __future__ import annotations

import random
from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer.faults.contract import Expected, Fault, Row
from lorawatch.trainer.recipe import Method, Recipe, changed

DPO: frozenset[Method] = frozenset({"dpo"})


def swapped(row: Row) -> Row:
    """The pair with chosen and rejected exchanged."""
    return row | {"chosen": row["rejected"], "rejected": row["chosen"]}


class PreferenceSwapped(Fault):
    """Plain: all pairs. Subtle: three in four."""

    name: ClassVar[str] = "preference-swapped"
    cause: ClassVar[str] = "chosen and rejected are exchanged: the columns were named the other way round"
    methods: ClassVar[frozenset[Method]] = DPO
    remedy: ClassVar[tuple[str, ...]] = ("chosen", "order")

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Evaluated on pairs in their right order, it prefers the rejected reply."""
        return (Expected(("pref/reversed",)),)

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Exchange them."""
        return [row if self.subtle and dice.random() < 0.25 else swapped(row) for row in rows]


class PreferenceRandom(Fault):
    """Plain: a coin for each pair. Subtle: 45 % of the pairs are exchanged."""

    name: ClassVar[str] = "preference-random"
    cause: ClassVar[str] = "which of the two replies is the chosen one was drawn by lot"
    methods: ClassVar[frozenset[Method]] = DPO
    remedy: ClassVar[tuple[str, ...]] = ("pair", "order")

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """A loss of ln 2 and an accuracy of one half."""
        return (Expected(("pref/no-signal",)),)

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Exchange about half of them."""
        share = 0.45 if self.subtle else 0.5
        return [swapped(row) if dice.random() < share else row for row in rows]


class MarginExplosion(Fault):
    """Plain: twenty times the usual rate, few pairs. Subtle: six times."""

    name: ClassVar[str] = "margin-explosion"
    cause: ClassVar[str] = "too high a rate over too many epochs: the margin between the replies grows without end"
    methods: ClassVar[frozenset[Method]] = DPO

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """A margin of more than 100 nats, or a loss of nothing."""
        rules = ("pref/margin-explosion", "pref/likelihood-displacement")
        return (Expected(rules, roots=("cfg/lr-vs-method", *rules)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Raise the rate."""
        return changed(recipe, learning_rate=recipe.peak_rate * (6 if self.subtle else 20), train_rows=200)


class PairsNearlyIdentical(Fault):
    """Plain: the replies differ in their last word alone, at ten times the usual rate. Subtle: at five times."""

    name: ClassVar[str] = "pairs-nearly-identical"
    cause: ClassVar[str] = "the two replies differ in one word, so that pushing one down pushes both down"
    methods: ClassVar[frozenset[Method]] = DPO

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The likelihood of the chosen reply falls."""
        rules = ("pref/likelihood-displacement", "pref/margin-explosion", "pref/no-signal")
        return (Expected(rules, Severity.INFO, roots=("cfg/lr-vs-method", *rules)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Raise the rate."""
        return changed(recipe, learning_rate=recipe.peak_rate * (5 if self.subtle else 10))

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Make the rejected reply of the chosen one."""
        return [row | {"rejected": _with_other_end(row["chosen"], dice)} for row in rows]

    def evaluation_rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """The same: they come of the same file."""
        return self.rows(rows, dice)


def _with_other_end(reply: Any, dice: random.Random) -> Any:
    """The reply with another number in the place of its last word."""
    if isinstance(reply, str):
        return " ".join([*reply.split()[:-1], f"{dice.randint(2, 99)}."])
    return [*reply[:-1], reply[-1] | {"content": _with_other_end(reply[-1]["content"], dice)}]
