"""The rule pref/margin-explosion."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import LARGEST_BATCH, effective_batch, larger_batch, lower_rate
from lorawatch.reward_signs import average, beta_of, has_reference, level, mean, reference_logp, sigmoid_loss
from lorawatch.rule import Rule, param, state
from lorawatch.run import Kind, Run


@dataclass(slots=True)
class PrefMarginExplosion(Rule):
    """The margin between chosen and rejected replies grows far beyond what separates them.

    ## Why it matters
    Accuracy reaches 1 early; from there on the loss can only fall by making the margin larger, and the cheapest way is
    to make the rejected replies, and often the chosen ones with them, ever less likely. What the model writes then is
    neither of the two.

    ## How it decides
    After 20 steps and 5 logs, either of two:

    - `rewards/margins` divided by beta, the margin in nats, is above 100 (median of 5 logs), and above the mean
      log-likelihood of the replies under the reference, where `logps/*` tell that: long replies have large margins
      without harm.
    - For the sigmoid loss, within the first quarter of the run: a loss below 0.01 (median of 5 logs) with an accuracy
      above 0.99. It stays while the loss is below 0.02.

    Where beta is not stated, 0.1 is taken, TRL's default, and the sentence says so. Losses without a reference (ORPO,
    CPO, SimPO) are not judged.

    ## What to change
    A third of the learning rate; beta from 0.1 to 0.3, which holds the policy nearer to the reference; one epoch; a
    larger batch; label smoothing of 0.1, which gives the loss a minimum at a finite margin.

    ## Known false alarms
    Pairs that are trivially told apart (a rejected reply that is empty or in another language) are learnt within a few
    dozen steps without harm. Swapped columns look so too: the model unlearns what it knew, which is easy.

    ## Sources
    Practitioners' reports: healthy margins 1 to 10 (at a beta of 0.1: 10 to 100 nats), 599 at a collapse. Public runs:
    4.4 at 0.1 is fine; the recipe of zephyr-7b-dpo-qlora, beta taken as 0.01, ends at 0.94, or 94 nats (model card
    Wenboz/zephyr-7b-dpo-lora); 20 epochs of it end at 282 nats with an evaluation loss of 1.56 (model card
    LaoRay/zephyr-7b-dpo-lora). Three healthy runs of the reference trainer end at 3 to 48 nats; six and twenty times
    the usual rate have a loss below 0.01 within a seventh of the run. Limits are choices.
    """

    id: ClassVar[str] = "pref/margin-explosion"
    title: ClassVar[str] = "Reward margin explodes"
    severity: ClassVar[Severity] = Severity.WARNING
    maturity = "experimental"
    needs: ClassVar[tuple[str, ...]] = ("rewards/margins",)
    kinds = frozenset({Kind.DPO, Kind.KTO})
    min_points: ClassVar[int] = 5
    suppresses: ClassVar[tuple[str, ...]] = ("pref/likelihood-displacement", "lora/update-size", "gen/*", "base/*")

    hold: int = param(2, unit="logs", help="Logs in a row before a finding opens.")
    release: int = param(5, unit="logs", help="Calm logs in a row before it resolves.")
    steps: int = param(20, unit="steps", help="Steps before it is judged.")
    nats: float = param(100.0, unit="nats", help="Margin over beta above which it has exploded.")
    loss: float = param(0.01, unit="nats", help="Loss below which the pairs are told apart without doubt.")
    accuracy: float = param(0.99, unit="accuracy", help="Accuracy above which they are.")
    early: float = param(0.25, unit="share of the run", help="Part of the run in which that is too early.")
    sigmoid: bool | None = state(lambda: None)
    saturated: bool = state(bool)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Look at the margin, and at how early the loss is gone."""
        values = row.values
        if self.sigmoid is None:
            self.sigmoid = sigmoid_loss(run, values)
        if run.step < self.steps or not has_reference(values):
            return None
        beta, stated = beta_of(run)
        margin = level(run, "rewards/margins", 5)
        references = [reference_logp(values, side, beta) for side in ("chosen", "rejected")]
        known = [abs(one) for one in references if one is not None]
        size = mean(known) if known else 0.0
        nats = margin / beta
        assumed = "" if stated else " (beta is not stated: 0.1 is taken, TRL's default)"
        evidence = {
            "margin": margin, "beta": beta, "beta_stated": stated, "margin_nats": nats,
            "reference_nats": size or None, "loss": level(run, "loss", 5), "progress": run.progress,
        }  # fmt: skip
        if nats > max(self.nats, size) * self.easing:
            than = f", more than the replies' own log-likelihood under the reference ({size:.0f} nats)" if size else ""
            return Breach(f"reward margin {margin:.3g} is {nats:.0f} nats{than}{assumed}", evidence | {"case": "nats"})
        if run.kind is Kind.DPO and self.sigmoid and self._saturates(run):
            return Breach(
                f"loss {level(run, 'loss', 5):.2g} with an accuracy of {average(run, 'rewards/accuracies', 5):.3f} "
                f"already: all that the pairs can teach is learnt, and the margin ({nats:.0f} nats) goes on growing",
                evidence | {"case": "saturated"},
            )
        return None

    def _saturates(self, run: Run) -> bool:
        loss = level(run, "loss", 5)
        if math.isnan(loss):
            return False
        progress = run.progress
        if progress is not None and progress <= self.early and loss < self.loss:
            self.saturated = self.saturated or average(run, "rewards/accuracies", 5) > self.accuracy
        elif loss >= 2.0 * self.loss:
            self.saturated = False
        return self.saturated

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """A lower rate; a stronger pull to the reference; fewer epochs; a larger batch; smoothed labels."""
        beta, stated = beta_of(run)
        advice = [
            lower_rate(
                run, 3, "smaller steps reach the same accuracy with a smaller margin", confidence="medium",
                apply="restart",
            )
        ]  # fmt: skip
        if beta < 0.3:
            advice.append(
                Adjustment(
                    "beta", current=beta if stated else None, proposed=0.3, direction="up", confidence="medium",
                    why="the same reward at a third of the distance from the reference model",
                    cost="a smaller change of the model",
                )
            )  # fmt: skip
        epochs = run.number("num_train_epochs")
        if epochs is not None and epochs > 1:
            advice.append(
                Adjustment(
                    "num_train_epochs", current=epochs, proposed=1, direction="down", confidence="medium",
                    why="a pair that is seen again can only have its margin raised further",
                )
            )  # fmt: skip
        batch = effective_batch(run)
        wider = larger_batch(run, "fewer steps over the same pairs", confidence="low")
        if wider is not None and (batch is None or batch < LARGEST_BATCH):
            advice.append(wider)
        smoothing = run.number("label_smoothing")
        if run.kind is Kind.DPO and not smoothing:
            advice.append(
                Adjustment(
                    "label_smoothing", current=smoothing, proposed=0.1, direction="up", confidence="low",
                    why="as if one label in ten were wrong: the loss then has its minimum at a finite margin",
                )
            )  # fmt: skip
        return advice
