"""The list of faults, for a person."""

from __future__ import annotations

from collections.abc import Collection

from lorawatch.trainer.faults.catalogue import faults
from lorawatch.trainer.recipe import recipe_of


def listing_text(known_rules: Collection[str]) -> str:
    """Each fault: its cause, its methods, and the findings that should come of it.

    Args:
        known_rules: Ids of the rules that there are; a fault whose rules are all missing is marked so.
    """
    lines = []
    for name, kind in faults().items():
        fault = kind("plain")
        method = "sft" if "sft" in kind.methods else min(kind.methods)
        recipe = fault.misconfigure(recipe_of({"method": method, "max_steps": 200}, "list"))
        expected = fault.expected(recipe)
        marks = [", ".join(sorted(kind.methods))] + (["needs " + kind.needs] if kind.needs else [])
        lines.append(f"{name}  [{'; '.join(marks)}]")
        lines.append(f"    {kind.cause}")
        for one in expected:
            rules = [rule for rule in one.rules if rule in known_rules]
            when = f" from step {one.from_step}" if one.from_step else ""
            if rules:
                lines.append(f"    → {' or '.join(rules)} ({one.least.label}){when}")
        if not any(rule in known_rules for one in expected for rule in one.rules):
            later = sorted({rule for one in expected for rule in one.rules})
            words = f"{', '.join(later)}: not in this version" if later else "no rule sees this in what a run logs"
            lines.append(f"    → {words}")
    return "\n".join(lines)
