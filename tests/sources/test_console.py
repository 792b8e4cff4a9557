from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lorawatch.records import FactUpdate, LifecycleEvent
from lorawatch.sources import console_text
from lorawatch.sources.console import ConsoleSource
from lorawatch.sources.console_text import decode_dicts, parse_dict

from .samples import bar, events, facts, lagging_console, live_console, read, row, rows


def steps(text: str | bytes, tmp_path: Path) -> list[int | None]:
    return [found.step for found in rows(read(ConsoleSource, tmp_path / "x.log", text)) if "loss" in found.values]


def test_rows_beside_their_bar_get_its_step(tmp_path: Path) -> None:
    found = rows(read(ConsoleSource, tmp_path / "x.log", live_console(40, 5)))
    assert [one.step for one in found] == list(range(5, 41, 5))
    assert not any(one.estimated for one in found[2:])
    assert "epoch" not in found[0].values
    assert found[0].epoch == 0.05


def test_rows_that_lag_behind_their_bars_get_the_steps_at_which_they_were_logged(tmp_path: Path) -> None:
    assert steps(lagging_console(60, 5), tmp_path) == list(range(5, 61, 5))


def test_all_rows_at_the_end_of_a_run_get_their_steps(tmp_path: Path) -> None:
    assert steps(lagging_console(100, 10, flush=99), tmp_path) == list(range(10, 101, 10))


def test_words_and_numbers_read_alike(tmp_path: Path) -> None:
    words = rows(read(ConsoleSource, tmp_path / "x.log", live_console(words=True)))
    assert [one.step for one in words] == [
        one.step for one in rows(read(ConsoleSource, tmp_path / "y.log", live_console()))
    ]
    assert all(isinstance(value, float) for one in words for value in one.values.values())


def test_bare_nan_and_inf_are_numbers(tmp_path: Path) -> None:
    text = "{'loss': 0.0, 'grad_norm': nan, 'entropy': inf, 'epoch': 0.5}\n{'loss': nan, 'x': -inf, 'epoch': 1.0}\n"
    first, second = rows(read(ConsoleSource, tmp_path / "x.log", text))
    assert math.isnan(first.values["grad_norm"])
    assert first.values["entropy"] == math.inf
    assert math.isnan(second.values["loss"])
    assert second.values["x"] == -math.inf


def test_bars_between_the_rows_of_a_run_state_its_length_and_spacing_as_guesses(tmp_path: Path) -> None:
    records = read(ConsoleSource, tmp_path / "x.log", live_console(40, 5, 100))
    assert facts(records) == {"max_steps": 100, "logging_steps": 5}
    assert all(record.inferred for record in records if isinstance(record, FactUpdate))


def test_the_same_row_of_several_hosts_is_one_row(tmp_path: Path) -> None:
    text = "".join(f"10.0.0.{host}: {row(step)}\n" for step in (1, 2, 3) for host in (7, 3, 9))
    assert steps(text, tmp_path) == [1, 2, 3]


def test_a_row_that_ranks_print_without_a_name_is_one_row(tmp_path: Path) -> None:
    text = "".join(f"{row(step)}\n" * 4 for step in (1, 2, 3))
    assert steps(text, tmp_path) == [1, 2, 3]


def test_rows_of_a_dead_run_that_look_alike_all_count(tmp_path: Path) -> None:
    text = "{'loss': 0.0, 'grad_norm': 0.0, 'learning_rate': 0.0002, 'epoch': 0.0}\n" * 5
    assert len(steps(text, tmp_path)) == 5


@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "  ",
        "# ",
        "12/01/2024 10:00:00 - INFO - __main__ -   ",
        "[rank0]: ",
        "node-1: ",
        "\x1b[32m",
        "[INFO|t.py:3] >> ",
    ],
)
@pytest.mark.parametrize("suffix", ["", "     ", "   <-- spike", "\x1b[0m", "\r"])
def test_prefixes_comments_and_colours_do_not_hide_a_row(prefix: str, suffix: str, tmp_path: Path) -> None:
    text = "".join(f"{prefix}{row(step)}{suffix}\n" for step in (1, 2, 3))
    assert steps(text, tmp_path) == [1, 2, 3]


@pytest.mark.parametrize(
    "line",
    [
        "the loss was 3.2 at step 5",
        "loss: 0.5",
        "Final loss = 1.25",
        "return {'loss': loss, 'logits': logits}",
        "config = {'loss': 'cross_entropy', 'epochs': 3}",
        "{'step': 0, 'agent': 'buyer', 'reward': 2.5}",
        "we printed {'loss': 1.5, 'epoch': 0.5} yesterday",
        "{'train': {'loss': 1.5}}",
        "  File 'x.py', line 3, in loss",
        "val_loss:5.5, val_f1:0.7",
        "Validation loss: 11.7",
        "iter 5: the loss 3",
    ],
)
def test_text_that_mentions_a_loss_is_no_metric(line: str, tmp_path: Path) -> None:
    assert rows(read(ConsoleSource, tmp_path / "x.log", f"{line}\n" * 3)) == []


def test_a_train_runtime_summary_ends_the_run_and_gives_no_loss(tmp_path: Path) -> None:
    text = live_console(10) + "{'train_runtime': 12.5, 'train_loss': 0.5, 'epoch': 0.1}\n"
    records = read(ConsoleSource, tmp_path / "x.log", text)
    assert events(records) == [LifecycleEvent("ended", step=10, detail="train_runtime 12.5, train_loss 0.5")]
    assert len(rows(records)) == 2


def test_an_evaluation_stands_at_the_step_of_its_row(tmp_path: Path) -> None:
    text = live_console(10) + str({"eval_loss": 1.5, "eval_runtime": 2.0, "epoch": 0.1}) + "\n"
    last = rows(read(ConsoleSource, tmp_path / "x.log", text))[-1]
    assert (last.step, last.values, last.epoch) == (10, {"eval_loss": 1.5, "eval_runtime": 2.0}, 0.1)


def test_a_block_of_evaluation_results_is_read_unless_the_dict_told_it_already(tmp_path: Path) -> None:
    block = """***** eval metrics *****
  epoch                   =        0.1
  eval_accuracy           =     0.7512
  eval_loss               =     1.5001
  eval_runtime            = 0:00:10.12
  eval_samples            =        300
The eval_loss = 3 of old
"""
    told = str({"eval_loss": 1.50012345, "epoch": 0.1}) + "\n"
    alone = rows(read(ConsoleSource, tmp_path / "x.log", live_console(10) + block))[2:]
    assert [(one.step, one.values) for one in alone] == [(10, {"eval_accuracy": 0.7512}), (10, {"eval_loss": 1.5001})]
    beside = rows(read(ConsoleSource, tmp_path / "y.log", live_console(10) + told + block))[2:]
    assert [one.values for one in beside] == [{"eval_loss": 1.50012345}, {"eval_accuracy": 0.7512}]


def test_the_bar_of_an_evaluation_is_not_taken_for_that_of_the_run(tmp_path: Path) -> None:
    text = (
        live_console(10)[:-1]
        + "".join(bar(n, 7) for n in range(8))
        + "\n"
        + live_console(40, 5)[len(live_console(10)) :]
    )
    assert steps(text, tmp_path)[:2] == [5, 10]
    assert 7 not in steps(text, tmp_path)


def test_a_second_run_in_the_file_starts_anew(tmp_path: Path) -> None:
    records = read(ConsoleSource, tmp_path / "x.log", live_console(20) + live_console(15, total=80))
    assert [event.event for event in events(records)] == ["started"]
    assert [one.step for one in rows(records)] == [5, 10, 15, 20, 5, 10, 15]


def test_a_run_that_goes_on_from_a_checkpoint_is_resumed(tmp_path: Path) -> None:
    again = bar(0, 100) + "".join(
        bar(step, 100) + (f"\r{' ' * 60}\r{row(step)}\n{bar(step, 100)}" if step % 5 == 0 else "")
        for step in range(21, 41)
    )
    records = read(ConsoleSource, tmp_path / "x.log", live_console(40) + again + "\n")
    assert events(records) == [LifecycleEvent("resumed", step=20)]
    assert [one.step for one in rows(records)][-4:] == [25, 30, 35, 40]


def summary() -> str:
    return "{'train_runtime': 12.5, 'train_loss': 0.5, 'epoch': 0.4}\n"


def test_a_run_of_other_data_after_the_end_of_one_starts_anew_though_its_epochs_lie_further(tmp_path: Path) -> None:
    further = "".join(f"\r{row(step * 20)}\n{bar(step, 50)}" for step in (5, 10, 15))
    text = live_console(20) + summary() + bar(0, 50) + bar(5, 50) + further
    records = read(ConsoleSource, tmp_path / "x.log", text + "\n")
    assert [event.event for event in events(records)] == ["ended", "started"]
    assert [one.step for one in rows(records)] == [5, 10, 15, 20, 5, 10, 15]


def test_a_run_that_is_made_longer_after_its_end_goes_on(tmp_path: Path) -> None:
    longer = "".join(f"\r{row(step)}\n{bar(step, 200)}" for step in (25, 30, 35))
    text = live_console(20) + summary() + bar(0, 200) + bar(25, 200) + longer
    records = read(ConsoleSource, tmp_path / "x.log", text + "\n")
    assert [event.event for event in events(records)] == ["ended"]
    assert [one.step for one in rows(records)] == [5, 10, 15, 20, 25, 30, 35]
    assert facts(records)["max_steps"] == 200


def test_a_run_that_is_resumed_after_its_last_evaluation_keeps_its_length(tmp_path: Path) -> None:
    evaluated = bar(0, 8) + bar(8, 8) + "\r{'eval_loss': 1.5, 'epoch': 0.4}\n"
    again = bar(0, 100) + "".join(f"{bar(step, 100)}\r{row(step)}\n" for step in (25, 30, 35))
    records = read(ConsoleSource, tmp_path / "x.log", live_console(40) + evaluated + summary() + again)
    assert [(event.event, event.step) for event in events(records)][1:] == [("resumed", 20)]
    assert facts(records)["max_steps"] == 100


def test_a_log_that_begins_in_the_middle_of_a_run_takes_its_bars(tmp_path: Path) -> None:
    text = "".join(f"{row(step)}\n{bar(step, 9_000)}\n{bar(step + 1, 9_000)}\n" for step in range(2_500, 2_510))
    assert steps(text, tmp_path)[1:] == list(range(2_501, 2_510))


def test_stated_logging_steps_number_rows_without_bars(tmp_path: Path) -> None:
    text = "01/01/2024 10:00:00 - INFO - __main__ -   logging_steps: 20\n" + "".join(
        f"{row(s)}\n" for s in (20, 40, 60)
    )
    assert steps(text, tmp_path) == [20, 40, 60]


def test_printed_arguments_are_facts(tmp_path: Path) -> None:
    text = """***** Running training *****
  Num examples = 1,200
  Num Epochs = 3
  Instantaneous batch size per device = 4
  Total train batch size (w. parallel, distributed & accumulation) = 16
  Gradient Accumulation steps = 4
  Total optimization steps = 225
  Number of trainable parameters = 4,194,304
01/01/2024 10:00:00 - INFO - __main__ -   per_device_train_batch_size: 2
learning_rate=0.0002,
trainable params: 10 || all params: 1,000 || trainable%: 1.0
seed: 13 :: is no argument
"""
    found = facts(read(ConsoleSource, tmp_path / "x.log", text + live_console(10)))
    assert found["train_rows"] == 1200
    assert found["max_steps"] in {225, 100}
    assert found["num_train_epochs"] == 3
    assert found["gradient_accumulation_steps"] == 4
    assert found["total_train_batch_size"] == 16
    assert found["trainable_parameters"] == 10
    assert found["learning_rate"] == 0.0002
    assert found["per_device_train_batch_size"] == 2
    assert "seed" not in found


def test_nanogpt_lines_give_loss_and_eval_loss(tmp_path: Path) -> None:
    text = "iter 8: loss 1.2500, time 12.5ms\nstep 10: train loss 0.9, val loss 3.5\niter 11: loss 1.1, time 9ms\n"
    found = rows(read(ConsoleSource, tmp_path / "x.log", text))
    assert [(one.step, one.values) for one in found] == [
        (8, {"loss": 1.25}),
        (10, {"loss": 0.9, "eval_loss": 3.5}),
        (11, {"loss": 1.1}),
    ]


def test_a_loss_behind_or_before_a_bar_is_a_row(tmp_path: Path) -> None:
    behind = "".join(f"\rSFT:   3%|▎   | {n}/99 [00:10<01:00, 1.0s/it, loss {2 / n:.4f}, lr=1e-4]" for n in (4, 4, 5))
    found = rows(read(ConsoleSource, tmp_path / "x.log", behind + "\n"))
    assert [(one.step, one.values) for one in found] == [
        (4, {"loss": 0.5, "learning_rate": 1e-4}),
        (5, {"loss": 0.4, "learning_rate": 1e-4}),
    ]
    before = "".join(
        f"Epoch 1, Step {n}, Loss: {2 / (n + 1):.4f}:   1%|   | {n + 2}/99 [00:01<01:00,  1.0s/it]\n" for n in (0, 1)
    )
    assert steps(before, tmp_path) == [2, 3]


def test_kaggle_wraps_the_log_in_json(tmp_path: Path) -> None:
    inner = live_console(20)
    pieces = [inner[at : at + 90] for at in range(0, len(inner), 90)]
    wrapped = (
        "[" + "\n,".join(json.dumps({"stream_name": "stdout", "time": 1.5, "data": piece}) for piece in pieces) + "\n]"
    )
    found = rows(read(ConsoleSource, tmp_path / "x.log", wrapped))
    assert [one.step for one in found] == [5, 10, 15, 20]
    assert found[0].time is None


def test_a_row_torn_by_a_bar_is_mended(tmp_path: Path) -> None:
    line = row(15)
    text = live_console(10) + line[:20] + bar(15, 100) + bar(16, 100) + line[20:] + "\n"
    assert steps(text, tmp_path) == [5, 10, 15]


def test_a_torn_last_line_is_read_when_the_log_is_over_and_counted_when_it_is_no_row(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    path.write_text(row(1) + "\n" + row(2))
    source = ConsoleSource(path)
    assert len(list(source.poll())) == 1
    assert len(list(source.finish())) == 1


@pytest.mark.parametrize("end", ["\n", "\r\n"])
def test_line_ends_of_windows_and_bytes_that_are_no_text_do_no_harm(end: str, tmp_path: Path) -> None:
    data = b"\xff\xfe\x80 noise" + end.encode() + "".join(f"{row(step)}{end}" for step in (1, 2)).encode() + b"\0\0\x81"
    assert steps(data, tmp_path) == [1, 2]


def test_numpy_numbers_are_read_and_other_values_left_out() -> None:
    raw = b"{'loss': np.float64(0.5), 'eval_f1': tensor(0.25, device='cuda:0'), 'a': [1], 'c': True, 'd': '1e3'}"
    assert parse_dict(raw) == {"loss": 0.5, "eval_f1": 0.25, "d": 1000.0}


_NAMES = st.text(st.characters(codec="utf-8", exclude_characters="{}\r\n"), max_size=8) | st.sampled_from(
    ["loss", "epoch"]
)
_VALUES = (
    st.floats() | st.integers() | st.booleans() | st.none() | st.text(max_size=6) | st.lists(st.integers(), max_size=2)
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.dictionaries(_NAMES, _VALUES | st.floats().map(repr), max_size=5), max_size=6))
def test_the_fast_way_reads_dicts_as_the_exact_way_does(found: list[dict[str, object]]) -> None:
    dicts = [str(one).encode() for one in found]
    dicts = [raw for raw in dicts if console_text.DICT.fullmatch(raw)]
    assert list(map(repr, decode_dicts(dicts))) == [repr(parse_dict(raw)) for raw in dicts]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(
        st.sampled_from(
            [b"{'a': 1}", b"{'a': '1'}", b"{'a':1,}", b"{'a'}", b"{'a': nan}", b"{'a': \"1\"}", b"{'\xff': 1}"]
        )
    )
)
def test_odd_dicts_among_good_ones_are_read_alike(dicts: list[bytes]) -> None:
    assert list(map(repr, decode_dicts(dicts))) == [repr(parse_dict(raw)) for raw in dicts]


@settings(max_examples=60, deadline=None)
@given(every=st.integers(1, 12), bars=st.integers(1, 6), words=st.booleans(), noise=st.integers(0, 3))
def test_the_fast_way_through_rows_tells_the_steps_that_the_slow_way_tells(
    every: int, bars: int, words: bool, noise: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    text = bar(0, 500)
    for step in range(every, 40 * every, every):
        text += "".join(bar(max(1, step - back), 500) for back in range(bars))
        text += "\r" + row(step, words=words) + "\n"
        if noise and step % (noise * every * 3) == 0:
            text += "some warning\n" * noise
    path = tmp_path_factory.mktemp("console") / "x.log"
    fast = read(ConsoleSource, path, text)
    source = ConsoleSource(path, chunk=1_500)  # the fastest way begins with the second block
    assert [*source.poll(), *source.finish()] == fast
    # A line with a brace in quotes sends the whole block down the slow way.
    slow = read(ConsoleSource, path, text + "{'unclosed\n")
    assert fast == slow
