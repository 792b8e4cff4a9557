"""The rule mem/oom-forecast."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from lorawatch.cards import card_of, label, outside_torch, size
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.fit import Curve, fit_curve
from lorawatch.memory_remedies import batch_tokens, empty_cache, less_memory
from lorawatch.records import AllocatorReading, StepTiming
from lorawatch.remedies import length_grouped, look
from lorawatch.rule import Rule, param, state
from lorawatch.run import REINFORCEMENT, Kind, Run
from lorawatch.spans import Thinned
from lorawatch.stats import mann_kendall_z, theil_sen

MOST_POINTS = 64
"""Points kept of size and peak: more say nothing new about a curve with three coefficients."""

Case = Literal["trend", "length"]


@dataclass(frozen=True, slots=True)
class _Forecast:
    """A size to come that does not fit."""

    case: Case
    tokens: float
    severity: Severity
    reached: float = 0.0
    step: float | None = None


@dataclass(slots=True)
class MemOomForecast(Rule):
    """Longer batches to come need more memory than the card has.

    ## Why it matters
    The longest batch decides whether a run fits, and it may come last. An out-of-memory error after hours costs all the
    steps since the last checkpoint; seen ahead, it costs a resume.

    ## How it decides
    Each time that a micro-batch is larger (in tokens, padding included) than all before it and torch's peak rises with
    it, that is a point. From 4 points on, whose largest size is at least 1.5 times their smallest, a line is fitted, or
    from 6 on a parabola where that leaves a quarter of the error (eager attention grows with the square of the length).
    The fit must explain 90 % of the variance. It is read off at two sizes, 5 % are added, and the result is compared
    with what the card has beyond the CUDA context and other processes:

    - `max_length` times the micro-batch, where that is at most twice the largest seen, before the first epoch is over:
      a warning.
    - Where the usual size of the batches grows (Mann–Kendall z above 4), the size at the end of the run, at the rate of
      the last half: critical where the size that no longer fits is at most twice the largest seen, else a warning; from
      four times on it says nothing.

    That torch has raised out-of-memory errors since training began is told as well: critical, for 200 steps. Errors
    from before the first reading are information: `auto_find_batch_size` finds its batch that way.

    ## What to change
    Half the micro-batch with twice the accumulation, and what else lowers the peak; `max_length` at the 99th percentile
    of the rows cuts data off, and comes after what does not. Grouping by length puts the longest batch first: the error
    then comes early, by design.

    ## Known false alarms
    Where no row is as long as `max_length`, the first forecast never comes true. Evaluation with larger batches, and
    a leak, raise the peak for another reason.

    ## Sources
    LLMem predicts the peak of fine-tuning within 1.6 % on one GPU and 3.0 % on several: hence the 5 %. The rule
    catalogue asks for 30 steps; torch's peak is never reset here (that would falsify the user's own figures), so that
    only sizes that exceed all before can be points: 400 simulated runs of 500 steps with log-normal lengths have a
    median of 4. Of 100 such runs that ran out of memory 37 were told, a median of 200 steps before; of 80 with rows
    sorted by length, which ran out in the last third, all, a median of 310 and 380 steps before; of 40 that
    ran out in the last twentieth, where the rare long rows are, none. In 400 runs whose largest batch fits (memory
    linear or quadratic in length, with a peak from loading or from evaluation) it said nothing; in 100 whose rows end
    at 1,300 of 2,048 tokens it warned of a full batch in 18. Not tried on a GPU by this project.
    """

    id: ClassVar[str] = "mem/oom-forecast"
    title: ClassVar[str] = "Out of memory ahead"
    severity: ClassVar[Severity] = Severity.WARNING
    judges = (StepTiming,)
    kinds = frozenset(Kind) - REINFORCEMENT
    suppresses: ClassVar[tuple[str, ...]] = ("mem/headroom",)

    points: int = param(4, unit="points", help="Points of size and peak that a forecast needs.")
    spread: float = param(1.5, unit="ratio", help="Least ratio of the largest to the smallest size among them.")
    r2: float = param(0.9, unit="ratio", help="Share of the variance that the fit must explain.")
    margin: float = param(1.05, unit="ratio", help="What the predicted peak is multiplied by.")
    trend: float = param(4.0, unit="z", help="Mann–Kendall statistic above which the usual size of batches grows.")
    least_steps: int = param(50, unit="steps", help="Steps before which nothing is forecast.")
    recent: int = param(200, unit="steps", help="Steps for which an out-of-memory error is told.")
    sizes: list[float] = state(list)
    peaks: list[float] = state(list)
    course: Thinned = state(Thinned)
    largest: int = state(int)
    smallest: int = state(int)
    peak: int = state(int)
    steps: int = state(int)
    growth: float = state(float)
    fit: Curve | None = state(lambda: None)
    ooms: int | None = state(lambda: None)
    oom_step: int | None = state(lambda: None)
    early: bool = state(bool)
    resumed: int | None = state(lambda: None)
    lacks: str = state(str)
    told: str = state(str)

    def missing(self, run: Run) -> tuple[str, ...]:
        """What it needs of the callback and of the card; and batches that tell how the peak grows."""
        if run.timing is not None and run.allocator is None:
            return ("readings of torch's allocator (the callback takes them)",)
        return (self.lacks,) if self.lacks else ()

    def judge(self, timing: StepTiming, run: Run) -> Breach | None:
        """Note size and peak; then see whether the sizes to come fit."""
        allocator = timing.allocator
        if allocator is None:
            return None
        oom = self._oom(allocator, run)
        if run.resumed_step != self.resumed or allocator.peak_allocated < self.peak:
            self.resumed = run.resumed_step
            self._forget()  # another process: its peaks begin anew
        if not self._note(timing, allocator):
            self.lacks = self.lacks if self.steps else "sizes of the micro-batches"
            return oom
        forecast = self._forecast(allocator, run)
        return oom if oom is not None and (forecast is None or oom.severity is Severity.CRITICAL) else forecast

    def _oom(self, allocator: AllocatorReading, run: Run) -> Breach | None:
        before, self.ooms = self.ooms, allocator.ooms
        if allocator.ooms > (before or 0):
            self.oom_step, self.early = run.step, before is None
        if self.oom_step is None or run.step - self.oom_step > self.recent or allocator.ooms <= 0:
            self.oom_step = None
            return None
        told = f"torch has raised {allocator.ooms} out-of-memory error" + ("s" if allocator.ooms > 1 else "")
        evidence = {"case": "early" if self.early else "happened", "ooms": allocator.ooms, "step": self.oom_step}
        if self.early:
            return Breach(f"{told} before the first reading: a smaller batch was tried then", evidence, Severity.INFO)
        told += f", the last by step {self.oom_step}; the run went on"
        return Breach(told, evidence, Severity.CRITICAL)

    def _forget(self) -> None:
        self.sizes.clear()
        self.peaks.clear()
        self.course.clear()
        self.fit, self.largest, self.smallest, self.peak, self.steps = None, 0, 0, 0, 0

    def _note(self, timing: StepTiming, allocator: AllocatorReading) -> bool:
        found = [one for step in timing.steps if (one := step.largest_micro_batch or 0) > 0]
        if not found or len(found) < timing.span:
            return False  # a larger one may have gone by unseen
        largest, self.steps = max(found), self.steps + timing.span
        self.smallest = min(self.smallest or largest, *found)
        if largest > self.largest and allocator.peak_allocated > self.peak:
            self.sizes.append(float(largest))
            self.peaks.append(float(allocator.peak_allocated))
            if len(self.sizes) > MOST_POINTS:
                del self.sizes[1:-1:2]
                del self.peaks[1:-1:2]
            self.fit = self._fitted()
        self.largest = max(self.largest, largest)
        self.peak = allocator.peak_allocated
        if self.course.add(timing.step, sum(found) / len(found)):
            self.growth = self._growth()
        return True

    def _fitted(self) -> Curve | None:
        sizes, peaks = self.sizes, self.peaks
        if len(sizes) < self.points or sizes[-1] < self.spread * sizes[0]:
            return None
        fit = fit_curve(sizes, peaks)
        if fit is None or fit.r2 < self.r2 or not fit.at(2 * sizes[-1]) > fit.at(sizes[-1]):
            return None
        return fit

    def _growth(self) -> float:
        """Tokens a step by which the usual micro-batch grows of late; 0 where its growth may be chance."""
        values, steps = self.course.column(0), self.course.steps
        if len(values) < 16 or mann_kendall_z(values, self.trend) < self.trend:
            return 0.0
        late = values[len(values) // 2 :]
        return max(theil_sen(late) * (len(late) - 1) / (steps[-1] - steps[-len(late)]), 0.0)

    def _forecast(self, allocator: AllocatorReading, run: Run) -> Breach | None:
        card, full = card_of(allocator, run.gpu), batch_tokens(run)
        if card is None or card.memory_total is None or card.memory_used is None:
            self.lacks = "memory total and use of the card (readings of the GPU)"
            return None
        if self.steps < self.least_steps:
            self.lacks = f"{self.least_steps} steps ({self.steps} so far)"
            return None
        self.lacks = ""
        if self.fit is None:
            if not self._seen_all(full, run):
                self.lacks = f"{self.points} batches that raise the peak ({len(self.sizes)} so far)"
            return None
        budget = card.memory_total - outside_torch(card, allocator)
        if not budget > 0:
            return None
        limit = budget / self.margin
        found = self._by_trend(self.fit, limit, full, run) or self._by_length(self.fit, limit, full, run)
        if found is None:
            return None
        self.told = found.case
        return self._breach(self.fit, found, budget, label(card), run)

    def _seen_all(self, full: float | None, run: Run) -> bool:
        """Whether the largest batch that can come has been: all are alike, it was full, or every row has been seen."""
        alike = self.largest <= 1.05 * self.smallest
        return alike or (full is not None and self.largest >= 0.98 * full) or (run.epoch or 0.0) >= 1.0

    def _eased(self, limit: float, case: Case) -> float:
        """The limit, lower for the forecast that was told: another must reach it in full to be told as well."""
        return limit * self.easing if self.told == case else limit

    def _by_trend(self, fit: Curve, limit: float, full: float | None, run: Run) -> _Forecast | None:
        total = run.max_steps
        if not total or self.growth <= 0.0 or total <= run.step:
            return None
        end = self.largest + self.growth * (total - run.step)
        end = end if full is None else min(end, full)
        if end <= self.largest or not fit.at(end) > self._eased(limit, "trend"):
            return None
        reached = fit.reaches(limit, float(self.largest), end)
        if reached > 4 * self.largest:
            return None
        step = run.step + (reached - self.largest) / self.growth
        critical = reached <= 2 * self.largest and fit.at(end) > limit
        return _Forecast("trend", end, Severity.CRITICAL if critical else Severity.WARNING, reached, step)

    def _by_length(self, fit: Curve, limit: float, full: float | None, run: Run) -> _Forecast | None:
        if full is None or not self.largest < full <= 2 * self.largest:
            return None
        if (run.epoch is not None and run.epoch >= 1.0) or not fit.at(full) > self._eased(limit, "length"):
            return None  # after an epoch every row has been seen
        return _Forecast("length", full, Severity.WARNING)

    def _breach(self, fit: Curve, found: _Forecast, budget: int, name: str, run: Run) -> Breach:
        need, there = fit.at(found.tokens), f"where {size(budget)} are there"
        if found.step is None:
            summary = (
                f"{name} has no room for a full batch: one of {found.tokens:,.0f} tokens (max_length) needs "
                f"{size(need)} ± 5 %, {there}; the largest so far had {self.largest:,}"
            )
        else:
            summary = (
                f"{name} runs out of memory at about step {found.step:.0f} of {run.max_steps}: batches grow by "
                f"{self.growth:.2g} tokens a step, and one of {found.reached:,.0f} tokens needs "
                f"{size(fit.at(found.reached))} ± 5 %, {there}; by the end it is {size(need)}"
            )
        return Breach(
            summary,
            {"case": found.case, "step": found.step, "tokens": found.tokens, "largest_tokens": self.largest,
             "predicted_bytes": need, "budget_bytes": budget, "peak_bytes": self.peak, "points": fit.points,
             "r2": fit.r2, "quadratic": fit.bend > 0.0, "bytes_per_token": fit.slope},
            found.severity,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """A smaller micro-batch first: batches are what grows. Rows are cut off only after what loses no data."""
        case = breach.evidence["case"]
        if case == "early":
            why = "the batch that did not fit is no longer used"
            return [look("nothing, where auto_find_batch_size found a batch that fits", why)]
        advice = less_memory(run, float(self.largest) or None)
        batch = ("per_device_train_batch_size", "gradient_accumulation_steps")
        first = [one for one in advice if one.parameter in batch]
        rest = [one for one in advice if one.parameter not in batch]
        cache = empty_cache(run, "gives the cache back before it is in the way of a longer batch")
        found = [*first, *rest, *([cache] if cache else [])]
        if case == "trend" and not length_grouped(run):
            found.append(
                look(
                    "are the rows sorted by length? Grouped by length (train_sampling_strategy) the longest batch "
                    "comes first: what does not fit fails at once", "an error at step 1 costs nothing",
                    confidence="low",
                )
            )  # fmt: skip
        return found
