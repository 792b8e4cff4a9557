"""What Prometheus scrapes: the state of the watched runs, read at the moment of the scrape.

Names and units follow https://prometheus.io/docs/practices/naming/. A metric that a run has not logged has no sample:
absent is not zero. A loss that is NaN stays NaN, and ``lorawatch_loss_finite`` is 0, which an alert can ask for.

The scrape runs in another thread than the one that feeds the engines. It takes no lock, so that it neither waits for a
long read nor holds one up: it copies before it walks, and where a container changed under it, it looks again.
"""

from __future__ import annotations

import platform
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import isfinite

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric

from lorawatch.engine import Engine
from lorawatch.exporter import Watched, Watching
from lorawatch.findings import Severity
from lorawatch.records import AllocatorReading, GpuReading, HostReading
from lorawatch.version import __version__

from .prometheus_machine import machine_metrics  # noqa: TID251 - a sibling, by whatever name the package goes

MAX_RUNS = 200
"""Runs that are exported, those that logged last; the others are counted in ``lorawatch_runs_not_exported``."""
MAX_LABEL = 200
"""Characters of a run's name that are kept as its label."""
_TRIES = 5

_METRICS = {
    "loss": ("lorawatch_loss", "Training loss of the last row that logged one."),
    "eval_loss": ("lorawatch_eval_loss", "Evaluation loss of the last evaluation."),
    "grad_norm": ("lorawatch_grad_norm", "Norm of the gradients before clipping, as last logged."),
    "learning_rate": ("lorawatch_learning_rate", "Learning rate, as last logged."),
}


@dataclass(slots=True)
class _Snapshot:
    """One run at one moment: what is exported of it."""

    kind: str
    values: dict[str, float]
    step: int
    max_steps: int | None
    epoch: float | None
    progress: float | None
    time: float | None
    ended: bool
    rows: int
    skipped_lines: int
    active: dict[tuple[str, str], bool]
    opened: dict[str, int]
    rule_errors: dict[str, str]
    rule_seconds: dict[str, float]
    abstained: int
    readings: tuple[GpuReading | None, HostReading | None, AllocatorReading | None]
    phase_seconds: dict[str, float]
    step_seconds: float | None


class WatchCollector:
    """A ``prometheus_client`` collector over what is watched. ``collect`` never raises for what a run holds.

    Args:
        watching: What is watched.
        severities: Rule id to the rule's own severity: the label under which a rule that found nothing stands with 0.
    """

    def __init__(self, watching: Watching, severities: Mapping[str, Severity]) -> None:
        self._watching = watching
        self._severities = severities
        self._known: dict[str, _Snapshot] = {}

    def collect(self) -> Iterator[Metric]:
        """The metric families as they are now."""
        watched = list(self._watching.runs)
        kept = watched
        if len(watched) > MAX_RUNS:
            newest = sorted(range(len(watched)), key=lambda index: watched[index].engine.run.time or 0.0)
            kept = [watched[index] for index in sorted(newest[-MAX_RUNS:])]
        runs: dict[str, _Snapshot] = {}
        for one in kept:
            snapshot = self._snapshot(one)
            if snapshot is not None:
                runs[_label(one, runs)] = snapshot
        self._known = {one.path: self._known[one.path] for one in kept if one.path in self._known}

        yield InfoMetricFamily(
            "lorawatch_build", "The version of lorawatch that runs.",
            {"version": __version__, "python": platform.python_version()},
        )  # fmt: skip
        yield GaugeMetricFamily("lorawatch_runs", "Runs that are watched.", len(watched))
        yield GaugeMetricFamily(
            "lorawatch_runs_not_exported", f"Watched runs beyond the newest {MAX_RUNS}.", len(watched) - len(kept)
        )
        yield from _training(runs)
        yield from machine_metrics(
            {run: one.readings for run, one in runs.items()}, {run: one.phase_seconds for run, one in runs.items()}
        )
        yield from _judgement(runs)
        yield from _self(runs)

    def _snapshot(self, watched: Watched) -> _Snapshot | None:
        taken = _steadily(lambda: _take(watched, self._severities))
        if taken is not None:
            self._known[watched.path] = taken
        return self._known.get(watched.path)


def _steadily(read: Callable[[], _Snapshot]) -> _Snapshot | None:
    """What ``read`` gives; None when the run changed under each of several tries."""
    for _ in range(_TRIES):
        try:
            return read()
        except RuntimeError:  # a dictionary or deque changed size while it was walked
            continue
    return None


def _take(watched: Watched, severities: Mapping[str, Severity]) -> _Snapshot:
    engine = watched.engine
    run = engine.run
    values = {name: value for name in _METRICS if (value := run.last(name)) is not None}
    abstained = {one.rule for one in engine.abstained()}
    seconds = engine.rule_seconds()
    findings = list(engine.findings)
    return _Snapshot(
        kind=run.kind.value, values=values, step=run.step, max_steps=run.max_steps, epoch=run.epoch,
        progress=run.progress, time=run.time, ended=run.ended, rows=run.rows, skipped_lines=watched.skipped_lines,
        active=_active(engine, [rule for rule in seconds if rule not in abstained], severities),
        opened=dict(Counter(finding.rule for finding in findings)),
        rule_errors=dict(engine.rule_errors), rule_seconds=seconds, abstained=len(abstained),
        readings=(run.gpu, run.host, run.allocator), phase_seconds=dict(run.phase_seconds),
        step_seconds=run.typical_step_seconds,
    )  # fmt: skip


def _active(engine: Engine, judged: list[str], severities: Mapping[str, Severity]) -> dict[tuple[str, str], bool]:
    """By rule and severity, whether a finding is firing. A rule that judged and found nothing stands with False."""
    active = {(rule, severities.get(rule, Severity.WARNING).label): False for rule in judged}
    for finding in list(engine.findings):
        key = (finding.rule, finding.severity.label)
        active[key] = active.get(key, False) or finding.state == "firing"
    return active


def _label(watched: Watched, taken: Mapping[str, _Snapshot]) -> str:
    """A label value that names the run and no other: its name, or else its path, or else its path and a number."""
    for text in (watched.name, watched.path):
        label = _utf8(text)
        if label not in taken:
            return label
    number = 2
    while f"{label}#{number}" in taken:
        number += 1
    return f"{label}#{number}"


def _utf8(text: str) -> str:
    """``text`` as UTF-8 can carry it: bytes of a file name that are not UTF-8 are spelled out."""
    return text[:MAX_LABEL].encode("utf-8", "backslashreplace").decode("utf-8")


def _gauge(name: str, text: str, samples: Mapping[str, float | None]) -> Iterator[Metric]:
    """A gauge by run; absent values have no sample, and a gauge without samples is left out."""
    present = {run: value for run, value in samples.items() if value is not None}
    if present:
        family = GaugeMetricFamily(name, text, labels=["run"])
        for run, value in present.items():
            family.add_metric([run], value)
        yield family


def _training(runs: Mapping[str, _Snapshot]) -> Iterator[Metric]:
    for metric, (name, text) in _METRICS.items():
        yield from _gauge(name, text, {run: one.values.get(metric) for run, one in runs.items()})
    yield from _gauge(
        "lorawatch_loss_finite", "Whether the last training loss is a finite number: 0 for NaN or infinity.",
        {run: float(isfinite(one.values["loss"])) for run, one in runs.items() if "loss" in one.values},
    )  # fmt: skip
    seen = {run: one for run, one in runs.items() if one.rows}
    yield from _gauge("lorawatch_step", "Optimizer step of the last row.", {run: one.step for run, one in seen.items()})
    yield from _gauge(
        "lorawatch_max_steps", "Optimizer steps that the run is to take.", {run: s.max_steps for run, s in runs.items()}
    )
    yield from _gauge(
        "lorawatch_step_seconds", "Median time of the last steps that were timed.",
        {run: one.step_seconds for run, one in runs.items()},
    )  # fmt: skip
    yield from _gauge("lorawatch_epoch", "Epoch, as a fraction.", {run: one.epoch for run, one in runs.items()})
    yield from _gauge(
        "lorawatch_progress_ratio", "Share of the run that is done, 0 to 1.",
        {run: one.progress for run, one in seen.items()},
    )  # fmt: skip
    yield from _gauge(
        "lorawatch_last_row_timestamp_seconds", "Unix time at which the run logged its last row, as its log tells.",
        {run: one.time for run, one in runs.items()},
    )  # fmt: skip
    yield from _gauge(
        "lorawatch_run_ended", "Whether the trainer finished.", {run: float(one.ended) for run, one in runs.items()}
    )


def _judgement(runs: Mapping[str, _Snapshot]) -> Iterator[Metric]:
    info = InfoMetricFamily("lorawatch_run", "What is known of a run.", labels=["run"])
    active = GaugeMetricFamily(
        "lorawatch_finding_active", "Whether a finding of this rule is firing; absent while the rule abstains.",
        labels=["run", "rule", "severity"],
    )  # fmt: skip
    opened = CounterMetricFamily("lorawatch_findings", "Findings that were opened.", labels=["run", "rule"])
    for run, one in runs.items():
        info.add_metric([run], {"kind": one.kind})
        for (rule, severity), firing in one.active.items():
            active.add_metric([run, rule, severity], float(firing))
        for rule, count in one.opened.items():
            opened.add_metric([run, rule], count)
    yield from (family for family in (info, active, opened) if family.samples)
    yield from _gauge(
        "lorawatch_rules_abstained", "Rules that do not judge the run, for want of what they need.",
        {run: one.abstained for run, one in runs.items()},
    )  # fmt: skip


def _self(runs: Mapping[str, _Snapshot]) -> Iterator[Metric]:
    rows = CounterMetricFamily("lorawatch_rows", "Rows of metrics that were read.", labels=["run"])
    skipped = CounterMetricFamily(
        "lorawatch_skipped_lines", "Lines that looked like metrics and could not be read.", labels=["run"]
    )
    errors = CounterMetricFamily(
        "lorawatch_rule_errors", "Rules that failed and were switched off for the run.", labels=["run", "rule"]
    )
    taken = CounterMetricFamily("lorawatch_rule_seconds", "Time spent judging, over all runs.", labels=["rule"])
    total: Counter[str] = Counter()
    for run, one in runs.items():
        rows.add_metric([run], one.rows)
        skipped.add_metric([run], one.skipped_lines)
        for rule in one.rule_errors:
            errors.add_metric([run, rule], 1)
        total.update(one.rule_seconds)
    for rule, seconds in total.items():
        taken.add_metric([rule], seconds)
    yield from (family for family in (rows, skipped, errors, taken) if family.samples)
