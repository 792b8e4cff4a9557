"""Small logs in every shape, made by hand, and what the tests of all formats share."""

from __future__ import annotations

import json
import random
import struct
from collections.abc import Callable, Iterable
from pathlib import Path

from lorawatch.records import Event, FactUpdate, LifecycleEvent, MetricRow, Record
from lorawatch.source import Source
from lorawatch.sources.console import ConsoleSource
from lorawatch.sources.json_history import JsonHistorySource
from lorawatch.sources.jsonl import JsonlSource, LlamaFactorySource
from lorawatch.sources.lorawatch_jsonl import LorawatchSource, encode
from lorawatch.sources.tensorboard import TensorboardSource
from lorawatch.sources.trainer_state import TrainerStateSource


def bar(n: int, total: int) -> str:
    return f"\r{100 * n // total:3d}%|██▌       | {n}/{total} [00:{n % 60:02d}<01:40,  1.00s/it]"


def row(step: int, per_epoch: int = 100, *, words: bool = False, **more: float) -> str:
    values = {"loss": round(3 / step + 1, 4), "grad_norm": 0.5 + step / 7, "learning_rate": 2e-4 / step}
    values |= more | {"epoch": round(step / per_epoch, 2)}
    return str({name: f"{value:.4g}" for name, value in values.items()} if words else values)


def live_console(steps: int = 40, every: int = 5, total: int = 100, *, words: bool = False) -> str:
    """As a terminal shows it: the bar, erased, the row, the bar again."""
    text = bar(0, total)
    for step in range(1, steps + 1):
        text += bar(step, total)
        if step % every == 0:
            text += "\r" + " " * 60 + "\r" + row(step, words=words) + "\n" + bar(step, total)
    return text + "\n"


def lagging_console(steps: int = 60, every: int = 5, total: int = 100, flush: int = 4) -> str:
    """Stdout into a file: rows come late, several at once, while the bars have moved on."""
    text, held = bar(0, total), []
    for step in range(1, steps + 1):
        text += bar(step, total)
        if step % every == 0:
            held.append(row(step))
            text += "\r" + " " * 60 + "\r"
            if len(held) == flush:
                text += "\n".join(held) + "\n"
                held = []
            text += "\r" + bar(step, total)
    return text + "\n" + "".join(line + "\n" for line in held)


def frame(data: bytes) -> bytes:
    return struct.pack("<Q", len(data)) + b"\0\0\0\0" + data + b"\0\0\0\0"


def scalar(tag: str, value: float, step: int, time: float = 1.7e9) -> bytes:
    name = tag.encode()
    inner = b"\x0a" + bytes([len(name)]) + name + b"\x15" + struct.pack("<f", value)
    summary = b"\x0a" + bytes([len(inner)]) + inner
    varint = b""
    number = step
    while number > 127:
        varint += bytes([number & 127 | 128])
        number >>= 7
    varint += bytes([number])
    return frame(b"\x09" + struct.pack("<d", time) + b"\x10" + varint + b"\x2a" + bytes([len(summary)]) + summary)


def event_file(steps: int = 20) -> bytes:
    data = frame(b"\x09" + struct.pack("<d", 1.7e9) + b"\x1a\x0dbrain.Event:2")
    for step in range(1, steps + 1):
        for tag, value in (("train/loss", 2.0 / step), ("train/epoch", step / 100), ("train/learning_rate", 1e-4)):
            data += scalar(tag, value, step, 1.7e9 + step)
        if step % 5 == 0:
            data += scalar("eval/loss", 3.0 / step, step, 1.7e9 + step)
    return data


def trainer_state(steps: Iterable[int], **more: object) -> str:
    history = [{"loss": 3.0 / step, "grad_norm": 0.5, "epoch": step / 100, "step": step} for step in steps]
    return json.dumps({"global_step": history[-1]["step"] if history else 0, "log_history": history, **more})


def own_records(count: int = 30) -> list[Record]:
    chance = random.Random(3)  # noqa: S311 - the same each time
    events: list[Event] = ["started", "resumed", "saved", "ended"]
    records: list[Record] = [FactUpdate({"r": 8, "target_modules": ["q_proj"]}, "callback")]
    for step in range(1, count):
        value = chance.choice([1.5, float("nan"), float("inf"), -float("inf"), 1e-300])
        records.append(MetricRow(step, {"loss": value, "grad_norm": chance.random()}, step / 10, 1.7e9 + step))
        if step % 7 == 0:
            records.append(LifecycleEvent(chance.choice(events), step=step, detail="x"))
    return records


def llamafactory(steps: int = 30) -> str:
    text = ""
    for step in range(5, steps * 5 + 1, 5):
        found = {"current_steps": step, "total_steps": 500, "loss": 2.0 / step, "lr": 1e-4, "epoch": step / 100}
        text += json.dumps({**found, "percentage": 1.0, "elapsed_time": "0:01:02"}) + "\n"
        if step % 50 == 0:
            text += json.dumps({"current_steps": step, "total_steps": 500, "eval_loss": 1.0, "epoch": 1.0}) + "\n"
    return text


def generic(steps: int = 40) -> str:
    lines = [
        {"step": step, "train/loss": 2.0 / step, "lr": 1e-4, "tag": "a" if step % 9 == 0 else 1}
        for step in range(1, steps)
    ]
    return "".join(json.dumps(line) + "\n" for line in lines)


LINE_FORMATS: dict[str, tuple[Callable[..., Source], bytes]] = {
    "live console": (ConsoleSource, live_console().encode()),
    "lagging console": (ConsoleSource, lagging_console().encode()),
    "console of transformers 5": (ConsoleSource, live_console(words=True).encode()),
    "two runs in one console": (ConsoleSource, (live_console(20) + live_console(20, total=80)).encode()),
    "llamafactory": (LlamaFactorySource, llamafactory().encode()),
    "jsonl": (JsonlSource, generic().encode()),
    "lorawatch": (LorawatchSource, b"".join(map(encode, own_records()))),
    "tensorboard": (TensorboardSource, event_file()),
}
ALL_FORMATS: dict[str, tuple[Callable[..., Source], bytes]] = {
    **LINE_FORMATS,
    "trainer_state": (TrainerStateSource, trainer_state(range(5, 60, 5), max_steps=100).encode()),
    "json_history": (JsonHistorySource, json.dumps({"a": {"metrics": [{"step": 1, "loss": 2.0}] * 3}}).encode()),
}


def read(make: Callable[..., Source], path: Path, data: bytes | str | None = None) -> list[Record]:
    if data is not None:
        path.write_bytes(data.encode() if isinstance(data, str) else data)
    source = make(path)
    return [*source.poll(), *source.finish()]


def rows(records: Iterable[Record]) -> list[MetricRow]:
    return [record for record in records if isinstance(record, MetricRow)]


def events(records: Iterable[Record]) -> list[LifecycleEvent]:
    return [record for record in records if isinstance(record, LifecycleEvent)]


def facts(records: Iterable[Record]) -> dict[str, object]:
    merged: dict[str, object] = {}
    for record in records:
        if isinstance(record, FactUpdate):
            merged |= record.values
    return merged


def shown(records: Iterable[Record]) -> list[str]:
    """Records as text, so that NaN equals NaN and the order of names does not matter."""
    return [show(record) for record in records]


def show(record: Record) -> str:
    if isinstance(record, MetricRow):
        values = dict(sorted(record.values.items()))
        return repr(MetricRow(record.step, values, record.epoch, record.time, record.estimated))
    return repr(record)
