"""Findings as cards of the page: what, since when, what to change, the numbers behind it, and the rule's own page."""

from __future__ import annotations

import inspect
import re
from collections.abc import Sequence

from lorawatch.engine import order
from lorawatch.findings import Adjustment, Finding
from lorawatch.render import adjustment_text, value_text
from lorawatch.report.content import Content, Incident
from lorawatch.report.limits import Limits
from lorawatch.report.words import config_line, escaped, evidence_value
from lorawatch.rule import Rule


def change_card(content: Content) -> str:
    """The change to make next, to be copied; "" where nothing asks for one."""
    if content.change is None:
        asks = [one for one in content.incidents if one.finding.state == "firing" and one.finding.adjustments]
        if not asks:
            return ""
        return (
            '<div class="card next"><p>No change of a parameter stands first: look at what '
            f'<a href="#f{asks[0].number}">finding {asks[0].number}</a> asks to look at.</p></div>'
        )
    adjustment, incident = content.change
    line = config_line(adjustment)
    head = f'<p><code class="copy" tabindex="0">{escaped(line)}</code></p>' if line else (
        f"<p><b>{escaped(adjustment_text(adjustment))}</b></p>"
    )  # fmt: skip
    now = "" if adjustment.current is None else f"Now {escaped(value_text(adjustment.current))}. "
    return (
        f'<div class="card next">{head}<p>{now}{escaped(_sentence(adjustment.why), 1_000)}</p>'
        f'<p class="meta">{_terms(adjustment)} · asked for by <a href="#f{incident.number}">finding '
        f"{incident.number}, {escaped(incident.finding.title)}</a> · one change at a time: "
        "more of them hide which one helped</p></div>"
    )


def _terms(adjustment: Adjustment) -> str:
    apply = {
        "restart": "needs a restart", "resume": "resume from a checkpoint", "live": "can be changed live",
        "check": "only a look",
    }[adjustment.apply]  # fmt: skip
    parts = [f"{adjustment.confidence} confidence", apply]
    if adjustment.cost:
        parts.append(f"cost: {adjustment.cost}")
    return escaped(" · ".join(parts), 600)


def finding_cards(content: Content, limits: Limits) -> str:
    """The findings with what to change and why, worst first."""
    if not content.incidents:
        return (
            f'<p class="card">No findings: {content.judged} rules judged this run, '
            f'{len(content.rules) - content.judged} <a href="#not-judged">could not</a>.</p>'
        )
    out = [_incident(one, content, limits) for one in content.incidents]
    if content.dropped_findings:
        out.append(f"<p>{content.dropped_findings:,} further findings are not told.</p>")
    return "\n".join(out)


def _incident(incident: Incident, content: Content, limits: Limits) -> str:
    finding = incident.finding
    past = finding.state != "firing"
    symptoms = "".join(
        f"<li>{escaped(one.title)}, {one.severity.label}, step {one.opened_step:,} "
        f'<span class="soft">(<code>{escaped(one.rule)}</code>)</span>: {escaped(one.summary, 600)}</li>'
        for one in order(incident.symptoms)
    )
    return (
        f'<article class="card finding {finding.severity.label}{" past" if past else ""}" id="f{incident.number}" '
        f'aria-labelledby="t{incident.number}"><h3 id="t{incident.number}"><span class="no"><span class="unseen">'
        f"Finding </span>{incident.number}</span> <span>{escaped(finding.title)} "
        f'<span class="chip">{finding.severity.label}</span></span></h3>'
        f'<p class="meta">{_when(finding)} · <code>{escaped(finding.rule)}</code>'
        f"{'' if finding.maturity == 'stable' else ' · experimental'}{_where(incident, content)}</p>"
        f"<p>{escaped(_sentence(finding.summary), 1_000)}</p>"
        + _advice(finding.adjustments, past=past)
        + _evidence(finding, limits)
        + (f'<h4>With it</h4><ul class="soft with">{symptoms}</ul>' if symptoms else "")
        + (_rule_page(content.rules.get(finding.rule)) if limits.pages else "")
        + "</article>"
    )


def _sentence(text: str) -> str:
    """A phrase as a sentence; one that begins with a name (``eval_loss``) keeps its small letter."""
    first = text.split(" ", 1)[0]
    begun = text[:1].upper() + text[1:] if first.isalpha() else text
    return begun if begun.endswith((".", "!", "?")) or not begun else f"{begun}."


def _when(finding: Finding) -> str:
    words = f"found at step {finding.opened_step:,}"
    if finding.since_step < finding.opened_step:
        words = f"since step {finding.since_step:,}, {words}"
    if finding.resolved_step is not None:
        return f"{words}, resolved at step {finding.resolved_step:,}"
    return f"{words}, last seen at step {finding.last_step:,}" if finding.last_step > finding.opened_step else words


def _where(incident: Incident, content: Content) -> str:
    panels = [panel for panel in content.panels if any(number == incident.number for number, _ in panel.marks)]
    links = ", ".join(f'<a href="#c-{panel.key}">{escaped(panel.title)}</a>' for panel in panels)
    return f" · marked in {links}" if links else ""


def _advice(adjustments: Sequence[Adjustment], *, past: bool) -> str:
    if not adjustments or past:
        return ""
    out = ['<h4>What to change</h4><ol class="advice">']
    for one in sorted(adjustments, key=lambda one: not one.next):
        role, mark = ("next", " first") if one.next else ("then" if one.parameter else "look", "")
        line = config_line(one)
        if line:
            now = "" if one.current is None else f' <span class="soft">now {escaped(value_text(one.current))}</span>'
            what = f'<code class="copy" tabindex="0">{escaped(line)}</code>{now}'
        else:
            what = f"<b>{escaped(_sentence(adjustment_text(one)), 600)}</b>"
        conflict = f"<br>{escaped(one.conflicts, 600)}" if one.conflicts else ""
        out.append(
            f'<li><span class="role{mark}">{role}</span> <div>{what}<div>{escaped(_sentence(one.why), 1_000)}{conflict}'
            f'</div><div class="meta">{_terms(one)}</div></div></li>'
        )
    return "".join(out) + "</ol>"


def _evidence(finding: Finding, limits: Limits) -> str:
    if not finding.evidence:
        return ""
    items = list(finding.evidence.items())
    told = "".join(
        f"<div><dt>{escaped(str(name).replace('_', ' '), 80)}</dt><dd>{escaped(evidence_value(name, thing))}</dd></div>"
        for name, thing in items[: limits.evidence]
    )
    more = len(items) - limits.evidence
    return f'<h4>Evidence</h4><dl class="evidence">{told}</dl>' + (f"<p>and {more} more</p>" if more > 0 else "")


def _rule_page(rule: type[Rule] | None) -> str:
    text = "" if rule is None else inspect.getdoc(rule) or ""
    if not text:
        return ""
    out: list[str] = []
    for block in re.split(r"\n\s*\n", text[:8_000]):
        lines = block.strip().split("\n")
        if lines[0].startswith("## "):
            out.append(f"<h4>{_inline(lines.pop(0)[3:])}</h4>")
        if not lines:
            continue
        if lines[0].startswith(("- ", "* ")):
            items = re.split(r"\n[-*] ", "\n" + "\n".join(lines))[1:]
            out.append("<ul>" + "".join(f"<li>{_inline(item)}</li>" for item in items) + "</ul>")
        else:
            out.append(f"<p>{_inline(' '.join(lines))}</p>")
    return f'<details><summary>About this rule</summary><div class="page">{"".join(out)}</div></details>'


def _inline(text: str) -> str:
    return re.sub(r"`+([^`]+)`+", r"<code>\1</code>", escaped(" ".join(text.split()), 4_000))
