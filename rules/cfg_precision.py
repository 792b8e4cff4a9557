"""The rule cfg/precision."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import FactUpdate, GpuReading, Judged
from lorawatch.remedies import look
from lorawatch.rule import Rule, param
from lorawatch.run import Run

_BF16_CARDS = re.compile(
    r"\b(?:A(?:2|10|10G|10M|16|30|40|100|800)|H(?:20|100|200|800)|GH200|B(?:100|200|300)|GB(?:10|200|300)"
    r"|L(?:2|4|20|40|40S))\b|\bA(?:100|800)[- ]|GeForce RTX [3-9]0\d0|RTX (?:A\d{3,4}|PRO)|\bAda\b|\bMI[23]\d\d",
    re.IGNORECASE,
)
"""Names of cards that compute in bf16: NVIDIA from Ampere on (compute capability 8.0), AMD from MI200 on."""
HALF = ("float16", "fp16", "torch.float16", "half")
BRAIN = ("bfloat16", "bf16", "torch.bfloat16")


@dataclass(slots=True)
class CfgPrecision(Rule):
    """The number format loses updates or overflows, where a better one is at hand.

    ## Why it matters
    fp16 overflows above 65,504; large models and high rates get there, and steps are skipped or turn NaN. bf16 has the
    range of fp32 and costs the same on cards from Ampere on. Weights of the adapter that are kept in fp16 or bf16 lose
    updates that are small beside them: bf16 has 8 bits of precision, so that a change of less than 1/256 of a value
    rounds away.

    ## How it decides
    - `fp16=True` on a card that can compute in bf16: a warning. Cards are known by their name.
    - The trained weights themselves are in fp16 (fact `trainable_dtype`): a warning.
    - The trained weights are in bf16 and the learning rate is below 1e-5: information.

    ## What to change
    `bf16=True, fp16=False`. Leave `autocast_adapter_dtype=True` of `get_peft_model`, which keeps the adapter in fp32.

    ## Known false alarms
    A base model that was trained in fp16 and is known to do worse in bf16. TRL casts the adapter to bf16 for quantised
    bases by design; at usual rates that is fine, and nothing is told.

    ## Sources
    PEFT's troubleshooting page (adapter weights in fp16 give "Attempting to unscale FP16 gradients"). BLOOM's training
    notes (fp16 given up for bf16). TRL issue 7268 (DoRA's magnitudes do not move in bf16). The limit of 1e-5 follows
    from bf16's precision and is a heuristic.
    """

    id: ClassVar[str] = "cfg/precision"
    title: ClassVar[str] = "Number format"
    severity: ClassVar[Severity] = Severity.WARNING
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (FactUpdate, GpuReading)
    needs_facts: ClassVar[tuple[str, ...]] = ("fp16",)
    retells: ClassVar[bool] = True

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")
    small_rate: float = param(1e-5, unit="learning rate", help="Rate below which updates of bf16 weights round away.")

    def judge(self, record: FactUpdate | GpuReading, run: Run) -> Breach | None:
        """Look at the format of computation, then at that of the trained weights."""
        kept = str(run.fact("trainable_dtype", "")).lower()
        if run.fact("fp16") is True and kept not in HALF:
            cards = run.gpu.cards if run.gpu is not None else []
            card = next((one.name for one in cards if _BF16_CARDS.search(one.name)), None)
            if card is None:
                return None
            return Breach(
                f"fp16=True on {card[:80]}, which computes in bf16: fp16 overflows above 65,504, bf16 does not",
                {"fp16": True, "card": card[:80], "case": "fp16"},
            )
        if kept in HALF:
            return Breach(
                "the trained weights are in fp16: small updates are lost, and the gradient scaler refuses them",
                {"trainable_dtype": "float16", "case": "half"},
            )
        rate = run.number("learning_rate")
        if kept in BRAIN and rate is not None and 0.0 < rate < self.small_rate:
            return Breach(
                f"the trained weights are in bf16 and learning_rate is {rate:.2g}: most updates are less than 1/256 of "
                "the weight and round away",
                {"trainable_dtype": "bfloat16", "learning_rate": rate, "case": "rounded"},
                Severity.INFO,
            )
        return None

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """bf16 to compute in, fp32 for the adapter."""
        kept_wide = look(
            "keep the adapter in fp32: get_peft_model(..., autocast_adapter_dtype=True), and no model.half() or "
            ".to(dtype) after it", "updates that are small beside the weight need its precision",
        )  # fmt: skip
        if breach.evidence["case"] != "fp16":
            return [kept_wide]
        return [
            Adjustment(
                "bf16",
                current=run.fact("bf16"),
                proposed=True,
                confidence="high",
                apply="resume",
                why="the range of fp32, no scaler, no skipped steps; set fp16=False with it",
            )
        ]
