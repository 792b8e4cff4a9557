"""The rule gen/loop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.lora.sample_pairs import MISSING_BASE, Counts, paired, quoted, rose, worst
from lorawatch.lora.text_signs import REPEATED_SHARE, is_structured, loop_at_end, repeated_share
from lorawatch.records import Judged, Sample, SampleReading
from lorawatch.remedies import look, lower_rate
from lorawatch.rule import Rule, param
from lorawatch.run import Run


@dataclass(slots=True)
class GenLoop(Rule):
    """Greedy replies run into a loop: their end repeats itself exactly.

    ## Why it matters
    A model that loops is of no use, however low its loss is. The loss does not show it: each repeated token is easy to
    predict, so a loop in the training data even lowers the loss.

    ## How it decides
    A reply loops when the end of its last 400 tokens is exactly periodic: a period of 60 tokens at most, three times or
    more, over 30 % of the text. The share of looping replies, less the base model's share on the same prompts, is at
    least 20 % (and at least two replies): a warning; from 50 % on critical. The adapter is switched off for the base
    model's replies. Many repeated 4-grams (more than half of all, in prose) without an exact loop are information.

    ## What to change
    Read the replies in the training data: repeated sentences or rows joined without an end teach it. If the data is
    clean, the learning rate is too high or the run too long for so few rows.

    ## Known false alarms
    Songs, litanies and other texts that repeat on purpose, where the base model does not write them.

    ## Sources
    Rule catalogue G1. Exactly periodic ends were in 0.0 % of real English, Chinese, code and JSON there; zlib's
    compression ratio, by which Whisper looks for loops, took 43 % of Python code for one. The shares of 20 % and 50 %
    are choices without another authority. That many 4-grams repeat is `rep-4` of Welleck et al. 2020.
    """

    id: ClassVar[str] = "gen/loop"
    title: ClassVar[str] = "Generated replies loop"
    severity: ClassVar[Severity] = Severity.WARNING
    judges: ClassVar[tuple[type[Judged], ...]] = (SampleReading,)

    share: float = param(0.2, unit="share of replies", help="Rise over the base model's share that is a warning.")
    critical: float = param(0.5, unit="share of replies", help="Rise over the base model's share that is critical.")

    def missing(self, run: Run) -> tuple[str, ...]:
        """Replies of the base model."""
        return () if run.samples is None or paired(run.samples, run) else (MISSING_BASE,)

    def judge(self, reading: SampleReading, run: Run) -> Breach | None:
        """Count exact loops, and failing these repeated 4-grams."""
        counts = worst(reading, run, _loops)
        if counts is not None and rose(counts, self.share * self.easing):
            return self._breach(counts)
        counts = worst(reading, run, _repeats)
        if counts is not None and rose(counts, self.share * self.easing):
            return Breach(
                f"{counts.words} repeat more than half of their 4-grams",
                {"repeating": counts.tuned, "base_repeating": counts.base, "replies": counts.pairs,
                 "example": quoted(counts.example.output) if counts.example else None},
                Severity.INFO,
            )  # fmt: skip
        return None

    def _breach(self, counts: Counts) -> Breach:
        example = counts.example
        loop = loop_at_end(example.output) if example is not None else None
        summary = f"{counts.words} end in a loop"
        if loop is not None:
            summary += f"; one repeats {quoted(loop.period, 60)!r} {loop.repeats:.0f} times"
        return Breach(
            summary,
            {"looping": counts.tuned, "base_looping": counts.base, "replies": counts.pairs, "rise": counts.rise,
             "period": None if loop is None else quoted(loop.period), "repeats": None if loop is None else loop.repeats,
             "example": None if example is None else quoted(example.output)},
            Severity.CRITICAL if counts.rise >= self.critical else None,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """The data first: it teaches a loop at any learning rate."""
        return [
            look(
                "the replies in the training data: repeated sentences, or several rows joined without an end token",
                "a model loops where its data does, or where it never saw an end", confidence="high",
            ),
            lower_rate(
                run, 2, "where the data is clean, too large steps wear the base model's fluency away",
                confidence="low", apply="restart",
            ),
        ]  # fmt: skip


def _loops(sample: Sample) -> bool:
    return loop_at_end(sample.output) is not None


def _repeats(sample: Sample) -> bool:
    share = repeated_share(sample.output)
    return share is not None and share > REPEATED_SHARE and not is_structured(sample.output)
