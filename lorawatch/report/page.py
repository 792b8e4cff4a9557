"""A report as one page that asks nothing from outside and runs no script.

Everything that may come from a log goes through :mod:`lorawatch.report.words`. Were something to slip through, the
page's policy allows neither scripts nor requests, and of styles only the one that the page itself brings.
"""

from __future__ import annotations

import base64
import hashlib
from datetime import UTC, datetime

from lorawatch.render import number
from lorawatch.report.content import Content
from lorawatch.report.finding_cards import change_card, finding_cards
from lorawatch.report.limits import PAGE_BYTES, STEPS, Limits
from lorawatch.report.model_sections import adapter_cards, labels_card, samples_table
from lorawatch.report.picture import Mark, most_marks, picture
from lorawatch.report.series import Summary, summary
from lorawatch.report.style import CSS
from lorawatch.report.words import escaped, seconds_text, value

MAX_METRICS = 60


def page(content: Content) -> str:
    """The page of a report, smaller than :data:`~lorawatch.report.limits.PAGE_BYTES`."""
    text = ""
    for limits in STEPS:
        text = _page(content, limits)
        if len(text.encode("utf-8", "replace")) < PAGE_BYTES:
            break
    return text


def _page(content: Content, limits: Limits) -> str:
    sections = [
        ("next", "Change next", change_card(content)),
        ("findings", "Findings", finding_cards(content, limits)),
        ("curves", "Curves", _curves(content, limits)),
        ("metrics", "Metrics", _metrics(content)),
        ("samples", "Samples", samples_table(content.generations, limits)),
        ("adapter", "Adapter", adapter_cards(content, limits)),
        ("labels", "Labels", labels_card(content.labels)),
        ("setup", "Set-up", _facts(content)),
        ("not-judged", "Not judged", _not_judged(content)),
    ]
    there = [(key, title, body) for key, title, body in sections if body]
    links = "".join(f'<li><a href="#{key}">{title}</a></li>' for key, title, _ in there)
    digest = base64.b64encode(hashlib.sha256(CSS.encode()).digest()).decode()
    policy = f"default-src 'none'; style-src 'sha256-{digest}'; img-src data:; base-uri 'none'; form-action 'none'"
    name = escaped(content.name, 120)
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light dark">\n'
        f'<title>{name}: {escaped(content.verdict.word)} – lorawatch</title>\n<link rel="icon" href="data:,">\n'
        f"<style>{CSS}</style>\n</head>\n<body>\n"
        '<a class="skip" href="#main">Skip to the report</a>\n'
        f"{_header(content)}\n"
        f'<nav aria-label="Contents"><ul>{links}</ul></nav>\n<main id="main">\n'
        + "\n".join(
            f'<section aria-labelledby="{key}"><h2 id="{key}">{title}</h2>\n{body}\n</section>'
            for key, title, body in there
        )
        + f"\n</main>\n{_footer(content)}\n</body>\n</html>\n"
    )


def _header(content: Content) -> str:
    run, history, verdict = content.run, content.history, content.verdict
    total = f" of {run.max_steps:,}" if run.max_steps else ""
    state = "ended" if run.ended else "no end in the log"
    tiles = [("Steps", f"{content.last_step:,}{total}"), ("State", state), ("Rows logged", f"{history.rows:,}")]
    if run.epoch is not None:
        tiles.insert(1, ("Epoch", number(round(run.epoch, 2))))
    for name in ("loss", "eval_loss", "reward"):
        last = run.last(name)
        if last is not None:
            tiles.append((f"Last {name}", number(last)))
    if history.first_time is not None and history.last_time is not None and history.last_time > history.first_time:
        tiles.append(("Took", seconds_text(history.last_time - history.first_time)))
    tiles.append(("Rules", f"{content.judged} judged"))
    began = _date(history.first_time)
    when = f" · began {began}" if began else ""
    return (
        f'<header><p class="kind">Fine-tuning run · {escaped(_kind(content))}{escaped(when)}</p>'
        f"<h1>{escaped(content.name, 200)}</h1>"
        f'<p class="verdict {verdict.level}"><b>{escaped(verdict.word)}</b> '
        f"<span>{escaped(verdict.sentence)}</span></p>"
        '<dl class="tiles">'
        + "".join(f"<div><dt>{escaped(name)}</dt><dd>{escaped(words)}</dd></div>" for name, words in tiles)
        + "</dl></header>"
    )


def _kind(content: Content) -> str:
    trainer = content.run.fact("trainer_class")
    kind = content.run.kind.value
    kind = "kind unknown" if kind == "unknown" else kind.upper() if len(kind) <= 4 else kind
    return f"{kind} ({trainer})" if isinstance(trainer, str) else kind


def _date(time: float | None) -> str:
    try:
        return "" if time is None else datetime.fromtimestamp(time, UTC).strftime("%Y-%m-%d %H:%M UTC")
    except (OverflowError, OSError, ValueError):
        return ""


def _curves(content: Content, limits: Limits) -> str:
    first, last = content.first_step, content.last_step
    figures: list[str] = []
    for panel in content.panels:
        marks = [
            Mark(number, one.severity.label, one.title, one.since_step, one.opened_step,
                 one.last_step if one.resolved_step is None else one.resolved_step, symptom=not one.is_root)
            for number, one in panel.marks
        ]  # fmt: skip
        points = limits.points if panel.main else limits.points // 2
        figures.append(picture(panel, most_marks(marks), first, last, points=points))
    drawings = "\n".join(one for one in figures if one)
    if not drawings:
        return '<p class="card">Too few values were logged for a curve.</p>'
    marked = (
        '<p class="soft">A numbered line stands where a finding was made, and leads to it; a hollow number is a '
        "symptom. The shade is the time in which it held.</p>"
    )
    return (marked if any(panel.marks for panel in content.panels) else "") + f'<div class="curves">{drawings}</div>'


def metric_summaries(content: Content) -> list[Summary]:
    """The logged metrics in numbers, those of the curves first."""
    names = [line.name for panel in content.panels for line in panel.lines]
    names += [name for name in content.history.columns if name not in names]
    columns = content.history.columns
    return [summary(name, columns[name]) for name in names[:MAX_METRICS] if len(columns[name])]


def _metrics(content: Content) -> str:
    rows = metric_summaries(content)
    if not rows:
        return ""
    body = "".join(
        f'<tr><th scope="row">{escaped(one.name, 80)}</th>'
        + "".join(
            f'<td class="n" data-h="{head}">{escaped(words)}</td>'
            for head, words in zip(METRIC_HEADS[1:], metric_cells(one), strict=True)
        )
        + "</tr>"
        for one in rows
    )
    heads = "".join(f'<th scope="col"{" class=n" if at else ""}>{head}</th>' for at, head in enumerate(METRIC_HEADS))
    more = len(content.history.columns) - len(rows)
    return (
        f'<div class="card scroll" tabindex="0" role="region" aria-labelledby="metrics"><table><thead><tr>{heads}</tr>'
        f"</thead><tbody>{body}</tbody></table>{f'<p>and {more} more</p>' if more > 0 else ''}</div>"
    )


METRIC_HEADS = ("Metric", "Values", "First", "Last", "Lowest", "Median", "Highest")


def metric_cells(one: Summary) -> tuple[str, ...]:
    """A summary in words, in the order of :data:`METRIC_HEADS`, without the name."""
    count = f"{one.points:,}" + (f" ({one.not_finite:,} not finite)" if one.not_finite else "")
    numbers = (one.first, one.last, one.low, one.middle, one.high)
    return (count, *("–" if one.points == one.not_finite else number(thing) for thing in numbers))


def _facts(content: Content) -> str:
    groups = "".join(
        f'<section><h3>{escaped(group.title)}</h3><table><thead class="unseen"><tr><th>Name</th><th>Value</th><th>'
        "Origin</th></tr></thead><tbody>"
        + "".join(
            f'<tr><th scope="row"><code>{escaped(name, 80)}</code></th><td>{escaped(value(fact.value))}</td>'
            f"<td>{escaped(fact.origin, 60)}{', inferred' if fact.inferred else ''}</td></tr>"
            for name, fact in group.facts
        )
        + f"</tbody></table>{f'<p>and {group.left_out:,} more</p>' if group.left_out else ''}</section>"
        for group in content.facts
    )
    if not groups:
        return (
            '<p class="card">The files tell nothing of the set-up: neither arguments nor an adapter configuration.</p>'
        )
    return f'<div class="facts">{groups}</div>'


def _not_judged(content: Content) -> str:
    items = "".join(
        f"<dt><code>{escaped(names, 2_000)}</code></dt><dd>{escaped(reason, 600)}</dd>"
        for names, reason in content.abstained
    )
    failed = "".join(
        f"<p>Rule <code>{escaped(rule)}</code> failed and was switched off for this run: {escaped(error)}</p>"
        for rule, error in content.failed.items()
    )
    if not items and not failed:
        return '<p class="card">Every rule judged this run.</p>'
    return f'<div class="card">{failed}<dl class="why">{items}</dl></div>'


def _footer(content: Content) -> str:
    versions = ", ".join(f"{name} {version}" for name, version in content.versions.items())
    sources = ", ".join(content.sources)
    notes = "".join(f"<br>{escaped(note)}" for note in content.notes)
    return (
        f"<footer><p>{escaped(versions, 900)}<br>{escaped(content.path)} · read from {escaped(sources)}{notes}<br>"
        "This page asks nothing from the network and runs no script. A rule's page: "
        "<code>lorawatch explain RULE</code>.</p></footer>"
    )
