"""The rule hw/throttle."""

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

REASONS = {
    "hw_thermal": "the hardware slows it down for its temperature",
    "power_brake": "the power supply asked it to slow down",
    "hw_slowdown": "the hardware slows it down (temperature, power brake, or too high a draw)",
    "sw_thermal": "the driver slows it down for its temperature",
}
"""Reasons that are a fault, the most telling first, and what each means (NVML, clocks event reasons)."""
HARDWARE = frozenset({"hw_thermal", "power_brake", "hw_slowdown"})
"""Those at which the clocks fall to half or less."""
THERMAL = frozenset({"hw_thermal", "sw_thermal"})


@dataclass(slots=True)
class HwThrottle(Rule):
    """A card works below its clocks, because it is too hot or is not given the power.

    ## Why it matters
    Each step takes longer, for as long as the cause stays, and in a run over several cards all wait for the slowest.
    The loss curve shows nothing of it.

    ## How it decides
    Over 30 s of readings in which the card was at work (utilization above 50 %), and over no fewer than 3 looks: at
    half of the looks or more the driver gave one of `sw_thermal`, `hw_thermal`, `hw_slowdown` or `power_brake` as the
    reason for lower clocks. The driver's own slowdown is a warning, the hardware's three are critical. A power cap
    (`sw_power_cap`) and idling are how cards normally run. A high temperature counts only together with one of these:
    cards differ in what they bear.

    ## What to change
    Air: fans, filters, blanking plates, the neighbour that blows its heat in. A power limit a little lower is often
    faster than a card that swings between full and halved clocks. For a power brake the supply and its cables.

    ## Known false alarms
    The hardware's bits may show for an instant when the card changes its performance state: hence half of the looks.

    ## Sources
    NVML documents the reasons, that the hardware's reduce the clocks by a factor of 2 or more, and that they may blip.
    TraceML warns at 85 °C. The share and the time are choices without another authority. Not tried on a card that
    throttles: the public GPU traces tell no reasons.
    """

    id: ClassVar[str] = "hw/throttle"
    title: ClassVar[str] = "GPU is throttled"
    severity: ClassVar[Severity] = Severity.WARNING
    judges = (GpuReading,)
    suppresses: ClassVar[tuple[str, ...]] = ("perf/slowdown",)

    share: float = param(0.5, unit="share of the looks", help="Share at which a reason must have held.")
    window: float = param(30.0, unit="s", help="Seconds at work to look back over.")
    busy: float = param(0.5, unit="utilization", help="Utilization from which a card is at work.")
    cards: dict[str, dict[str, Share]] = state(dict)

    def missing(self, run: Run) -> tuple[str, ...]:
        """The reasons for lower clocks, and the utilization."""
        return () if self.cards else ("reasons for lower clocks, and utilization, of a card",)

    def judge(self, reading: GpuReading, run: Run) -> Breach | None:
        """Follow the share of each reason of each card; tell of the worst."""
        worst: tuple[bool, float, str, Card] | None = None
        count = 0
        for card in reading.cards:
            found = self._reason(card, reading)
            if found is not None:
                count += 1
                worst = max(worst, found, key=lambda one: one[:2]) if worst else found
        return None if worst is None else self._breach(worst[2], worst[1], worst[3], count, reading)

    def _reason(self, card: Card, reading: GpuReading) -> tuple[bool, float, str, Card] | None:
        reasons, work = card.throttled, card.utilization
        if reasons is None or work is None or card.lost:
            return None
        shares = self.cards.get(card.uuid)
        if shares is None:
            if len(self.cards) >= MOST_CARDS:
                return None
            shares = self.cards[card.uuid] = {name: Share() for name in REASONS}
        if not work > self.busy:
            return None
        limit = self.share * self.easing
        found: tuple[bool, float, str, Card] | None = None
        for name, one in shares.items():
            one.add(
                reading.time, reading.seconds, card.samples, reasons.get(name, 0.0), window=self.window, least=3
            )  # fmt: skip
            if one.covered < self.window or one.looks < 3 or not one.value >= limit:
                continue
            if found is None or (name in HARDWARE, one.value) > found[:2]:
                found = (name in HARDWARE, one.value, name, card)
        return found

    def _breach(self, reason: str, share: float, card: Card, count: int, reading: GpuReading) -> Breach:
        others = [one.temperature for one in reading.cards if one is not card and one.temperature is not None]
        summary = f"{label(card)}: {REASONS[reason]}, at {100 * share:.0f} % of the looks at work"
        lost = None
        if card.sm_clock is not None and card.max_sm_clock is not None and card.max_sm_clock > 0:
            lost = 1.0 - card.sm_clock / card.max_sm_clock
            summary += f"; {card.sm_clock / 1e9:.2f} of at most {card.max_sm_clock / 1e9:.2f} GHz"
        if card.temperature is not None:
            summary += f", {card.temperature:.0f} °C"
            if others:
                summary += f" (the hottest of the others {max(others):.0f} °C)"
        if count > 1:
            summary += f"; {count - 1} more like it"
        return Breach(
            summary,
            {"card": card.index, "uuid": card.uuid, "reason": reason, "share": share, "clock_lost": lost,
             "sm_clock_hz": card.sm_clock, "max_sm_clock_hz": card.max_sm_clock, "celsius": card.temperature,
             "hottest_other_celsius": max(others, default=None), "power_watts": card.power,
             "power_limit_watts": card.power_limit, "cards": count},
            Severity.CRITICAL if reason in HARDWARE else None,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """By the reason: air, or power."""
        evidence = breach.evidence
        index, lost = evidence["card"], evidence["clock_lost"]
        gain = f"up to {100 * lost:.0f} % of its clock is lost" if lost else "its clock is lowered"
        if evidence["reason"] == "power_brake":
            return [look("the power supply of the machine, its cables and its limits", gain, confidence="high")]
        celsius, other = evidence["celsius"], evidence["hottest_other_celsius"]
        alone = celsius is not None and other is not None and celsius - other >= 10
        place = (
            "this card's fan, filter and place: the others are cooler" if alone else "the air that comes in, and fans"
        )
        air = look(place, gain, confidence="high")
        watts = evidence["power_limit_watts"]
        limit = look(
            f"a lower power limit: nvidia-smi -i {index} -pl {0.9 * watts:.0f} (now {watts:.0f} W; as root)"
            if watts else f"a lower power limit: nvidia-smi -i {index} -pl WATTS (as root)",
            "steady clocks a little lower are often faster than full ones that are halved again and again",
        )  # fmt: skip
        if evidence["reason"] in THERMAL:
            return [air, limit]
        return [air, look("the power supply of the machine, its cables and its limits", gain), limit]
