"""The collector on the real pynvml, which loads a stub in the place of the driver's library."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from lorawatch.machine.nvml import RETRY, NvmlCollector
from lorawatch.machine.nvml_card import SILENT_LOOKS, SLOW
from lorawatch.machine.nvml_device import RETRY as OFF
from lorawatch.records import Card, GpuProcess
from tests.machine.nvml_stub import GIB, NvmlStub, build, card, compiler, driver, instance, pointed_at

pytestmark = pytest.mark.skipif(compiler() is None, reason="no C compiler to build the stub of NVML with")

Drive = Callable[..., NvmlStub]


class Clock:
    """Seconds that a test sets."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def drive(tmp_path: Path) -> Iterator[Drive]:
    with ExitStack() as stack:
        yield lambda *cards, variant="": stack.enter_context(driver(tmp_path, *cards, variant=variant))


@pytest.fixture
def collector(clock: Clock) -> Iterator[NvmlCollector]:
    one = NvmlCollector(clock=clock)
    yield one
    one.close()


def test_a_look_tells_a_card_in_the_units_of_the_record(drive: Drive, collector: NvmlCollector) -> None:
    drive(card(0))
    assert collector.look() == [
        Card(
            0,
            "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd",
            "NVIDIA H100 80GB HBM3",
            memory_total=80 * GIB,
            memory_used=41 * GIB,
            memory_reserved=GIB,
            processes=[GpuProcess(100_000, 40 * GIB)],
            utilization=0.97,
            utilization_lowest=0.97,
            power=650.0,
            power_limit=700.0,
            temperature=61.0,
            sm_clock=1.755e9,
            max_sm_clock=1.98e9,
            throttled={"sw_power_cap": 1.0},
            ecc_uncorrected=0,
            ecc_corrected=3,
            remapped_rows=1,
            remap_pending=False,
            remap_failure=False,
            pcie_generation=5,
            pcie_generation_max=5,
            pcie_width=16,
            pcie_width_max=16,
        )
    ]
    assert collector.problems == ()


def test_cards_come_in_the_order_of_the_driver_and_memory_is_read_at_each_look(
    drive: Drive, collector: NvmlCollector
) -> None:
    nvml = drive(*(card(number) for number in range(8)))
    assert [one.index for one in collector.look()] == list(range(8))
    nvml.set(5, memory=f"{80 * GIB} {70 * GIB} {GIB}")
    assert [one.memory_used for one in collector.look()] == [41 * GIB] * 5 + [71 * GIB] + [41 * GIB] * 2


def test_without_a_library_there_is_one_line_and_one_attempt_a_minute(
    tmp_path: Path, collector: NvmlCollector, clock: Clock, drive: Drive
) -> None:
    library = tmp_path / "libnvidia-ml.so.1"
    nvml = drive(card(0))
    with pointed_at(str(library)):
        assert collector.look() == []
        library.symlink_to(build())
        clock.now += RETRY - 1
        assert collector.look() == []
        assert nvml.calls("nvmlInitWithFlags") == 0
        clock.now += 1
        assert len(collector.look()) == 1
        collector.close()
    assert collector.problems == (
        "no readings of NVIDIA GPUs: the driver's library, libnvidia-ml.so.1, is not found; tried again every 60 s",
    )


def test_a_driver_that_is_loaded_later_is_seen(drive: Drive, collector: NvmlCollector, clock: Clock) -> None:
    nvml = drive(card(0))
    nvml.unload()
    for _ in range(120):
        clock.now += 1
        assert collector.look() == []
    assert nvml.calls("nvmlInitWithFlags") == 2
    nvml.write()
    clock.now += RETRY
    assert len(collector.look()) == 1
    assert len(collector.problems) == 1
    assert "NVML cannot be started (Driver Not Loaded)" in collector.problems[0]


@pytest.mark.parametrize("code", [1, 9, 18])
def test_a_driver_that_goes_away_ends_the_readings_until_it_is_back(
    drive: Drive, collector: NvmlCollector, clock: Clock, code: int
) -> None:
    nvml = drive(card(0))
    assert len(collector.look()) == 1
    nvml.machine["error"] = code
    nvml.write()
    assert collector.look() == []
    assert "the driver no longer answers" in collector.problems[0]
    del nvml.machine["error"]
    nvml.write()
    assert collector.look() == []
    clock.now += RETRY
    assert [one.lost for one in collector.look()] == [False]


UNTOLD = {
    "memory": ("memory_total", "memory_used", "memory_reserved"),
    "utilization": ("utilization", "utilization_lowest", "pcie_generation", "pcie_width"),
    "power": ("power",),
    "power_limit": ("power_limit",),
    "temperature": ("temperature",),
    "sm_clock": ("sm_clock",),
    "max_sm_clock": ("max_sm_clock",),
    "reasons": ("throttled",),
    "ecc_uncorrected": ("ecc_uncorrected",),
    "ecc_corrected": ("ecc_corrected",),
    "remapped_rows": ("remapped_rows", "remap_pending", "remap_failure"),
    "pcie_generation": ("pcie_generation",),
    "pcie_width": ("pcie_width",),
    "pcie_generation_max": ("pcie_generation_max",),
    "pcie_width_max": ("pcie_width_max",),
}


@pytest.mark.parametrize("key", UNTOLD)
def test_what_a_card_does_not_support_is_none_and_nothing_else_is(
    drive: Drive, collector: NvmlCollector, key: str
) -> None:
    drive(card(0, **{key: None}))
    (seen,) = collector.look()
    assert {name for name in Card.__struct_fields__ if getattr(seen, name) is None} == {"own_memory", *UNTOLD[key]}


CALLS: dict[str, tuple[str, ...]] = {
    "nvmlDeviceGetMemoryInfo_v2": UNTOLD["memory"],
    "nvmlDeviceGetUtilizationRates": UNTOLD["utilization"],
    "nvmlDeviceGetPowerUsage": ("power",),
    "nvmlDeviceGetTemperature": ("temperature",),
    "nvmlDeviceGetClockInfo": ("sm_clock",),
    "nvmlDeviceGetCurrentClocksEventReasons": ("throttled",),
    "nvmlDeviceGetComputeRunningProcesses_v3": (),
    "nvmlDeviceGetGraphicsRunningProcesses_v3": (),
    "nvmlDeviceGetMPSComputeRunningProcesses_v3": (),
    "nvmlDeviceGetName": (),
    "nvmlDeviceGetEnforcedPowerLimit": ("power_limit",),
    "nvmlDeviceGetMaxClockInfo": ("max_sm_clock",),
    "nvmlDeviceGetTotalEccErrors": ("ecc_uncorrected", "ecc_corrected"),
    "nvmlDeviceGetRemappedRows": UNTOLD["remapped_rows"],
    "nvmlDeviceGetMigMode": (),
    "nvmlDeviceGetCurrPcieLinkGeneration": ("pcie_generation",),
    "nvmlDeviceGetMaxPcieLinkWidth": ("pcie_width_max",),
    "nvmlDeviceRegisterEvents": (),
}


@pytest.mark.parametrize("function", CALLS)
@pytest.mark.parametrize("code", [2, 999, 31_337, -7])
def test_a_call_that_fails_costs_only_its_own_field(
    drive: Drive, collector: NvmlCollector, function: str, code: int
) -> None:
    drive(card(0, **{f"error_{function}": code}))
    (seen,) = collector.look()
    assert {name for name in Card.__struct_fields__ if getattr(seen, name) is None} == {"own_memory", *CALLS[function]}
    assert bool(seen.processes) == ("Compute" not in function or "MPS" in function)
    assert not seen.lost


def test_what_is_not_supported_is_not_asked_for_again_for_five_minutes(
    drive: Drive, collector: NvmlCollector, clock: Clock
) -> None:
    nvml = drive(card(0, power=None))
    for _ in range(60):
        clock.now += 1
        collector.look()
    assert nvml.calls("nvmlDeviceGetPowerUsage") == 1
    assert nvml.calls("nvmlDeviceGetUtilizationRates") == 60
    nvml.set(0, power=300_000)
    clock.now += OFF
    assert collector.look()[0].power == 300.0


def test_what_failed_once_is_asked_for_at_the_next_look(drive: Drive, collector: NvmlCollector) -> None:
    nvml = drive(card(0, error_nvmlDeviceGetPowerUsage=999))
    assert collector.look()[0].power is None
    nvml.set(0, error_nvmlDeviceGetPowerUsage=None)
    assert collector.look()[0].power == 650.0


def test_memory_that_is_the_hosts_own_is_none(drive: Drive, collector: NvmlCollector) -> None:
    drive(card(0, memory=None, power=3_000), card(1, memory="0 0 0"))  # GB10, Jetson
    for seen in collector.look():
        assert (seen.memory_total, seen.memory_used) == (None, None)
        assert seen.utilization == 0.97


def test_numbers_that_cannot_be_are_none(drive: Drive, collector: NvmlCollector) -> None:
    drive(
        card(
            0, power=2**32 - 1, temperature=2**32 - 1, utilization=101, sm_clock=2**32 - 1, pcie_generation=2**32 - 1,
            memory=f"{GIB} {-2 * GIB} 0",
        )
    )  # fmt: skip
    (seen,) = collector.look()
    assert (seen.power, seen.temperature, seen.utilization, seen.sm_clock) == (None, None, None, None)
    assert (seen.pcie_generation, seen.memory_used) == (None, None)


def test_a_driver_of_before_r535_is_read_by_the_older_calls(drive: Drive, collector: NvmlCollector) -> None:
    drive(card(0), variant="OLD_DRIVER")
    (seen,) = collector.look()
    assert (seen.memory_used, seen.memory_total, seen.memory_reserved) == (41 * GIB, 80 * GIB, None)
    assert seen.throttled == {"sw_power_cap": 1.0}
    assert seen.processes == [GpuProcess(100_000, 40 * GIB)]


def test_a_driver_without_the_calls_for_processes_and_mig_tells_the_rest(
    drive: Drive, collector: NvmlCollector
) -> None:
    drive(card(0), variant="ANCIENT_DRIVER")
    (seen,) = collector.look()
    assert seen.processes == []
    assert (seen.memory_used, seen.temperature, seen.mig) == (41 * GIB, 61.0, False)


@pytest.mark.parametrize(
    ("reasons", "names"),
    [
        (0x0, set()),
        (0x1 | 0x2 | 0x10 | 0x100, set()),
        (0x4, {"sw_power_cap"}),
        (0x8, {"hw_slowdown"}),
        (0x20, {"sw_thermal"}),
        (0x40, {"hw_thermal"}),
        (0x80, {"power_brake"}),
        (0x1 | 0x8 | 0x40 | 0x80, {"hw_slowdown", "hw_thermal", "power_brake"}),
    ],
)
def test_reasons_to_slow_down_have_names_and_idling_is_none(
    drive: Drive, collector: NvmlCollector, reasons: int, names: set[str]
) -> None:
    drive(card(0, reasons=reasons))
    assert collector.look()[0].throttled == dict.fromkeys(names, 1.0)


def test_a_process_is_counted_once_and_the_largest_stands_first(drive: Drive, collector: NvmlCollector) -> None:
    drive(card(0, compute="7:100,8:-1,9:500", graphics="7:100,10:50", mps="9:500"))
    assert collector.look()[0].processes == [
        GpuProcess(9, 500),
        GpuProcess(7, 100),
        GpuProcess(10, 50),
        GpuProcess(8, None),
    ]


def test_xid_errors_are_told_once_in_order(drive: Drive, collector: NvmlCollector) -> None:
    nvml = drive(card(0), card(1))
    assert [one.xids for one in collector.look()] == [[], []]
    nvml.set(1, xids="13,31")
    assert [one.xids for one in collector.look()] == [[], [13, 31]]
    assert [one.xids for one in collector.look()] == [[], []]
    nvml.set(1, xids="13,31,31")
    assert [one.xids for one in collector.look()] == [[], [31]]


def test_a_flood_of_xid_errors_is_taken_in_piece_by_piece(drive: Drive, collector: NvmlCollector) -> None:
    drive(card(0, xids=",".join(["13"] * 40)))
    assert [len(collector.look()[0].xids) for _ in range(3)] == [32, 8, 0]


@pytest.mark.parametrize("code", [3, 4])
def test_where_xid_errors_may_not_be_seen_it_is_said_and_the_rest_is_read(
    drive: Drive, collector: NvmlCollector, code: int
) -> None:
    drive(card(0, error_nvmlDeviceRegisterEvents=code), card(1, error_nvmlDeviceRegisterEvents=code))
    assert [one.power for one in collector.look()] == [650.0, 650.0]
    assert len(collector.problems) == 1
    assert collector.problems[0].startswith("Xid errors of GPU 0 are not told (")


def test_the_link_counts_only_while_the_card_is_busy(drive: Drive, collector: NvmlCollector, clock: Clock) -> None:
    nvml = drive(card(0, utilization=3, pcie_generation=1))
    seen = collector.look()[0]
    assert (seen.pcie_generation, seen.pcie_width, seen.pcie_generation_max) == (None, None, 5)
    nvml.set(0, utilization=90, pcie_generation=4)
    assert collector.look()[0].pcie_generation == 4
    nvml.set(0, utilization=3, pcie_generation=1)
    assert collector.look()[0].pcie_generation == 4  # what was seen a moment ago
    clock.now += SLOW
    assert collector.look()[0].pcie_generation is None


def test_what_hardly_changes_is_asked_for_every_ten_seconds(
    drive: Drive, collector: NvmlCollector, clock: Clock
) -> None:
    nvml = drive(card(0))
    for _ in range(30):
        collector.look()
        clock.now += 1
    assert nvml.calls("nvmlDeviceGetName") == 3
    assert nvml.calls("nvmlDeviceGetTotalEccErrors") == 6
    assert nvml.calls("nvmlDeviceGetCurrPcieLinkWidth") == 3
    assert nvml.calls("nvmlDeviceGetUtilizationRates") == 30


def test_a_card_in_mig_mode_shows_its_instances(drive: Drive, collector: NvmlCollector) -> None:
    nvml = drive(card(0, mig=1, utilization=None), card(1))
    nvml.instances = {(0, 0): instance(0, 0), (0, 2): instance(0, 2, memory=f"{40 * GIB} {30 * GIB} 0")}
    nvml.write()
    first, second, whole = collector.look()
    assert (first.mig, second.mig, whole.mig) == (True, True, False)
    assert (first.index, second.index, whole.index) == (0, 0, 1)
    assert first.uuid == "MIG-00000000-0000-0000-0000-000000000000"
    assert first.name == "NVIDIA H100 80GB HBM3 MIG 3g.40gb"
    assert (first.memory_used, second.memory_used, first.memory_total) == (10 * GIB, 30 * GIB, 40 * GIB)
    assert first.processes == [GpuProcess(200_000, 10 * GIB)]
    assert (first.utilization, first.power, first.power_limit) == (None, None, None)
    assert (first.temperature, first.throttled) == (61.0, {"sw_power_cap": 1.0})  # of the chip, which is shared
    assert dict(collector.aliases) == {
        "MIG-GPU-00000000-aaaa-bbbb-cccc-dddddddddddd/1/0": first.uuid,
        "MIG-GPU-00000000-aaaa-bbbb-cccc-dddddddddddd/3/0": second.uuid,
        "GPU-00000000-aaaa-bbbb-cccc-dddddddddddd": first.uuid,
    }


def test_an_xid_error_concerns_its_instance_or_all(drive: Drive, collector: NvmlCollector) -> None:
    nvml = drive(card(0, mig=1, xids="94@3,79"))
    nvml.instances = {(0, 0): instance(0, 0), (0, 2): instance(0, 2)}
    nvml.write()
    assert [one.xids for one in collector.look()] == [[79], [94, 79]]


def test_instances_that_are_made_anew_take_the_place_of_the_old_ones(
    drive: Drive, collector: NvmlCollector, clock: Clock
) -> None:
    nvml = drive(card(0, mig=1))
    nvml.instances = {(0, 0): instance(0, 0), (0, 1): instance(0, 1)}
    nvml.write()
    assert len(collector.look()) == 2
    nvml.instances = {(0, 0): instance(0, 0), (0, 1): {"error": 6}}  # destroyed: its handle leads nowhere
    nvml.write()
    assert len(collector.look()) == 1
    nvml.instances = {(0, 0): instance(0, 0), (0, 1): instance(0, 4)}
    nvml.write()
    assert [one.uuid[-1] for one in collector.look()] == ["0", "4"]
    nvml.instances = {}
    nvml.set(0, mig=0)
    clock.now += SLOW
    assert [one.mig for one in collector.look()] == [False]


def test_what_an_instance_does_not_support_is_remembered(drive: Drive, collector: NvmlCollector, clock: Clock) -> None:
    nvml = drive(card(0, mig=1))
    nvml.instances = {(0, 0): instance(0, 0, compute=None)}
    nvml.write()
    for _ in range(30):
        collector.look()
        clock.now += 1
    assert nvml.calls("nvmlDeviceGetComputeRunningProcesses_v3") == 1


def test_a_lost_card_is_said_to_be_lost_and_comes_back_with_a_new_start(
    drive: Drive, collector: NvmlCollector, clock: Clock
) -> None:
    nvml = drive(card(0), card(1))
    collector.look()
    clock.now += 3600
    collector.look()
    nvml.set(1, lost=1, xids="79")
    well, lost = collector.look()
    assert not well.lost
    assert lost == Card(1, "GPU-00000001-aaaa-bbbb-cccc-dddddddddddd", "NVIDIA H100 80GB HBM3", lost=True, xids=[79])
    nvml.set(1, lost=None)  # it was reset; the running NVML does not notice
    clock.now += RETRY - 1
    assert [one.lost for one in collector.look()] == [False, True]
    clock.now += 1
    assert [one.lost for one in collector.look()] == [False, False]
    assert nvml.calls("nvmlInitWithFlags") == 2


def test_a_lost_card_that_the_driver_no_longer_counts_stays_lost(
    drive: Drive, collector: NvmlCollector, clock: Clock
) -> None:
    nvml = drive(card(0), card(1))
    collector.look()
    gone = nvml.cards.pop(0)
    gone["lost"] = 1
    nvml.cards[0] |= {"lost": 1}
    nvml.write()
    collector.look()
    nvml.cards = [card(1)]  # a new start counts one card
    nvml.write()
    clock.now += RETRY
    seen = {one.uuid[:12]: one.lost for one in collector.look()}
    assert seen == {"GPU-00000001": False, "GPU-00000000": True}


def test_a_card_that_is_lost_from_the_start_is_told(drive: Drive, collector: NvmlCollector, clock: Clock) -> None:
    nvml = drive(card(0), card(1, lost=1))
    assert [(one.uuid[:12], one.lost) for one in collector.look()] == [("GPU-00000000", False), ("", True)]
    nvml.set(1, lost=None)
    clock.now += RETRY
    assert [(one.uuid[:12], one.lost) for one in collector.look()] == [("GPU-00000000", False), ("GPU-00000001", False)]


def test_all_instances_of_a_lost_card_are_lost(drive: Drive, collector: NvmlCollector) -> None:
    nvml = drive(card(0, mig=1))
    nvml.instances = {(0, 0): instance(0, 0), (0, 1): instance(0, 1)}
    nvml.write()
    collector.look()
    nvml.set(0, lost=1)
    assert [(one.mig, one.lost) for one in collector.look()] == [(True, True), (True, True)]


def test_a_card_that_answers_nothing_is_lost_after_three_looks(drive: Drive, collector: NvmlCollector) -> None:
    nvml = drive(card(0))
    collector.look()
    nvml.set(0, error=999)
    assert [collector.look()[0].lost for _ in range(SILENT_LOOKS + 1)] == [False, False, True, True]
    nvml.set(0, error=None)
    assert [one.lost for one in collector.look()] == [False]


def test_a_card_that_supports_nothing_is_not_lost(drive: Drive, collector: NvmlCollector) -> None:
    drive({"uuid": "GPU-vgpu"})
    for _ in range(5):
        (seen,) = collector.look()
        assert (seen.lost, seen.memory_used, seen.power) == (False, None, None)


def test_a_card_that_is_not_ours_is_left_out_and_said(drive: Drive, collector: NvmlCollector) -> None:
    drive(card(0, error_nvmlDeviceGetUUID=4), card(1))
    assert [one.index for one in collector.look()] == [1]
    assert collector.problems == ("GPU 0 cannot be read (Insufficient Permissions); it is left out",)


def test_closing_lets_go_of_the_driver(drive: Drive, collector: NvmlCollector) -> None:
    nvml = drive(card(0), card(1))
    collector.close()
    assert nvml.calls("nvmlShutdown") == 0
    collector.look()
    collector.close()
    collector.close()
    assert (nvml.calls("nvmlShutdown"), nvml.calls("nvmlEventSetFree")) == (1, 2)


@pytest.mark.parametrize("seed", range(8))
def test_whatever_the_driver_says_a_look_never_raises(
    drive: Drive, collector: NvmlCollector, clock: Clock, seed: int
) -> None:
    rng = random.Random(seed)  # noqa: S311
    nvml = drive(*(card(number) for number in range(3)))
    codes = [None, *range(1, 31), 999, 77_777]
    for _ in range(150):
        clock.now += rng.choice([1, 1, 1, 11, 61, 301])
        nvml.machine = {key: code for key in ("init", "error") if rng.random() < 0.1 and (code := rng.choice(codes))}
        nvml.cards = [card(number, mig=rng.choice([0, 1])) for number in range(rng.randint(1, 3))]
        nvml.instances = {(0, place): instance(0, place) for place in range(3) if rng.random() < 0.5}
        for one in (*nvml.cards, *nvml.instances.values()):
            one |= {f"error.{name}": rng.choice(codes) for name in rng.sample(sorted(CALLS), 3)}
            if rng.random() < 0.2:
                one |= {rng.choice(["error", "lost"]): rng.choice(codes)}
            for key in rng.sample(sorted(one), 3):
                one[key] = rng.choice(["-", "nan", "-1", "18446744073709551615", "\x1b[31m", "1:2:3,,9", None])
        nvml.write()
        collector.look()


def test_pynvml_finds_the_library_as_it_finds_the_drivers(tmp_path: Path) -> None:
    state = tmp_path / "state"
    stub = NvmlStub(state, None)
    stub.cards = [card(0)]
    stub.write()
    code = "from lorawatch.machine.nvml import NvmlCollector as C; print(C().look()[0].memory_used)"
    environment = {**os.environ, "LD_LIBRARY_PATH": str(build().parent), "NVML_STUB_STATE": str(state)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == [str(41 * GIB)]
