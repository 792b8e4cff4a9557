"""Over a corpus of real logs, where there is one: beside the repository, or where LORAWATCH_CORPUS says."""

from __future__ import annotations

import csv
import os
from itertools import pairwise
from pathlib import Path

import pytest

from lorawatch.source import SourceError
from lorawatch.sources.discover import discover, source_for_file
from lorawatch.sources.facts import read_fact_file

from .samples import rows

CORPUS = Path(os.environ.get("LORAWATCH_CORPUS") or Path(__file__).parents[2] / "../shared/runs").resolve()
LISTED = CORPUS / "manifest.csv"
MANIFEST = list(csv.DictReader(LISTED.read_text().splitlines())) if LISTED.is_file() else []
pytestmark = pytest.mark.skipif(not MANIFEST, reason="no corpus of logs here (set LORAWATCH_CORPUS)")

EXCEPTIONS = {
    "tianti1__ECGMind": (0, 0),  # no trainer's log: lines "min_loss:…, val_loss:…" without a step
    "fablevi__ipex_csm_lora": (0, 0),  # sentences: "Epoch 1 validation loss: …"
    "hiyouga__LlamaFactory/issue_813": (4, 0),  # four hosts print each row
    "Phiwain__LLM": (366, 0),  # the bar is drawn twice at some steps; a step is one row
}


def of(kind: str) -> list[dict[str, str]]:
    return [entry for entry in MANIFEST if entry["kind"] == kind and not entry["file"].endswith(".wandb")]


@pytest.mark.parametrize("kind", ["trainer_state", "trainer_log", "console", "tfevents", "wandb", "other"])
def test_as_many_rows_are_read_as_there_are(kind: str) -> None:
    wrong = []
    for entry in of(kind):
        source = source_for_file(CORPUS / entry["file"])
        got = rows([*source.poll(), *source.finish()])
        counts = (sum("loss" in one.values for one in got), sum("eval_loss" in one.values for one in got))
        wanted = next((count for name, count in EXCEPTIONS.items() if name in entry["file"]), None)
        if counts != (wanted or (int(entry["n_train_points"]), int(entry["n_eval_points"]))):
            wrong.append((entry["file"], counts))
    assert wrong == []


def test_steps_of_training_rows_increase_and_end_where_the_run_did() -> None:
    for entry in of("console"):
        source = source_for_file(CORPUS / entry["file"])
        steps = [one.step for one in rows(source.poll()) if "loss" in one.values and one.step is not None]
        assert all(before < after for before, after in pairwise(steps)), entry["file"]
        assert not steps or steps[-1] <= max(int(entry["total_steps"]), 10 * len(steps)), entry["file"]


def test_no_file_raises_anything_but_a_source_error() -> None:
    read, messages = 0, []
    for path in sorted((CORPUS / "files").rglob("*")):
        if not path.is_file():
            continue
        try:
            source = source_for_file(path)
            read += len([*source.poll(), *source.finish()])
        except SourceError as error:
            messages.append(str(error))
        read_fact_file(path)
    assert read > 30_000
    assert not any("\n" in message for message in messages)


def test_every_folder_is_one_run_or_several_or_says_why_not() -> None:
    messages = []
    for folder in sorted((CORPUS / "files").iterdir()):
        try:
            names = [run.name for run in discover(folder)]
        except SourceError as error:
            messages.append(str(error))
        else:
            assert len(set(names)) == len(names)
    assert all("no training log" in message for message in messages)
    unrelated = CORPUS / "files" / "Ning-Guo__hotpotqa-agent"
    assert not unrelated.is_dir() or len(discover(unrelated)) >= 4
