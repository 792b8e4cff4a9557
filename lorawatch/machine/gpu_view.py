"""What one run sees of the machine's GPUs: its own cards, and who holds their memory."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING

import msgspec
import psutil

from lorawatch.machine.card_looks import merge, own_memory, told_apart
from lorawatch.machine.cuda_visible import Visible, visible_cards
from lorawatch.machine.problems import Problems
from lorawatch.records import Card, GpuReading

if TYPE_CHECKING:
    from lorawatch.machine.gpus import GpuSampler

KEPT = 64
"""Looks that wait for a view's next reading; of more, the two oldest are made one."""
_LONGEST_NAME = 64

Look = list[Card]


class GpuView:
    """What one run sees of the machine's GPUs.

    Attributes:
        visible: The run's CUDA_VISIBLE_DEVICES; may be changed, when another process takes over the run.
        order: Its CUDA_DEVICE_ORDER.
        pids: Its processes, for readings that are not told better.
    """

    def __init__(self, sampler: GpuSampler, visible: str | None, pids: Collection[int], order: str | None) -> None:
        self.visible = visible
        self.order = order
        self.pids = pids
        self._sampler = sampler
        self._lock = threading.Lock()
        self._looks: list[Look] = []
        self._last: float | None = None
        self._chosen: tuple[str | None, list[str]] | None = None
        self._missing: set[int] = set()
        self._names: dict[int, str] = {}
        self._problems = Problems()

    @property
    def problems(self) -> Sequence[str]:
        """What cannot be told of the run's cards, and what cannot be read of the machine's; each is said once."""
        return [*self._sampler.problems, *self._problems.lines]

    def add(self, look: Look) -> None:
        """Keep a look for the next reading; called by the sampler."""
        with self._lock:
            self._looks.append(look)
            if len(self._looks) > KEPT:
                self._looks[:2] = [_merged(self._looks[:2])]

    def reading(self, now: float, own_pids: Collection[int] | None = None) -> GpuReading | None:
        """What was seen of the run's cards since the last reading; None when there was nothing, or a driver hangs.

        Args:
            now: Unix time of the reading.
            own_pids: The run's processes: trainer and ranks. Empty when they are not known.
        """
        if self._sampler.hangs():
            return None
        with self._lock:
            looks, self._looks = self._looks, []
        by_key = _by_key(looks)
        chosen = self._choose(by_key)
        if not chosen:
            return None
        own = frozenset(self.pids if own_pids is None else own_pids)
        known = self._pids_known(looks, own)
        cards = [self._card(by_key[key], own, known) for key in chosen]
        named = {process.pid for card in cards for process in card.processes}
        self._names = {pid: name for pid, name in self._names.items() if pid in named}
        last, self._last = self._last, now
        return GpuReading(now, cards, 0.0 if last is None else max(now - last, 0.0))

    def _card(self, looks: Sequence[Card], own: Collection[int], known: bool) -> Card:
        card = merge(looks)
        held = [own_memory(look, own) for look in looks] if known else []
        return msgspec.structs.replace(
            card,
            own_memory=max((memory for memory in held if memory is not None), default=None),
            processes=told_apart(card.processes, own, known, self._name),
        )

    def _choose(self, by_key: Mapping[str, Sequence[Card]]) -> list[str]:
        """Keys of the run's cards. They are kept once all are known: the driver counts anew when it loses a card."""
        if self._chosen is not None and self._chosen[0] == self.visible:
            there = [key for key in self._chosen[1] if key in by_key]
            if there:
                return there
        cards = [looks[-1] for looks in by_key.values()]
        if not cards:
            return []
        visible = visible_cards(self.visible, cards, self._sampler.aliases)
        self._say_what_is_odd(visible, cards)
        keys = [_key(card) for card in visible.cards]
        if self.visible is not None and not visible.stopped_at:
            self._chosen = self.visible, keys
        return keys

    def _say_what_is_odd(self, visible: Visible, cards: Sequence[Card]) -> None:
        value = f"CUDA_VISIBLE_DEVICES={(self.visible or '')[:100]}"
        if visible.stopped_at:
            seen = len(visible.cards)
            self._problems.say(
                f"{value}: {visible.stopped_at!r} names no card, or one that is already named; by that the run sees "
                f"{'no card' if not seen else 'one card' if seen == 1 else f'{seen} cards'}"
            )
        if visible.by_index and self.order != "PCI_BUS_ID" and len({card.name for card in cards}) > 1:
            self._problems.say(
                f"{value} may count the fastest card first, where the driver's order is taken here; "
                "set CUDA_DEVICE_ORDER=PCI_BUS_ID to be sure which cards it means"
            )

    def _pids_known(self, looks: Sequence[Look], own: Collection[int]) -> bool:
        """Whether the driver's pids are those of this machine, as far as one can see.

        Of another namespace is said only when the same pid is missing at two readings: a process may just have ended.
        """
        named = {process.pid for look in looks for card in look for process in card.processes}
        if not named.isdisjoint(own):
            self._missing = set()
            return True
        latest = {process.pid for card in looks[-1] for process in card.processes}
        missing = {pid for pid in latest if not psutil.pid_exists(pid)}
        if missing & self._missing:
            self._problems.say(
                "GPU process ids are of another pid namespace (a container): "
                "which process holds the memory cannot be told"
            )
        self._missing = missing
        return not missing

    def _name(self, pid: int) -> str:
        name = self._names.get(pid)
        if name is None:
            try:
                name = psutil.Process(pid).name()
            except (psutil.Error, OSError, ValueError):  # gone, or not ours to see
                name = ""
            name = "".join(letter for letter in name[:_LONGEST_NAME] if letter.isprintable())
            self._names[pid] = name
        return name


def _key(card: Card) -> str:
    return card.uuid or f"{card.vendor} {card.index}"


def _by_key(looks: Sequence[Look]) -> dict[str, list[Card]]:
    """The looks at each card, oldest first."""
    found: dict[str, list[Card]] = {}
    for look in looks:
        for card in look:
            found.setdefault(_key(card), []).append(card)
    return found


def _merged(looks: Sequence[Look]) -> Look:
    return [merge(cards) for cards in _by_key(looks).values()]
