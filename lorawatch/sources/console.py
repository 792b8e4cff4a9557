"""Console logs of Hugging Face trainers, as they really are: mixed with bars, prefixes, warnings and other ranks."""

from __future__ import annotations

import math
import re
from itertools import repeat
from operator import le
from pathlib import Path
from typing import Any, ClassVar

from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow, Record
from lorawatch.sources.console_gap import Gap
from lorawatch.sources.console_kaggle import KaggleWrapping, is_wrapped
from lorawatch.sources.console_steps import StepClock
from lorawatch.sources.console_text import DICT, clean, decode_dicts, decode_joined, is_row
from lorawatch.sources.follow import CHUNK
from lorawatch.sources.lines import LineSource

_TIMES = re.compile(rb"\d{1,4}[-/.]\d{1,2}[-/.]\d{1,4}|\d{1,2}:\d{2}(?::\d{2})?")
_HOST = re.compile(
    rb"\s*(?:(\[?(?:rank|default|node|worker|gpu)[ _-]?\d+\]?):?\s|"  # torchrun --tee, accelerate
    rb"(\d{1,3}(?:\.\d{1,3}){3}|[A-Za-z][\w.-]*\d|\d{1,5}): )"  # DeepSpeed's pdsh, srun --label
)
# What may stand before a row: nothing, marks of a quotation, or a prefix that ends as loggers end theirs.
_PREFIX_END = re.compile(rb"(?:^|[:\]|>#\-%)\[}'\"]|\bINFO|\bDEBUG)\s*\Z")
_LONG = re.compile(rb"'grad_norm': '?\d*\.?\d*[1-9]\d{0,20}|'learning_rate': '?\d\.\d{8,}")
_ODD_NAMES = frozenset({"step", "train_runtime"})


class ConsoleSource(LineSource):
    """Follows a console log (``nohup.out``, ``slurm-*.out``, wandb's ``output.log``, Kaggle's JSON).

    The rows are dicts that the trainer prints; their steps are told by :class:`StepClock`. A run that starts again in
    the same file gives ``started``, one that goes back to a middle step ``resumed``, a ``train_runtime`` summary
    ``ended``. When several hosts print the same rows, only those of the first are taken.
    """

    format: ClassVar[str] = "console"
    precedence: ClassVar[int] = 1
    split_returns: ClassVar[bool] = True

    def __init__(self, path: Path, *, chunk: int = CHUNK) -> None:
        self._clock = StepClock()
        self._gap = Gap()
        self._wrapping = KaggleWrapping()
        self._host: bytes | None = None
        self._last_raw = b""
        self._last_bar: int | None = None
        self._evaluated: dict[str, str] = {}
        self._unit_total: int | None = None
        self._unit = DICT
        self._plain_last: int | None = None
        self._plain_first: int | None = None
        self._told_every: int | None = None
        self._told_total: int | None = None
        self._over = False  # the summary of the run was read
        super().__init__(path, chunk=chunk)

    def _parse(self, block: bytes) -> list[Record]:
        if self._wrapping.used or is_wrapped(block):
            bad = self._wrapping.bad_lines
            block = self._wrapping.unwrap(block)
            self._bad_lines += self._wrapping.bad_lines - bad
        block = clean(block)
        steady = self._steady(block)
        if steady is not None:
            return steady
        parts = DICT.split(block)
        dicts = parts[1::2]
        out: list[Record] = []
        # Torn, nested and JSON rows all show as an opening that the pattern did not take.
        odd = block.count(b"{'") != len(dicts) or b"': {'" in block or b'{"' in block
        clock = self._clock
        simple = not odd and b"train_runtime" not in block and b"'step'" not in block
        streak, step, last_epoch, epoch_limit, needle = 0, 0, 0.0, 0.0, b""
        every: int | None = None
        first, last_raw = parts[0], b""
        for raw, values, gap in zip(dicts, decode_dicts(dicts), parts[::2], strict=False):
            # The usual case, worth 1 µs a row: nothing before it but bars of this run, the last where the row is due.
            if every and gap[-1:] in b"\r\n" and gap.count(b"\n") <= 1 and gap is not first:
                at = gap.rfind(needle)
                number = gap[gap.rfind(b" ", 0, at) + 1 : at] if at > 0 else b""
                if number.isdigit() and int(number) == step + every and values and "loss" in values:
                    epoch = values.get("epoch")
                    brackets = gap.count(b"[")
                    if (
                        epoch is not None
                        and last_epoch <= epoch <= epoch_limit
                        and (brackets == 1 or brackets == gap.count(needle))
                    ):
                        del values["epoch"]
                        step, last_epoch, last_raw = step + every, epoch, raw
                        streak += 1
                        out.append(MetricRow(step, values, epoch))
                        continue
            if streak:
                clock.advance(streak, step, last_epoch)
                self._last_raw, self._last_bar, streak = last_raw, step, 0
            every = None
            if gap == b"\n" and gap is not first:
                pass  # nothing but the line end of the last row
            else:
                self._read_gap(gap, out, before_dict=True)
                if not self._takes(gap, raw):
                    continue
            if values is None or not is_row(values):
                self._bad_lines += values is None and b"'loss'" in raw
                continue
            self._row(values, raw, out)
            usual = simple and clock.settled and clock.total is not None and clock.epoch is not None
            every = clock.every if usual and clock.every == self._told_every else None
            if every and clock.epoch is not None:
                step, last_epoch, epoch_limit = clock.step, clock.epoch, clock.epoch_of_rate * 1.3
                needle = b"/%d [" % (clock.total or 0)
        if streak:
            clock.advance(streak, step, last_epoch)
            self._last_raw, self._last_bar = last_raw, step
        self._read_gap(parts[-1], out, before_dict=False)
        return out

    def _steady(self, block: bytes) -> list[Record] | None:
        """Read a block that holds nothing but rows, each behind a bar at the step where it is due; None for others.

        Everything here runs over the whole block in C, because that is what a log looks like most of the time. What
        is asked of the block is what makes it sure that reading it row by row would give the same.
        """
        clock = self._clock
        every, total, last_epoch = clock.every, clock.total, clock.epoch
        if not every or total is None or last_epoch is None or not clock.settled:
            return None
        if every != self._told_every or self._gap.torn:
            return None
        if self._unit_total != total:
            self._unit_total = total
            # Loose where a count below makes it strict: what it excludes is looked for at each character.
            self._unit = re.compile(rb"\| (\d+)/%d \[\d[^][]*\][ \r]*\r(\{'[^}]*\})\r?\n" % total)
            self._bar = re.compile(rb"/%d \[" % total)
        units = self._unit.findall(block)
        count = len(units)
        if (
            not count
            or block[-1:] != b"\n"
            or block.count(b"\n") != count
            or block.count(b"{") != count
            or block.count(b"[") != len(self._bar.findall(block))
        ):
            return None
        numbers, dicts = zip(*units, strict=True)
        steps = list(map(int, numbers))
        if steps != list(range(clock.step + every, clock.step + every * (count + 1), every)):
            return None
        joined = b",".join(dicts)
        rows = None if b"\r" in joined else decode_joined(joined, count)
        if rows is None:
            return None
        for names in set(map(tuple, rows)):
            if "loss" not in names or "epoch" not in names or not _ODD_NAMES.isdisjoint(names):
                return None
        epochs = list(map(dict.pop, rows, repeat("epoch")))
        # Sorted, and no NaN: those compare unequal to themselves once they have moved.
        if not epochs[0] >= last_epoch or not epochs[-1] < math.inf or not _ascending(epochs):
            return None
        clock.learn_rate(steps, epochs)
        clock.advance(count, steps[-1], epochs[-1])
        self._last_raw, self._last_bar = dicts[-1], steps[-1]
        return list(map(MetricRow, steps, rows, epochs))

    def _takes(self, gap: bytes, raw: bytes) -> bool:
        """Whether what stands before a dict in its line lets it be a row, and one of the host that is followed."""
        prefix = gap[max(gap.rfind(b"\n"), gap.rfind(b"\r")) + 1 :]
        if not prefix.strip():
            return True
        if len(prefix) > 1_000 or not _PREFIX_END.search(prefix) or prefix.endswith(b"': "):
            return False
        host = _HOST.match(_TIMES.sub(b"", prefix))
        name = (host[1] or host[2]) if host else None
        if name is None or name == self._host:
            return True
        if self._host is None:
            self._host = name
            return True
        return False

    def _read_gap(self, text: bytes, out: list[Record], *, before_dict: bool) -> None:
        for found in self._gap.feed(text, self._clock, before_dict=before_dict):
            if found.kind == "facts":
                self._facts(found.facts, out)
            elif found.kind == "plain":
                self._plain(found.step, found.values, out)
            elif found.kind == "torn":
                values = decode_dicts([found.raw])[0]
                if values is None or not is_row(values):
                    self._bad_lines += 1
                else:
                    self._row(values, found.raw, out)
            elif found.kind == "eval":
                self._told_again(found.values, out)
            elif found.kind == "json":
                self._row(found.values, b"", out)
            else:
                self._bad_lines += 1

    def _row(self, values: dict[str, float], raw: bytes, out: list[Record]) -> None:
        clock = self._clock
        epoch = values.pop("epoch", None)
        stated = values.pop("step", None)
        if "train_runtime" in values:
            numbers = ", ".join(f"{name} {value:g}" for name, value in values.items())
            self._over = True
            out.append(LifecycleEvent("ended", step=clock.step or None, detail=numbers[:300]))
            return
        if "loss" not in values and "reward" not in values and "learning_rate" not in values:
            step, estimated = clock.other(epoch, self._gap.marks)
            kept = self._evaluated if len(self._evaluated) < 200 else {}  # names come from a log
            self._evaluated = kept | {name: repr(value) for name, value in list(values.items())[:100]}
            out.append(MetricRow(step, values, epoch, None, estimated))
            return
        if raw == self._last_raw and raw and clock.bar == self._last_bar and _LONG.search(raw):
            return  # the same row of another rank: figures of so many digits do not repeat by chance
        self._last_raw, self._last_bar = raw, clock.bar
        if clock.rows and (
            (epoch is not None and clock.epoch is not None and epoch < clock.epoch)
            or (epoch is None and clock.bar is not None and clock.bar < clock.step - 2 * (clock.every or 1))
        ):
            self._went_back(epoch, out)
        elif self._over and self._gap.other and self._gap.other[1] != clock.total:
            self._goes_further(*self._gap.other, out)
        self._over = False
        if stated is not None and clock.step < stated < 1e12 and stated.is_integer():
            clock.bar, clock.every, clock.settled = int(stated), int(stated) - clock.step, True
        gap = self._gap
        step, estimated = clock.train(epoch, gap.marks)
        if gap.marks or gap.other:
            gap.row_taken(clock)
        if clock.settled and clock.every != self._told_every:
            self._told_every = clock.every
            out.append(FactUpdate({"logging_steps": clock.every}, "console", inferred=True))
        if clock.total != self._told_total and clock.bar is not None:
            self._told_total = clock.total
            out.append(FactUpdate({"max_steps": clock.total}, "console", inferred=True))
        out.append(MetricRow(step, values, epoch, None, estimated))

    def _told_again(self, values: dict[str, float], out: list[Record]) -> None:
        """A figure of an evaluation's block: mostly what the trainer's dict has told already, with fewer digits."""
        for name, value in values.items():
            known = self._evaluated.get(name)
            if name != "epoch" and (known is None or abs(float(known) - value) > 1e-3 * max(1.0, abs(value))):
                self._row(dict(values), b"", out)

    def _went_back(self, epoch: float | None, out: list[Record]) -> None:
        """A training row lies before the last one: a new run, or this one resumed."""
        clock, gap = self._clock, self._gap
        bar, total = gap.other or (clock.bar or 0, clock.total)
        if epoch is not None and clock.first_epoch is not None:
            anew = epoch <= clock.first_epoch * 1.5 + 1e-9
        else:
            anew = bar <= clock.first_step * 1.5
        if anew:
            self._start_anew(bar, total, out)
            return
        step = clock.step_at(epoch, bar if bar < clock.step else None)
        clock.go_on_from(step)
        clock.total = total
        out.append(LifecycleEvent("resumed", step=step))

    def _goes_further(self, bar: int, total: int, out: list[Record]) -> None:
        """A row at another bar after the run's end: a run of other data, whose epochs lie further, or a longer one."""
        if bar < self._clock.step:
            self._start_anew(bar, total, out)
        else:
            self._clock.total, self._clock.bar = total, bar

    def _start_anew(self, bar: int, total: int | None, out: list[Record]) -> None:
        clock = self._clock
        clock.restart()
        clock.total, clock.bar = total, bar or None
        self._told_every = self._told_total = None
        out.append(LifecycleEvent("started"))

    def _plain(self, step: int, values: dict[str, float], out: list[Record]) -> None:
        """A row of a trainer that prints its step; where Hugging Face rows stand too, those are the log."""
        clock = self._clock
        if clock.rows:
            return
        last = self._plain_last
        if last is not None and step < last:
            if step <= (self._plain_first or 0):
                self._plain_first = step
                out.append(LifecycleEvent("started"))
            else:
                out.append(LifecycleEvent("resumed", step=step))
        elif last is not None and step == last:
            return
        if self._plain_first is None:
            self._plain_first = step
        self._plain_last = step
        out.append(MetricRow(step, values))

    def _facts(self, facts: dict[str, Any], out: list[Record]) -> None:
        clock = self._clock
        out.append(FactUpdate(facts, "console"))
        total, every, epochs = facts.get("max_steps"), facts.get("logging_steps"), facts.get("num_train_epochs")
        if isinstance(total, int) and total > 0:
            clock.stated_total = total
            if clock.rows == 0:
                clock.total = total
        if isinstance(every, int) and every > 0:
            clock.stated_every = every
        if isinstance(epochs, int | float) and 0 < epochs < 1e6:
            clock.stated_epochs = float(epochs)

    def _parse_end(self) -> list[Record]:
        rest = self._wrapping.rest()
        return self._parse(rest + b"\n") if rest else []

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = {name: getattr(self, name) for name in _PLAIN_STATE}
        for name in _BYTES_STATE:
            value = getattr(self, name)
            state[name] = None if value is None else value.decode("latin-1")
        state |= {"clock": self._clock.state(), "gap": self._gap.state(), "kaggle": self._wrapping.state()}
        return {**state, "eval": self._evaluated}

    def _restore(self, state: dict[str, Any]) -> None:
        for name in _PLAIN_STATE:
            setattr(self, name, state[name])
        for name in _BYTES_STATE:
            value = state[name]
            setattr(self, name, None if value is None else value.encode("latin-1"))
        self._clock.restore(state["clock"])
        self._gap.restore(state["gap"])
        self._evaluated = dict(state["eval"])
        self._wrapping.restore(state["kaggle"])


def _ascending(numbers: list[float]) -> bool:
    return all(map(le, numbers, numbers[1:]))


_PLAIN_STATE = ("_over", "_last_bar", "_told_every", "_told_total", "_plain_last", "_plain_first")
_BYTES_STATE = ("_host", "_last_raw")
