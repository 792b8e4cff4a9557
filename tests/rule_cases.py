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
from lorawatch.records import Event, FactUpdate, LifecycleEvent, MetricRow, Record
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
        done = 0
        seconds = self.spec.get("seconds")
        clock = 0.0
        for index in range(rows):
            step = (index + 1) * every
            if index in events:
                item = events[index]
                yield LifecycleEvent(cast("Event", item["event"]), step=item.get("step", index * every))
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
        if self.spec.get("ends", True):
            yield LifecycleEvent("ended", step=rows * every)

    def run(self) -> Engine:
        """An engine with this one rule, after all records."""
        rule = next(one for one in rule_classes() if one.id == self.rule)
        engine = Engine(Run("fixture"), [rule()])
        for record in self.records():
            engine.feed(record)
        return engine


def _eval_row(evals: dict[str, list[float | None]], index: int, step: int, epoch: float) -> MetricRow:
    values = {name: value for name, column in evals.items() if (value := column[index]) is not None}
    return MetricRow(step, values, epoch=epoch)


def load_cases(file: Path) -> list[Case]:
    """The cases of one fixture file."""
    import tomllib

    document = tomllib.loads(file.read_text(encoding="utf-8"))
    return [Case(document["rule"], case["name"], case) for case in document["case"]]
