"""The thread that looks at the machine while a real Trainer trains beside it."""

# ruff: noqa: E402  (what is imported below needs what the tests are skipped for)

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

import pytest

for needed in ("torch", "transformers", "peft", "datasets"):
    pytest.importorskip(needed, reason=f"real training runs need {needed}: pip install 'lorawatch[train]'")

from transformers import TrainerCallback

from lorawatch import LoraWatchCallback
from lorawatch.engine import Engine
from lorawatch.integrations import judgement, machine_thread
from lorawatch.integrations.judgement import Judgement
from lorawatch.integrations.machine_thread import MachineThread
from lorawatch.machine.gpus import GpuSampler
from lorawatch.machine.host import Progress
from lorawatch.records import Card, GpuProcess, GpuReading, HostReading, Reading, Record, StepTiming
from lorawatch.registry import RuleSet
from lorawatch.run import Run
from lorawatch.settings import Settings
from lorawatch.sources.lorawatch_jsonl import LorawatchSource

from . import lab
from .test_transformers import FROM_STEP

GIB = 1 << 30


class Cards:
    """A driver that says what a test wants, or fails as it wants."""

    vendor: ClassVar[str] = "nvidia"

    def __init__(self, *, fail: Exception | None = None, hang: threading.Event | None = None) -> None:
        self.fail, self.hang = fail, hang
        self.asked = threading.Event()
        self.problems: Sequence[str] = ()

    def look(self) -> list[Card]:
        self.asked.set()
        if self.hang is not None:
            self.hang.wait(30)
        if self.fail is not None:
            raise self.fail
        import os

        own = GpuProcess(os.getpid(), 60 * GIB)
        return [Card(0, "GPU-0", "Test", memory_total=80 * GIB, memory_used=79 * GIB, utilization=0.9, processes=[own])]

    def close(self) -> None:
        pass


class Turn(TrainerCallback):
    """Lets the thread of the machine take turns at chosen steps, by a clock that the test moves on."""

    def __init__(self, seconds: float) -> None:
        self.seconds, self.now, self.watch = seconds, 1e9, LoraWatchCallback()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.now += self.seconds
        thread = self.watch._machine
        if thread is not None:
            thread._gpus.look()
            thread.tick()


def train(folder: Path, monkeypatch: pytest.MonkeyPatch, cards: Cards, seconds: float = 15.0, **options: Any) -> Turn:
    """Train with a sampler that looks at ``cards``, and only when the turn says so."""
    turn = Turn(seconds)
    sampler = GpuSampler([cards])
    monkeypatch.setattr(sampler, "start", lambda: None)
    monkeypatch.setattr(machine_thread, "GpuSampler", lambda: sampler)
    monkeypatch.setattr(machine_thread, "INTERVAL", 3600.0)
    watch = turn.watch = LoraWatchCallback(**options)
    begin = MachineThread.__init__

    def made(self: MachineThread, *args: Any, **kwargs: Any) -> None:
        begin(self, *args, **kwargs, wall=lambda: turn.now)

    monkeypatch.setattr(MachineThread, "__init__", made)
    lab.train(folder, watch, turn, max_steps=12)
    return turn


def records(folder: Path) -> list[Record]:
    source = LorawatchSource(folder / "lorawatch.jsonl")
    return [*source.poll(), *source.finish()]


def told(engine: Engine | None) -> list[tuple[str, str, int, int | None, float | None]]:
    assert engine is not None
    return [(one.rule, one.state, one.opened_step, one.resolved_step, one.opened_time) for one in engine.findings]


def test_what_the_thread_saw_is_written_and_replays_to_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    turn = train(tmp_path, monkeypatch, Cards())
    kinds = [type(record) for record in records(tmp_path)]
    assert kinds.count(GpuReading) >= 8
    assert kinds.count(HostReading) >= 8
    engine = turn.watch.engine
    assert engine is not None
    assert "mem/headroom" in [one.rule for one in engine.findings]
    again = Engine(Run("replayed"), RuleSet(Settings()).make())
    for record in records(tmp_path):
        again.feed(record)
    assert told(engine) == told(again)
    assert "GPU memory headroom" in capfd.readouterr().err


def test_a_driver_that_raises_is_said_once_and_training_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    turn = train(tmp_path, monkeypatch, Cards(fail=RuntimeError("no such field")))
    kinds = [type(record) for record in records(tmp_path)]
    assert GpuReading not in kinds
    assert kinds.count(HostReading) >= 8
    assert turn.watch.engine is not None
    assert turn.watch.engine.run.step == 12
    assert capfd.readouterr().err.count("no such field") == 1


def test_a_driver_that_hangs_holds_nothing_up(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    released = threading.Event()
    cards = Cards(hang=released)
    now = [0.0]
    sampler = GpuSampler([cards], clock=lambda: now[0])
    taken: list[Reading] = []
    said: list[str] = []
    failed: list[Exception] = []
    wall = iter(range(0, 10_000, 15))
    thread = MachineThread(
        tmp_path, take=taken.extend, timings=lambda: (), judge=lambda: None, progress=Progress,
        left=lambda: None, say=said.append, fail=failed.append, gpus=sampler, wall=lambda: float(next(wall)),
    )  # fmt: skip
    sampler.start()  # this one does hang
    assert cards.asked.wait(20)
    for _ in range(4):
        now[0] += 15.0
        assert thread.tick()
    assert [type(one) for one in taken] == [HostReading] * 4
    assert [line for line in said if "has not answered" in line] == [
        "NVML has not answered for 15 s; GPU readings pause"
    ]
    assert failed == []
    released.set()
    thread.stop()


def test_training_that_was_left_is_looked_at_no_longer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    watch = LoraWatchCallback(quiet=True)
    with pytest.raises(KeyboardInterrupt):
        lab.train(tmp_path, watch, Interrupted(), max_steps=8)
    thread = watch._machine
    assert thread is not None
    before = len(records(tmp_path))
    assert [thread.tick() for _ in range(3)] == [True, True, False]  # it must seem so three times
    assert len(records(tmp_path)) == before
    thread._thread.join(10)  # its next look ends it
    assert not thread._thread.is_alive()
    assert watch._machine is None


def test_a_training_that_failed_is_not_kept_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Interrupted(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 3:
                raise KeyboardInterrupt

    monkeypatch.setattr(machine_thread, "INTERVAL", 0.01)
    watch = LoraWatchCallback(quiet=True)
    model = lab.adapted()
    alive = weakref.ref(model)
    with pytest.raises(KeyboardInterrupt):
        lab.train(tmp_path, watch, Interrupted(), model=model, max_steps=8)
    thread = watch._machine
    if thread is not None:
        thread._thread.join(10)
    del model, thread
    gc.collect()
    assert alive() is None


def test_what_fails_in_the_thread_ends_the_watch_and_not_the_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    broken = threading.Event()

    def tick(self: MachineThread) -> bool:
        broken.set()
        raise ZeroDivisionError("by zero")

    class Waits(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 2:
                assert broken.wait(20)

    monkeypatch.setattr(MachineThread, "tick", tick)
    monkeypatch.setattr(machine_thread, "INTERVAL", 0.001)
    watch = LoraWatchCallback()
    trainer = lab.train(tmp_path, watch, Waits(), max_steps=6)
    assert trainer.state.global_step == 6
    assert capfd.readouterr().err.count("steps aside, training goes on: ZeroDivisionError: by zero") == 1


def test_the_machine_is_left_alone_when_the_settings_say_so(tmp_path: Path) -> None:
    watch = LoraWatchCallback(Settings(machine=False), quiet=True)
    lab.train(tmp_path, watch, max_steps=3)
    assert not any(isinstance(record, StepTiming | GpuReading | HostReading) for record in records(tmp_path))
    assert not any(thread.name.startswith("lorawatch") for thread in threading.enumerate())


def test_a_stack_that_cannot_be_walked_once_does_not_end_the_watch(tmp_path: Path) -> None:
    progress = iter([Progress(), None, None, Progress(), None, Progress()])
    taken: list[Reading] = []
    thread = MachineThread(
        tmp_path, take=taken.extend, timings=lambda: (), judge=lambda: None, progress=lambda: next(progress),
        left=lambda: None, say=lambda _: None, fail=lambda _: None, gpus=GpuSampler([]),
    )  # fmt: skip
    assert [thread.tick() for _ in range(6)] == [True] * 6


def test_no_step_is_lost_when_training_ends_while_a_look_is_under_way(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Meanwhile(TrainerCallback):
        """Begins a look that is still under way when training has ended."""

        def __init__(self) -> None:
            self.watch = LoraWatchCallback(Settings(select=("loss/start",)), quiet=True)
            self.looking = threading.Event()
            self.ended = threading.Event()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            thread = self.watch._machine
            if state.global_step == 5 and thread is not None:
                look = thread._prepare().tick

                def slow(*given: Any) -> Any:
                    self.looking.set()
                    self.ended.wait(30)
                    return look(*given)

                monkeypatch.setattr(thread._prepare(), "tick", slow)
                self.turn = threading.Thread(target=thread.tick)
                self.turn.start()
                assert self.looking.wait(20)

    meanwhile = Meanwhile()
    monkeypatch.setattr(machine_thread, "INTERVAL", 3600.0)
    lab.train(tmp_path, meanwhile.watch, meanwhile, max_steps=12)
    meanwhile.ended.set()
    meanwhile.turn.join(20)
    timed = [record for record in records(tmp_path) if isinstance(record, StepTiming)]
    assert sum(timing.span for timing in timed) == 12


def test_a_finding_is_said_although_training_begins_anew_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    class Breaks(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 6:
                raise RuntimeError("broken")

    monkeypatch.setattr(machine_thread, "INTERVAL", 3600.0)  # the thread does not come
    watch = LoraWatchCallback(FROM_STEP)
    with pytest.raises(RuntimeError, match="broken"):
        lab.train(tmp_path, watch, Breaks(), max_steps=8)
    lab.train(tmp_path, watch, max_steps=2)
    assert capfd.readouterr().err.count("CRITICAL Late steps") == 1
    timed = [record for record in records(tmp_path) if isinstance(record, StepTiming)]
    assert sum(timing.span for timing in timed) == 5 + 2  # the step that broke has no end


def test_rows_are_judged_although_a_look_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(judgement, "LONGEST_WAIT", 0.0)
    monkeypatch.setattr(machine_thread, "INTERVAL", 3600.0)  # as if the thread hung
    seen: list[int] = []

    class Looks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            assert watch.engine is not None
            seen.append(watch.engine.run.rows)

    watch = LoraWatchCallback(FROM_STEP, quiet=True)
    lab.train(tmp_path, watch, Looks(), max_steps=8)
    assert seen[-1] >= 6


def test_a_process_that_was_forked_off_says_nothing_at_its_end(tmp_path: Path) -> None:
    said: list[str] = []
    watch = LoraWatchCallback(FROM_STEP, quiet=True)
    watch._judge = lambda: said.append("judged")  # type: ignore[method-assign]
    watch._at_exit()
    assert said == ["judged"]
    watch._process += 1
    watch._at_exit()
    assert said == ["judged"]


def test_with_actions_the_loop_alone_judges(tmp_path: Path) -> None:
    """Or the thread could take the finding away from the very step at which every rank stops."""

    class Steals(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            watch._judge_beside()

    watch = LoraWatchCallback(FROM_STEP, quiet=True, actions={"critical": "stop"})
    put = Judgement.put

    def put_and_lose(self: Judgement, *given: Record) -> None:
        put(self, *given)
        watch._judge_beside()  # the thread comes between the row and the loop

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Judgement, "put", put_and_lose)
        trainer = lab.train(tmp_path, watch, Steals(), max_steps=8)
    assert trainer.state.global_step == 5


def test_a_finding_of_the_thread_can_stop_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only = Settings(select=("mem/headroom",))
    turn = train(tmp_path, monkeypatch, Cards(), settings=only, actions={"warning": "stop"}, quiet=True)
    assert turn.watch.engine is not None
    assert 4 <= turn.watch.engine.run.step < 12
