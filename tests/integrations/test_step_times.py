"""Where the time of the steps goes, as the callback takes it in real Trainer runs, beside a truth taken elsewhere."""

# ruff: noqa: E402  (what is imported below needs what the tests are skipped for)

from __future__ import annotations

import time
from itertools import groupby
from pathlib import Path
from typing import Any

import pytest

for needed in ("torch", "transformers", "peft", "datasets"):
    pytest.importorskip(needed, reason=f"real training runs need {needed}: pip install 'lorawatch[train]'")

import torch
from transformers import Trainer, TrainerCallback

from lorawatch import LoraWatchCallback
from lorawatch.integrations.batch_sizes import BatchSizes, sizes
from lorawatch.records import LifecycleEvent, Step, StepTiming
from lorawatch.settings import Settings
from lorawatch.sources.lorawatch_jsonl import LorawatchSource

from . import lab

TIMING_ONLY = Settings(select=("perf/data-wait",))


class Slow(torch.utils.data.Dataset[dict[str, list[int]]]):
    """Rows that take their time, as an image that is decoded or a file that is fetched."""

    def __init__(self, rows: int, seconds: float) -> None:
        self.rows, self.seconds = lab.tokens(rows), seconds

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, list[int]]:
        if self.seconds:
            time.sleep(self.seconds)  # the stall itself, not a wait of the test
        row: dict[str, list[int]] = self.rows[index]
        return row


class Timed(Trainer):
    """A Trainer that takes the true time of each fetch, and of the work on it, where they happen."""

    fetches: list[float]
    work: list[float]

    def get_batch_samples(self, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        fetched = super().get_batch_samples(*args, **kwargs)
        self.fetches.append(time.perf_counter() - begin)
        self.work.append(0.0)
        return fetched

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        begin = time.perf_counter()
        loss = super().training_step(*args, **kwargs)
        self.work[-1] += time.perf_counter() - begin
        return loss


class Dawdler(TrainerCallback):
    """Another callback that takes its time, after the step and before the next one."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(self.seconds)

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        time.sleep(self.seconds)


def run(folder: Path, data: Any, *callbacks: TrainerCallback, settings: Settings = TIMING_ONLY, **changes: Any) -> Any:
    """Train; returns the trainer and its callback."""
    watch = LoraWatchCallback(settings, quiet=True)
    trainer = Timed(
        model=lab.adapted(), args=lab.arguments(folder, **changes), train_dataset=data, callbacks=[watch, *callbacks]
    )
    trainer.fetches, trainer.work = [], []
    trainer.train()
    return trainer, watch


def timings(folder: Path) -> list[StepTiming]:
    source = LorawatchSource(folder / "lorawatch.jsonl")
    return [record for record in [*source.poll(), *source.finish()] if isinstance(record, StepTiming)]


def steps(folder: Path) -> list[Step]:
    return [step for timing in timings(folder) for step in timing.steps]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_share_of_the_wait_is_the_true_one(tmp_path: Path, accumulation: int, workers: int) -> None:
    trainer, _ = run(
        tmp_path, Slow(160, 0.006 + 0.022 * workers), max_steps=12, gradient_accumulation_steps=accumulation,
        per_device_train_batch_size=2, dataloader_num_workers=workers,
    )  # fmt: skip
    taken = steps(tmp_path)
    assert len(taken) == 12
    assert taken[0].data_wait is None
    # The truth, of the same steps: the time in the fetch, over that in fetch and passes; the epoch's first left out.
    fetched, worked = sum(trainer.fetches[1:12]), sum(trainer.work[1:12])
    waited = sum(step.data_wait or 0.0 for step in taken[1:])
    passed = sum(step.forward_backward for step in taken[1:])
    assert fetched > 0.05, "the set-up does not stall"
    assert waited / (waited + passed) == pytest.approx(fetched / (fetched + worked), rel=0.15)
    assert waited == pytest.approx(fetched, rel=0.15)


def test_a_stalled_run_is_told_and_its_control_is_not(tmp_path: Path) -> None:
    # Long enough for two looks at the machine, which the rule waits for before it names a cause.
    _, stalled = run(tmp_path / "stalled", Slow(480, 0.025), max_steps=100, per_device_train_batch_size=2)
    _, control = run(tmp_path / "control", Slow(480, 0.0), max_steps=100, per_device_train_batch_size=2)
    assert stalled.engine is not None
    assert control.engine is not None
    assert [finding.rule for finding in stalled.engine.findings] == ["perf/data-wait"]
    assert control.engine.findings == []
    assert control.engine.abstained() == []


def test_what_other_callbacks_do_is_no_wait(tmp_path: Path) -> None:
    run(tmp_path, lab.tokens(64), Dawdler(0.02), max_steps=8)
    taken = steps(tmp_path)
    assert max(step.data_wait or 0.0 for step in taken) < 0.01
    assert min(step.after for step in taken) > 0.019


def test_the_time_of_evaluating_and_saving_stands_apart(tmp_path: Path) -> None:
    watch = LoraWatchCallback(TIMING_ONLY, quiet=True)
    trainer = lab.train(
        tmp_path, watch, data=lab.tokens(64), evaluation=lab.tokens(64, draw=1), max_steps=12,
        eval_strategy="steps", eval_steps=4, save_strategy="steps", save_steps=6, logging_steps=3,
    )  # fmt: skip
    told = timings(tmp_path)
    taken = [step for timing in told for step in timing.steps]
    assert told[-1].step == 12
    assert sum(timing.saves for timing in told) == 2
    evaluation = sum(row["eval_runtime"] for row in trainer.state.log_history if "eval_runtime" in row)
    apart = {name: sum(getattr(timing, name) for timing in told) for name in ("evaluation", "saving", "logging")}
    assert apart["evaluation"] == pytest.approx(evaluation, rel=0.5, abs=0.01)
    assert apart["saving"] > 0.0
    assert sum(step.after for step in taken) >= sum(apart.values())
    assert watch.engine is not None
    assert set(watch.engine.run.phase_seconds) >= {"data_wait", "evaluation", "saving"}
    known = sum(step.work + step.after + (step.data_wait or 0.0) for step in taken)
    assert known <= sum(timing.seconds or 0.0 for timing in told)


def test_an_evaluation_before_training_is_no_steps_time(tmp_path: Path) -> None:
    watch = LoraWatchCallback(TIMING_ONLY, quiet=True)
    lab.train(
        tmp_path, watch, evaluation=lab.tokens(256, draw=1), max_steps=6, eval_strategy="steps", eval_steps=100,
        eval_on_start=True,
    )  # fmt: skip
    for timing in timings(tmp_path):  # the last step is evaluated too
        assert timing.logging + timing.evaluation <= sum(step.after for step in timing.steps) + 1e-4


def test_what_a_users_loss_logs_is_part_of_its_step(tmp_path: Path) -> None:
    class Talks(Timed):
        def compute_loss(self, *args: Any, **kwargs: Any) -> Any:
            time.sleep(0.01)
            self.log({"temperature": 1.0})
            return super().compute_loss(*args, **kwargs)

    watch = LoraWatchCallback(TIMING_ONLY, quiet=True)
    trainer = Talks(
        model=lab.adapted(), args=lab.arguments(tmp_path, max_steps=6), train_dataset=lab.tokens(64), callbacks=[watch]
    )
    trainer.fetches, trainer.work = [], []
    trainer.train()
    assert sum(timing.logging for timing in timings(tmp_path)) < 0.05
    assert min(step.forward_backward for step in steps(tmp_path)) > 0.01


def test_each_record_has_the_evaluation_of_its_own_steps(tmp_path: Path) -> None:
    """Although it is taken on while a save that follows the evaluation is under way."""

    class TakesOn(TrainerCallback):
        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            recorder = watch._recorder
            if recorder is not None:
                watch._take(*recorder.timings())

    watch = LoraWatchCallback(TIMING_ONLY, quiet=True)
    lab.train(
        tmp_path, watch, TakesOn(), evaluation=lab.tokens(128, draw=1), max_steps=8, eval_strategy="steps",
        eval_steps=4, save_strategy="steps", save_steps=4,
    )  # fmt: skip
    for timing in timings(tmp_path):
        apart = timing.evaluation + timing.saving + timing.logging
        assert apart <= sum(step.after for step in timing.steps) + 1e-4


def test_the_first_wait_of_each_epoch_is_left_out(tmp_path: Path) -> None:
    run(tmp_path, lab.tokens(12), max_steps=9)  # three steps an epoch
    assert [step.data_wait is None for step in steps(tmp_path)] == [True, False, False] * 3


def test_steps_are_handed_on_some_at_a_time_and_none_is_lost(tmp_path: Path) -> None:
    run(tmp_path, lab.tokens(64), max_steps=41)
    told = timings(tmp_path)
    assert sum(timing.span for timing in told) == 41
    assert all(timing.span == len(timing.steps) for timing in told)
    assert told[-1].step == 41
    assert len(told) < 10


def test_the_trainer_has_its_own_callbacks_back_afterwards(tmp_path: Path) -> None:
    trainer, watch = run(tmp_path, lab.tokens(16), max_steps=3)
    names = [type(one).__name__ for one in trainer.callback_handler.callbacks]
    assert watch in trainer.callback_handler.callbacks
    assert not {"FirstRecorder", "LastRecorder"} & set(names)
    assert "__iter__" not in vars(trainer.callback_handler.train_dataloader.base_dataloader)


def test_training_twice_times_both(tmp_path: Path) -> None:
    trainer, _ = run(tmp_path, lab.tokens(16), max_steps=3)
    trainer.train()
    source = LorawatchSource(tmp_path / "lorawatch.jsonl")
    kinds = [
        record.event if isinstance(record, LifecycleEvent) else "steps"
        for record in [*source.poll(), *source.finish()]
        if isinstance(record, LifecycleEvent | StepTiming)
    ]
    assert [kind for kind, _ in groupby(kinds)] == ["started", "steps", "ended", "started", "steps", "ended"]


def test_padding_is_seen_with_and_without_accumulation(tmp_path: Path) -> None:
    rows = [[5] * length for length in (4, 8, 12, 24) * 8]

    def pad(batch: list[dict[str, Any]]) -> dict[str, torch.Tensor]:
        longest = max(len(row["input_ids"]) for row in batch)
        ids = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in batch]
        mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in batch]
        return {"input_ids": torch.tensor(ids), "attention_mask": torch.tensor(mask), "labels": torch.tensor(ids)}

    class Rows(torch.utils.data.Dataset[dict[str, Any]]):
        def __len__(self) -> int:
            return len(rows)

        def __getitem__(self, index: int) -> dict[str, Any]:
            return {"input_ids": rows[index]}

    for accumulation in (1, 2):
        folder = tmp_path / str(accumulation)
        watch = LoraWatchCallback(TIMING_ONLY, quiet=True)
        trainer = lab.InOrder(
            model=lab.adapted(),
            args=lab.arguments(
                folder, max_steps=8, per_device_train_batch_size=2, gradient_accumulation_steps=accumulation,
                remove_unused_columns=False,
            ),
            train_dataset=Rows(), data_collator=pad, callbacks=[watch],
        )  # fmt: skip
        trainer.train()
        taken = steps(folder)
        if accumulation == 1:  # rows of 4 and 8, then of 12 and 24
            assert [step.padded_tokens for step in taken] == [16, 48] * 4
            counted = [(step.tokens, step.padded_tokens) for step in taken if step.tokens is not None]
            assert counted in ([(12, 16)], [(36, 48)])
        else:
            assert [step.padded_tokens for step in taken] == [64] * 8
            assert [step.largest_micro_batch for step in taken] == [48] * 8
            assert [step.tokens for step in taken if step.tokens is not None] == [48]


def test_batches_that_are_no_tokens_have_no_size() -> None:
    assert sizes([torch.zeros(2, 3)]) is None
    assert sizes({"pixel_values": torch.zeros(2, 3, 4, 4)}) is None
    assert sizes({"input_ids": torch.zeros(6)}) is None
    assert sizes({"input_ids": torch.zeros(2, 3), "attention_mask": torch.zeros(2, 1, 3, 3)}) == (6, None)
    assert sizes({"input_ids": torch.zeros(2, 3)}) == (6, None)
    assert sizes({"input_ids": torch.zeros(1, 6), "position_ids": torch.zeros(1, 6)}) == (6, 6)
    assert not BatchSizes().attach(None)
    assert not BatchSizes().attach(torch.utils.data.DataLoader([1, 2]))  # type: ignore[arg-type]


def test_a_run_that_fails_within_a_step_leaves_no_trace_in_the_loop(tmp_path: Path) -> None:
    class Breaks(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 4:
                raise RuntimeError("broken")

    watch = LoraWatchCallback(TIMING_ONLY, quiet=True)
    with pytest.raises(RuntimeError, match="broken"):
        lab.train(tmp_path, watch, Breaks(), max_steps=8)
    assert watch._recorder is not None
    assert not watch._recorder.in_training()
