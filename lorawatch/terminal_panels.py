"""The parts of the live view, each a function from a run to lines of text; no part knows a terminal."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Sequence

from rich.style import Style

from lorawatch.engine import Abstention, Engine
from lorawatch.exporter import Watched
from lorawatch.findings import Finding, Severity
from lorawatch.render import grouped, number, value_text
from lorawatch.run import Run
from lorawatch.terminal_curve import EVAL_MARK, plot
from lorawatch.terminal_history import RunHistory
from lorawatch.terminal_text import (
    ACCENT,
    BOLD,
    DIM,
    GOOD,
    NEXT,
    PLAIN,
    SEVERITY_STYLES,
    Line,
    Part,
    clean,
    cut,
    duration,
    line,
    severity_parts,
    spread,
    wrapped,
)

_AXIS = 8
_TRAIN = ACCENT
_EVAL = Style(color="magenta", bold=True)


def status(run: Run) -> Part:
    """Whether the run is waiting, live or ended."""
    if run.ended:
        return ("■ ended", DIM)
    return ("● live", GOOD) if run.rows else ("○ waiting", DIM)


def header(watched: Watched, metrics_address: str, width: int) -> list[Line]:
    """Who is watched, by which file, and where its metrics are."""
    run = watched.engine.run
    sources = list(watched.sources)
    source = clean(sources[0], 80) if sources else ""
    if len(sources) > 1:
        source += f" + {len(sources) - 1} more"
    address: list[Part] = [(clean(metrics_address, 80), DIM)] if metrics_address else []
    return [
        spread(
            [("lorawatch  ", NEXT), (clean(watched.name, 120), BOLD)],
            [(f"{run.kind.value}   ", DIM), status(run)],
            width,
        ),
        spread([(source, DIM)], address, width),
    ]


def progress(run: Run, history: RunHistory, width: int) -> list[Line]:
    """How far the run is, and how long it will take by the times in its records."""
    total, share = run.max_steps, run.progress
    pace = history.pace.seconds_per_step or run.typical_step_seconds  # by the rows' times, or by when they arrived
    about = "≈" if run.steps_estimated else ""
    words: list[Part] = [(f"step {about}{run.step:,}", BOLD)]
    if total:
        words.append((f" of {total:,}", PLAIN))
    rest: list[str] = []
    if run.epoch is not None:
        rest.append(f"epoch {run.epoch:.2f}")
    if pace is not None:
        rest.append(f"{pace:.2f} s/step" if pace < 10 else f"{pace:.0f} s/step")
        if total and not run.ended and run.step < total:
            rest.append(f"{duration((total - run.step) * pace)} left")
    words.append(("".join(f"  ·  {word}" for word in rest), DIM))
    if share is None:
        return [line(words, width)]
    room = width - 6
    done = min(max(round(share * room), 0), room)
    bar = line(
        [("━" * done, _TRAIN if not run.ended else GOOD), ("─" * (room - done), DIM), (f"{share:>5.0%}", PLAIN)],
        width + 1,
    )
    return [bar, line(words, width)]


def metrics(run: Run, width: int) -> Line:
    """The last value of each metric that matters."""
    parts: list[Part] = []
    for name, label in (("loss", "loss"), ("", "level"), ("eval_loss", "eval"), ("grad_norm", "grad norm")):
        value = run.last(name) if name else (run.loss.fast if run.loss.count else None)
        if value is not None:
            parts += _metric(label, value)
    rate = run.last("learning_rate")
    if rate is not None:
        parts += _metric("lr", rate)
    return line(parts, width) if parts else line([("no metrics yet", DIM)], width)


def _metric(label: str, value: float) -> list[Part]:
    finite = value - value == 0.0
    return [
        (f"{label} ", DIM),
        (number(value), BOLD if finite else SEVERITY_STYLES[Severity.CRITICAL]),
        ("    ", PLAIN),
    ]


def curve(history: RunHistory, width: int, height: int) -> list[Line]:
    """The loss over the steps; the last of ``height`` lines is the axis."""
    train, evaluation = history.loss, history.eval_loss
    ends = [*train.steps[:1], *train.steps[-1:], *evaluation.steps[:1], *evaluation.steps[-1:]]
    if not ends or height < 3:
        return []
    first, last = min(ends), max(ends)
    drawn = plot(
        train.steps, train.values, list(zip(evaluation.steps, evaluation.values, strict=True)),
        width=width - _AXIS, height=height - 1, first=first, last=last,
    )  # fmt: skip
    if drawn is None:
        return []
    lines: list[Line] = []
    for index, row in enumerate(drawn.rows):
        label = number_short(drawn.high) if index == 0 else number_short(drawn.low) if index == height - 2 else ""
        text = Line([(f"{label:>{_AXIS - 2}} {'┤' if label else '│'}", DIM)])
        if EVAL_MARK in row:
            for piece in re.split(f"({EVAL_MARK}+)", row):
                text.append(piece, _EVAL if piece.startswith(EVAL_MARK) else _TRAIN)
        else:
            text.append(row, _TRAIN)
        lines.append(text)
    legend: list[Part] = [(f"{'':{_AXIS}}step {first:,}   ", DIM), ("⠒⠒ ", _TRAIN), ("train loss", DIM)]
    if evaluation.steps:
        legend += [("   ", DIM), (f"{EVAL_MARK} ", _EVAL), ("eval loss", DIM)]
    if drawn.logarithmic:
        legend.append(("   log scale", DIM))
    lines.append(spread(legend, [(f"{last:,}", DIM)], width))
    return lines


def number_short(value: float) -> str:
    """An axis label of at most six characters."""
    text = f"{value:#.3g}".rstrip(".")
    return text if len(text) <= _AXIS - 2 else f"{value:.0e}"


def findings(engine: Engine, width: int, detail: int) -> list[Line]:
    """What is wrong now, causes first.

    Args:
        engine: The engine of the run.
        width: Cells.
        detail: 3 everything, 2 without evidence, 1 titles with one line of summary, 0 titles.
    """
    active = engine.active()
    if not active:
        return _all_well(engine, width)
    lines: list[Line] = []
    for finding, symptoms in grouped(active):
        if lines and detail >= 2:
            lines.append(Line())
        lines += _finding(engine.run, finding, symptoms, width, detail)
    resolved = sum(finding.state == "resolved" for finding in engine.findings)
    if resolved and detail >= 2:
        lines.append(line([(f"✓ {resolved} resolved earlier", DIM)], width))
    return lines


def _finding(run: Run, finding: Finding, symptoms: Sequence[Finding], width: int, detail: int) -> list[Line]:
    age = run.step - finding.since_step
    when = f"since step {finding.since_step:,}" + (f" (+{age:,})" if age > 0 else "")
    mark = "  experimental" if finding.maturity == "experimental" else ""
    lines = [
        spread(
            [
                *severity_parts(finding),
                (f"  {clean(finding.title, 120)}", BOLD),
                (f"  {clean(finding.rule, 60)}{mark}", DIM),
            ],
            [(when, DIM)],
            width,
        )
    ]  # fmt: skip
    if detail >= 1:
        lines += wrapped(clean(finding.summary), width, 2, most=1 if detail == 1 else 3)
    if detail >= 3 and finding.evidence:
        evidence = " · ".join(
            f"{clean(name, 40)} {cut(value_text(value), 30)}" for name, value in list(finding.evidence.items())[:8]
        )
        lines += wrapped(clean(evidence), width, 2, DIM, most=2)
    if symptoms and detail >= 1:
        names = ", ".join(f"{clean(one.title, 60)} ({one.severity.label})" for one in symptoms)
        lines += wrapped(f"with it: {names}", width, 2, DIM, most=2 if detail >= 2 else 1)
    return lines


def _all_well(engine: Engine, width: int) -> list[Line]:
    if not engine.run.rows:
        return [line([("nothing judged yet", DIM)], width)]
    judged = len(engine.rule_seconds()) - len(engine.abstained())
    if not judged:
        return [line([("No rule could judge yet", DIM)], width)]
    resolved = [finding for finding in engine.findings if finding.state == "resolved"]
    lines = [line([("✓ No findings", GOOD), (f"   {count(judged, 'rule')} judged this run", DIM)], width)]
    for finding in resolved[-3:]:
        span = f"step {finding.since_step:,} to {finding.resolved_step or finding.last_step:,}"
        lines.append(line([(f"  resolved: {clean(finding.title, 80)}, {span}", DIM)], width))
    return lines


_TOO_FEW = re.compile(r"\d+ (?P<what>points|steps)\b.* \(\d+ so far\)")


def abstained(engine: Engine, width: int, most: int = 2) -> list[Line]:
    """How many rules do not judge, and why, the commonest reasons first."""
    silent = engine.abstained()
    if not silent:
        return []
    reasons = Counter(_reason(one) for one in silent)
    words = " · ".join(f"{reason} {amount}" for reason, amount in reasons.most_common(6))
    head = f"{count(len(silent), 'rule')} abstained: "
    return wrapped(head + words, width, 0, DIM, most=most)


def _reason(one: Abstention) -> str:
    missing = one.missing[0]
    if missing.startswith("not for a run of kind "):
        return "not for " + missing.removeprefix("not for a run of kind ")
    if missing.startswith("switched off"):
        return "failed"
    few = _TOO_FEW.fullmatch(missing)
    if few:
        return f"too few {few['what']}"
    if missing.startswith("fact "):
        return clean(missing.removeprefix("fact ") + " not known", 40)
    first = missing.partition(" or ")[0].removeprefix("a ")  # of several metrics that would do, the usual one
    return clean(f"no {first}", 40)


def others(runs: Iterable[Watched], focus: Watched, width: int, most: int) -> list[Line]:
    """The other runs, a line each."""
    rest = [one for one in runs if one is not focus]
    rest.sort(
        key=lambda one: (-max((finding.severity for finding in one.engine.active()), default=-1), one.engine.run.ended)
    )
    lines: list[Line] = []
    for one in rest[:most]:
        engine = one.engine
        active = engine.active()
        words = (
            ", ".join(f"{finding.severity.label} {clean(finding.title, 60)}" for finding in active[:2]) or "no findings"
        )
        style = SEVERITY_STYLES[active[0].severity] if active else DIM
        parts: list[Part] = [(clean(one.name, 40), PLAIN), ("  ", PLAIN), status(engine.run)]
        parts += [(f"  step {engine.run.step:,}  ", DIM), (words, style)]
        lines.append(line(parts, width))
    if len(rest) > most:
        lines.append(line([(f"and {count(len(rest) - most, 'more run')}", DIM)], width))
    return lines


def count(amount: int, noun: str) -> str:
    """An amount with its noun: ``1 rule``, ``3 rules``."""
    return f"{amount} {noun}" if amount == 1 else f"{amount} {noun}s"
