"""The contract of a fault: what it does to a run, to which methods, and which findings it should bring.

A fault breaks a run in one real way, at the place where a user's run breaks: a parameter set wrongly, bad rows, a
collator, a data set, an adapter, an optimizer, a machine. Its hooks are called in the order in which they stand below,
each where :func:`lorawatch.trainer.fine_tune.fine_tune` makes that part of a run. None of them touches a metric.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer.recipe import Amount, Method, Recipe

Row = dict[str, Any]
Collator = Callable[[list[Any]], dict[str, Any]]
Reward = Callable[..., list[float]]


@dataclass(frozen=True, slots=True)
class Expected:
    """Findings of which one should come of a fault.

    Attributes:
        rules: Ids of rules, any of which sees it. A rule that this version of lorawatch lacks is left out when it is
            scored.
        least: Severity that the finding has at least.
        from_step: Optimizer step at which the fault begins to act: before it nothing can be seen.
        roots: Rules any of which is right when named as root of the incident; ``rules`` where it is empty.
        within: Share of the run within which the finding must have opened.
    """

    rules: tuple[str, ...]
    least: Severity = Severity.WARNING
    from_step: int = 0
    roots: tuple[str, ...] = ()
    within: float = 1.0


class Fault:
    """One way to break a run.

    Args:
        amount: ``plain``, which nobody overlooks in hindsight, or ``subtle``, near the edge of what can be seen.

    Attributes:
        name: In kebab case: ``learning-rate-too-high``.
        cause: What is done to the run, in one sentence.
        methods: Methods that can have it.
        needs: ``"cuda"`` for a fault that needs a card, ``"tmpfs"`` for one that needs to mount one; else empty.
        waits: True when the run spends most of its time waiting, so that several can share a processor.
        alone: True when it takes more of the machine than one processor, so that no other run should stand beside it.
        remedy: Words one of which the advice must hold for a person to find the cause, where the cause lies in data,
            code or machine, not in the recipe. The benchmark of advice then takes the fault out, as that person would.
            Empty where the cause is in the recipe.
    """

    name: ClassVar[str]
    cause: ClassVar[str]
    methods: ClassVar[frozenset[Method]] = frozenset({"sft"})
    needs: ClassVar[str] = ""
    waits: ClassVar[bool] = False
    alone: ClassVar[bool] = False
    remedy: ClassVar[tuple[str, ...]] = ()

    def __init__(self, amount: Amount = "plain") -> None:
        self.amount: Amount = amount

    @property
    def subtle(self) -> bool:
        """Whether the amount is the subtle one."""
        return self.amount == "subtle"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The findings that should come, the best one first, for the recipe as :meth:`misconfigure` left it.

        Empty where no rule can see this from what a run logs.
        """
        return ()

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """The recipe with the mistake in it, where the fault is one of configuration. Called once."""
        return recipe

    def prepare(self, recipe: Recipe) -> Recipe:
        """The recipe as this machine runs it: called before each run, and not part of what a user would change."""
        return recipe

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """The training rows."""
        return rows

    def evaluation_rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """The rows to evaluate on."""
        return rows

    def tokenizer(self, tokenizer: Any) -> Any:
        """The tokenizer, before the rows are tokenized."""
        return tokenizer

    def base(self, model: Any, recipe: Recipe) -> None:
        """The base model before the adapter is put on."""

    def adapted(self, model: Any, recipe: Recipe) -> None:
        """The model with the adapter on."""

    def optimizer(self, model: Any, recipe: Recipe) -> Any:
        """An optimizer to hand to the trainer; None to let it make its own. Called before the adapter is put on."""
        return None

    def reward(self, reward: Reward) -> Reward:
        """The reward function (grpo)."""
        return reward

    def collator(self, collator: Collator, recipe: Recipe) -> Collator:
        """The collator of the training batches. It must be possible to pickle it: workers take it along."""
        return collator

    def dataset(self, dataset: Any, recipe: Recipe) -> Any:
        """The tokenized training data set, as a map-style ``torch.utils.data.Dataset``."""
        return dataset

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """The trainer, before it trains."""

    def callbacks(self, recipe: Recipe) -> list[Any]:
        """Callbacks to add: what happens in mid-run."""
        return []

    def interrupted_at(self, recipe: Recipe) -> int | None:
        """Step at which the job dies, to be resumed from its last checkpoint; None for a job that runs through."""
        return None

    def between(self, checkpoint: Path) -> None:
        """What happens to the last checkpoint between the death of the job and its resumption."""
