"""Live = replay: the same records give the same findings at the same steps, however they arrive.

That the callback finds the same as a replay of what it wrote is tested on real runs in tests/integrations.
"""

from __future__ import annotations

import contextlib
import json
import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lorawatch.registry import RuleSet
from lorawatch.settings import Settings
from lorawatch.watch import FolderWatch, RunWatch, judge

RUNS = Path(__file__).parent / "runs"
CORPUS = Path(os.environ.get("LORAWATCH_CORPUS", Path(__file__).parent.parent.parent / "shared" / "runs"))
RULES = RuleSet(Settings())

Told = list[tuple[str, str, int, int | None, str, str]]


def told(watches: list[RunWatch]) -> Told:
    """What was found, without what only a person sees."""
    return [
        (watch.run_name(index), one.rule, one.opened_step, one.resolved_step, one.severity.label, one.incident)
        for watch in sorted(watches, key=lambda watch: watch.path)
        for index, engine in enumerate(watch.engines)
        for one in engine.findings
    ]


def pieces(data: bytes, seed: str, most: int) -> Iterator[bytes]:
    """``data`` in pieces of random lengths, lines torn anywhere."""
    rng = random.Random(seed)  # noqa: S311
    start = 0
    while start < len(data):
        size = rng.randint(1, max(2, 2 * len(data) // most))
        yield data[start : start + size]
        start += size


def grow(original: Path, target: Path, seed: str) -> Iterator[None]:
    """Let ``target`` become ``original`` as a trainer would write it: appended, or rewritten with a longer history."""
    if original.suffix == ".json":
        document: Any = None
        with contextlib.suppress(ValueError):
            document = json.loads(original.read_bytes())
        history = document.get("log_history") if isinstance(document, dict) else None
        if not isinstance(history, list):
            shutil.copyfile(original, target)
            yield
            return
        for share in (3, 2, 1):
            target.write_text(json.dumps({**document, "log_history": history[: len(history) // share]}))
            yield
        return
    for piece in pieces(original.read_bytes(), seed, most=25):
        with target.open("ab") as out:
            out.write(piece)
        yield


def live(original: Path, folder: Path) -> FolderWatch:
    """Follow a file or a folder while it is written, and finish as ``tail`` does."""
    folder.mkdir()
    target = folder / original.name
    watch = FolderWatch(target, RULES)
    watch.poll()
    files = sorted(path for path in original.rglob("*") if path.is_file()) if original.is_dir() else [original]
    growing = []
    for file in files:
        place = target / file.relative_to(original) if original.is_dir() else target
        place.parent.mkdir(parents=True, exist_ok=True)
        growing.append(grow(file, place, str(file.name)))
    while growing:
        growing = [one for one in growing if next(one, StopIteration) is not StopIteration]
        watch.poll()
    return watch


def recorded() -> list[Path]:
    return sorted(path for path in RUNS.glob("*") if path.is_dir())


def public_logs() -> list[Path]:
    wanted = ("*.log", "*trainer_log*.jsonl", "*trainer_state*.json", "*tfevents*")
    files = [file for pattern in wanted for file in (CORPUS / "files").glob(f"*/{pattern}")]
    return sorted(file for file in files if file.stat().st_size < 400_000)


@pytest.mark.parametrize("run", recorded(), ids=lambda path: path.name)
def test_a_recorded_run_folder_gives_the_same_live_as_afterwards(run: Path, tmp_path: Path) -> None:
    followed = live(run, tmp_path / "live")
    before = told(followed.runs)
    followed.finish()
    after = told(judge([run], RULES).runs)
    assert told(followed.runs) == after
    assert before == after


@pytest.mark.skipif(not CORPUS.is_dir(), reason="the public logs are not here")
@pytest.mark.parametrize("file", public_logs(), ids=lambda path: f"{path.parent.name}/{path.name}")
def test_a_public_log_gives_the_same_live_as_afterwards(file: Path, tmp_path: Path) -> None:
    followed = live(file, tmp_path / "live")
    followed.finish()
    # The copy, because the original may have files beside it that state facts.
    assert told(followed.runs) == told(judge([followed.path], RULES).runs)
