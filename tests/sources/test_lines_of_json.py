from __future__ import annotations

import json
import math
from pathlib import Path
from typing import get_args

from hypothesis import given, settings
from hypothesis import strategies as st

from lorawatch.records import Event, FactUpdate, LifecycleEvent, MetricRow, Record
from lorawatch.sources.jsonl import JsonlSource, LlamaFactorySource
from lorawatch.sources.lorawatch_jsonl import LorawatchSource, encode
from lorawatch.sources.names import metric_name

from .samples import events, facts, llamafactory, own_records, read, rows, shown


def test_llamafactory_lines_give_rows_and_the_length_of_the_run(tmp_path: Path) -> None:
    records = read(LlamaFactorySource, tmp_path / "t.jsonl", llamafactory(30))
    assert facts(records) == {"max_steps": 500}
    assert rows(records)[0] == MetricRow(5, {"loss": 0.4, "learning_rate": 1e-4}, 0.05)
    assert [one.step for one in rows(records) if "eval_loss" in one.values] == [50, 100, 150]


def test_the_last_line_of_llamafactory_ends_the_run(tmp_path: Path) -> None:
    text = '{"current_steps": 9, "total_steps": 9, "loss": 1.0}\n{"current_steps": 9, "total_steps": 9, "epoch": 1.0}\n'
    assert events(read(LlamaFactorySource, tmp_path / "t.jsonl", text)) == [LifecycleEvent("ended", step=9)]


def test_nulls_and_bare_nan_of_llamafactory_are_read(tmp_path: Path) -> None:
    text = '{"current_steps": 1, "total_steps": null, "loss": NaN, "reward": null}\n{"current_steps": 2, "loss": 1}\n'
    first, second = rows(read(LlamaFactorySource, tmp_path / "t.jsonl", text))
    assert math.isnan(first.values["loss"])
    assert second.values == {"loss": 1.0}


def test_steps_going_back_start_or_resume_a_run(tmp_path: Path) -> None:
    text = "".join(json.dumps({"step": step, "loss": 1.0}) + "\n" for step in (1, 2, 3, 2, 3, 1, 2))
    found = events(read(JsonlSource, tmp_path / "t.jsonl", text))
    assert found == [LifecycleEvent("resumed", step=2), LifecycleEvent("started")]


def test_other_spellings_become_the_names_of_the_trainer(tmp_path: Path) -> None:
    line = {
        "global_step": 3,
        "train/loss": 1.0,
        "val_loss": 2.0,
        "lr": 0.1,
        "timestamp": 1.7e9,
        "note": "x",
        "ok": True,
    }
    (found,) = rows(read(JsonlSource, tmp_path / "t.jsonl", json.dumps(line) + "\n"))
    assert found == MetricRow(3, {"loss": 1.0, "eval_loss": 2.0, "learning_rate": 0.1}, None, 1.7e9)
    assert metric_name("eval/rouge1") == "eval_rouge1"
    assert metric_name("train/grad_norm") == "grad_norm"
    assert metric_name("rewards/chosen") == "rewards/chosen"


def test_broken_lines_are_counted_and_the_others_read(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_bytes(b'{"step": 1, "loss": 1}\n{"step": 2, "los\n\n\xff\xfe\n[1]\n{"step": 3, "loss": "2.5"}\n')
    source = JsonlSource(path)
    assert [(one.step, one.values) for one in rows(source.poll())] == [(1, {"loss": 1.0}), (3, {"loss": 2.5})]
    assert source.skipped_lines == 3


def test_rows_without_a_step_are_numbered_as_estimates(tmp_path: Path) -> None:
    found = rows(read(JsonlSource, tmp_path / "t.jsonl", '{"loss": 1.0, "epoch": 0.1}\n{"loss": 2.0}\n'))
    assert [(one.step, one.estimated) for one in found] == [(1, True), (2, True)]


_NAME = st.sampled_from(["step", "loss", "train_loss", "lr", "epoch", "time", "x", "eval/loss", "Loss", "iter"])
_VALUE = st.floats() | st.integers(-5, 10**14) | st.sampled_from(["1.5", "x", "", None, True, [1], {"a": 1}])


@settings(max_examples=200, deadline=None)
@given(found=st.lists(st.dictionaries(_NAME, _VALUE, max_size=5), max_size=8))
def test_lines_read_alike_together_and_alone(found: list[dict[str, object]], tmp_path_factory: object) -> None:
    folder = tmp_path_factory.mktemp("jsonl")  # type: ignore[attr-defined]
    text = "".join(json.dumps(line) + "\n" for line in found)
    together = read(JsonlSource, folder / "t.jsonl", text)
    one_by_one = JsonlSource(folder / "t.jsonl", chunk=1)
    assert shown(together) == shown([*one_by_one.poll(), *one_by_one.finish()])


_FLOATS = st.floats(allow_nan=False, allow_infinity=False)
_RECORDS: st.SearchStrategy[Record] = st.one_of(
    st.builds(
        MetricRow,
        st.none() | st.integers(0, 2**53),
        st.dictionaries(st.text(max_size=10), st.floats(), max_size=4),
        st.none() | st.floats(),
        st.none() | st.floats(),
        st.booleans(),
    ),
    st.builds(
        FactUpdate,
        st.dictionaries(st.text(max_size=9), st.integers(-9, 9) | st.text(max_size=9) | st.none()),
        st.text(),
    ),
    st.builds(
        LifecycleEvent, st.sampled_from(get_args(Event)), st.none() | st.integers(0, 9), st.none() | _FLOATS, st.text()
    ),
)


@settings(max_examples=200, deadline=None)
@given(records=st.lists(_RECORDS, max_size=6))
def test_what_is_encoded_is_decoded_exactly(records: list[Record], tmp_path_factory: object) -> None:
    folder = tmp_path_factory.mktemp("own")  # type: ignore[attr-defined]
    lines = [encode(record) for record in records]
    for line in lines:
        assert line.count(b"\n") == 1
        json.loads(line, parse_constant=lambda name: (_ for _ in ()).throw(ValueError(name)))  # strict JSON
    assert shown(read(LorawatchSource, folder / "l.jsonl", b"".join(lines))) == shown(records)


def test_what_a_newer_lorawatch_added_is_passed_over(tmp_path: Path) -> None:
    newer = b'{"type":"gpu","watts":300}\n{"type":"metrics","step":1,"values":{"loss":1.0},"rank":3}\n'
    newer += b'{"type":"metrics","st\n'
    path = tmp_path / "l.jsonl"
    path.write_bytes(newer + b"".join(map(encode, own_records(5))))
    source = LorawatchSource(path)
    records = list(source.poll())
    assert records[0] == MetricRow(1, {"loss": 1.0})
    assert shown(records[1:]) == shown(own_records(5))
    assert source.skipped_lines == 1
