"""Whose names a configuration uses, which setting is which parameter, and where a new one belongs.

The table of other tools' spellings is :data:`lorawatch.sources.names.FACT_ALIASES`, and that of what lorawatch
proposes is :mod:`lorawatch.parameters`; here is only what a file needs on top: older names, and neighbours.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Literal

from lorawatch.config_files.document import UNREAD, ConfigError, Document, Entry, Section
from lorawatch.config_files.python_document import PythonDocument
from lorawatch.sources.facts import from_mapping
from lorawatch.sources.names import FACT_ALIASES, FACT_NAMES

Family = Literal["transformers", "axolotl", "llamafactory"]
FAMILY_TITLES: dict[Family, str] = {
    "transformers": "TRL / transformers", "axolotl": "axolotl", "llamafactory": "LLaMA-Factory",
}  # fmt: skip

_MARKS: dict[Family, frozenset[str]] = {
    "axolotl": frozenset(
        {
            "base_model", "micro_batch_size", "sequence_len", "num_epochs", "sample_packing", "pad_to_sequence_len",
            "lora_target_linear", "dataset_prepared_path", "val_set_size", "adapter", "datasets", "special_tokens",
            "peft_use_rslora", "base_model_config", "rl", "flash_attention",
        }
    ),
    "llamafactory": frozenset(
        {
            "finetuning_type", "stage", "cutoff_len", "lora_target", "lora_rank", "template", "dataset_dir",
            "preprocessing_num_workers", "overwrite_cache", "pref_loss", "pref_beta", "quantization_bit", "plot_loss",
        }
    ),
}  # fmt: skip
"""Names that one family has and the others do not (axolotl's pydantic schemas, LLaMA-Factory's ``hparams``)."""
_ENOUGH = 3

_OTHER_NAMES = {
    "additional_target": "modules_to_save",
    "lora_modules_to_save": "modules_to_save",
    "peft_use_rslora": "use_rslora",
    "peft_use_dora": "use_dora",
    "enable_liger_kernel": "use_liger_kernel",
    "pref_loss": "loss_type",
    "rl_beta": "beta",
    "dpo_beta": "beta",
    "sample_packing": "packing",
    "eval_batch_size": "per_device_eval_batch_size",
    "gradient_checkpointing": "activation_checkpointing",
}
"""Spellings that no log has, or that the facts keep apart."""

_GROUPS: tuple[tuple[str, ...], ...] = (
    ("r", "lora_alpha", "lora_dropout", "target_modules", "lora_target_linear", "modules_to_save", "bias",
     "use_rslora", "use_dora", "init_lora_weights"),
    ("per_device_train_batch_size", "gradient_accumulation_steps", "per_device_eval_batch_size"),
    ("num_train_epochs", "max_steps"),
    ("learning_rate", "lr_scheduler_type", "lr_scheduler_kwargs", "warmup_steps", "warmup_ratio", "optim", "adam_beta1",
     "adam_beta2", "weight_decay", "max_grad_norm"),
    ("bf16", "fp16", "tf32", "activation_checkpointing", "activation_offloading", "use_liger_kernel", "torch_compile",
     "torch_empty_cache_steps"),
    ("max_length", "packing", "padding_free", "assistant_only_loss", "completion_only_loss", "group_by_length",
     "train_sampling_strategy"),
    ("eval_strategy", "eval_steps", "per_device_eval_batch_size", "eval_accumulation_steps", "prediction_loss_only",
     "load_best_model_at_end", "metric_for_best_model", "greater_is_better", "val_size"),
    ("save_strategy", "save_steps", "save_total_limit", "save_only_model", "output_dir"),
    ("logging_strategy", "logging_steps", "logging_first_step", "logging_nan_inf_filter"),
    ("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers", "dataloader_pin_memory"),
    ("beta", "loss_type", "loss_weights", "label_smoothing"),
    ("num_generations", "max_completion_length", "temperature", "beta", "epsilon", "epsilon_high", "loss_type",
     "scale_rewards", "mask_truncated_completions", "num_iterations", "use_vllm", "vllm_mode",
     "vllm_gpu_memory_utilization", "vllm_enable_sleep_mode"),
    ("load_in_4bit", "load_in_8bit", "quantization_bit", "bnb_4bit_quant_type", "bnb_4bit_use_double_quant",
     "bnb_4bit_compute_dtype"),
)  # fmt: skip
"""Parameters that belong together, in the order in which people write them."""
_ADAPTER = frozenset(_GROUPS[0])
_METHOD = frozenset(name for group in _GROUPS[-3:] for name in group)
_QUANTIZED = frozenset(_GROUPS[-1])
_TRAINING = frozenset(name for group in _GROUPS[1:-3] for name in group)
_TRL_ONLY = frozenset(
    {"max_length", "packing", "padding_free", "assistant_only_loss", "completion_only_loss", "packing_strategy",
     "loss_type", "loss_weights", "beta", "label_smoothing", "num_generations", "max_completion_length", "temperature"}
)  # fmt: skip
"""What TRL's configurations have and TrainingArguments does not take."""
_PREFIXED = {"r": "lora_r", "target_modules": "lora_target_modules", "modules_to_save": "lora_modules_to_save"}
"""TRL's ModelConfig, whose names stand in its YAML beside those of the training."""
_FOREIGN = frozenset(
    {
        "deepspeed", "deepspeed_config", "fsdp", "fsdp_config", "wandb", "accelerate", "lr_scheduler_kwargs",
        "optim_args", "gradient_checkpointing_kwargs", "generation_config", "generation_kwargs", "GenerationConfig",
        "AutoConfig", "model_init_kwargs", "model_kwargs", "zero_optimization", "special_tokens",
    }
)  # fmt: skip
"""Sections of other programs, which have settings of the same names."""
_ALONE = {"max_seq_length", "lora_r", "lora_rank", "micro_batch_size", "gradient_checkpointing"}
"""Aliases that are believed of a bare variable, whose name may mean anything."""
_SHORT = {"r", "rank", "bias"}
_LONG = 5


def family_of(document: Document, framework: str = "") -> Family:
    """Whose names a configuration uses; transformers' where nothing says otherwise.

    Args:
        document: The configuration.
        framework: What the run says of itself; one name of that family is then enough.
    """
    names = {entry.name for section in document.sections if len(section.path) <= 1 for entry in section.entries}
    best: Family = "transformers"
    most = _ENOUGH - 1
    for family, marks in _MARKS.items():
        found = len(names & marks)
        if found and family == framework and best == "transformers":
            best, most = family, max(found, most)
        elif found > most:
            best, most = family, found
    return best


def parameter_of(name: str) -> str:
    """The parameter that a setting is, by the name that a run's facts have for it; ``name`` where none is known."""
    return _OTHER_NAMES.get(name) or FACT_ALIASES.get(name, name)


def known_parameters(document: Document) -> set[str]:
    """The training and LoRA parameters that a configuration sets."""
    known = {*FACT_NAMES, *_ADAPTER, *_METHOD, *_TRAINING}
    return {name for entry in document.entries if (name := parameter_of(entry.name)) in known}


def stated_facts(document: Document, family: Family) -> dict[str, Any]:
    """What a configuration says of the run that it starts, by the names of facts; with its framework.

    Accumulation that is not set is 1 step, in all three families.
    """
    facts: dict[str, Any] = {}
    for section in document.sections:
        if not _is_foreign(section):
            # "auto" leaves the choice to the framework, and says nothing of it.
            values = {
                one.name: one.value
                for one in section.entries
                if _meant(one, document) and one.value not in (UNREAD, "auto")
            }
            facts |= from_mapping(values)
    if not settings_of(document, "gradient_accumulation_steps"):
        facts["gradient_accumulation_steps"] = 1
    if family != "transformers":
        facts["framework"] = family
    return facts


def settings_of(document: Document, parameter: str) -> list[Entry]:
    """Every place that sets a parameter, whatever it calls it; a bare variable only where nothing else does."""
    wanted = parameter_of(parameter)
    found = [entry for entry in document.entries if parameter_of(entry.name) == wanted and _meant(entry, document)]
    found = [entry for entry in found if not _is_foreign(document.sections[entry.section])]
    nested = [entry for entry in found if not _is_bare(document.sections[entry.section], document)]
    places: dict[tuple[int, int], Entry] = {}
    for entry in nested or found:
        places.setdefault((entry.start, entry.end), entry)
    return list(places.values())


def setting_of(document: Document, parameter: str) -> Entry | None:
    """The one place that sets a parameter; None where there is none.

    Raises:
        ConfigError: Several set it.
    """
    found = settings_of(document, parameter)
    exact = [entry for entry in found if entry.name == parameter]
    if len({entry.section for entry in found}) == 1 and len(exact) == 1:
        found = exact  # its own name, beside an older one
    if len(found) > 1:
        lines = [f"{entry.line} ({entry.name})" for entry in found]
        raise ConfigError(f"lines {', '.join(lines[:-1])} and {lines[-1]} set one thing; make the change by hand")
    return found[0] if found else None


def place_for(document: Document, parameter: str) -> tuple[Entry, str]:
    """Below which setting a new one belongs, and what to call it there.

    Raises:
        ConfigError: No section is the one for it.
    """
    wanted = parameter_of(parameter)
    found = _beside_its_family(document, wanted)
    flat = family_of(document) != "transformers"  # one level holds all, whatever it is of
    if found is None and (wanted in _TRAINING or (flat and wanted in _ADAPTER | _QUANTIZED)):
        found = _last_of(document, _TRAINING)
    if found is None:
        raise ConfigError(f"{parameter} is not set, and no section is the one for it; set it by hand")
    section = document.sections[found.section]
    if section.problem:
        raise ConfigError(f"{parameter} is not set, and {section.name} {section.problem}; set it by hand")
    if isinstance(document, PythonDocument) and section.name.endswith("TrainingArguments") and wanted in _TRL_ONLY:
        raise ConfigError(f"{parameter} is not set, and {section.name} does not take it; set it by hand")
    siblings = {entry.name for entry in section.entries}
    if parameter in _PREFIXED and siblings & {"use_peft", *_PREFIXED.values()}:
        return found, _PREFIXED[parameter]
    return found, parameter


def _beside_its_family(document: Document, wanted: str) -> Entry | None:
    """The nearest neighbour of a parameter's group, in the section that has most of the group."""
    for group in (group for group in _GROUPS if wanted in group):
        ranked: list[tuple[int, Entry]] = []
        for section in document.sections:
            members = [entry for entry in section.entries if parameter_of(entry.name) in group]
            if members and not _is_foreign(section) and not _is_assignments(section, document):
                ranked.append((len(members), _nearest(members, group, wanted)))
        most = max((count for count, _ in ranked), default=0)
        best = [entry for count, entry in ranked if count == most]
        if len(best) > 1:
            names = " and ".join(f"{document.sections[one.section].name} (line {one.line})" for one in best[:2])
            raise ConfigError(f"{wanted} is not set, and {names} could both take it; set it by hand")
        if best:
            return best[0]
    return None


def _nearest(members: list[Entry], group: tuple[str, ...], wanted: str) -> Entry:
    place = group.index(wanted)
    before = [one for one in members if group.index(parameter_of(one.name)) < place]
    return max(before or members, key=lambda one: (group.index(parameter_of(one.name)) if before else 0, one.start))


def _last_of(document: Document, names: frozenset[str]) -> Entry | None:
    best: list[Entry] = []
    for section in document.sections:
        members = [entry for entry in section.entries if parameter_of(entry.name) in names]
        if len(members) > len(best) and not _is_foreign(section) and not _is_assignments(section, document):
            best = members
    return best[-1] if best else None


def _is_foreign(section: Section) -> bool:
    return not _FOREIGN.isdisjoint(section.path)


def _is_assignments(section: Section, document: Document) -> bool:
    return isinstance(document, PythonDocument) and (
        section.name in ("assignments", "set later") or section.name.startswith("class ")
    )


def _is_bare(section: Section, document: Document) -> bool:
    """Whether it holds variables. What is set on an object later overrides a call, and counts beside it."""
    return _is_assignments(section, document) and section.name != "set later"


def _meant(entry: Entry, document: Document) -> bool:
    """Whether a setting with a name that may mean anything is one of training."""
    section = document.sections[entry.section]
    if _is_bare(section, document):
        sure = entry.name in _ALONE or (entry.name not in FACT_ALIASES and len(entry.name) >= _LONG)
        return sure and entry.value is not UNREAD
    if entry.name in _SHORT:
        others: Iterable[str] = (parameter_of(one.name) for one in section.entries if one is not entry)
        return any(name in _ADAPTER and name != "bias" for name in others)
    return True
