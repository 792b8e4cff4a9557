"""The rule mem/fragmentation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.cards import card_of, label, size
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.memory_remedies import empty_cache, expandable_segments
from lorawatch.records import StepTiming
from lorawatch.remedies import length_grouped
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run


@dataclass(slots=True)
class MemFragmentation(Rule):
    """Torch holds much memory in pieces that it cannot use, and has to give it back and ask anew.

    ## Why it matters
    Batches of many lengths leave the cache in pieces of many sizes. When none fits, torch hands everything back to the
    driver and tries again: the step waits for the device, and in the end it fails although the tensors would fit.

    ## How it decides
    From step 20 on, two things together: what torch held at most is above what was in tensors at most by more than 25 %
    of the card, and its allocator had to give memory back and try again, or raised an out-of-memory error, in the last
    200 steps.

    ## What to change
    Expandable segments: the allocator then grows one piece instead of keeping many. Emptying the cache every 50 steps,
    and batches grouped by length, which ask for fewer different sizes.

    ## Known false alarms
    A cache that is large because evaluation needed it once, together with a retry for another reason.

    ## Sources
    PyTorch's memory statistics define retries (`num_alloc_retries`) and out-of-memory errors (`num_ooms`): they are the
    deterministic sign. The 25 % is a choice without another authority. Not tried on a GPU by this project.
    """

    id: ClassVar[str] = "mem/fragmentation"
    title: ClassVar[str] = "GPU memory is fragmented"
    severity: ClassVar[Severity] = Severity.WARNING
    judges = (StepTiming,)
    suppresses: ClassVar[tuple[str, ...]] = ("mem/headroom",)

    unused: float = param(
        0.25, unit="share of the card", help="Memory held at most beyond what was in tensors at most."
    )
    settle: int = param(20, unit="steps", help="Steps at the start whose retries do not count.")
    recent: int = param(200, unit="steps", help="Steps for which a retry counts.")
    start: int | None = state(lambda: None)
    resumed: int | None = state(lambda: None)
    tries: int | None = state(lambda: None)
    before: int = state(int)
    last: int | None = state(lambda: None)
    judged: bool = state(bool)

    def missing(self, run: Run) -> tuple[str, ...]:
        """Torch's figures and the size of the card."""
        if run.timing is not None and run.allocator is None:
            return ("readings of torch's allocator (the callback takes them)",)
        return () if self.judged else ("memory total of the card (readings of the GPU)",)

    def judge(self, timing: StepTiming, run: Run) -> Breach | None:
        """Follow the retries; compare what is held with what was ever in use."""
        allocator = timing.allocator
        if allocator is None:
            return None
        if self.start is None or run.resumed_step != self.resumed:
            self.start, self.resumed = timing.step - timing.span, run.resumed_step
            self.tries = self.last = None  # another process
        count = allocator.alloc_retries + allocator.ooms
        if self.tries is None or count < self.tries or timing.step - self.start <= self.settle:
            self.before = count  # of the start, of another process
        elif count > self.tries:
            self.last = timing.step
        self.tries = count
        card = card_of(allocator, run.gpu)
        if card is None or card.memory_total is None or card.memory_total <= 0:
            return None
        self.judged = True
        unused = allocator.peak_reserved - allocator.peak_allocated
        recent = self.last is not None and 0 <= timing.step - self.last <= self.recent
        if not recent or unused <= self.unused * self.easing * card.memory_total:
            return None
        since = count - self.before
        return Breach(
            f"torch holds up to {size(allocator.peak_reserved)} of {label(card)}, {size(unused)} more than was ever in "
            f"tensors, and had to give memory back and try again {since} time{'s' if since != 1 else ''}, the last by "
            f"step {self.last}",
            {"unused_bytes": unused, "peak_reserved_bytes": allocator.peak_reserved,
             "peak_allocated_bytes": allocator.peak_allocated, "total_bytes": card.memory_total, "retries": since,
             "ooms": allocator.ooms, "last_retry_step": self.last, "card": card.index},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Expandable segments; an emptied cache; fewer different lengths."""
        unused = size(breach.evidence["unused_bytes"])
        cache = empty_cache(run, f"gives the pieces back before they are in the way: up to {unused}")
        found = [
            expandable_segments(
                run, f"made for this: torch then grows one piece instead of keeping many; up to {unused} to gain",
                confidence="high",
            )
        ]  # fmt: skip
        if cache is not None:
            found.append(cache)
        if not length_grouped(run) and run.fact("packing") is not True:
            found.append(
                Adjustment(
                    "train_sampling_strategy", current=run.fact("train_sampling_strategy"), proposed="group_by_length",
                    why="batches of like length ask for fewer different sizes", confidence="low", apply="restart",
                    cost="the loss shows a ripple with the length of the batches",
                )
            )  # fmt: skip
        return found
