"""The rule cfg/bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import FactUpdate, Judged, ModelTree
from lorawatch.rule import Rule, param
from lorawatch.run import Run


@dataclass(slots=True)
class CfgBias(Rule):
    """Biases of the base model are trained beside the adapter.

    ## Why it matters
    Most language models have few biases or none, so that `bias="all"` or `"lora_only"` trains next to nothing. What it
    does train is part of the base: with the adapter switched off or removed, the model no longer answers as the base
    did, and what is compared with the base (sample generations, KL) is not quite compared with it.

    ## How it decides
    `bias` is neither `"none"` nor unknown: information. Where the modules of the model are known, it says how many
    biases of linear layers there are.

    ## What to change
    `bias="none"`.

    ## Known false alarms
    BitFit-like training on purpose.

    ## Sources
    The tuning guide: always "none", for modern models have little use for biases, and "all" adds trainable parameters
    for nothing. PEFT's documentation of `LoraConfig.bias`: with "all" or "lora_only" the model is not that of before
    when adapters are disabled. No evidence for the other side was found for language models.
    """

    id: ClassVar[str] = "cfg/bias"
    title: ClassVar[str] = "Biases of the base are trained"
    severity: ClassVar[Severity] = Severity.INFO
    judges: ClassVar[tuple[type[Judged], ...]] = (FactUpdate, ModelTree)
    needs_facts: ClassVar[tuple[str, ...]] = ("bias",)
    retells: ClassVar[bool] = True

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")

    def judge(self, record: FactUpdate | ModelTree, run: Run) -> Breach | None:
        """Look at the option."""
        bias = str(run.fact("bias")).lower()
        if bias not in ("all", "lora_only"):
            return None
        told, count = f'bias is "{bias}": biases of the base are trained too', None
        if run.model is not None:
            groups = [group for group in run.model.groups if group.kind == "linear" and group.inputs and not group.tied]
            count = sum(
                (group.parameters - group.inputs * group.outputs)
                * (group.count if bias == "all" else group.adapted or 0)
                for group in groups
            )
            told += f"; the linear layers have {count:,} of them" if count else "; the linear layers have none"
        return Breach(told, {"bias": bias, "biases": count, "case": "counted" if count is not None else "stated"})

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """None of them."""
        return [
            Adjustment(
                "bias",
                current=breach.evidence["bias"],
                proposed="none",
                confidence="low",
                why="keeps the base as it is, so that the adapter alone holds what was learnt",
            )
        ]
