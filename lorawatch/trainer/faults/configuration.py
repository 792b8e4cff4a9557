"""Faults of configuration that a run takes without a word, and that its log may never show."""

from __future__ import annotations

from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer.faults.contract import Expected, Fault
from lorawatch.trainer.recipe import Method, Recipe, changed


class FewModulesAdapted(Fault):
    """Plain: the output projection of the attention alone. Subtle: query and value, as old recipes have it."""

    name: ClassVar[str] = "few-modules-adapted"
    cause: ClassVar[str] = "target_modules leaves out most of the linear layers"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told from the configuration; the few that there are have further to go."""
        roots = ("cfg/target-coverage", "lora/update-size")
        return (Expected(roots[:1], Severity.INFO if self.subtle else Severity.WARNING, roots=roots, within=0.1),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Name few of them."""
        return changed(recipe, target_modules=["q_proj", "v_proj"] if self.subtle else ["o_proj"])


class BiasTrained(Fault):
    """Plain: all biases. Subtle: those of the adapted layers."""

    name: ClassVar[str] = "bias-trained"
    cause: ClassVar[str] = "biases of the base are trained: switching the adapter off no longer gives the base"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told from the configuration."""
        return (Expected(("cfg/bias",), Severity.INFO, within=0.1),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Another ``bias``."""
        return changed(recipe, bias="lora_only" if self.subtle else "all")


class SavedModulesMisspelt(Fault):
    """Plain: no name is one of the model's. Subtle: one of two is."""

    name: ClassVar[str] = "saved-modules-misspelt"
    cause: ClassVar[str] = "modules_to_save holds names that the model does not have, which PEFT takes without a word"
    remedy: ClassVar[tuple[str, ...]] = ("names of the model",)

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Each name is held against the model's modules."""
        return (Expected(("cfg/modules-to-save",), within=0.1),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Misspell names."""
        return changed(recipe, modules_to_save=["embed_tokens", "score"] if self.subtle else ["embed_token", "score"])


class RateOfFullFineTuning(Fault):
    """Plain: 2e-5, TRL's own default. Subtle: 4e-5."""

    name: ClassVar[str] = "rate-of-full-fine-tuning"
    cause: ClassVar[str] = "the learning rate is one for full fine-tuning, a tenth of what an adapter takes"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told from the configuration, at once; later the loss may show it too."""
        return (Expected(("cfg/lr-vs-method",), within=0.1),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Lower the rate."""
        return changed(recipe, learning_rate=4e-5 if self.subtle else 2e-5)


class AdapterInHalfPrecision(Fault):
    """Plain: fp16, whose smallest steps are too coarse. Subtle: bf16 and a rate below what it can add."""

    name: ClassVar[str] = "adapter-in-half-precision"
    cause: ClassVar[str] = "the trained weights themselves are in 16 bit, so that small updates are rounded away"
    remedy: ClassVar[tuple[str, ...]] = ("float32", "fp32", "precision")

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told from the type of the trained weights."""
        roots = ("cfg/precision", "sig/nan", "sig/hidden-nan", "lora/not-finite", "cfg/lr-vs-method")
        least = Severity.INFO if self.subtle else Severity.WARNING
        return (Expected(("cfg/precision",), least, roots=roots, within=0.1),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """A small rate, where it is subtle."""
        return changed(recipe, learning_rate=8e-6) if self.subtle else recipe

    def adapted(self, model: Any, recipe: Recipe) -> None:
        """Cast what trains."""
        import torch  # noqa: PLC0415

        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.bfloat16 if self.subtle else torch.float16)


class RunWithoutEyes(Fault):
    """Plain: ten rows in the log, no evaluation, a NaN filter. Subtle: a row every 5 % of the run, and evaluation."""

    name: ClassVar[str] = "run-without-eyes"
    cause: ClassVar[str] = "hardly anything is logged: what goes wrong cannot be seen in time"
    methods: ClassVar[frozenset[Method]] = frozenset({"sft", "dpo"})

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told from the configuration."""
        return (Expected(("cfg/blind-spots",), Severity.INFO, within=0.1),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Log little."""
        if self.subtle:
            return changed(recipe, logging_steps=0.05, logging_first_step=False)
        return changed(
            recipe, logging_steps=0.1, logging_first_step=False, eval_rows=0, logging_nan_inf_filter=True
        )  # fmt: skip
