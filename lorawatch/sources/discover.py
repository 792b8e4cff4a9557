"""Which files make one run, which are several runs, and which source wins when two tell the same."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

from lorawatch.source import Source, SourceError
from lorawatch.sources.console import ConsoleSource
from lorawatch.sources.facts import FACT_FILES
from lorawatch.sources.history import HistorySource
from lorawatch.sources.json_history import JsonHistorySource
from lorawatch.sources.jsonl import JsonlSource, LlamaFactorySource
from lorawatch.sources.lorawatch_jsonl import LorawatchSource
from lorawatch.sources.scan import scan
from lorawatch.sources.sniff import Kind, sniff
from lorawatch.sources.tensorboard import TensorboardSource
from lorawatch.sources.trainer_state import TrainerStateSource

_MAKERS: dict[Kind, Callable[[Path], Source]] = {
    "lorawatch": LorawatchSource,
    "console": ConsoleSource,
    "llamafactory": LlamaFactorySource,
    "jsonl": JsonlSource,
    "tensorboard": TensorboardSource,
    "json_history": JsonHistorySource,
    "trainer_state": TrainerStateSource,
}
_ANCHORS = ("lorawatch", "llamafactory", "trainer_state")
"""Kinds of which a run has one: where one stands, there is one run."""
_CHECKPOINT = re.compile(r"checkpoint-\d+\Z")
_SIDE = frozenset({"logs", "log", "tensorboard", "tb", "tb_logs", "logging"})
_WANDB_RUN = re.compile(r"(?:offline-)?run-\d{8}_\d{6}-\w+\Z")
_MANY = 2
_ROTATED = re.compile(r"[.-]\d+\Z")


@dataclass(slots=True)
class RunFiles:
    """The files of one run.

    Attributes:
        name: What to call the run: its folder below the place that was asked for, or its file's name.
        path: Its folder, or its file when it is only that.
        sources: Its sources, the most believed first.
        fact_files: Files that state its set-up, for :func:`~lorawatch.sources.facts.read_fact_file`.
        notes: One line for each decision, for a person to read.
    """

    name: str
    path: Path
    sources: list[Source]
    fact_files: list[Path] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def source_for_file(path: Path) -> Source:
    """Return the source that reads a file, told by its content and then by its name.

    Raises:
        SourceError: there is no such file, it is not readable, or its format is not known.
    """
    return _make(sniff(path, asked=True), path)


def rotated_from(path: Path) -> Path | None:
    """The log that a file with such a name was rotated away of: ``train.log`` for ``train.log.1``."""
    name = _ROTATED.sub("", path.name)
    return None if name in {"", path.name} else path.with_name(name)


def discover(path: Path) -> list[RunFiles]:
    """Return the runs in a file, a run's folder, or a folder of runs, ordered by name.

    Raises:
        SourceError: nothing is there, it cannot be read, or it holds no log.
    """
    if not path.exists():
        raise SourceError(f"{path}: no such file or folder; check the path (a run's output_dir, or its log)")
    if not path.is_dir():
        source = source_for_file(path)
        run = RunFiles(path.name, path, [source], _facts_beside(path), [f"{path.name}: read as {source.format}"])
        return [run]
    found = scan(path)
    groups: dict[Path, dict[Kind, list[Path]]] = {}
    for file, kind in found.files:
        groups.setdefault(_owner(file, path), {}).setdefault(kind, []).append(file)
    _move_lone_consoles(groups)
    runs: list[RunFiles] = []
    for owner, kinds in sorted(groups.items()):
        runs += _runs_of(owner, kinds, path)
    if not runs:
        raise SourceError(f"{path}: no training log in it ({found.tried}); give a run's output_dir or its console log")
    for run in runs:
        run.notes += found.notes if run is runs[0] else []
    return sorted(runs, key=lambda run: run.name)


def _make(kind: Kind, path: Path) -> Source:
    return _MAKERS[kind](path)


def _owner(file: Path, root: Path) -> Path:
    """The folder of the run that a file belongs to, as the trainers lay their folders out."""
    folder = file.parent
    while folder != root and (_CHECKPOINT.match(folder.name) or folder.name in _SIDE):
        folder = folder.parent
    if folder != root and folder.parent.name == "runs" and folder.parent != root and "tfevents" in file.name:
        return folder.parent.parent  # runs/Nov22_23-39-07_host, where the Trainer puts its event files
    if folder.name == "files" and _WANDB_RUN.match(folder.parent.name):
        return folder.parent
    return folder


def _move_lone_consoles(groups: dict[Path, dict[Kind, list[Path]]]) -> None:
    """A console log one folder above the only run is that run's: ``train.log`` beside ``output/``."""
    for owner in list(groups):
        kinds = groups[owner]
        if set(kinds) != {"console"} or len(kinds["console"]) != 1:
            continue
        below = [other for other in groups if other != owner and owner in other.parents]
        if len(below) == 1 and any(kind in groups[below[0]] for kind in _ANCHORS) and "console" not in groups[below[0]]:
            groups[below[0]]["console"] = groups.pop(owner)["console"]


def _runs_of(owner: Path, kinds: dict[Kind, list[Path]], root: Path) -> list[RunFiles]:
    states = [file for file in kinds.get("trainer_state", []) if file.name == "trainer_state.json"]
    odd_states = [file for file in kinds.get("trainer_state", []) if file.name != "trainer_state.json"]
    main = RunFiles(_name(owner, root), owner, [], _facts_in(owner))
    alone: list[tuple[Kind, Path, str]] = []

    def each_alone(kind: Kind, files: list[Path], why: str) -> None:
        alone.extend((kind, file, why) for file in files)

    each_alone("trainer_state", odd_states, "a saved copy of some state")
    if states:
        main.sources.append(TrainerStateSource(owner))
        main.notes.append(f"{len(states)} trainer_state.json of {main.name}: one history, the highest global_step wins")
    order: tuple[Kind, ...] = ("lorawatch", "llamafactory", "console", "jsonl", "json_history")
    for kind in order:
        files = kinds.get(kind, [])
        if kind == "console":
            older = [file for file in files if rotated_from(file) in files]
            each_alone(kind, older, "what was rotated away of another log")
            files = [file for file in files if file not in older]
        if kind == "console" and len(files) >= _MANY:
            each_alone(kind, files, f"one of {len(files)} console logs, which cannot all be of one run")
        elif kind == "json_history" and (main.sources or odd_states):
            main.notes += [f"{file.name}: left out, the run's own logs tell more" for file in files]
        elif len(files) == 1:
            main.sources.append(_make(kind, files[0]))
        else:
            each_alone(kind, files, f"one of {len(files)} such files")
    events = sorted(kinds.get("tensorboard", []), key=lambda file: (str(file.parent), file.name))
    folders = sorted({file.parent for file in events})
    if len(folders) == 1 and len(events) > 1 and not main.sources:
        each_alone("tensorboard", events, f"one of {len(events)} event files, one a start of a job")
    elif events and len(folders) > 1 and not main.sources:
        each_alone("tensorboard", events, f"one of {len(folders)} folders of event files")
    elif events:
        main.sources.append(TensorboardSource(events[-1]))
        main.notes += [f"{file.name}: left out, a later start of the job wrote another" for file in events[:-1]]
    if len(main.sources) > 1:
        for source in [source for source in main.sources if isinstance(source, HistorySource) and not source.usable()]:
            main.sources.remove(source)
            main.notes.append(f"{_name(source.path, root)}: {source.format} without a readable row, left out for now")
    main.sources.sort(key=lambda source: source.precedence)
    runs = [main] if main.sources else []
    if main.sources:
        main.notes += [f"{_name(source.path, root)}: {source.format}" for source in main.sources]
        if len(main.sources) > 1:
            ranking = " before ".join(source.format for source in main.sources)
            main.notes.append(f"where two tell the same metric: {ranking}")
    for kind, file, why in alone:
        note = f"{file.name}: {kind}, a run of its own ({why})"
        runs.append(RunFiles(_name(file, root), file, [_make(kind, file)], _facts_beside(file), [note]))
    return runs


def _name(path: Path, root: Path) -> str:
    try:
        name = str(path.relative_to(root))
    except ValueError:
        name = path.name
    return (root.resolve().name or str(root)) if name == "." else name


def _facts_beside(file: Path) -> list[Path]:
    """The fact files of a single log: those that share the beginning of its name, or stand beside it alone."""
    folder = file.parent
    stem = re.split(r"trainer_state|trainer_log|training_log", file.name)[0]
    if stem and stem != file.name:
        return [path for name in FACT_FILES if (path := folder / f"{stem}{name}").is_file()]
    return _facts_in(folder) if stem != file.name else []


def _facts_in(folder: Path) -> list[Path]:
    """The fact files of a run's folder, the last checkpoint's where the run has none."""
    found = _existing(folder / name for name in FACT_FILES)
    if not any(path.name == "adapter_config.json" for path in found):
        checkpoints = sorted(
            (path for path in _listed(folder) if _CHECKPOINT.match(path.name)),
            key=lambda path: int(path.name.rpartition("-")[2]),
        )
        for checkpoint in reversed(checkpoints[-3:]):
            more = _existing([checkpoint / "adapter_config.json"])
            if more:
                found += more
                break
    if _CHECKPOINT.match(folder.name) and not found:
        found = _existing(folder.parent / name for name in FACT_FILES)
    yamls = [path for path in _listed(folder) if path.suffix in {".yaml", ".yml"} and path not in found]
    # A single configuration beside the log is the run's; of several, none is known to be.
    return found + (yamls if len(yamls) == 1 else [])


def _existing(paths: Iterable[Path]) -> list[Path]:
    return [path for path in paths if path.is_file()]


def _listed(folder: Path, limit: int = 2_000) -> list[Path]:
    try:
        return sorted(path for _, path in zip(range(limit), folder.iterdir(), strict=False))
    except OSError:
        return []
