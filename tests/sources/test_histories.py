from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest

from lorawatch.records import LifecycleEvent, MetricRow
from lorawatch.source import SourceError
from lorawatch.sources import history
from lorawatch.sources.json_history import JsonHistorySource
from lorawatch.sources.trainer_state import TrainerStateSource

from .samples import events, facts, read, rows, trainer_state


def write(path: Path, text: str, time: int = 1) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(text)
    os.utime(path, ns=(time, time))


def test_a_state_gives_its_rows_and_facts(tmp_path: Path) -> None:
    records = read(
        TrainerStateSource, tmp_path / "s.json", trainer_state(range(5, 20, 5), max_steps=99, logging_steps=5)
    )
    assert facts(records) == {"max_steps": 99, "logging_steps": 5}
    assert [(one.step, one.epoch) for one in rows(records)] == [(5, 0.05), (10, 0.1), (15, 0.15)]
    assert not any(one.estimated for one in rows(records))


def test_bare_nan_and_infinity_are_read(tmp_path: Path) -> None:
    text = '{"log_history": [{"step": 1, "loss": NaN, "grad_norm": -Infinity}, {"step": 2, "loss": Infinity}]}'
    first, second = rows(read(TrainerStateSource, tmp_path / "s.json", text))
    assert math.isnan(first.values["loss"])
    assert first.values["grad_norm"] == -math.inf
    assert second.values["loss"] == math.inf


def test_the_summary_ends_the_run_and_is_no_row(tmp_path: Path) -> None:
    history = [{"step": 5, "loss": 1.0}, {"step": 5, "train_runtime": 3.0, "train_loss": 1.0}]
    records = read(TrainerStateSource, tmp_path / "s.json", json.dumps({"log_history": history}))
    assert events(records) == [LifecycleEvent("ended", step=5)]
    assert len(rows(records)) == 1


def test_a_rewritten_state_gives_only_its_new_rows(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write(path, trainer_state(range(5, 20, 5)), 1)
    source = TrainerStateSource(path)
    assert len(rows(source.poll())) == 3
    assert list(source.poll()) == []
    write(path, trainer_state(range(5, 40, 5)), 2)
    assert [one.step for one in rows(source.poll())] == [20, 25, 30, 35]


def test_a_half_written_state_is_awaited(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    text = trainer_state(range(5, 20, 5))
    write(path, text[:40], 1)
    source = TrainerStateSource(path)
    assert list(source.poll()) == []
    write(path, text, 2)
    assert len(rows(source.poll())) == 3


def test_a_history_that_changed_below_was_resumed(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write(path, trainer_state(range(5, 40, 5)), 1)
    source = TrainerStateSource(path)
    list(source.poll())
    other = json.loads(trainer_state(range(5, 50, 5)))
    for entry in other["log_history"][3:]:
        entry["loss"] += 1
    write(path, json.dumps(other), 2)
    records = list(source.poll())
    assert records[0] == LifecycleEvent("resumed", step=15)
    assert [one.step for one in rows(records)] == [20, 25, 30, 35, 40, 45]


def test_checkpoints_fill_what_a_resumed_run_lost(tmp_path: Path) -> None:
    write(tmp_path / "checkpoint-20" / "trainer_state.json", trainer_state(range(5, 25, 5)))
    write(tmp_path / "checkpoint-40" / "trainer_state.json", trainer_state(range(25, 45, 5)))
    source = TrainerStateSource(tmp_path)
    assert [one.step for one in rows(source.poll())] == list(range(5, 45, 5))
    write(tmp_path / "trainer_state.json", trainer_state(range(25, 55, 5)))
    assert [one.step for one in rows(source.poll())] == [45, 50]


def test_steps_that_go_back_within_one_history_are_a_resumption(tmp_path: Path) -> None:
    history = [{"step": step, "loss": 1.0} for step in (5, 10, 15, 10, 15)]
    assert events(read(TrainerStateSource, tmp_path / "s.json", json.dumps({"log_history": history}))) == [
        LifecycleEvent("resumed", step=10)
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [('{"log_history": []}', "history is empty"), ("{", "no readable history"), ("", "no readable history")],
)
@pytest.mark.parametrize("make", [TrainerStateSource, JsonHistorySource])
def test_a_state_that_cannot_be_used_says_so_at_the_end(make: type, text: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=message):
        read(make, tmp_path / "s.json", text)


def test_the_longest_list_of_rows_is_the_history(tmp_path: Path) -> None:
    document = {
        "run_info": {"peft_config": {"r": 8}, "train_config": {"optimizer_kwargs": {"lr": 1}, "lr": 0.5}},
        "short": [{"step": 1, "loss": 5.0}],
        "train_info": {"metrics": [{"step": 10 * n, "train loss": 1.0 / n, "valid accuracy": 0.5} for n in (1, 2, 3)]},
    }
    records = read(JsonHistorySource, tmp_path / "r.json", json.dumps(document))
    first = rows(records)[0]
    assert (first.step, sorted(first.values)) == (10, ["eval_accuracy", "loss"])
    assert len(rows(records)) == 3
    assert facts(records) == {"r": 8, "learning_rate": 0.5}


def test_deep_nesting_is_no_crash(tmp_path: Path) -> None:
    for text in ("[" * 100_000, '{"a":' * 5_000 + "1" + "}" * 5_000):
        with pytest.raises(SourceError):
            read(JsonHistorySource, tmp_path / "r.json", text)


def test_each_save_is_read_once_however_many_checkpoints_there_are(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[Path] = []
    plain = history.read_document

    def counted(path: Path, limit: int = history.SIZE_LIMIT) -> object:
        read.append(path)
        return plain(path, limit)

    monkeypatch.setattr("lorawatch.sources.trainer_state.read_document", counted)
    source = TrainerStateSource(tmp_path)
    told = 0
    for save in range(1, 21):
        folder = tmp_path / f"checkpoint-{save * 10}"
        folder.mkdir()
        rows = [{"step": step, "loss": 1.0} for step in range(1, save * 10 + 1)]
        (folder / "trainer_state.json").write_text(json.dumps({"global_step": save * 10, "log_history": rows}))
        told += sum(isinstance(one, MetricRow) for one in source.poll())
    assert told == 200
    assert len(read) == 20


def test_a_checkpoint_that_cannot_be_read_is_counted_once(tmp_path: Path) -> None:
    (tmp_path / "checkpoint-5" / "trainer_state.json").mkdir(parents=True)
    (tmp_path / "trainer_state.json").write_text(
        json.dumps({"global_step": 1, "log_history": [{"step": 1, "loss": 1}]})
    )
    source = TrainerStateSource(tmp_path)
    for _ in range(3):
        list(source.poll())
    assert source.skipped_lines == 1
    (tmp_path / "trainer_state.json").unlink()
    assert list(source.poll()) == []
