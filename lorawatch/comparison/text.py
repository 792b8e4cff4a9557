"""A comparison of two runs as text, Markdown and JSON."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import Any

from lorawatch.comparison.compare import Comparison, FactChange, FindingChange, Measure
from lorawatch.comparison.measures import effect_text
from lorawatch.findings import Finding
from lorawatch.render import WIDTH, finding_json, json_ready, printable, value_text
from lorawatch.version import __version__

SCHEMA = 1
"""Version of the JSON that ``compare`` prints."""


def comparison_json(found: Comparison) -> dict[str, Any]:
    """A comparison as strict JSON."""
    return {
        "lorawatch": __version__,
        "schema": SCHEMA,
        "before": found.before,
        "after": found.after,
        "verdict": found.verdict,
        "why": found.why,
        "axis": found.axis,
        "notes": list(found.notes),
        "facts": [
            {
                "name": one.name,
                "before": json_ready(one.before),
                "after": json_ready(one.after),
                "group": one.group,
                "one_sided": one.one_sided,
                "note": one.note,
            }
            for one in found.facts
        ],
        "findings": [
            {
                "rule": one.rule,
                "change": one.change,
                "note": one.note,
                "before": None if one.before is None else finding_json(one.before),
                "after": None if one.after is None else finding_json(one.after),
            }
            for one in found.findings
        ],
        "measures": [
            {
                "name": one.name,
                "before": json_ready(one.before),
                "after": json_ready(one.after),
                "unit": one.unit,
                "effect": json_ready(one.effect),
                "standard_error": json_ready(one.standard_error),
                "verdict": one.verdict,
                "why": one.why,
                "refused": one.refused,
            }
            for one in found.measures
        ],
    }


def comparison_text(found: Comparison, *, width: int = WIDTH + 2) -> str:
    """A comparison for a person, the verdict first, in lines of ``width`` characters where the words allow it."""
    lines = _wrapped(f"{found.verdict.upper()}: {found.why}", width, "  ")
    lines.append(f"  {printable(found.before)} → {printable(found.after)}")
    lines += ["", "Set-up"]
    both = [one for one in found.facts if not one.one_sided]
    lines += _columns([_fact_cells(one) for one in both], width) or ["  no difference in what both tell"]
    single = [one.name for one in found.facts if one.one_sided]
    if single:
        lines += _wrapped(f"known of one run only: {', '.join(single)}", width, "    ", "  ")
    if not found.axis:
        return "\n".join(lines)
    lines += ["", "Findings"]
    lines += _columns([_finding_cells(one) for one in found.findings], width) or ["  none in either run"]
    lines += ["", "Measures"]
    lines += _columns([_measure_cells(one) for one in found.measures], width)
    lines.append("")
    for note in (f"Equal training is counted in {found.axis}. ± is two standard errors.", *found.notes):
        lines += _wrapped(note, width, "")
    return "\n".join(lines)


def comparison_markdown(found: Comparison) -> str:
    """A comparison as Markdown: for an issue, a pull request or a CI summary."""
    lines = [
        f"## {_escaped(found.before)} → {_escaped(found.after)}: {found.verdict}",
        "",
        f"{_escaped(found.why)}.",
        "",
    ]
    lines += _table(
        ("set-up", "before → after", ""),
        [(_code(one.name), *_fact_cells(one)[1:]) for one in found.facts if not one.one_sided],
    )
    single = [_code(one.name) for one in found.facts if one.one_sided]
    if single:
        lines += [f"Known of one run only: {', '.join(single)}.", ""]
    lines += _table(("finding", "rule", "before → after"), [_finding_cells(one) for one in found.findings])
    lines += _table(("measure", "verdict", "effect", "why"), [_measure_cells(one) for one in found.measures])
    if found.axis:
        lines += [_escaped(f"Equal training is counted in {found.axis}. ± is two standard errors."), ""]
    lines += [f"- {_escaped(note)}" for note in found.notes]
    return "\n".join(lines).rstrip() + "\n"


def _fact_cells(change: FactChange) -> tuple[str, ...]:
    old, new = ("not set" if value is None else value_text(value) for value in (change.before, change.after))
    if isinstance(change.before, list) and isinstance(change.after, list):
        left = [value_text(item) for item in change.before if item not in change.after]
        come = [value_text(item) for item in change.after if item not in change.before]
        words = [f"without {', '.join(left)}" if left else "", f"with {', '.join(come)}" if come else ""]
        return change.name, " and ".join(word for word in words if word), change.note
    return change.name, f"{old} → {new}", change.note


def _finding_cells(change: FindingChange) -> tuple[str, ...]:
    note = f"; {change.note}" if change.note else ""
    return change.change, change.rule, f"{_spot(change.before)} → {_spot(change.after)}{note}"


def _spot(finding: Finding | None) -> str:
    if finding is None:
        return "none"
    under = "" if finding.is_root else ", a symptom"
    return f"{finding.severity.label} at step {finding.opened_step}{under}"


def _measure_cells(measure: Measure) -> tuple[str, ...]:
    return measure.name, measure.verdict, effect_text(measure), measure.why


def _columns(rows: Sequence[tuple[str, ...]], width: int) -> list[str]:
    """Rows in columns; the last one is wrapped."""
    cells = [[printable(cell) for cell in row] for row in rows]
    widths = [min(max(len(row[column]) for row in cells), 44) for column in range(len(rows[0]) - 1)] if rows else []
    lines: list[str] = []
    for row in cells:
        start = "  " + "  ".join(f"{cell:<{size}}" for cell, size in zip(row, widths, strict=False))
        lines += _wrapped(row[-1], width, " " * min(len(start) + 2, width // 2), f"{start}  ") or [start.rstrip()]
    return lines


def _wrapped(text: str, width: int, indent: str, first: str = "") -> list[str]:
    words = printable(text)
    if not words:
        return []
    lines = textwrap.wrap(
        words, width, initial_indent=first, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
    return [line.rstrip() for line in lines]


def _table(heads: Sequence[str], rows: Sequence[tuple[str, ...]]) -> list[str]:
    if not rows:
        return []
    lines = [f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}"]
    for row in rows:
        cells = [cell if cell.startswith("`") else _escaped(cell) for cell in row]
        lines.append(f"| {' | '.join(cells)} |")
    return [*lines, ""]


def _code(name: str) -> str:
    return "`" + printable(name).replace("`", "'").replace("|", "\\|") + "`"


def _escaped(text: str) -> str:
    words = printable(text)
    for char in "\\`*_[]<>|#":
        words = words.replace(char, f"\\{char}")
    return words
