"""The cfg rules together: ordinary configurations bring no warning, the tiny base's own faults do."""

from __future__ import annotations

import random
import typing
from functools import cache
from typing import Any

import pytest

pytest.importorskip("peft")

from lorawatch.engine import Engine
from lorawatch.findings import Finding, Severity
from lorawatch.lora.model_tree import tree_of_config
from lorawatch.records import FactUpdate, LabelAudit, ModelTree, ModuleGroup, Record
from lorawatch.registry import rule_classes
from lorawatch.run import Run
from lorawatch.trainer.recipe import TINY_RATE, Method

RULES = {
    "cfg/target-mismatch", "cfg/target-coverage", "cfg/rank-capacity", "cfg/scaling", "cfg/dropout", "cfg/bias",
    "cfg/modules-to-save", "cfg/lr-vs-method", "cfg/precision", "cfg/blind-spots",
}  # fmt: skip
SEVEN = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
MODELS: dict[str, dict[str, Any]] = {
    "llama-3-8b": {
        "model_type": "llama", "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": 128256,
    },
    "qwen2.5-0.5b": {
        "model_type": "qwen2", "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
        "num_attention_heads": 14, "num_key_value_heads": 2, "vocab_size": 151936, "tie_word_embeddings": True,
    },
    "phi-3-mini": {
        "model_type": "phi3", "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": 32, "vocab_size": 32064, "pad_token_id": 0,
    },
    "bert-base": {"model_type": "bert", "architectures": ["BertForSequenceClassification"]},
    "qwen3-moe": {
        "model_type": "qwen3_moe", "hidden_size": 2048, "moe_intermediate_size": 768, "num_hidden_layers": 4,
        "num_attention_heads": 32, "num_key_value_heads": 4, "num_experts": 128, "vocab_size": 151936,
    },
    "tiny": {
        "model_type": "llama", "hidden_size": 128, "intermediate_size": 352, "num_hidden_layers": 5,
        "num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 1024, "tie_word_embeddings": True,
    },
}  # fmt: skip
SFT, DPO, GRPO = ({"trainer_class": f"{name}Trainer"} for name in ("SFT", "DPO", "GRPO"))
ORDINARY: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama-3-8B, all seven, 2e-4": (
        "llama-3-8b",
        SFT | {"r": 16, "lora_alpha": 32, "target_modules": SEVEN, "learning_rate": 2e-4, "train_rows": 15000},
    ),
    "QLoRA's own: 64 and 16, dropout 0.1": (
        "llama-3-8b",
        SFT | {"r": 64, "lora_alpha": 16, "lora_dropout": 0.1, "target_modules": "all-linear", "learning_rate": 2e-4,
               "load_in_4bit": True, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 16,
               "train_rows": 9846},
    ),
    "Unsloth's notebook: 16 and 16, 5 rows a step": (
        "llama-3-8b",
        SFT | {"r": 16, "lora_alpha": 16, "lora_dropout": 0.0, "bias": "none", "target_modules": SEVEN,
               "learning_rate": 2e-4, "load_in_4bit": True, "train_rows": 51760, "max_steps": 60, "logging_steps": 1},
    ),
    "TRL without regret: 256 and 16 with rsLoRA": (
        "llama-3-8b",
        SFT | {"r": 256, "lora_alpha": 16, "use_rslora": True, "target_modules": "all-linear", "learning_rate": 2e-4,
               "train_rows": 100000},
    ),
    "alpha 32 at rank 128, plain": (
        "llama-3-8b",
        SFT | {"r": 128, "lora_alpha": 32, "target_modules": "all-linear", "learning_rate": 5e-4, "train_rows": 20000},
    ),
    "DPO at 5e-6": (
        "llama-3-8b", DPO | {"r": 16, "lora_alpha": 32, "target_modules": "all-linear", "learning_rate": 5e-6},
    ),
    "GRPO at 1e-5, rank 1": (
        "llama-3-8b", GRPO | {"r": 1, "lora_alpha": 2, "target_modules": "all-linear", "learning_rate": 1e-5,
                              "train_rows": 7473},
    ),
    "a small model at 1e-3": (
        "qwen2.5-0.5b",
        SFT | {"r": 8, "lora_alpha": 16, "target_modules": SEVEN, "learning_rate": 1e-3, "train_rows": 3000},
    ),
    "Phi-3, whose projections are fused": (
        "phi-3-mini",
        SFT | {"r": 16, "lora_alpha": 16, "target_modules": ["qkv_proj", "o_proj", "gate_up_proj", "down_proj"],
               "learning_rate": 2e-4, "train_rows": 5000},
    ),
    "BERT as a classifier, query and value": (
        "bert-base",
        {"trainer_class": "Trainer", "task_type": "SEQ_CLS", "r": 8, "lora_alpha": 16, "lora_dropout": 0.1,
         "target_modules": ["query", "value"], "modules_to_save": ["classifier", "score"], "learning_rate": 1e-4},
    ),
    "a mixture, attention and experts by PEFT's choice": (
        "qwen3-moe", SFT | {"r": 8, "lora_alpha": 16, "target_modules": "all-linear", "learning_rate": 2e-4},
    ),
    "a new language: embedding and head are trained too": (
        "llama-3-8b",
        SFT | {"r": 64, "lora_alpha": 128, "target_modules": SEVEN, "modules_to_save": ["embed_tokens", "lm_head"],
               "learning_rate": 1e-4, "train_rows": 30000},
    ),
    "the reference trainer's own defaults": (
        "tiny",
        SFT | {"r": 16, "lora_alpha": 32, "lora_dropout": 0.0, "bias": "none", "target_modules": "all-linear",
               "learning_rate": 2e-3, "train_rows": 1600, "fp16": False, "logging_steps": 2, "max_steps": 200},
    ),
}  # fmt: skip
KINDS: tuple[Any, ...] = typing.get_args(typing.get_type_hints(ModuleGroup)["kind"])
LABELS = LabelAudit(rows=64, tokens=64 * 300, trained=64 * 120)


@cache
def tree(model: str, adapter: tuple[tuple[str, Any], ...]) -> ModelTree:
    values = {name: list(value) if isinstance(value, tuple) else value for name, value in adapter}
    return tree_of_config(MODELS[model], values)


def findings(model: str, facts: dict[str, Any]) -> list[Finding]:
    names = ("r", "lora_alpha", "target_modules", "modules_to_save", "task_type", "lora_dropout", "bias", "use_rslora")
    adapter = tuple(
        (name, tuple(facts[name]) if isinstance(facts[name], list) else facts[name]) for name in names if name in facts
    )
    engine = Engine(Run(model), [rule() for rule in rule_classes() if rule.id in RULES])
    known = {"hidden_size": MODELS[model].get("hidden_size", 768)}
    records: list[Record] = [FactUpdate(known | facts, "test"), tree(model, adapter), LABELS]
    for record in records:
        engine.feed(record)
    engine.abstained()
    engine.renew_advice()
    assert engine.rule_errors == {}
    return engine.findings


def test_all_of_them_are_there() -> None:
    assert {rule.id for rule in rule_classes()} >= RULES


@pytest.mark.parametrize("name", ORDINARY)
def test_an_ordinary_configuration_brings_no_warning(name: str) -> None:
    loud = [one for one in findings(*ORDINARY[name]) if one.severity > Severity.INFO]
    assert loud == []


@pytest.mark.parametrize("method", TINY_RATE)
def test_the_tiny_bases_rates_are_usual_and_thirty_times_them_are_not(method: Method) -> None:
    facts = {"trainer_class": f"{method.upper()}Trainer", "r": 16, "lora_alpha": 32, "target_modules": "all-linear"}
    assert findings("tiny", facts | {"learning_rate": TINY_RATE[method]}) == []
    found = findings("tiny", facts | {"learning_rate": 30 * TINY_RATE[method]})
    assert [(one.rule, one.severity) for one in found] == [("cfg/lr-vs-method", Severity.WARNING)]


def test_names_of_another_model_are_one_incident() -> None:
    names = ["k_proj", "query_proj", "value_proj", "gate_prj", "dense"]
    found = findings("tiny", SFT | {"r": 16, "target_modules": names, "learning_rate": 2e-3})
    assert {one.rule for one in found if one.is_root} == {"cfg/target-mismatch"}
    assert {one.rule for one in found} == {"cfg/target-mismatch", "cfg/target-coverage"}
    assert max(one.severity for one in found if one.rule == "cfg/target-mismatch") is Severity.CRITICAL


def test_one_misspelt_name_of_seven_is_a_warning_with_the_right_name() -> None:
    names = [*SEVEN[:4], "gate_prj", *SEVEN[5:]]
    [found] = findings("tiny", SFT | {"r": 16, "target_modules": names, "learning_rate": 2e-3})
    assert (found.rule, found.severity) == ("cfg/target-mismatch", Severity.WARNING)
    assert found.adjustments[0].proposed == SEVEN
    assert found.adjustments[0].next


@pytest.mark.parametrize("rank", [1, 256])
def test_a_rank_that_does_not_go_with_the_data_is_told(rank: int) -> None:
    facts = SFT | {"r": rank, "lora_alpha": 2 * rank, "target_modules": "all-linear", "learning_rate": 2e-3}
    assert [one.rule for one in findings("tiny", facts | {"train_rows": 1600})] == ["cfg/rank-capacity"]


ABSURD = [
    0,
    1,
    -3,
    2.5,
    1e300,
    10**30,
    True,
    False,
    None,
    "",
    "x",
    "all-linear",
    "(",
    [],
    ["q_proj", "x"],
    [1],
    {"a": 1},
]
NAMES = [
    "r", "lora_alpha", "lora_dropout", "bias", "target_modules", "modules_to_save", "learning_rate", "train_rows",
    "trained_tokens_per_row", "trainable_parameters", "hidden_size", "init_lora_weights", "peft_type", "use_rslora",
    "load_in_4bit", "fp16", "trainable_dtype", "logging_steps", "max_steps", "eval_strategy", "num_train_epochs",
    "save_steps", "save_total_limit", "trainer_class", "task_type", "layers_to_transform", "loraplus_lr_ratio",
    "logging_nan_inf_filter", "load_best_model_at_end", "per_device_train_batch_size", "gradient_accumulation_steps",
]  # fmt: skip


@pytest.mark.parametrize("seed", range(30))
def test_no_rule_raises_whatever_facts_and_model_say(seed: int) -> None:
    rng = random.Random(seed)  # noqa: S311
    engine = Engine(Run("hostile"), [rule() for rule in rule_classes() if rule.id in RULES])
    texts, counts = ["", "q_proj", "model.layers.*.mlp.up_proj", "lm_head", "*", "x" * 500, ".*("], [0, 1, -1, 7, 2**62]
    for _ in range(40):
        groups = [
            ModuleGroup(
                rng.choice(texts), rng.choice(KINDS), rng.choice(counts), rng.choice(counts), rng.choice(counts),
                    rng.choice(counts),
                rng.choice([None, *counts]), rng.random() < 0.5,
            )
            for _ in range(rng.choice([0, 1, 5]))
        ]  # fmt: skip
        named = {text: rng.choice(counts) for text in rng.sample(texts, rng.choice([0, 1, 4]))}
        tree = ModelTree(
            groups, named, dict(named), rng.choice(counts), rng.choice([None, *counts]), rng.choice(counts)
        )
        labels = LabelAudit(rng.choice(counts), rng.choice(counts), rng.choice(counts))
        facts = {name: rng.choice(ABSURD) for name in rng.sample(NAMES, 6)}
        usual = {"r": 16, "lora_alpha": 32, "learning_rate": 2e-4, "fp16": False, "logging_steps": 10}
        records: list[Record] = [FactUpdate(facts, "test"), FactUpdate(usual, "test"), tree, labels]
        for record in rng.sample(records, 4):
            engine.feed(record)
    engine.abstained()
    engine.renew_advice()
    assert engine.rule_errors == {}
    assert engine.findings


def test_every_parameter_of_the_guide_has_a_rule_that_names_the_guide() -> None:
    pages = {rule.id: (rule.__doc__ or "").partition("## Sources")[2] for rule in rule_classes()}
    for rule in (
        "rank-capacity",
        "scaling",
        "dropout",
        "target-mismatch",
        "target-coverage",
        "bias",
        "modules-to-save",
    ):
        assert "tuning guide" in pages[f"cfg/{rule}"]
