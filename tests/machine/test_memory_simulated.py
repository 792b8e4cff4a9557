"""Forecasts and leaks on simulated runs: what is told ahead, and that nothing is told of runs that are fine.

The figures under *Sources* of the rules mem/oom-forecast and mem/leak come from these simulations, with more seeds.
"""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from lorawatch.engine import Engine
from lorawatch.findings import Finding, Severity
from lorawatch.records import AllocatorReading, Card, FactUpdate, GpuReading, Step, StepTiming
from lorawatch.registry import rule_classes
from lorawatch.run import Run

GB = 10**9
ROWS, LENGTH, SPAN = 4, 2048, 10
BASE, A_TOKEN = 20 * GB, 2.2e6

Lengths = Callable[[random.Random, int], int]


def engine_of(rule: str, steps: int) -> Engine:
    engine = Engine(Run("simulated"), [next(one for one in rule_classes() if one.id == rule)()])
    facts = {"max_length": LENGTH, "per_device_train_batch_size": ROWS, "max_steps": steps}
    engine.feed(FactUpdate(facts, "simulation"))
    return engine


def feed(
    engine: Engine, step: int, sizes: list[int], allocated: float, peak: float, *, total: int, known: bool = True
) -> None:
    steps = [Step(0.01, 0.5, 0.01, 0.0, None, size if known else None, size if known else None) for size in sizes]
    reserved = round(peak) + GB // 10
    allocator = AllocatorReading(round(allocated), round(peak), reserved, reserved)
    engine.feed(StepTiming(step, len(sizes), steps, time=step / 2, allocator=allocator))
    card = Card(0, "GPU-0", memory_total=total, memory_used=round(peak) + 2 * GB, utilization=0.9)
    engine.feed(GpuReading(step / 2, [card], SPAN / 2))


def train(
    seed: int, total: int, lengths: Lengths, *, steps: int = 3000, square: float = 0.0, first_peak: float = 0.0
) -> tuple[int | None, list[Finding]]:
    """A run whose peak follows its largest micro-batch: the step at which it ran out of memory, and what was told."""
    rng = random.Random(seed)  # noqa: S311
    engine = engine_of("mem/oom-forecast", steps)
    peak = first_peak
    for step in range(SPAN, steps + 1, SPAN):
        sizes = [ROWS * min(LENGTH, lengths(rng, step - SPAN + one)) for one in range(SPAN)]
        for size in sizes:
            peak = max(peak, BASE + (A_TOKEN * size + square * size * size) * (1 + rng.gauss(0, 0.01)))
        if peak + 2 * GB > total:
            return step, engine.findings
        feed(engine, step, sizes, BASE, peak, total=total)
    return None, engine.findings


def shuffled(rng: random.Random, step: int) -> int:
    return max(int(rng.lognormvariate(5.8, 0.5)) for _ in range(ROWS))


def sorted_by_length(seed: int, steps: int) -> Lengths:
    rng = random.Random(seed)  # noqa: S311
    rows = sorted(min(LENGTH, int(rng.lognormvariate(5.8, 0.6))) for _ in range(steps * 8))
    return lambda _, step: rows[8 * step + 7]


def leak(seed: int, bytes_a_step: float, *, steps: int = 2000, known: bool = True) -> list[Finding]:
    """A run whose tensors grow by so much a step, with noise, and with what follows the size of the batch."""
    rng = random.Random(seed)  # noqa: S311
    engine = engine_of("mem/leak", steps)
    for step in range(SPAN, steps + 1, SPAN):
        sizes = [rng.randint(500, 8000) for _ in range(SPAN)]
        allocated = BASE + rng.gauss(0, 200 * 2**20) + 20_000 * sizes[-1] + bytes_a_step * step
        if allocated + 13 * GB > 80 * GB:
            break
        feed(engine, step, sizes, allocated, allocated + 10 * GB, total=80 * GB, known=known)
    return engine.findings


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize(
    ("total", "square", "first_peak"), [(44, 0.0, 0.0), (55, 150.0, 0.0), (44, 0.0, 26e9)], ids=str
)
def test_a_run_whose_largest_batch_fits_is_left_alone(seed: int, total: int, square: float, first_peak: float) -> None:
    ended, findings = train(seed, total * GB, shuffled, square=square, first_peak=first_peak, steps=1500)
    assert ended is None
    assert findings == []


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("total", [26, 28])
def test_rows_sorted_by_length_are_told_long_before_the_card_is_full(seed: int, total: int) -> None:
    ended, findings = train(seed, total * GB, sorted_by_length(seed, 1000), steps=1000)
    assert ended is not None
    assert findings[0].severity is Severity.CRITICAL
    assert ended - findings[0].opened_step >= 100
    assert findings[0].evidence["case"] == "trend"


def test_a_third_of_the_errors_with_shuffled_rows_are_told_ahead() -> None:
    told = [train(seed, 36 * GB, shuffled) for seed in range(30)]
    ran_out = [findings for ended, findings in told if ended is not None]
    assert len(ran_out) == 30
    assert 6 <= sum(bool(findings) for findings in ran_out) <= 20


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("seed", range(10))
def test_noise_is_no_leak(seed: int, known: bool) -> None:
    assert leak(seed, 0.0, known=known) == []


@pytest.mark.parametrize("seed", range(10))
def test_a_leak_of_2_mb_a_step_is_found_within_a_thousand_steps(seed: int) -> None:
    (finding,) = leak(seed, 2e6)
    assert finding.opened_step <= 1000
    assert 1.2e6 < finding.evidence["bytes_a_step"] < 3.5e6


def test_a_leak_that_fills_the_card_in_minutes_is_critical() -> None:
    (finding,) = leak(0, 20e6, steps=5000)
    assert finding.severity is Severity.CRITICAL
    assert finding.evidence["seconds_until_full"] > 0
