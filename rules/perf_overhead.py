"""The rule perf/overhead."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import Step, StepTiming
from lorawatch.remedies import look
from lorawatch.rule import param, state
from lorawatch.run import Run
from lorawatch.step_rule import StepRule

LEAST_STEPS = 100
LEAST_SAVES = 3


class Parts(NamedTuple):
    """What the time after the steps of one record was spent on.

    Attributes:
        whole: Seconds after its steps; no less than the parts together.
        logging: Seconds of logging.
        evaluation: Seconds of evaluation.
        saving: Seconds of saving.
        saves: Checkpoints that were written.
    """

    whole: float
    logging: float
    evaluation: float
    saving: float
    saves: int


NONE = Parts(1.0, 0.0, 0.0, 0.0, 0)


@dataclass(slots=True)
class PerfOverhead(StepRule):
    """Logging, evaluation, saving and callbacks take much of the run's time.

    ## Why it matters
    While they run, nothing is learnt. A checkpoint that is written too often, or to a slow disk, can cost more than
    the steps that it keeps safe.

    ## How it decides
    Over the run so far, from 100 steps on: the time after the steps, over all of the time, is more than 15 %. The
    longest single stop is left out: a first evaluation compiles, a disk may hang once. Or saving takes more than 10 %
    of the time over at least 3 checkpoints, that is: a save takes more than a tenth of the time between two.

    Logging, evaluation and saving are told for a record of several steps together. Within a record each step is given
    of them in proportion to the time after it.

    ## What to change
    What takes the most. Save less often, or to a local disk, or `save_only_model=True`, with which a run cannot be
    resumed. Evaluate less often or on fewer rows (`eval/cost` says more). Log less often, to fewer places.

    ## Known false alarms
    Short runs and test runs, in which measuring is the point.

    ## Sources
    15 and 10 % are choices without another authority (rule catalogue, 56).
    """

    id: ClassVar[str] = "perf/overhead"
    title: ClassVar[str] = "Logging, evaluation and saving take much of the time"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"

    share: float = param(0.15, unit="ratio", help="Share of the time that may pass between the steps.")
    saving_share: float = param(0.10, unit="ratio", help="Share of the time that saving may take.")
    wall: float = state(float)
    after: float = state(float)
    longest: float = state(float)
    logging: float = state(float)
    evaluation: float = state(float)
    saving: float = state(float)
    saves: float = state(float)
    parts: Parts = state(lambda: NONE)

    def missing(self, run: Run) -> tuple[str, ...]:
        """Enough steps."""
        if self.steps >= LEAST_STEPS:
            return ()
        return self.unseen(run) or (f"the times of {LEAST_STEPS} steps ({self.steps} so far)",)

    def judge(self, timing: StepTiming, run: Run, /) -> Breach | None:
        """See what the time after the steps of the record was spent on, then take in the steps."""
        self.parts = _parts(timing)
        return StepRule.judge(self, timing, run)

    def take(self, step: Step) -> bool:
        """Add up the step and what came after it."""
        after, work = step.after, step.work
        if not _counts(step):
            return False
        self.wall += (step.data_wait or 0.0) + work + after
        self.after += after
        # Not the whole record at once: it is decided within it, when its later steps are not taken in yet.
        parts = self.parts
        part = after / parts.whole
        self.logging += part * parts.logging
        self.evaluation += part * parts.evaluation
        self.saving += part * parts.saving
        self.saves += part * parts.saves
        if after > self.longest:
            self.longest = after
        return True

    def decide(self, run: Run) -> Breach | None:
        """Compare the shares with the limits."""
        if self.steps < LEAST_STEPS:
            return None
        wall, eased = self.wall, self.eased
        often = self.after - self.longest > self.share * eased * (wall - self.longest)
        slow = round(self.saves) >= LEAST_SAVES and self.saving > self.saving_share * eased * wall
        if not (often or slow) or not wall > 0.0:
            return None
        return self.verdict or self._breach(wall)

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Less of what takes the most."""
        shares = breach.evidence["shares"]
        advice: list[Adjustment] = []
        for part in sorted(shares, key=lambda one: -shares[one]):
            if shares[part] >= 0.03:
                advice += _REMEDIES[part](run, f"{part} {_TAKE[part]} {100 * shares[part]:.0f} % of the time")
        return advice

    def _breach(self, wall: float) -> Breach:
        other = max(self.after - self.logging - self.evaluation - self.saving, 0.0)
        parts = {"evaluation": self.evaluation, "saving": self.saving, "logging": self.logging,
                 "callbacks": other}  # fmt: skip
        shares = {name: seconds / wall for name, seconds in parts.items()}
        told = ", ".join(f"{name} {100 * share:.0f} %" for name, share in shares.items() if share >= 0.005)
        saves = round(self.saves)
        one = f"; a checkpoint takes {self.saving / self.saves:.2g} s" if saves else ""
        return Breach(
            f"{100 * self.after / wall:.0f} % of the time passes between the steps ({told}){one}",
            {"share": self.after / wall, "shares": shares, "seconds": wall, "steps": self.steps,
             "saves": saves, "longest_stop_seconds": self.longest},
        )  # fmt: skip


def _counts(step: Step) -> bool:
    """Whether the times of a step are such that they can be added up."""
    return 0.0 <= step.after < math.inf and 0.0 <= step.work < math.inf


def _parts(timing: StepTiming) -> Parts:
    """What the time after the steps of a record was spent on; nothing is known where its numbers are none."""
    told = (timing.logging, timing.evaluation, timing.saving)
    if not all(0.0 <= one < math.inf for one in told) or timing.saves < 0:
        return NONE
    # What is told exceeds the steps where some were lost on the way (StepRecorder keeps a limited number of them).
    whole = max(sum(step.after for step in timing.steps if _counts(step)), sum(told))
    if not 0.0 < whole < math.inf:
        return NONE
    return Parts(whole, *told, timing.saves)


def _saving(run: Run, why: str) -> list[Adjustment]:
    advice: list[Adjustment] = []
    steps = run.number("save_steps")
    if str(run.fact("save_strategy", "steps")) == "steps":
        advice.append(
            Adjustment(
                "save_steps", current=steps, proposed=int(2 * steps) if steps and steps >= 1 else "twice as many",
                direction="up", confidence="medium", apply="resume", why=why, cost="more steps are lost by a crash",
            )
        )  # fmt: skip
    advice.append(look("save to a local disk, and copy from there", why))
    if run.fact("save_only_model") is not True:
        advice.append(
            Adjustment(
                "save_only_model", current=run.fact("save_only_model"), proposed=True, confidence="low",
                apply="resume", why=f"{why}; optimizer and scheduler are left out of the checkpoint",
                cost="a run cannot be resumed from such a checkpoint",
            )
        )  # fmt: skip
    return advice


def _evaluation(run: Run, why: str) -> list[Adjustment]:
    steps = run.number("eval_steps")
    advice = [look("evaluate on a fixed subset of 200 to 500 rows", why)]
    if str(run.fact("eval_strategy", "steps")) == "steps":
        advice.insert(
            0,
            Adjustment(
                "eval_steps", current=steps, proposed=int(2 * steps) if steps and steps >= 1 else "twice as many",
                direction="up", confidence="medium", apply="resume", why=why,
                cost="a turning point of the evaluation is seen later",
            ),
        )  # fmt: skip
    return advice


def _logging(run: Run, why: str) -> list[Adjustment]:
    steps = run.number("logging_steps")
    advice = [look("log to fewer places (report_to): some send each row over the network and wait for it", why)]
    if steps is None or steps < 10:
        advice.insert(
            0,
            Adjustment(
                "logging_steps", current=steps, proposed=10, direction="up", confidence="medium", apply="resume",
                why=why, cost="a spike is averaged over 10 steps",
            ),
        )  # fmt: skip
    return advice


def _callbacks(_: Run, why: str) -> list[Adjustment]:
    return [look("look at the callbacks' on_step_end, and at what they do there at every step", why)]


_TAKE = {"saving": "takes", "evaluation": "takes", "logging": "takes", "callbacks": "take"}
_REMEDIES = {"saving": _saving, "evaluation": _evaluation, "logging": _logging, "callbacks": _callbacks}
