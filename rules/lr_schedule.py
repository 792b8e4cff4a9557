"""The rule lr/schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import warmup
from lorawatch.rule import Rule, param, state
from lorawatch.run import LANGUAGE_MODELLING, Run

SEVERAL_RATES = (
    "loraplus_lr_ratio", "loraplus_lr_embedding", "lorap_lr_ratio", "embedding_lr", "embedding_learning_rate",
    "lr_groups", "mm_projector_lr", "vit_lr", "aligner_lr",
)  # fmt: skip
"""Facts that give a group of parameters a rate of its own: the logged one need not be the stated one.

LoRA+ (PEFT, LLaMA-Factory, axolotl, ms-swift), Unsloth's and axolotl's embeddings, groups of vision models.
"""
RAISES = ("restart", "cycl", "greedy")
"""Parts of the names of schedules that raise the rate again by design.

Of the schedules that transformers' ``get_scheduler`` makes, only GreedyLR goes above the configured rate: its
``max_lr`` is 1.0 by default (``optimization.py``, 5.24). Cosine restarts return to it.
"""


@dataclass(slots=True)
class LrSchedule(Rule):
    """The learning rate in the log does not fit the run: zero, ended early, too high, warming up too long, begun anew.

    ## Why it matters
    A schedule is made for a number of steps. When that number is wrong (a changed batch size, a resume, a hand-made
    scheduler) the rate is 0 long before the end, or still rising when the run is over, and no loss curve says why.

    ## How it decides
    From the 10th logged rate on; what depends on the run's length only where the steps are known, not reconstructed.

    - Every one of 20 or more logged rates is 0, and the loss has not fallen by 5 %: a warning.
    - The rate has been below 1 % of its peak for 5 % of the run, and more than 10 % of the steps are left: a warning.
      Cosine restarts stay below 1 % for less than that.
    - The rate is still rising, and has been from the start, after 20 % of the run: information; after 50 % a warning.
    - After a resume, the first rate is less than 30 % of the last one before, and the second higher again: information,
      for the schedule began anew (unless the run states another rate now: then it was meant to). More than 1.5 times
      as high, when it was falling before: likewise; a longer `num_train_epochs` stretches the schedule in the same way.
    - The rate follows the stated `learning_rate` (it has stood or fallen, its peak within 10 % of it), then exceeds it
      by more than half: a warning at once. At a resume it may be the stated rate that fell: told from the second log
      on. A rate that was that far above the stated one all along is information, where a callback told the facts: an
      optimizer made by hand need not use what is stated, and a file beside the log may be of a later part of the run.
    - The rate triples from one log to the next, to more than 5 % above its peak and above the stated rate, when it had
      not risen for 5 logs: a warning. Not at a resume.
    - The last two are not asked where groups of parameters have rates of their own (LoRA+), nor of schedules that
      restart, cycle or search (`greedy`).
    - No warm-up, with a rate of 2e-4 or more: information. Told from the facts, or from a rate of at least 90 % of
      the peak in the first 2 steps.

    ## What to change
    Make the schedule fit: the steps that the scheduler was made for must be those of the run. `warmup_steps` of 3 to
    10 % of the run. On a resume, restore `scheduler.pt` and `optimizer.pt`. Where the rate rose in mid-run, look at
    what changed there: a `LambdaLR` multiplies the stated rate by what its function returns, and a `gamma` above 1
    raises it.

    ## Known false alarms
    A log that prints the rate with four decimals shows 2e-5 as 0.0000; that is why the loss is looked at. A one-cycle
    schedule that rises for 30 % of the run on purpose. A stage of training at a higher rate, in the same log.

    ## Sources
    Unsloth's guide: warm up for 5 to 10 %. On the public runs nothing fires as a warning on a healthy run of high
    confidence; one of medium confidence does (a warm-up of 500 of its 555 steps). A cosine is below 1 % of its peak
    only in the last 6.4 % of its cycle, a linear decay in the last 1 %. No schedule of `get_scheduler` but GreedyLR
    exceeds the configured rate (transformers 5.24, `optimization.py`; `cosine_with_min_lr` does with a `min_lr` above
    it). The factors of 1.5 and 3 are heuristics: neither case fires on 181 public logs (113 log a rate, 12 of them
    state one) nor on 24 healthy runs of the reference trainer; a rate times 18 or 30 in mid-run is told at its first
    log in 4 of 4, stated or not. That a resumed Trainer keeps the rate of `scheduler.pt` was measured with
    transformers 5.23.
    A schedule that begins anew in mid-run did no harm where it was measured: in three runs of the reference trainer
    the eval_loss was 7 to 12 % lower with it than without, for these short runs gain from more steps at a high rate.
    That is why it is information.
    """

    id: ClassVar[str] = "lr/schedule"
    title: ClassVar[str] = "The learning-rate schedule does not fit the run"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[str, ...]] = ("learning_rate",)
    min_points: ClassVar[int] = 10

    release: int = param(5, unit="logs", help="Calm logs in a row before it resolves.")
    ended: float = param(0.01, unit="ratio", help="Share of the peak below which the schedule has ended.")
    left: float = param(0.10, unit="ratio", help="Share of the run that must be left for that to matter.")
    stay: float = param(0.05, unit="ratio", help="Share of the run that the rate must stay there.")
    warmup: float = param(0.20, unit="ratio", help="Share of the run after which a rising rate is worth a word.")
    long_warmup: float = param(0.50, unit="ratio", help="Share of the run after which it is a warning.")
    excess: float = param(1.5, unit="ratio", help="Multiple of the stated rate above which the rate is too high.")
    jump: float = param(3.0, unit="ratio", help="Rise from one log to the next that is a jump, where it had not risen.")
    calm: int = param(5, unit="logs", help="Logs without a rise before a rise that counts as a jump.")
    cold: float = param(2e-4, unit="learning rate", help="Rate from which a run without warm-up is worth a word.")
    count: int = state(int)
    previous: float = state(float)
    peak: float = state(float)
    rising: bool = state(lambda: True)
    low_since: int = state(lambda: -1)
    before_resume: float = state(float)
    peak_before: float = state(float)
    was_falling: bool = state(bool)
    resumed: int | None = state(lambda: None)
    after: int = state(int)
    first_after: float = state(float)
    restart: Breach | None = state(lambda: None)
    hot_start: bool = state(bool)
    cold_start: Breach | None = state(lambda: None)
    steady: int = state(int)
    stated: float = state(float)
    followed: bool = state(bool)
    lowered: bool = state(bool)
    above: Breach | None = state(lambda: None)
    jumped: Breach | None = state(lambda: None)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Follow the rate; look closer where it is low, rising late, or after a resume."""
        rate = row.values["learning_rate"]
        if not rate >= 0.0:
            return None
        self.count += 1
        previous, self.previous = self.previous, rate
        if run.resumed_step is not self.resumed:
            self.resumed, self.after = run.resumed_step, 0
            self.before_resume, self.peak_before, self.was_falling = previous, self.peak, previous < self.peak
        if self.resumed is not None and self.after < 5:
            self._resumed(rate, run)
        risen = self._risen(rate, previous, run)
        if risen is not None and risen.severity is None:
            return risen  # before it can become the peak that the rest is measured by
        return self._scheduled(row, rate, previous, run) or risen

    def _scheduled(self, row: MetricRow, rate: float, previous: float, run: Run) -> Breach | None:
        count, peak = self.count, self.peak
        if rate > peak:
            self.peak = rate
            self.low_since = -1
            if self.rising and count > 10:
                return self._rising(row, rate, run) or self.restart
            if count == 1 and rate >= self.cold and row.step is not None and row.step <= 2 and not row.estimated:
                self.hot_start = True
            return self.restart
        if rate < previous:
            self.rising = False
        if rate <= self.ended * peak:
            return self._low(row, rate, run) or self.restart
        self.low_since = -1
        if count <= 100 and peak >= self.cold and count >= 10:
            return self.restart or self._cold(run)
        return self.restart

    def _risen(self, rate: float, previous: float, run: Run) -> Breach | None:
        stated = run.number("learning_rate") or 0.0
        begins = run.rows_since_resume <= 1
        if stated != self.stated:
            self.lowered = self.followed and 0.0 < stated < self.stated and begins
            self.followed, self.stated, self.above = self.lowered, stated, None
        steady, self.steady = self.steady, 0 if rate > previous else self.steady + 1
        if begins:
            self.steady, self.above, self.jumped = 0, None, None
            return None
        if stated > 0.0:
            if not self.followed and rate <= previous:
                self.followed = 0.9 * stated <= self.peak <= 1.1 * stated
            if rate > stated * self.excess * (self.easing if self.above is not None else 1.0):
                self.above = self.above or self._above(rate, stated, run)
                if self.above is not None:
                    return self.above
            else:
                self.above = None
                self.lowered = self.lowered and rate > 1.1 * stated
        if not rate > 1.05 * max(self.peak, stated):
            self.jumped = None
        elif self.jumped is None and steady >= self.calm and 0.0 < self.jump * previous <= rate and _one_rate(run):
            self.jumped = Breach(
                f"the learning rate jumped from {previous:.2g} to {rate:.2g} at step {run.step}, after {steady} logs "
                "in which it did not rise",
                {"learning_rate": rate, "before": previous, "ratio": rate / previous, "since_step": run.step,
                 "case": "jump"},
            )  # fmt: skip
        return self.jumped

    def _above(self, rate: float, stated: float, run: Run) -> Breach | None:
        known = run.facts["learning_rate"]
        if known.inferred or not _one_rate(run):
            return None
        told = f"the learning rate is {rate:.2g}, {rate / stated:.2g} times the stated learning_rate {stated:g}"
        evidence = {"learning_rate": rate, "stated": stated, "ratio": rate / stated, "since_step": run.step}
        if self.lowered:
            return Breach(
                f"{told}: the run was resumed at step {run.resumed_step} and goes on with the rate of before",
                evidence | {"case": "kept"},
            )
        if self.followed:
            return Breach(f"{told}, since step {run.step}", evidence | {"case": "above"})
        if known.origin != "callback" or self.count < self.min_points or rate > self.peak:
            return None  # a file's facts may be those of a later part of the run
        return Breach(f"{told}, and was never near it", evidence | {"case": "other"}, Severity.INFO)

    def _low(self, row: MetricRow, rate: float, run: Run) -> Breach | None:
        if self.peak == 0.0:
            loss = run.loss
            if self.count < 20 or (loss.count >= 5 and loss.fast < 0.95 * loss.initial):
                return None
            return Breach(
                f"the learning rate is 0 in all {self.count} logs: the optimizer changes nothing",
                {"learning_rate": 0.0, "logs": self.count, "case": "zero"},
            )
        total = run.max_steps
        if total is None or row.step is None:
            return None
        if self.low_since < 0:
            self.low_since = run.step
        if run.step - self.low_since < self.stay * total or total - run.step <= self.left * total:
            return None
        return Breach(
            f"the learning rate is {rate:.2g}, below {100 * self.ended:.0f} % of its peak of {self.peak:.2g}, since "
            f"step {self.low_since}, with {total - run.step} of {total} steps left",
            {"learning_rate": rate, "peak": self.peak, "low_since_step": self.low_since, "max_steps": total,
             "case": "ended"},
        )  # fmt: skip

    def _rising(self, row: MetricRow, rate: float, run: Run) -> Breach | None:
        total = run.max_steps
        if total is None or row.step is None or run.step <= self.warmup * total:
            return None
        share = run.step / total
        return Breach(
            f"the learning rate still rises at step {run.step} of {total} ({100 * share:.0f} % of the run): the "
            "warm-up is too long",
            {"learning_rate": rate, "step": run.step, "max_steps": total, "case": "warmup"},
            None if share > self.long_warmup else Severity.INFO,
        )

    def _resumed(self, rate: float, run: Run) -> None:
        self.after += 1
        before, stated = self.before_resume, run.number("learning_rate")
        if not before > 0.0 or (stated is not None and not 0.9 < stated / self.peak_before < 1.1):
            return  # another rate on purpose begins a schedule of its own
        if self.after == 1:
            self.first_after = rate
            self.restart = None
            if self.was_falling and rate > 1.5 * before:
                self.restart = Breach(
                    f"after the resume at step {self.resumed} the learning rate is {rate:.2g}; before it was "
                    f"{before:.2g} and falling: the schedule began anew, or was stretched to more steps",
                    {"learning_rate": rate, "before_resume": before, "resumed_step": self.resumed, "case": "resume"},
                    Severity.INFO,
                )
        elif self.after == 2 and self.first_after < 0.3 * before and rate > self.first_after:
            self.restart = Breach(
                f"after the resume at step {self.resumed} the learning rate warms up again ({self.first_after:.2g}, "
                f"{rate:.2g}; before it was {before:.2g}): the scheduler's state was not restored",
                {"learning_rate": rate, "before_resume": before, "resumed_step": self.resumed, "case": "resume"},
                Severity.INFO,
            )

    def _cold(self, run: Run) -> Breach | None:
        if run.kind not in LANGUAGE_MODELLING:
            return None
        steps, ratio = run.number("warmup_steps"), run.number("warmup_ratio")
        if (steps or 0.0) > 0 or (ratio or 0.0) > 0:
            return None  # what is stated beats a first rate that was logged after a warm-up of a few steps
        if not self.hot_start and steps is None:
            return None
        told = self.cold_start
        if told is None or told.evidence["peak"] != self.peak:  # else it says the same at each row
            told = self.cold_start = Breach(
                f"no warm-up: the learning rate starts at its peak of {self.peak:.2g}",
                {"peak": self.peak, "case": "cold"},
                Severity.INFO,
            )
        return told

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """By the case: what makes the schedule fit."""
        case, rate = breach.evidence["case"], run.number("learning_rate")
        total = run.max_steps
        if case == "zero":
            look = Adjustment(
                "", proposed="look at the scheduler: trainer.lr_scheduler.get_last_lr(), and the number of steps it "
                "was made for", apply="check", confidence="high",
                why=(f"the log shows 0 where {rate:g} is configured; " if rate else "")
                + "a scheduler made for 0 or 1 steps, or stepped once too often, gives 0 throughout",
            )  # fmt: skip
            if rate:
                return [look]
            return [
                Adjustment(
                    "learning_rate", current=rate, proposed=2e-4, direction="up", confidence="medium",
                    why="with a rate of 0 nothing is learnt; 2e-4 is TRL's value for LoRA fine-tuning",
                ),
                look,
            ]  # fmt: skip
        if case == "ended":
            made_for = breach.evidence["low_since_step"]
            return [
                Adjustment(
                    "", proposed=f"make the schedule for {total} steps: num_training_steps of a scheduler made by "
                    "hand counts optimizer steps, not micro-batches", apply="check", confidence="high",
                    why="a changed batch size, accumulation or number of GPUs moves the end of the schedule",
                ),
                Adjustment(
                    "max_steps", current=total, proposed=made_for, direction="down", confidence="medium",
                    apply="check",
                    why=f"or stop at about step {made_for}, where the schedule is over: the rest trains nothing",
                ),
            ]  # fmt: skip
        if case == "warmup":
            stated = run.number("warmup_steps") is not None or run.number("warmup_ratio") is not None
            if total and stated and run.warmup_steps <= 0.1 * total:
                return [
                    Adjustment(
                        "", proposed=f"look at the scheduler: the run states a warm-up of {run.warmup_steps} steps, "
                        "the log shows a longer one", apply="check", confidence="high",
                        why="a scheduler made by hand, or one that is stepped too seldom, rises for longer",
                    )
                ]  # fmt: skip
            why = "3 to 10 % of the run is the usual warm-up; until it is over, the run trains at less than its rate"
            return [warmup(run, why, share=0.05, confidence="high", direction="down")]
        if case == "cold":
            why = (
                "Adam's first steps are its least certain; 3 to 10 % of warm-up costs next to nothing. If the loss "
                "falls smoothly, leave it"
            )
            return [warmup(run, why, share=0.03, confidence="low", direction="up")]
        if case in ("above", "jump"):
            since = breach.evidence["since_step"]
            return [
                Adjustment(
                    "", proposed=f"look at what changed there, at step {since}: the function of a LambdaLR returns a "
                    "factor of the stated rate, a gamma above 1 raises it at each milestone, and a callback may set "
                    "the optimizer's lr", apply="check", confidence="high",
                    why="none of the Trainer's usual schedules raises the rate above the stated one; go on from a "
                    f"checkpoint before step {since}",
                )
            ]  # fmt: skip
        if case == "kept":
            return [
                Adjustment(
                    "", proposed="delete scheduler.pt from the checkpoint and resume again", apply="check",
                    confidence="high",
                    why="a resumed Trainer takes its learning rate from there, not from its arguments",
                    cost="the schedule begins anew, warm-up included",
                )
            ]  # fmt: skip
        if case == "other":
            return [
                Adjustment(
                    "", proposed="look at optimizer and scheduler: made by hand, they use their own rate and not "
                    "learning_rate; state the one that is meant", apply="check", confidence="medium",
                    why="what is stated is what a later run, and a comparison of runs, will go by",
                )
            ]  # fmt: skip
        advice = [
            Adjustment(
                "", proposed="was a second cycle of the rate meant? If not, resume with "
                "trainer.train(resume_from_checkpoint=…) from a folder that holds scheduler.pt and optimizer.pt, and "
                "the same num_train_epochs", apply="check", confidence="medium",
                why="without them warm-up, peak rate and Adam's first steps come again, and the run ends before the "
                "rate has come down; where loss and eval_loss fall on as before, it does no harm",
            )
        ]  # fmt: skip
        if run.fact("save_only_model") is True:
            advice.append(
                Adjustment(
                    "save_only_model", current=True, proposed=False, apply="resume", confidence="medium",
                    why="save_only_model=True leaves optimizer and scheduler out of the checkpoint",
                    cost="checkpoints about three times as large",
                )
            )  # fmt: skip
        return advice


def _one_rate(run: Run) -> bool:
    """Whether all parameters have the stated rate, and no schedule that raises it by design."""
    if any(run.fact(name) is not None for name in SEVERAL_RATES):
        return False
    schedule = str(run.fact("lr_scheduler_type", "")).lower()
    return not any(part in schedule for part in RAISES)
