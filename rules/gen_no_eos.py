"""The rule gen/no-eos."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.lora.sample_pairs import MISSING_BASE, count, paired, quoted
from lorawatch.records import Judged, Sample, SampleReading
from lorawatch.remedies import look
from lorawatch.rule import Rule, param
from lorawatch.run import Run


@dataclass(slots=True)
class GenNoEos(Rule):
    """Greedy replies do not end: they run on to the limit of new tokens, where the base model's end by themselves.

    ## Why it matters
    Nobody can use a model that does not stop. The usual cause is that the end token was never trained on: masked as
    padding, or cut off at `max_length`.

    ## How it decides
    Of the replies to task prompts half or more do not end, with room for at least twice the 95th percentile of the
    reference replies' lengths, and less than 20 % of the base model's replies to the same prompts do not end. From 90 %
    on it is critical. Without reference replies the room cannot be told, and the rule abstains.

    ## What to change
    See that the labels hold the end token (`lorawatch preflight` shows rows with what is trained on): a padding token
    that is not the end token, a larger `max_length`, a chat template that marks the end of a turn as part of the reply.

    ## Known false alarms
    A model that is taught to think at length before it answers, from prompts whose reference replies are short.
    A base model that does not end its replies either hides the fault: then only the label audit shows it.

    ## Sources
    Rule catalogue G2 (the share of 50 %, the room, the base model's 20 %); trl issues 976 and 1623: a padding token
    equal to the end token masks it. The 90 % are a choice without another authority.
    """

    id: ClassVar[str] = "gen/no-eos"
    title: ClassVar[str] = "Generated replies do not end"
    severity: ClassVar[Severity] = Severity.WARNING
    judges: ClassVar[tuple[type[Judged], ...]] = (SampleReading,)

    share: float = param(0.5, unit="share of replies", help="Share of unended replies that is a warning.")
    critical: float = param(0.9, unit="share of replies", help="Share of unended replies that is critical.")
    base_share: float = param(0.2, unit="share of replies", help="Share of the base model's replies that may not end.")
    room: float = param(2.0, unit="ratio", help="New tokens allowed, over the reference replies' 95th percentile.")

    def missing(self, run: Run) -> tuple[str, ...]:
        """Replies of the base model, references, and room beside these."""
        reading = run.samples
        if reading is None:
            return ()
        pairs = paired(reading, run).get("task")
        if not pairs:
            return (MISSING_BASE,)
        long = _usual_length([sample for sample, _ in pairs])
        if long is None:
            return ("reference replies to the task prompts",)
        if reading.max_new_tokens < self.room * long:
            return (f"room for replies: {reading.max_new_tokens} new tokens, references take {long}",)
        return ()

    def judge(self, reading: SampleReading, run: Run) -> Breach | None:
        """Count replies to task prompts that were cut by the limit."""
        pairs = paired(reading, run).get("task", [])
        long = _usual_length([sample for sample, _ in pairs])
        if long is None or reading.max_new_tokens < self.room * long:
            return None
        counts = count("task", pairs, lambda sample: not sample.ended)
        share = counts.tuned / counts.pairs
        if share < self.share * self.easing or counts.base >= self.base_share * counts.pairs:
            return None
        return Breach(
            f"{counts.words} do not end within {reading.max_new_tokens} tokens; 95 % of the references have "
            f"{long} or fewer",
            {"unended": counts.tuned, "base_unended": counts.base, "replies": counts.pairs,
             "max_new_tokens": reading.max_new_tokens, "reference_tokens_95": long,
             "example": None if counts.example is None else quoted(counts.example.output)},
            Severity.CRITICAL if share >= self.critical else None,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """The labels of the end token, in the three places where they get lost."""
        advice = [
            look(
                "whether the labels hold the end token: lorawatch preflight shows the replies of three rows with what "
                "is trained on",
                "a model learns to stop only where its end token is trained on", confidence="high",
            )
        ]  # fmt: skip
        labels = run.labels
        if labels is None or labels.pad_is_eos is not False:
            advice.append(
                Adjustment(
                    "pad_token", proposed="a token that is not the end token", confidence="medium", apply="restart",
                    why="where padding and end token are one, masking the padding masks the end",
                )
            )  # fmt: skip
        if labels is None or labels.truncated_rows:
            length = run.number("max_length")
            advice.append(
                Adjustment(
                    "max_length", current=length, proposed=int(2 * length) if length else "twice as long",
                    direction="up", confidence="medium", apply="restart", cost="memory",
                    why="a row that is cut at max_length has lost its end token",
                )
            )  # fmt: skip
        return advice


def _usual_length(samples: list[Sample]) -> int | None:
    """95th percentile of the reference replies' tokens; None where there are none."""
    lengths = sorted(sample.reference_tokens for sample in samples if sample.reference_tokens is not None)
    return lengths[math.ceil(0.95 * len(lengths)) - 1] if lengths else None
