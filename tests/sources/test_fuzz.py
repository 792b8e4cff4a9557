"""Mutated lines and files through every parser: no exception but SourceError, bounded memory.

LORAWATCH_FUZZ=full runs 200,000 lines and 2,000 files; otherwise a hundredth of it.
"""

from __future__ import annotations

import os
import random
import resource
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from lorawatch.records import Record
from lorawatch.source import SourceError
from lorawatch.sources.discover import source_for_file
from lorawatch.sources.facts import read_fact_file

from .samples import ALL_FORMATS, read

FULL = os.environ.get("LORAWATCH_FUZZ") == "full"
LINES = 200_000 if FULL else 2_000
FILES = 2_000 if FULL else 40
_PIECES = [
    b"{'",
    b"'}",
    b"\r",
    b"nan",
    b"inf",
    b"1e999",
    b"\xff",
    b"\0",
    b"\x1b[",
    b"/",
    b" [",
    b"%|",
    b"}",
    b'{"',
    b"--",
    b"9" * 30,
    b"'loss'",
]


def mutated(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(changed) + 1)
        match chance.randrange(5):
            case 0:
                changed[at : at + chance.randint(1, 9)] = b""
            case 1:
                changed[at:at] = chance.choice(_PIECES)
            case 2:
                changed[at : at + 1] = bytes([chance.randrange(256)])
            case 3:
                changed[at:at] = changed[chance.randrange(len(changed) + 1) :][:50]
            case _:
                changed[at : at + 5] = chance.randbytes(5)
    return bytes(changed)


def memory() -> int:
    """Peak memory so far, in KiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def survives(reader: Callable[[], object]) -> None:
    """Read, and allow for nothing but a SourceError of one line."""
    message = ""
    try:
        reader()
    except SourceError as error:
        message = str(error)
    assert "\n" not in message


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_mutated_lines_never_raise(name: str, tmp_path: Path) -> None:
    chance = random.Random(f"lines {name}")  # noqa: S311 - the same each time
    make, data = ALL_FORMATS[name]
    lines = data.split(b"\n")
    before = memory()
    for _ in range(LINES // 200):
        text = b"\n".join(mutated(chance, chance.choice(lines)) for _ in range(200))
        survives(partial(read, make, tmp_path / "x.log", text))
    assert memory() - before < 100 << 10


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_truncated_and_spliced_files_never_raise(name: str, tmp_path: Path) -> None:
    chance = random.Random(f"files {name}")  # noqa: S311 - the same each time
    make, data = ALL_FORMATS[name]
    others = [other for _, other in ALL_FORMATS.values()]
    before = memory()
    for number in range(FILES):
        other = chance.choice(others)
        cut = data[: chance.randrange(len(data))]
        spliced = [cut, cut + other[chance.randrange(len(other)) :], mutated(chance, data)]
        path = tmp_path / chance.choice(["x.log", "x.json", "x.jsonl", "trainer_state.json", "x.yaml"])
        survives(partial(read, make, path, spliced[number % 3]))
        survives(partial(sniffed, path))
        survives(partial(read_fact_file, path))
    assert memory() - before < 100 << 10


def sniffed(path: Path) -> list[Record]:
    return list(source_for_file(path).poll())
