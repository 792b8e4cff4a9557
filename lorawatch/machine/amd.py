"""Looks at AMD's GPUs through ``amdsmi``, the Python library that comes with ROCm, where it is installed.

Not tried on a card yet: written after the source of amdsmi 7.0.2 and the reference of 6.2 to 7.13. It tells memory,
activity, power and its cap, temperature, and memory errors; nothing else is asked.
"""

from __future__ import annotations

import contextlib
import importlib
import time
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

from lorawatch.machine.problems import Problems
from lorawatch.records import Card

RETRY = 60.0
"""Seconds between two attempts to start the library where it could not be started."""
OFF = 300.0
"""Seconds for which a card is not asked again for what it said it does not support."""
SLOW = 10.0
"""Seconds between two looks at what hardly changes: names, caps, error totals."""
_UNSUPPORTED = (2, 3, 10)
"""AMDSMI_STATUS_NOT_SUPPORTED, NOT_YET_IMPLEMENTED, NO_PERM."""
_MEBIBYTE = 2**20
_MICRO = 10_000
"""Watts that no card may draw: a cap beyond is in microwatts. The unit differs between releases."""


_DEVICE = Path("/dev/kfd")
"""What AMD's driver makes for computing."""


@cache
def _library() -> Any:
    """The module; None where it or the driver is not there."""
    # Without a driver it is not even tried: where amdsmi does not find ROCm it prints to the job's own output.
    try:
        return importlib.import_module("amdsmi") if _DEVICE.exists() else None
    except Exception:  # ImportError, or the KeyError with which it ends when it does not find ROCm
        return None


class AmdCollector:
    """AMD's cards, in the library's order."""

    vendor: ClassVar[str] = "amd"

    def __init__(self, *, library: Any = None, clock: Callable[[], float] = time.monotonic) -> None:
        """Make a collector; nothing is asked before the first look.

        Args:
            library: The module ``amdsmi``; given by tests.
            clock: Seconds that only go forward; given by tests.
        """
        self._smi = _library() if library is None else library
        self._clock = clock
        self._problems = Problems()
        self._cards: list[_AmdCard] | None = None
        self._retry_at = float("-inf")

    @staticmethod
    def available() -> bool:
        """Whether library and driver are there. Where they are not, nothing is said."""
        return _library() is not None

    @property
    def problems(self) -> Sequence[str]:
        """What cannot be read, one line each; each is said once."""
        return self._problems.lines

    def look(self) -> list[Card]:
        """Every card as it is now; empty without driver or card. Never raises for what the library says."""
        now = self._clock()
        if self._cards is None and now >= self._retry_at:
            self._retry_at = now + RETRY
            self._start()
        return [card.look(now) for card in self._cards or ()]

    def close(self) -> None:
        """Let go of the driver."""
        if self._cards is not None:
            self._cards = None
            with contextlib.suppress(Exception):
                self._smi.amdsmi_shut_down()

    def _start(self) -> None:
        try:
            self._smi.amdsmi_init()
            handles = self._smi.amdsmi_get_processor_handles()
        except Exception as error:
            reason = " ".join(str(error).split())  # its messages have several lines
            self._problems.say(f"no readings of AMD GPUs ({reason}); tried again every {RETRY:.0f} s", "start")
            return
        self._cards = [_AmdCard(self._smi, handle, index) for index, handle in enumerate(handles)]


class _AmdCard:
    """One card."""

    def __init__(self, smi: Any, handle: Any, index: int) -> None:
        self._smi = smi
        self._handle = handle
        self._index = index
        self._off: dict[str, float] = {}
        self._due = float("-inf")
        self._uuid = ""
        self._name = ""
        self._total: int | None = None
        self._cap: float | None = None
        self._errors: tuple[int | None, int | None] = (None, None)

    def look(self, now: float) -> Card:
        self._refresh(now)
        activity = _number(self._ask(now, "amdsmi_get_gpu_activity"), "gfx_activity")
        utilization = activity / 100.0 if activity is not None and activity <= 100 else None
        uncorrected, corrected = self._errors
        return Card(
            self._index,
            self._uuid or f"amd-{self._index}",
            self._name,
            memory_total=self._total,
            memory_used=self._memory(now, "usage", "vram_used"),
            utilization=utilization,
            utilization_lowest=utilization,
            power=self._power(now),
            power_limit=self._cap,
            temperature=self._temperature(now),
            ecc_uncorrected=uncorrected,
            ecc_corrected=corrected,
            vendor="amd",
        )

    def _refresh(self, now: float) -> None:
        if now < self._due:
            return
        self._due = now + SLOW
        self._uuid = str(self._ask(now, "amdsmi_get_gpu_device_uuid") or self._uuid)
        asic = self._ask(now, "amdsmi_get_gpu_asic_info")
        name = asic.get("market_name") if isinstance(asic, dict) else None
        self._name = name if isinstance(name, str) and name != "N/A" else self._name
        self._total = self._memory(now, "total", "vram_total") or None
        cap = _number(self._ask(now, "amdsmi_get_power_cap_info"), "power_cap")
        self._cap = None if not cap else cap / 1e6 if cap > _MICRO else float(cap)
        errors = self._ask(now, "amdsmi_get_gpu_total_ecc_count")
        self._errors = _number(errors, "uncorrectable_count"), _number(errors, "correctable_count")

    def _memory(self, now: float, call: str, key: str) -> int | None:
        """Bytes; from the older call, which counts in MiB, where the newer one is not told."""
        kind = getattr(getattr(self._smi, "AmdSmiMemoryType", None), "VRAM", None)
        told = self._ask(now, f"amdsmi_get_gpu_memory_{call}", kind)
        if isinstance(told, int):
            return told
        mebibytes = _number(self._ask(now, "amdsmi_get_gpu_vram_usage"), key)
        return None if mebibytes is None else mebibytes * _MEBIBYTE

    def _power(self, now: float) -> float | None:
        """Watts: the current draw on MI300 and newer, the average on other cards."""
        told = self._ask(now, "amdsmi_get_power_info")
        for key in ("current_socket_power", "average_socket_power"):
            watts = _number(told, key)
            if watts is not None and 0 < watts < _MICRO:
                return float(watts)
        return None

    def _temperature(self, now: float) -> float | None:
        """Degrees Celsius at the chip's edge; where there is no such sensor (MI300), at its hottest spot."""
        metrics = getattr(self._smi, "AmdSmiTemperatureMetric", None)
        for sensor in ("EDGE", "HOTSPOT"):
            kind = getattr(getattr(self._smi, "AmdSmiTemperatureType", None), sensor, None)
            told = self._ask(now, "amdsmi_get_temp_metric", kind, getattr(metrics, "CURRENT", None))
            if isinstance(told, int) and 0 < told < 250:
                return float(told)
        return None

    def _ask(self, now: float, name: str, *arguments: Any) -> Any:
        """What a function of the library returns; None where it fails."""
        key = f"{name}{arguments}"
        if now < self._off.get(key, float("-inf")):
            return None
        try:
            return getattr(self._smi, name)(self._handle, *arguments)
        except Exception as error:  # of several unrelated classes, and AttributeError from an older library
            if isinstance(error, AttributeError) or getattr(error, "err_code", None) in _UNSUPPORTED:
                self._off[key] = now + OFF
            return None


def _number(told: Any, key: str) -> int | None:
    """A whole number out of what the library returned; "N/A", and the largest of 16, 32 or 64 bits, are none."""
    value = told.get(key) if isinstance(told, dict) else None
    if isinstance(value, bool) or not isinstance(value, int):
        return None
    return None if value in (0xFFFF, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF) else value
