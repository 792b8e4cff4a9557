"""The rule cfg/modules-to-save."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.lora.targets import nearest_modules
from lorawatch.records import FactUpdate, Judged, ModelTree
from lorawatch.remedies import look
from lorawatch.rule import Rule, param
from lorawatch.run import Run

NEW_HEADS = frozenset({"score", "classifier", "qa_outputs", "v_head", "summary", "pre_classifier"})
"""Heads that a task adds, with random weights: they have to be trained whole."""


@dataclass(slots=True)
class CfgModulesToSave(Rule):
    """Whole modules are trained beside the adapter, or are meant to be and do not exist.

    ## Why it matters
    `modules_to_save` trains a full copy of each module that it names. A new head has to be trained so. Embedding and
    `lm_head` of a language model need it only where tokens are new; else it costs memory for weights, gradients and
    optimizer, makes large checkpoints, and forgets more. PEFT says nothing of a name that does not exist: the head that
    was meant stays at its random start.

    ## How it decides
    - An entry matches no module of the model: a warning. Those that PEFT adds by itself for the task do not count.
    - An entry is trained whole that is no new head: information, with its parameters where the model is known.

    ## What to change
    Empty for instruction tuning. For new tokens `trainable_token_indices` trains the rows of these tokens alone.

    ## Known false alarms
    New tokens, a new language: then it is what one wants.

    ## Sources
    The tuning guide: empty for instruction tuning; only for a changed head (classification) or new embeddings. On the
    other side, QLoRA-style chat tuning of base models with new turn tokens does train both, and PEFT's documentation
    shows it for resized embeddings. PEFT 0.21 (`_set_trainable`) does not check that a name exists.
    """

    id: ClassVar[str] = "cfg/modules-to-save"
    title: ClassVar[str] = "Whole modules are trained beside the adapter"
    severity: ClassVar[Severity] = Severity.INFO
    judges: ClassVar[tuple[type[Judged], ...]] = (FactUpdate, ModelTree)
    needs_facts: ClassVar[tuple[str, ...]] = ("r",)
    retells: ClassVar[bool] = True

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")

    def judge(self, record: FactUpdate | ModelTree, run: Run) -> Breach | None:
        """Look for entries that match nothing, then for those that are no new head."""
        tree = run.model
        counts: dict[str, int] = tree.saved if tree is not None else {}
        stated = run.fact("modules_to_save")
        names = list(counts) or [name for name in (stated if isinstance(stated, list) else []) if isinstance(name, str)]
        lost = [name for name in counts if not counts[name]]
        if lost and tree is not None:
            nearest = {name: nearest_modules(name, tree) for name in lost[:8]}
            told = ", ".join(name[:80] for name in lost[:8])
            return Breach(
                f"modules_to_save names what the model does not have: {told}; PEFT passes over it without a word",
                {"unmatched": lost[:8], "nearest": nearest, "case": "unmatched"},
                Severity.WARNING,
            )
        whole = [name for name in names if name.rsplit(".", 1)[-1] not in NEW_HEADS]
        if not whole:
            return None
        size = _parameters(tree, whole) if tree is not None else None
        told = f"{', '.join(name[:80] for name in whole[:8])} {'are' if len(whole) > 1 else 'is'} trained whole"
        if size:
            told += f": {size:,} parameters"
            if tree is not None and tree.trainable and 0 < size < tree.trainable:
                told += f", {size / tree.trainable:.0%} of what is trained"
        return Breach(
            f"{told}; instruction tuning without new tokens does not need that",
            {"modules": whole[:8], "parameters": size, "trainable": tree.trainable if tree is not None else None,
             "case": "whole" if size is None else "counted"},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """The right name; or none at all."""
        told, current = breach.evidence, run.fact("modules_to_save")
        if told["case"] == "unmatched":
            near = [names[0] for names in told["nearest"].values() if names]
            return [
                look(
                    "the names of the model's modules: [name for name, _ in model.named_modules()]"
                    + (f"; nearest: {', '.join(near)}" if near else ""),
                    "a head that is not trained stays at its random start", confidence="high",
                )
            ]  # fmt: skip
        return [
            Adjustment(
                "modules_to_save", current=current, proposed=[], confidence="low", direction="down",
                why="if no token is new: the adapter alone learns instructions, with less memory and less forgetting",
            ),
            look("for new tokens: trainable_token_indices trains their rows alone", "the rest of the embedding stays"),
        ]  # fmt: skip


def _parameters(tree: ModelTree, names: list[str]) -> int:
    return sum(
        group.count * group.parameters for group in tree.groups
        if any(group.name.endswith(name) or f".{name}." in f".{group.name}" for name in names)
    )  # fmt: skip
