"""What is read of a real card, and what the rules make of it."""

# ruff: noqa: E402  (what is imported below needs what the tests are skipped for)

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

for needed in ("torch", "transformers", "peft"):
    pytest.importorskip(needed, reason=f"real training runs need {needed}: pip install 'lorawatch[train]'")

import msgspec
import torch

from lorawatch.engine import Engine
from lorawatch.findings import Severity
from lorawatch.integrations.allocator import allocator_reader
from lorawatch.machine.gpus import GpuSampler
from lorawatch.records import GpuReading, MetricRow, StepTiming
from lorawatch.registry import rule_classes
from lorawatch.run import Run

from .conftest import Figures
from .work import GIB, free_and_total, held_by_another


@pytest.fixture
def sampler() -> Iterator[GpuSampler]:
    made = GpuSampler()
    yield made
    made.stop()


@pytest.fixture(autouse=True)
def empty_card() -> Iterator[None]:
    torch.zeros(1, device="cuda")
    yield
    torch.cuda.empty_cache()


def seen(sampler: GpuSampler, seconds: float = 0.0) -> GpuReading:
    """One reading of the card that this process uses."""
    view = sampler.view(os.environ.get("CUDA_VISIBLE_DEVICES"))
    sampler.look()
    reading = view.reading(seconds, [os.getpid()])
    assert reading is not None
    return reading


def fill(share: float) -> list[torch.Tensor]:
    """Hold memory until ``share`` of the card is in use."""
    free, total = free_and_total()
    wanted = int(share * total) - (total - free)
    return [torch.empty(wanted, dtype=torch.uint8, device="cuda")] if wanted > 0 else []


@pytest.mark.parametrize(("share", "severity"), [(0.85, None), (0.92, Severity.WARNING), (0.98, Severity.CRITICAL)])
def test_headroom_on_a_card_that_is_filled(
    sampler: GpuSampler, figures: Figures, share: float, severity: Severity | None
) -> None:
    rule = next(one for one in rule_classes() if one.id == "mem/headroom")
    engine = Engine(Run("filled"), [rule()])
    engine.feed(MetricRow(1, {"loss": 1.0}))
    held = fill(share)
    read = allocator_reader()
    used = 0.0
    for tick in range(20):
        reading = msgspec.structs.replace(seen(sampler), time=10.0 * tick, seconds=10.0)
        [card] = reading.cards
        used = (card.memory_used or 0) / (card.memory_total or 1)
        cards = [msgspec.structs.replace(card, utilization=0.9)]  # only memory is the question here
        engine.feed(StepTiming(step=tick + 1, span=1, time=10.0 * tick, allocator=read()))
        engine.feed(msgspec.structs.replace(reading, cards=cards))
    del held
    found = max((one.severity for one in engine.findings), default=None)
    figures.keep(f"memory filled to {share:.0%}", f"NVML {used:.1%} in use; {found.label if found else 'nothing'}")
    assert used == pytest.approx(share, abs=0.01)
    assert found == severity


def test_memory_is_told_apart_by_process(sampler: GpuSampler, figures: Figures) -> None:
    own = torch.empty(2 * GIB, dtype=torch.uint8, device="cuda")
    with held_by_another(3 * GIB) as other:
        [card] = seen(sampler).cards
    del own
    holders = {one.pid: one for one in card.processes}
    if os.getpid() not in holders:
        assert all(one.own is None for one in card.processes)
        figures.keep("attribution", "the driver's pids are of another namespace: said so, nothing is guessed")
        return
    assert holders[os.getpid()].own is True
    assert holders[other].own is False
    assert (holders[other].memory or 0) > 3 * GIB
    assert card.own_memory is not None
    figures.keep(
        "attribution", f"own {card.own_memory / GIB:.2f} GiB, another {(holders[other].memory or 0) / GIB:.2f}"
    )


def test_the_allocator_and_the_driver_agree(sampler: GpuSampler, figures: Figures) -> None:
    held = torch.empty(4 * GIB, dtype=torch.uint8, device="cuda")
    allocator = allocator_reader()()
    [card] = seen(sampler).cards
    del held
    assert allocator is not None
    assert allocator.allocated >= 4 * GIB
    assert allocator.uuid == card.uuid
    if card.own_memory is None:
        pytest.skip("the driver does not tell this process's memory (another pid namespace)")
    context = card.own_memory - allocator.reserved
    figures.keep("own memory by NVML less torch's reserved", f"{context / GIB:.2f} GiB", "0.2 to 2 GiB: the context")
    assert 0.2 * GIB < context < 2 * GIB
