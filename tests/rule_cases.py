"""Turns a rule's fixture (``tests/rules/<family>_<name>.toml``) into records, and runs them.

A fixture has one ``[[case]]`` per sentence::

    rule = "loss/diverging"

    [[case]]
    name = "fires on a loss that climbs from 1.2 to 5"
    every = 10                                  # logging_steps; default 1
    facts = { learning_rate = 2e-3 }            # stated facts, before the first row
    train.loss = "2.5>1.2 x60 ~0.05, 1.2>5 x40" # a series, in segments
    train.grad_norm = "1 x100 ~0.1"
    eval.eval_loss = "2.2>1.5 x6, 1.5>2.0 x4"   # spread evenly over the train rows, the last at the end
    seconds = 2.0                               # rows carry a time: this much a train row, plus eval_runtime
    events = [{ at = 50, event = "resumed" }]   # before the 50th train row (counted from 0)
    fires = { between = [650, 800], severity = "critical" }   # or: quiet = true / abstains = true
    adjusts = ["learning_rate"]                 # parameters that its advice must name, in this order
    resolves = true                             # default: not looked at

A rule that judges readings of the machine has ticks instead of rows, ``interval`` seconds apart (default 10)::

    interval = 10
    gpu.memory_total = 80e9                     # a field of Card: a number, bool, text or table stands at each tick,
    gpu.memory_used = "40e9 x12, 40e9>78e9 x30" # a series gives one value a tick; its last one stays
    gpu1.memory_used = 10e9                     # a second card
    host.memory_available = 8e9                 # a field of HostReading; processes = [{ pid = 1, role = "trainer" }]
    allocator.allocated = "1e9>9e9 x40"         # a field of AllocatorReading, in a StepTiming a tick
    step.data_wait = "0.02 x400"                # a field of Step: one value a step, steps_a_tick of them a tick (10)
    timing.saving = "0 x20, 4 x20"              # a field of StepTiming, a tick
    changes = [{ at = 20, gpu = { xids = [79] } }, { from = 30, host = { phase = "saving" } }]   # by tick, from 0

What is seen of the model is written out: each of ``looks`` is a record (``type = "model"``, ``labels``, ``adapter`` or
``samples``) that comes before the train row ``at`` (counted from 0; by default the first)::

    looks = [{ type = "adapter", at = 50, step = 50, modules = [{ name = "q_proj", rank = 8, scale = 2.0 }] }]

Each tick has a StepTiming, where one is given, then a GpuReading, then a HostReading. A row of ``train`` may go with
each tick, after the others. ``between`` and ``resumed`` speak of steps; without steps each tick is one step.

Segments: ``A xN`` constant, ``A>B xN`` linear, ``A>>B xN`` exponential approach, ``A^B xN`` alternating; ``~S``
adds Gaussian noise of standard deviation S (a share of the value with ``~S%``), seeded by the case's name;
``_ xN`` leaves the metric out of N rows; ``nan``, ``inf`` are values. Plain numbers without ``x`` stand once.
"""

from __future__ import annotations

import math
import random
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import msgspec

from lorawatch.engine import Engine
from lorawatch.records import (
    AllocatorReading,
    Card,
    Event,
    FactUpdate,
    GpuReading,
    HostReading,
    LifecycleEvent,
    MetricRow,
    Record,
    Step,
    StepTiming,
)
from lorawatch.registry import rule_classes
from lorawatch.run import Run

_NUMBER = r"[-+]?(?:\d+\.?\d*(?:[eE][-+]?\d+)?|\.\d+|nan|inf)"
_SEGMENT = re.compile(
    rf"^(?P<first>{_NUMBER}|_)(?:(?P<shape>>>|>|\^)(?P<last>{_NUMBER}))?"
    rf"(?:\s*x(?P<count>\d+))?(?:\s*~(?P<noise>{_NUMBER})(?P<share>%)?)?$"
)


def series(text: str, rng: random.Random) -> list[float | None]:
    """The values that a series text stands for."""
    values: list[float | None] = []
    for part in text.split(","):
        found = _SEGMENT.match(part.strip())
        if found is None:
            raise ValueError(f"not a segment: {part.strip()!r}")
        count = int(found["count"] or 1)
        if found["first"] == "_":
            values.extend([None] * count)
            continue
        first = float(found["first"])
        last = float(found["last"]) if found["last"] else first
        noise = float(found["noise"] or 0.0) / (100.0 if found["share"] else 1.0)
        for index in range(count):
            share = index / max(count - 1, 1)
            if found["shape"] == "^":
                value = last if index % 2 else first
            elif found["shape"] == ">>":
                value = last + (first - last) * math.exp(-5 * share)
            else:
                value = first + (last - first) * share if found["shape"] else first
            if noise:
                value += rng.gauss(0.0, noise) * (abs(value) if found["share"] else 1.0)
            values.append(value)
    return values


@dataclass(frozen=True, slots=True)
class Case:
    """One sentence about one rule."""

    rule: str
    name: str
    spec: dict[str, Any]

    def __str__(self) -> str:
        return f"{self.rule} {self.name}"

    def records(self) -> Iterator[Record]:
        """The records of the case, in order."""
        rng = random.Random(self.name)  # noqa: S311
        every = self.spec.get("every", 1)
        if "facts" in self.spec:
            yield FactUpdate(self.spec["facts"], "fixture")
        train = {name: series(text, rng) for name, text in self.spec.get("train", {}).items()}
        evals = {name: series(text, rng) for name, text in self.spec.get("eval", {}).items()}
        rows = max((len(values) for values in train.values()), default=0)
        eval_rows = max((len(values) for values in evals.values()), default=0)
        per_epoch = self.spec.get("rows_per_epoch", max(rows, 1))
        events = {item["at"]: item for item in self.spec.get("events", [])}
        looks = sorted(self.spec.get("looks", []), key=lambda item: item.get("at", 0))
        done = 0
        seconds = self.spec.get("seconds")
        clock = 0.0
        for index in range(rows):
            step = (index + 1) * every
            if index in events:
                item = events[index]
                yield LifecycleEvent(cast("Event", item["event"]), step=item.get("step", index * every))
            while looks and looks[0].get("at", 0) <= index:
                yield _look(looks.pop(0))
            values = {
                name: value for name, column in train.items() if index < len(column)
                and (value := column[index]) is not None
            }  # fmt: skip
            clock += seconds or 0.0
            if values:
                yield MetricRow(step, values, (index + 1) / per_epoch, clock if seconds else None)
            while eval_rows and (done + 1) * rows <= (index + 1) * eval_rows:
                row = _eval_row(evals, done, step, (index + 1) / per_epoch)
                clock += row.values.get("eval_runtime", 0.0)
                yield msgspec.structs.replace(row, time=clock) if seconds else row
                done += 1
        for index in range(done, eval_rows):
            yield _eval_row(evals, index, (index + 1) * every, float(index + 1))
        yield from map(_look, looks)
        if self.spec.get("ends", True):
            yield LifecycleEvent("ended", step=rows * every)

    def readings(self) -> Iterator[Record]:
        """The records of a case of readings, in order."""
        if "facts" in self.spec:
            yield FactUpdate(self.spec["facts"], "fixture")
        interval, steps_a_tick = self.spec.get("interval", 10.0), self.spec.get("steps_a_tick", 10)
        tables = {name: self._table(name) for name in self.spec if _READING.fullmatch(name)}
        steps = tables.pop("step", {})
        train = {name: series(text, random.Random(self.name)) for name, text in self.spec.get("train", {}).items()}  # noqa: S311
        lengths = [len(column) for table in tables.values() for column in table.values()]
        lengths += [-(-len(column) // steps_a_tick) for column in steps.values()] + [len(one) for one in train.values()]
        ticks = self.spec.get("ticks", max(lengths, default=1))
        timed = bool(steps or {"timing", "allocator"} & set(tables))
        events = {item["at"]: item for item in self.spec.get("events", [])}
        for tick in range(ticks):
            now = (tick + 1) * interval
            if tick in events:
                yield LifecycleEvent(cast("Event", events[tick]["event"]), step=tick, time=now - interval)
            values = {name: _at(table, tick) for name, table in tables.items()}
            for change in self.spec.get("changes", []):
                if change.get("at") == tick or tick >= change.get("from", ticks):
                    for name, fields in change.items():
                        if name not in ("at", "from"):
                            values.setdefault(name, {}).update(fields)
            step = (tick + 1) * steps_a_tick if timed else tick + 1
            if timed:
                taken = [
                    {"forward_backward": 0.1, "optimizer": 0.01, **_at(steps, number)}
                    for number in range(tick * steps_a_tick, (tick + 1) * steps_a_tick)
                ]
                timing: dict[str, Any] = {"step": step, "span": steps_a_tick, "time": now, **values.get("timing", {})}
                if steps:
                    timing["steps"] = [Step(**{"data_wait": None, **_whole(one)}) for one in taken]
                if "allocator" in values:
                    empty = {"allocated": 0, "peak_allocated": 0, "reserved": 0, "peak_reserved": 0}
                    timing["allocator"] = msgspec.convert(_whole(empty | values["allocator"]), AllocatorReading)
                yield StepTiming(**timing)
            cards = [
                {"index": int(name[3:] or 0), "uuid": f"GPU-{name[3:] or 0}", **_whole(fields)}
                for name, fields in values.items() if name.startswith("gpu")
            ]  # fmt: skip
            if cards:
                yield GpuReading(now, msgspec.convert(cards, list[Card]), interval if tick else 0.0)
            if "host" in values:
                fields = {"type": "host", "time": now, "seconds": interval if tick else 0.0, **_whole(values["host"])}
                yield msgspec.convert(fields, HostReading)
            row = {name: value for name, value in _at(train, tick).items() if value is not None}
            if row:
                yield MetricRow(step, row, time=now)
        if self.spec.get("ends", True):
            yield LifecycleEvent("ended", time=ticks * interval)

    def _table(self, name: str) -> dict[str, list[Any]]:
        rng = random.Random(self.name)  # noqa: S311
        return {
            field: series(value, rng) if isinstance(value, str) and _is_series(value) else [value]
            for field, value in self.spec[name].items()
        }

    def all_records(self) -> Iterator[Record]:
        """The records of a case of either sort."""
        return self.readings() if any(_READING.fullmatch(name) for name in self.spec) else self.records()

    def run(self) -> Engine:
        """An engine with this one rule, after all records."""
        rule = next(one for one in rule_classes() if one.id == self.rule)
        engine = Engine(Run("fixture"), [rule()])
        for record in self.all_records():
            engine.feed(record)
        return engine


def _look(item: dict[str, Any]) -> Record:
    fields = {name: value for name, value in item.items() if name != "at"}
    return cast("Record", msgspec.convert(fields, Record))


_READING = re.compile(r"gpu\d*|host|allocator|step|timing")
_WHOLE = {
    name for kind in (Card, HostReading, AllocatorReading, Step)
    for name, hint in kind.__annotations__.items() if hint in ("int", "int | None")
}  # fmt: skip


def _is_series(text: str) -> bool:
    return _SEGMENT.match(text.split(",", maxsplit=1)[0].strip()) is not None


def _at(table: dict[str, list[Any]], index: int) -> dict[str, Any]:
    """The values of a tick or a step; the last one of a column stays."""
    return {name: column[min(index, len(column) - 1)] for name, column in table.items()}


def _whole(fields: dict[str, Any]) -> dict[str, Any]:
    """Bytes and counts as whole numbers, without what is absent."""
    return {
        name: round(value) if name in _WHOLE and isinstance(value, float) else value
        for name, value in fields.items() if value is not None
    }  # fmt: skip


def _eval_row(evals: dict[str, list[float | None]], index: int, step: int, epoch: float) -> MetricRow:
    values = {name: value for name, column in evals.items() if (value := column[index]) is not None}
    return MetricRow(step, values, epoch=epoch)


def load_cases(file: Path) -> list[Case]:
    """The cases of one fixture file."""
    import tomllib

    document = tomllib.loads(file.read_text(encoding="utf-8"))
    return [Case(document["rule"], case["name"], case) for case in document["case"]]
