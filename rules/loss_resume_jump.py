"""The rule loss/resume-jump."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import look
from lorawatch.rule import Rule, param, state
from lorawatch.run import SUPERVISED, Run
from lorawatch.stats import linear_fit, power_about_line


@dataclass(slots=True)
class LossResumeJump(Rule):
    """The loss after a resume is not the one before it.

    ## Why it matters
    A resume that loses the optimizer, the schedule or the place in the data says nothing: the run goes on, worse. A
    higher loss means that something was not restored; a lower one that the model sees data again that it has just
    seen.

    ## How it decides
    The mean of the first 10 logged losses after a resume differs from what the 10 before it, carried on along their
    trend where that falls, let expect: by more than 10 %, and by more than 5 standard errors. It needs 10 points on
    either side. A loss that rose by more than half of all that it had fallen is critical: most of the adapter is gone.
    The finding resolves when the fast level is back within 5 % of the loss before, or at once after a fall.

    ## What to change
    Where most of the loss's fall is undone, the adapter was not loaded: look for its weights' names. Then look whether
    the checkpoint holds optimizer.pt, scheduler.pt and rng_state.pth and whether they are loaded; keep
    `ignore_data_skip=False`; and look at the learning rate, which restarts when the schedule is lost.

    ## Known false alarms
    A resume on purpose with another data set, batch size or learning rate.

    ## Sources
    ml-engineering (Stas Bekman) on resuming and data order. The catalogue says 5 sigma of single points; the standard
    error of two means of ten, 0.45 sigma, is used instead: at 5 sigma a jump of a third is missed where the noise is
    7 %. Of 4,000 synthetic resumes without a jump each: none fire with white noise of 5 % and 20 %, 0.05 % and 0.3 %
    with AR(0.4) noise of 5 % and 20 %, 2.8 % with AR(0.6) noise of 10 %.
    """

    id: ClassVar[str] = "loss/resume-jump"
    title: ClassVar[str] = "Loss jumped at a resume"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    kinds = SUPERVISED
    min_points: ClassVar[int] = 20
    suppresses: ClassVar[tuple[str, ...]] = (
        "loss/diverging", "loss/blow-up", "loss/spike", "grad/explosion", "grad/spike", "eval/overfit", "eval/gap",
    )  # fmt: skip

    points: int = param(10, unit="points", help="Points compared on either side of the resume.")
    errors: float = param(5.0, unit="standard errors", help="Least difference, in standard errors.")
    relative: float = param(0.1, unit="ratio", help="Least difference, as a share of the loss before.")
    jumped: Breach | None = state(lambda: None)
    level: float = state(float)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare once, when ten points have come after a resume; a rise stands until the loss is back."""
        if run.resumed_step is None or run.rows_since_resume != self.points:
            if self.jumped is not None and (
                run.rows_since_resume < self.points or run.loss.fast <= (1.0 + self.relative / 2) * self.level
            ):
                self.jumped = None
            return self.jumped
        self.jumped = self._compare(run)
        if self.jumped is not None and self.jumped.evidence["difference"] < 0:
            fell, self.jumped = self.jumped, None
            return fell
        return self.jumped

    def _compare(self, run: Run) -> Breach | None:
        size = self.points
        values = run.series["loss"].window(2 * size)
        if len(values) < 2 * size or run.train_rows < 2 * size:
            return None
        before, after = values[:size], values[size:]
        mean, now = sum(before) / size, sum(after) / size
        _, slope = linear_fit(before)
        noise = max(math.sqrt(power_about_line(before) / (size - 2)), run.loss.sigma)
        error = noise * math.sqrt(2 / size)
        # The fall that was under way may go on, at most: it does not speak for a jump down.
        low = mean + min(slope, 0.0) * size
        difference = now - mean if now > mean else min(now - low, 0.0)
        if abs(difference) <= max(self.errors * error, self.relative * mean):
            return None
        lr = run.series.get("learning_rate")
        rates = lr.window(2 * size) if lr is not None else []
        rate_before, rate_after = (rates[size - 1], rates[size]) if len(rates) == 2 * size else (None, None)
        word = "rose" if difference > 0 else "fell"
        meaning = (
            "optimizer, schedule or adapter were not restored as they were"
            if difference > 0
            else "the data may be repeated from its start"
        )
        self.level = mean
        start = median(run.series["loss"].head[:5])
        lost = difference > 0.5 * (start - mean) > 0.0
        return Breach(
            f"loss {word} from {mean:.4g} to {now:.4g} at the resume from step {run.resumed_step}"
            + (f", of a start of {start:.4g}" if lost else "") + f": {meaning}",
            {"mean_before": mean, "mean_after": now, "difference": difference, "standard_error": error,
             "resumed_step": run.resumed_step, "learning_rate_before": rate_before,
             "learning_rate_after": rate_after, "start": start, "lost": lost},
            Severity.CRITICAL if lost else None,
        )  # fmt: skip

    def missing(self, run: Run) -> tuple[str, ...]:
        """It has nothing to judge in a run that was never resumed."""
        return ("a resume",) if run.resumed_step is None else ()

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """What to look at in the checkpoint, and the data's place."""
        before, after = breach.evidence["learning_rate_before"], breach.evidence["learning_rate_after"]
        advice: list[Adjustment] = []
        if before and after and not 0.5 < after / before < 2.0:
            advice.append(
                look(
                    f"the learning rate went from {before:.2g} to {after:.2g} at the resume: is scheduler.pt in the "
                    "checkpoint, and are max_steps and epochs those of the first start?",
                    "a schedule that was not restored starts over",
                    confidence="high",
                )
            )
        if breach.evidence["lost"]:
            advice.insert(
                0,
                look(
                    "does the log of the resume warn of missing or unexpected adapter keys? The names in the "
                    "checkpoint's adapter_model.safetensors must be those of the model (no module. or _orig_mod. in "
                    "them), or PEFT leaves these weights as they start",
                    "most of what was learnt is gone: the adapter was not loaded",
                    confidence="high",
                ),
            )
        if breach.evidence["difference"] > 0:
            advice.append(
                look(
                    "does the checkpoint hold optimizer.pt, scheduler.pt and rng_state.pth, and does the log say that "
                    "they were loaded (resume_from_checkpoint, save_only_model=False)?",
                    "without Adam's averages the first steps are too large",
                )
            )
        skips = run.fact("ignore_data_skip")
        if skips is not False:
            advice.append(
                Adjustment(
                    "ignore_data_skip", current=skips, proposed=False, apply="resume", direction="set",
                    confidence="high" if skips is True else "low",
                    why="goes on in the data where the run stopped, instead of at its start",
                    cost="the time to skip the batches seen",
                )
            )  # fmt: skip
        return advice
