"""The rule cfg/target-coverage."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.lora.targets import ALL_LINEAR, ATTENTION, is_attention, is_head
from lorawatch.records import FactUpdate, Judged, ModelTree, ModuleGroup
from lorawatch.remedies import look
from lorawatch.rule import Rule, param
from lorawatch.run import Run

LONELY = (frozenset({"o_proj"}), frozenset({"down_proj"}), frozenset({"c_proj"}), frozenset({"out_proj"}))
"""Sets of names that leave nearly all of a layer unadapted."""
QUERY_VALUE = frozenset({"q_proj", "v_proj", "query", "value", "q", "v"})


@dataclass(slots=True)
class CfgTargetCoverage(Rule):
    """The adapter sits on a part of each layer only: on attention alone, or on a single projection.

    ## Why it matters
    Most of a layer's parameters are in its feed-forward part. An adapter on attention alone learns less than one on
    all linear layers, at the same number of trainable parameters too. What it saves in memory is small beside the base
    model: a lower rank on all layers saves as much and costs less.

    ## How it decides
    By the modules of the model that have an adapter, or by the names in `target_modules` where the model is not known.

    - Only `o_proj`, or only `down_proj`: a warning.
    - Only attention (`q_proj` and `v_proj` among that), while the layers have other linear layers: information. Such
      a run learns, if less.
    - All that is linear, while the experts of a mixture are fused into one parameter that no name of a layer reaches:
      information.

    ## What to change
    `target_modules="all-linear"`, and where memory is short a rank that gives the same number of parameters. For fused
    experts `target_parameters`, if they are meant to learn.

    ## Known false alarms
    A simple task that is learnt well enough with less, and a model whose layers have unusual names.

    ## Sources
    Both sides: the tuning guide takes the seven projections, or `q_proj` and `v_proj` to save memory on simple tasks,
    and advises against `o_proj` or `down_proj` alone. QLoRA, PEFT's `all-linear` and Thinking Machines' *LoRA Without
    Regret* (TRL's page of that name, Tinker's LoRA primer) take all linear layers: attention alone does worse even at
    matched parameters. The LoRA paper's own `q`, `v` comes from GPT-3 and from classification with RoBERTa. Two of
    the recorded healthy runs of the reference trainer have an adapter on attention alone: no warning, therefore.
    """

    id: ClassVar[str] = "cfg/target-coverage"
    title: ClassVar[str] = "Adapter on a part of each layer"
    severity: ClassVar[Severity] = Severity.WARNING
    judges: ClassVar[tuple[type[Judged], ...]] = (FactUpdate, ModelTree)
    retells: ClassVar[bool] = True

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")

    def judge(self, record: FactUpdate | ModelTree, run: Run) -> Breach | None:
        """By the model where it is known, else by the names."""
        tree = record if isinstance(record, ModelTree) else run.model
        if tree is not None and tree.targets:
            return self._by_model(tree)
        names = run.fact("target_modules")
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        return self._by_names({name.rsplit(".", 1)[-1] for name in names})

    def missing(self, run: Run) -> tuple[str, ...]:
        """The names, where neither the facts nor the model tell which layers are adapted."""
        known = isinstance(run.fact("target_modules"), list) or (run.model is not None and run.model.targets)
        return () if known else ("the model's modules, or target_modules as a list",)

    def _by_model(self, tree: ModelTree) -> Breach | None:
        inner = [group for group in tree.groups if "*" in group.name and not is_head(group.name)]
        linear = [group for group in inner if group.kind == "linear"]
        taken, left = [group for group in linear if group.adapted], [group for group in linear if not group.adapted]
        experts = [group for group in inner if group.kind == "experts"]
        if any(group.adapted for group in experts) or not taken:
            return None
        names = {_last(group) for group in taken}
        numbers = {
            "adapted": sorted(names)[:12], "left_out": sorted({_last(group) for group in left})[:12],
            "adapted_share": round(_size(taken) / max(_size([*linear, *experts]), 1), 4),
        }  # fmt: skip
        forward = [group for group in left if not is_attention(group.name)]
        if frozenset(names) in LONELY and left:
            return self._lonely(names, numbers)
        if forward and all(is_attention(group.name) for group in taken):
            return self._attention(names, numbers)
        if experts:
            share = _size(experts) / max(_size([*linear, *experts]), 1)
            return Breach(
                f"the adapter takes no expert: {100 * share:.0f} % of the layers' weights are in {experts[0].name}, "
                "which target_modules does not reach",
                numbers | {"experts": experts[0].name, "case": "experts"},
                Severity.INFO,
            )
        return None

    def _by_names(self, names: set[str]) -> Breach | None:
        numbers: dict[str, Any] = {"adapted": sorted(names)[:12], "case": "names"}
        if frozenset(names) in LONELY:
            return self._lonely(names, numbers)
        if names and names <= ATTENTION:
            return self._attention(names, numbers)
        return None

    def _lonely(self, names: Collection[str], numbers: dict[str, Any]) -> Breach:
        return Breach(
            f"the adapter is on {next(iter(names))} alone: nearly all of each layer is left as it is",
            {"case": "single"} | numbers,
        )

    def _attention(self, names: set[str], numbers: dict[str, Any]) -> Breach:
        which = ", ".join(sorted(names)[:12])
        told = (
            "the guide allows that on simple tasks to save memory" if names <= QUERY_VALUE else "no feed-forward layer"
        )
        return Breach(
            f"the adapter is on attention only ({which}): {told}; at equal parameters all linear layers learn more",
            {"case": "attention"} | numbers,
            Severity.INFO,
        )

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """All linear layers, at a rank that costs no more."""
        if breach.evidence["case"] == "experts":
            return [
                look(
                    f"to adapt the experts, name their parameters in target_parameters (those of "
                    f"{breach.evidence['experts']})",
                    "experts that are fused into one parameter are no linear layers; an adapter on attention and what "
                    "is shared is a fair choice too", confidence="low",
                )
            ]  # fmt: skip
        advice = [
            Adjustment(
                "target_modules", current=run.fact("target_modules"), proposed=ALL_LINEAR, confidence="medium",
                why="the feed-forward layers hold most of what a layer can learn",
                cost="more trainable parameters at the same rank",
            )
        ]  # fmt: skip
        rank, share = run.number("r"), breach.evidence.get("adapted_share")
        if rank and share and 4 <= rank <= 2**16:
            equal = 2 ** max(int(rank * share * 1.5).bit_length() - 1, 0)
            advice.append(
                Adjustment(
                    "r", current=int(rank), proposed=max(equal, 4), confidence="low", direction="down",
                    why="with all linear layers adapted, a lower rank costs about as much memory as now",
                )
            )  # fmt: skip
        return advice


def _last(group: ModuleGroup) -> str:
    return group.name.rsplit(".", 1)[-1]


def _size(groups: Collection[ModuleGroup]) -> int:
    return sum(group.count * group.parameters for group in groups)
