"""Several looks at one card made into one: what a reading says of the time between it and the one before."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from typing import TypeVar

from lorawatch.records import Card, GpuProcess

MOST_XIDS = 32
"""Xid errors of a card that a reading keeps."""
MOST_PROCESSES = 8
"""Processes of a card that a reading keeps."""
T = TypeVar("T")
N = TypeVar("N", int, float)


def merge(looks: Sequence[Card]) -> Card:
    """One card out of looks at it, the oldest first, as the fields of :class:`~lorawatch.records.Card` say.

    Looks may be merged ones: they weigh as much as the looks that went into them. The processes are those of the look
    with the most memory in use, all of them.
    """
    if len(looks) == 1:
        return looks[0]
    last = looks[-1]
    weights = [card.samples for card in looks]

    def mean(values: Iterable[float | None]) -> float | None:
        known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
        return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None

    fullest = max(looks, key=lambda card: (bool(card.processes), card.memory_used or 0))
    return Card(
        last.index,
        last.uuid,
        _latest(card.name or None for card in looks) or "",
        lost=last.lost,
        samples=sum(weights),
        memory_total=_latest(card.memory_total for card in looks),
        memory_used=_highest(card.memory_used for card in looks),
        memory_reserved=_latest(card.memory_reserved for card in looks),
        processes=fullest.processes,
        utilization=mean(card.utilization for card in looks),
        utilization_lowest=min((one for card in looks if (one := card.utilization_lowest) is not None), default=None),
        power=mean(card.power for card in looks),
        power_limit=_latest(card.power_limit for card in looks),
        temperature=_highest(card.temperature for card in looks),
        sm_clock=mean(card.sm_clock for card in looks),
        max_sm_clock=_latest(card.max_sm_clock for card in looks),
        throttled=_shares(looks),
        ecc_uncorrected=_latest(card.ecc_uncorrected for card in looks),
        ecc_corrected=_latest(card.ecc_corrected for card in looks),
        remapped_rows=_latest(card.remapped_rows for card in looks),
        remap_pending=_latest(card.remap_pending for card in looks),
        remap_failure=_latest(card.remap_failure for card in looks),
        xids=[xid for card in looks for xid in card.xids][:MOST_XIDS],
        pcie_generation=_highest(card.pcie_generation for card in looks),
        pcie_generation_max=_latest(card.pcie_generation_max for card in looks),
        pcie_width=_highest(card.pcie_width for card in looks),
        pcie_width_max=_latest(card.pcie_width_max for card in looks),
        mig=last.mig,
        vendor=last.vendor,
    )


def own_memory(card: Card, own: Collection[int]) -> int | None:
    """Bytes that the processes ``own`` hold at one look; None where it cannot be told.

    A driver that lists no process at all tells nothing: in a container it may leave out even the run's own.
    """
    if not own or not card.processes:
        return None
    held = [process.memory for process in card.processes if process.pid in own]
    known = [memory for memory in held if memory is not None]
    return sum(known) if len(known) == len(held) else None


def told_apart(
    processes: Sequence[GpuProcess], own: Collection[int], known: bool, name: Callable[[int], str]
) -> list[GpuProcess]:
    """The largest processes, each with its name and whether it is of the run.

    Args:
        processes: Of one card.
        own: Pids of the run.
        known: Whether the driver's pids are the ones of this machine; else no process can be told.
        name: Name of the program of a pid.
    """
    largest = sorted(processes, key=lambda process: process.memory or 0, reverse=True)[:MOST_PROCESSES]
    if not known:
        return [GpuProcess(one.pid, one.memory, one.name) for one in largest]
    return [
        GpuProcess(one.pid, one.memory, one.name or name(one.pid), one.pid in own if own else None) for one in largest
    ]


def _latest(values: Iterable[T | None]) -> T | None:
    found: T | None = None
    for value in values:
        if value is not None:
            found = value
    return found


def _highest(values: Iterable[N | None]) -> N | None:
    return max((value for value in values if value is not None), default=None)


def _shares(looks: Sequence[Card]) -> dict[str, float] | None:
    """Reason to the share of the looks, of those that tell, at which it held the clocks down."""
    told = [card for card in looks if card.throttled is not None]
    if not told:
        return None
    total = sum(card.samples for card in told)
    shares: dict[str, float] = {}
    for card in told:
        for reason, share in (card.throttled or {}).items():
            shares[reason] = shares.get(reason, 0.0) + share * card.samples
    return {reason: share / total for reason, share in shares.items()}
