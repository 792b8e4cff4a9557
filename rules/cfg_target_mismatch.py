"""The rule cfg/target-mismatch."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.lora.targets import ALL_LINEAR, nearest_modules
from lorawatch.records import Judged, ModelTree
from lorawatch.remedies import look
from lorawatch.rule import Rule, param
from lorawatch.run import Run

SHOWN = 12
"""Entries that a finding shows."""


@dataclass(slots=True)
class CfgTargetMismatch(Rule):
    r"""An entry of `target_modules` names no module of this model, or only those of some layers.

    ## Why it matters
    PEFT raises only where nothing matches. An entry that is misspelt, or that belongs to another model's naming, is
    passed over without a word as long as one other entry matches: the adapter is then smaller than one thinks, and
    nothing in the log says so.

    ## How it decides
    Each entry is compared with the names of the model's modules, by PEFT's own matching. The model is the one that is
    trained, or one built from its configuration without weights.

    - An entry matches no layer that LoRA can take: a warning; critical where that is so of half of the entries or more.
      An entry that names a block (`mlp`) matches none: PEFT raises for it. Entries of `target_parameters` count too.
    - A regular expression takes a module in some layers and leaves it out in others: a warning.
      `[0-9]` where `\d+` was meant gives ten layers.
    - `k_proj` or `v_proj` match fewer layers than `q_proj`, because there are no more of them: information. Such models
      share keys and values between layers (Gemma 3n, Gemma 4).

    ## What to change
    The name that the model itself has; the nearest ones are proposed. Or `target_modules="all-linear"`, which needs no
    names. `model.targeted_module_names` and `get_layer_status()` of PEFT show what was taken.

    ## Known false alarms
    A list of names that is meant for several architectures at once, and an expression that picks layers on purpose:
    then nothing is wrong, and `layers_to_transform` says it more plainly.

    ## Sources
    Measured with PEFT 0.21.2: `['q_proj', 'v_proj', 'gate_prj']` gives neither error nor warning. PEFT issues 1959,
    3554, 3658. The tuning guide: prefer automatic matching, and make sure that every name matches a layer.
    """

    id: ClassVar[str] = "cfg/target-mismatch"
    title: ClassVar[str] = "target_modules does not match the model"
    severity: ClassVar[Severity] = Severity.WARNING
    judges: ClassVar[tuple[type[Judged], ...]] = (ModelTree,)
    retells: ClassVar[bool] = True
    suppresses: ClassVar[tuple[str, ...]] = ("cfg/target-coverage", "lora/dead-modules")

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")
    half: float = param(0.5, unit="share", help="Share of entries that match nothing from which it is critical.")

    def judge(self, tree: ModelTree, run: Run) -> Breach | None:
        """Look at the counts of the entries, then at layers that were left out."""
        if not tree.targets:
            return None
        return self._unmatched(tree) or _in_part(tree) or _shared(tree)

    def missing(self, run: Run) -> tuple[str, ...]:
        """An adapter, where the model was looked at and had none."""
        return ("an adapter's target_modules",) if run.model is not None and not run.model.targets else ()

    def _unmatched(self, tree: ModelTree) -> Breach | None:
        names = [entry for entry, count in tree.targets.items() if count == 0]
        if not names:
            return None
        nearest = {entry: nearest_modules(entry, tree) for entry in names[:SHOWN]}
        told = [f"{_cut(entry)} (nearest: {near[0]})" if near else _cut(entry) for entry, near in nearest.items()]
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        lost = len(names) >= self.half * len(tree.targets)
        verb = "matches" if len(names) == 1 else "match"
        return Breach(
            f"{len(names)} of {len(tree.targets)} target_modules {verb} no layer of the model: {', '.join(told)}{more}",
            {"unmatched": names[:SHOWN], "entries": len(tree.targets), "nearest": nearest,
             "targets": _some(tree.targets), "case": "unmatched"},
            Severity.CRITICAL if lost else None,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """The right names; else every linear layer."""
        told = breach.evidence
        current = run.fact("target_modules")
        if told["case"] == "shared":
            return []
        automatic = Adjustment(
            "target_modules", current=current, proposed=ALL_LINEAR, confidence="high",
            why="takes every linear layer but the output head, whatever this model calls them",
            cost="more trainable parameters than a list that was short on purpose",
        )  # fmt: skip
        seen = look(
            "after get_peft_model: model.print_trainable_parameters() and model.targeted_module_names",
            "shows which layers really have an adapter",
        )
        if told["case"] == "part":
            return [
                look(
                    "does the expression mean all layers? [0-9] is one digit, \\d+ is any number of them",
                    "layers that are left out on purpose are better named by layers_to_transform", confidence="high",
                ),
                automatic,
                seen,
            ]  # fmt: skip
        mended = _mended(current if isinstance(current, list) else list(run.model.targets) if run.model else [], told)
        if mended is None:
            return [automatic, seen]
        by_name = Adjustment(
            "target_modules", current=current, proposed=mended, confidence="high",
            why="the model's own names for what seems to be meant",
        )  # fmt: skip
        return [by_name, automatic, seen]


def _mended(names: list[Any], told: dict[str, Any]) -> list[str] | None:
    """The list with each name that matches nothing replaced by the model's nearest; None where one has no nearest."""
    nearest, mended = told["nearest"], []
    for name in names:
        if not isinstance(name, str):
            return None
        near = nearest.get(name)
        if near is None and name not in told["unmatched"]:
            mended.append(name)
        elif near:
            mended.append(near[0])
        else:
            return None
    return list(dict.fromkeys(mended)) if len(told["unmatched"]) < SHOWN and mended else None


def _in_part(tree: ModelTree) -> Breach | None:
    """A regular expression that takes a module in some places and not in others."""
    entry = next(iter(tree.targets))
    if len(tree.targets) > 1 or entry.lower() == ALL_LINEAR:
        return None
    if re.fullmatch(r"[\w.]+", entry) and not re.search(r"\.\d", entry):
        return None  # a plain name: what it leaves out was excluded on purpose
    cut = [group for group in tree.groups if 0 < (group.adapted or 0) < group.count and "*" in group.name]
    if not cut:
        return None
    worst = min(cut, key=lambda group: (group.adapted or 0) / group.count)
    return Breach(
        f"target_modules takes {worst.name} in {worst.adapted} of {worst.count} places and leaves the others out",
        {"pattern": _cut(entry), "taken": worst.adapted, "of": worst.count, "module": worst.name,
         "groups_in_part": len(cut), "case": "part"},
    )  # fmt: skip


def _shared(tree: ModelTree) -> Breach | None:
    """Fewer layers with keys or values than with queries, all of which are taken."""
    queries = tree.targets.get("q_proj", 0)
    short = {name: tree.targets[name] for name in ("k_proj", "v_proj") if 0 < tree.targets.get(name, 0) < queries}
    for name, count in short.items():
        if sum(group.count for group in tree.groups if group.name.endswith(f".{name}")) != count:
            return None  # there are more of them, which are left out
    if not short or queries < tree.layers:
        return None
    told = ", ".join(f"{name} in {count}" for name, count in short.items())
    return Breach(
        f"the model has q_proj in {queries} layers, {told}: layers share keys and values, nothing is left out",
        {"q_proj": queries, **short, "layers": tree.layers, "case": "shared"},
        Severity.INFO,
    )


def _some(targets: dict[str, int]) -> dict[str, int]:
    return {_cut(entry): count for entry, count in list(targets.items())[:SHOWN]}


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:79] + "…"
