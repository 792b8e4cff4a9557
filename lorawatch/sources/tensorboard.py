"""TensorBoard event files, read without TensorBoard: TFRecord frames around a few protobuf fields."""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Iterable
from pathlib import Path
from typing import Any, ClassVar

from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow, Record
from lorawatch.sources.facts import from_mapping
from lorawatch.sources.lines import Follower, LineSource
from lorawatch.sources.names import metric_name
from lorawatch.sources.tfrecord import FrameFollower, fields, frames

_CHUNK = 1 << 20
_double = struct.Struct("<d").unpack_from
_float = struct.Struct("<f").unpack_from
# What the Trainer logs once, of the whole run.
_SUMMARY = frozenset(
    {"train_runtime", "train_samples_per_second", "train_steps_per_second", "total_flos", "train_loss"}
)
_DT_FLOAT, _DT_DOUBLE = 1, 2


class TensorboardSource(LineSource):
    """Follows one ``events.out.tfevents.*`` file: its scalars, grouped into rows, with their wall time.

    Scalars that were written one after the other for one step are one row. The last row waits until something
    follows, or until a poll finds nothing new.
    """

    format: ClassVar[str] = "tensorboard"
    precedence: ClassVar[int] = 3

    def __init__(self, path: Path, *, chunk: int = _CHUNK) -> None:
        self._row: dict[str, float] = {}
        self._row_step = 0
        self._row_time = 0.0
        self._row_eval = False
        super().__init__(path, chunk=chunk)

    def poll(self) -> Iterable[Record]:
        """Yield the records that appeared since the last call; empty while the file is absent.

        Raises:
            SourceError: the file is not readable, or no event file.
        """
        before = self._follower.cursor()
        yield from super().poll()
        if self._row and self._follower.cursor() == before:
            self._load(b"", last=True)
            yield from super().poll()

    def _follow(self, path: Path, chunk: int) -> Follower:
        return FrameFollower(path, chunk=chunk)

    def _parse(self, block: bytes) -> list[Record]:
        out: list[Record] = []
        for frame in frames(block):
            self._event(frame, out)
        return out

    def _parse_end(self) -> list[Record]:
        out: list[Record] = []
        self._close_row(out)
        return out

    def _state(self) -> dict[str, Any]:
        row = {name: repr(value) for name, value in self._row.items()}
        return {"row": row, "step": self._row_step, "time": repr(self._row_time), "eval": self._row_eval}

    def _restore(self, state: dict[str, Any]) -> None:
        self._row = {name: float(value) for name, value in state["row"].items()}
        self._row_step, self._row_time, self._row_eval = state["step"], float(state["time"]), state["eval"]

    def _event(self, data: bytes, out: list[Record]) -> None:
        time, step = 0.0, 0
        summary = None
        try:
            for number, value in fields(data):
                if number == 1 and isinstance(value, bytes) and len(value) == 8:
                    (time,) = _double(value)
                elif number == 2 and isinstance(value, int):
                    step = value
                elif number == 5 and isinstance(value, bytes):
                    summary = value
            if summary is None:
                return
            for number, value in fields(summary):
                if number == 1 and isinstance(value, bytes):
                    self._value(value, step, time, out)
        except ValueError:
            self._bad_lines += 1

    def _value(self, data: bytes, step: int, time: float, out: list[Record]) -> None:
        tag, scalar, text = "", None, b""
        for number, value in fields(data):
            if not isinstance(value, bytes):
                continue
            if number == 1:
                tag = value.decode("utf-8", "replace")
            elif number == 2 and len(value) == 4:
                (scalar,) = _float(value)
            elif number == 8:
                scalar, text = _tensor(value)
        if text and tag.partition("/")[0] in {"args", "model_config", "peft_config"}:
            facts = _text_facts(text)
            if facts:
                out.append(FactUpdate(facts, f"{self.path.name[:60]} ({tag[:40]})"))
        if scalar is None or not tag or step >= 1 << 48:
            return
        name = metric_name(tag)
        if name in _SUMMARY:
            if name == "train_runtime":
                self._close_row(out)
                out.append(LifecycleEvent("ended", step=step, time=_known(time)))
            return
        evaluation = tag.startswith(("eval/", "eval_", "val"))
        if self._row and (step != self._row_step or evaluation != self._row_eval or name in self._row):
            self._close_row(out)
        if not self._row:
            self._row_step, self._row_time, self._row_eval = step, time, evaluation
        self._row[name] = scalar

    def _close_row(self, out: list[Record]) -> None:
        row, self._row = self._row, {}
        epoch = row.pop("epoch", None)
        if row:
            out.append(MetricRow(self._row_step, row, epoch, _known(self._row_time)))


def _known(time: float) -> float | None:
    return time if math.isfinite(time) and time > 0 else None


def _tensor(data: bytes) -> tuple[float | None, bytes]:
    """Return the number or the text of a TensorProto that holds one."""
    kind, content, text = 0, b"", b""
    found: float | None = None
    for number, value in fields(data):
        if number == 1 and isinstance(value, int):
            kind = value
        elif not isinstance(value, bytes):
            continue
        elif number == 4:
            content = value
        elif number == 5 and len(value) == 4:
            (found,) = _float(value)
        elif number == 6 and len(value) == 8:
            (found,) = _double(value)
        elif number == 8:
            text = value
    if found is None and kind == _DT_FLOAT and len(content) == 4:
        (found,) = _float(content)
    elif found is None and kind == _DT_DOUBLE and len(content) == 8:
        (found,) = _double(content)
    return found, text


def _text_facts(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text.decode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return from_mapping(found) if isinstance(found, dict) else {}
