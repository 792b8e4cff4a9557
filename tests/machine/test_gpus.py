from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar

import msgspec
import pytest

from lorawatch.machine import amd, gpus
from lorawatch.machine.cuda_visible import visible_cards
from lorawatch.machine.gpu_view import KEPT
from lorawatch.machine.gpus import HANG, GpuSampler, GpuView
from lorawatch.machine.nvml import NvmlCollector
from lorawatch.records import Card, GpuProcess, GpuReading
from lorawatch.sources.lorawatch_jsonl import encode
from tests.machine.nvml_stub import GIB, card, compiler, driver, instance

HERE = os.getpid()


class Clock:
    """Seconds that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


class Cards:
    """A collector that sees what a test tells it to."""

    vendor: ClassVar[str] = "nvidia"

    def __init__(self, *cards: Card) -> None:
        self.cards = list(cards)
        self.problems: Sequence[str] = ()
        self.aliases: dict[str, str] = {}
        self.closed = 0
        self.before: Callable[[], object] = lambda: None

    def look(self) -> list[Card]:
        self.before()
        return list(self.cards)

    def close(self) -> None:
        self.closed += 1


class Radeons(Cards):
    vendor: ClassVar[str] = "amd"


def gpu(index: int, **values: Any) -> Card:
    return Card(**{"index": index, "uuid": f"GPU-{index}0", "name": "L4", **values})


def held(*processes: tuple[int, int | None]) -> list[GpuProcess]:
    return [GpuProcess(pid, memory) for pid, memory in processes]


def watched(collector: Cards, **wanted: Any) -> tuple[GpuSampler, GpuView]:
    sampler = GpuSampler([collector])
    return sampler, sampler.view(**wanted)


def looks(collector: Cards, sampler: GpuSampler, *cards: Card | list[Card]) -> None:
    """Look once for each of ``cards``."""
    for one in cards:
        collector.cards = one if isinstance(one, list) else [one]
        sampler.look()


def only(reading: GpuReading | None) -> Card:
    assert reading is not None
    (one,) = reading.cards
    return one


# ---- what several looks say together ----


def test_a_reading_joins_the_looks_since_the_one_before() -> None:
    collector = Cards()
    sampler, view = watched(collector)
    looks(
        collector,
        sampler,
        gpu(0, memory_total=24, memory_used=10, utilization=0.9, utilization_lowest=0.9, power=100.0, temperature=60.0,
            sm_clock=1e9, throttled={"sw_power_cap": 1.0}, pcie_generation=3, ecc_corrected=1),
        gpu(0, memory_total=24, memory_used=20, utilization=0.3, utilization_lowest=0.3, power=200.0, temperature=70.0,
            sm_clock=2e9, throttled={"sw_power_cap": 1.0, "sw_thermal": 1.0}, ecc_corrected=2),
        gpu(0, memory_total=24, memory_used=15, utilization=0.6, utilization_lowest=0.6, power=None, temperature=65.0,
            throttled={}, pcie_generation=4, pcie_width=8),
        gpu(0, memory_total=24, memory_used=5, throttled=None),
    )  # fmt: skip
    assert view.reading(50.0) == GpuReading(
        50.0,
        [
            gpu(
                0, samples=4, memory_total=24, memory_used=20, utilization=pytest.approx(0.6), utilization_lowest=0.3,
                power=150.0, temperature=70.0, sm_clock=1.5e9, ecc_corrected=2, pcie_generation=4, pcie_width=8,
                throttled={"sw_power_cap": pytest.approx(2 / 3), "sw_thermal": pytest.approx(1 / 3)},
            )
        ],
        0.0,
    )  # fmt: skip
    looks(collector, sampler, gpu(0, memory_used=1))
    assert view.reading(60.0) == GpuReading(60.0, [gpu(0, memory_used=1)], 10.0)


def test_there_is_no_reading_without_a_look_or_without_a_card() -> None:
    collector = Cards()
    sampler, view = watched(collector)
    assert view.reading(1.0) is None
    sampler.look()
    assert view.reading(2.0) is None
    looks(collector, sampler, gpu(0))
    assert view.reading(3.0) is not None
    assert view.reading(4.0) is None


def test_xid_errors_of_all_looks_are_told_in_order_and_at_most_32() -> None:
    collector = Cards()
    sampler, view = watched(collector)
    looks(collector, sampler, gpu(0, xids=[13]), gpu(0), gpu(0, xids=[31, 79]))
    assert only(view.reading(1.0)).xids == [13, 31, 79]
    looks(collector, sampler, gpu(0, xids=[1] * 20), gpu(0, xids=[2] * 20))
    assert only(view.reading(2.0)).xids == [1] * 20 + [2] * 12


def test_a_card_is_lost_or_not_as_at_the_last_look() -> None:
    collector = Cards()
    sampler, view = watched(collector)
    looks(collector, sampler, gpu(0, power=90.0), gpu(0, lost=True))
    lost = only(view.reading(1.0))
    assert (lost.lost, lost.power, lost.samples) == (True, 90.0, 2)
    looks(collector, sampler, gpu(0, lost=True), gpu(0, power=80.0))
    assert not only(view.reading(2.0)).lost


def test_cards_are_matched_by_uuid_whatever_their_place() -> None:
    collector = Cards()
    sampler, view = watched(collector)
    looks(collector, sampler, [gpu(0, power=10.0), gpu(1, power=30.0)], [gpu(1, power=50.0), gpu(0, power=20.0)])
    reading = view.reading(1.0)
    assert reading is not None
    assert {one.uuid: one.power for one in reading.cards} == {"GPU-00": 15.0, "GPU-10": 40.0}


def test_what_nobody_reads_is_folded_and_nothing_of_it_is_lost() -> None:
    collector = Cards()
    sampler, view = watched(collector)
    count = 5 * KEPT
    for number in range(count):
        one = gpu(
            0, utilization=number / count, utilization_lowest=number / count, memory_used=1000 - number,
            throttled={"sw_thermal": 1.0} if number < count / 4 else {}, xids=[number] if number in (3, 200) else [],
        )  # fmt: skip
        looks(collector, sampler, one)
    assert len(view._looks) == KEPT
    seen = only(view.reading(1.0))
    assert (seen.samples, seen.memory_used, seen.utilization_lowest, seen.xids) == (count, 1000, 0.0, [3, 200])
    assert seen.utilization == pytest.approx((count - 1) / 2 / count)
    assert seen.throttled == pytest.approx({"sw_thermal": 1 / 4})


def test_each_view_gets_every_look_and_a_view_that_is_dropped_costs_nothing() -> None:
    collector = Cards(gpu(0, xids=[79]))
    sampler, first = watched(collector)
    second = sampler.view()
    sampler.look()
    assert only(first.reading(1.0)).xids == only(second.reading(2.0)).xids == [79]
    del first
    gc.collect()
    assert list(sampler._views) == [second]


def test_a_reading_can_be_written_and_is_strict_json() -> None:
    collector = Cards()
    sampler, view = watched(collector)
    looks(collector, sampler, gpu(0, processes=held((HERE, 5)), memory_used=7))
    reading = view.reading(1.0, {HERE})
    assert reading is not None
    assert msgspec.json.decode(encode(reading), type=GpuReading) == reading


# ---- whose memory it is ----


def test_own_memory_is_that_of_the_look_with_the_most() -> None:
    collector = Cards()
    sampler, view = watched(collector)
    looks(
        collector,
        sampler,
        gpu(0, memory_used=30, processes=held((HERE, 10), (1, 20))),
        gpu(0, memory_used=40, processes=held((HERE, 25), (1, 15))),
        gpu(0, memory_used=50, processes=held((HERE, 5), (1, 45))),
    )
    seen = only(view.reading(1.0, {HERE}))
    assert seen.own_memory == 25
    assert [(one.pid, one.memory, one.own) for one in seen.processes] == [(1, 45, False), (HERE, 5, True)]
    assert all(one.name for one in seen.processes)


def test_memory_of_several_own_processes_is_added_up() -> None:
    collector = Cards(gpu(0, processes=held((HERE, 10), (os.getppid(), 7), (1, 4))))
    sampler, view = watched(collector, pids={HERE, os.getppid()})
    sampler.look()
    assert only(view.reading(1.0)).own_memory == 17


def test_a_card_on_which_only_others_are_has_no_memory_of_the_run() -> None:
    collector = Cards(gpu(0, processes=held((HERE, 10))), gpu(1, processes=held((1, 10))))
    sampler, view = watched(collector)
    sampler.look()
    reading = view.reading(1.0, {HERE})
    assert reading is not None
    assert [one.own_memory for one in reading.cards] == [10, 0]


@pytest.mark.parametrize(
    ("processes", "own"),
    [
        ([], {HERE}),  # a driver that names nobody, as in many containers
        (held((HERE, None), (1, 5)), {HERE}),  # memory that is not told, as on Windows and vGPUs
        (held((HERE, 7), (1, 5)), set()),  # a run whose processes are not known
    ],
)
def test_own_memory_is_none_where_it_cannot_be_told(processes: list[GpuProcess], own: set[int]) -> None:
    collector = Cards(gpu(0, memory_used=9, processes=processes))
    sampler, view = watched(collector)
    sampler.look()
    seen = only(view.reading(1.0, own))
    assert seen.own_memory is None
    assert all(one.own is None for one in seen.processes) or own


def test_at_most_eight_processes_are_told_the_largest_first() -> None:
    collector = Cards(gpu(0, processes=held(*((100 + size, size) for size in range(20)), (HERE, 3))))
    sampler, view = watched(collector)
    sampler.look()
    seen = only(view.reading(1.0, {HERE}))
    assert [one.memory for one in seen.processes] == list(range(19, 11, -1))
    assert seen.own_memory == 3


@pytest.fixture
def gone() -> int:
    """A pid that no process has."""
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    return done.pid


def test_pids_of_another_namespace_are_told_from_a_process_that_has_just_ended(gone: int) -> None:
    collector = Cards(gpu(0, processes=held((gone, 10), (1, 5))))
    sampler, view = watched(collector)
    for when in (1.0, 2.0, 3.0):
        sampler.look()
        seen = only(view.reading(when, {HERE}))
        assert seen.own_memory is None
        assert [(one.own, one.name) for one in seen.processes] == [(None, ""), (None, "")]
        assert bool(view.problems) == (when > 1.0)
    assert view.problems == [
        "GPU process ids are of another pid namespace (a container): which process holds the memory cannot be told"
    ]


def test_a_process_that_ended_is_no_sign_of_another_namespace_where_the_runs_own_is_named(gone: int) -> None:
    collector = Cards(gpu(0, processes=held((gone, 10), (HERE, 5))))
    sampler, view = watched(collector)
    for when in (1.0, 2.0):
        sampler.look()
        seen = only(view.reading(when, {HERE}))
        assert (seen.own_memory, [one.own for one in seen.processes]) == (5, [False, True])
    assert view.problems == []


# ---- which cards a run sees ----

FOUR = [gpu(number) for number in range(4)]


def seen_by(text: str | None, cards: Sequence[Card] = tuple(FOUR), **aliases: str) -> list[str]:
    return [one.uuid for one in visible_cards(text, cards, aliases).cards]


@pytest.mark.parametrize(
    ("text", "indices"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("  ", []),
        ("0", [0]),
        ("2,1", [2, 1]),
        (" 3 , 0 ", [3, 0]),
        ("0,2,-1,1", [0, 2]),
        ("-1", []),
        ("NoDevFiles", []),
        ("all", []),
        ("7,0", []),
        ("0,7,1", [0]),
        ("0,0", []),
        ("1,2,1", []),
        ("1gpu2,2ampere", [1, 2]),
        ("0,GPU-10", [0]),
        ("0,", [0]),
        (",0", []),
        ("GPU-10,GPU-0", [1, 0]),
        ("GPU-30", [3]),
        ("GPU-10,0", [1]),
        ("GPU-", []),
        ("GPU-10,GPU-1", []),
        ("GPU-99,GPU-10", []),
        ("GPU-10,GPU-99", [1]),
    ],
)
def test_cuda_visible_devices_means_what_cuda_takes_it_for(
    text: str | None, indices: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert seen_by(text) == [f"GPU-{index}0" for index in indices]
    torch = pytest.importorskip("torch")
    if text is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", text)
    parsed = torch.cuda._parse_visible_devices()
    if parsed and isinstance(parsed[0], str):
        parsed = torch.cuda._transform_uuid_to_ordinals(parsed, [one.uuid for one in FOUR])
    beyond = next((place for place, index in enumerate(parsed) if index >= len(FOUR)), len(parsed))
    assert parsed[:beyond] == indices


MIG = [
    gpu(0, uuid="MIG-aa", mig=True),
    gpu(0, uuid="MIG-ab", mig=True),
    gpu(1, uuid="GPU-b"),
]
NAMES = {"MIG-GPU-a/1/0": "MIG-aa", "MIG-GPU-a/2/0": "MIG-ab", "GPU-a": "MIG-aa"}


@pytest.mark.parametrize(
    ("text", "uuids"),
    [
        ("MIG-ab", ["MIG-ab"]),
        ("MIG-ab,MIG-aa", ["MIG-ab", "MIG-aa"]),
        ("MIG-a", []),
        ("MIG-GPU-a/2/0", ["MIG-ab"]),
        ("MIG-GPU-a/3/0", []),
        ("0", ["MIG-aa"]),
        ("1,0", ["GPU-b", "MIG-aa"]),
        ("GPU-a", ["MIG-aa"]),
        ("GPU-b", ["GPU-b"]),
    ],
)
def test_mig_instances_are_named_by_uuid_or_as_old_drivers_did(text: str, uuids: list[str]) -> None:
    assert seen_by(text, MIG, **NAMES) == uuids


def test_a_run_is_told_of_its_own_cards_in_its_own_order() -> None:
    collector = Cards(*FOUR)
    sampler, view = watched(collector, visible="3,1")
    sampler.look()
    reading = view.reading(1.0)
    assert reading is not None
    assert [one.index for one in reading.cards] == [3, 1]
    assert view.problems == []


def test_a_run_that_may_see_no_card_gets_no_reading() -> None:
    collector = Cards(*FOUR)
    sampler, view = watched(collector, visible="")
    sampler.look()
    assert view.reading(1.0) is None
    assert view.problems == []


def test_an_entry_that_names_no_card_is_said() -> None:
    collector = Cards(*FOUR)
    sampler, view = watched(collector, visible="1,9")
    for when in (1.0, 2.0):
        sampler.look()
        assert only(view.reading(when)).index == 1
    assert view.problems == [
        "CUDA_VISIBLE_DEVICES=1,9: '9' names no card, or one that is already named; by that the run sees one card"
    ]


def test_indices_among_unequal_cards_are_said_to_be_unsure_unless_the_order_is_that_of_the_bus() -> None:
    collector = Cards(gpu(0, name="T4"), gpu(1, name="H100"))
    sampler = GpuSampler([collector])
    unsure, sure, named = (
        sampler.view("0"),
        sampler.view("0", order="PCI_BUS_ID"),
        sampler.view("GPU-00", order="FASTEST_FIRST"),
    )
    sampler.look()
    assert [only(view.reading(1.0)).name for view in (unsure, sure, named)] == ["T4", "T4", "T4"]
    assert len(unsure.problems) == 1
    assert "CUDA_DEVICE_ORDER=PCI_BUS_ID" in unsure.problems[0]
    assert sure.problems == named.problems == []


def test_the_run_keeps_its_card_when_the_driver_counts_anew() -> None:
    collector = Cards(gpu(0), gpu(1), gpu(2))
    sampler, view = watched(collector, visible="2")
    sampler.look()
    assert only(view.reading(1.0)).uuid == "GPU-20"
    looks(collector, sampler, [gpu(0), gpu(1, uuid="GPU-20"), gpu(1, uuid="GPU-10", lost=True)])
    assert only(view.reading(2.0)).uuid == "GPU-20"


def test_a_run_on_a_card_that_is_divided_anew_gets_what_is_there_now() -> None:
    collector = Cards(gpu(0), gpu(1))
    sampler, view = watched(collector, visible="0")
    sampler.look()
    assert only(view.reading(1.0)).uuid == "GPU-00"
    looks(collector, sampler, [gpu(0, uuid="MIG-1", mig=True), gpu(0, uuid="MIG-2", mig=True), gpu(1)])
    assert only(view.reading(2.0)).uuid == "MIG-1"


def test_another_process_may_take_over_the_run_on_other_cards() -> None:
    collector = Cards(*FOUR)
    sampler, view = watched(collector, visible="2")
    sampler.look()
    assert only(view.reading(1.0)).index == 2
    view.visible = "0"
    sampler.look()
    assert only(view.reading(2.0)).index == 0


def test_cards_of_two_vendors_are_told_side_by_side() -> None:
    sampler = GpuSampler([Cards(gpu(0)), Radeons(gpu(0, uuid="amd-a", vendor="amd"))])
    view = sampler.view()
    sampler.look()
    reading = view.reading(1.0)
    assert reading is not None
    assert [one.vendor for one in reading.cards] == ["nvidia", "amd"]


# ---- a driver that hangs or breaks ----


def fail() -> None:
    raise RuntimeError("no such thing")


def test_a_collector_that_breaks_is_said_once_and_the_others_go_on() -> None:
    broken, well = Cards(), Radeons(gpu(0, vendor="amd"))
    broken.before = fail
    sampler = GpuSampler([broken, well])
    view = sampler.view()
    for when in (1.0, 2.0):
        sampler.look()
        assert only(view.reading(when)).vendor == "amd"
    assert sampler.problems == ["NVML cannot be read (RuntimeError: no such thing); its cards are left out"]


def test_problems_of_collectors_are_told_with_those_of_the_view() -> None:
    collector = Cards()
    collector.problems = ("no driver",)
    sampler, view = watched(collector)
    assert list(sampler.problems) == list(view.problems) == ["no driver"]


def test_while_a_driver_hangs_there_is_no_reading_and_afterwards_there_is() -> None:
    entered, release, clock = threading.Event(), threading.Event(), Clock()
    collector = Cards(gpu(0))
    sampler = GpuSampler([collector], clock=clock)
    view = sampler.view()
    sampler.look()

    def hang() -> None:
        entered.set()
        release.wait(30)

    collector.before = hang
    thread = threading.Thread(target=sampler.look)
    thread.start()
    assert entered.wait(30)
    clock.now += HANG
    assert only(view.reading(1.0)).samples == 1  # that long it may take
    clock.now += 2
    assert view.reading(2.0) is None
    assert view.reading(3.0) is None
    assert view.problems == ["NVML has not answered for 12 s; GPU readings pause"]
    release.set()
    thread.join(30)
    assert only(view.reading(4.0)).samples == 1
    assert len(view.problems) == 1


def test_the_thread_looks_until_it_is_stopped_and_closes_what_it_opened() -> None:
    collector, third = Cards(gpu(0)), threading.Event()
    count = 0

    def counting() -> None:
        nonlocal count
        count += 1
        if count == 2:
            raise RuntimeError("once")
        if count == 3:
            third.set()

    collector.before = counting
    sampler = GpuSampler([collector], interval=0.001)
    view = sampler.view()
    sampler.start()
    sampler.start()
    assert third.wait(30)
    sampler.stop()
    sampler.stop()
    assert only(view.reading(1.0)).samples >= 1
    assert collector.closed == 1
    assert not [one for one in threading.enumerate() if one.name == "lorawatch-gpus"]
    sampler.start()  # stays stopped
    assert not [one for one in threading.enumerate() if one.name == "lorawatch-gpus"]


def test_a_sampler_that_never_ran_in_a_thread_closes_at_its_end() -> None:
    collector = Cards(gpu(0))
    sampler = GpuSampler([collector])
    sampler.look()
    sampler.stop()
    sampler.start()
    assert collector.closed == 1
    assert not [one for one in threading.enumerate() if one.name == "lorawatch-gpus"]


def test_the_cards_of_nvidia_are_looked_at_and_those_of_amd_where_its_library_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert [one.vendor for one in gpus.default_collectors()] == ["nvidia"]
    monkeypatch.setattr(amd, "_library", object)
    assert [one.vendor for one in gpus.default_collectors()] == ["nvidia", "amd"]


# ---- on the stub of the driver ----

needs_stub = pytest.mark.skipif(compiler() is None, reason="no C compiler to build the stub of NVML with")


@pytest.fixture
def nvml(clock: Clock) -> Iterator[GpuSampler]:
    sampler = GpuSampler([NvmlCollector(clock=clock)], clock=clock)
    yield sampler
    sampler.stop()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@needs_stub
def test_growing_memory_and_foreign_processes_are_seen_through_the_driver(
    tmp_path: Path, nvml: GpuSampler, clock: Clock
) -> None:
    with driver(tmp_path, card(0), card(1)) as stub:
        view = nvml.view("1")
        for used in range(30, 40):
            stub.set(
                1,
                memory=f"{80 * GIB} {used * GIB} {GIB}",
                compute=f"{HERE}:{(used - 5) * GIB},1:{5 * GIB}",
                reasons=0x20 if used < 33 else 0x1,
            )
            nvml.look()
            clock.now += 1
        seen = only(view.reading(1.0, {HERE}))
        assert (seen.memory_used, seen.own_memory, seen.samples) == (40 * GIB, 34 * GIB, 10)
        assert [(one.pid, one.own) for one in seen.processes] == [(HERE, True), (1, False)]
        assert seen.throttled == pytest.approx({"sw_thermal": 0.3})
        nvml.stop()


@needs_stub
def test_a_mig_instance_is_found_by_the_name_that_the_run_was_given(tmp_path: Path, nvml: GpuSampler) -> None:
    with driver(tmp_path, card(0, mig=1)) as stub:
        stub.instances = {(0, 0): instance(0, 0), (0, 1): instance(0, 1)}
        stub.write()
        old = nvml.view("MIG-GPU-00000000-aaaa-bbbb-cccc-dddddddddddd/2/0")
        new = nvml.view("MIG-00000000-0000-0000-0000-000000000001")
        nvml.look()
        assert only(old.reading(1.0)) == only(new.reading(1.0))
        nvml.stop()


@needs_stub
@pytest.mark.parametrize(
    "function",
    ["nvmlInitWithFlags", "nvmlDeviceGetHandleByIndex_v2", "nvmlDeviceGetUtilizationRates", "nvmlEventSetWait_v2"],
)
def test_a_call_that_hangs_in_the_driver_pauses_the_readings_and_nothing_else(
    tmp_path: Path, nvml: GpuSampler, clock: Clock, function: str
) -> None:
    with driver(tmp_path, card(0)) as stub:
        view = nvml.view()
        with stub.hanging(function) as hang:
            thread = threading.Thread(target=nvml.look)
            thread.start()
            hang.wait()
            clock.now += HANG + 5
            assert view.reading(1.0) is None
            assert view.problems == ["NVML has not answered for 15 s; GPU readings pause"]
            hang.end()
            thread.join(30)
        nvml.look()
        assert only(view.reading(2.0)).samples == 2
        nvml.stop()


@needs_stub
def test_a_thread_that_hangs_in_the_driver_keeps_nobody_from_stopping_it(tmp_path: Path) -> None:
    with driver(tmp_path, card(0)) as stub, stub.hanging("nvmlDeviceGetPowerUsage") as hang:
        collector = NvmlCollector()
        sampler = GpuSampler([collector])
        sampler.start()
        hang.wait()
        sampler._thread, thread = _Unjoinable(), sampler._thread  # type: ignore[assignment]
        sampler.stop()
        assert stub.calls("nvmlShutdown") == 0
        hang.end()
        assert thread is not None
        thread.join(30)
        assert stub.calls("nvmlShutdown") == 1


class _Unjoinable:
    """Stands for a thread that has not ended when the wait for it is over."""

    def join(self, timeout: float | None = None) -> None:
        assert timeout is not None
        assert timeout <= 1.0
