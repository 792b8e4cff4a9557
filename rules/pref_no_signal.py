"""The rule pref/no-signal."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import is_adapter, look, rounded
from lorawatch.reward_signs import falls, mean, rises, sigmoid_loss
from lorawatch.rule import Rule, param, state
from lorawatch.run import Kind, Run
from lorawatch.stats import mean_error

USUAL_RATE = 5e-6
"""Learning rate for DPO with a LoRA adapter (TRL's page on PEFT)."""


@dataclass(slots=True)
class PrefNoSignal(Rule):
    """DPO does not learn which of the two replies is preferred: its accuracy is that of a coin.

    ## Why it matters
    A DPO loss of 0.69 looks like any other number, and a run that stays there costs as much as one that learns.
    There are two causes, and the log tells them apart: steps that are too small to move anything, or pairs in which
    nothing makes the chosen reply the better one.

    ## How it decides
    For the sigmoid loss only, whose value at a margin of 0 is ln 2 = 0.693. Judged when 50 steps and 10 % of the run
    are done after warm-up, over the last 64 logs or the logs of the last 50 steps, whichever are fewer, 10 at least.
    The mean of `rewards/accuracies` lies between 0.45 and 0.55, and as good as surely (2 standard errors) below 0.6;
    the mean loss is not below ln 2 by more than 0.005. Over the last 64 logs neither the loss falls nor the accuracy
    rises (Mann–Kendall, 2 sigma). Three such logs in a row. A log whose margin is exactly 0 counts with an accuracy of
    one half: TRL counts ties as wrong.

    It says that nothing moves where the loss is within 0.005 of ln 2 and the margins are below 0.02; otherwise that
    the margins move without agreeing with the labels.

    ## What to change
    Where nothing moves: five times the learning rate, for a LoRA adapter up to 5e-6 (TRL's own default for DPO is 1e-6,
    a rate for full fine-tuning); where it is that high already, look whether the adapter gets a gradient. Where margins
    move: read pairs. Are the columns in order, was the preference drawn by lot, are the replies near-identical?

    ## Known false alarms
    A very small rate that needs thousands of steps: a public run at 5e-7 had an accuracy of 0.51 at step 100, 0.55 at
    step 200 and 0.69 at its end, with a loss of 0.68. The advice to raise the rate fits it all the same.

    ## Sources
    trl issue #3554: a loss of 0.6931 for 25 steps. A public DPO run that went from 0.692 to 0.680 with its accuracy
    from 0.475 to 0.875 is healthy. Model card jmajkutewicz/zephyr-7b-dpo-lora for the slow run above. The standard
    error is corrected for neighbours that are alike. Limits are choices without another authority.
    """

    id: ClassVar[str] = "pref/no-signal"
    title: ClassVar[str] = "No preference is learnt"
    severity: ClassVar[Severity] = Severity.WARNING
    suppresses: ClassVar[tuple[str, ...]] = ("lora/dead-modules",)
    needs: ClassVar[tuple[str, ...]] = ("rewards/accuracies", "rewards/margins", "loss")
    kinds = frozenset({Kind.DPO})
    min_points: ClassVar[int] = 10

    hold: int = param(3, unit="logs", help="Logs in a row before a finding opens.")
    release: int = param(5, unit="logs", help="Calm logs in a row before it resolves.")
    steps: int = param(50, unit="steps", help="Steps after warm-up before it is judged, and steps that it looks back.")
    share: float = param(0.1, unit="share of the run", help="Share of the run that must be done before it is judged.")
    coin: float = param(0.05, unit="accuracy", help="Distance from one half within which the accuracy is a coin's.")
    doubt: float = param(0.6, unit="accuracy", help="It must be as good as sure (2 standard errors) to be below this.")
    fall: float = param(0.005, unit="nats", help="A mean loss this far below ln 2 is learning.")
    still: float = param(0.02, unit="reward", help="Mean absolute margin below which nothing moves.")
    sigmoid: bool | None = state(lambda: None)
    logs: deque[tuple[float, float, float]] = state(lambda: deque(maxlen=64))

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the accuracy of the last logs with that of a coin."""
        values = row.values
        loss, accuracy, margin = values["loss"], values["rewards/accuracies"], values["rewards/margins"]
        if self.sigmoid is None:
            self.sigmoid = sigmoid_loss(run, values)
        if not self.sigmoid or run.step <= run.warmup_steps:
            return None
        if not (math.isfinite(loss) and math.isfinite(margin) and 0.0 <= accuracy <= 1.0):
            return None
        self.logs.append((loss, 0.5 if margin == 0.0 else accuracy, abs(margin)))
        total = run.max_steps or 0
        if run.step - run.warmup_steps < self.steps or run.step < self.share * total:
            return None
        wanted = min(max(10, math.ceil(self.steps / max(run.logging_interval, 1))), 64)
        return self._judge_window(list(self.logs)[-wanted:], run) if len(self.logs) >= wanted else None

    def _judge_window(self, window: list[tuple[float, float, float]], run: Run) -> Breach | None:
        losses, accuracies, margins = zip(*window, strict=True)
        accuracy, loss, margin = mean(accuracies), mean(losses), mean(margins)
        if abs(accuracy - 0.5) > self.coin / self.easing or loss < math.log(2) - self.fall / self.easing:
            return None
        if accuracy + 2.0 * mean_error(accuracies) > self.doubt / self.easing or self._learns():
            return None
        still = margin < self.still and abs(loss - math.log(2)) < self.fall
        told = (
            "nothing moves: the margins are still about 0" if still
            else f"the margins move ({margin:.2g} on average), but not the way that the labels say"
        )  # fmt: skip
        return Breach(
            f"accuracy {accuracy:.3f} over the last {len(window)} logs, that of a coin, at a loss of {loss:.4f} "
            f"(ln 2 = 0.6931); {told}",
            {"accuracy": accuracy, "loss": loss, "mean_absolute_margin": margin, "logs": len(window), "still": still,
             "learning_rate": run.peak_learning_rate},
        )  # fmt: skip

    def _learns(self) -> bool:
        losses, accuracies, _ = zip(*self.logs, strict=True)
        return falls(losses) or rises(accuracies)

    def missing(self, run: Run) -> tuple[str, ...]:
        """The sigmoid loss, where the run has another."""
        return ("the sigmoid loss (loss_type)",) if self.sigmoid is False else ()

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """A higher rate where nothing moves; a look at the pairs where they move."""
        pairs = look(
            "read ten pairs as the trainer gets them: is chosen the better reply, are the columns in order, and "
            "do the two replies differ in more than a few words?",
            "pairs whose order was drawn by lot, or that hardly differ, leave nothing to learn",
            confidence="medium" if breach.evidence["still"] else "high",
        )
        adapter = look(
            "model.print_trainable_parameters(), and whether a lora_B weight changes within 10 steps",
            "an adapter that gets no gradient leaves the loss at ln 2",
        )
        if not breach.evidence["still"]:
            return [pairs, adapter]
        rate = _higher_rate(run)
        return [item for item in (rate, adapter, pairs) if item is not None]


def _higher_rate(run: Run) -> Adjustment | None:
    """Five times the rate, for an adapter up to :data:`USUAL_RATE`; None when an adapter has that already."""
    rate, adapter = run.peak_learning_rate, is_adapter(run)
    if rate is not None and (rate <= 0.0 or (adapter and rate >= 0.75 * USUAL_RATE)):
        return None
    proposed: float | str
    if rate is None:
        proposed = f"five times it; for a LoRA adapter up to {USUAL_RATE:g}"
    else:
        proposed = rounded(min(5.0 * rate, USUAL_RATE) if adapter else 5.0 * rate)
        if proposed > 1e-3:
            return None
    return Adjustment(
        "learning_rate", current=rate and float(f"{rate:.4g}"), proposed=proposed, direction="up", confidence="medium",
        why=f"the margins hardly move; a LoRA adapter takes about {USUAL_RATE:g} for DPO, and TRL's default of 1e-6 is "
        "meant for full fine-tuning",
        cost="margins that grow faster: watch them for the first 100 steps",
    )  # fmt: skip
