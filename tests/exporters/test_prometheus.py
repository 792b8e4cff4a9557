"""What Prometheus is told of the watched runs."""

from __future__ import annotations

import math
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import pytest
from prometheus_client import Metric, generate_latest
from prometheus_client.openmetrics.exposition import generate_latest as generate_openmetrics
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families

from lorawatch.exporter import MetricsCollector, metrics_collector
from lorawatch.findings import Severity
from lorawatch.records import AllocatorReading, Card, GpuReading, HostReading, ProcessReading, Step, StepTiming
from lorawatch.version import __version__
from tests.terminal.synthetic import LossTooHigh, Raises, SyntheticRun, SyntheticWatch

SEVERITIES = {"loss/too-high": Severity.WARNING, "grad/high": Severity.INFO}
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


@dataclass(slots=True)
class WalksTheSeries(LossTooHigh):
    """Its abstention is told by a walk over all series: the engine's state that changes while it is scraped."""

    id: ClassVar[str] = "test/walks"
    needs: ClassVar[tuple[str, ...]] = ()
    needs_any: ClassVar[tuple[str, ...]] = ("nothing_*",)


def collector(*runs: SyntheticRun) -> MetricsCollector:
    return metrics_collector(SyntheticWatch(list(runs)), SEVERITIES)


def scrape(collected: MetricsCollector) -> Samples:
    samples: Samples = {}
    for family in text_string_to_metric_families(generate_latest(collected).decode()):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in samples, f"told twice: {key}"
            samples[key] = sample.value
    return samples


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((f"lorawatch_{name}", frozenset(labels.items())))


def trained() -> SyntheticRun:
    run = SyntheticRun(skipped_lines=3)
    run.learn(max_steps=400)
    run.train(range(1, 101))
    return run


def test_the_state_of_a_run() -> None:
    run = trained()
    samples = scrape(collector(run))
    told = {name: value(samples, name, run="qwen-sft") for name in (
        "loss", "loss_finite", "eval_loss", "grad_norm", "learning_rate", "step", "max_steps", "epoch",
        "progress_ratio", "last_row_timestamp_seconds", "run_ended", "rows_total", "skipped_lines_total",
    )}  # fmt: skip
    known = run.engine.run
    assert told == {
        "loss": known.last("loss"), "loss_finite": 1.0, "eval_loss": known.last("eval_loss"),
        "grad_norm": known.last("grad_norm"), "learning_rate": known.last("learning_rate"), "step": 100.0,
        "max_steps": 400.0, "epoch": 0.5, "progress_ratio": 0.25, "last_row_timestamp_seconds": 1_000_110.0,
        "run_ended": 0.0, "rows_total": 102.0, "skipped_lines_total": 3.0,
    }  # fmt: skip
    assert value(samples, "run_info", run="qwen-sft", kind="sft") == 1.0
    assert value(samples, "runs") == 1.0


def test_the_build_is_told_without_any_run() -> None:
    names = {name: dict(labels) for name, labels in scrape(collector())}
    assert names["lorawatch_build_info"]["version"] == __version__


def test_what_was_not_logged_has_no_sample() -> None:
    run = SyntheticRun()
    samples = scrape(collector(run))
    assert value(samples, "loss", run="qwen-sft") is None
    assert value(samples, "step", run="qwen-sft") is None
    assert value(samples, "last_row_timestamp_seconds", run="qwen-sft") is None
    assert value(samples, "rows_total", run="qwen-sft") == 0.0


def test_a_nan_loss_stays_nan_and_is_flagged() -> None:
    run = trained()
    run.row(101, loss=math.nan, grad_norm=math.inf)
    samples = scrape(collector(run))
    assert math.isnan(value(samples, "loss", run="qwen-sft") or 0.0)
    assert value(samples, "loss_finite", run="qwen-sft") == 0.0
    assert value(samples, "grad_norm", run="qwen-sft") == math.inf


def test_a_rule_that_judged_stands_with_0_and_one_that_abstains_not_at_all() -> None:
    samples = scrape(collector(trained()))
    assert value(samples, "finding_active", run="qwen-sft", rule="loss/too-high", severity="warning") == 0.0
    assert value(samples, "finding_active", run="qwen-sft", rule="grad/high", severity="info") == 0.0
    assert not any("rl/collapse" in dict(labels).values() for name, labels in samples if "finding" in name)
    abstained = value(samples, "rules_abstained", run="qwen-sft")
    assert abstained is not None
    assert abstained >= 1.0


def test_a_firing_finding_is_1_and_0_again_once_it_resolved() -> None:
    run = trained()
    run.fail(101)
    samples = scrape(collector(run))
    assert value(samples, "finding_active", run="qwen-sft", rule="loss/too-high", severity="warning") == 1.0
    assert value(samples, "findings_total", run="qwen-sft", rule="loss/too-high") == 1.0
    run.train(range(110, 115))
    samples = scrape(collector(run))
    assert value(samples, "finding_active", run="qwen-sft", rule="loss/too-high", severity="warning") == 0.0
    assert value(samples, "findings_total", run="qwen-sft", rule="loss/too-high") == 1.0


def test_a_finding_that_grew_worse_fires_under_its_new_severity_alone() -> None:
    run = trained()
    run.fail(101)
    run.fail(103, loss=99.0)
    samples = scrape(collector(run))
    assert value(samples, "finding_active", run="qwen-sft", rule="loss/too-high", severity="critical") == 1.0
    assert value(samples, "finding_active", run="qwen-sft", rule="loss/too-high", severity="warning") == 0.0


def test_a_rule_that_failed_is_counted_and_its_time_is_told() -> None:
    run = SyntheticRun(rules=[LossTooHigh(), Raises()])
    run.train(range(1, 10))
    samples = scrape(collector(run))
    assert value(samples, "rule_errors_total", run="qwen-sft", rule="test/raises") == 1.0
    assert (value(samples, "rule_seconds_total", rule="loss/too-high") or 0.0) > 0.0


@pytest.mark.parametrize(
    "name", ['quo"te', "back\\slash", "line\nfeed", "\udcff\udc80", "{}=,", "run\r\t\x1b[31m", "漢字", "x" * 5000, ""]
)
def test_a_run_may_have_any_name(name: str) -> None:
    run = SyntheticRun(name, "/runs/x")
    run.row(1, loss=1.0)
    collected = collector(run)
    labels = [dict(labels)["run"] for metric, labels in scrape(collected) if metric == "lorawatch_loss"]
    assert labels == [name[:200].encode("utf-8", "backslashreplace").decode()]
    families = list(parse_openmetrics(generate_openmetrics(collected).decode()))  # type: ignore[no-untyped-call]
    assert "lorawatch_rows" in {family.name for family in families}


def test_runs_of_one_name_are_told_apart() -> None:
    runs = [SyntheticRun("run", f"/{folder}/run") for folder in ("a", "b", "b")]
    for run in runs:
        run.row(1, loss=1.0)
    samples = scrape(collector(*runs))
    assert [value(samples, "loss", run=label) for label in ("run", "/b/run", "/b/run#2")] == [1.0] * 3


def test_the_number_of_runs_is_capped_and_the_newest_are_kept() -> None:
    runs = [SyntheticRun(f"run-{index}", rules=[]) for index in range(205)]
    for index, run in enumerate(runs):
        run.row(1, 1_000_000.0 - index, loss=1.0)
    samples = scrape(collector(*runs))
    assert value(samples, "runs") == 205.0
    assert value(samples, "runs_not_exported") == 5.0
    assert value(samples, "loss", run="run-0") == 1.0
    assert value(samples, "loss", run="run-204") is None


def test_a_scrape_beside_a_busy_watch_never_fails() -> None:
    run = SyntheticRun(rules=[WalksTheSeries(), LossTooHigh()])
    collected = collector(run)
    stop = threading.Event()
    failed: list[BaseException] = []

    def feed() -> None:
        try:
            step = 0
            while not stop.is_set():
                step += 1
                if step % 300 == 0:  # a new engine, with no series yet
                    SyntheticRun.__post_init__(run)
                run.row(step, **{f"metric_{step % 250}_{step // 300}": 1.0, "loss": 20.0 if step % 9 else 1.0})
        except BaseException as error:
            failed.append(error)

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    thread = threading.Thread(target=feed)
    thread.start()
    try:
        for _ in range(300):
            generate_latest(collected)
    finally:
        stop.set()
        thread.join()
        sys.setswitchinterval(interval)
    assert failed == []


def test_a_run_that_will_not_hold_still_is_told_as_it_last_was(monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained()
    collected = collector(run)
    scrape(collected)

    def restless(self: object) -> Iterator[Metric]:
        raise RuntimeError("dictionary changed size during iteration")

    monkeypatch.setattr("lorawatch.engine.Engine.abstained", restless)
    assert value(scrape(collected), "step", run="qwen-sft") == 100.0


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_finds_nothing_to_mend() -> None:
    run = trained()
    run.fail(101)
    other = SyntheticRun("other", rules=[Raises()])
    other.train(range(1, 60))
    text = generate_latest(collector(run, other, observed()))
    done = subprocess.run(["promtool", "check", "metrics"], input=text, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")


def observed() -> SyntheticRun:
    run = trained()
    steps = [Step(0.25, 0.7, 0.05, 0.0)] * 8
    allocator = AllocatorReading(5, 7, 9, 9, alloc_retries=2, ooms=1)
    run.engine.feed(StepTiming(step=100, span=8, steps=steps, time=1.0, evaluation=2.0, allocator=allocator))
    full = Card(
        0, "GPU-a", "A", memory_total=80, memory_used=72, utilization=0.5, power=200.0, temperature=70.0,
        throttled={"hw_thermal": 0.5},
    )  # fmt: skip
    run.engine.feed(GpuReading(1.0, [full, Card(1, "MIG-b", "B", memory_total=5, mig=True)], 10.0))
    workers = [ProcessReading(2, "worker", 0.5, 100), ProcessReading(3, "worker", 0.25, 100)]
    run.engine.feed(HostReading(1.0, memory_total=64, memory_available=0, disk_free=9, idle=3.0, processes=workers))
    return run


def test_the_machine() -> None:
    samples = scrape(collector(observed()))
    a, b = {"run": "qwen-sft", "gpu": "0", "uuid": "GPU-a"}, {"run": "qwen-sft", "gpu": "1", "uuid": "MIG-b"}
    assert value(samples, "gpu_memory_total_bytes", **a) == 80
    assert value(samples, "gpu_memory_used_bytes", **a) == 72
    assert value(samples, "gpu_utilization_ratio", **a) == 0.5
    assert value(samples, "gpu_throttled_ratio", **a, reason="hw_thermal") == 0.5
    assert value(samples, "gpu_memory_total_bytes", **b) == 5
    run = {"run": "qwen-sft"}
    assert value(samples, "phase_seconds_total", **run, phase="data_wait") == 2.0
    assert value(samples, "phase_seconds_total", **run, phase="evaluation") == 2.0
    assert value(samples, "step_seconds", **run) == 1.0
    assert value(samples, "allocator_peak_allocated_bytes", **run, device="0") == 7
    assert value(samples, "allocator_retries_total", **run, device="0") == 2
    assert value(samples, "allocator_ooms_total", **run, device="0") == 1
    assert value(samples, "host_memory_available_bytes", **run) == 0
    assert value(samples, "disk_free_bytes", **run) == 9
    assert value(samples, "trainer_idle_seconds", **run) == 3.0
    assert value(samples, "processes", **run, role="worker") == 2
    assert value(samples, "process_cpus_in_use", **run, role="worker") == 0.75


def test_what_a_card_does_not_tell_has_no_sample() -> None:
    samples = scrape(collector(observed()))
    b = {"run": "qwen-sft", "gpu": "1", "uuid": "MIG-b"}
    told = {name for name, labels in samples if labels == frozenset(b.items())}
    assert told == {"lorawatch_gpu_memory_total_bytes", "lorawatch_gpu_lost"}
    assert value(samples, "host_swap_in_bytes_per_second", run="qwen-sft") is None
    assert value(samples, "trainer_alive", run="qwen-sft") is None


def test_the_machines_metrics_keep_the_rules_of_both_formats() -> None:
    run = observed()
    list(parse_openmetrics(generate_openmetrics(collector(run)).decode()))  # type: ignore[no-untyped-call]
    for family in collector(run).collect():
        assert family.documentation.endswith(".")
        assert not family.name.endswith(("_ms", "_mib", "_percent", "_mhz"))
