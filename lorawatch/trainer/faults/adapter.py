"""Faults of the adapter: on the wrong modules, frozen, or unknown to the optimizer."""

from __future__ import annotations

from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer.faults.contract import Expected, Fault
from lorawatch.trainer.recipe import Method, Recipe, changed

FROZEN_FROM = 60
"""Optimizer step after which the subtle freeze begins."""


class AdapterOnWrongModules(Fault):
    """Plain: of five names four are misspelt. Subtle: of seven one is."""

    name: ClassVar[str] = "adapter-on-wrong-modules"
    cause: ClassVar[str] = "target_modules holds misspelt names beside right ones, which PEFT takes without a word"
    methods: ClassVar[frozenset[Method]] = frozenset({"sft", "dpo", "grpo"})

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told from the configuration; the loss falls all the same."""
        return (Expected(("cfg/target-mismatch", "cfg/target-coverage", "lora/dead-modules")),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Misspell names."""
        if self.subtle:
            names = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_prj", "up_proj", "down_proj"]
        else:
            names = ["k_proj", "query_proj", "value_proj", "gate_prj", "dense"]
        return changed(recipe, target_modules=names)


class AdapterFrozen(Fault):
    """Plain: from the start. Subtle: only after a while, as an unfreezing schedule the wrong way round does."""

    name: ClassVar[str] = "adapter-frozen"
    cause: ClassVar[str] = "a freeze hook for full fine-tuning zeroes the gradients of all names below model.layers"
    methods: ClassVar[frozenset[Method]] = frozenset({"sft", "dpo"})
    remedy: ClassVar[tuple[str, ...]] = ("print_trainable_parameters", "optimizer", "is_trainable")

    def __init__(self, amount: Any = "plain") -> None:
        super().__init__(amount)
        self._frozen = False

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """A gradient norm of exactly 0."""
        return (Expected(("sig/dead-gradient",), Severity.CRITICAL, FROZEN_FROM if self.subtle else 0),)

    def adapted(self, model: Any, recipe: Recipe) -> None:
        """Hook the gradients of the decoder's layers, the adapter's among them."""
        self._frozen = not self.subtle

        def freeze(gradient: Any) -> Any:
            return gradient * 0.0 if self._frozen else gradient

        for name, parameter in model.named_parameters():
            if "model.layers." in name and parameter.requires_grad:
                parameter.register_hook(freeze)

    def callbacks(self, recipe: Recipe) -> list[Any]:
        """Begin late, where it is subtle."""
        if not self.subtle:
            return []
        from transformers import TrainerCallback  # noqa: PLC0415

        fault = self

        class FreezeLate(TrainerCallback):
            """Freezes from a step on."""

            def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                fault._frozen = state.global_step >= FROZEN_FROM

        return [FreezeLate()]


class OptimizerMadeTooEarly(Fault):
    """Plain: the rows come in the same order in each epoch, so that their losses repeat. Subtle: they are shuffled."""

    name: ClassVar[str] = "optimizer-made-too-early"
    cause: ClassVar[str] = "the optimizer is made before the adapter is put on, and steps on the base's parameters"
    remedy: ClassVar[tuple[str, ...]] = ("print_trainable_parameters", "optimizer")
    epoch: ClassVar[int] = 50
    """Steps of an epoch of the plain fault."""

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The losses of an epoch come again digit by digit; where they cannot, the loss does not fall."""
        if self.subtle:
            return (Expected(("loss/not-learning", "sig/dead-gradient")),)
        return (Expected(("sig/dead-gradient",), Severity.CRITICAL),)

    def prepare(self, recipe: Recipe) -> Recipe:
        """Rows in their order, several epochs of them."""
        if self.subtle:
            return recipe
        rows = self.epoch * recipe.per_device_train_batch_size * recipe.gradient_accumulation_steps
        return changed(recipe, train_sampling_strategy="sequential", train_rows=rows)

    def optimizer(self, model: Any, recipe: Recipe) -> Any:
        """AdamW over what trains before the adapter is there: the whole base."""
        import torch  # noqa: PLC0415

        parameters = [one for one in model.parameters() if one.requires_grad]
        return torch.optim.AdamW(
            parameters, lr=recipe.peak_rate, betas=(recipe.adam_beta1, recipe.adam_beta2),
            weight_decay=recipe.weight_decay,
        )  # fmt: skip
