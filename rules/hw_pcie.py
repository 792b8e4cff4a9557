"""The rule hw/pcie."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.cards import MOST_CARDS, label
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import Card, GpuReading
from lorawatch.remedies import look
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run
from lorawatch.spans import Share

LANE = {1: 0.25, 2: 0.5, 3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}
"""Gigabytes a second of one lane, one way, by generation (PCI-SIG's rates less their encoding)."""


@dataclass(slots=True)
class HwPcie(Rule):
    """A card is linked to the machine by fewer or slower lanes than card and slot can do.

    ## Why it matters
    What goes between machine and card takes longer: batches, offloaded optimizer state, gradients where the cards have
    no NVLink. A run that keeps everything on one card hardly notices.

    ## How it decides
    Over 60 s of readings in which the card was at work (utilization above 50 %): generation or width of the link is
    below what card and slot can do together, for 80 % of the time or more. Idle cards lower their link to save power.
    A warning where several ranks train, or offloading is stated; else information, for the run needs the link little.

    ## What to change
    Seat card and riser anew, look at the slot's width in the manual and at the firmware's setting.

    ## Known false alarms
    Virtual machines, and slots that share lanes, may report a maximum that was never there. A card behind Thunderbolt
    or another external box has four lanes at most, by design.

    ## Sources
    NVML reports the link and its maximum. Share and time are choices without another authority. Not tried on a card
    with a degraded link: the public GPU traces tell no maximum.
    """

    id: ClassVar[str] = "hw/pcie"
    title: ClassVar[str] = "PCIe link below its maximum"
    severity: ClassVar[Severity] = Severity.INFO
    judges = (GpuReading,)

    share: float = param(0.8, unit="share of the time", help="Share for which the link must be below its maximum.")
    window: float = param(60.0, unit="s", help="Seconds at work to look back over.")
    busy: float = param(0.5, unit="utilization", help="Utilization from which a card is at work.")
    cards: dict[str, Share] = state(dict)

    def missing(self, run: Run) -> tuple[str, ...]:
        """The link and its maximum."""
        return () if self.cards else ("PCIe link and its maximum, and utilization, of a card",)

    def judge(self, reading: GpuReading, run: Run) -> Breach | None:
        """Follow the share of the time with a lower link; tell of the narrowest."""
        low = [card for card in reading.cards if self._is_low(card, reading)]
        severity = Severity.WARNING if _needs_link(run) else Severity.INFO
        return self._breach(min(low, key=lambda card: _rate(card) or 0.0), low, severity) if low else None

    def _is_low(self, card: Card, reading: GpuReading) -> bool:
        below = _below(card)
        if below is None or card.utilization is None or card.lost:
            return False
        one = self.cards.get(card.uuid)
        if one is None:
            if len(self.cards) >= MOST_CARDS:
                return False
            one = self.cards[card.uuid] = Share()
        if not card.utilization > self.busy:
            return False
        one.add(reading.time, reading.seconds, card.samples, float(below), window=self.window, least=2)
        return one.covered >= self.window and one.value >= self.share * self.easing

    def _breach(self, card: Card, low: list[Card], severity: Severity) -> Breach:
        now, best = _rate(card), _rate(card, best=True)
        summary = (
            f"{label(card)} works over PCIe {_link(card.pcie_generation, card.pcie_width)}, where card and slot can do "
            f"{_link(card.pcie_generation_max, card.pcie_width_max)}"
        )
        if now is not None and best is not None:
            summary += f": {now:.0f} instead of {best:.0f} GB/s"
        if len(low) > 1:
            summary += f"; {len(low) - 1} more like it"
        return Breach(
            summary,
            {"card": card.index, "uuid": card.uuid, "generation": card.pcie_generation, "width": card.pcie_width,
             "generation_max": card.pcie_generation_max, "width_max": card.pcie_width_max, "gigabytes_a_second": now,
             "gigabytes_a_second_max": best, "cards": len(low)},
            severity,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Lanes are lost at the contacts, a slower generation at the riser or in the firmware."""
        evidence = breach.evidence
        width, width_max = evidence["width"], evidence["width_max"]
        narrow = width is not None and width_max is not None and width < width_max
        return [
            look(
                "with the machine off, seat card and riser anew; look at the slot's width in the manual"
                if narrow else "the riser, and the slot's generation in the firmware's settings",
                "matters where much goes over the link: offloading, several cards without NVLink",
            ),
            look(
                f"the link's state by nvidia-smi -q -i {evidence['card']}, and PCIe errors (AER) in dmesg",
                "a link that retrains after errors comes up slower", confidence="low",
            ),
        ]  # fmt: skip


def _needs_link(run: Run) -> bool:
    """Whether much goes over it: gradients of several ranks, or what is offloaded to the machine's memory."""
    ranks = 0 if run.host is None else sum(one.role != "worker" for one in run.host.processes)
    stated = " ".join(str(run.fact(name, "")) for name in ("deepspeed", "fsdp", "fsdp_config")).lower()
    offloads = "offload" in stated or run.fact("activation_offloading") is True
    return offloads or max(run.number("world_size") or 0.0, ranks) > 1


def _below(card: Card) -> bool | None:
    """Whether the link is below its maximum; None where neither generation nor width tells."""
    pairs = ((card.pcie_generation, card.pcie_generation_max), (card.pcie_width, card.pcie_width_max))
    known = [(now, best) for now, best in pairs if now is not None and best is not None and now > 0 and best > 0]
    return any(now < best for now, best in known) if known else None


def _rate(card: Card, *, best: bool = False) -> float | None:
    """Gigabytes a second, one way; None where generation or width is not known."""
    generation = card.pcie_generation_max if best else card.pcie_generation
    width = card.pcie_width_max if best else card.pcie_width
    lane = LANE.get(generation or 0)
    return None if lane is None or width is None else lane * width


def _link(generation: int | None, width: int | None) -> str:
    parts = [f"{generation}.0" if generation else "", f"x{width}" if width else ""]
    return " ".join(part for part in parts if part)
