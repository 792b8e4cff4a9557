"""A report as Markdown, for a pull request or an issue: the page's content without its curves."""

from __future__ import annotations

from collections.abc import Sequence

from lorawatch.findings import Adjustment, Finding
from lorawatch.records import LabelAudit, Sample
from lorawatch.render import adjustment_text, printable
from lorawatch.report.content import Content, Generations, Incident
from lorawatch.report.model_sections import (
    MODULE_HEADS,
    adapter_words,
    audit_counts,
    generations_words,
    model_words,
    module_cells,
    sample_words,
)
from lorawatch.report.page import METRIC_HEADS, metric_cells, metric_summaries
from lorawatch.report.words import config_line, evidence_value, marked_down, value

_SAMPLES = 8
_CHARACTERS = 300
_MODULES = 15
_METRICS = 24
_FACTS = 80


def markdown(content: Content) -> str:
    """The report as Markdown of GitHub's and GitLab's kind."""
    run, verdict = content.run, content.verdict
    total = f" of {run.max_steps:,}" if run.max_steps else ""
    lines = [
        f"## {_text(content.name)}: {_text(verdict.word)}",
        "",
        (
            f"{_text(verdict.sentence)} {run.kind.value}, step {content.last_step:,}{total}, "
            f"{content.history.rows:,} rows; {content.judged} rules judged, "
            f"{len(content.rules) - content.judged} could not."
        ),
        "",
    ]
    if content.change is not None:
        adjustment, incident = content.change
        lines += [
            f"**Change next:** {_change(adjustment)} (finding {incident.number})",
            "",
            f"{_text(adjustment.why, 1_000)}. {adjustment.confidence} confidence.",
            "",
        ]
    lines += ["### Findings", ""]
    if not content.incidents:
        lines += ["None.", ""]
    for one in content.incidents:
        lines += _incident(one)
    if content.dropped_findings:
        lines += [f"{content.dropped_findings:,} further findings are not told.", ""]
    lines += _metrics(content)
    lines += _samples(content.generations)
    lines += _adapter(content)
    lines += _labels(content.labels)
    lines += _facts(content)
    lines += _not_judged(content)
    versions = ", ".join(f"{_text(name)} {_text(version)}" for name, version in content.versions.items())
    lines += ["---", "", versions, ""]
    lines += [f"- {_text(note)}" for note in content.notes]
    return "\n".join(lines).rstrip() + "\n"


def _text(text: object, limit: int = 300) -> str:
    return marked_down(text, limit)


def _code(text: object, limit: int = 160) -> str:
    """A code span: nothing acts in it but its own end, and the end of a table's cell."""
    words = printable(" ".join(str(text)[:limit].split())).replace("`", "'").replace("|", "¦")
    return f"`{words or ' '}`"


def _change(adjustment: Adjustment) -> str:
    line = config_line(adjustment)
    return _code(line) if line else _text(adjustment_text(adjustment), 600)


def _incident(incident: Incident) -> list[str]:
    finding = incident.finding
    lines = [
        f"#### {incident.number}. {_text(finding.title)}: {finding.severity.label}",
        "",
        (
            f"{_steps(finding)}, {_code(finding.rule)}{'' if finding.maturity == 'stable' else ', experimental'}. "
            f"{_text(finding.summary, 1_000)}"
        ),
        "",
    ]
    if finding.state == "firing":
        lines += _table(
            ("", "change", "why", "confidence", "cost"),
            [
                (
                    "**next**" if one.next else "then" if one.parameter else "look",
                    _change(one),
                    _text(f"{one.why}{'; ' + one.conflicts if one.conflicts else ''}", 1_000),
                    one.confidence,
                    _text(one.cost),
                )
                for one in sorted(finding.adjustments, key=lambda one: not one.next)
            ],
        )
    evidence = [
        f"{_text(name, 80)} {_text(evidence_value(name, thing))}" for name, thing in list(finding.evidence.items())[:20]
    ]
    if evidence:
        lines += [f"Evidence: {'; '.join(evidence)}.", ""]
    if incident.symptoms:
        told = ", ".join(f"{_code(one.rule)} (step {one.opened_step:,})" for one in incident.symptoms)
        lines += [f"With it: {told}.", ""]
    return lines


def _steps(finding: Finding) -> str:
    words = f"step {finding.opened_step:,}"
    return words if finding.resolved_step is None else f"{words}, resolved at step {finding.resolved_step:,}"


def _metrics(content: Content) -> list[str]:
    rows = [(_code(one.name), *map(_text, metric_cells(one))) for one in metric_summaries(content)[:_METRICS]]
    return ["### Metrics", "", *_table(METRIC_HEADS, rows)] if rows else []


def _samples(found: Generations | None) -> list[str]:
    if found is None:
        return []
    twice = found.first_step != found.last_step
    heads = ["prompt", "base", *([f"step {found.first_step:,}"] if twice else []), f"step {found.last_step:,}"]

    def reply(sample: Sample | None) -> str:
        if sample is None:
            return "–"
        return f"{_text(sample.output.strip() or 'empty', _CHARACTERS)} ({_text(sample_words(sample))})"

    rows = [
        (
            _text(row.prompt, _CHARACTERS),
            reply(row.base),
            *([reply(row.first)] if twice else []),
            reply(row.last),
        )
        for row in found.rows[:_SAMPLES]
    ]
    return ["### Samples", "", _text(generations_words(found), 600), "", *_table(heads, rows)]


def _adapter(content: Content) -> list[str]:
    lines: list[str] = []
    if content.model is not None:
        lines += [_text(model_words(content.model)), ""]
        entries = [*content.model.targets.items(), *content.model.saved.items()]
        lines += _table(("target", "modules it matches"), [(_code(name), f"{count:,}") for name, count in entries[:40]])
    reading = content.adapter
    if reading is not None:
        lines += [_text(adapter_words(reading), 600), ""]
        modules = sorted(reading.modules, key=lambda one: -(one.update or 0.0) / (one.base or 1.0))[:_MODULES]
        lines += _table(MODULE_HEADS, [(_code(one.name), *map(_text, module_cells(one))) for one in modules])
    return ["### Adapter", "", *lines] if lines else []


def _labels(audit: LabelAudit | None) -> list[str]:
    if audit is None:
        return []
    lines = ["### Labels", "", *_table(("", ""), [(name, _text(words)) for name, words in audit_counts(audit)])]
    for index, row in enumerate(audit.examples[:3], 1):
        told = "".join(f"**⟦**{_text(one.text)}**⟧**" if one.trained else _text(one.text) for one in row[:40])
        lines += [f"{index}. {told}"]
    return [*lines, "", "What stands in ⟦ ⟧ is trained on.", ""] if audit.examples else lines


def _facts(content: Content) -> list[str]:
    rows = [
        (_code(name, 80), _text(value(fact.value)), _text(f"{fact.origin}{', inferred' if fact.inferred else ''}"))
        for group in content.facts
        for name, fact in group.facts
    ]
    if not rows:
        return []
    more = [f"and {len(rows) - _FACTS:,} more", ""] if len(rows) > _FACTS else []
    table = _table(("fact", "value", "origin"), rows[:_FACTS])
    return ["<details><summary>Set-up</summary>", "", *table, *more, "</details>", ""]


def _not_judged(content: Content) -> list[str]:
    lines = [f"- {_text(names, 2_000)}: {_text(reason, 600)}" for names, reason in content.abstained]
    lines += [f"- {_code(rule)} failed and was switched off: {_text(error)}" for rule, error in content.failed.items()]
    return ["<details><summary>Not judged</summary>", "", *lines, "", "</details>", ""] if lines else []


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return []
    return [
        f"| {' | '.join(heads)} |", f"|{'---|' * len(heads)}",
        *(f"| {' | '.join(row)} |" for row in rows), "",
    ]  # fmt: skip
