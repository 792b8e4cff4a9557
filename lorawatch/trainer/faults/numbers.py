"""Faults of arithmetic: values that are not finite, for good or in one step."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer.faults.contract import Expected, Fault, Row
from lorawatch.trainer.recipe import Amount, Method, Recipe, changed

BROKEN = "~"
"""Text of the token that is broken: the built-in data do not use it."""
_SCALE = 1e7
"""Weights of 0.01 and more pass the limit of fp16 (65,504) times this."""


class NanFromStep(Fault):
    """Plain: every second step is logged. Subtle: every tenth, so that the log shows it late."""

    name: ClassVar[str] = "nan-from-step"
    cause: ClassVar[str] = "a row of a base weight becomes infinite in mid-run, as by a cast to fp16"
    methods: ClassVar[frozenset[Method]] = frozenset({"sft", "dpo"})
    remedy: ClassVar[tuple[str, ...]] = ("checkpoint",)
    step: ClassVar[dict[str, int]] = {"plain": 60, "subtle": 63}
    """Optimizer step after which the weight is infinite. 63: the next log still holds six finite losses of ten."""

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The gradient norm is NaN, and the Trainer's filter makes the loss 0."""
        return (Expected(("sig/hidden-nan",), Severity.CRITICAL, self.step[self.amount]),)

    def prepare(self, recipe: Recipe) -> Recipe:
        """With the Trainer's filter on, its default."""
        return changed(recipe, logging_nan_inf_filter=True, logging_steps=10 if self.subtle else 2)

    def callbacks(self, recipe: Recipe) -> list[Any]:
        """Cast a weight at the step."""
        return [after_step(self.step[self.amount], overflow)]


class NanInTheLog(NanFromStep):
    """Plain: every second step is logged. Subtle: every tenth."""

    name: ClassVar[str] = "nan-in-the-log"
    cause: ClassVar[str] = "a row of a base weight becomes infinite in mid-run, and the Trainer's NaN filter is off"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Loss and gradient norm are NaN."""
        return (Expected(("sig/nan",), Severity.CRITICAL, self.step[self.amount]),)

    def prepare(self, recipe: Recipe) -> Recipe:
        """With the filter off."""
        return changed(recipe, logging_nan_inf_filter=False, logging_steps=10 if self.subtle else 2)


class TransientNan(Fault):
    """Plain: every step is logged. Subtle: every fifth, so that the filter mends the mean and only the norm is NaN."""

    name: ClassVar[str] = "transient-nan"
    cause: ClassVar[str] = "the gradients of one batch are NaN, and the step is skipped, as GradScaler and DeepSpeed do"
    remedy: ClassVar[tuple[str, ...]] = ("batch",)
    step: ClassVar[dict[str, int]] = {"plain": 60, "subtle": 60}
    """Optimizer step that takes the bad batch."""

    def __init__(self, amount: Amount = "plain") -> None:
        super().__init__(amount)
        self._row = BrokenRow(self.step[amount])

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """One log with a norm that is not finite: the run lives, so that a warning is the most that is right."""
        return (Expected(("sig/hidden-nan",), Severity.INFO, self.step[self.amount] - 1),)

    def prepare(self, recipe: Recipe) -> Recipe:
        """With the filter on; rows in their order, so that the bad one comes at its step."""
        logged = changed(recipe, logging_nan_inf_filter=True, logging_steps=5 if self.subtle else 1)
        return self._row.placed(logged)

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Put the broken token into a row."""
        return self._row.into(rows)

    def tokenizer(self, tokenizer: Any) -> Any:
        """Look up the broken token."""
        return self._row.looked_up(tokenizer)

    def base(self, model: Any, recipe: Recipe) -> None:
        """Break the token's embedding."""
        self._row.break_embedding(model)

    def callbacks(self, recipe: Recipe) -> list[Any]:
        """The guard that skips the step."""
        return [skip_what_is_not_finite()]


class NanPoisonsTheLog(TransientNan):
    """Plain: the bad step is one that is logged. Subtle: it lies between two logs."""

    name: ClassVar[str] = "nan-poisons-the-log"
    cause: ClassVar[str] = (
        "the gradients of one batch are NaN, the step is skipped, and the Trainer's NaN filter is off"
    )
    step: ClassVar[dict[str, int]] = {"plain": 60, "subtle": 63}

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Each later loss in the log is NaN, with finite gradients."""
        return (Expected(("sig/nan",), Severity.WARNING, self.step[self.amount] - 1),)

    def prepare(self, recipe: Recipe) -> Recipe:
        """With the filter off; rows in their order."""
        logged = changed(recipe, logging_nan_inf_filter=False, logging_steps=10 if self.subtle else 2)
        return self._row.placed(logged)


class BrokenRow:
    """One row with a token whose embedding is infinite, as that of an unused token can be after a bad conversion.

    Args:
        step: Optimizer step that takes the row.
    """

    def __init__(self, step: int) -> None:
        self.step = step
        self.rows_a_step = 1
        self.tokens: list[int] = []

    def placed(self, recipe: Recipe) -> Recipe:
        """The recipe with its rows in their own order."""
        self.rows_a_step = recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
        return changed(recipe, train_sampling_strategy="sequential")

    def into(self, rows: list[Row]) -> list[Row]:
        """The rows with the token in the prompt of one of step its step."""
        at = (self.step - 1) * self.rows_a_step % len(rows)
        row = dict(rows[at])
        prompt = row["prompt"]
        if isinstance(prompt, str):
            row["prompt"] = prompt + BROKEN
        else:
            row["prompt"] = [*prompt[:-1], {**prompt[-1], "content": prompt[-1]["content"] + BROKEN}]
        return [*rows[:at], row, *rows[at + 1 :]]

    def looked_up(self, tokenizer: Any) -> Any:
        """The tokenizer as it is; the ids of the token are kept."""
        self.tokens = list(tokenizer.encode(BROKEN, add_special_tokens=False))[-1:]
        return tokenizer

    def break_embedding(self, model: Any) -> None:
        """Make the token's input embedding infinite; a head that shares it gets a copy from before."""
        import torch  # noqa: PLC0415

        embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
        if head is not None and head.weight is embedding.weight:
            head.weight = torch.nn.Parameter(embedding.weight.detach().clone(), requires_grad=False)
            model.config.tie_word_embeddings = False
        with torch.no_grad():
            embedding.weight[self.tokens] = float("inf")


def overflow(model: Any) -> None:
    """Take a row of the last adapted layer's base weight through fp16 at a scale that it cannot hold."""
    import torch  # noqa: PLC0415

    layers = [module for module in model.modules() if hasattr(module, "base_layer") and hasattr(module, "lora_B")]
    weight = layers[-1].base_layer.weight
    with torch.no_grad():
        weight[0] = (weight[0] * _SCALE).half().to(weight.dtype) / _SCALE


def after_step(step: int, act: Callable[[Any], None]) -> Any:
    """A callback that does something to the model at the end of one optimizer step."""
    from transformers import TrainerCallback  # noqa: PLC0415

    class AfterStep(TrainerCallback):
        """Acts once."""

        def on_step_end(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            if state.global_step == step:
                act(model)

    return AfterStep()


def skip_what_is_not_finite() -> Any:
    """A callback that skips a step whose gradients are not finite, as GradScaler and DeepSpeed do."""
    import torch  # noqa: PLC0415
    from transformers import TrainerCallback  # noqa: PLC0415

    class Guard(TrainerCallback):
        """Drops gradients before the optimizer sees them."""

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, model: Any = None, **kwargs: Any) -> None:
            gradients = [one.grad for one in model.parameters() if one.grad is not None]
            if not all(bool(torch.isfinite(one).all()) for one in gradients):
                model.zero_grad(set_to_none=True)

    return Guard()
