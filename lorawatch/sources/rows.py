"""Rows of JSON, however they are spelt: numbers, steps, times, and what steps that go back mean."""

from __future__ import annotations

import json
import math
from typing import Any

import msgspec

from lorawatch.records import LifecycleEvent
from lorawatch.sources.names import EPOCH_NAMES, STEP_NAMES, TIME_NAMES, metric_name

CANNOT_DECODE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)
"""What msgspec raises for bytes that it cannot decode."""
_decode_line = msgspec.json.Decoder().decode
NOT_METRICS = frozenset({*STEP_NAMES, *EPOCH_NAMES, *TIME_NAMES, "total_steps", "percentage", "max_steps"})
"""Names in a row that are no metrics."""


def read_line(line: bytes) -> dict[str, Any] | None:
    """Return the object of one line, also when it holds bare NaN or Infinity; None when it is no object."""
    try:
        value = _decode_line(line)
    except CANNOT_DECODE:
        try:
            value = json.loads(line)
        except (ValueError, RecursionError):
            return None
    return value if isinstance(value, dict) else None


def number(value: object) -> float | None:
    """Return a JSON value as a float, None when it is no number; numbers in words are read too."""
    if isinstance(value, bool):
        return None
    if isinstance(value, float | int):
        try:
            return float(value)
        except OverflowError:
            return None
    if isinstance(value, str) and len(value) < 40:
        try:
            return float(value)
        except ValueError:
            return None
    return None


def whole(value: object) -> int | None:
    """Return a JSON value as a step, None when it is none."""
    step = number(value)
    return int(step) if step is not None and math.isfinite(step) and 0 <= step < 1e12 else None


def unix_time(value: object) -> float | None:
    """Return a JSON value as Unix seconds; milliseconds are told by their size, seconds since start are no time."""
    time = number(value)
    if time is None or not math.isfinite(time):
        return None
    if 1e12 < time < 1e13:
        time /= 1_000
    return time if 1e8 < time < 1e11 else None


def take_row(found: dict[str, Any]) -> tuple[int | None, float | None, float | None, dict[str, float]]:
    """Split a row of any writer into step, epoch, Unix time and metrics under the Trainer's names."""
    step = epoch = time = None
    values: dict[str, float] = {}
    for name, value in found.items():
        if name in NOT_METRICS:
            if step is None and name in STEP_NAMES:
                step = whole(value)
            elif epoch is None and name in EPOCH_NAMES:
                epoch = number(value)
            elif time is None and name in TIME_NAMES:
                time = unix_time(value)
            continue
        if type(value) is not float:
            value = number(value)  # noqa: PLW2901
            if value is None:
                continue
        metric = metric_name(name)
        # The Trainer's own name wins over a spelling of it.
        if metric == name or metric not in values:
            values[metric] = value
    return step, epoch, time, values


class StepOrder:
    """Sees a run start anew or go on from an earlier step, in a file that states its steps."""

    __slots__ = ("first", "last")

    def __init__(self) -> None:
        self.first: int | None = None
        self.last: int | None = None

    def see(self, step: int, values: dict[str, float]) -> LifecycleEvent | None:
        """Take the step of the next row; returns what its going back means, if it does.

        Only training rows count: an evaluation may be written after the step that follows it.
        """
        if "loss" not in values:
            return None
        event = None
        if self.first is None or self.last is None:
            self.first = step
        elif step < self.last:
            if step <= self.first:
                event = LifecycleEvent("started")
                self.first = step
            else:
                event = LifecycleEvent("resumed", step=step)
        self.last = step
        return event
