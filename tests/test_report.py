"""``lorawatch report``: what it writes, where, its exit code, and one clear line for each bad input."""

from __future__ import annotations

import json
import math
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from lorawatch.cli.main import VERBS, main
from lorawatch.records import LifecycleEvent, MetricRow
from tests.report.runs import diverging, rows, told, write

pytest.importorskip("pandas")

RUNS = Path(__file__).parent / "runs"


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(VERBS, "report", VERBS.get("report", "write a report of one run"))


def report(capsys: pytest.CaptureFixture[str], *words: str | Path) -> tuple[int, str, str]:
    code = main(["report", *map(str, words)])
    out, err = capsys.readouterr()
    return code, out, err


def test_a_page_is_written_and_one_line_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = report(capsys, RUNS / "lr-too-high", "--select", "loss,grad,lr,sig")
    assert (code, err) == (1, "")
    assert re.fullmatch(r"report\.html: 3 findings, 2 critical, \d+ kB\n", out)
    assert (tmp_path / "report.html").read_text().startswith("<!doctype html>")


@pytest.mark.parametrize("name", ["healthy-sft", "lr-too-high", "oscillating"])
def test_the_exit_code_is_that_of_check(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    for more in ([], ["--fail-on", "critical"], ["--fail-on", "never"], ["--ignore", "loss,grad,sig,lr"]):
        expected = main(["check", str(RUNS / name), *more])
        capsys.readouterr()
        assert report(capsys, RUNS / name, *more)[0] == expected


def test_the_page_goes_to_standard_output_when_asked_to(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = report(capsys, RUNS / "healthy-sft", "-o", "-")
    assert code == 0
    assert out.startswith("<!doctype html>")
    assert out.endswith("</html>\n")


def test_markdown_goes_to_standard_output_by_itself_and_to_a_file_when_asked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, out, _ = report(capsys, RUNS / "lr-too-high", "--format", "markdown")
    assert out.startswith("## lr\\-too\\-high" if "lr\\-" in out else "## lr-too-high")
    assert report(capsys, RUNS / "lr-too-high", "--format", "markdown", "-o", tmp_path / "a.md")[1].startswith(
        str(tmp_path / "a.md")
    )
    assert (tmp_path / "a.md").read_text() == out


def test_the_same_run_gives_the_same_page(capsys: pytest.CaptureFixture[str]) -> None:
    first, second = (report(capsys, RUNS / "overfit", "-o", "-")[1] for _ in range(2))
    assert first == second


def test_a_page_is_written_over_the_one_before_and_leaves_nothing_else(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "report.html").write_text("old")
    (tmp_path / "report.html").chmod(0o640)
    report(capsys, RUNS / "healthy-trl")
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() != "old"
    assert (tmp_path / "report.html").stat().st_mode & 0o777 == 0o640


def test_a_link_stays_a_link(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "real.html").write_text("old")
    (tmp_path / "link.html").symlink_to("real.html")
    report(capsys, RUNS / "healthy-trl", "-o", "link.html")
    assert (tmp_path / "link.html").is_symlink()
    assert (tmp_path / "real.html").read_text().startswith("<!doctype html>")


def test_a_report_beside_the_log_does_not_change_what_is_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = write(tmp_path / "run", rows(diverging()))
    _, first, _ = report(capsys, folder, "-o", "-")
    for form in ("html", "markdown"):
        report(capsys, folder, "--format", form, "-o", folder / f"report.{form}")
    assert report(capsys, folder, "-o", "-")[1] == first


def test_no_such_run(capsys: pytest.CaptureFixture[str]) -> None:
    assert report(capsys, "nowhere") == (
        2, "", "lorawatch: nowhere: no such file or folder; check the path (a run's output_dir, or its log)\n",
    )  # fmt: skip


def test_nothing_was_logged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "run", [LifecycleEvent("started", 0)])
    code, out, err = report(capsys, folder)
    assert (code, out) == (2, "")
    assert err == f"lorawatch: {folder}: holds no logged metrics\n"
    assert not (tmp_path / "report.html").exists()


def test_several_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in "abcd":
        write(tmp_path / "all" / name, rows([1.0, 0.9]))
    code, _, err = report(capsys, tmp_path / "all")
    assert code == 2
    assert err == f"lorawatch: {tmp_path / 'all'}: holds 4 runs (a, b, c and 1 more); give one of them\n"


@pytest.mark.parametrize(
    ("output", "said"),
    [
        ("folder", "folder: a folder; give a file's name, folder/report.html"),
        ("no/such/report.html", "no/such/report.html: there is no folder"),
        ("run/lorawatch.jsonl", "run/lorawatch.jsonl: a file of the run itself; choose another file with -o"),
        ("x" * 300, "cannot be written (File name too long); choose another file with -o"),
        ("a\0b", "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_written_is_told_in_one_line(
    output: str, said: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "folder").mkdir()
    log = write(tmp_path / "run", rows([1.0, 0.9])) / "lorawatch.jsonl"
    before = log.read_bytes()
    code, out, err = report(capsys, tmp_path / "run", "-o", output)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert said in err
    assert log.read_bytes() == before


def test_a_write_that_fails_leaves_the_old_page_and_no_other_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Path, target: Path) -> Path:
        raise OSError(28, "No space left on device")

    (tmp_path / "report.html").write_text("old")
    monkeypatch.setattr(Path, "replace", full)
    code, _, err = report(capsys, RUNS / "healthy-trl")
    assert code == 2
    assert "cannot be written (No space left on device)" in err
    assert [file.name for file in tmp_path.iterdir()] == ["report.html"]
    assert (tmp_path / "report.html").read_text() == "old"


def test_a_read_only_page_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "report.html").write_text("kept")
    monkeypatch.setattr(os, "access", lambda *_: False)
    code, _, err = report(capsys, RUNS / "healthy-trl")
    assert code == 2
    assert "read-only" in err
    assert (tmp_path / "report.html").read_text() == "kept"


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no FIFOs here")
def test_a_pipe_is_written_to_and_not_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = subprocess.Popen([sys.executable, "-c", f"print(len(open({str(pipe)!r}).read()))"], stdout=subprocess.PIPE)
    assert report(capsys, RUNS / "healthy-trl", "-o", pipe)[0] == 0
    assert int(reader.communicate(timeout=30)[0]) > 10_000
    assert pipe.is_fifo()


def test_without_pandas_it_says_what_to_install(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [one for one in sys.modules if one.startswith("lorawatch.report")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "pandas", None)
    code, out, err = report(capsys, RUNS / "healthy-trl")
    assert (code, out) == (2, "")
    assert err == "lorawatch: a report needs pandas: pip install 'lorawatch[report]'\n"


def test_a_foreign_log_with_words_for_numbers_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    history = [{"step": step, "loss": math.nan if step > 30 else 2.0, "grad_norm": "nan"} for step in range(1, 60)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"global_step": 59, "log_history": history}))
    code, out, err = report(capsys, tmp_path / "trainer_state.json", "-o", "-")
    assert (code, err) == (1, "")
    assert "not finite" in out


def test_only_the_last_of_several_runs_in_one_log_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    first = [LifecycleEvent("started", 0), *rows(diverging()), LifecycleEvent("ended", 600)]
    second = [LifecycleEvent("started", 0), *rows([2.0, 1.9, 1.8]), LifecycleEvent("ended", 15)]
    folder = write(tmp_path / "run", [*first, *second])
    code, out, _ = report(capsys, folder, "--format", "markdown")
    assert code == 0
    assert "step 15," in out
    assert "The log holds 2 runs, one after another; this is the last of them." in out
    assert "| `loss` | 3 | 2 | 1.8 | 1.8 | 1.9 | 2 |" in out


def test_what_a_resumed_run_did_over_stands_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = rows([2.0, 1.5, 9.0, 9.0])
    again = [MetricRow(step, {"loss": loss}) for step, loss in ((15, 1.4), (20, 1.3))]
    folder = write(tmp_path / "run", [*before, LifecycleEvent("resumed", 10), *again])
    _, out, _ = report(capsys, folder, "--format", "markdown")
    assert "| `loss` | 4 | 2 | 1.3 | 1.3 | 1.45 | 2 |" in out
    assert "Resumed from step 10" in out


def test_markdown_and_page_tell_the_same_of_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write(tmp_path / "run", told())
    known = ["--select", "loss,eval,mem,sig,grad,lr,perf,host,hw"]
    _, page, _ = report(capsys, folder, "-o", "-", *known)
    _, text, _ = report(capsys, folder, "--format", "markdown", *known)
    for said in (
        "learning_rate: 6.7e-05", "Training loss is blowing up", "loss/blow-up", "1,235,814,400 parameters",
        "Largest update: 1.73% of the base weight", "What is the capital of France?", "2 tokens, ended, wrong",
        "7,120", "gate_prj", "adapter effective rank", "base/model-1b", "hw/throttle", "4 of 62",
    ):  # fmt: skip
        assert said in page.replace("&#x27;", "'")
        assert said in text.replace("\\", "")
