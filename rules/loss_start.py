"""The rule loss/start."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import look
from lorawatch.rule import Rule, param, state
from lorawatch.run import LANGUAGE_MODELLING, Run

LARGEST_VOCABULARY = 262_144


@dataclass(slots=True)
class LossStart(Rule):
    """The training loss starts higher than a pretrained model's should.

    ## Why it matters
    A pretrained model already predicts ordinary text well: its first loss is usually between 1.75 and 3.6. A start
    near the logarithm of the vocabulary size means that the model guesses at random, so that it, its tokenizer or the
    loss is not what one thinks. Training may still bring the number down, and what it learns is then to repair damage.

    ## How it decides
    The first logged loss is compared with ln V, the loss of guessing uniformly among V tokens.

    - At 0.9 ln V or more: critical. At 0.6 ln V or more: a warning. Both need the vocabulary size.
    - Above 5: info, whatever the vocabulary. The user's guide expects a start of 5 to 10; of 25 real fine-tuning
      starts 12 % were there. Above 5 by itself is never a warning.
    - Still above 3 after 100 steps, though it fell by a tenth or more: info. The guide expects 2 to 3 by then, and
      31 % of 16 healthy runs were there. Evidence `seed_band` names it.

    ## What to change
    Nothing to set. Look: is the tokenizer the model's own, and the chat template the one it was tuned with? Are the
    quantised weights sane (perplexity of five plain sentences below 50)? Is the loss summed over micro-batches
    (some versions of transformers with some models: the start is then gradient_accumulation_steps times too high)?

    ## Known false alarms
    Training from scratch, a resized vocabulary, a language or format that the model never saw, and prompt or prefix
    tuning, which starts from random vectors.

    ## Sources
    Measured on 25 real fine-tuning starts: median 2.58, quartiles 1.75 and 3.57, 48 % below 2.5. ln V is the only
    defensible absolute limit: a run with a learning rate of 5.0 settled at 10.3735 = ln 32000. The sum over
    micro-batches: transformers issue 37197 (gemma3: about 1 without accumulation, 8 to 10 with 4).
    """

    id: ClassVar[str] = "loss/start"
    title: ClassVar[str] = "Training loss starts high"
    severity: ClassVar[Severity] = Severity.INFO
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    kinds = LANGUAGE_MODELLING
    latched: ClassVar[bool] = True

    high: float = param(5.0, unit="nats", help="A first loss above this is told as info.")
    suspect: float = param(0.6, unit="share of ln V", help="A first loss from here on is a warning.")
    uniform: float = param(0.9, unit="share of ln V", help="A first loss from here on is critical.")
    seed_band: float = param(3.0, unit="nats", help="Level that the guide expects the loss to be below by then.")
    seed_steps: int = param(100, unit="steps", help="Steps after which the guide expects that level.")
    start: float = state(lambda: -1.0)
    done: bool = state(bool)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Look at the first finite loss; once more at step 100."""
        if self.done:
            return None
        loss = row.values["loss"]
        if loss - loss != 0.0:
            return None
        if self.start < 0.0:
            self.start = loss
            if run.train_rows == 1 or run.step <= self.seed_steps:
                return self._at_start(loss, run)
            return None
        if run.step < self.seed_steps:
            return None
        self.done = True
        level = run.loss.fast
        if not self.seed_band < level < 0.9 * self.start or run.step > 3 * self.seed_steps or run.loss.count < 8:
            return None
        return Breach(
            f"loss is still {level:.3g} at step {run.step}, down from {self.start:.3g}: the guide expects 2–3 by now; "
            "of 16 healthy runs only 31 % were there, and the fall itself is healthy",
            {"seed_band": level, "first_loss": self.start, "expected": self.seed_band},
        )

    def _at_start(self, loss: float, run: Run) -> Breach | None:
        vocabulary = run.number("vocab_size")
        limit = math.log(vocabulary) if vocabulary and vocabulary > 1 else None
        if limit is not None and loss >= self.suspect * limit:
            worst = loss >= self.uniform * limit
            meaning = (
                "above that of guessing at random: the loss is summed rather than averaged, or the weights are broken"
                if loss > 1.1 * limit
                else "about that of guessing at random" if worst else "close to that of guessing at random"
            )  # fmt: skip
            return Breach(
                f"loss starts at {loss:.4g}, {meaning} (ln {vocabulary:.0f} = {limit:.4g})",
                {"first_loss": loss, "ln_vocab": limit, "share_of_ln_vocab": loss / limit},
                Severity.CRITICAL if worst else Severity.WARNING,
            )
        if loss <= self.high:
            return None
        most = math.log(LARGEST_VOCABULARY)
        meaning = (
            f"above the loss of guessing at random over any usual vocabulary (ln {LARGEST_VOCABULARY} = {most:.4g})"
            if loss > most
            else "in the guide's band of 5–10; of 25 real fine-tuning runs 12 % start there, the median is 2.6"
        )
        return Breach(
            f"loss starts at {loss:.4g}, {meaning}",
            {"first_loss": loss, "limit": self.high, "ln_vocab": limit, "seed_band": self.high},
        )

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Things to look at: nothing here is cured by a setting."""
        if "expected" in breach.evidence:
            return []
        start = breach.evidence["first_loss"]
        accumulation = run.number("gradient_accumulation_steps") or 1.0
        advice = [
            look(
                "print one batch with the tokenizer's decode: is the chat template the model's own, and is the "
                "tokenizer the one of this checkpoint?",
                "a wrong template or tokenizer is a common cause of a high start",
            ),
            look(
                "perplexity of five plain sentences with the adapter off: above 50 the base weights are damaged "
                "(quantisation, dtype, a head that was not loaded)",
                "tells the base model's fault from the data's",
            ),
        ]
        summed = run.number("gradient_accumulation_steps") is None and start > math.log(LARGEST_VOCABULARY)
        if summed:
            advice.insert(
                0,
                look(
                    "is the logged loss a sum (over micro-batches, devices or tokens) rather than a mean? One "
                    "evaluation before the first step (eval_on_start=True) tells",
                    "no model does worse than guessing by so much unless its loss is summed or its weights are broken",
                ),
            )
        if accumulation >= 2:
            advice.insert(
                0,
                look(
                    f"one evaluation before the first step (eval_on_start=True): if it gives about "
                    f"{start / accumulation:.3g}, the loss is summed over {accumulation:.0f} micro-batches; upgrade "
                    "transformers",
                    "some versions do not average the loss over gradient accumulation",
                ),
            )
        return advice
