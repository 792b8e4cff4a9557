"""Turns what a Hugging Face Trainer logs into rows of metrics."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from numbers import Real
from typing import Any

from lorawatch.records import MetricRow


def is_summary(logs: Mapping[str, Any]) -> bool:
    """Whether this is the Trainer's last word. With token counts on, each training row holds ``train_runtime`` too."""
    return "train_runtime" in logs and "loss" not in logs


def row_of(step: int, logs: Mapping[str, Any], now: float | None) -> MetricRow | None:
    """The numbers of one logged row. Tensors are left out: to read one would wait for the device.

    So is what no file could hold: names that are no text, and numbers beyond what a float can be.
    """
    values: dict[str, float] = {}
    epoch: float | None = None
    for name, value in logs.items():
        if type(value) is not float:
            if isinstance(value, bool) or not isinstance(value, Real):
                continue
            try:
                value = float(value)  # noqa: PLW2901
            except OverflowError:
                continue
        if type(name) is not str:
            continue
        if not name.isascii():
            name = name.encode("utf-8", "replace").decode("utf-8")  # noqa: PLW2901  (a lone surrogate)
        if name == "epoch":
            epoch = value
        elif name != "step":
            values[name] = value
    return MetricRow(step, values, epoch, now) if values else None


def rows_of(log_history: Iterable[Mapping[str, Any]]) -> Iterator[MetricRow]:
    """The rows that a resumed run's checkpoint remembers, as far as it went."""
    for entry in log_history:
        step = entry.get("step")
        if is_summary(entry) or not isinstance(step, int):
            continue
        row = row_of(step, entry, None)
        if row is not None:
            yield row
