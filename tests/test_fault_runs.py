"""A gate: recorded runs of the reference trainer, broken on purpose and healthy, must be judged as they were.

``python benchmarks/diagnosis.py --keep`` records them.
"""

import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from lorawatch.findings import Finding, Severity
from lorawatch.registry import RuleSet
from lorawatch.settings import Settings
from lorawatch.watch import judge

RUNS = Path(__file__).parent / "fault_runs"
INDEX: list[dict[str, Any]] = json.loads((RUNS / "index.json").read_text(encoding="utf-8"))
FAULTY = [entry for entry in INDEX if entry["expected"]]
HEALTHY = [entry for entry in INDEX if not entry["expected"]]
LATER = 1.2
"""Share by which a finding may come later than it did when the run was recorded."""


def found_in(name: str, folder: Path) -> list[Finding]:
    """What ``check`` finds in a recorded run."""
    (folder / "lorawatch.jsonl").write_bytes(lzma.decompress((RUNS / f"{name}.jsonl.xz").read_bytes()))
    judged = judge([folder / "lorawatch.jsonl"], RuleSet(Settings()))
    return [finding for watch in judged.runs for engine in watch.engines for finding in engine.findings]


@pytest.mark.parametrize("entry", FAULTY, ids=lambda entry: str(entry["run"]))
def test_a_fault_is_caught_no_later_than_it_was(entry: dict[str, Any], tmp_path: Path) -> None:
    caught = [
        finding
        for one in entry["expected"]
        for finding in found_in(entry["run"], tmp_path)
        if finding.rule in one["rules"]
        and finding.severity >= Severity.parse(one["least"])
        and finding.opened_step >= one["from_step"]
    ]
    assert caught
    assert min(finding.opened_step for finding in caught) <= LATER * entry["opened_step"]


@pytest.mark.parametrize("entry", HEALTHY, ids=lambda entry: str(entry["run"]))
def test_a_healthy_run_stays_without_a_warning(entry: dict[str, Any], tmp_path: Path) -> None:
    assert not [one for one in found_in(entry["run"], tmp_path) if one.severity >= Severity.WARNING]


def test_there_are_enough_runs_to_be_a_gate() -> None:
    assert len(FAULTY) >= 25
    assert len(HEALTHY) >= 10
