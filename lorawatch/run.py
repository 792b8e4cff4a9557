"""What is known of one run: its kind, facts, progress and bounded series."""

from __future__ import annotations

import contextlib
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from statistics import median
from typing import Any

from lorawatch.records import (
    AdapterReading,
    AllocatorReading,
    FactUpdate,
    GpuReading,
    HostReading,
    LabelAudit,
    LifecycleEvent,
    MetricRow,
    ModelTree,
    Reading,
    Sample,
    SampleReading,
    StepTiming,
)
from lorawatch.stats import Level, Rhythm

MAX_SERIES = 256
"""Metric names kept per run; values of more are counted in :attr:`Run.dropped_values`, not kept."""
RECENT = 256
"""Points kept of the end of each series."""
HEAD = 128
"""Points kept of the start of each series."""
_SPACED = 5
"""Training rows after which their spacing is taken for ``logging_steps`` where nothing states it."""


class Kind(StrEnum):
    """What sort of training a run is, told from its logged keys and facts."""

    SFT = "sft"
    DPO = "dpo"
    ORPO = "orpo"
    KTO = "kto"
    GRPO = "grpo"
    RLOO = "rloo"
    REWARD = "reward"
    SEQ2SEQ = "seq2seq"
    CLASSIFICATION = "classification"
    UNKNOWN = "unknown"


SUPERVISED = frozenset({Kind.SFT, Kind.SEQ2SEQ, Kind.CLASSIFICATION, Kind.UNKNOWN})
"""Kinds whose loss is a cross-entropy: it starts well above zero and should fall."""
LANGUAGE_MODELLING = frozenset({Kind.SFT, Kind.SEQ2SEQ, Kind.UNKNOWN})
"""Kinds whose loss is a cross-entropy per token over the vocabulary."""
PREFERENCE = frozenset({Kind.DPO, Kind.ORPO, Kind.KTO, Kind.REWARD})
REINFORCEMENT = frozenset({Kind.GRPO, Kind.RLOO})
"""Kinds whose loss says nothing by itself: it is near zero and may be negative."""

_TRAINERS = {
    "SFTTrainer": Kind.SFT,
    "DPOTrainer": Kind.DPO,
    "ORPOTrainer": Kind.ORPO,
    "CPOTrainer": Kind.ORPO,
    "KTOTrainer": Kind.KTO,
    "GRPOTrainer": Kind.GRPO,
    "RLOOTrainer": Kind.RLOO,
    "RewardTrainer": Kind.REWARD,
    "Seq2SeqTrainer": Kind.SEQ2SEQ,
}
_TASKS = {
    "SEQ_CLS": Kind.CLASSIFICATION,
    "TOKEN_CLS": Kind.CLASSIFICATION,
    "SEQ_2_SEQ_LM": Kind.SEQ2SEQ,
    "CAUSAL_LM": Kind.SFT,
}
_CLASSIFICATION_METRICS = {"eval_accuracy", "eval_f1", "eval_macro_f1", "eval_f1_macro", "eval_matthews_correlation"}
_SEQ2SEQ_METRICS = {"eval_rouge1", "eval_rougeL", "eval_bleu", "eval_wer", "eval_cer"}


def kind_of_keys(keys: Mapping[str, Any]) -> Kind:
    """The kind that a row's metric names show; UNKNOWN when they show none.

    Names are those that TRL's trainers log (rule catalogue section 1, *Trainer kind gate*).
    """
    if "odds_ratio_loss" in keys:
        return Kind.ORPO
    if "rewards/margins" in keys and "rewards/accuracies" in keys:
        return Kind.ORPO if "log_odds_ratio" in keys else Kind.DPO
    if "log_odds_ratio" in keys:
        return Kind.ORPO
    if "rewards/chosen" in keys and "kl" in keys:
        return Kind.KTO
    if "reward_std" in keys or "completions/mean_length" in keys or "completion_length" in keys:
        return Kind.GRPO
    if "mean_reward" in keys and "margin" in keys:
        return Kind.REWARD
    if not _CLASSIFICATION_METRICS.isdisjoint(keys):
        return Kind.CLASSIFICATION
    if not _SEQ2SEQ_METRICS.isdisjoint(keys):
        return Kind.SEQ2SEQ
    if "mean_token_accuracy" in keys:
        return Kind.SFT
    return Kind.UNKNOWN


@dataclass(frozen=True, slots=True)
class Fact:
    """One known thing of the set-up, and where it was learnt."""

    value: Any
    origin: str
    inferred: bool = False


class Series:
    """One metric of one run: its start, its end, and its last value; memory is bounded.

    ``head`` and ``recent`` hold finite values only; ``last`` may be NaN or infinite.
    """

    __slots__ = ("count", "head", "head_steps", "last", "recent", "recent_steps")

    def __init__(self) -> None:
        self.count = 0
        self.last = math.nan
        self.head: list[float] = []
        self.head_steps: list[int] = []
        self.recent: deque[float] = deque(maxlen=RECENT)
        self.recent_steps: deque[int] = deque(maxlen=RECENT)

    def add(self, value: float, step: int) -> None:
        """Take in one point."""
        self.last = value
        if value - value != 0.0:  # NaN or infinite, without a call
            return
        self.count = count = self.count + 1
        self.recent.append(value)
        self.recent_steps.append(step)
        if count <= HEAD:
            self.head.append(value)
            self.head_steps.append(step)

    def window(self, points: int) -> list[float]:
        """The last ``points`` finite values, oldest first; fewer when there are not so many."""
        values = list(islice(reversed(self.recent), points))
        values.reverse()
        return values


class Run:
    """One training job as far as its records tell.

    Attributes:
        step: Step of the last row; a count of rows where rows carry no step.
        time: Unix time of the last record that carried one.
        loss: Running level of ``loss``, finite points only.
        rhythm: How the last 64 points of ``loss`` swing; made anew every 32 points.
        keys: Metric names of the last row.
        logging_interval: Steps between the last two training rows.
        max_steps: Steps that the run is to take, as far as it is known.
        warmup_steps: Steps of learning-rate warm-up, as far as the facts tell; 0 when they do not.
        rows_since_resume: Training rows since the start or the last resume.
        timing: The last step timing; None before there was one.
        gpu: The last reading of the cards.
        host: The last reading of the machine.
        allocator: What torch's allocator said last.
        model: The modules of the base model, and which of them the adapter takes.
        labels: What the labels of the first rows are.
        adapter: The adapter's weights, as they were looked at last.
        samples: The last sample generations.
        base_samples: What the base model says to the same prompts.
        step_seconds: Seconds of each of the last :data:`RECENT` steps that were timed: wait and work, without what
            comes after. From outside, the mean of each span, with all that took place in it.
        phase_seconds: Seconds spent so far in ``data_wait``, ``forward_backward``, ``optimizer``, ``callbacks``,
            ``logging``, ``evaluation`` and ``saving``; empty unless steps were timed from inside.
    """

    def __init__(self, name: str, path: str = "") -> None:
        self.name = name
        self.path = path
        self.kind = Kind.UNKNOWN
        self.facts: dict[str, Fact] = {}
        self.series: dict[str, Series] = {}
        self.dropped_values = 0
        self.loss = Level()
        self.rhythm = Rhythm()
        self.max_steps: int | None = None
        self.warmup_steps = 0
        self.keys: tuple[str, ...] = ()
        self.rows = 0
        self.train_rows = 0
        self.step = 0
        self.first_step: int | None = None
        self.epoch: float | None = None
        self.time: float | None = None
        self.first_time: float | None = None
        self.logging_interval = 1
        self.steps_estimated = False
        self.resumed_step: int | None = None
        self.rows_since_resume = 0
        self.ended = False
        self.timing: StepTiming | None = None
        self.gpu: GpuReading | None = None
        self.host: HostReading | None = None
        self.allocator: AllocatorReading | None = None
        self.model: ModelTree | None = None
        self.labels: LabelAudit | None = None
        self.adapter: AdapterReading | None = None
        self.samples: SampleReading | None = None
        self.base_samples: list[Sample] = []
        self.step_seconds: deque[float] = deque(maxlen=RECENT)
        self.phase_seconds: dict[str, float] = {}
        self._numbers: dict[str, float] = {}
        self._last_train_step = 0
        self._task_kind = Kind.UNKNOWN
        self._seen_keys: set[tuple[str, ...]] = set()

    def add(self, row: MetricRow) -> None:
        """Take in one row of metrics."""
        values = row.values
        self.rows += 1
        step = row.step
        if step is None:
            step = self.step + 1 if "loss" in values else self.step
            self.steps_estimated = True
        elif row.estimated:
            self.steps_estimated = True
        self.step = step
        if self.first_step is None:
            self.first_step = step
        if row.epoch is not None:
            self.epoch = row.epoch
        if row.time is not None:
            self.time = row.time
            if self.first_time is None:
                self.first_time = row.time
        self.keys = keys = tuple(values)
        if keys not in self._seen_keys:
            self._learn_kind(keys, values)
        series = self.series
        for name, value in values.items():
            one = series.get(name)
            if one is None:
                if len(series) >= MAX_SERIES:
                    self.dropped_values += 1
                    continue
                one = series[name] = Series()
            one.add(value, step)
        loss = values.get("loss")
        if loss is not None:
            self.train_rows += 1
            self.rows_since_resume += 1
            if step > self._last_train_step:
                self.logging_interval = step - self._last_train_step
            self._last_train_step = step
            if self.train_rows == _SPACED:
                self._set_span()
            if loss - loss == 0.0:
                level = self.loss
                level.add(loss, step)
                if level.count % Rhythm.EVERY == 0 and level.count >= Rhythm.POINTS:
                    self.rhythm.update(series["loss"].window(Rhythm.POINTS))

    def observe(self, reading: Reading) -> None:
        """Take in a reading of the machine or of the model."""
        if isinstance(reading, StepTiming):
            self.timing = reading
            if reading.steps:
                self._advance(reading.step)  # from outside it is only an observation: the rows must count as they would
                self._time_steps(reading)
            elif reading.seconds is not None and reading.span > 0:
                self.step_seconds.append(reading.seconds / reading.span)
            if reading.allocator is not None:
                self.allocator = reading.allocator
        elif isinstance(reading, GpuReading):
            self.gpu = reading
        elif isinstance(reading, HostReading):
            self.host = reading
        else:
            self._look_at_model(reading)

    def _look_at_model(self, reading: ModelTree | LabelAudit | AdapterReading | SampleReading) -> None:
        if isinstance(reading, ModelTree):
            self.model = reading
        elif isinstance(reading, LabelAudit):
            self.labels = reading
        elif isinstance(reading, AdapterReading):
            self.adapter = reading
            self._advance(reading.step)
        else:
            self.samples = reading
            self._advance(reading.step)
            if reading.base:
                self.base_samples = reading.base

    def _advance(self, step: int) -> None:
        """A reading of a step behind the last row; one that is handed on late leads no step back."""
        self.step = max(self.step, step)

    def _time_steps(self, timing: StepTiming) -> None:
        wait = passes = optimizer = after = 0.0
        for one in timing.steps:
            seconds = one.seconds
            if seconds is not None:
                self.step_seconds.append(seconds)
                wait += one.data_wait or 0.0
            passes += one.forward_backward
            optimizer += one.optimizer
            after += one.after
        rest = max(after - timing.logging - timing.evaluation - timing.saving, 0.0)
        spent = {
            "data_wait": wait, "forward_backward": passes, "optimizer": optimizer, "callbacks": rest,
            "logging": timing.logging, "evaluation": timing.evaluation, "saving": timing.saving,
        }  # fmt: skip
        known = self.phase_seconds
        for name, seconds in spent.items():
            known[name] = known.get(name, 0.0) + seconds

    def take_over(self, other: Run) -> None:
        """Take over the readings of ``other``, which is the same run as it was read before."""
        self.timing, self.gpu, self.host = other.timing, other.gpu, other.host
        self.allocator, self.step_seconds, self.phase_seconds = other.allocator, other.step_seconds, other.phase_seconds

    def learn(self, update: FactUpdate) -> bool:
        """Take in facts; what was stated is never replaced by what was inferred. True when any fact changed."""
        changed = False
        for name, value in update.values.items():
            known = self.facts.get(name)
            if known is not None and (known.value == value or (update.inferred and not known.inferred)):
                continue
            self.facts[name] = Fact(value, update.origin, update.inferred)
            self._keep_number(name, value)
            changed = True
        if changed:
            self._facts_changed()
        return changed

    def happen(self, event: LifecycleEvent) -> None:
        """Take in a lifecycle event."""
        if event.time is not None:
            self.time = event.time
            if self.first_time is None:
                self.first_time = event.time
        if event.event == "resumed":
            self.resumed_step = event.step
            self.rows_since_resume = 0
            self.ended = False
            self.timing = self.gpu = self.host = self.allocator = None  # of a process that is gone
            self.step_seconds.clear()
            if event.step is not None:
                self._last_train_step = event.step
        elif event.event == "ended":
            self.ended = True

    def fact(self, name: str, default: Any = None) -> Any:
        """Value of a fact, or ``default`` when it is not known."""
        known = self.facts.get(name)
        return default if known is None or known.value is None else known.value

    def number(self, name: str) -> float | None:
        """Value of a fact as a finite number; None when it is not known or is none."""
        return self._numbers.get(name)

    def last(self, name: str) -> float | None:
        """Last value of a metric, which may be NaN; None when it was never logged."""
        one = self.series.get(name)
        return None if one is None else one.last

    def points(self, name: str) -> int:
        """How many finite values of a metric were logged."""
        one = self.series.get(name)
        return 0 if one is None else one.count

    @property
    def progress(self) -> float | None:
        """Share of the run that is done, 0 to 1; None when its length is not known."""
        total = self.max_steps
        return None if not total else min(self.step / total, 1.0)

    @property
    def training(self) -> bool:
        """Whether it takes steps by now: a row was logged or a step timed, and it has not ended."""
        return not self.ended and (self.rows > 0 or self.timing is not None)

    @property
    def typical_step_seconds(self) -> float | None:
        """Median seconds of the last steps that were timed; None before five of them, or two means from outside."""
        outside = self.timing is not None and not self.timing.steps
        return median(self.step_seconds) if len(self.step_seconds) >= (2 if outside else 5) else None

    @property
    def seconds_left(self) -> float | None:
        """Seconds that the steps that are left will take, stops not counted; None where that cannot be told."""
        typical, total = self.typical_step_seconds, self.max_steps
        return None if total is None or typical is None else max(total - self.step, 0) * typical

    @property
    def peak_learning_rate(self) -> float | None:
        """The configured learning rate, or else the highest that was logged; None while that one still rises."""
        stated = self.number("learning_rate")
        if stated is not None:
            return stated
        series = self.series.get("learning_rate")
        if series is None or not series.count or (self.warming_up and not self.ended):
            return None
        return max(*series.head, *series.recent)

    @property
    def ends_epoch(self) -> bool:
        """Whether the last row is an epoch's last: its batch may be short, so that it jumps for no other reason."""
        if self.epoch is None or self.train_rows < 4:
            return False
        share = self.epoch / self.train_rows  # of an epoch that one row spans
        return share < 0.25 and -self.epoch % 1.0 < share

    @property
    def warming_up(self) -> bool:
        """Whether the learning rate is still rising to its peak: by the facts, or else by the logged trace."""
        if self.step <= self.warmup_steps:
            return True
        series = self.series.get("learning_rate")
        if series is None or len(series.recent) < 2:
            return False
        return series.recent[-1] > series.recent[-2]

    def _learn_kind(self, keys: tuple[str, ...], values: Mapping[str, float]) -> None:
        if len(self._seen_keys) < MAX_SERIES:
            self._seen_keys.add(keys)
        shown = kind_of_keys(values)
        if shown is Kind.CLASSIFICATION and self.fact("task_type") == "CAUSAL_LM":
            shown = Kind.SFT  # a language model's evaluation may have an accuracy too
        if shown is not Kind.UNKNOWN and self.kind in SUPERVISED and self._task_kind is Kind.UNKNOWN:
            self.kind = shown
        elif self.kind is Kind.UNKNOWN and self._task_kind is Kind.UNKNOWN and "loss" in values:
            self.kind = Kind.SFT

    def _keep_number(self, name: str, value: Any) -> None:
        self._numbers.pop(name, None)
        if isinstance(value, int | float) and not isinstance(value, bool):
            with contextlib.suppress(OverflowError):  # a whole number beyond what a float holds
                if math.isfinite(value):
                    self._numbers[name] = float(value)

    def _facts_changed(self) -> None:
        # Kept rather than computed when asked for: rules ask at each row.
        steps = self.number("max_steps")
        self.max_steps = int(steps) if steps is not None and steps > 0 else None
        warm = self.number("warmup_steps") or 0.0
        if 0 < warm < 1:  # transformers 5: a fraction is a ratio of the run
            warm *= self.max_steps or 0
        elif not warm:
            warm = (self.number("warmup_ratio") or 0.0) * (self.max_steps or 0)
        self.warmup_steps = int(min(warm, 1e18))
        trainer = _TRAINERS.get(str(self.fact("trainer_class", "")))
        task = trainer or _TASKS.get(str(self.fact("task_type", "")))
        # A LoRA adapter for CAUSAL_LM is also what DPO and GRPO train: only the trainer's class settles it.
        if task is not None and (trainer is not None or (task is not Kind.SFT and self.kind in SUPERVISED)):
            self.kind = self._task_kind = task
        elif task is Kind.SFT and self.kind is Kind.CLASSIFICATION:
            self.kind = task
        self._set_span()

    def _set_span(self) -> None:
        """Let the slow level of the loss look back over 5 % of the run, as far as its length is known."""
        total, interval = self.max_steps, self.number("logging_steps")
        if total and (interval or self.train_rows >= _SPACED):
            steps = interval or float(self.logging_interval)
            points = total / max(steps if steps >= 1 else steps * total, 1.0)
            self.loss.span = max(20.0, 0.05 * points)
