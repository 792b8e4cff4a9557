"""The machine under a run that is followed from outside, and what becomes of it when the files are read again."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

import pytest

from lorawatch.engine import Engine
from lorawatch.machine.gpus import GpuSampler
from lorawatch.machine_watch import FRESH, MachineWatch
from lorawatch.records import Card, GpuProcess, GpuReading, HostReading, LifecycleEvent, StepTiming
from lorawatch.registry import RuleSet, rule_classes
from lorawatch.run import Run
from lorawatch.settings import Settings
from lorawatch.watch import FolderWatch, RunWatch
from tests.machine.jobs import PLAIN, running, write

GIB = 1 << 30
ROW = "{'loss': 1.0, 'grad_norm': 0.5, 'learning_rate': 0.0002, 'epoch': 0.1}\n"


class Cards:
    vendor: ClassVar[str] = "nvidia"

    def __init__(self, *cards: Card) -> None:
        self.cards = list(cards)
        self.problems: Sequence[str] = ()

    def look(self) -> list[Card]:
        return list(self.cards)

    def close(self) -> None:
        pass


class Clock:
    def __init__(self, now: float) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


def card(index: int, used: float, *processes: GpuProcess) -> Card:
    return Card(
        index, f"GPU-{index}", "Test", memory_total=80 * GIB, memory_used=int(used * GIB), utilization=0.9,
        processes=list(processes),
    )  # fmt: skip


class Beside:
    """``tail`` beside a log, with a clock and cards that the test moves."""

    def __init__(self, path: Path, *cards: Card, rules: Settings | None = None) -> None:
        self.watch = FolderWatch(path, RuleSet(rules or Settings()))
        self.watch.poll()
        self.seen = Cards(*cards)
        self.gpus = GpuSampler([self.seen], clock=lambda: self.clock.now)
        self.clock = Clock(path.stat().st_mtime if path.exists() else 1e9)
        self.machine = MachineWatch(self.watch, gpus=self.gpus, clock=self.clock)

    @property
    def run(self) -> RunWatch:
        return self.watch.runs[0]

    def pass_by(self, seconds: int) -> None:
        for _ in range(seconds):
            self.clock.now += 1.0
            self.gpus.look()
            self.machine.poll()


@pytest.fixture
def log(tmp_path: Path) -> Path:
    file = tmp_path / "train.log"
    file.write_text(ROW * 3)
    return file


def test_a_run_whose_process_writes_its_log_is_seen_with_its_cards(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    script = write(tmp_path / "code", "train.py", PLAIN.replace("'loss': 1.0", "'loss': 1.0, 'epoch': 0.1"))
    with running([script], log=log, env={"CUDA_VISIBLE_DEVICES": "1"}) as job:
        beside = Beside(log, card(0, 70.0), card(1, 20.0, GpuProcess(job.pid, 18 * GIB)))
        beside.pass_by(30)
        run = beside.run.engine.run
        assert run.host is not None
        assert run.host.alive is True
        assert run.host.processes[0].pid == job.pid
        assert run.gpu is not None
        assert [(one.index, one.own_memory) for one in run.gpu.cards] == [(1, 18 * GIB)]
        assert run.gpu.cards[0].processes[0].own is True
        job.end()
        beside.pass_by(30)
        assert run.host.alive is False


def test_which_cards_a_run_without_a_known_process_uses_is_not_guessed(log: Path) -> None:
    beside = Beside(log, card(0, 70.0, GpuProcess(1, 60 * GIB)), card(1, 10.0))
    beside.pass_by(15)
    assert beside.run.engine.run.gpu is None
    assert beside.run.engine.run.host is not None
    assert any("which of 2 GPUs the run uses cannot be told" in note for note in beside.watch.notes)


def test_the_only_card_is_the_runs(log: Path) -> None:
    beside = Beside(log, card(0, 70.0))
    beside.pass_by(15)
    gpu = beside.run.engine.run.gpu
    assert gpu is not None
    assert gpu.cards[0].memory_used == 70 * GIB


def test_what_was_seen_stays_when_the_files_are_read_again(log: Path) -> None:
    beside = Beside(log.parent, card(0, 79.0), rules=Settings(select=("mem/headroom", "loss/noisy")))
    heard: list[tuple[str, str]] = []
    beside.watch.listeners.append(lambda _, change, finding: heard.append((change, finding.rule)))
    beside.pass_by(150)
    before = beside.run.engine
    assert heard == [("opened", "mem/headroom")]
    (log.parent / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16}))
    beside.watch.poll()
    assert beside.run.engine is not before, "the facts did not make it read again"
    assert [one.rule for one in beside.run.engine.findings] == ["mem/headroom"]
    assert beside.run.engine.run.gpu is not None
    beside.pass_by(20)
    beside.watch.finish()
    assert heard == [("opened", "mem/headroom")]
    beside.seen.cards = [card(0, 40.0)]
    beside.pass_by(60)
    assert heard == [("opened", "mem/headroom"), ("resolved", "mem/headroom")]


def test_a_run_that_the_callback_watches_is_left_alone(tmp_path: Path) -> None:
    file = tmp_path / "lorawatch.jsonl"
    file.write_text('{"type":"metrics","step":1,"values":{"loss":1.0},"time":1.0}\n')
    beside = Beside(tmp_path, card(0, 70.0))
    beside.pass_by(15)
    assert beside.run.rows == 1
    assert beside.run.engine.run.gpu is None
    assert beside.run.engine.run.host is None


def test_a_log_that_was_written_long_ago_is_not_looked_at(log: Path) -> None:
    beside = Beside(log, card(0, 70.0))
    beside.clock.now += FRESH + 60
    beside.pass_by(15)
    assert beside.run.engine.run.host is None


def test_steps_are_timed_by_when_rows_arrive(log: Path) -> None:
    beside = Beside(log)
    for heap in range(6):
        with log.open("a") as out:
            for row in range(4):
                out.write(ROW.replace("0.1}", f"{0.1 + heap / 10 + row / 40:.4f}}}").replace("1.0", f"1.{heap}{row}"))
        beside.watch.poll()
        beside.pass_by(12)
    run = beside.run.engine.run
    assert run.timing is not None
    assert run.timing.steps == []
    assert run.timing.span == 4
    assert run.timing.seconds == pytest.approx(12.0, abs=1.0)
    assert run.typical_step_seconds is None or run.typical_step_seconds == pytest.approx(3.0, rel=0.1)


def test_steps_are_timed_by_the_bar_where_rows_are_rare(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_text("".join(f"\r {n}%|█   | {n}/100 [00:0{n}<01:00,  1.0s/it]" for n in (1, 2)) + f"\r{ROW}")
    beside = Beside(log)
    beside.pass_by(1)
    assert beside.run.engine.run.max_steps == 100
    for n in range(10, 70, 10):
        with log.open("a") as out:
            out.write(f"\r {n}%|█   | {n}/100 [00:{n}<01:00,  1.0s/it]")
        beside.watch.poll()
        beside.pass_by(20)
    run = beside.run.engine.run
    assert run.timing is not None
    assert (run.timing.step, run.timing.span, run.timing.seconds) == (60, 10, 20.0)
    assert run.typical_step_seconds == pytest.approx(2.0, rel=0.1)


def test_readings_of_a_run_that_has_ended_are_not_judged() -> None:
    engine = Engine(Run("ended"), [rule() for rule in rule_classes() if rule.id == "mem/headroom"])
    engine.feed(LifecycleEvent("ended", step=5))
    for second in range(0, 600, 10):
        engine.feed(GpuReading(float(second), [card(0, 79.9)], 10.0))
        engine.feed(HostReading(float(second)))
        engine.feed(StepTiming(step=second, span=10))
    assert engine.findings == []
