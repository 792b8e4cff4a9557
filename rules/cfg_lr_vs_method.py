"""The rule cfg/lr-vs-method."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import FactUpdate, Judged, ModelTree
from lorawatch.remedies import rounded
from lorawatch.rule import Rule, param
from lorawatch.run import Kind, Run

USUAL = {Kind.SFT: 2e-4, Kind.DPO: 5e-6, Kind.GRPO: 1e-5}
"""Learning rates that TRL's PEFT page recommends for a LoRA adapter, by method."""
BANDS = {Kind.SFT: (5e-5, 2e-3), Kind.DPO: (1e-6, 5e-5), Kind.GRPO: (2e-6, 1e-4)}
"""Rates outside of which a LoRA run of that kind is unusual, for models of a billion parameters and more."""
SEVERAL_RATES = ("loraplus_lr_ratio", "loraplus_lr_embedding", "lorap_lr_ratio")
"""Facts of LoRA+: the stated rate is that of A only."""
PLAIN_STARTS = ("true", "gaussian", "loftq", "orthogonal")
"""Values of ``init_lora_weights`` with which B·A starts at zero; all others start from the base's own spectrum."""


@dataclass(slots=True)
class CfgLrVsMethod(Rule):
    """The learning rate is unusual for a LoRA adapter and this method.

    ## Why it matters
    An adapter takes about ten times the rate of full fine-tuning, and each method has its own scale. The loss curve
    does not show a rate that is four times too low: it only ends a little higher. A rate five to ten times too high
    ends in divergence, often after hours.

    ## How it decides
    The stated `learning_rate` is compared with a band. The band is a prior: what most LoRA runs of that method use.

    - Supervised fine-tuning: 5e-5 to 2e-3. DPO: 1e-6 to 5e-5. GRPO: 2e-6 to 1e-4.
    - Models narrower than 2,048 bear larger rates: the upper edge is multiplied by (2048 / hidden_size) ^ 0.781, the
      scaling that Tinker's cookbook published for Llama, and by a further 1.25, since that is an extrapolation below
      every size that it was fitted on.

    Outside of the band it warns. It abstains without an adapter, for other methods, with LoRA+ (two rates), and where
    the adapter starts from the base's own spectrum (PiSSA, OLoRA, CorDA, EVA, LoRA-GA). A resumed run may anneal.

    ## What to change
    2e-4 for supervised fine-tuning, 5e-6 for DPO, 1e-5 for GRPO; for runs of less than 100 steps up to 15 times the
    rate of full fine-tuning. The learning rate or alpha, never both: the update scales with alpha / r times the rate.

    ## Known false alarms
    Continued training on purpose at a low rate, an optimizer other than Adam's kin (its rates have another scale), and
    small models of families that do not follow Llama's scaling: Tinker's exponent for Qwen was 0.0775.

    ## Sources
    TRL's PEFT page (2e-4 SFT, 5e-6 DPO, 1e-5 GRPO, ten times full fine-tuning). Tinker's cookbook, `hyperparam_utils`:
    measured best rates from 1e-4 to 1e-3 at alpha 32 (Qwen3-8B 1e-3, Llama-3.1-8B 3e-4), and the scaling by width; its
    sweep diverges at 2e-3 and 4e-3. The edges of the bands are a heuristic. `SFTConfig.learning_rate` is 2e-5 by
    default, a rate for full fine-tuning. The tuning guide names no rate, but moves it first when the loss falls slowly.
    """

    id: ClassVar[str] = "cfg/lr-vs-method"
    title: ClassVar[str] = "Unusual learning rate for this method"
    severity: ClassVar[Severity] = Severity.WARNING
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (FactUpdate, ModelTree)
    needs_facts: ClassVar[tuple[str, ...]] = ("learning_rate", "r")
    kinds: ClassVar[frozenset[Kind]] = frozenset(BANDS)
    retells: ClassVar[bool] = True

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")
    width: float = param(2048.0, unit="hidden size", help="Width below which models bear larger rates.")
    exponent: float = param(0.781, unit="power", help="Power of the width by which the rate scales (Tinker, Llama).")
    margin: float = param(1.25, unit="ratio", help="What a scaled edge is widened by, since it is extrapolated.")

    def judge(self, record: FactUpdate | ModelTree, run: Run) -> Breach | None:
        """Compare the stated rate with the band."""
        rate, band = run.number("learning_rate"), BANDS.get(run.kind)
        if rate is None or rate <= 0.0 or band is None or _other_scale(run) or run.resumed_step is not None:
            return None
        low, high = band
        factor = self._factor(run)
        if factor > 1.0:
            high *= factor * self.margin
        if low <= rate <= high:
            return None
        alpha, rank = run.number("lora_alpha"), run.number("r")
        side = "below" if rate < low else "above"
        return Breach(
            f"learning_rate {rate:.3g} is {side} the {low:g} to {rounded(high):g} that LoRA usually takes for "
            f"{run.kind.value}" + (f" in a model of width {_hidden_size(run):.0f}" if factor > 1.0 else ""),
            {"learning_rate": rate, "low": low, "high": rounded(high), "usual": self._usual(run),
             "method": run.kind.value, "hidden_size": _hidden_size(run),
             "scale": alpha / rank if alpha and rank else None, "case": side},
        )  # fmt: skip

    def missing(self, run: Run) -> tuple[str, ...]:
        """A scale that the band is not made for."""
        why = _other_scale(run)
        return (f"a band for {why}",) if why else ()

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """The usual rate."""
        told, rate = breach.evidence, run.number("learning_rate")
        low = told["case"] == "below"
        why = "a prior: what LoRA runs of this method usually take; change the learning rate or alpha, not both"
        if low:
            why += "; about ten times the rate of full fine-tuning, up to 15 times in runs of less than 100 steps"
        return [
            Adjustment(
                "learning_rate", current=rate, proposed=told["usual"], why=why, confidence="medium",
                direction="up" if low else "down",
                cost="a risk of divergence: watch the first 100 steps" if low else "",
            )
        ]  # fmt: skip

    def _factor(self, run: Run) -> float:
        hidden = _hidden_size(run)
        return (self.width / hidden) ** self.exponent if hidden and 1.0 <= hidden < self.width else 1.0

    def _usual(self, run: Run) -> float:
        return rounded(USUAL[run.kind] * self._factor(run))


def _hidden_size(run: Run) -> float | None:
    """Width of the model: stated, or that of its first embedding."""
    stated = run.number("hidden_size")
    if stated is not None or run.model is None:
        return stated
    widths = [group.outputs for group in run.model.groups if group.kind == "embedding" and group.outputs > 0]
    return float(widths[0]) if widths else None


def _other_scale(run: Run) -> str:
    """Why the usual rates say nothing of this adapter; empty where they do."""
    kind, start = str(run.fact("peft_type", "LORA")).upper(), str(run.fact("init_lora_weights", "true")).lower()
    if kind != "LORA":
        return f"peft_type {kind[:40]}"
    if any(run.fact(name) is not None for name in SEVERAL_RATES):
        return "LoRA+, which has two learning rates"
    return "" if start in PLAIN_STARTS or start == "false" else f"init_lora_weights {start[:40]}"
