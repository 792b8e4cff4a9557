"""The rule cfg/scaling."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import FactUpdate, Judged
from lorawatch.rule import Rule, param
from lorawatch.run import Run

PLAIN_STARTS = ("true", "false", "gaussian", "loftq", "orthogonal")
"""Values of ``init_lora_weights`` that leave the scale to alpha."""


LARGEST = 2.0**24
"""No rank and no alpha is larger: what states one is not to be believed."""


@dataclass(slots=True)
class CfgScaling(Rule):
    """The scale of the adapter is unusual: `lora_alpha` does not go with `r`.

    ## Why it matters
    The update of a weight is s·B·A, with s = alpha / r, or alpha / sqrt(r) with rsLoRA. With Adam, s acts much like a
    factor on the learning rate: too large damages what the base model knows, too small does not train. What counts is
    alpha in proportion to r, and both together with the learning rate.

    ## How it decides
    - s outside 0.25 to 4: information. Above 16: a warning.
    - rsLoRA with alpha of 2·r or more, once that makes s larger than 4: a warning, for the rule alpha = 2·r is one for
      alpha / r. With r = 64 the scale is then 16.
    - r of 128 or more with an alpha of 32 or less and no rsLoRA is told as what rsLoRA is for.

    It abstains for adapters that start from the base's own spectrum (PiSSA, OLoRA and their like), whose scale has
    another meaning.

    ## What to change
    Set r first, then alpha by the ratio: alpha = 2·r. At high ranks `use_rslora=True`. Alpha or the learning rate,
    never both at once.

    ## Known false alarms
    alpha = 32 at a high rank with plain scaling, together with a learning rate that was tuned for it, is a sound choice
    too: it is told as information.

    ## Sources
    Both sides: the tuning guide sets alpha = 2·r and does not tune it alone; Unsloth's guide says r or 2·r. Against it:
    Thinking Machines and Tinker keep alpha = 32 with 1/r at every rank, QLoRA used alpha 16 with r 64 (s = 0.25), TRL's
    LoRA page r 256 with alpha 16 and rsLoRA (s = 1), and `LoraConfig`'s default is 8 and 8. rsLoRA: arXiv 2312.03732.
    The limits 0.25, 4 and 16 are a heuristic.
    """

    id: ClassVar[str] = "cfg/scaling"
    title: ClassVar[str] = "Unusual scale of the adapter"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (FactUpdate,)
    needs_facts: ClassVar[tuple[str, ...]] = ("r", "lora_alpha")
    retells: ClassVar[bool] = True

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")
    low: float = param(0.25, unit="scale", help="Scale below which it is told.")
    high: float = param(4.0, unit="scale", help="Scale above which it is told.")
    extreme: float = param(16.0, unit="scale", help="Scale above which it warns.")

    def judge(self, facts: FactUpdate, run: Run) -> Breach | None:
        """Compute the scale and compare it."""
        rank, alpha = run.number("r"), run.number("lora_alpha")
        if rank is None or alpha is None or not 1 <= rank <= LARGEST or not 0 <= alpha <= LARGEST or _adaptive(run):
            return None
        stabilised = run.fact("use_rslora") is True
        scale = alpha / (math.sqrt(rank) if stabilised else rank)
        formula = f"alpha {alpha:g} / sqrt(r {rank:g})" if stabilised else f"alpha {alpha:g} / r {rank:g}"
        if self.low <= scale <= self.high:
            return None
        doubled = stabilised and alpha >= 2 * rank and scale > self.high
        case = "rslora" if doubled else "high" if scale > self.high else "low"
        told = f"the adapter's scale is {scale:.3g} ({formula}), "
        if case == "rslora":
            told += "for alpha = 2·r is a rule for alpha / r, not for rsLoRA"
        else:
            told += f"{'above' if case == 'high' else 'below'} the usual {self.low:g} to {self.high:g}"
        learning_rate = run.number("learning_rate")
        return Breach(
            told,
            {"scale": scale, "r": rank, "lora_alpha": alpha, "use_rslora": stabilised, "guide_alpha": 2 * rank,
             "scale_times_learning_rate": scale * learning_rate if learning_rate is not None else None, "case": case},
            Severity.WARNING if doubled or scale > self.extreme else None,
        )  # fmt: skip

    def missing(self, run: Run) -> tuple[str, ...]:
        """A start at which alpha sets the scale."""
        start = _adaptive(run)
        return (f"a usual scale for init_lora_weights {start}",) if start else ()

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Alpha by its ratio to r; rsLoRA where the rank is high."""
        told = breach.evidence
        rank, alpha = told["r"], told["lora_alpha"]
        firm = breach.severity is Severity.WARNING
        if told["case"] == "rslora" or (told["use_rslora"] and told["case"] == "high"):
            proposed = max(round(2 * math.sqrt(rank)), 1)
            why = "gives a scale of 2, as alpha = 2·r does without rsLoRA"
        else:
            proposed, why = round(2 * rank), "alpha = 2·r, the guide's ratio: a scale of 2"
        by_ratio = Adjustment(
            "lora_alpha", current=run.fact("lora_alpha"), proposed=proposed, confidence="medium" if firm else "low",
            why=why + "; the learning rate stays: both act alike", direction="up" if proposed > alpha else "down",
        )  # fmt: skip
        if told["case"] == "low" and not told["use_rslora"] and rank >= 128 and alpha <= 32:
            stable = Adjustment(
                "use_rslora", current=False, proposed=True, confidence="low",
                why=f"scales by alpha / sqrt(r): {alpha / math.sqrt(rank):.2g} instead of {alpha / rank:.2g}, so that "
                "a high rank is used",
            )  # fmt: skip
            return [stable, by_ratio]
        return [by_ratio]


def _adaptive(run: Run) -> str:
    start = str(run.fact("init_lora_weights", "true")).lower()
    return "" if start in PLAIN_STARTS else start[:40]
