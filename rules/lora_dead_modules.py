"""The rule lora/dead-modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from lorawatch.adapter_start import unread
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import AdaptedModule, AdapterReading, Judged
from lorawatch.remedies import look
from lorawatch.rule import Rule, param
from lorawatch.run import Run


@dataclass(slots=True)
class LoraDeadModules(Rule):
    """Part of the adapter does not train: its B is still 0, or next to nothing beside the others'.

    ## Why it matters
    B begins at 0 and any gradient moves it. A module whose B stays there gets no gradient: its layer is not on the way
    from the input to the loss (a vision tower in a run on text), is frozen, or lies in an expert that no token
    reaches. It takes memory and adds nothing.

    ## How it decides
    From step 50 on. A module is dead when the norm of its B is below a thousandth of the median over the living
    modules of the same name (`q_proj` of all layers; those with a B of exactly 0 are not living), or of all where none
    of that name lives, or when its A is exactly 0 (of an embedding A is the factor that begins at 0). More than 10 %
    of the modules dead is a warning.

    ## What to change
    Name in `target_modules` only what the data reaches, or mend what cuts it off. Where every module is dead nothing
    trains at all: see to the optimizer first.

    ## Known false alarms
    Experts of a mixture that are rarely routed: fused ones count as one module, single ones as one each. Adapters
    whose B does not begin at 0 (PiSSA, OLoRA) are not found dead.

    ## Sources
    That B begins at 0: Hu et al., *LoRA* (2021), and PEFT's default. The thousandth and the 10 % are this project's
    choices, without another authority. In 44 adapters of the reference trainer the smallest B was 0.50 of the median of
    its adapter.
    """

    id: ClassVar[str] = "lora/dead-modules"
    title: ClassVar[str] = "Modules of the adapter do not train"
    severity: ClassVar[Severity] = Severity.WARNING
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (AdapterReading,)
    suppresses: ClassVar[tuple[str, ...]] = ("lora/rank-use",)

    release: int = param(1, unit="readings", help="Readings with fewer dead modules, in a row, before it resolves.")
    settle: int = param(50, unit="steps", help="Steps before which a small B tells nothing.")
    ratio: float = param(1e-3, unit="ratio", help="Norm of B over the median of its like below which it is dead.")
    share: float = param(0.1, unit="share", help="Share of dead modules above which it is a finding.")

    def missing(self, run: Run) -> tuple[str, ...]:
        """A reading late enough, with modules in it."""
        reading = run.adapter
        if reading is None:
            return ()
        if not reading.modules:
            return (unread(reading),)
        return () if reading.step >= self.settle else (f"a reading from step {self.settle} on",)

    def judge(self, reading: AdapterReading, run: Run) -> Breach | None:
        """Count the dead by name."""
        modules = [module for module in reading.modules if module.norm_b is not None]
        if reading.step < self.settle or not modules:
            return None
        dead = dead_modules(modules, self.ratio)
        share = len(dead) / len(modules)
        if share <= self.share * self.easing:
            return None
        counts: dict[str, int] = {}
        for module in dead:
            kind = kind_of(module.name)
            counts[kind] = counts.get(kind, 0) + 1
        worst = sorted(counts.items(), key=lambda item: -item[1])[:4]
        all_dead = len(dead) == len(modules)
        if all_dead:
            told = f"all {len(modules)} adapted modules are still at 0 at step {reading.step}: nothing was trained"
        else:
            told = (
                f"{len(dead)} of {len(modules)} adapted modules have not moved at step {reading.step}: "
                + ", ".join(f"{count} {kind}" for kind, count in worst)
                + f" ({dead[0].name} for one)"
            )
        return Breach(
            told,
            {"dead": len(dead), "of_modules": len(modules), "share": share, "step": reading.step,
             "by_name": dict(worst), "first": dead[0].name, "all": all_dead},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """What to look at; and the targets without those that are dead throughout."""
        if breach.evidence["all"]:
            return [
                look(
                    "see that the optimizer holds the LoRA weights and that the learning rate is not 0",
                    "every B is at 0, where it began: no step has reached the adapter", confidence="high",
                )
            ]  # fmt: skip
        first = breach.evidence["first"]
        return [
            look(
                f"see why {first} gets no gradient: a frozen or unused tower, an expert that is not routed to, a layer "
                "that is skipped or detached", "what trains moves B away from 0 within a few steps",
            ),
            Adjustment(
                "target_modules", current=run.fact("target_modules"),
                proposed="only modules that the data reaches; exclude_modules takes a tower out by name",
                why="a module without a gradient takes memory and learns nothing", confidence="low",
            ),
        ]  # fmt: skip


def kind_of(name: str) -> str:
    """The last part of a module's name that is no number: ``q_proj``."""
    return next((part for part in reversed(name.split(".")) if not part.isdecimal()), name)


def dead_modules(modules: Sequence[AdaptedModule], ratio: float) -> list[AdaptedModule]:
    """Modules whose B is below ``ratio`` times the median of the living ones of their name, or whose A is 0."""
    living: dict[str, list[float]] = {}
    for module in modules:
        if module.norm_b:
            living.setdefault(kind_of(module.name), []).append(module.norm_b)
    usual = {kind: median(norms) for kind, norms in living.items()}
    anywhere = median([norm for norms in living.values() for norm in norms]) if living else 0.0
    return [
        module for module in modules
        if module.norm_a == 0.0
        or not module.norm_b
        or module.norm_b < ratio * usual.get(kind_of(module.name), anywhere)
    ]  # fmt: skip
