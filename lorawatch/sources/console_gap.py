"""Reads what stands between two rows of a console log: bars, printed arguments, torn rows, other trainers' lines."""

from __future__ import annotations

import re
from typing import Any, Literal, NamedTuple

from lorawatch.sources.console_steps import StepClock
from lorawatch.sources.console_text import Bar, read_bar, read_facts, read_json_dicts, read_plain, read_title

_BLOCK = re.compile(rb"\*{3,} ?(?:eval metrics|Evaluation results|Eval results).{0,80}", re.IGNORECASE)
_BLOCK_LINE = re.compile(
    rb"(?:.{0,120} - +)?\s*(epoch|eval_[\w/]{1,80}) +=? *([+-]?\d[\d.]*(?:[eE][+-]?\d+)?|nan|inf)\s*\Z"
)
_TORN_LIMIT = 1 << 14
_HOST_TITLE = re.compile(rb"[#\[\w.-]{0,40}\d\]?:?|#|\[?rank\d+\]?:?|")


class Found(NamedTuple):
    """One thing that a gap said."""

    kind: Literal["facts", "plain", "torn", "bad", "json", "eval"]
    facts: dict[str, Any]
    step: int
    values: dict[str, float]
    raw: bytes


def _found(
    kind: Literal["facts", "plain", "torn", "bad", "json", "eval"],
    facts: dict[str, Any] | None = None,
    step: int = 0,
    values: dict[str, float] | None = None,
    raw: bytes = b"",
) -> Found:
    return Found(kind, facts or {}, step, values or {}, raw)


class Gap:
    """Goes through the text between rows, piece by piece; moves the bar of the clock.

    A piece is what stands between two carriage returns or line feeds. The reader may be handed a gap in several parts,
    as long as they are cut after such a character.

    Attributes:
        marks: The first positions at which the bar was erased and drawn again: tqdm erases it to let something be
            printed, and draws it anew at once. Ascending.
        other: Position and total of the last bar that is not the training bar: an evaluation, or another run.
    """

    __slots__ = ("_after_dict", "_block", "_block_epoch", "_erased", "_last", "_outer", "_torn", "marks", "other")

    def __init__(self) -> None:
        self.marks: list[int] = []
        self.other: tuple[int, int] | None = None
        self._last: tuple[int, int] | None = None
        self._outer: tuple[int, int] | None = None
        self._erased = False
        self._after_dict = False
        self._torn = b""
        self._block = False
        self._block_epoch: float | None = None

    def state(self) -> dict[str, Any]:
        """All attributes, as plain JSON."""
        state = {name: getattr(self, name) for name in self.__slots__}
        return {**state, "marks": list(self.marks), "_torn": self._torn.decode("latin-1")}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned."""
        for name in self.__slots__:
            value = state[name]
            setattr(self, name, tuple(value) if name in {"other", "_last", "_outer"} and value else value)
        self.marks = list(state["marks"])
        self._torn = state["_torn"].encode("latin-1")

    @property
    def torn(self) -> bool:
        """Whether a row was torn in two, and its second half has not come."""
        return bool(self._torn)

    def row_taken(self, clock: StepClock) -> None:
        """A training row was read: what was gathered for it is used up."""
        self.marks = [] if clock.settled else [mark for mark in self.marks if mark > clock.step]
        self.other = None

    def feed(self, text: bytes, clock: StepClock, *, before_dict: bool) -> list[Found]:
        """Go through text that follows a dict or a line end.

        Args:
            text: The text.
            clock: Its bar is moved.
            before_dict: A dict follows, so that the last piece is no whole line.
        """
        found: list[Found] = []
        lines = text.split(b"\n")
        for number, line in enumerate(lines):
            whole = number < len(lines) - 1
            pieces = line.removesuffix(b"\r").split(b"\r")
            for index, piece in enumerate(pieces):
                last = not whole and index == len(pieces) - 1
                if last and not before_dict:
                    break  # the empty rest after the last line end
                self._piece(piece, clock, found, whole=not last, ends_line=whole and index == len(pieces) - 1)
            if whole:
                self._after_dict = False
                if self._torn:
                    self._torn = b""
                    found.append(_found("bad"))
        if before_dict:
            self._erased = False
            self._after_dict = True
        return found

    def _piece(self, piece: bytes, clock: StepClock, found: list[Found], *, whole: bool, ends_line: bool) -> None:
        if not piece.strip():
            # tqdm erases its bar with spaces before something is printed.
            self._erased = self._erased or len(piece) > 4
            return
        bar = read_bar(piece)
        if self._torn:
            self._mend(piece if bar is None else piece[bar.end :], found)
        elif bar is None and ends_line and not self._after_dict:
            self._line(piece, found)
        if bar is not None:
            self._bar(bar, clock, found)
        self._erased = False
        self._tear(piece, found, whole=whole)

    def _tear(self, piece: bytes, found: list[Found], *, whole: bool) -> None:
        at = piece.rfind(b"{'")
        if at < 0 or b"}" in piece[at:]:
            return
        opening = piece[at:]
        if whole and (b"'loss'" in opening or b"'eval_" in opening) and len(opening) < _TORN_LIMIT:
            self._torn = opening

    def _mend(self, rest: bytes, found: list[Found]) -> None:
        """Go on with a row that a progress bar tore in two."""
        end = rest.find(b"}")
        if end < 0 and len(self._torn) + len(rest) < _TORN_LIMIT:
            self._torn += rest
            return
        found.append(_found("torn", raw=self._torn + rest[: end + 1]) if end >= 0 else _found("bad"))
        self._torn = b""

    def _line(self, piece: bytes, found: list[Found]) -> None:
        if b'{"' in piece:
            found.extend(_found("json", values=row) for row in read_json_dicts(piece))
            return
        if piece.lstrip()[:3] == b"***" or b"***** " in piece:
            self._block = bool(_BLOCK.search(piece))
            self._block_epoch = None
        elif self._block:
            self._block_line(piece, found)
            return
        plain = read_plain(piece)
        if plain is not None:
            found.append(_found("plain", step=plain[0], values=plain[1]))
            return
        facts = read_facts(piece)
        if facts:
            found.append(_found("facts", facts=facts))

    def _block_line(self, piece: bytes, found: list[Found]) -> None:
        """A line of the block that the example scripts print after an evaluation."""
        match = _BLOCK_LINE.match(piece)
        if match is None:
            # Run times are printed as 0:00:10.12: they stand in the block, and tell nothing of the model.
            self._block = b"eval_" in piece or b"perplexity" in piece
        elif match[1] == b"epoch":
            self._block_epoch = _float(match[2])
        elif not match[1].endswith((b"runtime", b"per_second", b"samples")):
            values = {match[1].decode("ascii", "replace"): _float(match[2])}
            if self._block_epoch is not None:
                values["epoch"] = self._block_epoch
            found.append(_found("eval", values=values))

    def _bar(self, bar: Bar, clock: StepClock, found: list[Found]) -> None:
        place = (bar.n, bar.total)
        same = self._last is not None and self._last[1] == bar.total
        printed = self._erased and same
        titled = not _HOST_TITLE.fullmatch(bar.title)
        if clock.rows and bar.total == clock.total:
            clock.bar, self.other = bar.n, None
        elif bar.postfix:
            found.append(_found("plain", step=bar.n, values=bar.postfix))
        elif titled and (loss := read_title(bar.title)) is not None:
            found.append(_found("plain", step=bar.n, values={"loss": loss}))
        elif titled or bar.n > bar.total:
            return  # loading shards, mapping a dataset
        elif clock.total not in {None, bar.total} and (clock.rows or (self.marks and not printed)):
            self.other = place  # rows were printed at the bar that is followed: this one is an evaluation's
        elif clock.stated_total in {None, bar.total} or clock.rows:
            if clock.total != bar.total or clock.start is None:
                # A bar that comes back after another one, an evaluation's, began where it began before.
                outer = self._outer
                moving = clock.total is not None and clock.start is not None and 0 < (clock.bar or 0) < clock.total
                self._outer = (clock.total or 0, clock.start or 0) if moving else None
                clock.start = outer[1] if outer and outer[0] == bar.total else bar.n
                self.marks = []
            clock.total, clock.bar = bar.total, bar.n
        if bar.total == clock.total:
            if bar.n < (clock.bar or 0) or (self.marks and bar.n < self.marks[-1]):
                self.marks = []
            if printed and bar.n and len(self.marks) < 3 and bar.n not in self.marks:
                self.marks.append(bar.n)
        self._last = place


def _float(text: bytes) -> float:
    try:
        return float(text)
    except ValueError:  # 1.2.3
        return float("nan")
