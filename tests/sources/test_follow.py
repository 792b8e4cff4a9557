from __future__ import annotations

import json
import os
import resource
import threading
from pathlib import Path

import pytest

from lorawatch.source import SourceError
from lorawatch.sources.follow import FileFollower
from lorawatch.sources.notice import FileNotifier


def drain(follower: FileFollower) -> bytes:
    got = b""
    while block := follower.read():
        got += block
    return got


def test_only_whole_lines_are_returned_and_the_rest_waits(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\nthr")
    follower = FileFollower(path)
    assert drain(follower) == b"one\ntwo\n"
    with path.open("ab") as file:
        file.write(b"ee\n")
    assert drain(follower) == b"three\n"


def test_a_torn_last_line_is_given_at_the_end_and_once(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo")
    follower = FileFollower(path)
    assert drain(follower) == b"one\n"
    assert follower.finish() == b"two\n"
    assert follower.finish() == b""


def test_a_rotated_file_is_read_to_its_end_and_then_the_new_one(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n")
    follower = FileFollower(path)
    assert drain(follower) == b"one\n"
    with path.open("ab") as file:
        file.write(b"two\nthree")
    path.rename(tmp_path / "a.log.1")
    path.write_bytes(b"four\n")
    assert drain(follower) == b"two\nthree\nfour\n"


def test_a_copy_that_takes_the_place_of_the_file_goes_on_where_it_ended(tmp_path: Path) -> None:
    path, copy = tmp_path / "a.log", tmp_path / "copy"
    text = b"".join(b"line %d\n" % number for number in range(100))
    path.write_bytes(text[:600])
    follower = FileFollower(path)
    got = drain(follower)
    copy.write_bytes(text)
    copy.rename(path)
    assert got + drain(follower) == text
    assert follower.replacements == 0


def test_rotation_while_nobody_watched_is_found_by_the_cursor(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n")
    follower = FileFollower(path)
    drain(follower)
    cursor = json.loads(json.dumps(follower.cursor()))
    with path.open("ab") as file:
        file.write(b"two\n")
    path.rename(tmp_path / "a.log.1")
    path.write_bytes(b"three\n")
    other = FileFollower(path)
    other.resume(cursor)
    assert drain(other) == b"two\nthree\n"


@pytest.mark.parametrize("new", [b"x\n", b"four\n", b"one\nfive\nsix seven\n", b"much longer than what stood here\n"])
def test_a_file_truncated_and_written_anew_is_read_from_its_start(new: bytes, tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\nthree\n")
    follower = FileFollower(path)
    drain(follower)
    with path.open("r+b") as file:
        file.truncate(0)
        file.write(new)
    os.utime(path, ns=(1, 1))
    assert drain(follower) == new


def test_a_file_deleted_and_made_again_goes_on_in_the_same_stream(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n")
    follower = FileFollower(path)
    assert drain(follower) == b"one\n"
    path.unlink()
    assert drain(follower) == b""
    (tmp_path / "other").write_bytes(b"takes the inode")
    path.write_bytes(b"two\n")
    assert drain(follower) == b"two\n"


def test_a_cursor_of_another_file_starts_over(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\ntwo\n")
    follower = FileFollower(path)
    drain(follower)
    cursor = follower.cursor()
    path.write_bytes(b"uno\ndos\ntres\n")
    other = FileFollower(path)
    other.resume(cursor)
    assert drain(other) == b"uno\ndos\ntres\n"


def test_a_line_that_is_too_long_is_skipped_and_counted(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n" + b"x" * 5_000 + b"\ntwo\n")
    follower = FileFollower(path, chunk=100, line_limit=1_000)
    assert drain(follower) == b"one\ntwo\n"
    assert follower.skipped_lines == 1


def test_a_gigabyte_without_a_line_end_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    with path.open("wb") as file:
        file.write(b"one\n")
        file.truncate(1 << 30)  # sparse: NULs, as a truncated log has them
        file.seek(0, os.SEEK_END)
        file.write(b"\ntwo\n")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    follower = FileFollower(path)
    assert drain(follower) == b"one\ntwo\n"
    assert follower.skipped_lines == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 20 << 10


def test_the_bars_of_a_whole_run_in_one_line_do_not_hide_the_row_behind_them(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"\r 10%|  | 1/10 [00:01<00:09]" * 100 + b"\rrow\n")
    follower = FileFollower(path, chunk=100, line_limit=1_000, split_returns=True)
    assert drain(follower).endswith(b"\rrow\n")
    assert follower.skipped_lines == 0


def test_fifos_devices_and_folders_are_refused(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", Path("/dev/null"), tmp_path):
        with pytest.raises(SourceError, match="not a regular file"):
            FileFollower(path).read()


def test_an_unchanged_file_is_not_opened_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.log"
    path.write_bytes(b"one\n")
    follower = FileFollower(path)
    drain(follower)
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    assert follower.read() == b""


class FakeObserver:
    def __init__(self) -> None:
        self.watched: list[tuple[str, bool]] = []
        self.alive = False

    def schedule(self, handler: object, path: str, recursive: bool) -> None:
        self.watched.append((path, recursive))
        self.handler = handler

    def start(self) -> None:
        self.alive = True

    def stop(self) -> None:
        self.alive = False

    def join(self, timeout: float) -> None:
        pass

    def is_alive(self) -> bool:
        return self.alive


class FakeWake(threading.Event):
    """Never waits, and remembers how long it was asked to."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[float | None] = []

    def wait(self, timeout: float | None = None) -> bool:
        self.asked.append(timeout)
        return self.is_set()


def test_a_change_ends_the_wait_and_several_make_one_wake_up(tmp_path: Path) -> None:
    from watchdog.events import FileModifiedEvent

    observer, wake = FakeObserver(), FakeWake()
    pauses: list[float] = []
    notifier = FileNotifier(tmp_path, wake=wake, pause=pauses.append, observer=lambda: observer)
    assert not notifier.wait(60)
    assert observer.watched == [(str(tmp_path), True)]
    for _ in range(3):
        observer.handler.dispatch(FileModifiedEvent("x"))  # type: ignore[attr-defined]
    assert notifier.wait(60)
    assert not notifier.wait(60)
    assert pauses == [0.2]
    assert wake.asked == [5.0, 5.0, 5.0]
    notifier.close()
    assert not observer.alive


def test_reading_a_file_is_no_change(tmp_path: Path) -> None:
    from watchdog.events import FileClosedNoWriteEvent, FileOpenedEvent

    observer, wake = FakeObserver(), FakeWake()
    notifier = FileNotifier(tmp_path, wake=wake, pause=lambda _: None, observer=lambda: observer)
    notifier.wait(1)
    observer.handler.dispatch(FileOpenedEvent("x"))  # type: ignore[attr-defined]
    observer.handler.dispatch(FileClosedNoWriteEvent("x"))  # type: ignore[attr-defined]
    assert not notifier.wait(1)


def test_where_watching_is_impossible_it_polls_every_second(tmp_path: Path) -> None:
    def refuse() -> FakeObserver:
        raise OSError("inotify limit reached")

    wake = FakeWake()
    notifier = FileNotifier(tmp_path, wake=wake, observer=refuse)
    assert not notifier.wait(60)
    assert not notifier.watching
    assert wake.asked == [1.0]


def test_a_missing_root_is_watched_once_it_appears(tmp_path: Path) -> None:
    observer, wake = FakeObserver(), FakeWake()
    notifier = FileNotifier(tmp_path / "run", wake=wake, observer=lambda: observer)
    notifier.wait(60)
    assert observer.watched == [(str(tmp_path), False)]
    (tmp_path / "run").mkdir()
    notifier.wait(60)
    assert observer.watched[-1] == (str(tmp_path / "run"), True)
