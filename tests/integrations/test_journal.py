"""The journal: whole lines, whatever a process before it left behind, on systems with less to offer too."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorawatch.integrations.journal import Journal
from lorawatch.records import MetricRow
from lorawatch.sources.lorawatch_jsonl import encode


@pytest.mark.parametrize("windows", [False, True])
def test_a_torn_line_is_left_and_a_new_one_started(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, windows: bool
) -> None:
    if windows:
        monkeypatch.delattr(os, "pread")
    path = tmp_path / "new" / "lorawatch.jsonl"
    rows = [MetricRow(step, {"loss": 1.0}) for step in (1, 2, 3)]
    journal = Journal(path)
    journal.write(rows[:1])
    journal.close()
    with path.open("ab") as file:
        file.write(b'{"type":"met')
    journal = Journal(path)
    journal.write(rows[1:])
    journal.close()
    assert path.read_bytes() == encode(rows[0]) + b'{"type":"met\n' + encode(rows[1]) + encode(rows[2])
