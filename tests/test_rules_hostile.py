"""No rule raises, whatever the log holds: NaN, infinities, huge and negative numbers, missing and strange facts."""

from __future__ import annotations

import math
import random

import pytest

from lorawatch.engine import Engine
from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow, Record
from lorawatch.registry import builtin_classes
from lorawatch.run import Run

VALUES = [0.0, math.nan, math.inf, -math.inf, 1e-9, 5e-324, 1.0, 1.7, 2.5, 1e6, -1.0, 1e300, -1e308]
METRICS = [
    "loss", "grad_norm", "learning_rate", "eval_loss", "eval_maths_loss", "eval_runtime", "eval_samples_per_second",
    "train_runtime", "loss_scale", "scale", "eval_accuracy", "eval_wer", "entropy", "mean_token_accuracy",
]  # fmt: skip
FACTS = [
    "fp16", "bf16", "max_steps", "max_grad_norm", "gradient_accumulation_steps", "warmup_steps", "warmup_ratio", "r",
    "lora_alpha", "lora_dropout", "num_train_epochs", "learning_rate", "eval_steps", "max_length", "vocab_size",
]  # fmt: skip


def hostile_records(seed: int) -> list[Record]:
    rng = random.Random(seed)  # noqa: S311
    calm = rng.random() < 0.5  # half of the runs log the same metrics in each row, so that windows fill
    chosen = rng.sample(METRICS, rng.randint(2, 6))
    records: list[Record] = []
    for index in range(150):
        if rng.random() < 0.02:
            records.append(LifecycleEvent("resumed", step=rng.choice([None, rng.randint(0, 150)])))
        if rng.random() < 0.03:
            value = rng.choice([0, 1, True, False, None, "x", 2.5, 1e400, 100, -3])
            records.append(FactUpdate({rng.choice(FACTS): value}, "test"))
        names = chosen if calm else rng.sample(METRICS, rng.randint(1, 6))
        values = {name: rng.choice(VALUES) if rng.random() < 0.3 else rng.random() for name in names}
        step = rng.choice([None, index, index, rng.randint(0, 300)])
        records.append(MetricRow(step, values, epoch=rng.choice([None, index / 10]), time=rng.choice([None, index])))
    return records


@pytest.mark.parametrize("seed", range(150))
def test_no_rule_raises(seed: int) -> None:
    engine = Engine(Run("hostile"), [rule() for rule in builtin_classes()])
    for record in hostile_records(seed):
        engine.feed(record)
    assert engine.rule_errors == {}
