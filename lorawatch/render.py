"""A finding, a run or a rule as text, Markdown and JSON.

JSON is strict: a number that is not finite stands as the string ``"NaN"``, ``"Infinity"`` or ``"-Infinity"``.
Text that may come from a log goes through :func:`printable` before it reaches a person.
"""

from __future__ import annotations

import inspect
import math
import textwrap
import unicodedata
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

from lorawatch.engine import Abstention, Engine, order
from lorawatch.findings import Adjustment, Finding
from lorawatch.records import (
    AdapterReading,
    FactUpdate,
    GpuReading,
    HostReading,
    LabelAudit,
    MetricRow,
    ModelTree,
    SampleReading,
    StepTiming,
)
from lorawatch.rule import Rule
from lorawatch.run import MAX_SERIES, Run
from lorawatch.version import __version__

if TYPE_CHECKING:
    from lorawatch.watch import Judged, RunWatch

SCHEMA = 1
"""Version of the JSON that ``check`` prints; ``docs/check.schema.json`` describes it."""
WIDTH = 100
_ACTING = {"Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp"}
"""Unicode categories of what is not seen: controls, formats, surrogates, private and unassigned, line separators."""


def printable(text: object) -> str:
    """``text`` without what could act on a terminal, break or reorder a line."""
    words = str(text)
    if words.isascii() and words.isprintable():
        return words
    return "".join("\N{REPLACEMENT CHARACTER}" if unicodedata.category(char) in _ACTING else char for char in words)


def number(value: float) -> str:
    """A number in four significant digits, as a person writes it: ``0.0002``, ``1.4e-06``, ``12,400``."""
    if not math.isfinite(value):
        return "NaN" if math.isnan(value) else ("∞" if value > 0 else "-∞")
    if value == int(value) and abs(value) < 1e15:
        return f"{int(value):,}" if abs(value) >= 10_000 else str(int(value))
    if 1e-4 <= abs(value) < 1e5:
        return f"{value:.4g}"
    mantissa, _, exponent = f"{value:.3g}".partition("e")
    return f"{mantissa}e{int(exponent)}" if exponent else mantissa


def value_text(value: Any) -> str:
    """A parameter's or a fact's value, for a person."""
    if value is None:
        return "not known"
    if isinstance(value, bool):
        return str(value)
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, list | tuple | set):
        return "[" + ", ".join(value_text(item) for item in value) + "]"
    return printable(value)


def json_ready(value: Any) -> Any:
    """``value`` with every number finite or a string, every key a string, and nothing that JSON does not know."""
    if isinstance(value, float):
        if math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else ("Infinity" if value > 0 else "-Infinity")
    if value is None or isinstance(value, bool | int | str):
        return value
    if isinstance(value, dict):
        return {str(key): json_ready(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_ready(item) for item in value]
    return str(value)


def adjustment_json(adjustment: Adjustment) -> dict[str, Any]:
    """One adjustment as JSON."""
    return {
        "parameter": adjustment.parameter,
        "current": json_ready(adjustment.current),
        "proposed": json_ready(adjustment.proposed),
        "why": adjustment.why,
        "cost": adjustment.cost,
        "confidence": adjustment.confidence,
        "apply": adjustment.apply,
        "next": adjustment.next,
        "conflicts": adjustment.conflicts,
    }


def finding_json(finding: Finding) -> dict[str, Any]:
    """One finding as JSON."""
    return {
        "rule": finding.rule,
        "title": finding.title,
        "severity": finding.severity.label,
        "maturity": finding.maturity,
        "state": finding.state,
        "since_step": finding.since_step,
        "opened_step": finding.opened_step,
        "opened_time": finding.opened_time,
        "resolved_step": finding.resolved_step,
        "summary": finding.summary,
        "evidence": json_ready(finding.evidence),
        "adjustments": [adjustment_json(adjustment) for adjustment in finding.adjustments],
        "incident": finding.incident,
    }


def run_json(watch: RunWatch, index: int) -> dict[str, Any]:
    """One judged run as JSON: what ``engines[index]`` of ``watch`` found."""
    engine = watch.engines[index]
    run = engine.run
    return {
        "run": watch.run_name(index),
        "path": watch.path,
        "kind": run.kind.value,
        "sources": watch.sources,
        "rows": run.rows,
        "first_step": run.first_step,
        "last_step": run.step if run.rows else None,
        "steps_estimated": run.steps_estimated,
        "facts": {
            name: {"value": json_ready(fact.value), "origin": fact.origin, "inferred": fact.inferred}
            for name, fact in sorted(run.facts.items())
        },
        "findings": [finding_json(finding) for finding in order(engine.findings)],
        "abstained": [{"rule": one.rule, "missing": list(one.missing)} for one in engine.abstained()],
        "rule_errors": dict(engine.rule_errors),
        "skipped_lines": watch.skipped_lines,
    }


def judged_json(judged: Judged) -> dict[str, Any]:
    """All that ``check`` found, as JSON."""
    return {
        "lorawatch": __version__,
        "schema": SCHEMA,
        "runs": [run_json(watch, index) for watch in judged.runs for index in range(len(watch.engines))],
        "errors": [{"path": error.path, "message": error.message} for error in judged.errors],
    }


def adjustment_text(adjustment: Adjustment) -> str:
    """One adjustment in one sentence, without its reason: ``learning_rate: 0.002 → 0.00067 (resume)``."""
    if not adjustment.parameter:
        return printable(adjustment.proposed)
    current = "" if adjustment.current is None else f"{value_text(adjustment.current)} → "
    return f"{adjustment.parameter}: {current}{value_text(adjustment.proposed)}"


def finding_text(
    finding: Finding, symptoms: Sequence[Finding] = (), *, verbose: bool = False, width: int = WIDTH
) -> str:
    """One finding as a few lines of text: what, why with numbers, what to change; its symptoms folded under it.

    What has resolved needs no change any more: its adjustments are shown only when ``verbose``.
    """
    steps = f"step {finding.opened_step}"
    if finding.resolved_step is not None:
        steps += f", resolved at {finding.resolved_step}"
    mark = "" if finding.maturity == "stable" else ", experimental"
    lines = [f"{finding.severity.label.upper():<8} {finding.title}  [{finding.rule}, {steps}{mark}]"]
    lines += _wrap(finding.summary, "         ", width=width)
    for adjustment in finding.adjustments if verbose or finding.state == "firing" else ():
        head = "next" if adjustment.next else "then" if adjustment.parameter else "look"
        apply = "" if adjustment.apply in ("restart", "check") else f", {adjustment.apply}"
        text = f"{adjustment_text(adjustment)} – {adjustment.why}"
        extra = "; ".join(
            part for part in (adjustment.cost and f"cost: {adjustment.cost}", adjustment.conflicts) if part
        )
        text += f" ({adjustment.confidence} confidence{apply}{'; ' + extra if extra else ''})"
        lines += _wrap(text, "           ", first=f"    {head}:  ", width=width)
    for symptom in symptoms:
        lines += _wrap(
            f"{symptom.title} [{symptom.rule}, step {symptom.opened_step}]",
            "           ",
            first="    with:  ",
            width=width,
        )
    return "\n".join(lines)


def grouped(findings: Iterable[Finding]) -> list[tuple[Finding, list[Finding]]]:
    """Findings by incident: each cause with the symptoms that are folded under it, in the order to read them."""
    ordered = order(findings)
    roots = {finding.id: finding for finding in ordered if finding.is_root}
    symptoms: dict[str, list[Finding]] = {}
    for finding in ordered:
        if finding.id not in roots and finding.incident in roots:
            symptoms.setdefault(finding.incident, []).append(finding)
    loose = [finding for finding in ordered if finding.id in roots or finding.incident not in roots]
    return [(finding, symptoms.get(finding.id, [])) for finding in loose]


def abstained_text(abstained: Iterable[Abstention]) -> list[str]:
    """Which rules did not judge and what they miss, the rules that miss the same together."""
    by_reason: dict[str, list[str]] = {}
    for one in abstained:
        by_reason.setdefault("; ".join(one.missing), []).append(one.rule)
    return [f"{', '.join(rules)} – {reason}" for reason, rules in sorted(by_reason.items())]


def run_heading(name: str, run: Run) -> str:
    """One line that says what a run is: name, kind, rows, steps."""
    total = f" of {run.max_steps}" if run.max_steps else ""
    estimated = " (estimated)" if run.steps_estimated else ""
    first = run.first_step if run.first_step is not None else 0
    return f"{printable(name)}: {run.kind.value}, {run.rows} rows, steps {first} to {run.step}{total}{estimated}"


def engine_text(engine: Engine, *, verbose: bool = False, width: int = WIDTH) -> list[str]:
    """What an engine found, as lines of text of at most ``width`` characters, where its words allow it."""
    lines: list[str] = []
    for finding, symptoms in grouped(engine.findings):
        lines.append(finding_text(finding, symptoms, verbose=verbose, width=width))
    if not engine.findings:
        lines.append("no findings")
    for rule, error in engine.rule_errors.items():
        lines.append(f"rule {rule} failed and was switched off for this run: {printable(error)}")
    if engine.dropped_findings:
        lines.append(f"{engine.dropped_findings} further findings were dropped")
    if engine.run.dropped_values:
        lines.append(f"{engine.run.dropped_values} values of metrics beyond the first {MAX_SERIES} names were dropped")
    abstained = engine.abstained()
    if verbose:
        lines += [f"abstained: {line}" for line in abstained_text(abstained)]
    elif abstained:
        rules = "1 rule" if len(abstained) == 1 else f"{len(abstained)} rules"
        lines.append(f"{rules} abstained for want of data (-v says which and why)")
    return lines


def watches_text(watches: Iterable[RunWatch], *, verbose: bool = False, width: int = WIDTH + 2) -> str:
    """What was found in each run, for a person, in lines of ``width`` characters; empty when there is none."""
    blocks: list[str] = []
    for watch in watches:
        for index, engine in enumerate(watch.engines):
            lines = [run_heading(watch.run_name(index), engine.run)]
            if verbose:
                lines += [f"  {line}" for line in _verbose(watch, engine)]
            for block in engine_text(engine, verbose=verbose, width=width - 2):
                lines.append(textwrap.indent(block, "  "))
            if watch.skipped_lines and index == 0:
                lines.append(f"  {watch.skipped_lines} lines could not be read and were skipped")
            blocks.append("\n".join(lines))
    return "\n\n".join(blocks)


def _verbose(watch: RunWatch, engine: Engine) -> list[str]:
    lines = [f"path: {printable(watch.path)}"]
    lines += [f"source: {printable(source)}" for source in watch.sources]
    lines += [f"note: {printable(note)}" for note in (*watch.files.notes, *watch.unread_facts)]
    lines += [
        f"fact: {name} = {value_text(fact.value)}  ({printable(fact.origin)}{', inferred' if fact.inferred else ''})"
        for name, fact in sorted(engine.run.facts.items())
    ]
    return lines


def judged_markdown(judged: Judged) -> str:
    """All that ``check`` found, as Markdown: for an issue, a pull request or a CI summary."""
    lines: list[str] = []
    for watch in judged.runs:
        for index, engine in enumerate(watch.engines):
            lines += [f"## {_markdown(run_heading(watch.run_name(index), engine.run))}", ""]
            if not engine.findings:
                lines += ["No findings.", ""]
            for finding, symptoms in grouped(engine.findings):
                lines += _finding_markdown(finding, symptoms)
    if judged.errors:
        lines += ["## Not judged", ""]
        lines += [f"- {_markdown(error.message)}" for error in judged.errors]
    return "\n".join(lines).rstrip() + "\n"


def _finding_markdown(finding: Finding, symptoms: Sequence[Finding]) -> list[str]:
    steps = f"step {finding.opened_step}"
    if finding.resolved_step is not None:
        steps += f", resolved at {finding.resolved_step}"
    lines = [
        f"### {finding.severity.label}: {finding.title} (`{finding.rule}`, {steps})",
        "",
        _markdown(finding.summary),
        "",
    ]
    if finding.adjustments and finding.state == "firing":
        lines += ["| | change | why | confidence |", "|---|---|---|---|"]
        for adjustment in finding.adjustments:
            head = "**next**" if adjustment.next else "then" if adjustment.parameter else "look"
            change, why = _markdown(adjustment_text(adjustment)), _markdown(adjustment.why)
            why += f"; cost: {_markdown(adjustment.cost)}" if adjustment.cost else ""
            why += f"; {_markdown(adjustment.conflicts)}" if adjustment.conflicts else ""
            lines.append(f"| {head} | {change} | {why} | {adjustment.confidence} |")
        lines.append("")
    if symptoms:
        lines += ["With it: " + ", ".join(f"`{one.rule}` (step {one.opened_step})" for one in symptoms), ""]
    return lines


def _markdown(text: str) -> str:
    escaped = printable(text)
    for char in "\\`*_[]<>|#":
        escaped = escaped.replace(char, f"\\{char}")
    return escaped


def _wrap(text: str, indent: str, first: str | None = None, *, width: int = WIDTH) -> list[str]:
    return textwrap.wrap(
        printable(text), width, initial_indent=indent if first is None else first, subsequent_indent=indent,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip


_JUDGED: dict[type, str] = {
    MetricRow: "metrics",
    StepTiming: "step timings",
    GpuReading: "GPU readings",
    HostReading: "host readings",
    FactUpdate: "facts",
    ModelTree: "model tree",
    LabelAudit: "label audit",
    AdapterReading: "adapter readings",
    SampleReading: "samples",
}


def rule_json(rule: type[Rule]) -> dict[str, Any]:
    """A rule as JSON: what it is, what it needs, its parameters and its page."""
    return {
        "rule": rule.id,
        "title": rule.title,
        "severity": rule.severity.label,
        "maturity": rule.maturity,
        "judges": [_JUDGED[one] for one in rule.judges],
        "needs": [*rule.needs],
        "needs_any": [*rule.needs_any],
        "needs_facts": [*rule.needs_facts],
        "kinds": sorted(kind.value for kind in rule.kinds),
        "min_points": rule.min_points,
        "suppresses": [*rule.suppresses],
        "parameters": [
            {"name": one.name, "default": one.default, "unit": one.unit, "help": one.help} for one in rule.parameters()
        ],
        "page": inspect.getdoc(rule) or "",
    }


def rule_markdown(rule: type[Rule]) -> str:
    """A rule's page: its docstring, and what is declared of it."""
    needs = ", ".join(f"`{name}`" for name in rule.needs)
    if rule.needs_any:
        needs += (" and " if needs else "") + "one of " + ", ".join(f"`{name}`" for name in rule.needs_any)
    needs = " or ".join(filter(None, [needs, *(_JUDGED[one] for one in rule.judges if one is not MetricRow)]))
    needs += "".join(f", fact `{name}`" for name in rule.needs_facts)
    points = f"; at least {rule.min_points} points" if MetricRow in rule.judges else ""
    lines = [
        f"# {rule.id}: {rule.title}",
        "",
        f"*{rule.severity.label}, {rule.maturity}.* Needs {needs or 'nothing'}{points}.",
        "",
        inspect.getdoc(rule) or "",
        "",
        "## Parameters",
        "",
        f'Set them in `lorawatch.toml` under `[rules."{rule.id}"]`; `enabled = false` switches the rule off.',
        "",
        "| parameter | default | unit | what it does |",
        "|---|---|---|---|",
        *(f"| `{one.name}` | {one.default} | {one.unit} | {one.help} |" for one in rule.parameters()),
    ]
    return "\n".join(lines) + "\n"
