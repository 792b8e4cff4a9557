"""Faults of the adapter: on the wrong modules, frozen, unknown to the optimizer, growing, or no longer finite."""

from __future__ import annotations

from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer.faults.contract import Expected, Fault
from lorawatch.trainer.faults.optimisation import RUINED
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


class AdapterPartlyFrozen(Fault):
    """Plain: the lower half of the layers. Subtle: the lowest one."""

    name: ClassVar[str] = "adapter-partly-frozen"
    cause: ClassVar[str] = "code that freezes the lower layers, written for full fine-tuning, freezes their adapter too"
    remedy: ClassVar[tuple[str, ...]] = ("freez", "frozen", "requires_grad", "print_trainable_parameters")

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Their B stays at zero; the loss falls all the same."""
        return (Expected(("lora/dead-modules",), from_step=40),)

    def adapted(self, model: Any, recipe: Recipe) -> None:
        """Freeze them."""
        count = int(model.config.num_hidden_layers)
        frozen = range(1 if self.subtle else count // 2)
        for name, parameter in model.named_parameters():
            if any(f".layers.{layer}." in name for layer in frozen):
                parameter.requires_grad_(False)


class WeightDecayWithWrongSign(Fault):
    """Plain: the adapter grows by 2.4 % a step. Subtle: by 2 %."""

    name: ClassVar[str] = "weight-decay-with-wrong-sign"
    cause: ClassVar[str] = "a penalty on the adapter's weights is subtracted where it should be added: they grow"
    remedy: ClassVar[tuple[str, ...]] = ("weight_decay", "weight decay")
    at: ClassVar[int] = 100
    """Optimizer step after which it acts, as a penalty that is faded in."""

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The adapter's largest singular value grows on its own; in the end the loss breaks."""
        seen = ("lora/growth", "lora/update-size", *RUINED)
        return (Expected(seen, from_step=self.at, roots=(*seen, "sig/hidden-nan", "sig/nan")),)

    def callbacks(self, recipe: Recipe) -> list[Any]:
        """Let them grow."""
        import torch  # noqa: PLC0415
        from transformers import TrainerCallback  # noqa: PLC0415

        at, factor = self.at, 1.02 if self.subtle else 1.024

        class Grow(TrainerCallback):
            """Multiplies what trains after each step."""

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step >= at:
                    with torch.no_grad():
                        for parameter in kwargs["model"].parameters():
                            if parameter.requires_grad:
                                parameter.mul_(factor)

        return [Grow()]


class AdapterNotFinite(Fault):
    """Plain: a NaN in one weight that every token goes through. Subtle: in the adapter of a module that is skipped."""

    name: ClassVar[str] = "adapter-not-finite"
    cause: ClassVar[str] = "a number of the adapter is no longer finite: an overflow that was written into it"
    remedy: ClassVar[tuple[str, ...]] = ("checkpoint", "not finite", "finite")
    at: ClassVar[int] = 90

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The look at the weights finds it; the loss too, where the module is used."""
        seen = ("lora/not-finite", "sig/hidden-nan", "sig/nan")
        return (Expected(seen[:1] if self.subtle else seen, Severity.CRITICAL, self.at - 1, roots=seen),)

    def adapted(self, model: Any, recipe: Recipe) -> None:
        """Skip the adapter of the last layer's first module, as an expert that is never routed to."""
        if self.subtle:
            module = _last_adapted(model)
            module.forward = module.base_layer.forward

    def callbacks(self, recipe: Recipe) -> list[Any]:
        """Write it."""
        import torch  # noqa: PLC0415
        from transformers import TrainerCallback  # noqa: PLC0415

        at = self.at

        class Overflow(TrainerCallback):
            """Writes one NaN."""

            def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                if state.global_step == at:
                    with torch.no_grad():
                        _last_adapted(kwargs["model"]).lora_B["default"].weight[0, 0] = float("nan")

        return [Overflow()]


def _last_adapted(model: Any) -> Any:
    """The adapted module that stands last."""
    return [module for module in model.modules() if hasattr(module, "lora_B") and len(module.lora_B)][-1]
