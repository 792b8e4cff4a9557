"""The rule loss/diverging."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import bfloat16, clip_gradients, larger_batch, look, lower_rate
from lorawatch.rule import Rule, param
from lorawatch.run import SUPERVISED, Run


@dataclass(slots=True)
class LossDiverging(Rule):
    """The training loss rises away from the best level it had reached.

    ## Why it matters
    A loss that keeps rising does not come back by itself: each further step moves the adapter away from what it had
    learnt, and the checkpoints saved from here on are worse than those before.

    ## How it decides
    The fast level of the loss (EWMA, 1/8) stands above the best slow level by more than `max(15 % of best, 0.05, 1.55
    sigma)` for 8 logged points in a row. 1.55 sigma is six times the standard error of the fast level; it is up to 2.3
    times that where neighbouring points resemble each other (von Neumann ratio below 2), because noise then averages
    out less. The median of the last 8 points must be above the limit too. It is critical when the level is above 1.5
    times the best plus 0.5, or above where it started; the latter not where the gradient norm has not risen by a
    quarter, as when only the data changed. A level below 0.3 is left alone. Where the loss repeats itself with a period
    (batches grouped by length), the mean over whole periods must be above the limit too.

    ## What to change
    Stop, go back to the checkpoint before the rise, and divide the learning rate by 3: divergence sits five to ten
    times above the best learning rate, so that one such step leaves the danger zone and costs little quality. Delete
    `scheduler.pt` from that checkpoint: the Trainer otherwise goes on with the old rate. Then bf16 in place of fp16,
    and a tighter clip.

    ## Known false alarms
    A change of the data mixture or of the epoch's order can lift the loss for good without anything being wrong.

    ## Sources
    Measured on 24 public runs: fires on the one that diverges, at step 101 of 3,000, and on none of 22 others; at most
    0.09 false alarms per 1,000 points on strongly correlated synthetic noise. With the allowance for correlated
    neighbours 60 synthetic runs of 1,000 points with AR(0.4) noise of 25 % give none, where 42 fired without it. Of 20
    synthetic runs whose data grows harder in two jumps (1.0, 1.35, 1.7) all were critical before the gradient norm was
    asked, 5 are now. Two bad batches in a row, from which the loss came back at once, opened it in 2 of 2 runs of the
    reference trainer before the median was asked, and in none since. llm-foundry's KillLossSpike advises the lower
    learning rate. Tinker's sweep places divergence 5–10 times above the optimum.
    """

    id: ClassVar[str] = "loss/diverging"
    title: ClassVar[str] = "Training loss is diverging"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    kinds = SUPERVISED
    min_points: ClassVar[int] = 28
    suppresses: ClassVar[tuple[str, ...]] = (
        "loss/plateau", "loss/not-learning", "loss/slow-start", "loss/spike", "loss/noisy", "loss/oscillation",
        "eval/overfit", "eval/gap", "grad/spike", "grad/always-clipped", "lora/*", "gen/*", "base/*",
    )  # fmt: skip

    hold: int = param(8, unit="points", help="Points in a row above the limit before the finding opens.")
    release: int = param(16, unit="points", help="Points in a row below 0.7 of the limit before it resolves.")
    relative: float = param(0.15, unit="ratio", help="Rise above the best level, as a share of that level.")
    absolute: float = param(0.05, unit="nats", help="Least rise above the best level.")
    floor: float = param(0.3, unit="nats", help="A level below this is not judged.")
    errors: float = param(6.0, unit="standard errors", help="Least rise, in standard errors of the fast level.")

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the fast level with the best slow level."""
        level = run.loss
        best = level.best
        fast = level.fast
        rise = fast - best
        if not rise > 0.0 or fast < self.floor:
            return None
        # 0.258 is the standard error of an EWMA with weight 1/8, in sigmas: sqrt((1/8) / (2 - 1/8)).
        margin = max(self.relative * best, self.absolute, self.errors * 0.258 * level.sigma)
        if rise > margin * self.easing and run.rhythm.windows:
            # Neighbours that resemble each other hide noise from sigma, and average out less.
            rho = min(max(1.0 - 0.5 * max(run.rhythm.swing, run.rhythm.swing_before), 0.0), 0.5)
            inflation = math.sqrt((1.0 + 0.875 * rho) / (1.0 - 0.875 * rho) / (1.0 - rho))
            margin = max(margin, inflation * self.errors * 0.258 * level.sigma)
        if not rise > margin * self.easing:
            return None
        if run.rhythm.periodic:
            points = run.rhythm.period * max(16 // run.rhythm.period, 1)
            window = run.series["loss"].window(points)
            if sum(window) / len(window) <= best + margin * self.easing:
                return None
        # Two bad batches lift the fast level for more than eight points; the points themselves are back at once.
        if median(run.series["loss"].window(self.hold)) - best <= margin * self.easing:
            return None
        norms = run.series.get("grad_norm")
        steady = norms is not None and _steady(norms.window(64))
        lost = fast > 1.5 * best + 0.5 or (fast > level.initial and not steady)
        return Breach(
            f"loss is at {fast:.3g}, above its best level of {best:.3g} (step {level.best_step}) "
            f"for {self.hold} logged points" + ("; the gradient norm has not risen with it" if steady else ""),
            {"loss_level": fast, "best_level": best, "best_step": level.best_step, "limit": best + margin,
             "initial_loss": level.initial, "gradient_steady": steady},
            Severity.CRITICAL if lost else None,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Lower the learning rate from the best checkpoint; then clipping, Adam's memory, the batch."""
        step = breach.evidence["best_step"]
        advice = [
            lower_rate(
                run, 3.0, f"the loss rises since step {step}; resume from a checkpoint at or before it with a lower "
                "rate", cost=f"the steps since step {step}",
            ),
            bfloat16(run),
            clip_gradients(run, "a tighter clip limits what a single bad batch can do"),
            Adjustment(
                "adam_beta2", current=run.number("adam_beta2"), proposed=0.99, direction="down", confidence="low",
                apply="restart", why="Adam forgets old gradients sooner, so that the step size follows a sudden change",
            ) if (run.number("adam_beta2") or 1.0) > 0.99 else None,
            larger_batch(run, "steadier gradients; LoRA loses quality with large batches", confidence="low"),
        ]  # fmt: skip
        data = look(
            "did the data change at that step (a new epoch, a second data set, a curriculum)? Then nothing is wrong",
            "a change of the data lifts the loss for good"
            + (", and leaves the gradient norm as it was" if breach.evidence["gradient_steady"] else ""),
        )
        first = [data] if breach.evidence["gradient_steady"] else []
        return [*first, *(item for item in advice if item is not None), *([] if first else [data])]


def _steady(norms: Sequence[float]) -> bool:
    """Whether the gradient norm, known for long enough, has not risen by a quarter."""
    return len(norms) >= 48 and median(norms[-8:]) < 1.25 * median(norms[:-16])
