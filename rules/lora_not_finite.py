"""The rule lora/not-finite."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.adapter_start import unread
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import AdapterReading, Judged
from lorawatch.remedies import against_nan
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run


@dataclass(slots=True)
class LoraNotFinite(Rule):
    """The adapter's weights hold NaN or infinity: every output through them is NaN.

    ## Why it matters
    A NaN in a weight stays: Adam's moments are NaN with it, and no later gradient heals it. Each checkpoint saved from
    now on is worthless, and one that `save_total_limit` deletes for it may be the last good one. The log may hide it:
    by default the Trainer writes 0 for a NaN loss.

    ## How it decides
    It looks at every number of A and B of each adapted module, while the run goes on or in a checkpoint. One that is
    not finite is enough. It resolves with the first reading in which all are finite.

    ## What to change
    Stop, and go on from a checkpoint before; bf16 in place of fp16, a third of the learning rate, a tighter clip. Keep
    no checkpoint that was saved after the last clean reading without looking into it.

    ## Known false alarms
    None: the numbers are there.

    ## Sources
    No threshold is involved. That a NaN loss is logged as 0 was measured: with `logging_nan_inf_filter=True`, the
    default, a NaN injected at step 4 gave `loss` 0.0 and `grad_norm` nan from then on.
    """

    id: ClassVar[str] = "lora/not-finite"
    title: ClassVar[str] = "The adapter holds NaN"
    severity: ClassVar[Severity] = Severity.CRITICAL
    judges: ClassVar[tuple[type[Judged], ...]] = (AdapterReading,)
    suppresses: ClassVar[tuple[str, ...]] = (
        "lora/dead-modules", "lora/rank-use", "lora/update-size", "lora/growth", "loss/*", "grad/*", "lr/*", "eval/*",
        "pref/*", "rl/*", "gen/*", "base/*",
    )  # fmt: skip

    release: int = param(1, unit="readings", help="Readings without a NaN, in a row, before it resolves.")
    clean: int | None = state(lambda: None)

    def missing(self, run: Run) -> tuple[str, ...]:
        """A reading in which there are weights to look at."""
        what = "" if run.adapter is None else unread(run.adapter)
        return (what,) if what else ()

    def judge(self, reading: AdapterReading, run: Run) -> Breach | None:
        """Count the modules with a number that is not finite."""
        broken = [module.name for module in reading.modules if not module.finite]
        if not broken:
            if reading.modules:
                self.clean = reading.step
            return None
        names = ", ".join(broken[:3]) + (f" and {len(broken) - 3} more" if len(broken) > 3 else "")
        was = f"; at step {self.clean} all of them were finite" if self.clean is not None else ""
        return Breach(
            f"{len(broken)} of {len(reading.modules)} adapted modules hold NaN or infinity at step {reading.step}: "
            f"{names}{was}",
            {"modules": len(broken), "of_modules": len(reading.modules), "step": reading.step,
             "last_clean_step": self.clean, "first_modules": broken[:3], "origin": reading.origin},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Back to the last clean checkpoint, and what keeps the NaN from coming back."""
        clean = breach.evidence["last_clean_step"]
        where = f"at or before step {clean}" if clean is not None else "whose adapter is clean, or from the base model"
        return [
            Adjustment(
                "", proposed=f"stop the run and go back to the last checkpoint {where}; keep no later one",
                apply="check", confidence="high", cost="the steps since that checkpoint",
                why="Adam keeps a NaN for good: waiting does not heal it",
            ),
            *against_nan(run),
        ]  # fmt: skip
