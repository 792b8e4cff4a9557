"""Faults of reinforcement (GRPO): rewards without variance, completions that are cut, a policy that narrows."""

from __future__ import annotations

from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer.faults.contract import Expected, Fault, Reward
from lorawatch.trainer.recipe import Method, Recipe, changed

GRPO: frozenset[Method] = frozenset({"grpo"})
STEPS = 60
"""Optimizer steps of such a run: each one generates."""
TOKENS = 24
"""Tokens of a completion: twice what the base needs for a sum."""
WORD = "coin"
"""What is paid for where the reward can be had by saying one thing."""


def short(recipe: Recipe, **changes: Any) -> Recipe:
    """The recipe as a short run, with every step logged."""
    given: dict[str, Any] = {
        "max_steps": STEPS, "max_completion_length": TOKENS, "logging_steps": 1, "eval_rows": 0,
        "per_device_train_batch_size": 2 * recipe.num_generations,
    }  # fmt: skip
    return changed(recipe, **(given | changes))


class RewardConstant(Fault):
    """Plain: 1 for everything. Subtle: 1 where the good reward gives three quarters, which the base seldom reaches."""

    name: ClassVar[str] = "reward-constant"
    cause: ClassVar[str] = "the reward is the same for all completions of a prompt: there is nothing to prefer"
    methods: ClassVar[frozenset[Method]] = GRPO
    remedy: ClassVar[tuple[str, ...]] = ("reward",)

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """All groups without variance."""
        return (Expected(("rl/no-variance",), Severity.WARNING if self.subtle else Severity.CRITICAL),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """A short run."""
        return short(recipe)

    def reward(self, reward: Reward) -> Reward:
        """Without variance, or with next to none."""

        def constant(completions: list[Any], **columns: Any) -> list[float]:
            if not self.subtle:
                return [1.0] * len(completions)
            return [float(value >= 0.75) for value in reward(completions, **columns)]

        return constant


class CompletionsTruncated(Fault):
    """Plain: 4 tokens. Subtle: 7."""

    name: ClassVar[str] = "completions-truncated"
    cause: ClassVar[str] = "max_completion_length is too short: completions are cut before they end"
    methods: ClassVar[frozenset[Method]] = GRPO

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Most of them are clipped."""
        return (Expected(("rl/truncation",)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """A short run of short completions."""
        return short(recipe, max_completion_length=7 if self.subtle else 4)


class EntropyCollapse(Fault):
    """Plain: four times the usual rate. Subtle: three times it."""

    name: ClassVar[str] = "entropy-collapse"
    cause: ClassVar[str] = "each mention of one word is rewarded, at too high a rate: the policy narrows to that word"
    methods: ClassVar[frozenset[Method]] = GRPO

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The entropy falls on when the reward no longer rises; all completions of a prompt earn the same then."""
        rules = ("rl/entropy-collapse", "rl/no-variance")
        return (Expected(rules, roots=("cfg/lr-vs-method", "rl/truncation", *rules)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Raise the rate; no pull to the base. Time enough to see that the reward no longer rises."""
        return short(recipe, max_steps=90, learning_rate=recipe.peak_rate * (3 if self.subtle else 4), beta=0.0)

    def reward(self, reward: Reward) -> Reward:
        """Pay for a word, as often as it is said."""

        def mentions(completions: list[Any], **_columns: Any) -> list[float]:
            texts = [str(one[-1]["content"] if isinstance(one, list) else one) for one in completions]
            return [min(text.count(WORD) / 8, 1.0) for text in texts]

        return mentions


class LengthRewarded(Fault):
    """Plain: the reward is the length. Subtle: seven tenths of it are."""

    name: ClassVar[str] = "length-rewarded"
    cause: ClassVar[str] = "the reward can be had by saying more: completions grow, and mean nothing"
    methods: ClassVar[frozenset[Method]] = GRPO
    remedy: ClassVar[tuple[str, ...]] = ("reward", "length")

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Completions grow while the reward rises, until they are cut."""
        rules = ("rl/length-drift", "rl/truncation")
        return (Expected(rules, roots=("cfg/lr-vs-method", *rules)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """A run of longer completions, at twice the rate."""
        return short(recipe, max_completion_length=64, max_steps=80, learning_rate=2 * recipe.peak_rate, beta=0.0)

    def reward(self, reward: Reward) -> Reward:
        """Pay by the word."""

        def by_the_word(completions: list[Any], **columns: Any) -> list[float]:
            texts = [str(one[-1]["content"] if isinstance(one, list) else one) for one in completions]
            paid = [min(len(text.split()) / 48, 1.0) for text in texts]
            if not self.subtle:
                return paid
            good = reward(completions, **columns)
            return [0.7 * one + 0.3 * other for one, other in zip(paid, good, strict=True)]

        return by_the_word


class PolicyRunsAway(Fault):
    """Plain: eight times the usual rate, each batch used four times. Subtle: four times the rate."""

    name: ClassVar[str] = "policy-runs-away"
    cause: ClassVar[str] = (
        "too many and too large steps on each batch: the policy leaves the one that it was sampled by"
    )
    methods: ClassVar[frozenset[Method]] = GRPO

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The divergence from the reference, or the share of clipped tokens, runs up."""
        rules = ("rl/policy-gap", "rl/entropy-collapse", "rl/length-drift", "rl/truncation", "rl/no-variance")
        return (Expected(rules, roots=("cfg/lr-vs-method", "grad/explosion", *rules)),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Larger steps, more of them."""
        return short(
            recipe, learning_rate=recipe.peak_rate * (4 if self.subtle else 8), beta=0.001,
            training_arguments=recipe.training_arguments | {"num_iterations": 4},
        )  # fmt: skip
