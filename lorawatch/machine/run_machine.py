"""The machine under one run: once a second it is looked at, every ten seconds it is told what was seen."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lorawatch.machine.gpu_view import GpuView
from lorawatch.machine.host import HostSampler, Progress
from lorawatch.records import Card, GpuReading, Reading

READING_SECONDS = 10.0
"""Seconds between two readings: what is judged is also written down, and a reading of eight cards takes 3 KiB."""
FIRST_SECONDS = 2.0
"""Seconds from the first reading, which has no rates yet, to the second; from then on each pause is twice as long."""


class RunMachine:
    """Joins what is seen of one run's cards and of its host.

    Args:
        host: Looks at host and processes.
        gpus: The run's view of the cards; None for no look at them.
        seconds: Seconds between two readings.
    """

    def __init__(self, host: HostSampler, gpus: GpuView | None, *, seconds: float = READING_SECONDS) -> None:
        self.host = host
        self.gpus = gpus
        self._seconds = seconds
        self._pause = min(FIRST_SECONDS, seconds)
        self._told_at: float | None = None
        self._ours: set[str] = set()
        self._note = ""

    @property
    def problems(self) -> Sequence[str]:
        """What cannot be read, one line each."""
        found = [*self.host.problems, *(self.gpus.problems if self.gpus is not None else ())]
        return [*found, self._note] if self._note else found

    def tick(self, now: float, progress: Progress) -> list[Reading]:
        """Look once; gives the readings when they are due. To be called about once a second.

        Args:
            now: Unix time in seconds.
            progress: How far the run is.
        """
        if self._told_at is not None and 0 <= now - self._told_at < self._pause:
            self.host.look()
            return []
        if self._told_at is not None:
            self._pause = min(2.0 * self._pause, self._seconds)
        self._told_at = now
        found: list[Reading] = []
        host = self.host.reading(now, progress)
        if self.gpus is not None:
            seen = self.gpus.reading(now, self.host.pids)
            if seen is not None:
                cards = self._of_the_run(seen)
                if cards:
                    found.append(msgspec.structs.replace(seen, cards=cards))
        found.append(host)  # last: it is the tick at which a rule may ask what the cards did
        return found

    def _of_the_run(self, seen: GpuReading) -> list[Card]:
        """The cards that the run uses, of those that it may see; none where that cannot be told.

        A card counts as the run's once its processes held memory there, and stays so when it is lost.
        """
        cards = seen.cards
        self._ours |= {card.uuid for card in cards if card.own_memory or any(one.own for one in card.processes)}
        if self._ours:
            return [card for card in cards if card.uuid in self._ours]
        if len(cards) == 1:
            return cards
        told = any(one.own is not None for card in cards for one in card.processes)
        if self.host.trainer is not None and (told or not any(card.processes for card in cards)):
            return []  # it has not touched a GPU yet
        if self.gpus is not None and self.gpus.visible is not None:
            return cards
        self._note = (
            f"which of {len(cards)} GPUs the run uses cannot be told; set CUDA_VISIBLE_DEVICES for the run, "
            "or use the callback"
        )
        return []
