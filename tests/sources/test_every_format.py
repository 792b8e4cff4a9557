"""What holds for every source: laziness, cursors, blocks, absence, growth."""

from __future__ import annotations

import contextlib
import json
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lorawatch.source import Source, SourceError

from .samples import ALL_FORMATS, LINE_FORMATS, read, rows, show, shown

_FAST = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_a_missing_file_gives_nothing_and_is_read_once_it_appears(name: str, tmp_path: Path) -> None:
    make, data = ALL_FORMATS[name]
    path = tmp_path / "run.log"
    source: Source = make(path)
    assert list(source.poll()) == []
    path.write_bytes(data)
    assert len(rows(source.poll())) > 1


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_a_cursor_taken_anywhere_goes_on_with_exactly_the_rest(name: str, tmp_path: Path) -> None:
    make, data = ALL_FORMATS[name]
    whole = shown(read(make, tmp_path / "run.log", data))
    for stop in range(len(whole) + 1):
        source: Source = make(tmp_path / "run.log")
        taken = []
        for record in source.poll() if stop else ():
            taken.append(show(record))
            if len(taken) == stop:
                break
        cursor = json.loads(json.dumps(source.cursor()))
        other: Source = make(tmp_path / "run.log")
        other.resume(cursor)
        assert taken + shown([*other.poll(), *other.finish()]) == whole, stop


@pytest.mark.parametrize("name", LINE_FORMATS)
@_FAST
@given(seed=st.integers(0, 10**9))
def test_any_split_of_the_bytes_gives_the_same_records(name: str, seed: int, tmp_path: Path) -> None:
    chance = random.Random(seed)  # noqa: S311 - the same each time
    make, data = LINE_FORMATS[name]
    whole = shown(read(make, tmp_path / "whole.log", data))
    path = tmp_path / "grown" / "whole.log"
    path.parent.mkdir(exist_ok=True)
    path.unlink(missing_ok=True)
    source: Source = make(path)
    got = []
    with path.open("wb") as file:
        at = 0
        while at < len(data):
            size = chance.choice([1, 7, 100, 1_000, 5_000])
            file.write(data[at : at + size])
            file.flush()
            at += size
            got += shown(source.poll()) if name != "tensorboard" else []
            if chance.random() < 0.2:
                cursor = json.loads(json.dumps(source.cursor()))
                source = make(path)
                source.resume(cursor)
    got += shown([*source.poll(), *source.finish()])
    assert got == whole


@pytest.mark.parametrize("name", LINE_FORMATS)
@pytest.mark.parametrize("chunk", [600, 1_000, 4_096])
def test_the_size_of_a_chunk_does_not_matter(name: str, chunk: int, tmp_path: Path) -> None:
    make, data = LINE_FORMATS[name]
    whole = shown(read(make, tmp_path / "run.log", data))
    source: Source = make(tmp_path / "run.log", chunk=chunk)
    assert shown([*source.poll(), *source.finish()]) == whole


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_resuming_with_the_first_cursor_reads_all_again(name: str, tmp_path: Path) -> None:
    make, data = ALL_FORMATS[name]
    (tmp_path / "run.log").write_bytes(data)
    source: Source = make(tmp_path / "run.log")
    start = source.cursor()
    first = shown([*source.poll(), *source.finish()])
    source.resume(start)
    assert shown([*source.poll(), *source.finish()]) == first


@pytest.mark.parametrize("name", ALL_FORMATS)
@_FAST
@given(junk=st.binary(max_size=600), at=st.integers(0, 10_000))
def test_garbage_in_the_middle_never_raises_anything_but_a_source_error(
    name: str, junk: bytes, at: int, tmp_path: Path
) -> None:
    make, data = ALL_FORMATS[name]
    at %= len(data)
    with contextlib.suppress(SourceError):
        read(make, tmp_path / "run.log", data[:at] + junk + data[at:])


@pytest.mark.parametrize("name", ALL_FORMATS)
def test_a_directory_or_fifo_in_the_place_of_a_file_is_a_source_error(name: str, tmp_path: Path) -> None:
    import os

    make, _ = ALL_FORMATS[name]
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match="not a regular file"):
        read(make, tmp_path / "pipe")
