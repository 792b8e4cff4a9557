"""The metrics that the rules of preference and reinforcement read: what they stand for, and that TRL logs them."""

from __future__ import annotations

import dataclasses
import inspect
import math
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from lorawatch.engine import Engine
from lorawatch.records import FactUpdate, MetricRow
from lorawatch.registry import builtin_classes
from lorawatch.reward_signs import (
    beta_of,
    evaluated_rows,
    falls,
    has_reference,
    reference_logp,
    rises,
    sigmoid_loss,
)
from lorawatch.rule import Rule
from lorawatch.run import Kind, Run, kind_of_keys

from .real_training import THIRD_PARTY
from .rule_cases import load_cases

RULES = {rule.id: rule for rule in builtin_classes() if rule.id.split("/")[0] in ("pref", "rl")}
Rows = list[dict[str, float]]


def run_with(**facts: Any) -> Run:
    run = Run("facts")
    run.learn(FactUpdate(facts, "test"))
    return run


class TestSigns:
    def test_beta_is_the_stated_one_or_the_default(self) -> None:
        assert beta_of(run_with(beta=0.3)) == (0.3, True)
        assert beta_of(run_with(pref_beta=0.05)) == (0.05, True)
        assert beta_of(run_with()) == (0.1, False)
        assert beta_of(run_with(beta=0.0)) == (0.1, False)

    def test_the_reference_follows_from_reward_and_likelihood(self) -> None:
        row = {"rewards/chosen": -1.8, "logps/chosen": -447.0}
        assert reference_logp(row, "chosen", 0.01) == pytest.approx(-267.0)
        assert reference_logp(row, "rejected", 0.01) is None
        assert reference_logp({"rewards/chosen": math.nan, "logps/chosen": -4.0}, "chosen", 0.1) is None

    def test_a_loss_without_reference_is_told_by_its_rewards(self) -> None:
        orpo = {
            "rewards/chosen": -0.09807, "logps/chosen": -0.9807, "rewards/rejected": -0.09964, "logps/rejected": -0.9964
        }  # fmt: skip
        dpo = {"rewards/chosen": -2.0, "logps/chosen": -220.0, "rewards/rejected": -4.0, "logps/rejected": -240.0}
        assert not has_reference(orpo)
        assert has_reference(dpo)
        assert has_reference({"rewards/chosen": 0.0, "logps/chosen": -200.0})
        assert reference_logp(orpo, "chosen", 0.1) is None

    @pytest.mark.parametrize(
        ("facts", "row", "expected"),
        [
            ({"loss_type": ["sigmoid"]}, {}, True),
            ({"loss_type": ["sigmoid", "sft"]}, {}, False),
            ({"pref_loss": "sigmoid"}, {}, True),
            ({"loss_type": "ipo"}, {"loss": 0.6931, "rewards/margins": 0.0}, False),
            ({}, {"loss": 0.6931, "rewards/margins": 0.0}, True),
            ({}, {"loss": 0.52, "rewards/margins": 0.5}, True),
            ({}, {"loss": 1.0, "rewards/margins": 0.0}, False),
            ({}, {"loss": 1.0495, "rewards/margins": 0.001574}, False),
            ({}, {"loss": math.nan, "rewards/margins": 0.0}, False),
            ({}, {"loss": 0.6931}, False),
        ],
    )
    def test_the_sigmoid_loss_is_told_by_name_or_value(
        self, facts: dict[str, Any], row: dict[str, float], expected: bool
    ) -> None:
        assert sigmoid_loss(run_with(**facts), row) is expected

    def test_rows_of_an_evaluation(self) -> None:
        assert evaluated_rows({"eval_runtime": 0.6265, "eval_samples_per_second": 51.08}) == 32
        assert evaluated_rows({"eval_runtime": 0.6265}) is None

    def test_a_trend_is_more_than_noise(self) -> None:
        assert rises([float(index) for index in range(10)])
        assert falls([float(-index) for index in range(10)])
        assert not rises([0.1, -0.2, 0.15, -0.1, 0.05, 0.0, -0.05, 0.1, -0.1, 0.02])
        assert not falls([1.0] * 10)


def logged(trainer: Any) -> Rows:
    """The training rows of a run."""
    trainer.train()
    return [row for row in trainer.state.log_history if "loss" in row]


def made(kind: type[Any], **given: Any) -> Any:
    """One of TRL's trainers, with a small base model and an adapter."""
    from tests.integrations import lab

    return kind(
        model=lab.base_model(layers=1, hidden=32), processing_class=lab.tokenizer(), peft_config=lab.lora(), **given
    )


def carries(rule: type[Rule], row: Mapping[str, float]) -> bool:
    """Whether the rule can judge such a row."""
    return all(name in row for name in rule.needs) and (
        not rule.needs_any or any(name in row for name in rule.needs_any)
    )


@pytest.fixture(scope="module")
def trl() -> Any:
    for needed in ("torch", "transformers", "peft", "datasets"):
        pytest.importorskip(needed, reason=f"real training runs need {needed}: pip install 'lorawatch[train]'")
    return pytest.importorskip("trl", reason="these are TRL's own metrics")


def third_party(test: Any) -> Any:
    """Ignore other people's warnings in a real training."""
    for line in THIRD_PARTY:
        test = pytest.mark.filterwarnings(line)(test)
    return test


@third_party
def test_dpo_logs_what_the_rules_read_and_its_rewards_mean_what_they_take_them_for(trl: Any, tmp_path: Path) -> None:
    from tests.integrations import lab

    args = lab.arguments(
        tmp_path, trl.DPOConfig, max_steps=6, max_length=32, beta=0.2, learning_rate=1e-2, eval_strategy="steps",
        eval_steps=3, lr_scheduler_type="constant",
    )  # fmt: skip
    pairs = lab.preferences(4)  # one batch: each step sees the same pairs
    trainer = made(trl.DPOTrainer, args=args, train_dataset=pairs, eval_dataset=pairs)
    rows = logged(trainer)
    assert kind_of_keys(rows[0]) is Kind.DPO
    for name in ("no-signal", "margin-explosion", "likelihood-displacement"):
        assert carries(RULES[f"pref/{name}"], rows[0]), name
    evaluated = [row for row in trainer.state.log_history if "eval_loss" in row]
    assert carries(RULES["pref/reversed"], evaluated[0])
    assert evaluated_rows(evaluated[0]) == pytest.approx(4, abs=1)
    assert sigmoid_loss(run_with(), rows[0])
    assert abs(rows[-1]["rewards/chosen"]) > 0.01, "nothing was learnt: the test proves nothing"
    for side in ("chosen", "rejected"):  # the policy moves, the reference does not
        references = [reference_logp(row, side, 0.2) for row in rows]
        assert references == pytest.approx([rows[0][f"logps/{side}"]] * 6, rel=1e-3)
    assert all(has_reference(row) for row in rows)


@third_party
def test_kto_logs_what_the_rules_read(trl: Any, tmp_path: Path) -> None:
    from datasets import Dataset  # type: ignore[import-untyped]

    from tests.integrations import lab

    pairs = lab.preferences(8)
    rows = Dataset.from_dict(
        {
            "prompt": [prompt for prompt in pairs["prompt"] for _ in range(2)],
            "completion": [reply for both in zip(pairs["chosen"], pairs["rejected"], strict=True) for reply in both],
            "label": [True, False] * 8,
        }
    )
    args = lab.arguments(tmp_path, trl.KTOConfig, max_steps=3, max_length=32, learning_rate=1e-3)
    seen: dict[str, float] = {}
    for row in logged(made(trl.KTOTrainer, args=args, train_dataset=rows)):
        seen |= row  # a batch of rejected replies alone logs nothing of chosen ones
    assert kind_of_keys(seen) is Kind.KTO
    assert carries(RULES["pref/kl-drift"], seen)
    assert carries(RULES["pref/margin-explosion"], seen)


@third_party
@pytest.mark.parametrize("name", ["GRPO", "RLOO"])
def test_reinforcement_logs_what_the_rules_read(name: str, trl: Any, tmp_path: Path) -> None:
    from tests.integrations import lab

    config: Any = getattr(trl, f"{name}Config", None)
    trainer: Any = getattr(trl, f"{name}Trainer", None)
    if config is None or "num_generations" not in inspect.signature(config.__init__).parameters:
        pytest.skip(f"this TRL has no {name} of this kind")
    args = lab.arguments(
        tmp_path, config, max_steps=2, num_generations=2, max_completion_length=4, learning_rate=1e-4, beta=0.04
    )
    rows = logged(
        made(
            trainer, args=args, train_dataset=lab.preferences(16).select_columns(["prompt"]),
            reward_funcs=[_distinct_words, _length],
        )
    )  # fmt: skip
    assert kind_of_keys(rows[0]) is Kind.GRPO
    for rule in ("no-variance", "truncation", "entropy-collapse", "length-drift", "policy-gap"):
        assert carries(RULES[f"rl/{rule}"], rows[0]), rule
    assert {"rewards/_length/mean", "rewards/_length/std", "kl", "clip_ratio/region_mean"} <= set(rows[0])
    assert 0.0 <= fmean(row["frac_reward_zero_std"] for row in rows) <= 1.0


def _distinct_words(completions: list[str], **_columns: Any) -> list[float]:
    return [float(len(set(text.split()))) for text in completions]


def _length(completions: list[str], **_columns: Any) -> list[float]:
    return [float(len(text)) for text in completions]


def test_each_parameter_that_is_proposed_is_a_field_of_trl(trl: Any) -> None:
    import transformers

    if not hasattr(trl, "GRPOConfig"):
        pytest.skip("this TRL has no GRPO")
    kinds = (trl.DPOConfig, trl.KTOConfig, trl.GRPOConfig, transformers.TrainingArguments)
    known = {field.name for kind in kinds for field in dataclasses.fields(kind)}

    folder, proposed = Path(__file__).parent / "rules", set[str]()
    for file in sorted([*folder.glob("pref_*.toml"), *folder.glob("rl_*.toml")]):
        for case in load_cases(file):
            proposed |= {item.parameter for finding in case.run().findings for item in finding.adjustments}
    assert len(proposed) > 12
    assert proposed - {""} <= known


def judged(rows: Rows) -> Engine:
    """What the rules of preference and reinforcement find in such rows."""
    engine = Engine(Run("rows"), [rule() for rule in RULES.values()])
    engine.feed(FactUpdate({"learning_rate": 4e-3, "beta": 0.0, "num_generations": 4}, "test"))
    for index, row in enumerate(rows):
        engine.feed(MetricRow(index + 1, row))
    assert not engine.rule_errors
    return engine


def test_a_collapsed_policy_is_the_cause_of_what_it_brings() -> None:
    """As the reference trainer's entropy-collapse goes: narrowed to one word up to the limit, each group alike."""
    before = {"frac_reward_zero_std": 0.25, "completions/clipped_ratio": 0.1, "reward": 0.1, "entropy": 2.5}
    after = {"frac_reward_zero_std": 1.0, "completions/clipped_ratio": 1.0, "reward": 1.0, "entropy": 0.04}
    rows = [
        {"loss": 0.0, "reward_std": 0.2, "grad_norm": 0.0 if row is after else 1.0, **row}
        for row in [before] * 18 + [after] * 42
    ]
    engine = judged(rows)
    roots = [finding.rule for finding in engine.active() if finding.is_root]
    assert {finding.rule for finding in engine.active()} >= {"rl/entropy-collapse", "rl/no-variance", "rl/truncation"}
    assert roots == ["rl/entropy-collapse"]
    chosen = engine.next_adjustment()
    assert chosen is not None
    assert (chosen.parameter, chosen.direction) == ("learning_rate", "down")


def test_no_rule_needs_more_than_a_row() -> None:
    """They judge logged rows alone, so that a log file is enough for them."""
    assert len(RULES) == 10
    assert all(rule.judges == (MetricRow,) and not rule.needs_facts for rule in RULES.values())
