"""One NVIDIA card, looked at once a second: what changes fast at each look, what changes slowly every ten seconds."""

from __future__ import annotations

import contextlib
from typing import Any

from lorawatch.machine.nvml_device import CardLostError, Device, function, judge, pynvml
from lorawatch.records import Card

SLOW = 10.0
"""Seconds between two looks at what hardly changes: names, limits, error totals, the PCIe link, MIG."""
SILENT_LOOKS = 3
"""Looks in a row at which a card answers nothing before it counts as lost: one may be a hiccup of the driver."""
BUSY = 0.5
"""Share of utilisation above which the PCIe link counts: an idle link is slowed down to save power."""
MOST_EVENTS = 32
"""Events of a card that are taken in at one look."""

# nvml.h: nvmlClocksEventReason*. Idle (0x1), settings of the user (0x2, 0x100) and syncing with the other cards (0x10)
# are no throttling.
_REASONS = (
    (0x4, "sw_power_cap"),
    (0x8, "hw_slowdown"),
    (0x20, "sw_thermal"),
    (0x40, "hw_thermal"),
    (0x80, "power_brake"),
)
_THROTTLING = sum(bit for bit, _ in _REASONS)
_ANY_INSTANCE = 0xFFFFFFFF
_XID = int(getattr(pynvml, "nvmlEventTypeXidCriticalError", 8))
_mig_count = function("nvmlDeviceGetMaxMigDeviceCount")
_mig_handle = function("nvmlDeviceGetMigDeviceHandleByIndex")
_gpu_instance = function("nvmlDeviceGetGpuInstanceId")
_compute_instance = function("nvmlDeviceGetComputeInstanceId")


def throttling(reasons: int | None) -> dict[str, float] | None:
    """What holds the clocks down at one look, by name; None where the card does not tell."""
    if reasons is None:
        return None
    return {name: 1.0 for bit, name in _REASONS if reasons & bit} if reasons & _THROTTLING else {}


class XidEvents:
    """The Xid errors that the driver raises for one card, with the GPU instance that each concerns."""

    def __init__(self, handle: Any) -> None:
        """Register for them.

        Raises:
            NVMLError: The driver does not tell them: not supported (vGPU, WSL), not permitted, or the card is lost.
        """
        self._set = pynvml.nvmlEventSetCreate()
        try:
            pynvml.nvmlDeviceRegisterEvents(handle, _XID, self._set)
        except pynvml.NVMLError:
            self.close()
            raise

    def poll(self) -> list[tuple[int, int]]:
        """Those raised since the last call, oldest first: Xid and GPU instance. Does not wait."""
        found: list[tuple[int, int]] = []
        try:
            while len(found) < MOST_EVENTS:
                event = pynvml.nvmlEventSetWait_v2(self._set, 0)
                if event.eventType & _XID:
                    found.append((event.eventData, event.gpuInstanceId))
        except pynvml.NVMLError:
            pass  # a timeout is how it says that there is no more; whatever else ails the card, its fields tell
        return found

    def close(self) -> None:
        """Ask for no more."""
        with contextlib.suppress(pynvml.NVMLError):
            pynvml.nvmlEventSetFree(self._set)


class MigInstance:
    """One MIG instance of a card."""

    def __init__(self, device: Device, uuid: str, name: str, alias: str, gpu_instance: int) -> None:
        self.device = device
        self.uuid = uuid
        self.name = name
        self.alias = alias
        self.gpu_instance = gpu_instance


class NvmlCard:
    """One card.

    Attributes:
        index: Its index in NVML's order.
        uuid: Its UUID; "" for a card that was lost before it could be told.
        lost: Whether it was lost at the last look.
        instances: Its MIG instances; None when it is not in MIG mode.
        events: Its Xid errors; None where they are not told.
    """

    def __init__(self, index: int, uuid: str, handle: Any, events: XidEvents | None = None) -> None:
        self.index = index
        self.uuid = uuid
        self.lost = False
        self.instances: list[MigInstance] | None = None
        self.events = events
        self._device = Device(handle)
        self._silent = 0
        self._facts: dict[str, Any] = {}
        self._due = 0.0
        self._link: tuple[int | None, int | None] = (None, None)
        self._link_due = 0.0

    @classmethod
    def gone(cls, index: int, uuid: str) -> NvmlCard:
        """A card that is known and that NVML gives no handle for any more."""
        card = cls(index, uuid, None)
        card.lost = True
        return card

    def look(self, now: float) -> list[Card]:
        """The card as it is now, or its MIG instances.

        Raises:
            DriverGoneError: NVML as a whole no longer answers.
        """
        xids = self.events.poll() if self.events is not None else []
        if self._device.handle is None:
            return self._as_lost(xids)
        self._device.begin()
        try:
            self._refresh(now)
            cards = [self._whole(now, xids)] if self.instances is None else self._parts(now, xids)
        except CardLostError:
            self.lost = True
            return self._as_lost(xids)
        self._silent = self._silent + 1 if self._device.silent else 0
        self.lost = self._silent >= SILENT_LOOKS
        return self._as_lost(xids) if self.lost else cards

    def close(self) -> None:
        """Let go of the driver."""
        if self.events is not None:
            self.events.close()
            self.events = None

    def _as_lost(self, xids: list[tuple[int, int]]) -> list[Card]:
        self._due = 0.0  # should it come back, nothing that was known of it need be true
        raised = [xid for xid, _ in xids]
        name = self._facts.get("name", "")
        if not self.instances:
            return [Card(self.index, self.uuid, name, lost=True, xids=raised)]
        return [Card(self.index, one.uuid, one.name, lost=True, xids=raised, mig=True) for one in self.instances]

    def _whole(self, now: float, xids: list[tuple[int, int]]) -> Card:
        ask = self._device.ask
        total, used, reserved = ask("memory", now) or (None, None, None)
        utilization = ask("utilization", now)
        generation, width = self._pcie(now, utilization)
        return Card(
            self.index,
            self.uuid,
            memory_total=total,
            memory_used=used,
            memory_reserved=reserved,
            processes=self._device.processes(now),
            utilization=utilization,
            utilization_lowest=utilization,
            power=ask("power", now),
            temperature=ask("temperature", now),
            sm_clock=ask("sm_clock", now),
            throttled=throttling(ask("reasons", now)),
            xids=[xid for xid, _ in xids],
            pcie_generation=generation,
            pcie_width=width,
            **self._facts,
        )

    def _parts(self, now: float, xids: list[tuple[int, int]]) -> list[Card]:
        # Chip and clocks are shared, and so are temperature and throttling. The power is the whole card's: it says
        # nothing of one instance. Utilisation is not told in MIG mode.
        temperature = self._device.ask("temperature", now)
        clock = self._device.ask("sm_clock", now)
        reasons = self._device.ask("reasons", now)
        shared = {name: value for name, value in self._facts.items() if name not in ("name", "power_limit")}
        cards: list[Card] = []
        for one in self.instances or ():
            one.device.begin()
            total, used, reserved = one.device.ask("memory", now) or (None, None, None)
            processes = one.device.processes(now)
            if one.device.silent:
                self._due = 0.0  # it was destroyed: what there is instead is seen at the next look
                continue
            cards.append(
                Card(
                    self.index,
                    one.uuid,
                    one.name,
                    memory_total=total,
                    memory_used=used,
                    memory_reserved=reserved,
                    processes=processes,
                    temperature=temperature,
                    sm_clock=clock,
                    throttled=throttling(reasons),
                    xids=[xid for xid, instance in xids if instance in (one.gpu_instance, _ANY_INSTANCE)],
                    mig=True,
                    **shared,
                )
            )
        return cards

    def _pcie(self, now: float, utilization: float | None) -> tuple[int | None, int | None]:
        """Generation and width of the link, as last seen while the card was busy, not longer than SLOW ago."""
        if now >= self._link_due:
            busy = utilization is not None and utilization > BUSY
            ask = self._device.ask
            self._link = (ask("pcie_generation", now), ask("pcie_width", now)) if busy else (None, None)
            if busy:
                self._link_due = now + SLOW
        return self._link

    def _refresh(self, now: float) -> None:
        if now < self._due:
            return
        self._due = now + SLOW
        ask = self._device.ask
        _, rows, pending, failure = ask("remapped", now) or (None, None, None, None)
        self._facts = {
            "name": ask("name", now) or self._facts.get("name", ""),
            "power_limit": ask("power_limit", now),
            "max_sm_clock": ask("max_sm_clock", now),
            "ecc_uncorrected": ask("ecc_uncorrected", now),
            "ecc_corrected": ask("ecc_corrected", now),
            "remapped_rows": rows,
            "remap_pending": None if pending is None else bool(pending),
            "remap_failure": None if failure is None else bool(failure),
            "pcie_generation_max": ask("pcie_generation_max", now),
            "pcie_width_max": ask("pcie_width_max", now),
        }
        mode = ask("mig", now)
        self.instances = self._find_instances(now) if mode and mode[0] == 1 else None

    def _find_instances(self, now: float) -> list[MigInstance]:
        """The MIG instances there are now, those known before with what is known of them."""
        known = {one.uuid: one for one in self.instances or ()}
        found: list[MigInstance] = []
        try:
            count = _mig_count(self._device.handle)
        except pynvml.NVMLError as error:
            judge(error)
            return found
        for index in range(count):
            try:
                handle = _mig_handle(self._device.handle, index)
                uuid = pynvml.nvmlDeviceGetUUID(handle)
                part, compute = _gpu_instance(handle), _compute_instance(handle)
            except pynvml.NVMLError as error:
                judge(error)  # most often there is no instance of that number
                continue
            one = known.get(uuid) or MigInstance(Device(handle), uuid, "", "", part)
            one.device.handle = handle
            one.name = one.device.ask("name", now) or self._facts["name"]
            one.gpu_instance = part
            one.alias = f"MIG-{self.uuid}/{part}/{compute}"
            found.append(one)
        return found
