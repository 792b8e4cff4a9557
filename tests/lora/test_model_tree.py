"""The modules of a base model under an adapter: by a live model, by a configuration alone, by tensors' names."""

from __future__ import annotations

import copy
import json
import re
import struct
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("peft")

import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForSequenceClassification

from lorawatch.lora.base_modules import modules_of_model
from lorawatch.lora.model_tree import (
    UnknownArchitectureError,
    tree_of_checkpoint,
    tree_of_config,
    tree_of_model,
    tree_of_weights,
)
from lorawatch.lora.targets import AdapterError
from lorawatch.lora.tensor_shapes import BrokenCheckpointError
from lorawatch.records import ModelTree

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning", "ignore::RuntimeWarning")

SMALL: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 64, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
MODELS: dict[str, dict[str, Any]] = {
    "llama": SMALL,
    "llama, tied": {**SMALL, "model_type": "llama", "tie_word_embeddings": True},
    "qwen2": SMALL,
    "qwen3": {**SMALL, "head_dim": 8},
    "mistral": SMALL,
    "gemma2": {**SMALL, "head_dim": 8},
    "gemma3_text": {**SMALL, "head_dim": 8},
    "phi": SMALL,
    "phi3": SMALL,
    "mixtral": {**SMALL, "num_local_experts": 4},
    "gpt2": {
        "n_embd": 32, "n_layer": 3, "n_head": 4, "vocab_size": 64, "n_positions": 32, "bos_token_id": 1,
        "eos_token_id": 2,
    },
    "bert": {
        "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "vocab_size": 64,
    },
}  # fmt: skip
ATTENTION = {"gpt2": "c_attn", "bert": "query", "phi3": "qkv_proj"}
"""A module of attention by the name that the model has for it; ``q_proj`` elsewhere."""
LINEAR = {"phi3": 4, "mixtral": 6, "gpt2": 4, "bert": 6, "phi": 6}
"""Modules a layer that ``all-linear`` takes; 7 elsewhere. Of Mixtral router and experts count as one each."""
OPTIONS: dict[str, dict[str, Any]] = {
    "all-linear": {"target_modules": "all-linear"},
    "a list with a rank pattern and the embedding": {
        "target_modules": ["ATTENTION", "EMBEDDING"], "rank_pattern": {"ATTENTION": 3},
    },
    "bias all": {"target_modules": ["ATTENTION"], "bias": "all"},
    "bias lora_only": {"target_modules": ["ATTENTION"], "bias": "lora_only"},
    "DoRA": {"target_modules": ["ATTENTION", "EMBEDDING"], "use_dora": True},
    "a regular expression with modules saved": {"target_modules": r".*\.ATTENTION", "modules_to_save": ["HEAD"]},
    "bias of B": {"target_modules": ["ATTENTION"], "lora_bias": True},
    "some layers": {"target_modules": ["ATTENTION"], "layers_to_transform": [0, 2]},
    "a module excluded": {"target_modules": ["ATTENTION"], "exclude_modules": r".*\.1\..*"},
}  # fmt: skip


def settings(name: str) -> dict[str, Any]:
    return {"model_type": name.partition(",")[0], **MODELS[name]}


@cache
def base(name: str) -> Any:
    config = AutoConfig.for_model(**settings(name))
    torch.manual_seed(0)
    maker: Any = AutoModelForSequenceClassification if name == "bert" else AutoModelForCausalLM
    return maker.from_config(config)


def config_of(name: str) -> dict[str, Any]:
    return {**settings(name), "architectures": [type(base(name)).__name__]}


def adapter(name: str, option: str) -> dict[str, Any]:
    head = {"bert": "classifier"}.get(name, "lm_head")
    words = {
        "ATTENTION": ATTENTION.get(name, "q_proj"), "HEAD": head,
        "EMBEDDING": {"gpt2": "wte", "bert": "word_embeddings"}.get(name, "embed_tokens"),
    }  # fmt: skip
    text = json.dumps(OPTIONS[option])
    for word, meant in words.items():
        text = text.replace(word, meant)
    task = {"task_type": "SEQ_CLS"} if name == "bert" else {}
    return {"r": 4, **task, **json.loads(text)}


def wrapped(name: str, values: dict[str, Any]) -> Any:
    return get_peft_model(copy.deepcopy(base(name)), LoraConfig(**copy.deepcopy(values)))


def adapted(tree: ModelTree) -> dict[str, int | None]:
    return {group.name: group.adapted for group in tree.groups}


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("name", ["llama, tied", "qwen2", "phi3", "mixtral", "gpt2", "bert"])
def test_trainable_parameters_are_those_of_peft(name: str, option: str) -> None:
    values = adapter(name, option)
    model = wrapped(name, values)
    trainable = model.get_nb_trainable_parameters()[0]
    by_config, live = tree_of_config(config_of(name), values), tree_of_model(model)
    assert by_config.trainable == trainable
    assert live.trainable == trainable
    assert adapted(by_config) == adapted(live)
    assert by_config.parameters == live.parameters == sum(one.numel() for one in base(name).parameters())


@pytest.mark.parametrize("name", MODELS)
class TestTargets:
    def test_a_name_matches_in_every_layer_and_a_misspelt_one_in_none(self, name: str) -> None:
        right = ATTENTION.get(name, "q_proj")
        tree = tree_of_config(config_of(name), {"target_modules": [right, right[:-1] + "x"]})
        assert tree.targets == {right: 3, right[:-1] + "x": 0}
        assert tree.layers == 3

    def test_a_regular_expression_is_one_entry(self, name: str) -> None:
        pattern = rf".*\.[02]\..*{ATTENTION.get(name, 'q_proj')}"
        tree = tree_of_config(config_of(name), {"r": 4, "target_modules": pattern})
        # Of a mixture whose experts were fused, PEFT keeps the last parts of the names only: all layers are taken.
        layers = 3 if name == "mixtral" else 2
        assert tree.targets == {pattern: layers}
        assert max(count for count in adapted(tree).values() if count) == layers
        if name in ("llama", "mixtral"):
            assert tree.trainable == wrapped(name, {"r": 4, "target_modules": pattern}).get_nb_trainable_parameters()[0]

    def test_all_linear_takes_each_linear_layer_but_the_head(self, name: str) -> None:
        tree = tree_of_config(
            config_of(name), {"target_modules": "all-linear", "task_type": adapter(name, "DoRA").get("task_type")}
        )
        expected = 3 * LINEAR.get(name, 7) + (name == "bert")  # BERT's pooler is linear too
        assert tree.targets == {"all-linear": expected}
        heads = [group for group in tree.groups if group.name in ("lm_head", "classifier")]
        assert [group.adapted for group in heads] == [0]


def test_a_model_without_adapter_says_nothing_of_one() -> None:
    tree = tree_of_model(base("llama"))
    assert tree.targets == {}
    assert tree.trainable is None
    assert {group.adapted for group in tree.groups} == {None}
    assert [group.kind for group in tree.groups if group.name == "model.norm"] == ["norm"]


def test_a_model_that_is_not_wrapped_yet_is_judged_by_the_adapter_to_come() -> None:
    model, values = base("llama"), adapter("llama", "all-linear")
    assert tree_of_model(model, values).trainable == wrapped("llama", values).get_nb_trainable_parameters()[0]
    assert not any(hasattr(module, "lora_A") for module in model.modules())


def test_a_misspelt_name_of_a_live_adapter_shows() -> None:
    model = wrapped("llama", {"r": 4, "target_modules": ["q_proj", "gate_prj"]})
    assert tree_of_model(model).targets == {"gate_prj": 0, "q_proj": 3}


def test_a_tied_head_counts_once() -> None:
    tree = tree_of_config(config_of("llama, tied"))
    head = next(group for group in tree.groups if group.name == "lm_head")
    assert head.tied
    assert tree.parameters == tree_of_config(config_of("llama")).parameters - head.parameters


def test_names_of_layers_that_were_fused_count_as_the_experts() -> None:
    values = {"r": 4, "target_modules": ["q_proj", "w1", "w2", "w3", "w4"]}
    tree = tree_of_config(config_of("mixtral"), values)
    assert tree.targets == {"q_proj": 3, "w1": 3, "w2": 3, "w3": 3, "w4": 0}
    assert adapted(tree)["model.layers.*.mlp.experts"] == 3
    assert tree.trainable == wrapped("mixtral", values).get_nb_trainable_parameters()[0]


def test_half_of_what_was_fused_is_not_counted_since_peft_refuses_it() -> None:
    values = {"r": 4, "target_modules": ["q_proj", "w1"]}
    assert tree_of_config(config_of("mixtral"), values).trainable is None
    with pytest.raises(ValueError, match="fused"):
        wrapped("mixtral", values)


def test_parameters_can_be_targets() -> None:
    values = {"r": 4, "target_modules": ["q_proj"], "target_parameters": ["mlp.experts.down_proj", "mlp.nothing"]}
    tree = tree_of_config(config_of("mixtral"), values)
    assert tree.targets == {"q_proj": 3, "mlp.experts.down_proj": 3, "mlp.nothing": 0}
    assert tree.trainable == wrapped("mixtral", values).get_nb_trainable_parameters()[0]


def test_trained_tokens_count() -> None:
    values = {"r": 4, "target_modules": ["q_proj"], "trainable_token_indices": [1, 2, 3]}
    model = wrapped("llama", values)
    trainable = model.get_nb_trainable_parameters()[0]
    assert tree_of_config(config_of("llama"), values).trainable == tree_of_model(model).trainable == trainable


def test_a_block_is_no_target_and_makes_the_count_unknown() -> None:
    tree = tree_of_config(config_of("llama"), {"target_modules": ["q_proj", "mlp"]})
    assert tree.targets == {"q_proj": 3, "mlp": 0}
    assert tree.trainable is None


def test_peft_chooses_where_no_target_is_given() -> None:
    assert tree_of_config(config_of("llama"), {"r": 4}).targets == {"q_proj": 3, "v_proj": 3}
    assert tree_of_config(config_of("phi3"), {"r": 4}).trainable == 0


def test_a_wrapper_around_the_model_does_not_change_its_names() -> None:
    model = wrapped("llama", adapter("llama", "all-linear"))
    held = torch.nn.Module()
    held.module = model
    assert tree_of_model(held) == tree_of_model(model)


def test_the_tree_of_a_live_model_changes_nothing_in_it() -> None:
    model = wrapped("llama", adapter("llama", "all-linear"))
    before = {name: (one.clone(), one.requires_grad) for name, one in model.named_parameters()}
    state = torch.get_rng_state()
    tree_of_model(model)
    assert torch.equal(state, torch.get_rng_state())
    assert all(
        torch.equal(before[name][0], one) and before[name][1] == one.requires_grad
        for name, one in model.named_parameters()
    )


class Linear4bit(torch.nn.Linear):
    """Like that of bitsandbytes: two weights of 4 bits a byte."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(inputs, outputs, bias=True)
        packed = torch.zeros((inputs * outputs // 2, 1), dtype=torch.uint8)
        self.weight = torch.nn.Parameter(packed, requires_grad=False)


def test_a_packed_weight_counts_as_what_was_packed() -> None:
    found = modules_of_model(torch.nn.Sequential(Linear4bit(16, 8)))
    assert found.parameters == 16 * 8 + 8
    assert found.modules[0].shapes == {"weight": (8, 16), "bias": (8,)}


def test_a_partitioned_weight_counts_as_a_whole_one() -> None:
    norm = torch.nn.LayerNorm(8)
    for one in norm.parameters():
        one.ds_shape = one.shape  # type: ignore[attr-defined]
        one.data = torch.zeros(0)
    assert modules_of_model(norm).parameters == 16


def test_a_7b_model_is_known_without_its_weights() -> None:
    llama = {
        "model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 4096, "intermediate_size": 11008,
        "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32000,
    }  # fmt: skip
    tree = tree_of_config(llama, {"r": 16, "target_modules": "all-linear"})
    assert tree.parameters == 6_738_415_616
    assert tree.trainable == 39_976_960
    assert tree.layers == 32
    assert tree.origin == "config"


class TestFiles:
    def test_a_folder_its_file_and_its_content_are_the_same(self, tmp_path: Path) -> None:
        values = config_of("llama")
        (tmp_path / "config.json").write_text(json.dumps(values))
        trees = [tree_of_config(one) for one in (tmp_path, tmp_path / "config.json", values)]
        assert trees[0] == trees[1] == trees[2]

    def test_tensors_alone_tell_nearly_as_much(self, tmp_path: Path) -> None:
        base("llama").save_pretrained(tmp_path)
        values = adapter("llama", "all-linear")
        by_tensors, by_config = tree_of_weights(tmp_path, values), tree_of_config(config_of("llama"), values)
        assert by_tensors.origin == "index"
        assert (by_tensors.targets, by_tensors.trainable, by_tensors.parameters, by_tensors.layers) == (
            by_config.targets, by_config.trainable, by_config.parameters, by_config.layers,
        )  # fmt: skip
        assert {(one.name, one.kind, one.inputs, one.outputs, one.count) for one in by_tensors.groups} == {
            (one.name, one.kind, one.inputs, one.outputs, one.count) for one in by_config.groups
        }

    def test_an_unknown_architecture_is_one_line_and_its_tensors_are_taken(self, tmp_path: Path) -> None:
        base("llama").save_pretrained(tmp_path)
        config = {"model_type": "made_up", "auto_map": {"AutoConfig": "x--evil.Config"}, "architectures": ["MadeUp"]}
        (tmp_path / "config.json").write_text(json.dumps(config))
        with pytest.raises(UnknownArchitectureError, match="does not know model_type 'made_up'") as error:
            tree_of_config(tmp_path)
        assert "\n" not in str(error.value)
        assert tree_of_checkpoint(tmp_path, {"target_modules": ["q_proj"]}).targets == {"q_proj": 3}

    def test_an_index_alone_gives_names(self, tmp_path: Path) -> None:
        weights = {f"model.layers.{layer}.mlp.up_proj.weight": "a.safetensors" for layer in range(12)}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))
        tree = tree_of_weights(tmp_path, {"target_modules": ["up_proj", "down_proj"]})
        assert tree.targets == {"up_proj": 12, "down_proj": 0}
        assert tree.layers == 12
        assert tree.trainable is None

    @pytest.mark.parametrize(
        ("values", "told"),
        [
            ({}, "states no model_type"),
            ({"model_type": 3}, "states no model_type"),
            ({"model_type": "llama", "hidden_size": 30, "num_attention_heads": 0}, "cannot build the model"),
            ({"model_type": "llama", "hidden_size": "wide"}, "cannot build the model"),
        ],
        ids=str,
    )
    def test_a_configuration_that_is_no_model_is_one_line(self, values: dict[str, Any], told: str) -> None:
        with pytest.raises(UnknownArchitectureError) as error:
            tree_of_config(values)
        assert told in str(error.value)
        assert "\n" not in str(error.value)

    @pytest.mark.parametrize(
        "values",
        [{"num_hidden_layers": 10**9}, {"num_local_experts": 10**6}, {"num_hidden_layers": 4000, "num_experts": 4000}],
        ids=str,
    )
    def test_a_configuration_without_end_is_refused(self, values: dict[str, Any]) -> None:
        with pytest.raises(BrokenCheckpointError, match="no model has"):
            tree_of_config({"model_type": "mixtral", **values})

    @pytest.mark.parametrize(
        ("content", "told"),
        [
            (b"", "not a safetensors file"),
            (b"PK\x03\x04 a zip of something", "not a safetensors file"),
            (struct.pack("<Q", 8) + b"not json", "header is broken"),
            (struct.pack("<Q", 11) + b'{"a": [1]}  ', "header is broken"),
            (struct.pack("<Q", 2**40), "not a safetensors file"),
        ],
        ids=["empty", "zip", "no JSON", "no shape", "without end"],
    )
    def test_a_broken_safetensors_file_is_one_line(self, tmp_path: Path, content: bytes, told: str) -> None:
        file = tmp_path / "model.safetensors"
        file.write_bytes(content)
        with pytest.raises(BrokenCheckpointError, match=told):
            tree_of_weights(file)

    @pytest.mark.parametrize(("text", "told"), [("[]", "no JSON object"), ("{", "not JSON"), ("\x00", "not JSON")])
    def test_a_broken_configuration_is_one_line(self, tmp_path: Path, text: str, told: str) -> None:
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(BrokenCheckpointError, match=told):
            tree_of_config(tmp_path)

    def test_what_is_not_there_is_one_line(self, tmp_path: Path) -> None:
        for call in (tree_of_config, tree_of_weights):
            with pytest.raises(BrokenCheckpointError, match=re.escape(str(tmp_path))):
                call(tmp_path)

    def test_a_wrong_adapter_is_told_before_a_model_is_built(self) -> None:
        with pytest.raises(AdapterError, match="r: a whole number"):
            tree_of_config({"model_type": "llama"}, {"r": -1})
