"""Replies of the tuned model beside those of the base model to the same prompts, and how often a sign is in each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from lorawatch.records import Sample, SampleReading
from lorawatch.run import Run

LEAST_PAIRS = 4
"""Pairs of a kind of probe below which they are not judged."""
MISSING_BASE = "the base model's replies to the same prompts (an adapter that can be switched off)"
"""What a person is told that a rule on samples misses where there is nothing to hold them against."""

Pair = tuple[Sample, Sample]


@dataclass(frozen=True, slots=True)
class Counts:
    """How often a sign is in the tuned model's replies, and in the base model's.

    Attributes:
        probe: Which probes these are: ``task`` or ``general``.
        pairs: Prompts that both answered.
        tuned: Replies of the tuned model with the sign.
        base: Replies of the base model with it.
        example: A reply of the tuned model with it, to whose prompt the base model's is without it.
    """

    probe: str
    pairs: int
    tuned: int
    base: int
    example: Sample | None

    @property
    def rise(self) -> float:
        """Share of the replies with the sign, less the base model's."""
        return (self.tuned - self.base) / self.pairs

    @property
    def words(self) -> str:
        """``5 of 8 replies to task prompts (base model 1 of 8)``."""
        return f"{self.tuned} of {self.pairs} replies to {self.probe} prompts (base model {self.base} of {self.pairs})"


def paired(reading: SampleReading, run: Run) -> dict[str, list[Pair]]:
    """Replies by kind of probe, each with the base model's to the same prompt; kinds with too few pairs are left out.

    They are matched by prompt, not by place: a later reading may ask fewer prompts than the first.
    """
    base = {(one.probe, one.prompt): one for one in run.base_samples}
    found: dict[str, list[Pair]] = {}
    for sample in reading.samples:
        other = base.get((sample.probe, sample.prompt))
        if other is not None:
            found.setdefault(sample.probe, []).append((sample, other))
    return {probe: pairs for probe, pairs in found.items() if len(pairs) >= LEAST_PAIRS}


def count(probe: str, pairs: Sequence[Pair], sign: Callable[[Sample], bool]) -> Counts:
    """How often a sign is in either model's replies."""
    tuned = base = 0
    example: Sample | None = None
    for one, other in pairs:
        has, had = sign(one), sign(other)
        tuned += has
        base += had
        if has and not had and example is None:
            example = one
    return Counts(probe, len(pairs), tuned, base, example)


def worst(reading: SampleReading, run: Run, sign: Callable[[Sample], bool]) -> Counts | None:
    """The counts of the kind of probe in which a sign rose most; None where nothing can be compared."""
    counts = [count(probe, pairs, sign) for probe, pairs in paired(reading, run).items()]
    return max(counts, key=lambda one: one.rise, default=None)


def rose(counts: Counts | None, share: float) -> bool:
    """Whether a sign is in a larger share of the replies than in the base model's, by ``share`` and by two at least."""
    return counts is not None and counts.tuned - counts.base >= 2 and counts.rise >= share


def quoted(text: str, most: int = 120) -> str:
    """The end of a text in one line: where it went wrong."""
    line = " ".join(text.split())
    return line if len(line) <= most else "…" + line[-most:]
