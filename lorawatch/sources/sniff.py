"""Tells the format of a file, by its first bytes and then by its name."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

from lorawatch.source import SourceError
from lorawatch.sources.console_text import DICT, clean, decode_dicts, is_row, read_bar, read_plain, read_title
from lorawatch.sources.follow import read_head
from lorawatch.sources.rows import read_line, take_row

Kind = Literal["lorawatch", "console", "llamafactory", "jsonl", "tensorboard", "json_history", "trainer_state"]

HEAD = 64 << 10
"""Bytes that tell a format."""
NOISE = 2 << 20
"""Bytes of downloads and warnings that may stand before the first row of a console log."""
_LINES = 50
_CONSOLE_NAMES = re.compile(
    r"(?:.*\.(?:log|out|err|stdout|stderr|console)(?:\.\d+)?|nohup\.out|log[^/]*\.txt|.*log\.txt|output\.txt|stdout\.txt)\Z",
    re.IGNORECASE,
)
_TEXT = re.compile(rb"'loss'|\"loss\"|'train_runtime'|'eval_loss'|loss|Loss")


def is_console_name(name: str) -> bool:
    """Whether a file is called what console logs are called."""
    return bool(_CONSOLE_NAMES.match(name))


def sniff(path: Path, *, asked: bool) -> Kind:
    """Return the format of a file.

    Args:
        path: The file.
        asked: A person named this file, so that a name that fits is enough: a log may have no row yet.

    Raises:
        SourceError: there is no such file, it is not readable, or its format is not known.
    """
    name = path.name
    if ".wandb" in path.suffix or name.endswith(".wandb"):
        raise SourceError(
            f"{path}: .wandb files cannot be read yet; give files/output.log or trainer_state.json beside it"
        )
    if name in {"training_args.bin", "optimizer.pt", "scheduler.pt"} or path.suffix in {".bin", ".pt", ".pkl"}:
        raise SourceError(f"{path}: a pickle, which is never opened; give trainer_state.json or a console log")
    try:
        head = read_head(path, HEAD)
    except FileNotFoundError:
        raise SourceError(f"{path}: no such file; check the path") from None
    kind = _by_content(head, path)
    if kind:
        return kind
    if asked and name == "trainer_state.json":
        return "trainer_state"
    if asked and head and _binary(head):
        raise SourceError(f"{path}: binary data, no training log; give a console log, trainer_state.json or event file")
    if asked and is_console_name(name):
        return "console"
    if asked and path.suffix == ".jsonl":
        return "llamafactory" if name == "trainer_log.jsonl" else "lorawatch" if name == "lorawatch.jsonl" else "jsonl"
    if not asked and is_console_name(name) and _has_late_rows(path):
        return "console"
    if not head:
        raise SourceError(f"{path}: the file is empty; nothing was logged yet")
    if asked and path.suffix in {".txt", ""} and _has_late_rows(path):
        return "console"
    raise SourceError(f"{path}: no known log format; give a console log, trainer_state.json, *.jsonl or event file")


def _by_content(head: bytes, path: Path) -> Kind | None:
    if b"brain.Event:" in head[:64]:
        return "tensorboard"
    text = head.lstrip(b"\xef\xbb\xbf \t\r\n\0")
    if b'"stream_name":' in text[:2_000]:
        return "console"
    if text[:1] in {b"{", b"["}:
        lines = text.split(b"\n")
        whole = lines[:-1] if len(head) == HEAD else lines
        kind = _json_lines(whole[:_LINES])
        if kind:
            return kind
        if text[:2] != b"{'" and (kind := _json_document(text, path)):
            return kind
    return "console" if _has_rows(head) else None


def _json_lines(lines: list[bytes]) -> Kind | None:
    objects = 0
    for line in lines:
        found = read_line(line) if line.strip()[:1] == b"{" else None
        if found is None:
            continue
        objects += 1
        if "current_steps" in found:
            return "llamafactory"
        if found.get("type") in {"metrics", "facts", "event"} and ("values" in found or "event" in found):
            return "lorawatch"
        if "log_history" in found:
            return "trainer_state"
        step, epoch, _, values = take_row(found)
        if (step is not None or epoch is not None) and ("loss" in values or "eval_loss" in values):
            return "jsonl"
    return None


def _json_document(text: bytes, path: Path) -> Kind | None:
    if b'"log_history"' in text or ("trainer_state" in path.name and b'"' in text):
        return "trainer_state"
    if path.suffix != ".json":
        return None
    # Somewhere below there is a list of rows, or there is not: only reading it all would tell.
    if re.search(rb'"(?:train[ _/])?loss"\s*:', text) and re.search(rb'"(?:step|global_step|epoch|iter)"\s*:', text):
        return "json_history"
    if re.search(rb'"(?:run_info|train_info|metrics|history)"\s*:\s*[\[{]', text):
        return "json_history"
    return None


def _has_rows(text: bytes) -> bool:
    text = clean(text)
    if any(values is not None and is_row(values) for values in decode_dicts(DICT.findall(text)[:200])):
        return True
    for piece in re.split(rb"[\r\n]", text):
        if not _TEXT.search(piece):
            continue
        if read_plain(piece):
            return True
        bar = read_bar(piece)
        if bar is not None and (bar.postfix or read_title(bar.title) is not None):
            return True
    return False


def _has_late_rows(path: Path) -> bool:
    try:
        text = read_head(path, NOISE)
    except (FileNotFoundError, SourceError):
        return False
    return _has_rows(text)


def _binary(head: bytes) -> bool:
    sample = head[:4_096]
    odd = sum(byte < 9 or 13 < byte < 27 for byte in sample)
    return odd > len(sample) * 0.1 and b"\n" not in sample[:16]
