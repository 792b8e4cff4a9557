"""The collector for AMD on a stand-in for ``amdsmi``: there is no such card here, and without one it does not import.

Names, return shapes and the errors are those of amdsmi 7.0.2.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from lorawatch.machine import amd
from lorawatch.machine.amd import OFF, RETRY, SLOW, AmdCollector
from lorawatch.records import Card

GIB = 2**30


class AmdSmiLibraryException(Exception):  # noqa: N818 - as the library calls it
    def __init__(self, code: int, text: str = "AMDSMI_STATUS_NOT_SUPPORTED - Feature not supported") -> None:
        super().__init__(code)
        self.err_code = code
        self.err_info = text

    def __str__(self) -> str:
        return f"Error code:\n\t{self.err_code} | {self.err_info}"


class AmdSmiMemoryType(IntEnum):
    VRAM = 0
    VIS_VRAM = 1
    GTT = 2


class AmdSmiTemperatureType(IntEnum):
    EDGE = 0
    HOTSPOT = 1


class AmdSmiTemperatureMetric(IntEnum):
    CURRENT = 0


class Smi:
    """What the library offers that is used here; ``answers`` holds what a call returns, or the code it fails with."""

    AmdSmiMemoryType = AmdSmiMemoryType
    AmdSmiTemperatureType = AmdSmiTemperatureType
    AmdSmiTemperatureMetric = AmdSmiTemperatureMetric

    def __init__(self, cards: int = 1) -> None:
        self.cards = cards
        self.failing: Exception | None = None
        self.calls: list[str] = []
        self.answers: dict[str, Any] = {
            "amdsmi_get_gpu_device_uuid": "a8ff74a1-0000-1000-80a1-e4c5d7b2f0aa",
            "amdsmi_get_gpu_asic_info": {"market_name": "AMD Instinct MI300X", "vendor_id": "0x1002"},
            "amdsmi_get_gpu_memory_total": 192 * GIB,
            "amdsmi_get_gpu_memory_usage": 100 * GIB,
            "amdsmi_get_gpu_vram_usage": {"vram_total": 196_592, "vram_used": 102_400},
            "amdsmi_get_gpu_activity": {"gfx_activity": 83, "umc_activity": 40, "mm_activity": "N/A"},
            "amdsmi_get_power_info": {
                "socket_power": 612, "current_socket_power": 612, "average_socket_power": "N/A", "gfx_voltage": "N/A",
                "soc_voltage": "N/A", "mem_voltage": "N/A", "power_limit": 750,
            },
            "amdsmi_get_power_cap_info": {
                "power_cap": 750_000_000, "default_power_cap": 750_000_000, "dpm_cap": 0, "min_power_cap": 0,
                "max_power_cap": 750_000_000,
            },
            "amdsmi_get_gpu_total_ecc_count": {"correctable_count": 4, "uncorrectable_count": 1, "deferred_count": 0},
            "amdsmi_get_temp_metric 0": 2,
            "amdsmi_get_temp_metric 1": 71,
        }  # fmt: skip

    def amdsmi_init(self) -> None:
        self.calls.append("amdsmi_init")
        if self.failing is not None:
            raise self.failing

    def amdsmi_shut_down(self) -> None:
        self.calls.append("amdsmi_shut_down")

    def amdsmi_get_processor_handles(self) -> list[object]:
        return [object() for _ in range(self.cards)]

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name not in {key.split()[0] for key in self.answers}:
            raise AttributeError(name)

        def call(_handle: object, *arguments: Any) -> Any:
            self.calls.append(name)
            key = f"{name} {arguments[0]:d}" if name == "amdsmi_get_temp_metric" else name
            answer = self.answers[key]
            fails = isinstance(answer, int) and answer < 60
            if fails:
                raise AmdSmiLibraryException(answer)
            return answer

        return call


class Clock:
    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def smi() -> Smi:
    return Smi()


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def collector(smi: Smi, clock: Clock) -> AmdCollector:
    return AmdCollector(library=smi, clock=clock)


def test_a_look_tells_a_card_in_the_units_of_the_record(collector: AmdCollector) -> None:
    assert collector.look() == [
        Card(
            0,
            "a8ff74a1-0000-1000-80a1-e4c5d7b2f0aa",
            "AMD Instinct MI300X",
            memory_total=192 * GIB,
            memory_used=100 * GIB,
            utilization=0.83,
            utilization_lowest=0.83,
            power=612.0,
            power_limit=750.0,
            temperature=71.0,
            ecc_uncorrected=1,
            ecc_corrected=4,
            vendor="amd",
        )
    ]
    assert collector.problems == ()


def test_an_older_card_tells_the_average_power_and_the_temperature_at_its_edge(
    smi: Smi, collector: AmdCollector
) -> None:
    smi.answers |= {
        "amdsmi_get_power_info": {"current_socket_power": "N/A", "average_socket_power": 290, "power_limit": 300},
        "amdsmi_get_power_cap_info": {"power_cap": 300},
        "amdsmi_get_temp_metric 0": 60,
    }
    (seen,) = collector.look()
    assert (seen.power, seen.power_limit, seen.temperature) == (290.0, 300.0, 60.0)


@pytest.mark.parametrize(
    ("call", "field"),
    [
        ("amdsmi_get_gpu_activity", "utilization"),
        ("amdsmi_get_power_info", "power"),
        ("amdsmi_get_power_cap_info", "power_limit"),
        ("amdsmi_get_temp_metric 1", "temperature"),
        ("amdsmi_get_gpu_total_ecc_count", "ecc_uncorrected"),
    ],
)
@pytest.mark.parametrize("answer", [2, 30, "N/A", {}, None])
def test_what_is_not_told_is_none_and_the_rest_is_read(
    smi: Smi, collector: AmdCollector, call: str, field: str, answer: Any
) -> None:
    smi.answers[call] = answer
    (seen,) = collector.look()
    assert getattr(seen, field) is None
    assert seen.memory_used == 100 * GIB
    assert sum(getattr(seen, name) is not None for name in ("utilization", "power", "temperature")) >= 2


@pytest.mark.parametrize("missing", [0xFFFF, 2**32 - 1, 2**64 - 1])
def test_the_largest_number_stands_for_none(smi: Smi, collector: AmdCollector, missing: int) -> None:
    smi.answers |= {
        "amdsmi_get_gpu_activity": {"gfx_activity": missing},
        "amdsmi_get_power_info": {"current_socket_power": missing, "average_socket_power": missing},
        "amdsmi_get_gpu_total_ecc_count": {"uncorrectable_count": missing, "correctable_count": 0},
    }
    (seen,) = collector.look()
    assert (seen.utilization, seen.power, seen.ecc_uncorrected, seen.ecc_corrected) == (None, None, None, 0)


def test_a_library_without_the_newer_calls_is_read_by_the_older_one(smi: Smi, collector: AmdCollector) -> None:
    del smi.answers["amdsmi_get_gpu_memory_total"], smi.answers["amdsmi_get_gpu_memory_usage"]
    (seen,) = collector.look()
    assert (seen.memory_total, seen.memory_used) == (196_592 * 2**20, 100 * GIB)


def test_what_is_not_supported_is_not_asked_for_again_for_a_while_and_what_failed_is(
    smi: Smi, collector: AmdCollector, clock: Clock
) -> None:
    smi.answers["amdsmi_get_gpu_activity"] = 2
    smi.answers["amdsmi_get_power_info"] = 30
    for _ in range(5):
        collector.look()
        clock.now += 1
    assert (smi.calls.count("amdsmi_get_gpu_activity"), smi.calls.count("amdsmi_get_power_info")) == (1, 5)
    clock.now += OFF
    collector.look()
    assert smi.calls.count("amdsmi_get_gpu_activity") == 2


def test_what_hardly_changes_is_asked_for_every_ten_seconds(smi: Smi, collector: AmdCollector, clock: Clock) -> None:
    for _ in range(3 * int(SLOW)):
        collector.look()
        clock.now += 1
    assert smi.calls.count("amdsmi_get_gpu_asic_info") == 3
    assert smi.calls.count("amdsmi_get_power_info") == 30


def test_a_library_that_does_not_start_is_said_once_and_tried_again_after_a_minute(
    smi: Smi, collector: AmdCollector, clock: Clock
) -> None:
    smi.failing = AmdSmiLibraryException(34, "AMDSMI_STATUS_DRIVER_NOT_LOADED - Driver not loaded")
    for _ in range(3):
        assert collector.look() == []
    assert smi.calls.count("amdsmi_init") == 1
    smi.failing = None
    clock.now += RETRY
    assert len(collector.look()) == 1
    (problem,) = collector.problems
    assert problem == (
        "no readings of AMD GPUs (Error code: 34 | AMDSMI_STATUS_DRIVER_NOT_LOADED - Driver not loaded); "
        "tried again every 60 s"
    )


def test_cards_without_a_uuid_are_told_apart(collector: AmdCollector, smi: Smi) -> None:
    smi.cards = 2
    smi.answers["amdsmi_get_gpu_device_uuid"] = 2
    assert [one.uuid for one in collector.look()] == ["amd-0", "amd-1"]


def test_closing_lets_go_of_the_driver_once(smi: Smi, collector: AmdCollector) -> None:
    collector.close()
    collector.look()
    collector.close()
    collector.close()
    assert smi.calls.count("amdsmi_shut_down") == 1


def test_without_a_card_the_library_is_not_even_imported_and_with_one_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "amdsmi", ModuleType("amdsmi"))
    monkeypatch.setattr(amd, "_DEVICE", tmp_path / "kfd")
    assert amd._library.__wrapped__() is None
    (tmp_path / "kfd").touch()
    assert amd._library.__wrapped__() is sys.modules["amdsmi"]
    monkeypatch.setitem(sys.modules, "amdsmi", None)
    assert amd._library.__wrapped__() is None
