from __future__ import annotations

import struct
from pathlib import Path

import pytest

from lorawatch.records import LifecycleEvent, MetricRow
from lorawatch.source import SourceError
from lorawatch.sources.tensorboard import TensorboardSource

from .samples import event_file, events, facts, frame, read, rows, scalar


def test_scalars_of_one_step_are_one_row_with_its_wall_time(tmp_path: Path) -> None:
    found = rows(read(TensorboardSource, tmp_path / "events.out.tfevents.1", event_file(5)))
    assert found[1] == MetricRow(
        2, {"loss": 1.0, "learning_rate": found[1].values["learning_rate"]}, found[1].epoch, 1.7e9 + 2
    )
    assert found[1].epoch == pytest.approx(0.02)
    assert list(found[-1].values) == ["eval_loss"]


def test_the_last_row_waits_until_nothing_follows(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(event_file(2))
    source = TensorboardSource(path)
    assert [one.step for one in rows(source.poll())] == [1]
    assert [one.step for one in rows(source.poll())] == [2]
    assert list(source.poll()) == []


def test_a_torn_tail_is_awaited(tmp_path: Path) -> None:
    data = event_file(3)
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(data[:-9])
    source = TensorboardSource(path)
    before = rows(source.poll())
    path.write_bytes(data)
    assert [one.step for one in [*before, *rows(source.poll()), *rows(source.poll())]] == [1, 2, 3]


def test_the_summary_of_a_run_ends_it(tmp_path: Path) -> None:
    data = event_file(2) + scalar("train/train_runtime", 9.0, 2) + scalar("train/train_loss", 1.0, 2)
    records = read(TensorboardSource, tmp_path / "events.out.tfevents.1", data)
    assert events(records) == [LifecycleEvent("ended", step=2, time=1.7e9)]
    assert [sorted(one.values) for one in rows(records)] == [["learning_rate", "loss"]] * 2


def test_a_frame_larger_than_a_chunk_is_passed_over(tmp_path: Path) -> None:
    data = event_file(2) + frame(b"\x2a" + b"x" * 9_000) + scalar("train/loss", 0.5, 3)
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(data)
    source = TensorboardSource(path, chunk=1_000)
    assert [one.step for one in rows([*source.poll(), *source.finish()])] == [1, 2, 3]


def test_a_broken_frame_ends_the_reading_without_an_exception(tmp_path: Path) -> None:
    path = tmp_path / "events.out.tfevents.1"
    path.write_bytes(event_file(2) + b"\xff" * 40)
    source = TensorboardSource(path)
    assert len(rows([*source.poll(), *source.finish()])) == 2
    assert source.skipped_lines == 1


def test_a_file_of_another_kind_is_refused(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="not a TensorBoard event file"):
        read(TensorboardSource, tmp_path / "events.out.tfevents.1", b"\xff" * 40)


def test_arguments_in_a_text_summary_are_facts(tmp_path: Path) -> None:
    text = b'{"learning_rate": 0.5}'
    tensor = b"\x08\x07\x42" + bytes([len(text)]) + text
    value = b"\x0a\x11args/text_summary" + b"\x42" + bytes([len(tensor)]) + tensor
    summary = b"\x0a" + bytes([len(value)]) + value
    data = event_file(1) + frame(b"\x2a" + bytes([len(summary)]) + summary)
    assert facts(read(TensorboardSource, tmp_path / "events.out.tfevents.1", data)) == {"learning_rate": 0.5}


def test_values_are_those_that_tensorboard_itself_reads(tmp_path: Path) -> None:
    summary = pytest.importorskip("tensorboard.compat.proto.summary_pb2")
    event = pytest.importorskip("tensorboard.compat.proto.event_pb2")
    record = pytest.importorskip("tensorboard.summary.writer.record_writer")
    path = tmp_path / "events.out.tfevents.1"
    wanted = []
    with path.open("wb") as file:
        writer = record.RecordWriter(file)
        writer.write(event.Event(wall_time=1.0, file_version="brain.Event:2").SerializeToString())
        for step in (1, 200, 70_000, 2**40):
            value = struct.unpack("<f", struct.pack("<f", 1.1 * step))[0]
            wanted.append((step, {"loss": value}, 5.5))
            values = [summary.Summary.Value(tag="train/loss", simple_value=value)]
            writer.write(
                event.Event(wall_time=5.5, step=step, summary=summary.Summary(value=values)).SerializeToString()
            )
        writer.flush()
    assert [(one.step, one.values, one.time) for one in rows(read(TensorboardSource, path))] == wanted
