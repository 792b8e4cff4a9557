"""The rule mem/headroom."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.cards import MOST_CARDS, card_of, desktop, label, size, strangers, unused_cache
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.memory_remedies import batch_tokens, larger_micro_batch, less_memory
from lorawatch.records import Card, GpuReading
from lorawatch.remedies import is_adapter, larger_rank, look
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run
from lorawatch.spans import Lasting

OTHERS = 0.10
"""Share of a card from which the memory of others may be all that is wrong: what should be free at least."""


class _Memory:
    """What is remembered of one card."""

    __slots__ = ("busiest", "critical", "low", "roomy")

    def __init__(self) -> None:
        self.busiest: float | None = None
        self.low = Lasting()
        self.critical = Lasting()
        self.roomy = Lasting()


@dataclass(frozen=True, slots=True)
class _State:
    """How one card stands now."""

    card: Card
    total: int
    used: int
    exact: bool
    busiest: float | None
    idle: bool
    lasted: float
    severity: Severity | None

    @property
    def free(self) -> float:
        return 1.0 - self.used / self.total


@dataclass(slots=True)
class MemHeadroom(Rule):
    """A card has too little memory free, or far too much.

    ## Why it matters
    The next batch that is longer than all before it ends a run that has no memory to spare, hours in. Keep 10 to 20 %
    free. A card that is half empty, on the other hand, often trains faster with a larger micro-batch.

    ## How it decides
    Of what the driver says is in use, the part that torch only keeps for reuse is taken away: reserved, less the most
    that was ever in tensors at once. That is `(peak allocated + used - reserved) / total`. Torch's figures come from
    the callback; of a card without them the driver's figure stands, torch's cache included, and the finding says so.

    - Less than 10 % free for 60 s (for 120 s where no kernel has run yet, because a model may be loading): a warning.
      Less than 3 % for as long: critical, where torch's own figures say it.
    - More than 40 % free for 10 minutes on every card while it trains, with the card at work and long batches seen
      (half of `max_length` times the micro-batch, where that is known): information.

    The peak is that of the process. The finding resolves when the cache is given back and what is in use falls, when
    another process goes, or in a new process. Cards that the run holds no memory of are not judged, nor is unified
    memory.

    ## What to change
    Where another process holds a tenth of the card or more, that, and nothing else where it is enough. Where only the
    driver's figure is known: see first how much of it is torch's cache. Then in order of what it costs, with the saving
    for this model: expandable segments (not where torch's own figures stand, which leave out what they spare), Liger's
    kernels, activation checkpointing, half the micro-batch with twice the accumulation, shorter sequences, an 8-bit
    optimizer, a 4-bit base, and half the rank, which frees the least. What draws the screen of a desktop takes a few
    hundred MiB.

    ## Known false alarms
    vLLM inside the trainer takes its share by design. Without the callback, torch's cache fills a card that has room:
    then it warns at most. A peak from loading the model (a conversion on the card) counts as long as torch
    keeps that memory.

    ## Sources
    The user's guide keeps 10 to 20 % free; TraceML warns at 92 % of the step's peak and is critical at 97 %. Replayed
    on GPU traces of 19 public runs, which tell the driver's figure only: no warning on the 7 that are labelled healthy,
    a warning on the 2 whose label says that memory is low, 60 and 120 s after it fell below 10 %. The limits are as
    they were before; the 120 s for a card without work were added on seeing the trace of a card that another process
    held. That critical needs torch's figures follows from one of them: it trained for 10 hours at 97.8 %, and finished.
    """

    id: ClassVar[str] = "mem/headroom"
    title: ClassVar[str] = "GPU memory headroom is off target"
    severity: ClassVar[Severity] = Severity.WARNING
    judges = (GpuReading,)

    low: float = param(0.10, unit="share of the card", help="Free memory below which it warns.")
    lowest: float = param(0.03, unit="share of the card", help="Free memory below which it is critical.")
    roomy: float = param(0.40, unit="share of the card", help="Free memory above which it is worth a word.")
    lasting: float = param(60.0, unit="s", help="Time for which memory must have been low.")
    roomy_for: float = param(600.0, unit="s", help="Time for which every card must have had room.")
    idle_for: float = param(120.0, unit="s", help="That time on a card on which nothing ever ran: a model may load.")
    cards: dict[str, _Memory] = state(dict)
    longest: int = state(int)
    told: str = state(str)

    def missing(self, run: Run) -> tuple[str, ...]:
        """What a card must tell: how much memory it has, and how much of it is in use."""
        return () if self.cards else ("memory total and use of a card",)

    def judge(self, reading: GpuReading, run: Run) -> Breach | None:
        """Judge each card, and tell of the worst."""
        if run.timing is not None:
            sizes = (step.largest_micro_batch or 0 for step in run.timing.steps)
            self.longest = max(self.longest, max(sizes, default=0))
        tight = self.low / (self.easing if self.told == "low" else 1.0)
        states = [one for card in reading.cards if (one := self._state(card, reading.time, tight, run)) is not None]
        short = [one for one in states if one.severity is not None]
        if short:
            self.told = "low"
            return self._low(min(short, key=lambda one: (-(one.severity or 0), one.free)), short)
        if self.easing < 1.0 and self.told == "low":
            return None  # first let that finding resolve
        roomy = self.roomy * (self.easing if self.told == "roomy" else 1.0)
        room = [self._has_room(one, reading.time, roomy, run) for one in states]
        if room and all(room):
            self.told = "roomy"
            return self._roomy(min(states, key=lambda one: one.free))
        return None

    def _state(self, card: Card, time: float, tight: float, run: Run) -> _State | None:
        total, used = card.memory_total, card.memory_used
        if total is None or used is None or total <= 0 or used < 0 or card.lost:
            return None
        if card.own_memory == 0 and not card.utilization:
            return None  # the run does not use it
        memory = self.cards.get(card.uuid)
        if memory is None:
            if len(self.cards) >= MOST_CARDS:
                return None
            memory = self.cards[card.uuid] = _Memory()
        if card.utilization is not None:
            memory.busiest = max(memory.busiest or 0.0, card.utilization)
        known = run.allocator is not None and card_of(run.allocator, run.gpu) is card
        if known and run.allocator is not None:
            used = max(used - unused_cache(run.allocator), 0)
        free = 1.0 - used / total
        idle = memory.busiest is not None and memory.busiest < 0.02 and not strangers(card)[0]
        low = memory.low.held(free < tight, time, self.idle_for if idle else self.lasting)
        lowest = memory.critical.held(free < self.lowest, time, self.lasting)
        severity = Severity.WARNING if low else None
        if low and lowest and known:
            severity = Severity.CRITICAL
        since = time if memory.low.since is None else memory.low.since
        return _State(card, total, used, known, memory.busiest, idle and not card.own_memory, time - since, severity)

    def _has_room(self, one: _State, time: float, roomy: float, run: Run) -> bool:
        full = batch_tokens(run)
        seen = not self.longest or full is None or self.longest >= 0.5 * full
        holds = run.training and one.free > roomy and (one.busiest or 0.0) > 0.5 and seen
        return self.cards[one.card.uuid].roomy.held(holds, time, self.roomy_for)

    def _low(self, worst: _State, short: list[_State]) -> Breach:
        card, (others, holder), screen = worst.card, strangers(worst.card), desktop(worst.card)
        summary = f"{label(card)} has {_percent(worst.free)} of its {size(worst.total)} free"
        summary += " at the peak of a step" if worst.exact else ", torch's reusable cache counted as used"
        summary += f", for {worst.lasted:.0f} s: keep 10 to 20 %"
        if holder is not None:
            name = f" ({holder.name})" if holder.name else ""
            summary += f"; process {holder.pid}{name}, not of this run, holds {size(holder.memory or 0)}"
        elif worst.idle:
            summary += "; no kernel has run on it since it is watched: the memory is probably not this run's"
        if screen:
            summary += f"; the desktop takes {size(screen)}"
        if len(short) > 1:
            summary += f"; {len(short) - 1} more like it"
        evidence = {
            "card": card.index, "uuid": card.uuid, "free": worst.free, "used_bytes": worst.used,
            "total_bytes": worst.total, "torch_known": worst.exact, "other_bytes": others, "desktop_bytes": screen,
            "other_pid": holder.pid if holder else None, "other_name": holder.name if holder else None,
            "idle": worst.idle, "free_by_card": {str(one.card.index): one.free for one in short},
        }  # fmt: skip
        return Breach(summary, evidence, worst.severity)

    def _roomy(self, fullest: _State) -> Breach:
        card = fullest.card
        return Breach(
            f"much of the memory is unused: {label(card)} has {_percent(fullest.free)} of its "
            f"{size(fullest.total)} free"
            + (" even at the peak" if fullest.exact else "")
            + f", for {self.roomy_for / 60:.0f} min of training"
            + (", and no card of the run has less" if len(self.cards) > 1 else ""),
            {"card": card.index, "uuid": card.uuid, "free": fullest.free, "used_bytes": fullest.used,
             "total_bytes": fullest.total, "torch_known": fullest.exact, "utilization": card.utilization},
            Severity.INFO,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Whose memory it is first; then what lowers the peak, in order of cost. With much room: a larger batch."""
        evidence = breach.evidence
        if "other_bytes" not in evidence:
            return self._use_it(breach, run)
        first: list[Adjustment] = []
        elsewhere = "stop it, or run on another card (CUDA_VISIBLE_DEVICES)"
        if evidence["other_bytes"]:
            name = f" ({evidence['other_name']})" if evidence["other_name"] else ""
            first.append(
                look(
                    f"process {evidence['other_pid']}{name} is not of this run: {elsewhere}",
                    f"without the memory of others {size(evidence['other_bytes'])} more would be free",
                    confidence="high",
                )
            )
        elif evidence["idle"]:
            first.append(
                look(
                    f"nvidia-smi shows whose memory it is; where it is another process: {elsewhere}",
                    "memory that is held while no kernel runs does not come from training", confidence="medium",
                )
            )  # fmt: skip
        share = evidence["other_bytes"] / evidence["total_bytes"]
        if evidence["idle"] or (share >= OTHERS and evidence["free"] + share >= self.low):
            return first  # it is not this run that must change
        screen = evidence["desktop_bytes"]
        last = look("draw the screen with another card", f"the desktop takes {size(screen)} of this", confidence="low")
        exact = evidence["torch_known"]
        own = less_memory(run, float(self.longest) or None, segments=not exact)
        if not exact:
            first.append(
                look(
                    "add LoraWatchCallback, or look at torch.cuda.memory_summary(), before anything is changed",
                    "part of this may be torch's reusable cache, and no shortage: the driver cannot tell them apart",
                    confidence="high",
                )
            )  # fmt: skip
            own = [dataclasses.replace(one, confidence="low") for one in own]
        return [*first, *own, *([last] if screen else [])]

    def _use_it(self, breach: Breach, run: Run) -> list[Adjustment]:
        utilization = breach.evidence["utilization"]
        busy = utilization is None or utilization > 0.8
        why = "more rows at once fill the GPU better"
        if busy and utilization is not None:
            why += f"; at {100 * utilization:.0f} % utilization the gain is likely small"
        return [
            *larger_micro_batch(run, why, busy=busy),
            *(
                larger_rank(run, "there is memory for it, should the loss show that capacity lacks")
                if is_adapter(run)
                else ()
            ),
            look(
                "longer sequences, where rows are cut off at max_length", "there is memory for them", confidence="low"
            ),
        ]


def _percent(share: float) -> str:
    return f"{100 * max(share, 0.0):.0f} %"
