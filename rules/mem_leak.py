"""The rule mem/leak."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import StatisticsError, linear_regression, median
from typing import ClassVar

from lorawatch.cards import GIB, MIB, card_of, label, outside_torch, size
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import StepTiming
from lorawatch.remedies import look
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run
from lorawatch.spans import Thinned
from lorawatch.stats import mann_kendall_z, theil_sen


@dataclass(slots=True)
class MemLeak(Rule):
    """Memory in tensors grows from step to step, and does not come back.

    ## Why it matters
    At the end of a step what is left in tensors is weights, adapter and optimizer state: it stays the same from the
    second step on. When it grows, something keeps tensors, and the run ends out of memory, however small its batches.

    ## How it decides
    What torch has allocated at the end of a step, from step 20 on, in at most 64 points over the whole run; over 200
    steps or more. Records with an evaluation, and the one after, are left out. Where the size of the batches is known,
    what follows it (a straight line over the tokens of the last step) is taken away first.

    In thirds of the points, the median of the last is above that of the middle, which is not below that of the first;
    the last half rises (Mann–Kendall z above 3) at no less than a third of the mean rate, so that one step up is no
    leak. And it has grown by more than 1 GiB, or, from 64 MiB on, at this rate the card is full before the run is over
    and within ten times the steps that were seen. It is critical when that is within 15 minutes, or within a tenth of
    the steps that are left.

    ## What to change
    Look for what keeps tensors: a loss or metric that is added up or appended without `.item()` or `.detach()` keeps
    its whole graph. `empty_cache` does not help: this is memory in use. A resume from a checkpoint starts afresh, and
    is the way through where the cause is not found.

    ## Known false alarms
    Modules that come alive one by one (experts of a mixture that are rarely routed) allocate optimizer state late.
    Without the sizes of the batches, lengths that grow over the run may look like a leak.

    ## Sources
    The bands and the limit of 1 GiB are TraceML's; SageMaker's debugger takes 5 %. That nothing is forecast for more
    than ten times the steps that it was seen for, and the test of the last half, are this project's. In 400 simulated
    flat runs of 2,000 steps (noise of 200 MiB, sizes of batches known and unknown) it never fired. Leaks of 5, 1 and
    0.5 MB a step were all found, after a median of 315, 1,100 and 2,240 steps; of 0.2 MB 10 of 40 within 5,000. Not
    tried on a GPU by this project.
    """

    id: ClassVar[str] = "mem/leak"
    title: ClassVar[str] = "GPU memory leaks"
    severity: ClassVar[Severity] = Severity.WARNING
    judges = (StepTiming,)
    suppresses: ClassVar[tuple[str, ...]] = ("mem/headroom", "mem/oom-forecast")

    settle: int = param(20, unit="steps", help="Steps at the start that are left out.")
    least_steps: int = param(200, unit="steps", help="Steps that it must be seen over.")
    growth: float = param(1.0, unit="GiB", help="Growth that is a leak, whenever the card would be full.")
    least_growth: float = param(64.0, unit="MiB", help="Growth below which nothing is forecast.")
    ahead: float = param(10.0, unit="ratio", help="Steps that are forecast, over those that it was seen for.")
    trend: float = param(3.0, unit="z", help="Mann–Kendall statistic above which the last half rises.")
    soon: float = param(900.0, unit="s", help="Time until the card is full below which it is critical.")
    points: Thinned = state(Thinned)
    skip: bool = state(bool)
    start: int | None = state(lambda: None)
    resumed: int | None = state(lambda: None)
    verdict: tuple[float, float] | None = state(lambda: None)

    def missing(self, run: Run) -> tuple[str, ...]:
        """Torch's figures, over enough steps."""
        if run.timing is not None and run.allocator is None:
            return ("readings of torch's allocator (the callback takes them)",)
        if self._enough():
            return ()
        return (f"{self.least_steps} steps away from evaluation ({self.points.span} so far)",)

    def judge(self, timing: StepTiming, run: Run) -> Breach | None:
        """Note what is allocated; judge anew when a point was kept."""
        allocator = timing.allocator
        if allocator is None:
            return None
        if self.start is None or run.resumed_step != self.resumed:
            self.start, self.resumed = timing.step - timing.span, run.resumed_step
            self._forget()  # another process
        evaluated = timing.evaluation > 0.0
        skip, self.skip = self.skip or evaluated, evaluated
        points = self.points
        if points.rows and allocator.allocated < 0.5 * points.rows[-1][0]:
            self._forget()  # the model was moved
        if skip or timing.step - self.start < self.settle or allocator.allocated <= 0:
            return self._breach(run) if self.verdict else None
        tokens = (timing.steps[-1].padded_tokens if timing.steps else None) or -1
        if points.add(timing.step, float(allocator.allocated), float(tokens)):
            self.verdict = self._judged() if self._enough() else None
        return self._breach(run) if self.verdict else None

    def _forget(self) -> None:
        self.points.clear()
        self.verdict = None

    def _enough(self) -> bool:
        return self.points.span >= self.least_steps and len(self.points.steps) >= 12

    def _judged(self) -> tuple[float, float] | None:
        """Growth in bytes, and bytes a step at the end; None where it does not grow steadily."""
        points = self.points
        values = without_batch_size(points.column(0), points.column(1))
        third, half = len(values) // 3, len(values) // 2
        first, middle, last = median(values[:third]), median(values[third:-third]), median(values[-third:])
        grown = last - first
        told = self.easing < 1.0  # then only what says that it has stopped or come back counts
        if grown < self.least_growth * MIB * self.easing or not (told or last > middle >= first):
            return None
        recent = values[half:]
        if not told and mann_kendall_z(recent, self.trend) < self.trend:
            return None
        rate = theil_sen(recent) * (len(recent) - 1) / max(points.steps[-1] - points.steps[half], 1)
        mean_rate = 1.5 * grown / points.span  # medians of the outer thirds are two thirds of the span apart
        return (1.5 * grown, rate) if rate >= mean_rate / (10 if told else 3) else None

    def _breach(self, run: Run) -> Breach | None:
        if self.verdict is None:
            return None
        grown, rate = self.verdict
        left = self._steps_left(rate, run)
        remaining = None if run.max_steps is None else run.max_steps - run.step
        fills = left is not None and remaining is not None and left < min(remaining, self.ahead * self.points.span)
        if not fills and grown < self.growth * GIB * self.easing:
            return None
        seconds = run.typical_step_seconds
        eta = left * seconds if left is not None and seconds is not None else None
        critical = fills and (
            (eta is not None and eta < self.soon) or (left or 0.0) < 0.1 * (remaining or 0)
        )  # fmt: skip
        card = card_of(run.allocator, run.gpu)
        what = f"memory in tensors grows by {size(1000 * rate)} in 1000 steps"
        what += f", {size(grown)} in the last {self.points.span}"
        if left is not None:
            what += f": {label(card) if card else 'the card'} is full in about {left:.0f} steps"
            what += f" ({eta / 60:.0f} min)" if eta is not None else ""
        return Breach(
            what,
            {"growth_bytes": grown, "bytes_a_step": rate, "over_steps": self.points.span, "steps_until_full": left,
             "seconds_until_full": eta, "steps_left": remaining,
             "allocated_bytes": run.allocator.allocated if run.allocator else None},
            Severity.CRITICAL if critical else None,
        )  # fmt: skip

    def _steps_left(self, rate: float, run: Run) -> float | None:
        """Steps until the peak of a step no longer fits; None where the card's memory is not known."""
        allocator, card = run.allocator, card_of(run.allocator, run.gpu)
        if allocator is None or card is None or card.memory_total is None or card.memory_used is None or not rate > 0.0:
            return None
        return max(card.memory_total - outside_torch(card, allocator) - allocator.peak_allocated, 0) / rate

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """What keeps tensors; and a resume, which starts afresh."""
        left = breach.evidence["steps_until_full"]
        by_step = size(breach.evidence["bytes_a_step"])
        advice = [
            look(
                "look for tensors that are kept: losses, metrics or outputs that are appended or added up in "
                "compute_loss, a callback or compute_metrics without .item() or .detach()",
                f"each step leaves {by_step}: a kept tensor with its graph holds the step's activations",
                confidence="high",
            ),
            look(
                "torch.cuda.memory._record_memory_history() for some steps and _dump_snapshot() name the line of code "
                "that allocated what stays", "the snapshot shows where each block came from",
            ),
        ]  # fmt: skip
        if any(name.startswith("eval_") for name in run.series):
            advice.append(
                Adjustment(
                    "eval_accumulation_steps", proposed=10, confidence="low", apply="resume",
                    why="where it grows at evaluations: predictions otherwise stay on the GPU until the end of each",
                )
            )  # fmt: skip
        saves = run.number("save_steps")
        why = "a new process starts without what was kept"
        if left is not None and saves is not None and saves > left:
            why += f"; the card may be full, in about {left:.0f} steps, before the next one (save_steps {saves:.0f})"
        advice.append(look("resume from the last checkpoint before the card is full", why))
        return advice


def without_batch_size(values: Sequence[float], tokens: Sequence[float]) -> list[float]:
    """Memory less what follows the size of the batch: the least-squares line over tokens, where it rises."""
    if min(tokens) <= 0:
        return list(values)
    try:
        line = linear_regression(tokens, values)
    except StatisticsError:  # all batches are of one size
        return list(values)
    mean = sum(tokens) / len(tokens)
    return [value - max(line.slope, 0.0) * (size - mean) for value, size in zip(values, tokens, strict=True)]
