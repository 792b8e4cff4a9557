"""The rule gen/empty-gibberish."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.lora.sample_pairs import LEAST_PAIRS, MISSING_BASE, Counts, Pair, paired, quoted, rose, worst
from lorawatch.lora.text_signs import MOST_GARBLED, garbled_share, is_empty, is_script_soup, switched_script
from lorawatch.records import Judged, Sample, SampleReading
from lorawatch.remedies import look, lower_rate
from lorawatch.rule import Rule, param
from lorawatch.run import Run


@dataclass(slots=True)
class GenEmptyGibberish(Rule):
    """Greedy replies are empty, or garbage: broken characters, scripts run together, or words that make no sense.

    ## Why it matters
    Empty replies are learnt from empty replies, or from rows whose reply was cut away. Garbage means that the adapter
    has broken the base model: too large steps, a wrong scale, a wrong precision.

    ## How it decides
    Against the base model's replies to the same prompts. Bad replies are those that show nothing; those of which more
    than 1 % of the characters are ones that nobody types (U+FFFD, control characters); and those in which letters of
    four scripts run into each other. Their share rose by 20 % (a warning) or by 50 % (critical), and by two replies at
    least. Unlikely replies: the mean log-probability of their tokens under the base model is below -6, where that of
    the base model's own replies is above -2.5: a warning. Replies in another script than their prompt are left out of
    that.

    ## What to change
    Empty: read the replies in the training data and their labels. Garbage: a lower learning rate, `lora_alpha` no more
    than twice `r`, bf16 instead of fp16; go back to a checkpoint from before.

    ## Known false alarms
    Data whose right reply is empty. For unlikely replies, data in a notation of its own that the base model never met.

    ## Sources
    Rule catalogue G3, whose limits of 20 %, 1 %, -6 and -2.5 are heuristics. The limit of four scripts is a choice
    without another authority, made for random tokens of a multilingual vocabulary.
    """

    id: ClassVar[str] = "gen/empty-gibberish"
    title: ClassVar[str] = "Generated replies are empty or garbage"
    severity: ClassVar[Severity] = Severity.WARNING
    judges: ClassVar[tuple[type[Judged], ...]] = (SampleReading,)
    retells: ClassVar[bool] = True
    suppresses: ClassVar[tuple[str, ...]] = ("gen/language-copy",)

    share: float = param(0.2, unit="share of replies", help="Rise over the base model's share that is a warning.")
    critical: float = param(0.5, unit="share of replies", help="Rise over the base model's share that is critical.")
    unlikely: float = param(-6.0, unit="nats/token", help="Mean log-probability under the base model that is garbage.")
    base_likely: float = param(-2.5, unit="nats/token", help="The same of the base model's own replies, at least.")

    def missing(self, run: Run) -> tuple[str, ...]:
        """Replies of the base model."""
        return () if run.samples is None or paired(run.samples, run) else (MISSING_BASE,)

    def judge(self, reading: SampleReading, run: Run) -> Breach | None:
        """Look for what is empty or garbled, then for what the base model would never say."""
        limit = self.share * self.easing
        counts = worst(reading, run, _is_bad)
        if counts is not None and rose(counts, limit):
            return self._breach(counts, paired(reading, run)[counts.probe])
        for probe, pairs in paired(reading, run).items():
            # What is in another script than its prompt is unlikely too: that is gen/language-copy's matter.
            same = [pair for pair in pairs if switched_script(pair[0].prompt, pair[0].output) is None]
            found = self._unlikely(probe, same) if len(same) >= LEAST_PAIRS else None
            if found is not None:
                return found
        return None

    def _breach(self, counts: Counts, pairs: list[Pair]) -> Breach:
        empty = sum(is_empty(one.output) for one, _ in pairs)
        case = "empty" if 2 * empty >= counts.tuned else "garbled"
        words = "empty" if empty == counts.tuned else "garbled" if not empty else f"empty ({empty}) or garbled"
        return Breach(
            f"{counts.words} are {words}",
            {"case": case, "replies": counts.pairs, "bad": counts.tuned, "base_bad": counts.base, "empty": empty,
             "rise": counts.rise, "example": None if counts.example is None else quoted(counts.example.output)},
            Severity.CRITICAL if counts.rise >= self.critical else None,
        )  # fmt: skip

    def _unlikely(self, probe: str, pairs: list[Pair]) -> Breach | None:
        tuned, base = _mean_logprob([one for one, _ in pairs]), _mean_logprob([other for _, other in pairs])
        limit = self.unlikely + (1.0 if self.easing < 1.0 else 0.0)
        if tuned is None or base is None or tuned >= limit or base <= self.base_likely:
            return None
        least = min((one for one, _ in pairs if one.logprob is not None), key=lambda one: one.logprob or 0.0)
        return Breach(
            f"replies to {probe} prompts are what the base model would never say: {tuned:.1f} nats a token under it, "
            f"its own replies {base:.1f}",
            {"case": "unlikely", "replies": len(pairs), "logprob": tuned,
             "base_logprob": base, "example": quoted(least.output)},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Empty replies come from the data, garbage from steps that are too large."""
        if breach.evidence["case"] == "empty":
            return [
                look(
                    "the replies in the training data: empty ones, or ones that were cut away before they were "
                    "tokenized",
                    "a model says nothing where its data says nothing", confidence="high",
                ),
                look(
                    "the labels: lorawatch preflight shows the replies of three rows with what is trained on",
                    "where only the end token of a reply is trained on, the model learns to end at once",
                ),
            ]  # fmt: skip
        advice = [
            lower_rate(
                run, 3, "garbage means that the steps have broken the base model", confidence="medium", apply="restart"
            )
        ]
        rank, alpha = run.number("r"), run.number("lora_alpha")
        if rank and alpha and alpha > 2 * rank and run.fact("use_rslora") is not True:
            advice.append(
                Adjustment(
                    "lora_alpha", current=int(alpha), proposed=int(2 * rank), direction="down", confidence="medium",
                    apply="restart", why="the adapter counts alpha / r times; more than twice is unusual",
                )
            )  # fmt: skip
        advice.append(
            look("the tokenizer: the same files as the base model's, nothing added to it that was not trained",
                 "with another vocabulary the right ids are the wrong words")
        )  # fmt: skip
        return advice


def _is_bad(sample: Sample) -> bool:
    text = sample.output
    return is_empty(text) or garbled_share(text, cut=not sample.ended) > MOST_GARBLED or is_script_soup(text)


def _mean_logprob(samples: list[Sample]) -> float | None:
    """Mean over the replies, each weighing as its tokens; None where fewer than half were measured."""
    known = [(one.logprob, one.tokens) for one in samples if one.logprob is not None and one.tokens > 0]
    if not known or len(known) < len(samples) / 2:
        return None
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known)
