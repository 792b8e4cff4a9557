"""JSON lines: LLaMA-Factory's ``trainer_log.jsonl``, and any other file of rows with a step and a loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import msgspec

from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow, Record
from lorawatch.sources.follow import CHUNK
from lorawatch.sources.lines import LineSource
from lorawatch.sources.names import EPOCH_NAMES, STEP_NAMES, TIME_NAMES, metric_name
from lorawatch.sources.rows import CANNOT_DECODE, NOT_METRICS, StepOrder, number, read_line, take_row, whole


class _Rows(LineSource):
    """What both formats share."""

    def __init__(self, path: Path, *, chunk: int = CHUNK) -> None:
        self._order = StepOrder()
        super().__init__(path, chunk=chunk)

    def _state(self) -> dict[str, Any]:
        return {"first": self._order.first, "last": self._order.last}

    def _restore(self, state: dict[str, Any]) -> None:
        self._order.first, self._order.last = state["first"], state["last"]

    def _put(self, row: MetricRow, out: list[Record]) -> None:
        if row.step is not None and (event := self._order.see(row.step, row.values)):
            out.append(event)
        out.append(row)


class _Line(msgspec.Struct, gc=False):
    """The fields that LLaMA-Factory has written since its first versions, in their order there."""

    current_steps: int
    total_steps: int | None = None
    loss: float | None = None
    eval_loss: float | None = None
    predict_loss: float | None = None
    reward: float | None = None
    accuracy: float | None = None
    lr: float | None = None
    learning_rate: float | None = None
    epoch: float | None = None


_LINES = msgspec.json.Decoder(list[_Line]).decode
_FLOATS = _Line.__struct_fields__[2:]


class LlamaFactorySource(_Rows):
    """Follows LLaMA-Factory's ``trainer_log.jsonl``: current_steps, total_steps, loss, lr, epoch, eval_loss and more.

    The file is removed and made anew when a run overwrites its folder; the steps going back then give ``started``.
    """

    format: ClassVar[str] = "llamafactory"
    precedence: ClassVar[int] = 2

    def __init__(self, path: Path, *, chunk: int = CHUNK) -> None:
        self._total: int | None = None
        super().__init__(path, chunk=chunk)

    def _parse(self, block: bytes) -> list[Record]:
        out: list[Record] = []
        self._lines(block.rstrip(b"\r\n").split(b"\n"), out)
        return out

    def _lines(self, lines: list[bytes], out: list[Record]) -> None:
        try:
            found = _LINES(b"[" + b",".join(lines) + b"]")
        except CANNOT_DECODE:
            found = []
        if len(found) != len(lines):
            if len(lines) > 1:
                half = len(lines) // 2
                self._lines(lines[:half], out)
                self._lines(lines[half:], out)
            else:
                self._odd(lines[0], out)
            return
        self._put_all(found, out)

    def _put_all(self, lines: list[_Line], out: list[Record]) -> None:
        total, order, put = self._total, self._order, out.append
        for line in lines:
            step, loss = line.current_steps, line.loss
            if line.total_steps != total and line.total_steps is not None:
                total = self._total = line.total_steps
                put(FactUpdate({"max_steps": total}, self.path.name))
            values: dict[str, float] = {}
            if loss is not None:
                values["loss"] = loss
                if order.last is not None and step >= order.last:
                    order.last = step
                elif event := order.see(step, values):
                    put(event)
            rate = line.lr if line.learning_rate is None else line.learning_rate
            if rate is not None:
                values["learning_rate"] = rate
            if line.eval_loss is not None:
                values["eval_loss"] = line.eval_loss
            if line.reward is not None:
                values["reward"] = line.reward
            if line.accuracy is not None:
                values["accuracy"] = line.accuracy
            if line.predict_loss is not None:
                values["predict_loss"] = line.predict_loss
            if values:
                put(MetricRow(step, values, line.epoch))
            elif step == total:
                put(LifecycleEvent("ended", step=step))

    def _odd(self, line: bytes, out: list[Record]) -> None:
        """A line with bare NaN, or with other types than usual."""
        found = read_line(line)
        step = None if found is None else whole(found.get("current_steps"))
        if found is None or step is None:
            self._bad_lines += bool(line.strip(b" \r\t\0"))
            return
        row = {name: number(found.get(name)) for name in _FLOATS}
        self._put_all([_Line(step, whole(found.get("total_steps")), **row)], out)

    def _state(self) -> dict[str, Any]:
        return {**super()._state(), "total": self._total}

    def _restore(self, state: dict[str, Any]) -> None:
        super()._restore(state)
        self._total = state["total"]


_NUMBERS = msgspec.json.Decoder(list[dict[str, float]], strict=False).decode
_OBJECTS = msgspec.json.Decoder(list[dict[str, Any]]).decode


class _Plan(NamedTuple):
    """What to do with the rows that have one set of names."""

    step: str | None
    epoch: str | None
    drop: tuple[str, ...]
    rename: tuple[tuple[str, str], ...]


class JsonlSource(_Rows):
    """Follows a file of JSON lines with step- and loss-like names; the names are those of :mod:`.names`.

    A row without a step gets the next one, as an estimate.
    """

    format: ClassVar[str] = "jsonl"
    precedence: ClassVar[int] = 2

    def __init__(self, path: Path, *, chunk: int = CHUNK) -> None:
        self._plans: dict[tuple[str, ...], _Plan | None] = {}
        super().__init__(path, chunk=chunk)

    def _parse(self, block: bytes) -> list[Record]:
        out: list[Record] = []
        self._lines(block.rstrip(b"\r\n").split(b"\n"), out)
        return out

    def _lines(self, lines: list[bytes], out: list[Record]) -> None:
        blob = b"[" + b",".join(lines) + b"]"
        try:
            rows = _NUMBERS(blob)
            if len(rows) == len(lines):
                self._put_numbers(rows, out)
                return
        except CANNOT_DECODE:
            pass
        try:
            objects = _OBJECTS(blob)
            if len(objects) == len(lines):
                for found in objects:
                    self._put_object(found, out)
                return
        except CANNOT_DECODE:
            pass
        if len(lines) > 1:
            half = len(lines) // 2
            self._lines(lines[:half], out)
            self._lines(lines[half:], out)
            return
        odd = read_line(lines[0])
        if odd is not None:
            self._put_object(odd, out)
        else:
            self._bad_lines += bool(lines[0].strip(b" \r\t\0"))

    def _put_numbers(self, rows: list[dict[str, float]], out: list[Record]) -> None:
        """The usual case: every value is a number. Rows of the same names are treated by one plan."""
        plans, order = self._plans, self._order
        for values in rows:
            names = tuple(values)
            plan = plans.get(names)
            if plan is None:
                plan = self._plan(names)
                if plan is None:
                    self._put_object(dict(values), out)
                    continue
            stated = values.pop(plan.step)  # type: ignore[arg-type]
            if not 0 <= stated < 1e12:
                self._put_object({**values, plan.step or "": stated}, out)
                continue
            step = int(stated)
            epoch = values.pop(plan.epoch) if plan.epoch is not None else None
            for name in plan.drop:
                del values[name]
            for name, metric in plan.rename:
                values[metric] = values.pop(name)
            if "loss" in values:
                if order.last is not None and step >= order.last:
                    order.last = step
                elif event := order.see(step, values):
                    out.append(event)
            out.append(MetricRow(step, values, epoch))

    def _plan(self, names: tuple[str, ...]) -> _Plan | None:
        """A plan for rows with these names, None when they need a closer look."""
        plan = None
        steps = [name for name in names if name in STEP_NAMES]
        epochs = [name for name in names if name in EPOCH_NAMES]
        metrics = [name for name in names if name not in NOT_METRICS]
        spelt = [metric_name(name) for name in metrics]
        plain = len(set(spelt)) == len(spelt) and not any(name in TIME_NAMES for name in names)
        if len(steps) == 1 and len(epochs) <= 1 and spelt and plain and "train_runtime" not in spelt:
            drop = tuple(name for name in names if name in NOT_METRICS and name not in {*steps, *epochs})
            rename = tuple((name, metric) for name, metric in zip(metrics, spelt, strict=True) if name != metric)
            if not {metric for _, metric in rename} & set(names):
                plan = _Plan(steps[0], epochs[0] if epochs else None, drop, rename)
        if len(self._plans) < 1_000:  # names come from a log
            self._plans[names] = plan
        return plan

    def _put_object(self, found: dict[str, Any], out: list[Record]) -> None:
        step, epoch, time, values = take_row(found)
        if "train_runtime" in values:
            out.append(LifecycleEvent("ended", step=step, time=time))
        elif step is None and "loss" not in values and "eval_loss" not in values:
            return  # an object that is no row: settings, samples, messages
        elif values:
            estimated = step is None
            if step is None:
                step = (self._order.last or 0) + ("loss" in values)
            self._put(MetricRow(step, values, epoch, time, estimated), out)
