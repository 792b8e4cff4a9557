"""What NVML tells of one device, field by field: a field that fails costs only itself.

A device is what a handle of NVML stands for: a card, or a MIG instance. Each field has one or more ways to be read, the
newest first, because older drivers lack some functions and newer ones will drop others.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any

from lorawatch.records import GpuProcess

pynvml: Any = importlib.import_module("pynvml")  # it brings no types

RETRY = 300.0
"""Seconds for which a device is not asked again for what it said it does not support."""
MOST_PROCESSES = 256
"""Processes of a device that are taken in."""
_NO_NUMBER = (0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF)
"""NVML_VALUE_NOT_AVAILABLE, of 32 and of 64 bits."""

Read = Callable[[Any], Any]


def _code(name: str) -> int:
    """An error code by its name in nvml.h; -1, which NVML never returns, where nvidia-ml-py does not know it yet."""
    return int(getattr(pynvml, f"NVML_ERROR_{name}", -1))


_UNSUPPORTED = {
    _code(name)
    for name in (
        "NOT_SUPPORTED", "NO_PERMISSION", "FUNCTION_NOT_FOUND", "ARGUMENT_VERSION_MISMATCH", "DEPRECATED",
        "VGPU_ECC_NOT_SUPPORTED",
    )
}  # fmt: skip
_LOST = {_code(name) for name in ("GPU_IS_LOST", "RESET_REQUIRED", "GPU_NOT_FOUND")}
_OVER = {_code(name) for name in ("UNINITIALIZED", "DRIVER_NOT_LOADED", "LIB_RM_VERSION_MISMATCH")}


class CardLostError(Exception):
    """The driver says that the card has fallen off the bus, or needs a reset before it can be used again."""


class DriverGoneError(Exception):
    """NVML as a whole no longer answers: the driver was unloaded or replaced. The argument says how NVML put it."""


def told(error: Exception) -> str:
    """What NVML calls an error, for a person."""
    try:
        return str(error)
    except Exception:  # the name of an unknown code is asked of the driver, which may be gone
        return f"error {getattr(error, 'value', '?')}"


def judge(error: Exception) -> int:
    """The code of an error of NVML that concerns one call.

    Raises:
        CardLostError: It concerns the whole card.
        DriverGoneError: It concerns all cards.
    """
    code = int(getattr(error, "value", -2))
    if code in _LOST:
        raise CardLostError from None
    if code in _OVER:
        raise DriverGoneError(told(error)) from None
    return code


def _missing(*_: Any) -> Any:
    raise pynvml.NVMLError(pynvml.NVML_ERROR_FUNCTION_NOT_FOUND)


def function(name: str) -> Callable[..., Any]:
    """A function of pynvml; where nvidia-ml-py lacks it, one that says so as an old driver does."""
    found: Callable[..., Any] = getattr(pynvml, name, _missing)
    return found


def _number(name: str, *arguments: Any, most: float, scale: float = 1.0) -> Read:
    """Reads a number; None for one beyond ``most``: drivers have returned nonsense where an error was due."""
    call = function(name)

    def read(handle: Any) -> float | None:
        value = call(handle, *arguments)
        return None if value > most else value * scale

    return read


def _whole(name: str, *arguments: Any) -> Read:
    call = function(name)

    def read(handle: Any) -> int | None:
        value: int = call(handle, *arguments)
        return None if value in _NO_NUMBER else value

    return read


def _memory(*version: int) -> Read:
    """Reads total, used and reserved bytes.

    What is used is the total less what is free: whether ``used`` holds the driver's reserve differs between the two
    versions of the call, and between NVIDIA's pages about the second.
    """
    call = function("nvmlDeviceGetMemoryInfo")

    def read(handle: Any) -> tuple[int, int, int | None] | None:
        info = call(handle, *version)
        total, free = info.total, info.free
        if total == 0 or total in _NO_NUMBER or free > total:  # memory that is the host's own: Jetson, GB10
            return None
        return total, total - free, info.reserved if version else None

    return read


def _utilization(handle: Any) -> float | None:
    percent = pynvml.nvmlDeviceGetUtilizationRates(handle).gpu
    return percent / 100.0 if percent <= 100 else None


def _processes(name: str) -> tuple[Read, ...]:
    """Ways to list processes. The call without a version is no way: it raises something else on an older driver."""
    return function(f"{name}_v3"), function(f"{name}_v2")


_SM = getattr(pynvml, "NVML_CLOCK_SM", 1)
_CORE = getattr(pynvml, "NVML_TEMPERATURE_GPU", 0)
_VOLATILE = getattr(pynvml, "NVML_VOLATILE_ECC", 0)
FIELDS: dict[str, tuple[Read, ...]] = {
    "memory": (_memory(getattr(pynvml, "nvmlMemory_v2", 0x02000028)), _memory()),
    "utilization": (_utilization,),
    "power": (_number("nvmlDeviceGetPowerUsage", scale=1e-3, most=1e8),),
    "temperature": (
        _number("nvmlDeviceGetTemperature", _CORE, most=250),
        _number("nvmlDeviceGetTemperatureV", _CORE, most=250),
    ),
    "sm_clock": (_number("nvmlDeviceGetClockInfo", _SM, scale=1e6, most=1e5),),
    "reasons": (
        function("nvmlDeviceGetCurrentClocksEventReasons"),
        function("nvmlDeviceGetCurrentClocksThrottleReasons"),
    ),
    "compute": _processes("nvmlDeviceGetComputeRunningProcesses"),
    "graphics": _processes("nvmlDeviceGetGraphicsRunningProcesses"),
    "mps": _processes("nvmlDeviceGetMPSComputeRunningProcesses"),
    "name": (function("nvmlDeviceGetName"),),
    "power_limit": (
        _number("nvmlDeviceGetEnforcedPowerLimit", scale=1e-3, most=1e8),
        _number("nvmlDeviceGetPowerManagementLimit", scale=1e-3, most=1e8),
    ),
    "max_sm_clock": (_number("nvmlDeviceGetMaxClockInfo", _SM, scale=1e6, most=1e5),),
    "ecc_uncorrected": (_whole("nvmlDeviceGetTotalEccErrors", 1, _VOLATILE),),
    "ecc_corrected": (_whole("nvmlDeviceGetTotalEccErrors", 0, _VOLATILE),),
    "remapped": (function("nvmlDeviceGetRemappedRows"),),
    "mig": (function("nvmlDeviceGetMigMode"),),
    "pcie_generation": (_whole("nvmlDeviceGetCurrPcieLinkGeneration"),),
    "pcie_width": (_whole("nvmlDeviceGetCurrPcieLinkWidth"),),
    "pcie_generation_max": (_whole("nvmlDeviceGetMaxPcieLinkGeneration"),),
    "pcie_width_max": (_whole("nvmlDeviceGetMaxPcieLinkWidth"),),
}
"""Field to the ways to read it, the preferred one first. Watts, hertz, degrees Celsius, bytes, shares of 1."""


class Device:
    """Asks one handle of NVML, and remembers what it does not offer.

    Attributes:
        answers: Calls that were answered since :meth:`begin`.
        failures: Calls since then that failed for another reason than not being supported.
    """

    __slots__ = ("_off", "_way", "answers", "failures", "handle")

    def __init__(self, handle: Any) -> None:
        self.handle = handle
        self.answers = 0
        self.failures = 0
        self._way: dict[str, int] = {}
        self._off: dict[str, float] = {}

    def begin(self) -> None:
        """Count answers and failures from here."""
        self.answers = self.failures = 0

    @property
    def silent(self) -> bool:
        """Whether it failed since :meth:`begin`, and answered nothing."""
        return self.failures > 0 and self.answers == 0

    def ask(self, field: str, now: float) -> Any:
        """A field, in the units of :data:`FIELDS`; None when it is not told.

        Raises:
            CardLostError: The card is lost.
            DriverGoneError: NVML as a whole no longer answers.
        """
        off = self._off
        if off and field in off:
            if now < off[field]:
                return None
            del off[field]
        ways = FIELDS[field]
        way = self._way.get(field, 0)
        while way < len(ways):
            try:
                value = ways[way](self.handle)
            except pynvml.NVMLError as error:
                if judge(error) not in _UNSUPPORTED:
                    self.failures += 1
                    return None
                way += 1
                self._way[field] = way
            except ValueError:  # a name that is no text
                self.failures += 1
                return None
            else:
                self.answers += 1
                return value
        self._way[field] = 0
        off[field] = now + RETRY
        return None

    def processes(self, now: float) -> list[GpuProcess]:
        """The processes that hold memory of it, each once, the largest first.

        A process that computes and draws is in two lists with the same figure, and so is a client of MPS.
        """
        memory: dict[int, int | None] = {}
        for field in ("compute", "graphics", "mps"):
            for one in self.ask(field, now) or ():
                used = one.usedGpuMemory
                if used in _NO_NUMBER:
                    used = None
                known = memory.get(one.pid)
                memory[one.pid] = used if known is None else max(known, used or 0)
        if not memory:
            return []
        found = [GpuProcess(pid, used) for pid, used in memory.items()]
        found.sort(key=lambda process: process.memory or 0, reverse=True)
        return found[:MOST_PROCESSES]
