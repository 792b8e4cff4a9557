"""The rule perf/padding-waste."""

from __future__ import annotations

import math
from collections import Counter, deque
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import Step
from lorawatch.remedies import length_grouped, look
from lorawatch.rule import param, state
from lorawatch.run import LANGUAGE_MODELLING, PREFERENCE, REINFORCEMENT, Kind, Run
from lorawatch.step_rule import EVERY, StepRule

WINDOW = 25
"""Micro-batches that it is told from."""


@dataclass(slots=True)
class PerfPaddingWaste(StepRule):
    """Much of each batch is padding, on which the GPU computes for nothing.

    ## Why it matters
    A batch is as long as its longest sequence. Where lengths differ much, most of its tokens are padding: they take
    memory and time like real ones, and teach nothing.

    ## How it decides
    One minus tokens over padded tokens, summed over the last 25 micro-batches that were counted (at least 10 steps):
    information from 30 %, a warning from 50 %. The callback counts every eighth step, so that 25 stand for 200, the
    catalogue's number. It needs batches with an attention mask, as the callback sees them, and
    does not judge a run that states `packing` or `padding_free`.

    ## What to change
    Where every step is padded to one and the same length: pad to the longest of each batch instead; grouping by length
    changes nothing then. Otherwise
    `packing=True` or `padding_free=True` with FlashAttention, in TRL; or `train_sampling_strategy="group_by_length"`,
    after which the loss goes up and down with the lengths. The step can become `1 / (1 - w)` times as fast at most;
    elsewhere, 30 % of padding brought down to 3 % gave 7.6 % more tokens a second.

    ## Known false alarms
    Attention kernels that skip padding, and models so small that padding costs next to nothing.

    ## Sources
    30 and 50 % are the rule catalogue's (52 to 57, a choice). ms-swift #10111: padding of 29.65 % down to 3.34 % gave
    7.6 % more tokens a second. That grouping by length makes the loss periodic: qlora #228, transformers #20810.
    """

    id: ClassVar[str] = "perf/padding-waste"
    title: ClassVar[str] = "Much of the batches is padding"
    severity: ClassVar[Severity] = Severity.WARNING
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind) - REINFORCEMENT

    info: float = param(0.30, unit="ratio", help="Share of padding that is worth a word.")
    warning: float = param(0.50, unit="ratio", help="Share of padding that is a warning.")
    sizes: deque[tuple[int, int]] = state(deque)
    tokens: int = state(int)
    padded: int = state(int)

    def missing(self, run: Run) -> tuple[str, ...]:
        """Sizes of enough batches, of a run that pads."""
        if _unpadded(run):
            return ("padded batches: the run packs them or goes without padding",)
        needed, known = _window(run), len(self.sizes)
        if known >= needed:
            return ()
        return self.unseen(run) or (f"tokens and padding of {needed} steps ({known} so far)",)

    def take(self, step: Step) -> bool:
        """Keep the sizes of a step's batches."""
        tokens, padded = step.tokens, step.padded_tokens
        if tokens is None or padded is None or not 0 <= tokens <= padded or padded == 0:
            return False
        self.sizes.append((tokens, padded))
        self.tokens += tokens
        self.padded += padded
        return True

    def decide(self, run: Run) -> Breach | None:
        """Compare the share of padding with the limits."""
        sizes, count = self.sizes, _window(run)
        while len(sizes) > count:
            tokens, padded = sizes.popleft()
            self.tokens -= tokens
            self.padded -= padded
        if len(sizes) < count:
            return None
        waste = 1.0 - self.tokens / self.padded
        if waste < self.info * self.eased or _unpadded(run):
            return None
        severity, told = Severity.WARNING if waste >= self.warning else Severity.INFO, self.verdict
        if told is not None and told.severity is not None and severity <= told.severity:
            return told
        return self._breach(waste, severity)

    def _breach(self, waste: float, severity: Severity) -> Breach:
        sizes = self.sizes
        count, speedup = len(sizes), 1.0 / (1.0 - waste) if waste < 1.0 else math.inf
        size, times = Counter(size for _, size in sizes).most_common(1)[0]
        constant = times >= 0.9 * count  # an epoch's last batch is smaller
        return Breach(
            f"{100 * waste:.0f} % of the tokens in the batches are padding (mean of {count} steps"
            + (f"): each is padded to {size} tokens, however short its rows are" if constant else
               f"); without it a step could be {speedup:.2g} times as fast at most"),
            {"padding": waste, "steps": count, "padded_tokens_a_step": self.padded / count, "constant_length": constant,
             "best_speedup": speedup},
            severity,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Dynamic padding, packing, or batches of one length, by what the run does and its trainer can."""
        gain = "elsewhere, 30 % of padding brought down to 3 % gave 7.6 % more tokens/s"
        advice: list[Adjustment] = []
        constant = breach.evidence["constant_length"]
        if not constant:
            gain = f"at most {breach.evidence['best_speedup']:.2g} times as fast; {gain}"
        if constant:
            advice.append(
                look(
                    "pad each batch to its own longest sequence: tokenise without padding=\"max_length\", and let the "
                    "collator pad (DataCollatorForSeq2Seq, DataCollatorWithPadding)",
                    "every step is padded to the same length, whatever its sequences are", confidence="high",
                )
            )  # fmt: skip
        trainer = str(run.fact("trainer_class", ""))
        framework = str(run.fact("framework", ""))
        if run.kind in LANGUAGE_MODELLING and (trainer == "SFTTrainer" or framework):
            advice.append(
                Adjustment(
                    "packing", current=run.fact("packing"), proposed=True, apply="restart",
                    confidence="low" if constant else "medium",  # rows that hold padding are packed with it
                    why=f"fills each row with whole sequences instead of padding; {gain}",
                    cost="FlashAttention, which keeps the sequences apart; fewer, larger steps, so that the learning "
                    "rate and the number of epochs may need another look",
                )
            )  # fmt: skip
        if trainer in ("SFTTrainer", "DPOTrainer"):
            advice.append(
                look(
                    "set padding_free=True (TRL 0.16 or newer, with FlashAttention)",
                    f"the same batches, laid end to end without padding; {gain}",
                )
            )  # fmt: skip
        micro_batch = run.number("per_device_train_batch_size") or 2.0
        if not constant and not length_grouped(run) and run.kind not in PREFERENCE and micro_batch > 1:
            advice.append(
                Adjustment(
                    "train_sampling_strategy", current=run.fact("train_sampling_strategy"), proposed="group_by_length",
                    apply="restart", confidence="medium", why=f"puts sequences of like length together; {gain}",
                    cost="the loss goes up and down with the lengths; the longest batches come first, where memory "
                    "shows at once whether they fit",
                )
            )  # fmt: skip
        return advice


def _window(run: Run) -> int:
    """Counted steps that hold 25 micro-batches, at least as many as lie between two decisions."""
    return max(EVERY, math.ceil(WINDOW / min(max(run.number("gradient_accumulation_steps") or 1.0, 1.0), WINDOW)))


def _unpadded(run: Run) -> bool:
    return run.fact("packing") is True or run.fact("padding_free") is True
