"""What fixtures cannot say of the rules perf/* and host/*: any batching, any rhythm of readings, causes, recordings."""

from __future__ import annotations

import csv
import math
import os
import random
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

from lorawatch.data_wait import MOST_WORKERS, Cause, Diagnosis, diagnose
from lorawatch.engine import Engine
from lorawatch.findings import Breach, Severity
from lorawatch.loaders import Load, Loaders
from lorawatch.machine_signs import of_the_host
from lorawatch.records import (
    Card,
    FactUpdate,
    GpuReading,
    HostReading,
    LifecycleEvent,
    MetricRow,
    ProcessReading,
    Record,
    Step,
    StepTiming,
)
from lorawatch.registry import builtin_classes
from lorawatch.run import Run
from lorawatch.step_rule import StepRule

ROOT = Path(__file__).parent.parent.parent
CORPUS = Path(os.environ.get("LORAWATCH_CORPUS", ROOT.parent / "shared" / "runs"))
CLASSES = {rule.id: rule for rule in builtin_classes()}
GB = 10**9


def judge(rule: str, records: Iterable[Record], **facts: Any) -> Engine:
    """An engine with this one rule, after all records."""
    engine = Engine(Run("run"), [CLASSES[rule]()])
    if facts:
        engine.feed(FactUpdate(facts, "callback"))
    for record in records:
        engine.feed(record)
    assert engine.rule_errors == {}
    return engine


# --- any batching of the same steps -----------------------------------------------------------------------------------


def batched(steps: Sequence[Step], sizes: Callable[[], int]) -> list[Record]:
    """The steps in records of these sizes; each stop of a second or more counts as an evaluation."""
    records: list[Record] = []
    start = 0
    while start < len(steps):
        part = list(steps[start : start + sizes()])
        start += len(part)
        spent = sum(step.after for step in part if step.after >= 1.0)
        records.append(StepTiming(start, len(part), part, time=float(start), evaluation=spent))
    return records


def random_steps(seed: int, count: int = 600) -> list[Step]:
    """Steps whose wait, work, padding and stops change a few times."""
    rng = random.Random(seed)  # noqa: S311
    steps: list[Step] = []
    wait, work, share, stop = 0.0, 0.0, 0.0, 0.0
    for number in range(count):
        if number % 150 == 0:
            wait, work = rng.choice([0.001, 0.03, 0.1, 0.4]), rng.choice([0.1, 0.3])
            share, stop = rng.choice([0.1, 0.4, 0.7]), rng.choice([0.0, 2.0, 20.0])
        padded = round(rng.gauss(4000, 200))
        steps.append(
            Step(
                None if number % 97 == 0 else abs(rng.gauss(wait, 0.1 * wait)),
                abs(rng.gauss(work, 0.1 * work)),
                0.01,
                stop if number % 40 == 39 else 0.0,
                round(padded * (1.0 - share)),
                padded,
            )
        )
    return steps


def told(engine: Engine) -> list[tuple[str, str, str]]:
    return [(finding.rule, finding.severity.label, finding.state) for finding in engine.findings]


@pytest.mark.parametrize("rule", ["perf/data-wait", "perf/padding-waste", "perf/slowdown", "perf/overhead"])
def test_any_batching_of_the_same_steps_gives_the_same_findings(rule: str) -> None:
    found = 0
    for seed in range(25):
        steps, rng = random_steps(seed), random.Random(seed)  # noqa: S311
        one_by_one = judge(rule, batched(steps, lambda: 1))
        for sizes in (lambda: 7, lambda: 20, lambda rng=rng: rng.randint(1, 20)):
            engine = judge(rule, batched(steps, sizes))
            assert told(engine) == told(one_by_one)
            for mine, other in zip(engine.findings, one_by_one.findings, strict=True):
                assert 0 <= mine.opened_step - other.opened_step < 20
                assert mine.evidence == other.evidence
        found += len(one_by_one.findings)
    assert found >= 10, "too few findings for the comparison to say anything"


class Scripted(StepRule):
    """Decides as it was told to."""

    id = "test/scripted"
    title = "Scripted"
    severity = Severity.WARNING
    script: ClassVar[list[Severity | None]] = []

    def take(self, step: Step) -> bool:
        return True

    def decide(self, run: Run) -> Breach | None:
        severity = self.script[self.steps // 10 - 1]
        return None if severity is None else Breach("scripted", {}, severity)


@pytest.mark.parametrize("last", [None, Severity.INFO])
def test_a_record_tells_the_worst_of_its_decisions_and_the_next_one_the_last(last: Severity | None) -> None:
    Scripted.script = [None, Severity.CRITICAL, last]
    rule, run = Scripted(), Run("run")
    steps = [Step(0.0, 1.0, 0.0)] * 30
    worst = rule.judge(StepTiming(30, 30, steps), run)
    after = rule.judge(StepTiming(31, 1, steps[:1]), run)
    assert worst is not None
    assert worst.severity is Severity.CRITICAL
    assert (after and after.severity) == last


# --- what the time after the steps was spent on -----------------------------------------------------------------------

RECORDED = (13, 28, 30, 28, 41, 20)
"""Steps in the records of a real run of 160 steps (a checkpoint every second step, of 0.03 s, steps of 0.055 s)."""


def saving_run(save: float, *, evaluation: float = 0.0, work: float = 0.055) -> list[Record]:
    """A checkpoint after every second step and an evaluation after steps 80 and 160, in records as they really come."""
    records: list[Record] = []
    done = 0
    for span in RECORDED:
        numbers = range(done + 1, done + span + 1)
        done += span
        saves = sum(number % 2 == 0 for number in numbers)
        evaluated = evaluation * sum(number % 80 == 0 for number in numbers)
        steps = [Step(0.0, work, 0.0, (number % 2 == 0) * save + (number % 80 == 0) * evaluation) for number in numbers]
        records.append(
            StepTiming(done, span, steps, time=float(done), evaluation=evaluated, saving=saves * save, saves=saves)
        )
    return records


def test_the_parts_of_the_time_after_the_steps_are_never_more_than_the_whole() -> None:
    (finding,) = judge("perf/overhead", saving_run(0.03, evaluation=0.16)).findings
    share, shares = finding.evidence["share"], finding.evidence["shares"]
    assert finding.evidence["steps"] % RECORDED[0] > 0, "decided within a record"
    assert sum(shares.values()) == pytest.approx(share)
    assert shares["callbacks"] == pytest.approx(0.0, abs=1e-9)
    # Of 100 steps, which is when it is decided first: fifty checkpoints and one evaluation.
    assert shares["saving"] == pytest.approx(50 * 0.03 / finding.evidence["seconds"])
    assert shares["evaluation"] == pytest.approx(0.16 / finding.evidence["seconds"])
    assert finding.evidence["saves"] == 50
    assert "a checkpoint takes 0.03 s" in finding.summary


def test_checkpoints_that_come_later_in_a_record_are_not_held_against_the_steps_before_them() -> None:
    """8 % of the time, which 41 steps' checkpoints at step 100 would make 11 %."""
    assert judge("perf/overhead", saving_run(0.0096, work=0.055)).findings == []
    assert len(judge("perf/overhead", saving_run(0.0130, work=0.055)).findings) == 1


def test_what_is_told_of_steps_that_were_lost_is_not_held_against_those_that_came() -> None:
    """The recorder keeps a limited number of steps: its totals hold those of the lost ones as well."""
    steps = [Step(0.0, 1.0, 0.0, 1.0)] * 100
    records = [StepTiming(100, 100, steps, time=100.0, evaluation=150.0, saving=450.0, saves=90)]
    (finding,) = judge("perf/overhead", records).findings
    assert finding.evidence["share"] == pytest.approx(0.5)
    assert finding.evidence["shares"]["saving"] == pytest.approx(0.5 * 0.75)
    assert "a checkpoint takes 5 s" in finding.summary


@pytest.mark.parametrize("value", [math.nan, math.inf, -1.0])
def test_a_total_that_is_no_number_of_seconds_leaves_the_parts_unknown(value: float) -> None:
    steps = [Step(0.0, 1.0, 0.0, 1.0)] * 100
    (finding,) = judge("perf/overhead", [StepTiming(100, 100, steps, time=100.0, saving=value, saves=3)]).findings
    assert finding.evidence["shares"] == {"evaluation": 0.0, "saving": 0.0, "logging": 0.0, "callbacks": 0.5}


# --- any rhythm of the readings ---------------------------------------------------------------------------------------


def idle_card(rhythm: int) -> list[Record]:
    """Ten minutes at full work, ten at a fifth, ten at full work."""
    times = range(rhythm, 1801, rhythm)
    return [
        record
        for now in times
        for record in (
            GpuReading(now, [Card(0, "GPU-0", utilization=0.2 if 600 < now <= 1200 else 0.98)], float(rhythm)),
            MetricRow(now, {"loss": 2.0}, time=float(now)),
        )
    ]


def gaps(rhythm: int) -> list[Record]:
    """Full work with a stop of a minute every five."""
    return [
        record
        for now in range(rhythm, 2401, rhythm)
        for record in (
            GpuReading(now, [Card(0, "GPU-0", utilization=0.0 if 120 < now % 300 <= 180 else 0.98)], float(rhythm)),
            MetricRow(now, {"loss": 2.0}, time=float(now)),
        )
    ]


def silence(rhythm: int) -> list[Record]:
    """Steps for ten minutes, silence for ten, steps again."""
    readings = [
        HostReading(float(now), float(rhythm), idle=float(now - 600) if 600 < now <= 1200 else 0.5, phase="training")
        for now in range(rhythm, 1801, rhythm)
    ]
    return [StepTiming(1, 1, [Step(0.0, 1.0, 0.1)] * 5), *readings]


def short_memory(rhythm: int) -> list[Record]:
    """Memory that is short for five minutes."""
    return [
        HostReading(
            float(now), float(rhythm), memory_total=64 * GB, memory_available=5 * GB if 600 < now <= 900 else 30 * GB
        )
        for now in range(rhythm, 1501, rhythm)
    ]


def growing_memory(rhythm: int) -> list[Record]:
    """Memory in use grows by 30 GB an hour."""
    return [
        record
        for now in range(rhythm, 2401, rhythm)
        for record in (
            HostReading(
                float(now), float(rhythm), memory_total=64 * GB, memory_available=30 * GB - round(30 * GB * now / 3600)
            ),
            MetricRow(now, {"loss": 2.0}, time=float(now)),
        )
    ]


@pytest.mark.parametrize(
    ("rule", "records", "opens", "state"),
    [
        ("perf/low-gpu", idle_card, 720, "resolved"),
        ("perf/low-gpu", gaps, 450, "firing"),
        ("perf/stall", silence, 900, "resolved"),
        ("host/ram", short_memory, 620, "resolved"),
        ("host/ram", growing_memory, 700, "firing"),
    ],
    ids=["level", "gaps", "stall", "short memory", "growing memory"],
)
def test_any_rhythm_of_the_readings_gives_the_same_finding(
    rule: str, records: Callable[[int], list[Record]], opens: float, state: str
) -> None:
    seen: set[tuple[str, str]] = set()
    for rhythm in (1, 10, 15, 30):
        (finding,) = judge(rule, records(rhythm)).findings
        seen.add((finding.severity.label, finding.evidence.get("case", "")))
        assert finding.state == state
        assert finding.opened_time is not None
        assert opens <= finding.opened_time <= opens + 180, (rhythm, finding.opened_time)
    assert len(seen) == 1


# --- why training waits -----------------------------------------------------------------------------------------------


def diagnosed(wait: float = 0.1, work: float = 0.1, *, callback: bool = False, load: Load, **facts: Any) -> Diagnosis:
    run = Run("run")
    run.learn(FactUpdate(facts, "callback" if callback else "test"))
    return diagnose(load, run, wait, work)


BUSY: dict[str, Any] = {"seconds": 60.0, "workers": 4, "worker_cpu": 0.97, "trainer_cpu": 1.0}
CALM: dict[str, Any] = {"seconds": 60.0, "workers": 4, "worker_cpu": 0.05, "trainer_cpu": 1.0, "cpus": 16.0, "cpu": 1.3}
SHARED: dict[str, Any] = {**BUSY, "workers": 8, "worker_cpu": 0.25, "cpus": 2.0, "cpu": 2.0}
SIXTEEN: dict[str, Any] = {**BUSY, "workers": 16, "cpus": 32.0, "cpu": 17.0}
BLOCKED: dict[str, Any] = {**CALM, "blocked": 0.7}
SERVED: dict[str, Any] = {**BLOCKED, "receive_rate": 5e7, "disk_read_rate": 1e5}


@pytest.mark.parametrize(
    ("cause", "workers", "load"),
    [
        ("too few workers", 4, Load(**BUSY, cpus=16.0, cpu=5.2)),
        ("processors", 4, Load(**BUSY, cpus=5.0, cpu=4.9)),
        ("processors", 16, Load(**SIXTEEN)),  # sixteen are enough for any step
        ("processors", 8, Load(**SHARED)),  # eight share two
        ("not told", 4, Load(**BUSY)),
        ("disk", 4, Load(**BLOCKED)),
        ("disk", 4, Load(**CALM, read_rate=2e8, receive_rate=1e4)),
        ("network", 4, Load(**SERVED)),  # a file server
        ("network", 4, Load(**CALM, receive_rate=5e7, disk_read_rate=1e5)),
        ("not told", 4, Load(**CALM)),
        ("not told", 4, Load(**CALM, receive_rate=1e5, disk_read_rate=1e5)),
        ("not told", 4, Load()),
        ("not told", None, Load()),
        ("too few workers", 0, Load()),
        ("too few workers", 0, Load(seconds=60.0, workers=0, trainer_cpu=1.0, cpus=8.0, cpu=1.1)),
        ("too few workers", None, Load(seconds=60.0, workers=0, trainer_cpu=1.0, cpus=8.0, cpu=1.1)),
        ("processors", 0, Load(seconds=60.0, workers=0, trainer_cpu=1.0, cpus=1.0, cpu=1.0)),
        ("processors", 0, Load(seconds=60.0, workers=0, trainer_cpu=1.0, cpus=8.0, cpu=7.9)),
        ("disk", 0, Load(seconds=60.0, workers=0, trainer_cpu=0.5, blocked=0.4, cpus=8.0, cpu=0.6)),
        ("too few workers", 0, Load(seconds=60.0, workers=0, trainer_cpu=0.5, blocked=0.1, cpus=8.0, cpu=0.6)),
    ],
)
def test_the_cause_is_told_from_what_the_machine_did(cause: Cause, workers: int | None, load: Load) -> None:
    assert diagnosed(load=load, dataloader_num_workers=workers).cause == cause


def test_a_streamed_data_set_without_busy_loaders_waits_for_the_network() -> None:
    load = Load(**CALM)
    known: dict[str, Any] = {"dataloader_num_workers": 4, "trainer_class": "SFTTrainer"}
    assert diagnosed(load=load, callback=True, **known).cause == "network"
    assert diagnosed(load=load, callback=True, train_rows=1000, **known).cause == "not told"
    assert diagnosed(load=load, **known).cause == "not told", "a log alone does not tell whether it is streamed"


@pytest.mark.parametrize("work", [0.05, 0.1, 0.4])
@pytest.mark.parametrize("batch", [0.02, 0.1, 0.3, 1.0])
def test_the_proposed_workers_make_batches_as_fast_as_steps_take_them(batch: float, work: float) -> None:
    """A worker makes a batch in ``batch`` seconds: W of them one each ``batch / W``."""
    load = Load(seconds=60.0, worker_cpu=1.0, trainer_cpu=1.0, cpus=64.0, cpu=4.0)
    for workers in (0, 1, 2, 5):
        wait = batch if workers == 0 else max(batch / workers - work, 0.0)
        proposed = diagnosed(wait or 1e-6, work, load=load, dataloader_num_workers=workers).proposed
        needed = math.ceil(batch / work - 1e-9)
        if wait and needed <= MOST_WORKERS:
            assert proposed is not None
            assert workers < proposed
            assert needed <= proposed <= 1.2 * needed + 1


def test_no_more_workers_are_proposed_than_there_are_processors_for_each_rank() -> None:
    busy: dict[str, Any] = {"seconds": 60.0, "worker_cpu": 1.0, "cpu": 4.0}
    found = diagnosed(1.0, 0.1, load=Load(**busy, cpus=16.0, ranks=4), dataloader_num_workers=2)
    assert (found.limit, found.proposed) == (4, 4)
    found = diagnosed(1.0, 0.1, load=Load(**busy, cpus=16.0), dataloader_num_workers=2, world_size=8)
    assert (found.limit, found.proposed) == (2, None)
    assert "more than 2 workers make no sense" in found.words
    assert diagnosed(1.0, 0.1, load=Load(**busy, cpus=128.0), dataloader_num_workers=0).proposed == 11
    assert diagnosed(9.0, 0.1, load=Load(**busy, cpus=128.0), dataloader_num_workers=0).proposed == MOST_WORKERS
    assert diagnosed(9.0, 0.1, load=Load(), dataloader_num_workers=0).proposed == 4


def test_readings_of_evaluation_and_those_older_than_a_minute_do_not_count() -> None:
    loaders = Loaders()
    for now, cpu, phase in ((10, 0.1, "training"), (80, 0.9, "training"), (90, 0.1, "evaluation"), (100, 0.7, "")):
        processes = [ProcessReading(1, "trainer", 1.0), ProcessReading(2, "worker", cpu)]
        loaders.add(HostReading(float(now), 10.0, cpus=8.0, processes=processes, phase=phase))
    loaders.add(HostReading(101.0, 0.0, cpus=8.0))
    load = loaders.load()
    assert load.worker_cpu == pytest.approx(0.8)
    assert (load.seconds, load.workers, load.ranks) == (20.0, 1, 1)


def waiting(first: int, last: int) -> list[Record]:
    return [StepTiming(last, last - first + 1, [Step(0.5, 0.5, 0.0)] * (last - first + 1), time=float(last))]


def test_the_verdict_waits_for_the_reading_that_tells_the_cause() -> None:
    processes = [ProcessReading(1, "trainer", 1.0)]
    first = HostReading(0.0, cpus=8.0, processes=processes)
    rated = HostReading(70.0, 10.0, cpus=8.0, cpu=1.2, processes=processes)
    begun: list[Record] = [first, *waiting(1, 60)]
    assert judge("perf/data-wait", begun, dataloader_num_workers=0).findings == []
    (finding,) = judge("perf/data-wait", [*begun, rated, *waiting(61, 70)], dataloader_num_workers=0).findings
    assert (finding.opened_step, finding.evidence["processors"]) == (70, 8.0)


def test_the_verdict_waits_for_no_reading_longer_than_a_minute_of_steps() -> None:
    records: list[Record] = [HostReading(0.0, cpus=8.0)]
    for step in range(1, 201, 10):
        records += waiting(step, step + 9)
    (finding,) = judge("perf/data-wait", records).findings
    assert 100 <= finding.opened_step <= 120  # fifty steps of a second, and sixty seconds


def test_the_advice_follows_what_the_machine_shows_later() -> None:
    engine = judge("perf/data-wait", waiting(1, 60), dataloader_num_workers=2, num_train_epochs=1)
    assert engine.findings[0].evidence["cause"] == "not told"
    workers = [ProcessReading(pid, "worker", 0.98) for pid in (2, 3)]
    engine.feed(HostReading(70.0, 10.0, cpus=16.0, cpu=3.0, processes=[ProcessReading(1, "trainer", 1.0), *workers]))
    engine.renew_advice()
    first = engine.findings[0].adjustments[0]
    assert (first.parameter, first.current, first.proposed) == ("dataloader_num_workers", 2, 5)


@pytest.mark.parametrize("rule", ["perf/data-wait", "perf/padding-waste", "perf/overhead"])
def test_from_outside_a_rule_says_that_only_the_callback_takes_what_it_needs(rule: str) -> None:
    outside: list[Record] = [StepTiming(step, 10, seconds=5.0, time=float(step)) for step in range(10, 200, 10)]
    (one,) = judge(rule, outside).abstained()
    assert one.missing == ("times within the steps (only the callback takes them)",)
    (one,) = judge(rule, [*outside, *waiting(200, 209)]).abstained()
    assert "so far)" in one.missing[0]


def test_what_adds_no_throughput_is_never_the_change_to_make() -> None:
    engine = judge("perf/data-wait", waiting(1, 60), dataloader_num_workers=16, num_train_epochs=3)
    (finding,) = engine.findings
    told = " ".join(str(one.proposed) for one in finding.adjustments)
    assert "dataloader_persistent_workers=True" in told
    assert "dataloader_prefetch_factor=4" in told
    assert engine.next_adjustment() is None
    assert "cause not told: no reading of the machine" in finding.summary


def test_axolotl_is_not_told_of_a_setting_that_it_lacks() -> None:
    facts: dict[str, Any] = {"dataloader_num_workers": 16, "num_train_epochs": 3, "framework": "axolotl"}
    (finding,) = judge("perf/data-wait", waiting(1, 60), **facts).findings
    assert not any("persistent" in str(one.proposed) for one in finding.adjustments)


@pytest.mark.parametrize(("own", "told"), [(0.4, True), (0.98, False)])
def test_others_are_looked_for_only_where_they_take_part_of_the_processors(own: float, told: bool) -> None:
    run = Run("run")
    run.host = HostReading(10.0, 10.0, cpus=1.0, cpu=1.0, processes=[ProcessReading(1, "trainer", own)])
    assert any("what else runs" in str(one.proposed) for one in of_the_host(run)) is told


# --- where the disk is full -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("limit", [None, 2, 5])
@pytest.mark.parametrize("total", [1000, 1050, 4000])
@pytest.mark.parametrize("room", range(14))
def test_the_step_at_which_the_disk_is_full_is_where_a_save_finds_no_room(
    room: int, total: int, limit: int | None
) -> None:
    """Against a Trainer that saves each 100 steps and at the end, the new checkpoint before it deletes the oldest."""
    size, step = GB, 100
    free = room * size + size // 2
    kept, left, fails = 1, free, None
    for save in [*range(200, total, 100), total]:
        if left < size:
            fails = save
            break
        left, kept = left - size, kept + 1
        if limit is not None and kept > limit:
            left, kept = left + size, kept - 1
    reading = HostReading(1.0, disk_free=free, checkpoint_bytes=size, step=step)
    facts: dict[str, Any] = {"max_steps": total, "save_steps": 100, "save_strategy": "steps"}
    if limit is not None:
        facts["save_total_limit"] = limit
    findings = judge("host/disk", [reading], **facts).findings
    assert (findings[0].evidence["full_at_step"] if findings else None) == fails


@pytest.mark.parametrize(
    ("facts", "full_at"),
    [
        ({"save_strategy": "epoch", "num_train_epochs": 5, "max_steps": 1000}, 600),
        ({"save_steps": 0.1, "max_steps": 1000}, 400),
        ({"save_strategy": "best", "max_steps": 1000, "save_steps": 100}, None),
        ({"save_steps": 100}, None),
    ],
)
def test_the_saves_to_come_are_told_by_the_strategy(facts: dict[str, Any], full_at: int | None) -> None:
    reading = HostReading(1.0, disk_free=5 * GB // 2, checkpoint_bytes=GB, step=100)
    findings = judge("host/disk", [reading], **facts).findings
    assert (findings[0].evidence["full_at_step"] if findings else None) == full_at


# --- the rest ---------------------------------------------------------------------------------------------------------


def test_a_low_card_is_a_symptom_of_waiting_for_data() -> None:
    engine = Engine(Run("run"), [CLASSES["perf/data-wait"](), CLASSES["perf/low-gpu"]()])
    for now in range(10, 601, 10):
        engine.feed(waiting(now - 9, now)[0])
        engine.feed(GpuReading(float(now), [Card(0, "GPU-0", utilization=0.2)], 10.0))
    cause, symptom = engine.active()
    assert (cause.rule, symptom.rule) == ("perf/data-wait", "perf/low-gpu")
    assert symptom.incident == cause.id


def stalled(*, rows: int = 0, gone: bool = False, workers: int = 0, **facts: Any) -> Engine:
    """A trainer that gives no sign for 25 minutes, or is gone, after so many rows."""
    begun: list[Record] = [MetricRow(step, {"loss": 2.0}, time=float(step)) for step in range(1, rows + 1)]
    processes = [ProcessReading(1, "trainer", 1.0), *(ProcessReading(2 + one, "worker", 0.0) for one in range(workers))]
    silent: list[Record] = [
        HostReading(
            100.0 + now, 30.0, alive=not gone, idle=float(now), phase="training" if rows else "",
            processes=[] if gone else processes,
        )
        for now in range(30, 1501, 30)
    ]  # fmt: skip
    return judge("perf/stall", [*begun, *silent], **facts)


@pytest.mark.parametrize("gone", [True, False])
def test_a_run_that_had_not_begun_is_started_again_and_loses_nothing(gone: bool) -> None:
    (finding,) = stalled(gone=gone).findings
    last = finding.adjustments[-1].proposed
    assert "start it again: no step is lost" in last
    assert "checkpoint" not in last
    assert "before its first step" in finding.summary if gone else "has not begun" in finding.summary
    (finding,) = stalled(rows=20, gone=gone).findings
    assert "resume from the last checkpoint" in finding.adjustments[-1].proposed


@pytest.mark.parametrize(
    ("stated", "seen", "asks"), [(None, 0, False), (0, 0, False), (4, 0, True), (None, 2, True), (0, 2, True)]
)
def test_workers_are_suspected_only_where_there_are_some(stated: int | None, seen: int, asks: bool) -> None:
    facts: dict[str, Any] = {} if stated is None else {"dataloader_num_workers": stated}
    engine = stalled(rows=20, workers=seen, **facts)
    (finding,) = engine.findings
    assert any("dataloader_num_workers 0" in one.proposed for one in finding.adjustments) is asks
    assert engine.next_adjustment() is None


@pytest.mark.parametrize("seen", [0, 1, 6])
def test_advice_on_main_memory_counts_the_workers_of_each_trainer(seen: int) -> None:
    """Two ranks with as many workers each, which hold most of the memory."""
    ranks = [ProcessReading(1, "trainer", 1.0, GB), ProcessReading(2, "rank", 1.0, GB)]
    workers = [ProcessReading(10 + one, "worker", 0.1, 50 * GB // (2 * seen)) for one in range(2 * seen)]
    records: list[Record] = [
        HostReading(float(now), 10.0, memory_total=64 * GB, memory_available=5 * GB, processes=[*ranks, *workers])
        for now in range(10, 60, 10)
    ]
    (finding,) = judge("host/ram", records).findings
    changes = [(one.parameter, one.current, one.proposed) for one in finding.adjustments if one.parameter]
    assert changes == ([("dataloader_num_workers", 6, 3)] if seen == 6 else [])


def test_a_run_that_said_that_it_ended_is_not_gone() -> None:
    records: list[Record] = [MetricRow(step, {"loss": 2.0}) for step in range(1, 20)]
    ended = LifecycleEvent("ended", step=19)
    gone: list[Record] = [HostReading(float(now), 10.0, alive=False) for now in range(200, 400, 10)]
    assert judge("perf/stall", [*records, ended, *gone], max_steps=100).findings == []
    assert len(judge("perf/stall", [*records, *gone], max_steps=100).findings) == 1


def test_a_trainer_that_was_short_of_memory_before_it_went_is_told_so() -> None:
    begun: list[Record] = [
        MetricRow(900, {"loss": 2.0}),
        HostReading(10.0, 10.0, alive=True, memory_total=64 * GB, memory_available=GB),
    ]
    gone: list[Record] = [HostReading(float(now), 10.0, alive=False) for now in (20, 30, 40, 50, 60)]
    (finding,) = judge("perf/stall", [*begun, *gone], max_steps=3000).findings
    assert "step 900 of 3000" in finding.summary
    assert "2 % of the machine's memory was available" in finding.summary
    assert "dmesg" in finding.adjustments[0].proposed


def recordings() -> dict[str, tuple[str, list[tuple[float, float]]]]:
    """Utilisation of the recorded cards, by file: its label, and time and share of each sample."""
    folder = CORPUS / "gpu"
    if not (folder / "labels.csv").is_file():
        pytest.skip("the corpus is not here")
    found: dict[str, tuple[str, list[tuple[float, float]]]] = {}
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as labels:
        for row in csv.DictReader(labels):
            file = CORPUS / row["file"]
            values: dict[str, list[tuple[float, float]]] = defaultdict(list)
            with file.open(encoding="utf-8", newline="") as samples:
                for sample in csv.DictReader(samples):
                    if sample["metric"] == row["gpu"]:
                        values["card"].append((float(sample["unix_ts"]), float(sample["value"]) / 100))
            found[file.name] = (row["labels"], sorted(values["card"]))
    return found


def test_recorded_cards_fire_where_they_stood_still_and_nowhere_else() -> None:
    seen: dict[str, set[str]] = defaultdict(set)
    for label, samples in recordings().values():
        start = next((time for time, used in samples if used >= 0.5), math.inf)  # what is before is loading
        records: list[Record] = []
        before = samples[0][0]
        for time, used in samples:
            if time == start:
                records.append(MetricRow(1, {"loss": 2.0}, time=time))
            records.append(GpuReading(time, [Card(0, "GPU-0", utilization=used)], time - before))
            before = time
        cases = {finding.evidence["case"] for finding in judge("perf/low-gpu", records).findings}
        seen[label] |= cases or {"quiet"}
    assert seen["util_gaps"] == {"gaps"}
    assert seen["healthy"] == seen["low_vram_steady"] == seen[""] - {"low"} == {"quiet"}
