"""Following files as they come, grow, go and are replaced; what is told live is what reading them afterwards finds."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from lorawatch.engine import Change, Engine
from lorawatch.findings import Finding
from lorawatch.records import MetricRow, Record
from lorawatch.registry import RuleSet
from lorawatch.settings import Settings
from lorawatch.source import SourceError
from lorawatch.sources import history
from lorawatch.sources.console import ConsoleSource
from lorawatch.watch import FolderWatch, RunWatch, judge

RUNS = Path(__file__).parent / "runs"
RULES = RuleSet(Settings())
LOST = (RUNS / "nan-from-step-40" / "train.log").read_bytes()
OVERFIT = (RUNS / "overfit" / "train.log").read_bytes()
HEALTHY = (RUNS / "healthy-sft" / "train.log").read_bytes()


class Followed:
    """A path that is followed, and what was told of it."""

    def __init__(self, path: Path) -> None:
        self.watch = FolderWatch(path, RULES)
        self.heard: list[tuple[Change, str]] = []
        self.watch.listeners.append(self._hear)

    def _hear(self, watch: RunWatch, change: Change, finding: Finding) -> None:
        self.heard.append((change, finding.rule))

    def poll(self) -> None:
        self.watch.poll()

    def opened(self) -> list[str]:
        return [rule for change, rule in self.heard if change == "opened"]

    def finish(self, *, past: int = 0) -> None:
        """Finish, and compare with reading afterwards: but for runs that stand in no file any more."""
        self.watch.finish()
        judged = judge([self.watch.path], RULES)
        assert told(self.watch.runs, past) == told(judged.runs)
        firing = {one.rule for watch in self.watch.runs for engine in watch.engines for one in engine.findings}
        assert set(self.opened()) >= firing


def told(watches: list[RunWatch], past: int = 0) -> list[tuple[object, ...]]:
    return [
        (watch.path, one.rule, one.opened_step, one.resolved_step, one.severity.label, one.incident, one.state)
        for watch in sorted(watches, key=lambda watch: watch.path)
        for engine in watch.engines[past:]
        for one in engine.findings
    ]


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as out:
        out.write(data)


def grow(path: Path, data: bytes, followed: Followed, pieces: int = 12) -> None:
    """Let a file grow piece by piece, looked at after each; lines are torn anywhere."""
    size = len(data) // pieces + 1
    for start in range(0, len(data), size):
        append(path, data[start : start + size])
        followed.poll()


def state(steps: int, total: int = 300, every: int = 2, **facts: Any) -> str:
    """A trainer_state.json after some steps of a healthy run."""
    rows = [
        {"step": step, "epoch": step / 125, "loss": 2.0 - step / total, "grad_norm": 0.5, "learning_rate": 1e-4}
        for step in range(every, steps + 1, every)
    ]
    return json.dumps({"global_step": steps, "max_steps": total, "logging_steps": every, "log_history": rows, **facts})


def once(followed: Followed) -> None:
    """Each finding was told to have opened once."""
    counts = Counter(followed.opened())
    assert not [rule for rule, count in counts.items() if count > 1], followed.heard


def causes(watch: FolderWatch) -> set[str]:
    return {one.rule for run in watch.runs for engine in run.engines for one in engine.findings}


def test_a_log_that_appears_after_following_began(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    followed = Followed(log)
    followed.poll()
    assert "no such file" in followed.watch.waiting_for
    log.touch()
    followed.poll()
    grow(log, LOST, followed)
    followed.finish()
    once(followed)
    assert "sig/hidden-nan" in followed.opened()


def test_a_folder_that_appears_later(tmp_path: Path) -> None:
    followed = Followed(tmp_path / "runs" / "one")
    followed.poll()
    (tmp_path / "runs" / "one").mkdir(parents=True)
    followed.poll()
    grow(tmp_path / "runs" / "one" / "train.log", LOST, followed)
    followed.finish()
    once(followed)
    assert "sig/hidden-nan" in followed.opened()


@pytest.mark.parametrize("way", ["rename", "copytruncate"])
@pytest.mark.parametrize("asked", ["file", "folder"])
def test_a_log_that_is_rotated_stays_one_run(way: str, asked: str, tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    followed = Followed(log if asked == "file" else tmp_path)
    cut = LOST.rindex(b"\n", 0, len(LOST) * 2 // 3) + 1
    grow(log, LOST[:cut], followed)
    before = followed.opened()
    assert "sig/hidden-nan" in before
    if way == "rename":
        log.rename(tmp_path / "train.log.1")
    else:
        shutil.copyfile(log, tmp_path / "train.log.1")
        log.write_bytes(b"")
    followed.poll()
    grow(log, LOST[cut:], followed)
    followed.watch.finish()
    once(followed)
    assert len(followed.watch.runs) == 1
    assert followed.watch.runs[0].rows == 80  # `check` would see two halves; what was followed is one run
    whole = told(judge([RUNS / "nan-from-step-40" / "train.log"], RULES).runs)
    assert [found[1:] for found in told(followed.watch.runs)] == [found[1:] for found in whole]
    assert followed.watch.runs[0].files.path == followed.watch.path


def test_a_log_that_a_new_run_writes_over_is_a_second_run_and_the_first_stays_known(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    followed = Followed(log)
    grow(log, LOST, followed)
    log.write_bytes(b"")
    followed.poll()
    grow(log, OVERFIT, followed)
    assert len(followed.watch.runs[0].engines) == 2
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "lora_alpha": 16, "peft_type": "LORA"}))
    followed.poll()
    followed.finish(past=1)
    once(followed)
    assert {"sig/hidden-nan", "eval/overfit"} <= causes(followed.watch)
    assert ("resolved", "sig/hidden-nan") not in followed.heard


def test_a_log_that_is_deleted_and_made_anew(tmp_path: Path) -> None:
    log = tmp_path / "trainer_log.jsonl"
    followed = Followed(tmp_path)

    def line(step: int, loss: float) -> bytes:
        return json.dumps({"current_steps": step, "total_steps": 400, "loss": loss, "lr": 1e-4}).encode() + b"\n"

    grow(log, b"".join(line(step, 1.0 + step * 0.05) for step in range(5, 401, 5)), followed)
    assert followed.opened()
    log.unlink()
    followed.poll()
    grow(log, b"".join(line(step, 2.0 - step / 400) for step in range(5, 401, 5)), followed)
    assert len(followed.watch.runs[0].engines) == 2
    followed.finish(past=1)
    once(followed)


def test_a_copy_that_is_put_in_the_place_of_the_log_goes_on(tmp_path: Path) -> None:
    log, copy = tmp_path / "train.log", tmp_path / ".train.log.part"
    followed = Followed(log)
    for share in (0.3, 0.5, 0.9, 1.0):  # as rsync does
        copy.write_bytes(LOST[: int(len(LOST) * share)])
        copy.rename(log)
        followed.poll()
    assert len(followed.watch.runs[0].engines) == 1
    followed.finish()
    once(followed)


def test_a_state_that_is_saved_again_and_again_beside_the_log(tmp_path: Path) -> None:
    run = RUNS / "overfit"
    document = json.loads((run / "trainer_state.json").read_text())
    log = (run / "train.log").read_bytes()
    followed = Followed(tmp_path)
    for save in range(1, 11):
        append(tmp_path / "train.log", log[len(log) * (save - 1) // 10 : len(log) * save // 10])
        rows = [row for row in document["log_history"] if row["step"] <= 40 * save]
        half = json.dumps({**document, "global_step": 40 * save, "best_metric": 1 / save, "log_history": rows})
        (tmp_path / "trainer_state.json").write_text(half[: len(half) // 2])
        followed.poll()
        (tmp_path / "trainer_state.json").write_text(half)
        followed.poll()
    followed.finish()
    once(followed)
    assert "eval/overfit" in followed.opened()


def test_a_state_that_is_half_written_when_the_job_dies_does_not_spoil_the_log(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    (tmp_path / "trainer_state.json").write_text(state(40))
    grow(tmp_path / "train.log", LOST, followed)
    (tmp_path / "trainer_state.json").write_text(state(60)[:100])
    followed.poll()
    followed.finish()
    assert not followed.watch.problems
    once(followed)
    assert "sig/hidden-nan" in followed.opened()


def test_an_adapter_configuration_that_comes_late(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    grow(tmp_path / "train.log", LOST, followed)
    shutil.copy(RUNS / "nan-from-step-40" / "adapter_config.json", tmp_path)
    followed.poll()
    assert followed.watch.runs[0].engine.run.number("r") == 8
    followed.finish()
    once(followed)


def test_a_better_source_that_appears_while_the_run_is_followed(tmp_path: Path) -> None:
    run = RUNS / "nan-from-step-40"
    followed = Followed(tmp_path)
    grow(tmp_path / "train.log", (run / "train.log").read_bytes(), followed)
    before = followed.opened()
    grow(tmp_path / "lorawatch.jsonl", (run / "lorawatch.jsonl").read_bytes(), followed, pieces=5)
    assert followed.watch.runs[0].files.sources[0].format == "lorawatch"
    followed.finish()
    assert len(followed.watch.runs) == 1
    once(followed)
    assert set(before) <= set(followed.opened())


def test_a_second_log_beside_the_first_tells_nothing_twice(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    (tmp_path / "trainer_state.json").write_text((RUNS / "nan-from-step-40" / "trainer_state.json").read_text())
    grow(tmp_path / "a.log", LOST, followed)
    before = followed.opened()
    assert "sig/hidden-nan" in before
    (tmp_path / "trainer_state.json").unlink()
    followed.poll()
    grow(tmp_path / "b.log", HEALTHY, followed)
    assert sorted(watch.name for watch in followed.watch.runs) == ["a.log", "b.log"]
    followed.finish()
    once(followed)
    assert "a.log" in followed.watch.runs[0].path


def test_two_runs_of_which_one_grows(tmp_path: Path) -> None:
    for name, data in (("one", LOST), ("two", HEALTHY[:20_000])):
        (tmp_path / name).mkdir()
        (tmp_path / name / "train.log").write_bytes(data)
    followed = Followed(tmp_path)
    followed.poll()
    engine = followed.watch.runs[0].engine
    grow(tmp_path / "two" / "train.log", HEALTHY[20_000:], followed)
    assert followed.watch.runs[0].engine is engine
    followed.finish()
    once(followed)


def test_checkpoints_that_come_and_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    followed = Followed(tmp_path)
    read = history.read_document

    def vanishing(path: Path, limit: int = history.SIZE_LIMIT) -> Any:
        # save_total_limit deletes a checkpoint between listing and reading it.
        if path.parent.name == "checkpoint-50":
            shutil.rmtree(path.parent, ignore_errors=True)
        return read(path, limit)

    monkeypatch.setattr("lorawatch.sources.trainer_state.read_document", vanishing)
    for step in range(50, 301, 50):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        shutil.copy(RUNS / "healthy-sft" / "adapter_config.json", folder)
        (folder / "trainer_state.json").write_text(state(step, best_metric=1 / step))
        if step > 150:
            shutil.rmtree(tmp_path / f"checkpoint-{step - 100}")
        followed.poll()
    followed.finish()
    assert followed.watch.runs[0].rows == 150
    assert len(followed.watch.runs) == 1


def test_a_log_that_cannot_be_read_for_a_while(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    followed = Followed(log)
    grow(log, LOST, followed)
    log.rename(tmp_path / "away")
    log.mkdir()  # what root cannot read either
    followed.poll()
    assert "not a regular file" in str(followed.watch.problems)
    assert "sig/hidden-nan" in causes(followed.watch)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"r": 8, "peft_type": "LORA"}))
    followed.poll()  # a fact asks for reading again, which fails
    assert "sig/hidden-nan" in causes(followed.watch)
    log.rmdir()
    (tmp_path / "away").rename(log)
    followed.poll()
    assert followed.watch.problems == {}
    followed.finish()
    once(followed)


def test_a_run_that_ended_and_goes_on_in_the_same_log(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    followed = Followed(log)
    data = (RUNS / "resumed" / "train.log").read_bytes()
    grow(log, data, followed)
    assert followed.watch.ended
    again = data[data.rindex(b"  0%|          | 0/240") :]
    grow(log, again, followed)
    assert len(followed.watch.runs[0].engines) == 1
    followed.finish()
    once(followed)


def test_a_finding_that_is_gone_after_reading_again_is_told_as_resolved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "train.log"
    followed = Followed(tmp_path)
    grow(log, (RUNS / "lr-too-low" / "train.log").read_bytes(), followed)
    assert "loss/not-learning" in followed.opened()
    (tmp_path / "training_args.json").write_text(json.dumps({"learning_rate": 1e-6}))
    monkeypatch.setattr(followed.watch.runs[0], "_rules", RuleSet(Settings(ignore=("loss/not-learning",))))
    followed.poll()
    assert followed.heard.count(("resolved", "loss/not-learning")) == 1
    assert all(one.state == "resolved" for one in _told(followed, "loss/not-learning"))
    followed.poll()
    once(followed)


def _told(followed: Followed, rule: str) -> list[Finding]:
    return [one.finding for one in followed.watch.runs[0]._told.values() if one.finding.rule == rule]


def test_reading_again_does_not_tell_what_was_told(tmp_path: Path) -> None:
    followed = Followed(tmp_path)
    grow(tmp_path / "train.log", LOST, followed)
    before = list(followed.heard)
    followed.watch.runs[0].read()
    followed.watch.runs[0].read(finished=False)
    assert followed.heard == before


def test_following_costs_what_reading_costs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that engines are fed, and rows that the console log is parsed for, over a run with 60 saves."""
    fed: Counter[str] = Counter()
    feed, parse = Engine.feed, ConsoleSource._parse

    def count(self: Engine, record: Record) -> None:
        fed["engine"] += type(record) is MetricRow
        feed(self, record)

    def count_bytes(self: ConsoleSource, block: bytes) -> list[Record]:
        fed["bytes"] += len(block)
        return parse(self, block)

    monkeypatch.setattr(Engine, "feed", count)
    monkeypatch.setattr(ConsoleSource, "_parse", count_bytes)
    log = tmp_path / "train.log"
    followed = Followed(tmp_path)
    for save in range(1, 61):
        steps = range(100 * save - 98, 100 * save + 1, 2)
        append(log, b"".join(_row(step) for step in steps))
        if save % 2 == 0:
            folder = tmp_path / f"checkpoint-{100 * save}"
            folder.mkdir()
            facts: dict[str, Any] = {
                "best_metric": 1 / save,
                "best_model_checkpoint": folder.name,
                "best_global_step": 100 * save,
            }
            (folder / "trainer_state.json").write_text(state(100 * save, total=6000, **facts))
            shutil.copy(RUNS / "healthy-sft" / "adapter_config.json", folder)
        followed.poll()
    assert followed.watch.runs[0].rows == 3_000
    assert followed.watch.runs[0].engine.run.fact("best_global_step") == 6000
    assert fed["engine"] < 2 * 3_000
    assert fed["bytes"] < 3 * log.stat().st_size
    followed.finish()


def _row(step: int) -> bytes:
    bar = f"\r 10%|#   | {step}/6000 [00:10<10:00,  9.9it/s]"
    values = {"loss": 2.0 - step / 6000, "grad_norm": 0.5, "learning_rate": 1e-4, "epoch": step / 125}
    return f"{bar}\r{' ' * 50}\r{values}\n{bar}".encode()


def test_a_source_error_is_all_that_reading_may_raise(tmp_path: Path) -> None:
    log = tmp_path / "train.log"
    log.write_bytes(LOST)
    followed = Followed(log)
    followed.poll()
    log.unlink()
    log.mkdir()
    with pytest.raises(SourceError, match="not a regular file"):
        followed.watch.runs[0].read()
    assert followed.watch.runs[0].rows == 80
