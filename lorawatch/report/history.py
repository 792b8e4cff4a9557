"""What a report needs of one run in full: its series, and the first and last looks at adapter and samples.

A :class:`~lorawatch.run.Run` keeps the start and the end of each series; a curve needs what lies between, so the files
are read once more. Memory is bounded: :data:`BUDGET` points of all series together.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable
from dataclasses import dataclass, field
from statistics import median
from typing import cast

from lorawatch.merge import merged
from lorawatch.records import (
    AdapterReading,
    GpuReading,
    LifecycleEvent,
    MetricRow,
    Record,
    Sample,
    SampleReading,
    StepTiming,
)
from lorawatch.run_watch import RunWatch
from lorawatch.source import Source

BUDGET = 12_000_000
"""Points kept of all series together: 192 MB. A million rows of ten metrics fit whole."""
MAX_COLUMNS = 96
"""Series kept of metrics that no picture shows; values of more are counted in :attr:`RunHistory.dropped_values`."""
DRAWN = frozenset(
    {
        "loss", "eval_loss", "reward", "eval_reward", "learning_rate", "grad_norm", "mean_token_accuracy",
        "eval_mean_token_accuracy", "entropy", "eval_entropy", "kl", "objective/kl", "rewards/margins",
        "eval_rewards/margins", "rewards/accuracies", "eval_rewards/accuracies", "rewards/chosen", "rewards/rejected",
        "logps/chosen", "logps/rejected", "frac_reward_zero_std", "completions/mean_length", "completion_length",
        "completions/clipped_ratio", "eval_accuracy", "eval_f1", "eval_bleu",
    }
)  # fmt: skip
"""Metrics that are kept whatever else was logged before them: those that the pictures name."""
MAX_CARDS = 8
MAX_RESUMES = 50
_SHORT = 4_096
"""Points below which a series is never thinned."""
_FARTHEST = 1 << 61
GIB = float(1 << 30)


class Column:
    """One series: steps as they came, and a value for each, which may be NaN or infinite."""

    __slots__ = ("steps", "values")

    def __init__(self) -> None:
        self.steps: array[int] = array("q")
        self.values: array[float] = array("d")

    def __len__(self) -> int:
        return len(self.steps)

    def add(self, step: int, value: float) -> None:
        """Take in one point."""
        self.steps.append(min(max(step, -_FARTHEST), _FARTHEST))
        self.values.append(value)

    def go_back(self, step: int) -> int:
        """Forget the points after ``step`` at the end; returns how many these were."""
        before = len(self.steps)
        while self.steps and self.steps[-1] > step:
            self.steps.pop()
            self.values.pop()
        return before - len(self.steps)

    def halve(self) -> int:
        """Keep of each four points in a row the lowest and the highest; returns how many points went."""
        before = len(self.steps)
        steps: array[int] = array("q")
        values: array[float] = array("d")
        for start in range(0, before, 4):
            four = self.values[start : start + 4]
            # NaN compares false with everything: where there is one it must not be lost.
            odd = next((at for at, value in enumerate(four) if value != value), None)  # noqa: PLR0124
            low = four.index(min(four)) if odd is None else odd
            high = max(range(len(four)), key=lambda at: (four[at] == four[at], four[at]))
            for at in sorted({low, high}):
                steps.append(self.steps[start + at])
                values.append(four[at])
        self.steps, self.values = steps, values
        return before - len(steps)


@dataclass(slots=True)
class RunHistory:
    """The series and looks of the newest run in a run's files.

    Attributes:
        columns: Metrics as the trainer names them, and what was measured beside: ``step seconds``,
            ``tokens per second``, ``memory …`` (GiB), ``generation …`` and ``adapter …``.
        limits: Memory of each card in GiB, by the name of its column.
        inside: Whether steps were timed from inside. Where they were not, ``step seconds`` is taken from the times of
            rows, logging and evaluation included.
        samples: The first and the last reading of sample generations; the same where there was one.
        base: What the base model says to the prompts.
        adapters: The first and the last reading of the adapter's weights.
        resumes: Steps from which the run was resumed.
        first_time: Unix time of the first record that tells one.
        last_time: Of the last one.
        rows: Rows of metrics.
        step: Step of the last row.
        runs: Runs that the files hold, one after another; the newest is this one.
        thinned: Times that series were thinned to stay within the budget.
        dropped_values: Values of metrics beyond :data:`MAX_COLUMNS`.
    """

    columns: dict[str, Column] = field(default_factory=dict)
    limits: dict[str, float] = field(default_factory=dict)
    inside: bool = False
    samples: tuple[SampleReading, SampleReading] | None = None
    base: list[Sample] = field(default_factory=list)
    adapters: tuple[AdapterReading, AdapterReading] | None = None
    resumes: list[int] = field(default_factory=list)
    first_time: float | None = None
    last_time: float | None = None
    rows: int = 0
    step: int = 0
    runs: int = 1
    thinned: int = 0
    dropped_values: int = 0
    _points: int = 0
    _others: int = 0
    _timed: tuple[float, int] | None = None
    _tokens: float | None = None

    def take(self, record: Record) -> None:
        """Take in one record."""
        if type(record) is MetricRow:
            self._row(record)
        elif isinstance(record, StepTiming):
            self._timing(record)
        elif isinstance(record, GpuReading):
            self._cards(record)
        elif isinstance(record, SampleReading):
            self._generations(record)
        elif isinstance(record, AdapterReading):
            self._adapter(record)
        elif isinstance(record, LifecycleEvent):
            self._now(record.time)
            if record.event == "resumed":
                self._go_back(record.step)

    def _row(self, row: MetricRow) -> None:
        values = row.values
        self.rows += 1
        step = row.step
        if step is None:
            step = self.step + 1 if "loss" in values else self.step
        self.step = step
        for name, value in values.items():
            if name in self.columns or name in DRAWN or self._others < MAX_COLUMNS:
                self._others += name not in self.columns and name not in DRAWN
                self._add(name, step, value)
            else:
                self.dropped_values += 1
        self._now(row.time)
        if "loss" in values and not self.inside:
            self._time_by_rows(row, step)

    def _time_by_rows(self, row: MetricRow, step: int) -> None:
        before, tokens_before = self._timed, self._tokens
        tokens = row.values.get("num_tokens", row.values.get("num_input_tokens_seen"))
        self._timed = None if row.time is None else (row.time, step)
        self._tokens = tokens
        if row.time is None or before is None or step <= before[1] or row.time <= before[0]:
            return
        self._add("step seconds", step, (row.time - before[0]) / (step - before[1]))
        if tokens is not None and tokens_before is not None and tokens > tokens_before:
            self._add("tokens per second", step, (tokens - tokens_before) / (row.time - before[0]))

    def _timing(self, timing: StepTiming) -> None:
        self._now(timing.time)
        if timing.steps:
            if not self.inside:  # what was taken from rows until now has another meaning
                self.inside = True
                for name in ("step seconds", "tokens per second"):
                    self._points -= len(self.columns.pop(name, ()))
            self.step = max(self.step, timing.step)
            for step, one in enumerate(timing.steps, timing.step - len(timing.steps) + 1):
                seconds = one.seconds
                if seconds is None:
                    continue
                self._add("step seconds", step, seconds)
                if one.tokens is not None and seconds > 0:
                    self._add("tokens per second", step, one.tokens / seconds)
        if timing.allocator is not None:
            self._add("memory torch, peak allocated", timing.step, timing.allocator.peak_allocated / GIB)
            self._add("memory torch, reserved", timing.step, timing.allocator.reserved / GIB)

    def _cards(self, reading: GpuReading) -> None:
        self._now(reading.time)
        for card in reading.cards[:MAX_CARDS]:
            if card.memory_used is None:
                continue
            name = f"memory GPU {card.index}{' (MIG)' if card.mig else ''}"
            self._most(name, self.step, card.memory_used / GIB)
            if card.memory_total:
                self.limits[name] = card.memory_total / GIB

    def _generations(self, reading: SampleReading) -> None:
        self._now(reading.time)
        self.samples = (reading if self.samples is None else self.samples[0], reading)
        self.base = reading.base or self.base
        for name, value in (
            ("generation KL", reading.kl),
            ("generation perplexity", reading.perplexity),
            ("generation base perplexity", reading.base_perplexity),
        ):
            if value is not None:
                self._add(name, reading.step, value)

    def _adapter(self, reading: AdapterReading) -> None:
        self._now(reading.time)
        self.adapters = (reading if self.adapters is None else self.adapters[0], reading)
        shares = [one.update / one.base for one in reading.modules if one.update is not None and one.base]
        ranks = [one.effective_rank for one in reading.modules if one.effective_rank is not None]
        norms = [one.norm_b for one in reading.modules if one.norm_b is not None]
        for name, found in (
            ("adapter update", shares), ("adapter effective rank", ranks), ("adapter norm of B", norms),
        ):  # fmt: skip
            if found:
                self._add(name, reading.step, median(found))

    def _now(self, time: float | None) -> None:
        if time is None or time - time != 0.0:
            return
        self.last_time = time
        if self.first_time is None:
            self.first_time = time

    def _go_back(self, step: int | None) -> None:
        self._timed = self._tokens = None
        if step is None:
            return
        if len(self.resumes) < MAX_RESUMES:
            self.resumes.append(step)
        for column in self.columns.values():
            self._points -= column.go_back(step)
        self.step = min(self.step, step)

    def _most(self, name: str, step: int, value: float) -> None:
        """Of the looks that fall on one step, keep the highest."""
        column = self.columns.get(name)
        if column is not None and column.steps and column.steps[-1] == step:
            column.values[-1] = max(column.values[-1], value)
        else:
            self._add(name, step, value)

    def _add(self, name: str, step: int, value: float) -> None:
        column = self.columns.get(name)
        if column is None:
            column = self.columns[name] = Column()
        column.add(step, value)
        self._points += 1
        if self._points > BUDGET:
            self.thinned += 1
            for one in self.columns.values():
                if len(one) > _SHORT:
                    self._points -= one.halve()


def read_history(watch: RunWatch) -> RunHistory:
    """Read the files of a run once more; ``watch`` itself stays as it is.

    Where the files hold several runs, one after another, the last one is taken: that of ``watch.engine``.

    Raises:
        SourceError: A file cannot be read any more.
    """
    sources = [cast(Callable[..., Source], type(source))(source.path) for source in watch.files.sources]
    history = RunHistory()
    for record in merged(sources):
        if isinstance(record, LifecycleEvent) and record.event == "started" and history.rows:
            history = RunHistory(runs=history.runs + 1)
        history.take(record)
    return history
