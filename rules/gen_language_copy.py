"""The rule gen/language-copy."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.lora.sample_pairs import MISSING_BASE, Counts, paired, quoted, worst
from lorawatch.lora.text_signs import is_copy, script_name, switched_script
from lorawatch.records import Judged, Sample, SampleReading
from lorawatch.remedies import look
from lorawatch.rule import Rule, param
from lorawatch.run import Run


@dataclass(slots=True)
class GenLanguageCopy(Rule):
    """Greedy replies are in another script than their prompts, or say their prompts again.

    ## Why it matters
    Both are learnt from data: rows whose reply is in another language than the question, or rows whose labels hold the
    prompt. The loss falls as it should.

    ## How it decides
    Of the replies 30 % or more are in another script than their prompt: their words are distributed over scripts by
    more than 50 points otherwise, and their main script is hardly in the prompt. Less than 10 % of the base model's
    replies are. Or the same shares of replies are copies: their longest run of tokens in common with the prompt fills
    more than 60 %. Prompts that name a language are not judged for scripts, prompts that ask to correct, extract or
    complete not for copies. Of code and JSON only what is not Latin counts.

    ## What to change
    Read the rows: languages of question and reply, and whether the prompt is part of what is trained on
    (`completion_only_loss`, `assistant_only_loss`).

    ## Known false alarms
    A run that is to teach a new language, with probes in the old one.
    Two languages of one script, such as English and French, cannot be told apart by it: that is missed.

    ## Sources
    Rule catalogue G4; its numbers are heuristics. Scripts are told by the letters' names in Unicode.
    """

    id: ClassVar[str] = "gen/language-copy"
    title: ClassVar[str] = "Replies switch script or copy the prompt"
    severity: ClassVar[Severity] = Severity.WARNING
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (SampleReading,)
    retells: ClassVar[bool] = True

    share: float = param(0.3, unit="share of replies", help="Share of the replies with the sign that is a warning.")
    base_share: float = param(0.1, unit="share of replies", help="Share of the base model's replies that may have it.")

    def missing(self, run: Run) -> tuple[str, ...]:
        """Replies of the base model."""
        return () if run.samples is None or paired(run.samples, run) else (MISSING_BASE,)

    def judge(self, reading: SampleReading, run: Run) -> Breach | None:
        """Count replies in another script, then copies."""
        counts = worst(reading, run, _switches)
        if counts is not None and self._broken(counts):
            example = counts.example
            scripts = None if example is None else switched_script(example.prompt, example.output)
            way = "" if scripts is None else f" ({script_name(scripts[0])} asked, {script_name(scripts[1])} said)"
            return _breach("script", f"{counts.words} are in another script{way}", counts)
        counts = worst(reading, run, _copies)
        if counts is not None and self._broken(counts):
            return _breach("copy", f"{counts.words} say the prompt again", counts)
        return None

    def _broken(self, counts: Counts) -> bool:
        least = max(2.0, self.share * self.easing * counts.pairs)
        return counts.tuned >= least and counts.base < self.base_share * counts.pairs

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """It is learnt from the data."""
        if breach.evidence["case"] == "script":
            return [
                look(
                    "the replies in the training data: rows whose reply is in another language than the question",
                    "a model answers in the language in which its data answers", confidence="high",
                )
            ]  # fmt: skip
        advice = [
            look(
                "the replies in the training data: ones that begin with the question, or that are the question",
                "a model repeats its prompt where the data does", confidence="high",
            )
        ]  # fmt: skip
        replies = Adjustment(
            "completion_only_loss", current=False, proposed=True, confidence="medium", apply="restart",
            why="prompts that are trained on are learnt like replies",
        )  # fmt: skip
        if run.fact("completion_only_loss") is False:
            advice.append(replies)
        elif run.fact("assistant_only_loss") is False:
            advice.append(replace(replies, parameter="assistant_only_loss"))
        return advice


def _switches(sample: Sample) -> bool:
    return switched_script(sample.prompt, sample.output) is not None


def _copies(sample: Sample) -> bool:
    return is_copy(sample.prompt, sample.output)


def _breach(case: str, summary: str, counts: Counts) -> Breach:
    example = counts.example
    return Breach(
        summary,
        {"case": case, "replies": counts.pairs, "bad": counts.tuned, "base_bad": counts.base,
         "prompt": None if example is None else quoted(example.prompt),
         "example": None if example is None else quoted(example.output)},
    )  # fmt: skip
