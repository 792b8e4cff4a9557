"""What the faults of the data pipeline do: rows, collators and workers that keep training waiting."""

from __future__ import annotations

import json
import pickle
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from lorawatch.findings import Severity
from lorawatch.trainer.faults import input as faults
from lorawatch.trainer.faults.input import (
    BLOCK,
    STEP,
    CostlyCollator,
    CostlyRows,
    DirectReads,
    SlowCollator,
    SlowDataset,
    SlowDisk,
    TooFewWorkers,
    Work,
    burn,
    pace,
    write_random,
)
from lorawatch.trainer.recipe import Amount, Recipe, RecipeError, recipe_of

KINDS = (SlowDataset, SlowCollator, TooFewWorkers, SlowDisk)
AMOUNTS: tuple[Amount, ...] = ("plain", "subtle")


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    return recipe_of({"max_steps": 200, "output_dir": str(tmp_path)}, "test")


class Counter:
    """Counts its calls."""

    calls = 0

    def __call__(self) -> None:
        self.calls += 1


@pytest.mark.parametrize("amount", AMOUNTS)
@pytest.mark.parametrize("kind", KINDS)
def test_the_wait_for_data_is_expected_in_a_run_that_is_long_enough_for_it(
    kind: type[Any], amount: Amount, recipe: Recipe
) -> None:
    fault = kind(amount)
    wrong = fault.misconfigure(recipe)
    assert wrong.max_steps >= 70, "the rule takes 50 steps, and decides at each tenth"
    (expected,) = fault.expected(wrong)
    assert expected.rules == ("perf/data-wait",)
    assert expected.least is (Severity.WARNING if amount == "subtle" else Severity.CRITICAL)
    assert fault.remedy


def test_half_of_the_time_and_more_is_waiting_when_plain_and_a_quarter_when_subtle() -> None:
    plain, subtle = SlowDataset().batch_seconds, SlowDataset("subtle").batch_seconds
    assert plain / (plain + STEP) > 0.5
    assert subtle / (subtle + STEP) == pytest.approx(0.25)
    assert subtle > 0.02, "below that the rule does not care"


def test_burning_takes_processor_time() -> None:
    before = time.thread_time()
    burn(0.02)
    assert time.thread_time() - before >= 0.02


def test_costly_rows_are_the_same_rows_and_each_costs_once() -> None:
    cost = Counter()
    rows = CostlyRows([{"a": 1}, {"a": 2}], cost)
    assert len(rows) == 2
    assert [rows[0], rows[1], rows[0]] == [{"a": 1}, {"a": 2}, {"a": 1}]
    assert cost.calls == 3
    assert not hasattr(rows, "__getitems__"), "a fetch of many rows at once would pass the cost by"


def test_costly_rows_have_the_columns_of_the_data_set_and_go_to_a_worker() -> None:
    from datasets import Dataset  # type: ignore[import-untyped]

    rows = _sent(CostlyRows(Dataset.from_list([{"a": 1}, {"a": 2}]), Work(0.0)))
    assert rows.column_names == ["a"]
    assert rows[1] == {"a": 2}


def test_a_costly_collator_makes_the_same_batch_and_goes_to_a_worker() -> None:
    cost = Counter()
    assert CostlyCollator(_together, cost)([1, 2]) == {"rows": [1, 2]}
    assert cost.calls == 1
    assert _sent(CostlyCollator(_together, Work(0.0)))([3]) == {"rows": [3]}


def _sent(one: Any) -> Any:
    return pickle.loads(pickle.dumps(one))  # noqa: S301  (its own)


def _together(rows: list[Any]) -> dict[str, Any]:
    return {"rows": rows}


def test_rows_are_really_read_from_the_disk(tmp_path: Path) -> None:
    file = tmp_path / "rows"
    write_random(file, 1 << 20)
    assert file.stat().st_size == 1 << 20
    reads = DirectReads(file, 4)
    try:
        reads()
    except (OSError, AttributeError):
        pytest.skip("no reads past the page cache on this system or file system")
    before = _read_so_far()
    reads()
    assert _read_so_far() - before >= 4 * BLOCK


def _read_so_far() -> int:
    try:
        lines = Path("/proc/self/io").read_text(encoding="ascii").splitlines()
    except OSError:
        pytest.skip("no count of what was read on this system")
    return next(int(line.split()[1]) for line in lines if line.startswith("rchar"))


def test_a_disk_that_cannot_be_read_past_its_cache_is_told_before_training(
    recipe: Recipe, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(_: Any) -> None:
        raise OSError(22, "Invalid argument")

    monkeypatch.setattr(faults.DirectReads, "__call__", refused)
    with pytest.raises(RecipeError, match="page cache") as told:
        SlowDisk().prepare(recipe)
    assert "\n" not in str(told.value)
    assert not list(Path(recipe.output_dir).iterdir()), "its file is gone again"


def test_a_step_lasts_at_least_as_long_as_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]

    def sleep(seconds: float) -> None:
        now[0] += seconds

    def step(seconds: float) -> str:
        now[0] += seconds
        return "loss"

    monkeypatch.setattr(faults, "time", SimpleNamespace(monotonic=lambda: now[0], sleep=sleep))
    trainer = SimpleNamespace(training_step=step)
    pace(trainer, 0.5)
    assert trainer.training_step(0.2) == "loss"
    assert now[0] == pytest.approx(0.5)
    trainer.training_step(0.7)
    assert now[0] == pytest.approx(1.2)


def test_one_worker_is_a_mistake_in_the_recipe_and_disks_are_read_by_two(recipe: Recipe) -> None:
    assert TooFewWorkers().misconfigure(recipe).dataloader_num_workers == 1
    assert SlowDisk().misconfigure(recipe).dataloader_num_workers == 2
    assert SlowDataset().misconfigure(recipe).dataloader_num_workers == 0


@pytest.mark.parametrize("name", ["slow-dataset", "slow-collator"])
def test_training_really_waits(tmp_path: Path, name: str) -> None:
    from lorawatch.trainer.fine_tune import fine_tune

    recipe = recipe_of(
        {"max_steps": 8, "eval_rows": 0, "train_rows": 64, "per_device_train_batch_size": 4, "sample_steps": 0,
         "save_steps": 8, "inject": name, "output_dir": str(tmp_path)}, "test",
    )  # fmt: skip
    fine_tune(recipe, quiet=True)
    lines = (tmp_path / "lorawatch.jsonl").read_text(encoding="utf-8").splitlines()
    steps = [step for line in lines if (row := json.loads(line))["type"] == "steps" for step in row["steps"]]
    waits = [step[0] for step in steps if step[0] is not None]
    # The data loader is one batch ahead, so that the last step waits for none.
    assert len(waits) == 7
    assert all(wait >= SlowDataset().batch_seconds for wait in waits[:-1])
    assert all(step[1] >= STEP for step in steps)
