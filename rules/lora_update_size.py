"""The rule lora/update-size."""

from __future__ import annotations

import re
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from lorawatch.adapter_start import unread, unusual_start
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import AdapterReading, Judged
from lorawatch.remedies import look, lower_rate
from lorawatch.rule import Rule, param
from lorawatch.run import Run

_EMBEDDING = re.compile(r"embed|\.w[tp]e$")


@dataclass(slots=True)
class LoraUpdateSize(Rule):
    """The adapter's update is large beside the weights that it changes.

    ## Why it matters
    Fine-tuning with LoRA is meant to be a small correction. An update as large as the weights themselves replaces what
    the base model knew; its largest directions have little to do with those of the base (*intruder dimensions*), and
    with them goes what the run does not train for.

    ## How it decides
    The norm of scale·B·A over that of the weight, for each adapted module but embeddings. It is a finding when the
    median over modules is above 0.3, or a tenth of the modules stand above 1. With DoRA, whose update is more than
    scale·B·A, and where the weights' norms are not known, it does not judge; nor where B·A begins as a part of the
    weight (PiSSA, OLoRA and the like).

    ## What to change
    Half the learning rate, or half of alpha: one of the two, they act together. An adapter that is trained already can
    be scaled down when it is merged. See by base/ability-drop, or by an evaluation of your own, whether anything was
    lost.

    ## Known false alarms
    Small models and long trainings at a high rate; new tasks that are far from the base model.

    ## Sources
    Reference sizes: the LoRA paper's table 7, W_q of GPT-3: 0.11 at rank 4, 0.058 at rank 64 (quoted from memory by
    the rule catalogue). Intruder dimensions: Shuttleworth et al. (arXiv 2410.21228). The limits are this project's.
    Measured on 44 adapters of the reference trainer, whose base model is tiny: medians of 0.02 to 0.25 over modules in
    all but the three that were trained to forget or to memorise (0.40, 1.5 and 3.9); single modules reach 0.46 in the
    others, which is why the median is judged.
    """

    id: ClassVar[str] = "lora/update-size"
    title: ClassVar[str] = "The update is large"
    severity: ClassVar[Severity] = Severity.WARNING
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (AdapterReading,)

    release: int = param(1, unit="readings", help="Readings below the limits, in a row, before it resolves.")
    limit: float = param(0.3, unit="ratio", help="Median of update over weight above which it is a finding.")
    huge: float = param(1.0, unit="ratio", help="Update over weight of a single module that counts as huge.")
    huge_share: float = param(0.1, unit="share", help="Share of huge modules that is a finding.")

    def missing(self, run: Run) -> tuple[str, ...]:
        """Updates that begin at 0, and the norms of both."""
        start = unusual_start(run)
        if start:
            return (start,)
        if run.adapter is None or ratios(run.adapter):
            return ()
        if not run.adapter.modules:
            return (unread(run.adapter),)
        if any(module.base for module in run.adapter.modules):
            return ("the size of the updates (with DoRA it is more than scale·B·A)",)
        return ("the norms of the base model's weights",)

    def judge(self, reading: AdapterReading, run: Run) -> Breach | None:
        """Compare the updates with the weights."""
        found = {} if unusual_start(run) else ratios(reading)
        if not found:
            return None
        middle, worst = median(found.values()), max(found, key=lambda name: found[name])
        huge = sum(ratio > self.huge for ratio in found.values()) / len(found)
        if middle <= self.limit * self.easing and huge < self.huge_share:
            return None
        return Breach(
            f"at step {reading.step} the update is {middle:.2g} of the weights (median over {len(found)} modules), "
            f"{found[worst]:.2g} at {worst}",
            {"median_ratio": middle, "largest_ratio": found[worst], "largest": worst, "share_above_1": huge,
             "modules": len(found), "step": reading.step},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Half the rate, or half of alpha; and what to look at before either."""
        alpha = run.number("lora_alpha")
        return [
            look(
                "compare the model with its base on something that it should still do (base/ability-drop does so)",
                "a large update is a risk, not a loss by itself: the comparison shows it", confidence="medium",
            ),
            lower_rate(run, 2, "smaller steps leave a smaller update", confidence="medium", apply="restart"),
            Adjustment(
                "lora_alpha", current=_whole(alpha), proposed=_whole(alpha / 2) if alpha else "half of it",
                why="halves the update that the same B and A give; in place of the lower rate, not with it",
                confidence="low", direction="down",
            ),
        ]  # fmt: skip


def ratios(reading: AdapterReading) -> dict[str, float]:
    """Norm of the update over that of the weight, by module; embeddings and what is not known are left out."""
    return {
        module.name: module.update / module.base for module in reading.modules
        if module.update is not None and module.base and not _EMBEDDING.search(module.name)
    }  # fmt: skip


def _whole(alpha: float | None) -> float | int | None:
    return int(alpha) if alpha is not None and alpha == int(alpha) else alpha
