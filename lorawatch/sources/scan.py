"""Looks through a folder for files that may be logs, within limits."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path

from lorawatch.source import SourceError
from lorawatch.sources.sniff import Kind, is_console_name, sniff

DEPTH = 6
ENTRIES = 50_000
_SUFFIXES = frozenset({".json", ".jsonl", ".ndjson"})
_NEVER = frozenset(
    (
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "added_tokens.json",
        "vocab.json",
        "config.json",
        "generation_config.json",
        "adapter_config.json",
        "all_results.json",
        "train_results.json",
        "eval_results.json",
        "package.json",
        "model.safetensors.index.json",
        "training_args.json",
        "wandb-summary.json",
        "wandb-metadata.json",
        "lorawatch-ledger.jsonl",
    )
)
_SKIPPED_FOLDERS = frozenset({"node_modules", "__pycache__", "site-packages", ".git", ".venv", "venv", ".cache"})


@dataclass(slots=True)
class Scan:
    """What a folder holds: files with their formats, and notes on what was left out."""

    files: list[tuple[Path, Kind]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    looked_at: int = 0
    entries: int = 0

    @property
    def tried(self) -> str:
        """How much was looked at, in words."""
        return f"{self.entries} entries, {self.looked_at} files that might be logs"


def scan(root: Path) -> Scan:
    """Look through a folder; symbolic links to folders, FIFOs, sockets and devices are never followed.

    Raises:
        SourceError: the folder itself cannot be listed.
    """
    result = Scan()
    queue = [(root, 0)]
    for folder, depth in queue:
        try:
            with os.scandir(folder) as listed:
                entries = sorted(listed, key=lambda entry: entry.name)
        except OSError as error:
            if folder == root:
                raise SourceError(f"{root}: cannot be listed ({error.strerror}); check its permissions") from None
            result.notes.append(f"{folder}: cannot be listed ({error.strerror})")
            continue
        for entry in entries:
            result.entries += 1
            if result.entries > ENTRIES:
                result.notes.append(f"{root}: only the first {ENTRIES} entries were looked at; give a smaller folder")
                return result
            try:
                if entry.is_dir(follow_symlinks=False):
                    if depth < DEPTH and entry.name not in _SKIPPED_FOLDERS:
                        queue.append((Path(entry.path), depth + 1))
                elif _may_be_log(entry.name) and stat.S_ISREG(entry.stat().st_mode):
                    _look(Path(entry.path), result)
            except OSError:
                continue
    return result


def _look(path: Path, result: Scan) -> None:
    result.looked_at += 1
    try:
        result.files.append((path, sniff(path, asked=False)))
    except SourceError as error:
        if path.suffix == ".wandb" or "cannot be read" in str(error):
            result.notes.append(str(error))


def _may_be_log(name: str) -> bool:
    if name in _NEVER or name.endswith(tuple(f"__{never}" for never in _NEVER)):
        return False
    suffix = os.path.splitext(name)[1]  # noqa: PTH122 - a hundred thousand names, and no need of a Path
    return suffix in _SUFFIXES or suffix == ".wandb" or "tfevents" in name or is_console_name(name)
