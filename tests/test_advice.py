"""The plan that is made of what rules propose, and the remedies that several of them share."""

from __future__ import annotations

from typing import Any

import pytest

from lorawatch.advice import rank
from lorawatch.evaluation import task_at_best
from lorawatch.findings import Adjustment, Confidence, Finding, Severity
from lorawatch.records import FactUpdate, MetricRow
from lorawatch.registry import builtin_classes
from lorawatch.remedies import against_nan, bfloat16, lower_rate, raise_rate
from lorawatch.run import Run


def run_with(**facts: Any) -> Run:
    run = Run("advised")
    run.learn(FactUpdate(facts, "test"))
    return run


@pytest.mark.parametrize(
    ("severity", "confidence", "chosen"),
    [
        (Severity.WARNING, "low", True),
        (Severity.INFO, "medium", True),
        (Severity.INFO, "low", False),  # a run that is fine needs no change
    ],
)
def test_nothing_uncertain_is_next_for_what_is_only_information(
    severity: Severity, confidence: Confidence, chosen: bool
) -> None:
    adjustment = Adjustment("max_grad_norm", proposed=7.5, why="", confidence=confidence)
    finding = Finding("a/b", "", severity, "stable", "", {}, 1, 1, 1, adjustments=[adjustment])
    rank([finding])
    assert finding.adjustments[0].next is chosen


def test_a_lower_rate_on_a_resume_says_what_to_delete() -> None:
    # The Trainer loads the schedule, and with it the old rate, from the checkpoint.
    assert "scheduler.pt" in lower_rate(run_with(learning_rate=1e-3), 3, "why").why
    assert "scheduler.pt" not in lower_rate(run_with(learning_rate=1e-3), 3, "why", apply="restart").why


@pytest.mark.parametrize(
    ("facts", "proposed"),
    [
        ({"learning_rate": 2e-3, "r": 16}, 6.7e-4),
        ({"learning_rate": 5.0, "r": 16}, 2e-4),
        ({"learning_rate": 1.0, "r": 16, "optim": "prodigy"}, 0.33),
        ({"learning_rate": 0.05}, 0.017),
        ({}, "a third of it"),
    ],
)
def test_a_lower_rate_of_an_adapter_is_one_that_can_work(facts: dict[str, Any], proposed: float | str) -> None:
    assert lower_rate(run_with(**facts), 3, "why").proposed == proposed


@pytest.mark.parametrize(
    ("rate", "proposed"), [(1e-7, 2e-4), (2e-5, 2e-4), (5e-5, 1.5e-4), (1e-4, 2e-4), (1.6e-4, None), (5e-4, None)]
)
def test_a_higher_rate_of_an_adapter_ends_at_the_usual_one(rate: float, proposed: float | None) -> None:
    found = raise_rate(run_with(learning_rate=rate, r=16), "why")
    assert (found and found.proposed) == proposed


@pytest.mark.parametrize(
    ("facts", "suspected", "expected"),
    [
        ({"fp16": True}, False, True),
        ({}, False, False),
        ({}, True, True),
        ({"fp16": False}, True, False),  # fp32 has the range already
        ({"bf16": True}, True, False),
    ],
)
def test_bf16_is_proposed_only_where_fp16_may_be(facts: dict[str, Any], suspected: bool, expected: bool) -> None:
    assert (bfloat16(run_with(**facts), suspected=suspected) is not None) is expected


def test_the_best_word_error_rate_is_not_the_highest() -> None:
    rule = next(one for one in builtin_classes() if one.id == "eval/overfit")()
    run, breach = Run("asr"), None
    for index, loss in enumerate([1.0, 0.9, 1.0, 1.1, 1.2]):
        row = MetricRow(100 * index, {"eval_loss": loss, "eval_wer": 0.3 - 0.02 * index})
        run.add(row)
        breach = rule.judge(row, run) or breach
    assert breach is not None
    assert breach.severity is Severity.INFO
    [keep] = [one for one in rule.advise(breach, run) if one.parameter == "load_best_model_at_end"]
    assert "greater_is_better=False" in keep.why


@pytest.mark.parametrize(
    ("name", "values", "expected"),
    [
        ("eval_wer", [20.0, 15.0, 15.1], True),
        ("eval_wer", [20.0, 15.0, 18.0], False),
        ("eval_f1", [0.5, 0.8, 0.799], True),
        ("eval_f1", [0.8, 0.7, 0.8], False),
        ("eval_mean_token_accuracy", [0.6, 0.7, 0.7], False),
        ("eval_f1", [0.5], False),
    ],
)
def test_a_task_metric_at_its_best_has_improved_and_stayed(name: str, values: list[float], expected: bool) -> None:
    run = Run("task")
    for value in values:
        run.add(MetricRow(None, {name: value}))
    assert task_at_best(run) is expected


@pytest.mark.parametrize(("dtype", "told"), [("float16", True), ("bfloat16", False), ("float32", False), (None, False)])
def test_against_nan_weights_in_float16_come_first(dtype: str | None, told: bool) -> None:
    run = run_with(trainable_dtype=dtype, learning_rate=2e-4)
    assert ("cast them to float32" in str(against_nan(run)[0].proposed)) is told
