"""The rule hw/errors."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.cards import MOST_CARDS, label
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import Card, GpuReading
from lorawatch.remedies import look
from lorawatch.rule import Rule, state
from lorawatch.run import Run

_RESET = {
    46: "the GPU stopped processing", 48: "an uncorrectable memory error", 62: "the GPU's micro-controller halted",
    64: "a memory row could not be remapped", 95: "an uncontained memory error",
    109: "a context switch timed out", 110: "a security fault", 119: "its GSP firmware does not answer",
    120: "an error of its GSP firmware", 140: "an uncorrected memory error", 143: "the GPU could not be initialised",
    158: "a fatal timeout",
}  # fmt: skip
_LOST = {79: "the GPU has fallen off the bus"}
_RESTART = {94: "a contained memory error"}
_CRITICAL = _RESET | _LOST | _RESTART
_LINK = {
    74: "an NVLink error", **dict.fromkeys(range(144, 151), "an NVLink error"), 155: "an NVLink went down",
}  # fmt: skip
_WATCH = {
    63: "a memory row is to be remapped", 92: "a high rate of corrected memory errors",
    156: "a faulty part was retired", 157: "a faulty part could not be retired",
}  # fmt: skip
_WARNING = _LINK | _WATCH
_SOFTWARE = {
    13: "an exception in a kernel", 31: "a memory page fault", 32: "a corrupted push buffer",
    43: "a kernel was stopped", 45: "its work was removed after an earlier error, or the process was killed",
    69: "an illegal class of method",
}  # fmt: skip
MOST_CODES = 64
"""Different Xid numbers that are counted."""


@dataclass(frozen=True, slots=True)
class _Event:
    """One thing that went wrong with a card."""

    severity: Severity
    case: str
    card: Card
    what: str
    code: int | None = None


@dataclass(slots=True)
class HwErrors(Rule):
    """A card reports a fault: an Xid error of the driver, an uncorrectable memory error, or it is gone.

    ## Why it matters
    After some of these the process cannot go on, or hangs in a collective; after others the numbers cannot be trusted.
    Each hour on such a card is lost, and the next run on it may be too.

    ## How it decides
    At each reading, at once, from what is new since the first one: counts from before do not count.

    - Critical: the card is lost (Xid 79, or it no longer answers); Xid 48, 64, 94, 95, 140 (memory), 46, 62, 109, 110,
      119, 120, 143, 158 (the GPU or its firmware stopped); more uncorrectable memory errors; a row that failed to
      be remapped.
    - Warning: Xid 63 and a row that waits to be remapped, 92 (many corrected errors), 156, 157, and 74, 144–150, 155
      (NVLink); a failed remapping from before the run.
    - Information: Xid 13, 31, 32, 43, 45, 69, which programs cause; any other Xid; a row that waited before the run.

    The finding stays to the end of the run: only a reset of the card undoes it.

    ## What to change
    Save what can be saved, take the card out of use, reset it or restart the machine, and resume from the last
    checkpoint before the error, on another card. For errors of programs, the traceback.

    ## Known false alarms
    A process that is killed on the card raises Xid 45, or 43. Another process's faults (13, 31) show on a shared card.

    ## Sources
    What each Xid asks for is from NVIDIA's Xid catalogue: a reset for 46, 62, 64, 95, 109, 110, 119, 120, 140, 143
    and 158, a restart of the machine for 79, of the program for 94, nothing at once for 63 and 92. That 74 and 144–150
    warn only, though NVIDIA asks for a reset too, is because a run on one card does not need the link. Not tried on a
    faulty card.
    """

    id: ClassVar[str] = "hw/errors"
    title: ClassVar[str] = "GPU errors"
    severity: ClassVar[Severity] = Severity.WARNING
    judges = (GpuReading,)
    latched: ClassVar[bool] = True
    suppresses: ClassVar[tuple[str, ...]] = ("perf/stall",)

    before: dict[str, tuple[int | None, bool | None, bool | None]] = state(dict)
    counts: dict[int, int] = state(dict)

    def judge(self, reading: GpuReading, run: Run) -> Breach | None:
        """Look for what is new on each card; tell of the worst."""
        events: list[_Event] = []
        for card in reading.cards:
            events.extend(self._events(card))
        if not events:
            return None
        worst = max(events, key=lambda one: one.severity)
        return self._breach(worst, events)

    def _events(self, card: Card) -> Iterator[_Event]:
        if card.lost:
            yield _Event(Severity.CRITICAL, "lost", card, "the driver no longer reaches it")
        for code in card.xids:
            if code in self.counts or len(self.counts) < MOST_CODES:
                self.counts[code] = self.counts.get(code, 0) + 1
            yield _xid(code, card)
        known = self.before.get(card.uuid)
        if known is None and len(self.before) >= MOST_CARDS:
            return
        errors, pending, failure = known or (card.ecc_uncorrected, None, None)
        if errors is not None and card.ecc_uncorrected is not None and card.ecc_uncorrected > errors:
            more = card.ecc_uncorrected - errors
            yield _Event(
                Severity.CRITICAL, "reset", card, f"{more} more uncorrectable memory error" + ("s" if more > 1 else "")
            )
        if card.remap_failure and not failure:
            before = ", from before the run" if known is None else ""
            severity = Severity.WARNING if known is None else Severity.CRITICAL
            yield _Event(severity, "reset", card, f"a memory row could not be remapped{before}")
        elif card.remap_pending and not pending:
            before = ", from before the run" if known is None else ""
            severity = Severity.INFO if known is None else Severity.WARNING
            yield _Event(severity, "later", card, f"a memory row waits for a reset to be remapped{before}")
        self.before[card.uuid] = (
            errors if card.ecc_uncorrected is None else card.ecc_uncorrected,
            pending if card.remap_pending is None else card.remap_pending,
            failure if card.remap_failure is None else card.remap_failure,
        )

    def _breach(self, worst: _Event, events: list[_Event]) -> Breach:
        card = worst.card
        name = f"Xid {worst.code}: " if worst.code is not None else ""
        others = sorted({label(one.card) for one in events if one.card is not card})
        summary = f"{label(card)}: {name}{worst.what}"
        if others:
            summary += f"; errors on {', '.join(others[:4])} too"
        return Breach(
            summary,
            {"card": card.index, "uuid": card.uuid, "case": worst.case, "xid": worst.code,
             "events": [one.what for one in events[:16]],
             "xid_counts": {str(code): count for code, count in self.counts.items()},
             "ecc_uncorrected": card.ecc_uncorrected, "remapped_rows": card.remapped_rows},
            worst.severity,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """By the case: what to do with the run, and with the card."""
        index, case = breach.evidence["card"], breach.evidence["case"]
        reset = f"nvidia-smi -r -i {index} (as root; nothing may run on it)"
        elsewhere = look(
            "stop the run and resume from the last checkpoint before the error, on another card",
            "what the card computes from here on cannot be trusted, or never comes", confidence="high",
        )  # fmt: skip
        if case == "lost":
            return [
                elsewhere,
                look(
                    "take the machine out of use and restart it; then power, seating and temperature of the card",
                    "a card that fell off the bus comes back with a restart at best", confidence="high",
                ),
            ]  # fmt: skip
        if case == "reset":
            return [
                elsewhere,
                look(
                    f"take the card out of use and reset it: {reset}; dcgmi diag -r 3 before the next run on it",
                    "NVIDIA asks for a reset after this error; when it comes again, for a replacement",
                    confidence="high",
                ),
            ]  # fmt: skip
        if case == "restart":
            return [
                look(
                    "resume from the last checkpoint; the card may be used on",
                    "the error was kept to the program that it hit; the row is remapped at the next reset",
                    confidence="high",
                ),
                look(f"reset the card when it is convenient: {reset}", "the faulty row is then replaced"),
            ]  # fmt: skip
        if case == "later":
            return [
                look(
                    f"nothing now; when the run is over, {reset}",
                    "the driver has set the faulty memory aside: the run may go on", confidence="high",
                )
            ]  # fmt: skip
        if case == "link":
            return [
                look(
                    f"nvidia-smi nvlink -e -i {index}; where the run uses several cards, resume after a reset",
                    "collectives over a faulty link are slow, or hang",
                )
            ]  # fmt: skip
        return [
            look(
                "the traceback of the program, with CUDA_LAUNCH_BLOCKING=1; compute-sanitizer finds the kernel",
                "programs cause this: an index out of range, a faulty kernel; or the process was killed",
            )
        ]  # fmt: skip


def _xid(code: int, card: Card) -> _Event:
    if code in _CRITICAL:
        case = "lost" if code in _LOST else "restart" if code in _RESTART else "reset"
        return _Event(Severity.CRITICAL, case, card, _CRITICAL[code], code)
    if code in _WARNING:
        return _Event(Severity.WARNING, "link" if code in _LINK else "later", card, _WARNING[code], code)
    what = _SOFTWARE.get(code, "see NVIDIA's Xid catalogue")
    return _Event(Severity.INFO, "software", card, what, code)
