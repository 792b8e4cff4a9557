"""Looks at NVIDIA's GPUs through NVML, the library that comes with the driver (nvidia-ml-py)."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

from lorawatch.machine.nvml_card import NvmlCard, XidEvents
from lorawatch.machine.nvml_device import CardLostError, DriverGoneError, judge, pynvml, told
from lorawatch.machine.problems import Problems
from lorawatch.records import Card

RETRY = 60.0
"""Seconds between two attempts to start NVML, where it could not be started or a card is lost."""


class NvmlCollector:
    """NVIDIA's cards and MIG instances, in NVML's order.

    NVML is started at the first look, and anew every :data:`RETRY` seconds while it cannot be started or a card is
    lost: only a new start sees a driver that was loaded later, or a card that was reset.
    """

    vendor: ClassVar[str] = "nvidia"

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        """Make a collector; nothing is asked before the first look.

        Args:
            clock: Seconds that only go forward; given by tests.
        """
        self._clock = clock
        self._problems = Problems()
        self._cards: list[NvmlCard] = []
        self._started = False
        self._retry_at = float("-inf")

    @property
    def problems(self) -> Sequence[str]:
        """What cannot be read, one line each; each is said once."""
        return self._problems.lines

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names of MIG instances in CUDA_VISIBLE_DEVICES, to their UUIDs.

        ``MIG-GPU-<UUID of the card>/<GPU instance>/<compute instance>``, as drivers before R470 called them; and the
        card's own UUID, by which CUDA takes the first instance (NVIDIA's MIG user guide, *CUDA Device Enumeration*).
        """
        found: dict[str, str] = {}
        for card in self._cards:
            for one in card.instances or ():
                found[one.alias] = one.uuid
                found.setdefault(card.uuid, one.uuid)
        return found

    def look(self) -> list[Card]:
        """Every card and MIG instance as it is now; empty without driver or card. Never raises for what NVML says.

        A card that NVML has lost stands there with ``lost`` until it is back.
        """
        now = self._clock()
        if not self._ready(now):
            return []
        try:
            return [seen for card in self._cards for seen in card.look(now)]
        except DriverGoneError as error:
            self._give_up(now, f"the driver no longer answers ({error})")
            return []

    def close(self) -> None:
        """Let go of the driver."""
        if self._started:
            self._stop()

    def _ready(self, now: float) -> bool:
        lost = any(card.lost for card in self._cards)
        if self._started and not lost:
            self._retry_at = now + RETRY  # a card that is lost later is given that long
            return True
        if now < self._retry_at:
            return self._started
        self._retry_at = now + RETRY
        self.close()
        try:
            pynvml.nvmlInit()
            self._started = True
            self._cards = self._find_cards()
        except pynvml.NVMLError as error:
            self._give_up(now, _reason(error))
        except DriverGoneError as error:
            self._give_up(now, str(error))
        return self._started

    def _give_up(self, now: float, reason: str) -> None:
        self._retry_at = now + RETRY
        self.close()
        self._problems.say(f"no readings of NVIDIA GPUs: {reason}; tried again every {RETRY:.0f} s")

    def _stop(self) -> None:
        for card in self._cards:
            card.close()
        self._started = False
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlShutdown()

    def _find_cards(self) -> list[NvmlCard]:
        """The cards there are; those known from before that are no longer there are kept, as lost."""
        known = {card.index: card.uuid for card in self._cards}
        found: list[NvmlCard] = []
        for index in range(pynvml.nvmlDeviceGetCount()):
            try:
                handle = pynvml.nvmlDeviceGetHandleByIndex(index)
                uuid = pynvml.nvmlDeviceGetUUID(handle)
                found.append(NvmlCard(index, uuid, handle, self._events(index, handle)))
            except pynvml.NVMLError as error:
                try:
                    judge(error)
                except CardLostError:
                    found.append(NvmlCard.gone(index, known.get(index, "")))
                else:
                    self._problems.say(f"GPU {index} cannot be read ({told(error)}); it is left out", f"gpu {index}")
        there = {"", *(card.uuid for card in found)}
        return found + [NvmlCard.gone(card.index, card.uuid) for card in self._cards if card.uuid not in there]

    def _events(self, index: int, handle: Any) -> XidEvents | None:
        try:
            return XidEvents(handle)
        except pynvml.NVMLError as error:
            self._problems.say(f"Xid errors of GPU {index} are not told ({told(error)})", "xids")
            return None


def _reason(error: Exception) -> str:
    if getattr(error, "value", None) == pynvml.NVML_ERROR_LIBRARY_NOT_FOUND:
        return "the driver's library, libnvidia-ml.so.1, is not found"
    return f"NVML cannot be started ({told(error)})"
