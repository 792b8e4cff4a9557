"""The rows of two runs in full, and the axis on which they stand side by side: trained tokens, or the next best thing.

A :class:`~lorawatch.run.Run` keeps the start and the end of each series; a comparison needs what lies between, so the
files are read once more.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal, cast

from lorawatch.merge import merged
from lorawatch.records import LifecycleEvent, MetricRow, StepTiming
from lorawatch.run import Run
from lorawatch.run_watch import RunWatch
from lorawatch.source import Source

AxisName = Literal["tokens", "sequences", "epochs", "steps"]

TOKEN_METRICS = ("num_tokens", "num_input_tokens_seen")
"""Trained tokens so far, as TRL and as ``include_num_input_tokens_seen`` log them."""
_KEPT = frozenset({"loss", "grad_norm", "reward", "eval_runtime", "eval_samples_per_second", *TOKEN_METRICS})


@dataclass(slots=True)
class History:
    """What a comparison needs of one run, in full.

    Attributes:
        series: Metric name to its value at each step; values may be NaN. What a resumed run did over stands once.
        times: Unix time of each training row that carries one, by step.
        last_step: The last step that any row tells.
        last_epoch: Epoch and step of the last row that tells an epoch; None where none does.
        step_seconds: Seconds of each step that was timed from inside, wait and work together, by step.
        peaks: Tokens of the largest micro-batch so far (None where not known) and torch's peak of allocated bytes, at
            each reading of the newest process.
    """

    series: dict[str, dict[int, float]] = field(default_factory=dict)
    times: dict[int, float] = field(default_factory=dict)
    last_step: int = 0
    last_epoch: tuple[float, int] | None = None
    step_seconds: dict[int, float] = field(default_factory=dict)
    peaks: list[tuple[int | None, int]] = field(default_factory=list)

    def finite(self, name: str) -> dict[int, float]:
        """The finite values of a metric by step, ascending; empty when it was never logged."""
        return {step: value for step, value in sorted(self.series.get(name, {}).items()) if value - value == 0.0}

    @property
    def eval_rows(self) -> int | None:
        """Rows of the evaluation set, from run time and speed of the last evaluation; None where not logged."""
        seconds, speed = self.finite("eval_runtime"), self.finite("eval_samples_per_second")
        shared = [step for step in seconds if step in speed]
        return round(seconds[shared[-1]] * speed[shared[-1]]) or None if shared else None

    def add(self, row: MetricRow) -> None:
        """Take in one row of metrics."""
        step = row.step
        if step is None:
            step = self.last_step + 1 if "loss" in row.values else self.last_step
        self.last_step = max(self.last_step, step)
        if row.epoch is not None:
            self.last_epoch = (row.epoch, step)
        for name, value in row.values.items():
            if name in _KEPT or (name.startswith("eval_") and name.endswith("loss")):
                self.series.setdefault(name, {})[step] = value
        if row.time is not None and "loss" in row.values:
            self.times[step] = row.time

    def time(self, timing: StepTiming) -> None:
        """Take in step times and what the allocator said."""
        first = timing.step - len(timing.steps) + 1
        largest = self.peaks[-1][0] if self.peaks else None
        for step, one in enumerate(timing.steps, first):
            if one.seconds is not None:
                self.step_seconds[step] = one.seconds
            if one.largest_micro_batch is not None:
                largest = max(largest or 0, one.largest_micro_batch)
        if timing.allocator is None:
            return
        if self.peaks and timing.allocator.peak_allocated < self.peaks[-1][1]:
            self.peaks.clear()  # another process: its peaks begin anew
        self.peaks.append((largest, timing.allocator.peak_allocated))

    def go_back(self, step: int) -> None:
        """Forget what came after ``step``: a resumed run does it over, or left it behind."""
        for values in (*self.series.values(), self.times, self.step_seconds):
            for later in [one for one in values if one > step]:
                del values[later]
        self.last_step = min(self.last_step, step)
        self.peaks.clear()


def read_history(watch: RunWatch) -> History:
    """Read the files of a run once more; ``watch`` itself stays as it is.

    Raises:
        SourceError: A file cannot be read any more.
    """
    sources = [cast(Callable[..., Source], type(source))(source.path) for source in watch.files.sources]
    history = History()
    for record in merged(sources):
        if type(record) is MetricRow:
            history.add(record)
        elif isinstance(record, StepTiming):
            history.time(record)
        elif isinstance(record, LifecycleEvent) and record.event == "resumed" and record.step is not None:
            history.go_back(record.step)
    return history


class Positions:
    """Where the steps of one run lie on the axis: linear between the points that are known, and beyond them."""

    __slots__ = ("_steps", "_xs")

    def __init__(self, steps: list[int], xs: list[float]) -> None:
        self._steps = steps
        self._xs = xs

    def at(self, step: float) -> float:
        """Place of a step."""
        steps, xs = self._steps, self._xs
        right = min(max(bisect_right(steps, step), 1), len(steps) - 1)
        left = right - 1
        slope = (xs[right] - xs[left]) / (steps[right] - steps[left])
        return xs[left] + slope * (step - steps[left])


@dataclass(frozen=True, slots=True)
class Axis:
    """The common axis of two runs.

    Attributes:
        name: What it counts.
        why: How it was found, and why nothing better; one phrase.
        before: Places of the first run's steps.
        after: Places of the second run's.
        end: The furthest place that both runs reached.
    """

    name: AxisName
    why: str
    before: Positions
    after: Positions
    end: float

    @property
    def steps_after(self) -> float:
        """Steps of the second run that train as much as one step of the first, on average."""
        return (self.before.at(1000) - self.before.at(0)) / (self.after.at(1000) - self.after.at(0))


def common_axis(before: Run, after: Run, histories: tuple[History, History]) -> Axis:
    """The best axis on which both runs can be placed.

    Trained tokens where both log them; else sequences, from the effective batch that the facts tell; else epochs, from
    the last row's; else steps.
    """
    name, why, places = _places(before, after, histories)
    ends = [place.at(history.last_step) for place, history in zip(places, histories, strict=True)]
    return Axis(name, why, places[0], places[1], min(ends))


def _places(
    before: Run, after: Run, histories: tuple[History, History]
) -> tuple[AxisName, str, tuple[Positions, Positions]]:
    for metric in TOKEN_METRICS:
        tokens = tuple(_token_positions(history, metric) for history in histories)
        if tokens[0] is not None and tokens[1] is not None:
            return "tokens", f"trained tokens ({metric})", (tokens[0], tokens[1])
    batches = effective_batch(before), effective_batch(after)
    if batches[0] and batches[1]:
        sizes = f"{batches[0]:g}" if batches[0] == batches[1] else f"{batches[0]:g} and {batches[1]:g}"
        why = f"sequences (steps × effective batch of {sizes}), for want of token counts in both logs"
        return "sequences", why, (_linear(batches[0]), _linear(batches[1]))
    epochs = [history.last_epoch for history in histories]
    if epochs[0] and epochs[1] and min(epochs[0][0], epochs[1][0]) > 0.0 and min(epochs[0][1], epochs[1][1]) > 0:
        why = "epochs, for want of token counts and effective batches of both"
        return "epochs", why, (_linear(epochs[0][0] / epochs[0][1]), _linear(epochs[1][0] / epochs[1][1]))
    why = "steps, which assumes batches of one size: nothing tells what the steps of both trained"
    return "steps", why, (_linear(1.0), _linear(1.0))


def effective_batch(run: Run) -> float | None:
    """Sequences of one optimizer step over all processes, as the facts tell; None where they do not.

    ``world_size`` counts as 1 where nothing states it: a single process seldom does.
    """
    total = run.number("total_train_batch_size")
    if total is not None and total > 0:
        return total
    each, accumulated = run.number("per_device_train_batch_size"), run.number("gradient_accumulation_steps")
    if each is None or accumulated is None or run.fact("auto_find_batch_size") is True:
        return None
    size = each * max(accumulated, 1.0) * max(run.number("world_size") or 1.0, 1.0)
    return size if size > 0 else None


def _token_positions(history: History, metric: str) -> Positions | None:
    points = list(history.finite(metric).items())
    rising = all(one[1] < other[1] for one, other in pairwise(points))
    # A resumed run may count from nothing again: then the counts do not tell where it stands.
    if len(points) < 2 or not rising or points[0][1] < 0:
        return None
    return Positions([step for step, _ in points], [count for _, count in points])


def _linear(scale: float) -> Positions:
    return Positions([0, 1], [0.0, scale])


Interval = tuple[float, float, float]
"""Start and end on the axis, and the mean of a metric between them."""


def intervals(values: dict[int, float], places: Positions) -> list[Interval]:
    """The stretches that logged means stand for: each from the row before. Those without a finite mean are left out."""
    steps = sorted(values)
    if len(steps) < 2:
        return []
    starts = [max(steps[0] - (steps[1] - steps[0]), 0), *steps]
    found: list[Interval] = []
    for start, step in zip(starts, steps, strict=False):
        value = values[step]
        left, right = places.at(start), places.at(step)
        if value - value == 0.0 and right > left:
            found.append((left, right, value))
    return found


def paired(before: list[Interval], after: list[Interval]) -> list[tuple[float, float, float]]:
    """Both runs' means over the same stretches: their ends, the first run's mean and the second's.

    The stretches are those of the run that logs more rarely; the other's means are averaged over them, each by the
    part of it that lies within. A stretch that the other does not cover whole is left out.
    """
    if not before or not after:
        return []
    low, high = max(before[0][0], after[0][0]), min(before[-1][1], after[-1][1])
    inside = [sum(1 for one in runs if one[0] < high and one[1] > low) for runs in (before, after)]
    grid, other, turned = (before, after, False) if inside[0] <= inside[1] else (after, before, True)
    pairs: list[tuple[float, float, float]] = []
    first = 0
    for left, right, value in grid:
        while first < len(other) and other[first][1] <= left:
            first += 1
        covered = total = 0.0
        index = first
        while index < len(other) and other[index][0] < right:
            part = min(other[index][1], right) - max(other[index][0], left)
            covered += part
            total += part * other[index][2]
            index += 1
        if covered >= 0.99 * (right - left):
            mean = total / covered
            pairs.append((right, mean, value) if turned else (right, value, mean))
    return pairs
