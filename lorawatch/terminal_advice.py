"""The part of the live view that says what to change."""

from __future__ import annotations

from rich.cells import cell_len

from lorawatch.engine import Engine
from lorawatch.findings import Adjustment
from lorawatch.render import adjustment_text
from lorawatch.terminal_text import ACCENT, BOLD, DIM, NEXT, PLAIN, Line, Part, clean, line, spread, wrapped

_APPLY = {
    "restart": "restart the run",
    "resume": "resume from a checkpoint",
    "live": "can be changed live",
    "check": "look first",
}


def advice(engine: Engine, width: int, detail: int) -> list[Line]:
    """The one change to make next, with its reason and cost; the others behind it, a line each."""
    chosen = engine.next_adjustment()
    others = _others(engine, chosen)
    lines: list[Line] = []
    if chosen is not None:
        terms = f"{_APPLY[chosen.apply]} · {chosen.confidence} confidence"
        change = clean(adjustment_text(chosen), 200)
        beside = 6 + cell_len(change) + 2 + cell_len(terms) <= width
        # What to set is never cut: its terms stand behind the reason where both do not fit on one line.
        first, *more = wrapped(change, width, 6, BOLD)
        lines.append(spread([("Next  ", NEXT), (change, BOLD)], [(terms, DIM)], width) if beside else _headed(first))
        lines += more
        why = clean(chosen.why) + (f". Cost: {clean(chosen.cost, 200)}" if chosen.cost else "")
        lines += wrapped(why if beside else f"{why} ({terms})", width, 6, most=1 if detail == 0 else 3)
    shown = (0, 1, 2, 4)[detail]
    hidden = len(others) - shown
    for index, adjustment in enumerate(others[:shown], start=1):
        rest = f"+{hidden} more" if hidden > 0 and index == shown else ""
        lines.append(_other(adjustment, rest, width))
    return lines


def _others(engine: Engine, chosen: Adjustment | None) -> list[Adjustment]:
    """The further adjustments of the causes, one for each parameter: a symptom goes with its cause."""
    told = {chosen.parameter} if chosen is not None else set()
    rest: list[Adjustment] = []
    for finding in engine.active():
        if not finding.is_root:
            continue
        for adjustment in finding.adjustments:
            subject = adjustment.parameter or str(adjustment.proposed)
            if subject not in told:
                told.add(subject)
                rest.append(adjustment)
    return rest


def _headed(text: Line) -> Line:
    """``text``, which is indented by six cells, with the head in its indent."""
    return Line([("Next  ", NEXT), *text.parts[1:]])


def _other(adjustment: Adjustment, rest: str, width: int) -> Line:
    head = "Then  " if adjustment.parameter else "Look  "
    reason = adjustment.conflicts or adjustment.why
    words: list[Part] = [(head, ACCENT), (clean(adjustment_text(adjustment), 200), PLAIN), (f"  {clean(reason)}", DIM)]
    return spread(words, [(rest, DIM)], width) if rest else line(words, width)
