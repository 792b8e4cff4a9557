"""Which modules an adapter's configuration names: the restatement of PEFT's matching, and what is read of it."""

from __future__ import annotations

import itertools
from typing import Any

import pytest

from lorawatch.lora.targets import (
    AdapterError,
    is_attention,
    layer_of,
    lora_parameters,
    nearest_modules,
    numberless,
    read_adapter,
    takes,
)
from lorawatch.records import ModelTree, ModuleGroup

NAMES = [
    "model", "model.layers", "model.layers.0", "model.layers.0.self_attn", "model.layers.0.self_attn.q_proj",
    "model.layers.11.self_attn.q_proj", "model.layers.3.mlp.gate_proj", "model.layers.3.mlp.experts.12.w1",
    "model.visual.blocks.7.attn.q_proj", "model.embed_tokens", "lm_head", "q_proj", "score", "xq_proj",
    "transformer.h.2.attn.c_attn", "bert.encoder.layer.1.attention.self.query", "model.layers.3.mlp",
]  # fmt: skip
TARGETS: list[Any] = [
    ["q_proj"], ["q_proj", "self_attn.q_proj", "w1"], ["model.layers.3.mlp.gate_proj"], ["lm_head", "mlp"], [],
    r".*\.layers\.\d\..*q_proj", r"(.*\.)?(q_proj|gate_proj)",
]  # fmt: skip
OTHERS: list[dict[str, Any]] = [
    {}, {"exclude_modules": ["lm_head", "layers.11.self_attn.q_proj"]}, {"exclude_modules": r".*visual.*"},
    {"modules_to_save": ["lm_head", "mlp"]}, {"layers_to_transform": [0, 3]}, {"layers_to_transform": 11},
    {"layers_to_transform": [7], "layers_pattern": ["blocks", "layers"]}, {"layers_to_transform": []},
]  # fmt: skip
CONFIGS = [
    {"target_modules": targets, **other}
    for targets, other in itertools.product(TARGETS, OTHERS)
    if not (isinstance(targets, str) and "layers_to_transform" in other)  # PEFT refuses the two together
]


@pytest.mark.parametrize("values", CONFIGS, ids=str)
def test_matching_is_that_of_peft(values: dict[str, Any]) -> None:
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    ours, theirs = read_adapter(values), LoraConfig(**values)
    for name in NAMES:
        assert takes(ours, name) == bool(check_target_module_exists(theirs, name)), name


def test_a_configuration_is_read_from_peft_and_from_its_file_alike() -> None:
    from peft import LoraConfig

    config: Any = LoraConfig(
        r=4, target_modules=["q_proj", "v_proj"], rank_pattern={"q_proj": 2}, layers_to_transform=[1], bias="all",
        task_type="SEQ_CLS", use_dora=True, modules_to_save=["head"], exclude_modules="x.*",
    )  # fmt: skip
    assert read_adapter(config) == read_adapter({**config.to_dict(), "target_modules": ["q_proj", "v_proj"]})


def test_unknown_keys_are_left_alone() -> None:
    assert read_adapter({"r": 4, "made_up": object()}).r == 4


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"target_modules": 3}, "target_modules: names are expected, not 3"),
        ({"target_modules": ["q", 1]}, "target_modules: names are expected"),
        ({"target_modules": "(["}, "is no regular expression"),
        ({"r": 0}, "r: a whole number from 1 on is expected, not 0"),
        ({"r": "16"}, "r: a whole number"),
        ({"rank_pattern": [1]}, "rank_pattern: names with ranks are expected"),
        ({"lora_alpha": "x"}, "lora_alpha: a number is expected"),
        ({"layers_to_transform": ["a"]}, "layers_to_transform: a whole number"),
    ],
    ids=str,
)
def test_a_wrong_configuration_is_one_line(values: dict[str, Any], told: str) -> None:
    with pytest.raises(AdapterError) as error:
        read_adapter(values)
    assert told in str(error.value)
    assert "\n" not in str(error.value)


def test_the_rank_of_a_module_is_that_of_the_first_pattern_that_fits() -> None:
    config = read_adapter({"r": 8, "rank_pattern": {"q_proj": 2, r"layers\.0\..*": 3}})
    assert config.rank("model.layers.0.self_attn.q_proj") == 2
    assert config.rank("model.layers.0.self_attn.k_proj") == 3
    assert config.rank("model.layers.1.self_attn.k_proj") == 8


def test_names_of_layers_and_of_attention_are_told_from_others() -> None:
    assert numberless("model.layers.11.mlp.experts.0.w1") == "model.layers.*.mlp.experts.*.w1"
    assert layer_of(read_adapter({}), "model.layers.11.mlp.experts.0.w1") == 11
    assert is_attention("model.layers.*.self_attn.qkv_proj")
    assert is_attention("bert.encoder.layer.*.attention.output.dense")
    assert not is_attention("bert.encoder.layer.*.output.dense")
    assert not is_attention("model.layers.*.mlp.gate_proj")


def group(name: str, kind: Any = "linear", adapted: int | None = None) -> ModuleGroup:
    return ModuleGroup(name, kind, inputs=8, outputs=8, count=2, parameters=64, adapted=adapted)


def test_the_nearest_names_are_the_models_own() -> None:
    tree = ModelTree([group("model.layers.*.mlp.gate_proj"), group("model.layers.*.self_attn.q_proj")])
    assert nearest_modules("gate_prj", tree)[0] == "gate_proj"
    assert nearest_modules("query_proj", tree)[0] == "q_proj"
    assert nearest_modules("mlp.gate_prj", tree)[0] == "mlp.gate_proj"
    assert nearest_modules("zzz", tree) == []


def test_lora_parameters_follow_from_widths_and_are_not_guessed_for_experts() -> None:
    assert lora_parameters(ModelTree([group("a.*.q", adapted=2), group("a.*.k", adapted=0)]), 4) == 2 * 4 * 16
    assert lora_parameters(ModelTree([group("a.*.experts", kind="experts", adapted=2)]), 4) is None
    assert lora_parameters(ModelTree([group("a.*.q")]), 4) is None
