"""``trainer_state.json``: the history that the Trainer saves in each checkpoint, and at the end in the run's folder."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

from lorawatch.records import LifecycleEvent, MetricRow, Record
from lorawatch.source import SourceError
from lorawatch.sources.history import HistorySource, read_document, signature, with_restarts
from lorawatch.sources.rows import number, whole

_FACTS = (
    "max_steps",
    "num_train_epochs",
    "logging_steps",
    "eval_steps",
    "save_steps",
    "train_batch_size",
    "best_metric",
    "best_model_checkpoint",
    "best_global_step",
)
GROWING_FACTS = frozenset({"best_metric", "best_model_checkpoint", "best_global_step"})
"""Facts that change at each save as a run gets better: how far it is, not how it was set up."""
_CHECKPOINTS = 1_000
_TIMES = frozenset({"step", "epoch"})


class TrainerStateSource(HistorySource):
    """Follows the ``trainer_state.json`` of a run: one file, or those of a run's folder and its checkpoints.

    The file with the highest ``global_step`` is believed; older ones only give the steps that it lacks, because a
    resumed run may have lost its history.
    """

    format: ClassVar[str] = "trainer_state"
    precedence: ClassVar[int] = 5

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self._known: dict[Path, _Extent] = {}

    def _files(self) -> list[Path]:
        if not self.path.is_dir():
            return [self.path]
        found: list[Path] = []
        try:
            for count, entry in enumerate(self.path.iterdir()):
                if count >= 20_000 or len(found) >= _CHECKPOINTS:
                    break
                if entry.name.startswith("checkpoint-") and not entry.is_symlink():
                    found.append(entry / "trainer_state.json")
        except OSError as error:
            raise SourceError(f"{self.path}: cannot be listed ({error.strerror}); check its permissions") from None
        return [self.path / "trainer_state.json", *sorted(found)]

    def usable(self) -> bool:
        """Whether there is a history with rows in it now."""
        for path in reversed(self._files()):
            try:
                state = _read(path)
            except SourceError:
                continue
            if state is not None and _rows(state["log_history"]):
                return True
        return False

    def _load(self) -> tuple[dict[str, Any], list[Record]] | None:
        known, read = self._look()
        # Of two with the same step the run's own file, which stands first, holds the final summary.
        best = max(known, key=lambda path: known[path].global_step, default=None)
        if best is None or known[best].global_step < 0:
            return None
        state = read.get(best) or _read(best)
        if state is None:
            return None
        facts = {name: state[name] for name in _FACTS if state.get(name) is not None}
        facts = {name: value for name, value in facts.items() if isinstance(value, int | float | str)}
        histories = [state["log_history"]]
        steps = _steps(_rows(histories[0]))
        # Most checkpoints hold what the newest holds too: without this, each save would cost all those before it.
        further = [path for path in known if path != best and not known[path].within(steps)]
        older = map(_read, sorted(further, key=lambda path: -known[path].global_step))
        histories += [state["log_history"] for state in older if state is not None]
        return facts, with_restarts(_merge(histories))

    def _look(self) -> tuple[dict[Path, _Extent], dict[Path, dict[str, Any]]]:
        """How far each file reaches, and the furthest one that was read: those that changed since the last look are."""
        known: dict[Path, _Extent] = {}
        furthest: dict[Path, dict[str, Any]] = {}
        most = -1
        for path in self._files():
            stamp = signature(path)
            if stamp is None:
                continue
            extent = self._known.get(path)
            if extent is None or extent.stamp != stamp:
                try:
                    state = _read(path)
                except SourceError:
                    if path == self.path:
                        raise
                    self.skipped_lines += 1
                    state = None
                extent = _extent(stamp, state)
                if state is not None and extent.global_step > most:
                    most, furthest = extent.global_step, {path: state}
            known[path] = extent
        self._known = known
        return known, furthest


class _Extent(NamedTuple):
    """Which steps a file tells: enough to see that another one tells them too."""

    stamp: list[int]
    global_step: int
    first: int
    last: int
    size: int

    def within(self, steps: list[int]) -> bool:
        """Whether ascending steps hold as many of the same stretch."""
        return bisect_right(steps, self.last) - bisect_left(steps, self.first) >= self.size


def _extent(stamp: list[int], state: dict[str, Any] | None) -> _Extent:
    if state is None:
        return _Extent(stamp, -1, 0, 0, 0)
    steps = _steps(_rows(state["log_history"]))
    reach = (steps[0], steps[-1], len(steps)) if steps else (0, 0, 0)
    return _Extent(stamp, whole(state.get("global_step")) or 0, *reach)


def _steps(rows: list[MetricRow | LifecycleEvent]) -> list[int]:
    return sorted({row.step for row in rows if isinstance(row, MetricRow) and row.step is not None})


def _read(path: Path) -> dict[str, Any] | None:
    state = read_document(path)
    return state if isinstance(state, dict) and isinstance(state.get("log_history"), list) else None


def _merge(histories: list[list[Any]]) -> list[MetricRow | LifecycleEvent]:
    """Join histories, the most believed first; the others give the steps that it lacks."""
    rows = _rows(histories[0])
    have = {row.step for row in rows}
    added = False
    for history in histories[1:]:
        older = [row for row in _rows(history) if isinstance(row, MetricRow) and row.step not in have]
        rows += older
        have |= {row.step for row in older}
        added = added or bool(older)
    # One history stays in its own order, which may tell of a restart.
    return sorted(rows, key=lambda row: (row.step or 0, isinstance(row, LifecycleEvent))) if added else rows


def _rows(history: list[Any]) -> list[MetricRow | LifecycleEvent]:
    rows: list[MetricRow | LifecycleEvent] = []
    last = 0
    for entry in history:
        if not isinstance(entry, dict):
            continue
        stated = whole(entry.get("step"))
        step = last if stated is None else stated
        last = step
        if "train_runtime" in entry:
            rows.append(LifecycleEvent("ended", step=step))
            continue
        numbers = ((name, number(value)) for name, value in entry.items() if name not in _TIMES)
        values = {name: value for name, value in numbers if value is not None}
        if values:
            rows.append(MetricRow(step, values, number(entry.get("epoch")), None, stated is None))
    return rows
