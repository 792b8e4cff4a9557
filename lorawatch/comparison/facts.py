"""What differs in the set-up of two runs, and which of it makes their losses incomparable."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from lorawatch.run import SUPERVISED, Kind, Run

Group = Literal["training", "lora", "data and model", "seed", "logging", "versions"]
GROUPS: tuple[Group, ...] = ("training", "lora", "data and model", "seed", "logging", "versions")

_NOISE = frozenset(
    {
        "output_dir", "run_name", "logging_dir", "local_rank", "_n_gpu", "n_gpu", "disable_tqdm", "log_level",
        "best_metric", "best_model_checkpoint", "best_global_step", "total_parameters", "train_batch_size",
    }
)  # fmt: skip
"""What names a run or its place, or follows from other facts and from how the run went."""
_SHADOWS = {
    "gradient_checkpointing": "activation_checkpointing",
    "evaluation_strategy": "eval_strategy",
    "torch_dtype": "dtype",
    "trainable_parameters": "r",
}
"""What follows from another fact, or is its older spelling: where both changed, the other one is enough."""
_LORA = frozenset(
    {
        "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "modules_to_save", "use_rslora", "use_dora",
        "init_lora_weights", "layers_to_transform", "peft_type", "alpha_pattern", "rank_pattern", "finetuning_type",
        "trainable_parameters",
    }
)  # fmt: skip
_SEEDS = frozenset({"seed", "data_seed"})
_MODEL = (
    "model_name_or_path",
    "model_type",
    "hidden_size",
    "num_hidden_layers",
    "intermediate_size",
    "vocab_size",
    "task_type",
)
_DATA = ("dataset", "train_rows", "max_samples", "val_size")
_LOGGING_STARTS = ("logging_", "eval_", "save_", "evaluation_", "load_best_model", "metric_for_best", "greater_is")
_REDEFINES = (
    "max_length", "max_prompt_length", "packing", "completion_only_loss", "assistant_only_loss", "template",
    "loss_type", "label_smoothing_factor", "label_pad_token_id",
)  # fmt: skip
"""What defines a loss: which tokens it is taken over, and how (rule catalogue section 7)."""
_NOISY = ("lora_dropout", "neftune_noise_alpha")
"""What is on while the training loss is taken, and off in evaluation."""


@dataclass(frozen=True, slots=True)
class FactChange:
    """One fact that differs between two runs.

    Attributes:
        name: The fact, as TrainingArguments or LoraConfig name it.
        before: The first run's value; None where it is not known or not set.
        after: The second run's.
        group: What it belongs to.
        one_sided: Whether only one run tells it.
        note: What it means for the comparison; "" when nothing.
    """

    name: str
    before: Any
    after: Any
    group: Group
    one_sided: bool = False
    note: str = ""


def fact_changes(before: Run, after: Run) -> list[FactChange]:
    """The facts that differ, by group and name; what is noise (paths, names, times, hosts) is left out.

    A fact that only one run tells counts as a change where the callback told both runs' facts from the same libraries:
    it leaves out only what is not set. Otherwise it is ``one_sided``: it may well be the same in both.
    """
    same_view = _same_view(before, after)
    changes: list[FactChange] = []
    names = {name for name in before.facts.keys() | after.facts.keys() if name not in _NOISE}
    for name in names:
        old, new = before.fact(name), after.fact(name)
        if _alike(name, old, new):
            continue
        one_sided = (old is None or new is None) and not same_view
        changes.append(FactChange(name, old, new, _group(name), one_sided, _note(name) if not one_sided else ""))
    changed = {change.name for change in changes}
    changes = [change for change in changes if _SHADOWS.get(change.name) not in changed]
    return sorted(changes, key=lambda change: (change.one_sided, GROUPS.index(change.group), change.name))


def another_job(before: Run, after: Run, changes: list[FactChange]) -> str:
    """Why the two are not runs of one job, in one phrase; "" when they are.

    Among supervised kinds only stated facts tell two jobs apart: the rest is told from which metrics were logged.
    """
    kinds = {before.kind, after.kind}
    if len(kinds) > 1 and Kind.UNKNOWN not in kinds and not kinds <= SUPERVISED:
        return f"another method: {before.kind.value} before, {after.kind.value} after"
    for change in changes:
        if change.name in _MODEL and not change.one_sided:
            return f"another model: {_shown(change)}"
    return ""


def train_loss_redefined(before: Run, changes: list[FactChange]) -> str:
    """Why the training losses of two runs of one job cannot be compared, in one phrase; "" when they can."""
    stated = _stated(changes)
    reason = _redefined(before, stated) or reward_redefined(changes)
    noisy = next((stated[name] for name in _NOISY if name in stated), None)
    if reason or noisy is None:
        return reason
    return f"{_shown(noisy)}: it is on while the training loss is taken; only an evaluation could tell"


def eval_loss_redefined(before: Run, changes: list[FactChange], *, eval_rows_equal: bool | None) -> str:
    """Why the evaluation losses cannot be compared, in one phrase; "" when they can.

    They do not depend on the training data, dropout or NEFTune noise.

    Args:
        before: The first run.
        changes: What differs.
        eval_rows_equal: Whether both evaluation sets have as many rows; None where that is not known.
    """
    stated = _stated(changes)
    reason = _redefined(before, stated)
    if reason:
        return reason
    if eval_rows_equal is False:
        return "the evaluation sets have different sizes"
    data = next((stated[name] for name in _DATA if name in stated), None)
    if data is not None and eval_rows_equal is None:
        return f"{_shown(data)}: nothing tells whether the evaluation set stayed the same"
    return ""


def reward_redefined(changes: list[FactChange]) -> str:
    """Why what is measured on the training data cannot be compared, in one phrase; "" when it can."""
    stated = _stated(changes)
    data = next((stated[name] for name in _DATA if name in stated), None)
    return "" if data is None else f"{_shown(data)}: another data set, on which the same model has another loss"


def _stated(changes: list[FactChange]) -> dict[str, FactChange]:
    return {change.name: change for change in changes if not change.one_sided}


def _redefined(before: Run, stated: dict[str, FactChange]) -> str:
    names = _REDEFINES if before.kind in SUPERVISED else (*_REDEFINES, "beta")
    name = next((one for one in names if one in stated), None)
    return "" if name is None else f"{_shown(stated[name])} redefines the loss"


def _shown(change: FactChange) -> str:
    def words(value: Any) -> str:
        return "not set" if value is None else f"{value}"

    return f"{change.name} {words(change.before)} → {words(change.after)}"


def _note(name: str) -> str:
    if name in _SEEDS:
        return "the data come in another order; part of any difference is chance"
    if name in _MODEL:
        return "another model"
    if name in _REDEFINES:
        return "redefines the loss"
    if name in _DATA:
        return "another data set"
    if name in _NOISY:
        return "raises the training loss while it is on"
    return ""


def _same_view(before: Run, after: Run) -> bool:
    both = all(any(fact.origin == "callback" for fact in run.facts.values()) for run in (before, after))
    names = ("transformers_version", "trl_version", "trainer_class")
    return both and all(before.fact(name) == after.fact(name) for name in names)


def _alike(name: str, old: Any, new: Any) -> bool:
    if old == new:
        return True
    if old is None or new is None:
        return False
    if isinstance(old, list) or isinstance(new, list):
        items = [value if isinstance(value, list) else [value] for value in (old, new)]
        return bool(sorted(map(str, items[0])) == sorted(map(str, items[1])))
    if name == "model_name_or_path":  # one snapshot may stand in several places
        ends = [str(value).rstrip("/").rpartition("/")[2].lower() for value in (old, new)]
        return ends[0] == ends[1]
    return False


def _group(name: str) -> Group:
    if name in _SEEDS:
        return "seed"
    if name in _LORA:
        return "lora"
    if name.endswith("_version"):
        return "versions"
    if name in _MODEL or name in _DATA or name == "trainer_class":
        return "data and model"
    return "logging" if name.startswith(_LOGGING_STARTS) else "training"
