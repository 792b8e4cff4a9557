"""What is shown where there is no terminal."""

from __future__ import annotations

import io
import json
import subprocess
import sys
from typing import Any

import pytest

from lorawatch.terminal import JsonlView, PlainView, View, make_view
from tests.terminal.synthetic import FakeClock, SyntheticRun, SyntheticWatch
from tests.terminal.test_live_view import HOSTILE, hostile


class Terminal(io.StringIO):
    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


def listen(view: View, run: SyntheticRun) -> None:
    run.engine.listeners.append(lambda change, finding: view.heard(run, change, finding))


def objects(out: io.StringIO) -> list[dict[str, Any]]:
    def refuse(name: str) -> None:
        raise AssertionError(f"not strict JSON: {name}")

    return [json.loads(line, parse_constant=refuse) for line in out.getvalue().splitlines()]


class TestPlain:
    def test_one_line_an_event_with_what_to_do_next(self) -> None:
        out, run = io.StringIO(), SyntheticRun()
        view = PlainView(out, "http://127.0.0.1:1/metrics")
        listen(view, run)
        watch = SyntheticWatch([run])
        run.train(range(1, 10))
        view.update(watch)
        run.fail(10)
        run.train(range(20, 30))
        run.end()
        view.update(watch)
        view.close("one\ntwo")
        lines = out.getvalue().splitlines()
        assert lines[0] == "metrics: http://127.0.0.1:1/metrics"
        assert lines[1] == "qwen-sft: sft, console train.log, trainer_state trainer_state.json"
        assert lines[2].startswith("qwen-sft step 9, loss ")
        [opened] = [line for line in lines if "loss/too-high opened" in line]
        assert opened.startswith(
            "qwen-sft step 11: WARNING loss/too-high opened: Training loss is too high. loss is at"
        )
        following = lines[lines.index(opened) + 1]
        assert following.startswith("qwen-sft next: learning_rate: 0.002 → 0.00067 – the loss rises")
        assert following.endswith("(resume, high confidence; cost: the steps since that checkpoint)")
        assert any("WARNING loss/too-high resolved" in line for line in lines)
        assert lines[-3:] == ["qwen-sft ended at step 29", "one", "two"]

    def test_progress_is_told_by_steps_not_at_every_row(self) -> None:
        out, run = io.StringIO(), SyntheticRun()
        view, watch = PlainView(out), SyntheticWatch([run])
        run.learn(max_steps=1000)
        for step in range(1, 1001):
            run.train([step])
            view.update(watch)
        assert len([line for line in out.getvalue().splitlines() if " of 1000, loss" in line]) == 21

    def test_what_it_waits_for_and_what_it_cannot_read_is_said_once(self) -> None:
        out = io.StringIO()
        view, watch = PlainView(out), SyntheticWatch(problems={"/x": "/x: permission denied"})
        for _ in range(3):
            view.update(watch)
        assert out.getvalue().splitlines() == [
            "cannot read: /x: permission denied",
            "waiting for /runs to hold a training log",
        ]

    @pytest.mark.parametrize("payload", HOSTILE)
    def test_a_line_stays_one_line_and_plain(self, payload: str) -> None:
        out, watch = io.StringIO(), hostile(payload)
        view = PlainView(out)
        view.update(watch)
        view.heard(watch.runs[0], "opened", watch.runs[0].engine.findings[-1])
        for line in out.getvalue().split("\n"):
            assert line.replace("漢字", "").isprintable()

    def test_a_stream_that_cannot_hold_a_character_gets_another(self) -> None:
        raw = io.BytesIO()
        stream = io.TextIOWrapper(raw, encoding="ascii")
        view = PlainView(stream)
        view.close("0.002 → 0.00067")
        assert raw.getvalue() == b"0.002 ? 0.00067\n"


class TestJsonl:
    def test_one_strict_object_an_event(self) -> None:
        out, run = io.StringIO(), SyntheticRun()
        view, watch = JsonlView(out), SyntheticWatch([])
        listen(view, run)
        view.update(watch)
        view.update(watch)
        watch.runs.append(run)
        run.row(1, loss=float("nan"), grad_norm=float("-inf"))
        view.update(watch)
        view.update(watch)
        run.fail(2)
        view.update(watch)
        run.end()
        view.update(watch)
        view.close("done")
        told = objects(out)
        assert [one["event"] for one in told] == [
            "waiting", "run", "progress", "finding", "finding", "finding", "progress", "progress", "end",
        ]  # fmt: skip
        assert told[2]["metrics"] == {"loss": "NaN", "grad_norm": "-Infinity"}
        opened = next(one for one in told if one["event"] == "finding" and one["finding"]["rule"] == "loss/too-high")
        assert (opened["run"], opened["change"], opened["step"]) == ("qwen-sft", "opened", 3)
        assert opened["next"]["parameter"] == "learning_rate"
        assert told[-2]["ended"] is True

    @pytest.mark.parametrize("payload", HOSTILE)
    def test_it_is_ascii_whatever_a_log_holds(self, payload: str) -> None:
        out, watch = io.StringIO(), hostile(payload)
        view = JsonlView(out)
        view.update(watch)
        view.heard(watch.runs[0], "opened", watch.runs[0].engine.findings[-1])
        view.close(payload)
        assert all(line.isascii() and line.isprintable() for line in out.getvalue().split("\n"))
        assert objects(out)[-1]["summary"] == payload


class TestChoice:
    def test_a_terminal_gets_the_live_view(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from lorawatch.terminal_live import LiveView

        monkeypatch.setenv("TERM", "xterm-256color")
        out = Terminal()
        view = make_view(out, color=False, clock=FakeClock())
        assert isinstance(view, LiveView)
        view.close("done")

    def test_a_dumb_terminal_gets_plain_lines(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TERM", "dumb")
        assert isinstance(make_view(Terminal()), PlainView)

    def test_a_pipe_gets_plain_lines(self) -> None:
        assert isinstance(make_view(io.StringIO()), PlainView)

    def test_json_lines_are_given_on_a_terminal_too_when_asked_for(self) -> None:
        assert isinstance(make_view(Terminal(), form="jsonl"), JsonlView)

    def test_lines_for_a_pipe_load_no_terminal_library(self) -> None:
        code = (
            "import io, sys; from lorawatch.terminal import make_view; make_view(io.StringIO()).close('x');"
            "sys.exit('rich' in sys.modules)"
        )
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
