"""``lorawatch check``: exit codes, formats, and one clear line for each bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorawatch.cli.main import main

SCHEMA = Path(__file__).parent.parent / "docs" / "check.schema.json"


def jsonl(file: Path, losses: list[float], **more: float) -> Path:
    file.parent.mkdir(parents=True, exist_ok=True)
    rows = [{"step": 10 * (index + 1), "loss": loss, **more} for index, loss in enumerate(losses)]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


DIVERGING = [2.5 - index / 50 for index in range(60)] + [1.3 + index / 10 for index in range(40)]
HEALTHY = [1.0 + 1.5 * 0.95**index + 0.03 * (-1) ** (index // 3) for index in range(100)]


def check(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(["check", *words])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_failed_run_exits_with_1_and_says_what_why_and_what_to_change(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code, out, err = check(capsys, str(jsonl(tmp_path / "run" / "log.jsonl", DIVERGING)))
    assert code == 1
    assert err == ""
    assert "Training loss is diverging" in out
    assert "next:  learning_rate" in out


def test_a_healthy_run_exits_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, str(jsonl(tmp_path / "run" / "log.jsonl", HEALTHY)))
    assert code == 0
    assert "log.jsonl" in out or "run" in out


@pytest.mark.parametrize(("fail_on", "code"), [("info", 1), ("warning", 1), ("critical", 1), ("never", 0)])
def test_fail_on_decides_the_exit_code(
    fail_on: str, code: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert check(capsys, str(jsonl(tmp_path / "a.jsonl", DIVERGING)), "--fail-on", fail_on)[0] == code


def test_ignored_rules_say_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = check(capsys, str(jsonl(tmp_path / "a.jsonl", DIVERGING)), "--ignore", "loss,lr,sig,eval,grad")
    assert code == 0
    assert "no findings" in out


def test_json_keeps_its_schema_and_is_strict_with_nan(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    jsonl(tmp_path / "a" / "log.jsonl", DIVERGING, grad_norm=float("nan"))
    jsonl(tmp_path / "b" / "log.jsonl", HEALTHY)
    code, out, _ = check(capsys, str(tmp_path / "a"), str(tmp_path / "b"), str(tmp_path / "absent"), "--format", "json")

    def refuse(constant: str) -> Any:
        raise AssertionError(f"{constant} is not strict JSON")

    document = json.loads(out, parse_constant=refuse)
    jsonschema.Draft202012Validator(json.loads(SCHEMA.read_text())).validate(document)
    assert code == 1
    assert [run["run"] for run in document["runs"]] == ["a", "b"]
    assert len(document["errors"]) == 1
    findings = document["runs"][0]["findings"]
    assert findings
    assert sum(adjustment["next"] for finding in findings for adjustment in finding["adjustments"]) <= 1


def test_markdown_is_a_table_of_changes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = check(capsys, str(jsonl(tmp_path / "a.jsonl", DIVERGING)), "--format", "markdown")
    assert out.startswith("## ")
    assert "| **next** | " in out


def test_verbose_shows_sources_and_abstentions(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = check(capsys, str(jsonl(tmp_path / "a.jsonl", DIVERGING)), "-v")
    assert "source: jsonl a.jsonl" in out
    assert "abstained" in out


class TestBadInput:
    def one_line(self, capsys: pytest.CaptureFixture[str], *words: str) -> str:
        code, out, err = check(capsys, *words)
        assert code == 2
        assert out == ""
        assert len(err.splitlines()) == 1, err
        return err

    def test_a_path_that_is_missing(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert "absent" in self.one_line(capsys, str(tmp_path / "absent"))

    def test_a_folder_without_a_log(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "notes.txt").write_text("the loss was fine")
        assert str(tmp_path) in self.one_line(capsys, str(tmp_path))

    def test_an_empty_history(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        file = tmp_path / "trainer_state.json"
        file.write_text('{"log_history": [], "global_step": 0}')
        assert "trainer_state.json" in self.one_line(capsys, str(file))

    def test_an_empty_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "train.log").write_bytes(b"")
        assert "train.log" in self.one_line(capsys, str(tmp_path / "train.log"))

    def test_binary_garbage(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "train.log").write_bytes(bytes(range(256)) * 400)
        assert "train.log" in self.one_line(capsys, str(tmp_path / "train.log"))

    def test_a_line_without_end(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        with (tmp_path / "train.log").open("wb") as out:
            out.truncate(1 << 30)  # a sparse file: a 1 GB line of NUL
        assert "train.log" in self.one_line(capsys, str(tmp_path / "train.log"))

    def test_a_torn_json_document(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        (tmp_path / "trainer_state.json").write_text('{"log_history": [{"loss": 1.0, "st')
        assert "trainer_state.json" in self.one_line(capsys, str(tmp_path / "trainer_state.json"))

    def test_a_fifo_is_not_waited_for(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        import os

        os.mkfifo(tmp_path / "train.log")
        assert "not a regular file" in self.one_line(capsys, str(tmp_path / "train.log"))

    def test_what_is_readable_beside_it_is_still_judged(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        jsonl(tmp_path / "good" / "log.jsonl", DIVERGING)
        code, out, err = check(capsys, str(tmp_path / "absent"), str(tmp_path / "good"))
        assert code == 1
        assert "diverging" in out
        assert len(err.splitlines()) == 1

    def test_steps_that_run_backwards(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = "".join(json.dumps({"step": 1000 - step, "loss": 1.0}) + "\n" for step in range(100))
        (tmp_path / "log.jsonl").write_text(rows)
        assert check(capsys, str(tmp_path / "log.jsonl"))[0] in (0, 1)

    def test_nan_everywhere(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        rows = "".join(f'{{"step": {step}, "loss": NaN, "grad_norm": NaN}}\n' for step in range(1, 60))
        (tmp_path / "log.jsonl").write_text(rows)
        code, out, _ = check(capsys, str(tmp_path / "log.jsonl"))
        assert code == 1
        assert "CRITICAL" in out

    def test_a_name_that_would_act_on_the_terminal(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        jsonl(tmp_path / "run\x1b[31m\x07" / "log.jsonl", DIVERGING)
        _, out, _ = check(capsys, str(tmp_path))
        assert "\x1b" not in out
        assert "\x07" not in out

    def test_an_unknown_rule(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        err = self.one_line(capsys, str(tmp_path), "--select", "loss/spikes")
        assert "no rule matches 'loss/spikes'" in err


def test_what_was_dropped_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [{"step": step, "loss": 1.0, f"metric_{step}": 1.0} for step in range(1, 400)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    _, out, _ = check(capsys, str(tmp_path / "log.jsonl"))
    assert "144 values of metrics beyond the first 256 names were dropped" in out
