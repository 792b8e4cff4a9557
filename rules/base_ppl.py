"""The rule base/ppl."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.lora.forgetting import against_forgetting
from lorawatch.records import Judged, SampleReading
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run


@dataclass(slots=True)
class BasePpl(Rule):
    """Perplexity of general text grew: the model predicts ordinary passages worse than its base does.

    ## Why it matters
    The passages have nothing to do with the task. What the adapter costs there is what it takes from the base model:
    fluency and knowledge that the loss of the task does not show.

    ## How it decides
    Perplexity of the same general passages with the adapter, over that without it: above 1.10 is information, above
    1.5 a warning. It abstains where the base model's own perplexity is above 100: then these are no passages that it
    knows, as for a model of another language.

    ## What to change
    Mix 5 to 20 % of general data into the training rows; half of the learning rate; fewer epochs; half of `lora_alpha`
    when the adapter is used; a smaller rank.

    ## Known false alarms
    Heavily narrow styles, such as a model that writes one format only, pay with perplexity and may be wanted so.

    ## Sources
    Rule catalogue B2: 1.10 and 1.5 are heuristics without another authority. It asks for a warning from 1.10 on; of 24
    healthy runs of the reference trainer's development, 8 stood between 1.10 and 1.5, of which 4 had lost abilities by
    240 questions that were asked afterwards (McNemar, p < 1 %), and 5 above 1.5, which all had: so that 1.10 is
    information. The limit of 100 is a choice of this project.
    """

    id: ClassVar[str] = "base/ppl"
    title: ClassVar[str] = "Perplexity of general text grew"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (SampleReading,)

    ratio: float = param(1.10, unit="ratio", help="Perplexity over the base model's that is told.")
    severe: float = param(1.5, unit="ratio", help="Perplexity over the base model's that is a warning.")
    foreign: float = param(100.0, unit="perplexity", help="Base perplexity above which the passages are foreign to it.")
    looks: int = state(int)

    def missing(self, run: Run) -> tuple[str, ...]:
        """A perplexity with and without the adapter, of passages that the base model knows."""
        if self.looks:
            return ()
        reading = run.samples
        if reading is not None and reading.base_perplexity is not None and reading.base_perplexity > self.foreign:
            return (f"passages that the base model knows (their perplexity is {reading.base_perplexity:.0f})",)
        return ("perplexity of general passages, with and without the adapter",)

    def judge(self, reading: SampleReading, run: Run) -> Breach | None:
        """Hold the perplexity against the base model's."""
        now, base = reading.perplexity, reading.base_perplexity
        if now is None or base is None or not (1.0 <= base <= self.foreign and now > 0.0):
            return None
        self.looks += 1
        ratio = now / base
        if ratio <= 1.0 + (self.ratio - 1.0) * self.easing:
            return None
        return Breach(
            f"perplexity of general passages is {now:.3g}, the base model's {base:.3g}: {ratio:.2f} times",
            {"ratio": ratio, "perplexity": now, "base_perplexity": base},
            Severity.WARNING if ratio > self.severe else None,
        )

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """What keeps a model near its base."""
        return against_forgetting(run)
