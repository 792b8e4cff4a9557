"""One JSON document that holds a list of rows somewhere: dumps of a log, results of a method comparison."""

from __future__ import annotations

from typing import Any, ClassVar

from lorawatch.records import LifecycleEvent, MetricRow, Record
from lorawatch.sources.facts import from_mapping
from lorawatch.sources.history import HistorySource, read_document, with_restarts
from lorawatch.sources.rows import take_row

_DEPTH = 8
_VISITS = 200_000
_CONFIGS = ("peft_config", "train_config", "training_args", "args", "config", "lora_config", "adapter_config")


class JsonHistorySource(HistorySource):
    """Follows a JSON document; its longest list of rows with a step and a loss is the history."""

    format: ClassVar[str] = "json_history"
    precedence: ClassVar[int] = 4

    def _load(self) -> tuple[dict[str, Any], list[Record]] | None:
        document = read_document(self.path)
        if not isinstance(document, dict | list):
            return None
        facts: dict[str, Any] = {}
        best: list[Any] = []
        best_score = 0
        queue: list[tuple[Any, int]] = [(document, 0)]
        for visit, (value, depth) in enumerate(queue):
            if visit > _VISITS:
                break
            if isinstance(value, list):
                score = _score(value)
                if score > best_score:
                    best, best_score = value, score
                if score:
                    continue
            elif isinstance(value, dict):
                for name in _CONFIGS:
                    if isinstance(value.get(name), dict):
                        facts = {**from_mapping(value[name]), **facts}
            inner = value if isinstance(value, list) else value.values()
            if depth < _DEPTH:
                queue.extend((item, depth + 1) for item in inner if isinstance(item, dict | list))
        return facts, with_restarts(_rows(best))


def _score(value: list[Any]) -> int:
    """How many of a list's items are rows; judged by the first few."""
    sample = [item for item in value[:20] if isinstance(item, dict)]
    rows = 0
    for item in sample:
        step, epoch, _, values = take_row(item)
        rows += (step is not None or epoch is not None) and ("loss" in values or "eval_loss" in values)
    return len(value) if rows * 2 > len(sample) else 0


def _rows(found: list[Any]) -> list[MetricRow | LifecycleEvent]:
    rows: list[MetricRow | LifecycleEvent] = []
    for item in found:
        if not isinstance(item, dict):
            continue
        step, epoch, time, values = take_row(item)
        if "train_runtime" in values:
            rows.append(LifecycleEvent("ended", step=step, time=time))
        elif values:
            rows.append(MetricRow(step, values, epoch, time))
    return rows
