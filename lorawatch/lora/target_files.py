"""What a person points preflight at, as what is known of the run before it starts: facts, adapter, model, data.

A run's folder, an ``adapter_config.json``, a training configuration (TRL and transformers, axolotl, LLaMA-Factory;
YAML, JSON or the literals of a Python script), or flags alone. What is wrong with one part is told in a line, and the
rest is still read. Nothing is fetched; a path that a log names is not opened.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from lorawatch.config_files.document import UNREAD, ConfigError, Document
from lorawatch.config_files.families import (
    FAMILY_TITLES,
    Family,
    family_of,
    known_parameters,
    parameter_of,
    stated_facts,
)
from lorawatch.config_files.files import read_config
from lorawatch.lora.library_defaults import UNKNOWN, fields_of
from lorawatch.lora.tensor_shapes import BrokenCheckpointError, read_json
from lorawatch.records import FactUpdate
from lorawatch.registry import RuleSet
from lorawatch.render import printable
from lorawatch.run_watch import RunWatch
from lorawatch.source import SourceError
from lorawatch.sources.discover import discover
from lorawatch.sources.names import FACT_NAMES

ADAPTER = "adapter_config.json"
_CONFIGS = (".yaml", ".yml", ".json", ".py")
_LORA_ONLY = frozenset(
    ("exclude_modules", "layers_pattern", "target_parameters", "rank_pattern", "trainable_token_indices", "lora_bias",
     "layer_replication")
)  # fmt: skip
"""Fields of ``LoraConfig`` that matter for its modules, and are no facts."""
_LORA_FACTS = frozenset({
    "r", "lora_alpha", "lora_dropout", "target_modules", "bias", "modules_to_save", "use_rslora", "use_dora",
    "init_lora_weights", "layers_to_transform", "task_type", "peft_type", "rank_pattern", "alpha_pattern",
})  # fmt: skip
_TRAINERS = {
    **{f"{name}{end}": f"{name}Trainer" for name in ("SFT", "DPO", "GRPO", "KTO", "RLOO", "ORPO", "CPO", "Reward")
       for end in ("Config", "Trainer")},
    "Seq2SeqTrainingArguments": "Seq2SeqTrainer", "TrainingArguments": "Trainer",
}  # fmt: skip
"""What is called in a script to the trainer that it makes."""
_ARGUMENTS = {
    "SFTTrainer": "SFTConfig", "DPOTrainer": "DPOConfig", "GRPOTrainer": "GRPOConfig", "KTOTrainer": "KTOConfig",
    "RLOOTrainer": "RLOOConfig", "RewardTrainer": "RewardConfig", "Trainer": "TrainingArguments",
}  # fmt: skip
_METHODS = {
    "sft": "SFTTrainer", "pt": "SFTTrainer", "dpo": "DPOTrainer", "ipo": "DPOTrainer", "kto": "KTOTrainer",
    "orpo": "ORPOTrainer", "simpo": "CPOTrainer", "grpo": "GRPOTrainer", "rloo": "RLOOTrainer", "rm": "RewardTrainer",
    "reward": "RewardTrainer",
}  # fmt: skip
"""LLaMA-Factory's ``stage``, axolotl's ``rl`` and the verb's ``--method`` to the trainer."""
METHODS = tuple(sorted({"sft", "dpo", "kto", "orpo", "grpo", "rloo", "reward"}))
_LLAMAFACTORY_DEFAULTS: dict[str, Any] = {
    "r": 8, "lora_dropout": 0.0, "max_length": 2048, "lora_target": "all", "activation_checkpointing": True,
    "finetuning_type": "lora",
}  # fmt: skip
"""LLaMA-Factory's ``hparams`` (finetuning_args.py, data_args.py); it checkpoints activations unless told not to."""
_KEPT_DEFAULTS = (
    "learning_rate", "per_device_train_batch_size", "gradient_accumulation_steps", "num_train_epochs", "max_length",
    "logging_steps", "logging_first_step", "logging_nan_inf_filter", "load_best_model_at_end", "max_grad_norm",
    "warmup_steps", "weight_decay", "packing", "padding_free", "fp16", "bf16", "activation_checkpointing",
    "use_liger_kernel", "save_total_limit", "beta", "num_generations", "max_completion_length", "assistant_only_loss",
    "save_steps",
)  # fmt: skip
"""Defaults of the arguments' class that become facts, where nothing else states them."""
_PLAIN_FACTS = (
    "attn_implementation", "bnb_4bit_use_double_quant", "use_bnb_nested_quant", "use_liger_kernel", "use_peft",
    "dataset_text_field", "assistant_only_loss", "completion_only_loss", "padding_free",
)  # fmt: skip
"""Settings that count here, and that no log states."""
_HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+|[\w.-]+")
FLAGS = "flags"
"""Name of a target that is flags alone, and the origin of what they state."""
_MISSPELT = 0.84
"""Likeness from which a name is taken for a misspelling."""
_OTHER_FAMILIES = frozenset({
    "datasets", "test_datasets", "adapter", "rl", "chat_template", "special_tokens", "tokens", "plugins",
    "wandb_project", "wandb_name", "wandb_entity", "dataset_dir", "dataset_path", "eval_dataset", "template",
    "stage", "do_train", "do_eval", "do_predict", "plot_loss", "overwrite_cache", "overwrite_output_dir",
    "preprocessing_num_workers", "flash_attn", "flash_attention", "logging_dir", "val_set_size", "adapter_name",
    "strict", "resume_from_checkpoint", "warmup_ratio", "tokenizer_type", "model_type", "base_model_config",
    "adapter_path",
})  # fmt: skip
"""Settings of axolotl and LLaMA-Factory that are like others and no misspelling of them."""


class TargetError(Exception):
    """Nothing can be judged: one line says why."""


@dataclass(slots=True)
class Target:
    """What is known of a run that has not begun, or of one that has.

    Attributes:
        name: What to call it.
        facts: What is stated of it, as it is to be fed, the most believed last.
        adapter: The adapter's configuration, in ``LoraConfig``'s names; None where there is none.
        adapter_folder: Where its weights may lie; None for a configuration alone.
        model_name: The base model, as it was named; "" where it was not.
        model: Its folder on this machine; None where there is none.
        dataset: The training data, a file on this machine; None where there is none.
        unseen_data: Why the data that is named cannot be looked at, for a person; "" where it can, or none is named.
        family: Whose names the configuration uses; "" where there was none.
        kind_known: Whether the trainer was told; else it was taken to be ``SFTTrainer``.
        run: The run's engine, for a folder of a run.
        problems: What could not be read or used, one line each.
    """

    name: str
    facts: list[FactUpdate] = field(default_factory=list)
    adapter: dict[str, Any] | None = None
    adapter_folder: Path | None = None
    model_name: str = ""
    model: Path | None = None
    dataset: Path | None = None
    unseen_data: str = ""
    family: str = ""
    kind_known: bool = False
    run: RunWatch | None = None
    problems: list[str] = field(default_factory=list)

    def value(self, name: str, default: Any = None) -> Any:
        """The last stated value of a fact; ``default`` where none is."""
        for update in reversed(self.facts):
            if not update.inferred and name in update.values:
                return update.values[name]
        for update in reversed(self.facts):
            if name in update.values:
                return update.values[name]
        return default

    def state(self, values: Mapping[str, Any], origin: str, *, inferred: bool = False) -> None:
        """Add facts; nothing where there are none."""
        if values:
            self.facts.append(FactUpdate(dict(values), origin, inferred))


def read_target(path: Path | None, flags: Mapping[str, Any], rules: RuleSet) -> Target:
    """What ``path`` is and says; ``flags`` win over it.

    Args:
        path: A run's folder, an adapter's folder or configuration, or a training configuration; None for flags alone.
        flags: Fact names to values, and ``model``, ``dataset`` and ``method``.
        rules: For the engine of a run's folder.

    Raises:
        TargetError: There is no such path, or it holds nothing that states a set-up.
    """
    if path is None:
        target = Target(FLAGS)
    elif not path.exists():
        raise TargetError(f"{path}: no such file or folder")
    elif path.is_dir():
        target = _folder(path, rules)
    elif path.name == ADAPTER:
        target = Target(str(path))
        _take_adapter(target, path)
        if target.adapter is None:
            raise TargetError(target.problems[-1])
    else:
        target = _config(path)
    _take_flags(target, flags)
    if target.dataset is None and target.unseen_data:
        target.problems.append(target.unseen_data)
    _take_defaults(target)
    _find_model(target, path)
    _make_adapter(target)
    return target


# ---- folders


def _folder(path: Path, rules: RuleSet) -> Target:
    target = Target(path.resolve().name or str(path))
    run: RunWatch | None = None
    try:
        found = discover(path)
    except SourceError:
        found = []
    if len(found) > 1:
        names = ", ".join(one.name for one in found[:3]) + (" …" if len(found) > 3 else "")
        raise TargetError(f"{path}: holds {len(found)} runs ({names}); give one of them")
    if found:
        run = RunWatch(found[0], rules)
        try:
            run.read()
        except SourceError as error:
            target.problems.append(str(error))
            run = None
    if run is not None:
        target.run = run
        by_origin: dict[tuple[str, bool], dict[str, Any]] = {}
        for name, fact in run.engine.run.facts.items():
            by_origin.setdefault((fact.origin, fact.inferred), {})[name] = fact.value
        for (origin, inferred), values in by_origin.items():
            target.state(values, origin, inferred=inferred)
        target.kind_known = run.engine.run.kind.value != "unknown"
    checkpoints = sorted(path.glob("checkpoint-*"), key=lambda one: (len(one.name), one.name))
    place = next((one for one in (path, *reversed(checkpoints)) if (one / ADAPTER).is_file()), None)
    if place is not None:
        _take_adapter(target, place / ADAPTER)
    elif run is None:
        configs = [one for one in sorted(path.iterdir()) if one.suffix in _CONFIGS and one.is_file()]
        if len(configs) != 1:
            raise TargetError(
                f"{path}: neither a run's log, nor an {ADAPTER}, nor one single configuration in it; give the file"
            )
        return _config(configs[0])
    return target


def _take_adapter(target: Target, file: Path) -> None:
    try:
        values = read_json(file)
    except BrokenCheckpointError as error:
        target.problems.append(str(error))
        return
    if str(values.get("peft_type", "LORA")).upper() != "LORA":
        target.problems.append(f"{file}: an adapter of type {str(values['peft_type'])[:40]!r}; only LORA is judged")
    target.adapter = values
    target.adapter_folder = file.parent
    facts = {name: values[name] for name in sorted(_LORA_FACTS) if values.get(name) is not None}
    target.state(facts, ADAPTER)
    base = values.get("base_model_name_or_path")
    if isinstance(base, str) and base:
        target.model_name = base
    _unknown_names(target, values, set(fields_of("LoraConfig")), ADAPTER, "PEFT")


# ---- training configurations


def _config(path: Path) -> Target:
    target = Target(str(path))
    try:
        document = read_config(path).document
    except ConfigError as error:
        raise TargetError(str(error)) from None
    family = family_of(document)
    target.family = family
    settings = _settings(document)
    facts = stated_facts(document, family)
    if not known_parameters(document):
        raise TargetError(f"{path}: none of its settings is a training parameter; give the one that starts the run")
    target.state(facts, path.name)
    target.state(_other_facts(settings, family), path.name)
    _check_names(target, document, family, path.name)
    trainer = _trainer_of(document, settings, family)
    target.kind_known = trainer is not None
    target.state({"trainer_class": trainer or "SFTTrainer"}, path.name if trainer else "assumed", inferred=not trainer)
    name = facts.get("model_name_or_path")
    target.model_name = name if isinstance(name, str) else ""
    _find_dataset(target, settings | _listed_data(document, family), path.parent)
    return target


def _settings(document: Document) -> dict[str, Any]:
    """Every literal setting by its own name; the first where a name stands several times."""
    found: dict[str, Any] = {}
    for entry in document.entries:
        if entry.value is not UNREAD and entry.value is not None:
            found.setdefault(entry.name, entry.value)
    return found


def _other_facts(settings: Mapping[str, Any], family: Family) -> dict[str, Any]:
    """Facts that a configuration states in words of its own family."""
    facts: dict[str, Any] = {}
    for name, value in settings.items():
        meant = parameter_of(name)
        if meant in _LORA_FACTS and meant != name and value != "auto":
            facts[meant] = value
        elif name.startswith("lora_") and name[5:] in _LORA_FACTS:
            facts[name[5:]] = value
    checkpointing = settings.get("gradient_checkpointing", settings.get("activation_checkpointing"))
    if checkpointing is not None:
        facts["activation_checkpointing"] = bool(checkpointing)
    for other in ("dtype", "torch_dtype"):
        if isinstance(settings.get(other), str):
            facts["dtype"] = settings[other].removeprefix("torch.")
    for plain in _PLAIN_FACTS:
        if plain in settings:
            facts[plain] = settings[plain]
    if settings.get("enable_liger_kernel") is True or settings.get("liger_fused_linear_cross_entropy") is True:
        facts["use_liger_kernel"] = True
    if family == "axolotl":
        facts |= _axolotl(settings)
    elif family == "llamafactory":
        facts |= _llamafactory(settings)
    target = facts.get("target_modules")
    if isinstance(target, str) and "," in target:
        facts["target_modules"] = [one.strip() for one in target.split(",") if one.strip()]
    elif isinstance(target, str) and target.lower() in ("all", "all-linear"):
        facts["target_modules"] = "all-linear"
    return facts


def _axolotl(settings: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"peft_type": "LORA"} if settings.get("adapter") in ("lora", "qlora") else {}
    if settings.get("lora_target_linear") is True:
        facts["target_modules"] = "all-linear"
    if settings.get("adapter") == "qlora":
        facts.setdefault("load_in_4bit", True)
    if settings.get("sample_packing") is True:
        facts["packing"] = True
    if "flash_attention" in settings:
        facts["attn_implementation"] = "flash_attention_2" if settings["flash_attention"] else "sdpa"
    if settings.get("bf16") in ("auto", True, "true"):
        facts["bf16"] = True
    return facts


def _llamafactory(settings: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    if settings.get("finetuning_type", "lora") == "lora":
        facts["peft_type"] = "LORA"
    bits = settings.get("quantization_bit")
    if bits in (4, 8):
        facts["load_in_4bit" if bits == 4 else "load_in_8bit"] = True
    if settings.get("disable_gradient_checkpointing") is True:
        facts["activation_checkpointing"] = False
    if settings.get("flash_attn") in ("fa2", "sdpa", "disabled"):
        facts["attn_implementation"] = {"fa2": "flash_attention_2", "sdpa": "sdpa", "disabled": "eager"}[
            settings["flash_attn"]
        ]
    return facts


def _trainer_of(document: Document, settings: Mapping[str, Any], family: Family) -> str | None:
    for section in document.sections:
        if section.path and section.path[-1] in _TRAINERS:
            return _TRAINERS[section.path[-1]]
    if family == "llamafactory":
        return _METHODS.get(str(settings.get("stage", "sft")))
    if family == "axolotl":
        return _METHODS.get(str(settings.get("rl") or "sft"), "SFTTrainer")
    if "num_generations" in settings or "max_completion_length" in settings:
        return "GRPOTrainer"
    if "desirable_weight" in settings:
        return "KTOTrainer"
    if "beta" in settings and "epsilon" not in settings:
        return "DPOTrainer"
    if {"packing", "assistant_only_loss", "completion_only_loss", "dataset_text_field", "eos_token"} & set(settings):
        return "SFTTrainer"
    return None


def _check_names(target: Target, document: Document, family: Family, where: str) -> None:
    """Tell names that nothing knows. A whole configuration is known for TRL alone: the others' fields are not here."""
    if document.format == "Python":
        for cls, names in _in_calls(document).items():
            known = set(fields_of(cls))
            if known:
                _unknown_names(target, names, known, f"{where}: {cls}", "the installed version")
        return
    given = [entry.name for section in document.sections if len(section.path) == 0 for entry in section.entries]
    if family != "transformers":
        _unknown_names(target, given, set(), where, FAMILY_TITLES[family])  # their own fields are not known here
        return
    trainer = _trainer_of(document, _settings(document), family) or "SFTTrainer"
    known = set(fields_of(_ARGUMENTS.get(trainer, "SFTConfig"))) | set(fields_of("ModelConfig"))
    known |= set(fields_of("ScriptArguments")) | set(fields_of("LoraConfig"))
    if known:
        known |= {
            "datasets",
            "config",
            "lora_config",
            "peft_config",
            "training_arguments",
            "training_args",
            "lora",
            "peft",
        }
    _unknown_names(target, given, known, where, "the installed TRL, transformers and PEFT")


def _in_calls(document: Document) -> dict[str, list[str]]:
    found: dict[str, list[str]] = {}
    for section in document.sections:
        last = section.path[-1] if section.path else ""
        if last in _TRAINERS or last == "LoraConfig":
            found.setdefault(last, []).extend(entry.name for entry in section.entries)
    return found


def _unknown_names(target: Target, given: Iterable[str], known: set[str], where: str, whose: str) -> None:
    """Add a line for each name that looks misspelt, and one for all others that ``known`` lacks."""
    real = known | FACT_NAMES | _OTHER_FAMILIES
    strange: list[str] = []
    for name in dict.fromkeys(given):
        if name in real or parameter_of(name) in real or name.startswith("_"):
            continue
        near = get_close_matches(name, real, n=1, cutoff=_MISSPELT)
        if near and abs(len(near[0]) - len(name)) <= 1:  # eos_token_id is no misspelt eos_token
            target.problems.append(f"{where}: unknown setting {printable(name)[:80]!r}; did you mean {near[0]!r}?")
        else:
            strange.append(printable(name)[:60])
    if strange and known:
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        target.problems.append(f"{where}: not known to {whose}, left alone: {', '.join(strange[:5])}{more}")


def _find_dataset(target: Target, settings: Mapping[str, Any], folder: Path) -> None:
    named: Any = next(
        (
            settings[name]
            for name in ("dataset_name", "dataset", "train_file", "data_files", "path")
            if name in settings
        ),
        None,
    )
    if isinstance(named, list) and len(named) == 1:
        named = named[0]
    if named is None:
        return
    if not isinstance(named, str):
        target.unseen_data = "rows: several data sets are named; give --dataset FILE to have its rows looked at"
        return
    places = [Path(named).expanduser(), folder / named]
    if target.family == "llamafactory":
        places = _llamafactory_data(named, settings, folder) or places
    for place in places:
        if place.suffix in (".jsonl", ".json", ".csv") and place.is_file():
            target.dataset = place
            return
    target.unseen_data = (
        f"rows: {printable(named)[:120]} is no JSONL, JSON or CSV file on this machine; give --dataset FILE to have "
        "its rows looked at"
    )


def _listed_data(document: Document, family: Family) -> dict[str, Any]:
    """The one data set of axolotl's list ``datasets``, by the name under which other configurations have it."""
    if family != "axolotl":
        return {}
    try:
        listed = yaml.safe_load(document.text).get("datasets")
    except (yaml.YAMLError, AttributeError, RecursionError):
        return {}
    paths = [one.get("path") for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    return {"path": paths[0] if len(paths) == 1 else paths} if paths else {}


def _llamafactory_data(named: str, settings: Mapping[str, Any], folder: Path) -> list[Path]:
    """The file of a data set that ``dataset_info.json`` names."""
    home = folder / str(settings.get("dataset_dir", "data"))
    try:
        entry = read_json(home / "dataset_info.json").get(named.split(",", 1)[0].strip())
    except BrokenCheckpointError:
        return []
    name = entry.get("file_name") if isinstance(entry, dict) else None
    return [home / name] if isinstance(name, str) else []


# ---- what flags and defaults add


def _take_flags(target: Target, flags: Mapping[str, Any]) -> None:
    facts = {name: value for name, value in flags.items() if name not in ("model", "dataset", "method")}
    method = flags.get("method")
    if method is not None:
        facts["trainer_class"] = _METHODS[method]
        target.kind_known = True
    target.state(facts, FLAGS)
    if flags.get("model"):
        target.model_name = str(flags["model"])
        target.state({"model_name_or_path": target.model_name}, FLAGS)
    if flags.get("dataset"):
        path = Path(str(flags["dataset"])).expanduser()
        if path.is_file():
            target.dataset = path
        else:
            target.problems.append(f"--dataset {path}: no such file; rows can only be looked at where they are local")
    if target.value("trainer_class") is None and target.run is None:
        target.state({"trainer_class": "SFTTrainer"}, "assumed", inferred=True)


def _take_defaults(target: Target) -> None:
    """State what the framework does where nothing else is stated. A run that logs says what it did."""
    if target.run is not None:
        return
    trainer = str(target.value("trainer_class", "Trainer"))
    found: dict[str, Any]
    if target.family == "llamafactory":
        found = dict(_LLAMAFACTORY_DEFAULTS)
        rank = target.value("r", found["r"])
        if isinstance(rank, int):
            found["lora_alpha"] = 2 * rank
        found["target_modules"] = "all-linear"
        _infer(target, found, "defaults of LLaMA-Factory")
        return
    if target.family == "axolotl" or (target.adapter is not None and target.family == ""):
        return  # an adapter alone does not say what trains it
    cls = _ARGUMENTS.get(trainer, "TrainingArguments")
    fields = fields_of(cls)
    found = {name: fields[name] for name in _KEPT_DEFAULTS if fields.get(name) not in (None, UNKNOWN)}
    if fields.get("activation_checkpointing") is None and isinstance(fields.get("gradient_checkpointing"), bool):
        found["activation_checkpointing"] = fields["gradient_checkpointing"]
    if cls != "TrainingArguments" and fields and target.value("fp16") is not True:
        found["bf16"] = True  # TRL: bf16 unless fp16
    _infer(target, found, f"default of {cls}")
    if target.value("use_peft") is True:
        model = fields_of("ModelConfig")
        names = {"lora_r": "r", "lora_alpha": "lora_alpha", "lora_dropout": "lora_dropout"}
        _infer(target, {new: model[old] for old, new in names.items() if old in model}, "default of TRL's ModelConfig")
    if target.adapter is None and not _has_adapter(target):
        return
    lora = fields_of("LoraConfig")
    defaults: dict[str, Any] = {
        name: lora[name] for name in ("r", "lora_alpha", "lora_dropout", "bias") if name in lora
    }
    _infer(target, defaults, "default of LoraConfig")


def _has_adapter(target: Target) -> bool:
    """Whether anything says that an adapter is trained; of flags alone, that is what is asked."""
    signs = ("r", "lora_alpha", "target_modules", "peft_type")
    return (
        target.name == FLAGS or target.value("use_peft") is True or any(target.value(one) is not None for one in signs)
    )


def _infer(target: Target, values: Mapping[str, Any], origin: str) -> None:
    known = {name for update in target.facts for name in update.values}
    target.state({name: value for name, value in values.items() if name not in known}, origin, inferred=True)


def _make_adapter(target: Target) -> None:
    """An adapter's configuration from facts, where no file had one, and what flags change of one."""
    names = [*sorted(_LORA_FACTS), *sorted(_LORA_ONLY)]
    stated = {name: target.value(name) for name in names if target.value(name) is not None}
    if target.adapter is None:
        if target.value("finetuning_type") in ("full", "freeze"):
            return
        target.adapter = stated if _has_adapter(target) else None
    else:
        flags = {
            name: one.values[name]
            for one in target.facts
            if one.origin == FLAGS
            for name in names
            if name in one.values
        }
        target.adapter = target.adapter | flags


# ---- the base model


def _find_model(target: Target, path: Path | None) -> None:
    if not target.model_name:
        from_log = target.run is not None and target.adapter is None
        name = target.value("model_name_or_path")
        if isinstance(name, str) and name and not from_log:
            target.model_name = name
    name = target.model_name
    if not name:
        target.problems.append("no base model is named; give --model PATH for what depends on its modules")
        return
    beside = path.parent if path is not None and path.is_file() else path
    target.model = local_model(name, beside)
    if target.model is None:
        target.problems.append(
            f"the model {printable(name)[:120]} is not on this machine; "
            "give --model PATH, a folder with its config.json"
        )


def local_model(name: str, beside: Path | None = None) -> Path | None:
    """Folder of a model that is on this machine: a path, or a snapshot in the Hugging Face cache.

    Args:
        name: A path, or the model's name on the hub.
        beside: Folder that a relative path may be meant from.
    """
    places = [Path(name).expanduser()]
    if beside is not None and not places[0].is_absolute():
        places.append(beside / name)
    for place in places:
        try:
            if (place / "config.json").is_file():
                return place
            if place.is_file() and place.name == "config.json":
                return place.parent
        except OSError:  # a name that no path can have
            continue
    return _cached(name) if _HUB_NAME.fullmatch(name) else None


def _cached(name: str) -> Path | None:
    """The snapshot of a hub's model in the cache, by ``huggingface_hub``'s layout (``models--org--name``)."""
    home = (
        os.environ.get("HF_HOME") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "huggingface"
    )
    cache = Path(os.environ.get("HF_HUB_CACHE") or Path(home) / "hub").expanduser()
    folder = cache / f"models--{name.replace('/', '--')}"
    try:
        commit = (folder / "refs" / "main").read_text(encoding="utf-8").strip()[:64]
    except (OSError, UnicodeDecodeError):
        commit = ""
    places = [folder / "snapshots" / commit] if re.fullmatch(r"[0-9a-f]{7,64}", commit) else []
    if (folder / "snapshots").is_dir():
        places += sorted((folder / "snapshots").iterdir())[:20]
    return next((one for one in places if (one / "config.json").is_file()), None)


def model_numbers(folder: Path) -> dict[str, Any]:
    """The numbers of a model's configuration, those of its text part where it has several.

    Raises:
        BrokenCheckpointError: There is no readable ``config.json``.
    """
    values = read_json(folder / "config.json")
    parts = [values[name] for name in ("text_config", "llm_config") if isinstance(values.get(name), dict)]
    return values | parts[0] if parts else values


def count_rows(file: Path, limit: int = 4 << 30) -> int | None:
    """Rows of a data file: lines of JSONL and CSV, items of a JSON list; None where it is too large or broken."""
    try:
        size = file.stat().st_size
        if file.suffix == ".json":
            if size > 256 << 20:
                return None
            rows = json.loads(file.read_text(encoding="utf-8"))
            return len(rows) if isinstance(rows, list) else None
        if size > limit:
            return None
        with file.open("rb") as opened:
            lines = sum(1 for line in opened if line.strip())
    except (OSError, ValueError, RecursionError):
        return None
    return max(lines - 1, 0) if file.suffix == ".csv" else lines
