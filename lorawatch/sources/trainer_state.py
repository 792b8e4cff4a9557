"""``trainer_state.json``: the history that the Trainer saves in each checkpoint, and at the end in the run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

from lorawatch.records import LifecycleEvent, MetricRow, Record
from lorawatch.source import SourceError
from lorawatch.sources.history import HistorySource, read_document, with_restarts
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

    def _load(self) -> tuple[dict[str, Any], list[Record]] | None:
        states = []
        for path in self._files():
            try:
                state = read_document(path)
            except SourceError:
                if path == self.path:
                    raise
                self.skipped_lines += 1
                continue
            if isinstance(state, dict) and isinstance(state.get("log_history"), list):
                states.append(state)
        if not states:
            return None
        # Stable: of two with the same step the run's own file, which stands first, holds the final summary.
        states.sort(key=lambda state: -(whole(state.get("global_step")) or 0))
        facts = {name: states[0][name] for name in _FACTS if states[0].get(name) is not None}
        facts = {name: value for name, value in facts.items() if isinstance(value, int | float | str)}
        return facts, with_restarts(_merge([state["log_history"] for state in states]))


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
