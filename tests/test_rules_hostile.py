"""No rule raises, whatever log and machine say: NaN, infinities, huge and negative numbers, strange facts."""

from __future__ import annotations

import math
import random
import typing
from functools import cache
from typing import Any, cast

import msgspec
import pytest

from lorawatch.engine import Engine
from lorawatch.records import (
    AdaptedModule,
    AdapterReading,
    AllocatorReading,
    Card,
    FactUpdate,
    GpuProcess,
    GpuReading,
    HostReading,
    LabelAudit,
    LabelledPiece,
    LifecycleEvent,
    MetricRow,
    ModelTree,
    ModuleGroup,
    ProcessReading,
    Record,
    Sample,
    SampleReading,
    Step,
    StepTiming,
)
from lorawatch.registry import builtin_classes
from lorawatch.run import Run

VALUES = [0.0, math.nan, math.inf, -math.inf, 1e-9, 5e-324, 1.0, 1.7, 2.5, 1e6, -1.0, 1e300, -1e308]
METRICS = [
    "loss", "grad_norm", "learning_rate", "eval_loss", "eval_maths_loss", "eval_runtime", "eval_samples_per_second",
    "train_runtime", "loss_scale", "scale", "eval_accuracy", "eval_wer", "entropy", "mean_token_accuracy",
    "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "eval_rewards/accuracies",
    "eval_rewards/margins", "logps/chosen", "logps/rejected", "completions/mean_length", "completions/clipped_ratio",
    "completions/max_length", "completions/mean_terminated_length", "kl", "reward", "reward_std",
    "frac_reward_zero_std", "sampling/sampling_logp_difference/mean", "sampling/importance_sampling_ratio/mean",
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


COUNTS = [0, 1, 2, 8, 79, 4096, 2**30, 40 * 2**30, 80 * 2**30, 2**63 - 1, -1, -(2**63)]
NUMBERS = [*VALUES, 0.3, 0.6, 0.98, 30.0, 90.0]
TEXTS = ["", "python", "sw_thermal", "hw_thermal", "training", "evaluation", "/", "\x1b[31m", "x" * 500]
PLAIN: dict[Any, list[Any]] = {int: COUNTS, float: NUMBERS, bool: [True, False], str: TEXTS}
PARTS = (
    Card, GpuProcess, ProcessReading, Step, AllocatorReading, ModuleGroup, LabelledPiece, AdaptedModule, Sample,
)  # fmt: skip
LOOKS = (ModelTree, LabelAudit, AdapterReading, SampleReading)
READING_FACTS = [
    *FACTS, "per_device_train_batch_size", "trainable_parameters", "total_parameters", "hidden_size",
    "num_hidden_layers", "optim", "packing", "num_generations", "save_steps", "save_total_limit", "trainer_class",
    "dataloader_num_workers", "world_size", "trl_version", "torch_version", "target_modules", "modules_to_save", "bias",
    "use_rslora", "use_dora", "init_lora_weights", "lora_dropout", "load_in_4bit", "trainable_dtype", "train_rows",
    "beta", "loss_type", "label_smoothing", "task_type", "temperature", "num_iterations", "trained_tokens_per_row",
]  # fmt: skip


def absurd(kind: Any, rng: random.Random) -> Any:
    """Some value of a type, such as no machine would give."""
    if kind in PLAIN:
        return rng.choice(PLAIN[kind])
    if kind in PARTS:
        return absurd_record(kind, rng)
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin is list:
        return [absurd(inner[0], rng) for _ in range(rng.choice([0, 1, 1, 3]))]
    if origin is dict:
        return {absurd(inner[0], rng): absurd(inner[1], rng) for _ in range(rng.choice([0, 1, 3]))}
    if origin is typing.Literal:
        return rng.choice(inner)
    choices = [one for one in inner if one is not type(None)]  # what is left is a union with None
    return None if rng.random() < 0.15 else absurd(choices[0], rng)


@cache
def fields(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def absurd_record(kind: Any, rng: random.Random) -> Any:
    return kind(**{name: absurd(hint, rng) for name, hint in fields(kind).items()})


def plausible(reading: Any, index: int, rng: random.Random) -> Any:
    """The reading with times, steps and names that go together, so that windows fill."""
    if isinstance(reading, GpuReading):
        cards = [
            msgspec.structs.replace(card, index=number, uuid=f"GPU-{number}", utilization=0.9, lost=False, samples=9)
            for number, card in enumerate(reading.cards)
        ]
        return GpuReading(10.0 * index, cards, 10.0)
    if isinstance(reading, StepTiming):
        steps = [
            absurd_record(Step, rng) if rng.random() < 0.1 else Step(0.1, 0.5, 0.1, 0.0, 900, 1000, 900 + 10 * index)
            for _ in range(10)
        ]
        allocator = AllocatorReading(
            20 * 2**30 + index * 2**27, 30 * 2**30 + index * 2**27, 40 * 2**30, 42 * 2**30, index // 9, 0, 0, "GPU-0"
        )
        return msgspec.structs.replace(
            reading, step=10 * index, span=10, steps=steps, time=10.0 * index, evaluation=0.0,
            allocator=allocator if rng.random() < 0.9 else absurd(AllocatorReading, rng),
        )  # fmt: skip
    return msgspec.structs.replace(reading, time=10.0 * index, seconds=10.0)


def hostile_readings(seed: int) -> list[Record]:
    rng = random.Random(seed)  # noqa: S311
    wild = rng.random() < 0.5  # the other half has times, steps and cards that go together
    records: list[Record] = []
    for index in range(80):
        if rng.random() < 0.05:
            value = rng.choice([0, 1, True, False, None, "x", "2.9.1", 2.5, 1e300, 100, -3, 10**30, 4096])
            records.append(FactUpdate({rng.choice(READING_FACTS): value}, "test"))
        if rng.random() < 0.02:
            event = rng.choice(["started", "resumed", "evaluated", "saved"])
            records.append(LifecycleEvent(cast("Any", event), rng.choice([None, index]), rng.choice([None, *NUMBERS])))
        if rng.random() < 0.3:
            records.append(MetricRow(index, {"loss": rng.random()}, time=10.0 * index))
        if rng.random() < 0.3:
            records.append(absurd_record(rng.choice(LOOKS), rng))
        for kind in (StepTiming, GpuReading, HostReading):
            reading = absurd_record(kind, rng)
            records.append(reading if wild and rng.random() < 0.5 else plausible(reading, index, rng))
    return records


@cache
def after_hostile_readings(seed: int) -> Engine:
    engine = Engine(Run("hostile"), [rule() for rule in builtin_classes()])
    for record in hostile_readings(seed):
        engine.feed(record)
    engine.abstained()
    engine.renew_advice()
    return engine


@pytest.mark.parametrize("seed", range(100))
def test_no_rule_raises_for_a_reading(seed: int) -> None:
    assert after_hostile_readings(seed).rule_errors == {}


def test_hostile_readings_do_reach_the_rules() -> None:
    opened = {finding.rule for seed in range(100) for finding in after_hostile_readings(seed).findings}
    assert opened >= {"mem/headroom", "mem/leak", "mem/fragmentation", "mem/oom-forecast", "hw/errors", "hw/pcie"}
    assert opened >= {"cfg/label-audit", "lora/not-finite"}
