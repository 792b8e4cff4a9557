"""What the faults of the machine do: saves, evaluations, a hang, a full disk, a shared processor, a leak."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from lorawatch.findings import Severity
from lorawatch.trainer.faults import machine
from lorawatch.trainer.faults.input import CostlyRows
from lorawatch.trainer.faults.machine import (
    GIB,
    DiskFilling,
    Hang,
    HostMemoryLeak,
    Slowdown,
    SlowEvaluation,
    SlowSaves,
    WaitsOnce,
    before_step,
    small_disk,
)
from lorawatch.trainer.recipe import Recipe, RecipeError, recipe_of


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of({"max_steps": 200, "output_dir": str(tmp_path)}, "test")


class Trainer:
    """Stands in for one of the Trainer's loops: so many steps, at each of which ``look`` is called."""

    def __init__(self, steps: int, look: Callable[[int], None] = lambda _: None) -> None:
        self.steps, self.look = steps, look
        self.state = SimpleNamespace(global_step=0)

    def training_step(self) -> None:
        """One step."""
        self.look(self.state.global_step)

    def train(self) -> str:
        """All steps."""
        for _ in range(self.steps):
            self.training_step()
            self.state.global_step += 1
        return "trained"


@pytest.mark.parametrize(
    ("kind", "name", "rule"), [(SlowSaves, "save_steps", "perf/overhead"), (SlowEvaluation, "eval_steps", "eval/cost")]
)
def test_too_many_stops_are_a_mistake_in_the_recipe_and_worth_a_word(
    kind: type[Any], name: str, rule: str, recipe: Recipe
) -> None:
    plain, subtle = kind().misconfigure(recipe), kind("subtle").misconfigure(recipe)
    assert 1 <= getattr(plain, name) < getattr(subtle, name) <= 10
    (expected,) = kind().expected(plain)
    assert (expected.rules, expected.least) == ((rule,), Severity.INFO)
    assert not kind.remedy


def test_what_waits_once_waits_at_its_call_only(monkeypatch: pytest.MonkeyPatch) -> None:
    waited: list[float] = []
    monkeypatch.setattr(threading.Event, "wait", lambda _, seconds: waited.append(seconds))
    hangs = WaitsOnce(3, 330.0)
    for expected in (0, 0, 1, 1):
        hangs()
        assert len(waited) == expected
    assert waited == [330.0]


def test_the_plain_hang_is_in_a_step_and_the_subtle_one_in_a_worker(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[int] = []
    trainer = Trainer(60)
    monkeypatch.setattr(threading.Event, "wait", lambda *_: waited.append(trainer.state.global_step))
    plain = Hang()
    assert plain.dataset("rows", recipe) == "rows"
    plain.trainer(trainer, recipe)
    trainer.train()
    assert waited == [plain.at - 1]
    (expected,) = plain.expected(recipe)
    assert expected.from_step <= plain.at - 1
    assert plain.seconds > 300 + 10, "the rule allows 300 s, and readings come every ten"

    subtle = Hang("subtle")
    assert subtle.misconfigure(recipe).dataloader_num_workers == 1
    rows = subtle.dataset([{"a": 1}], recipe)
    assert isinstance(rows, CostlyRows)
    for _ in range(subtle.at * recipe.per_device_train_batch_size - 1):
        assert rows[0] == {"a": 1}
    assert len(waited) == 1
    assert rows[0] == {"a": 1}
    assert len(waited) == 2
    untouched = Trainer(1)
    step = untouched.training_step
    subtle.trainer(untouched, recipe)
    assert untouched.training_step == step


def test_a_small_disk_is_full_when_it_is_full_and_leaves_its_files_behind(tmp_path: Path) -> None:
    (tmp_path / "before").write_text("kept", encoding="utf-8")
    needs_a_disk(tmp_path)
    with pytest.raises(OSError, match="No space left"), small_disk(tmp_path, 1 << 20):  # noqa: PT012
        assert os.path.ismount(tmp_path)
        (tmp_path / "checkpoint-1").mkdir()
        (tmp_path / "log").write_text("a row", encoding="utf-8")
        (tmp_path / "checkpoint-1" / "weights").write_bytes(bytes(2 << 20))
    assert not os.path.ismount(tmp_path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["before", "log"]
    assert (tmp_path / "log").read_text(encoding="utf-8") == "a row"


def needs_a_disk(folder: Path) -> None:
    """Skip where no tmpfs can be mounted."""
    try:
        with small_disk(folder, 1 << 20):
            pass
    except RecipeError as error:
        pytest.skip(str(error))


def test_where_nothing_can_be_mounted_it_is_told_before_training(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*_: Any, **__: Any) -> None:
        raise subprocess.CalledProcessError(32, "mount", stderr="mount: permission denied.\n")

    monkeypatch.setattr(subprocess, "run", refused)
    with pytest.raises(RecipeError, match="permission denied") as told:
        DiskFilling().prepare(recipe)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize("amount", ["plain", "subtle"])
def test_there_is_room_for_fewer_checkpoints_than_are_saved(amount: Any, recipe: Recipe) -> None:
    fault = DiskFilling(amount)
    wrong = fault.misconfigure(recipe)
    assert wrong.save_total_limit is None
    saves = wrong.max_steps / wrong.save_steps
    assert saves - 1 < fault.room < saves if fault.subtle else fault.room < saves / 2


def test_a_run_really_ends_at_the_save_that_finds_no_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from lorawatch.trainer.fine_tune import fine_tune, misconfigured

    needs_a_disk(tmp_path)
    for name, value in {"every": 2, "saves": 6, "interval": 0.0}.items():
        monkeypatch.setattr(DiskFilling, name, value)
    recipe = recipe_of(
        {"eval_rows": 0, "train_rows": 64, "per_device_train_batch_size": 2, "sample_steps": 0, "logging_steps": 1,
         "inject": "disk-filling", "output_dir": str(tmp_path)}, "test",
    )  # fmt: skip
    with pytest.raises(Exception, match=r"No space left|unexpected pos|iostream"):  # who saves says it in its own way
        fine_tune(misconfigured(recipe), quiet=True)
    rows = (tmp_path / "lorawatch.jsonl").read_text(encoding="utf-8").splitlines()
    assert any('"step":10,' in line for line in rows), "four saves found room"
    assert not any('"step":11,' in line for line in rows)
    assert not os.path.ismount(tmp_path)


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="processes cannot be bound to a processor here")
@pytest.mark.parametrize(("amount", "others"), [("plain", 2), ("subtle", 1)])
def test_others_come_at_the_step_and_leave_when_training_is_over(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch, amount: Any, others: int
) -> None:
    monkeypatch.setattr(Slowdown, "at", 3)
    seen: list[int] = []
    before = os.sched_getaffinity(0)

    def look(_: int) -> None:
        seen.append(len(psutil.Process().children()))
        assert len(os.sched_getaffinity(0)) == 1

    already = len(psutil.Process().children())
    trainer = Trainer(5, look)
    Slowdown(amount).trainer(trainer, recipe)
    assert trainer.train() == "trained"
    assert [count - already for count in seen] == [0, 0, 0, others, others]
    assert os.sched_getaffinity(0) == before
    assert len(psutil.Process().children()) == already


def test_the_slowdown_begins_when_there_is_something_to_compare_with(recipe: Recipe) -> None:
    fault = Slowdown()
    (expected,) = fault.expected(recipe)
    assert expected.from_step == fault.at >= 120, "20 steps are skipped, 100 are the base"
    assert fault.misconfigure(recipe).max_steps >= fault.at + 40


def test_what_comes_before_a_step_comes_before_each() -> None:
    told: list[str] = []
    trainer = Trainer(2, lambda step: told.append(f"step {step}"))
    before_step(trainer, lambda: told.append("before"))
    trainer.train()
    assert told == ["before", "step 0", "before", "step 1"]


def test_a_leak_is_expected_to_be_seen_only_where_memory_is_small(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(machine, "memory", lambda: (64 * GIB, 50 * GIB))
    assert HostMemoryLeak().expected(recipe) == ()
    assert HostMemoryLeak().kept_bytes() == 2 * GIB, "it takes down no machine"
    monkeypatch.setattr(machine, "memory", lambda: (2 * GIB, GIB))
    for amount, least, left in (("plain", Severity.CRITICAL, 0.05), ("subtle", Severity.WARNING, 0.10)):
        fault = HostMemoryLeak(amount)
        (expected,) = fault.expected(recipe)
        assert (expected.rules, expected.least) == (("host/ram",), least)
        assert 0 < GIB - fault.kept_bytes() < left * 2 * GIB


def test_a_leak_keeps_memory_at_each_step_until_it_has_grown(recipe: Recipe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostMemoryLeak, "grows", 4)
    monkeypatch.setattr(HostMemoryLeak, "step_seconds", 0.0)
    monkeypatch.setattr(machine, "memory", lambda: (64 << 20, 34 << 20))
    fault = HostMemoryLeak()
    kept: list[int] = []
    trainer = Trainer(6, lambda _: kept.append(sum(one.nbytes for one in fault._kept)))
    fault.trainer(trainer, recipe)
    whole = fault.kept_bytes()
    trainer.train()
    assert kept == sorted(kept)
    assert kept[0] == pytest.approx(whole / 4, abs=8)
    assert kept[-1] == kept[3] == pytest.approx(whole, abs=32)


def test_memory_is_what_the_machine_or_a_limit_leaves() -> None:
    total, available = machine.memory()
    assert 0 < available <= total <= psutil.virtual_memory().total
