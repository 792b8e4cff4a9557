"""The rule base/ability-drop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.lora.forgetting import against_forgetting
from lorawatch.lora.sample_pairs import MISSING_BASE, Pair, paired, quoted
from lorawatch.records import Judged, Sample, SampleReading
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run
from lorawatch.stats import mcnemar


@dataclass(slots=True)
class BaseAbilityDrop(Rule):
    """What the base model could do is lost: it answers fewer of the general questions than its base does.

    ## Why it matters
    Fine-tuning on a narrow task can cost sums and common sense that the model had. The loss of the task does not show
    it, and a user notices it late.

    ## How it decides
    The same general questions (built in: 25 sums, 25 of common sense) are answered greedily by both models. With b that
    only the base model got right and c that only the tuned one did: b - c is 5 or more, and an exact one-sided McNemar
    test (the binomial chance of b or more out of b + c, at one half) gives p < 0.05, in two looks in a row. It abstains
    where the base model gets fewer than 10 right: then there is little to lose.

    ## What to change
    Half of the learning rate; 5 to 20 % of general data among the training rows; fewer epochs; a smaller rank; half of
    `lora_alpha` when the adapter is used.

    ## Known false alarms
    A model that was taught another form of answer (long reasoning, a fixed format) may know and not say it in time.

    ## Sources
    McNemar 1947, in its exact form. Rule catalogue B3: with 50 questions a share of right answers has a standard error
    of 7 points, so that "5 points less" would be noise. The 5, and the two looks, are its choices.
    """

    id: ClassVar[str] = "base/ability-drop"
    title: ClassVar[str] = "Abilities of the base model are lost"
    severity: ClassVar[Severity] = Severity.WARNING
    suppresses: ClassVar[tuple[str, ...]] = ("base/ppl", "base/kl")
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (SampleReading,)

    surplus: int = param(5, unit="questions", help="Questions lost, less those won, at least.")
    level: float = param(0.05, unit="p", help="Chance of so many lost questions were both models alike.")
    least_right: int = param(10, unit="questions", help="Questions that the base model gets right, at least.")
    in_a_row: int = param(2, unit="looks", help="Looks in a row that must show it.")
    looks: int = state(int)
    worse: int = state(int)
    told: Breach | None = state(lambda: None)

    def missing(self, run: Run) -> tuple[str, ...]:
        """Answers of both models, right ones among the base model's."""
        if run.samples is None or self.looks >= self.in_a_row:
            return ()
        pairs = _answered(run.samples, run)
        if not pairs:
            return (f"{MISSING_BASE}, with answers to check",)
        right = sum(other.right is True for _, other in pairs)
        if right < self.least_right:
            return (f"general questions that the base model can answer ({right} of {len(pairs)})",)
        return (f"{self.in_a_row} looks with general questions ({self.looks} so far)",)

    def judge(self, reading: SampleReading, run: Run) -> Breach | None:
        """Count questions lost and won; a look without these questions changes nothing."""
        pairs = _answered(reading, run)
        base = sum(other.right is True for _, other in pairs)
        if base < self.least_right:
            return self.told
        self.looks += 1
        lost = [one for one, other in pairs if other.right and not one.right]
        won = sum(bool(one.right and not other.right) for one, other in pairs)
        chance = mcnemar(len(lost), won)
        broken = len(lost) - won >= self.surplus and chance < self.level
        self.worse = self.worse + 1 if broken else 0
        self.told = self._breach(lost, won, base, len(pairs), chance) if self.worse >= self.in_a_row else None
        return self.told

    def _breach(self, lost: list[Sample], won: int, base: int, asked: int, chance: float) -> Breach:
        tuned = base - len(lost) + won
        return Breach(
            f"{tuned} of {asked} general questions are answered rightly, {base} by the base model: {len(lost)} lost, "
            f"{won} won (p = {chance:.2g})",
            {"right": tuned, "base_right": base, "questions": asked, "lost": len(lost), "won": won, "p": chance,
             "prompt": quoted(lost[0].prompt), "example": quoted(lost[0].output)},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """What keeps a model near its base."""
        return against_forgetting(run)


def _answered(reading: SampleReading, run: Run) -> list[Pair]:
    """Pairs of replies to general questions that have an answer to check."""
    pairs = paired(reading, run).get("general", [])
    return [(one, other) for one, other in pairs if one.right is not None and other.right is not None]
