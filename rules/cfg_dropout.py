"""The rule cfg/dropout."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import FactUpdate, Judged
from lorawatch.remedies import effective_batch
from lorawatch.rule import Rule, param
from lorawatch.run import Run


@dataclass(slots=True)
class CfgDropout(Rule):
    """The adapter's dropout is higher than what helps, or unsteady together with a quantised base and small batches.

    ## Why it matters
    `lora_dropout` drops inputs of A in training. A little of it helps against overfitting on small data, at a cost in
    speed and memory: each adapted layer keeps a dropped copy of its input, and Unsloth's fast path needs 0. Much of it
    takes away what the adapter is to learn from.

    ## How it decides
    - Above 0.1: information. Above 0.3: a warning. At 1 the adapter gets no input and cannot learn.
    - Above 0 with a 4-bit base and 4 or fewer sequences an optimizer step: information.

    ## What to change
    0.0; or 0.05 to 0.1 where the evaluation shows overfitting.

    ## Known false alarms
    Very small data sets, where more than 0.1 may be meant.

    ## Sources
    The tuning guide: 0.0, 0.05 or 0.1; 0.0 by default, for with quantisation and small batches dropout may be unstable;
    0.05 to 0.1 when overfitting is severe; rarely useful on large data. PEFT's and Unsloth's default is 0. On the other
    side, QLoRA itself used 0.1 for 7B and 13B and 0.05 for larger models, in 4 bit; and LoRA by its rank already
    regularises more than dropout does (arXiv 2405.09673), so that dropout comes late among the remedies. The limit
    of 0.3 is a heuristic.
    """

    id: ClassVar[str] = "cfg/dropout"
    title: ClassVar[str] = "Unusual dropout of the adapter"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (FactUpdate,)
    needs_facts: ClassVar[tuple[str, ...]] = ("lora_dropout",)
    retells: ClassVar[bool] = True

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")
    usual: float = param(0.1, unit="share", help="The guide's highest dropout.")
    high: float = param(0.3, unit="share", help="Dropout above which it warns.")
    small_batch: float = param(4.0, unit="sequences", help="Batch up to which dropout on a 4-bit base is told.")

    def judge(self, facts: FactUpdate, run: Run) -> Breach | None:
        """Compare the dropout with the usual values."""
        dropout = run.number("lora_dropout")
        if dropout is None or dropout <= 0.0:
            return None
        batch = effective_batch(run)
        evidence = {"lora_dropout": dropout, "usual": [0.0, 0.05, 0.1], "effective_batch": batch}
        if dropout > self.usual:
            told = f"lora_dropout is {dropout:g}; usual values are 0, 0.05 and 0.1"
            if dropout >= 1.0:
                told = f"lora_dropout is {dropout:g}: the adapter gets no input in training and cannot learn"
            return Breach(told, evidence | {"case": "high"}, Severity.WARNING if dropout > self.high else None)
        if run.fact("load_in_4bit") is True and batch is not None and 0 < batch <= self.small_batch:
            return Breach(
                f"lora_dropout is {dropout:g} on a 4-bit base with {batch:g} sequences a step: the guide holds that "
                "to be unstable, QLoRA's own recipe has it at larger batches",
                evidence | {"case": "quantised"},
            )
        return None

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Less of it, or none."""
        dropout, high = breach.evidence["lora_dropout"], breach.evidence["case"] == "high"
        why = "0.1 is the most that the guide advises, and that where evaluation shows overfitting; 0 is the default"
        return [
            Adjustment(
                "lora_dropout", current=dropout, proposed=self.usual if high else 0.0, direction="down",
                confidence="medium" if dropout > self.high else "low",
                why=why if high else "no dropout is steadier with quantised weights and small batches, and faster",
            )
        ]  # fmt: skip
