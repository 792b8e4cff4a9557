"""What a report says, before it is a page or Markdown: gathered once, bounded, nothing escaped yet."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from lorawatch.engine import Engine
from lorawatch.findings import Adjustment, Finding, Severity
from lorawatch.records import AdapterReading, LabelAudit, ModelTree, Sample, SampleReading
from lorawatch.registry import RuleSet
from lorawatch.render import abstained_text, grouped
from lorawatch.report.facts import FactGroup, fact_groups, versions
from lorawatch.report.history import RunHistory, read_history
from lorawatch.report.panels import MAX_PANELS, Panel, mark, panels_of
from lorawatch.rule import Rule
from lorawatch.run import MAX_SERIES, REINFORCEMENT, Run
from lorawatch.run_watch import RunWatch

MAX_INCIDENTS = 60
MAX_NOTES = 20

Level = Literal["critical", "warning", "info", "good"]


@dataclass(frozen=True, slots=True)
class Verdict:
    """How the run stands, in a word and a sentence."""

    level: Level
    word: str
    sentence: str


@dataclass(frozen=True, slots=True)
class Incident:
    """A finding, its number on the page, and the symptoms that are folded under it."""

    number: int
    finding: Finding
    symptoms: tuple[Finding, ...] = ()

    @property
    def findings(self) -> tuple[Finding, ...]:
        """The cause and its symptoms."""
        return (self.finding, *self.symptoms)


@dataclass(frozen=True, slots=True)
class Generation:
    """What was replied to one prompt: by the base model, at the first reading, and at the last."""

    prompt: str
    probe: str
    base: Sample | None
    first: Sample | None
    last: Sample


@dataclass(frozen=True, slots=True)
class Generations:
    """The sample generations of the first and the last reading side by side.

    Attributes:
        first_step: Step of the first reading.
        last_step: Step of the last; the same where there was one reading.
        rows: One entry a prompt, those of the run's own data first.
        reading: The last reading.
    """

    first_step: int
    last_step: int
    rows: list[Generation]
    reading: SampleReading


@dataclass(slots=True)
class Content:
    """All that a report says of one run.

    Attributes:
        name: Its name.
        path: Where it is.
        run: What is known of it.
        verdict: How it stands.
        change: The change to make next, and the incident that asks for it; None where nothing does.
        incidents: The findings by incident, worst first.
        dropped_findings: Findings that are not told: of the engine, and beyond :data:`MAX_INCIDENTS`.
        history: Its series.
        panels: The pictures, marked.
        generations: Sample generations; None where there are none.
        adapter: The last look at the adapter; None where there was none.
        first_adapter: The first look.
        labels: The audit of the labels; None where there was none.
        model: The modules of the model; None where they are not known.
        facts: The set-up, by group.
        versions: Version of each library that is known, by its name.
        judged: Rules that judged this run.
        abstained: Rules that did not, and why: those that miss the same together.
        failed: Rules that failed, and their error.
        sources: Format and file name of each source.
        notes: What a reader should know of how this was made.
        rules: Class of each rule, by id.
    """

    name: str
    path: str
    run: Run
    verdict: Verdict
    change: tuple[Adjustment, Incident] | None
    incidents: list[Incident]
    dropped_findings: int
    history: RunHistory
    panels: list[Panel]
    generations: Generations | None
    adapter: AdapterReading | None
    first_adapter: AdapterReading | None
    labels: LabelAudit | None
    model: ModelTree | None
    facts: list[FactGroup]
    versions: dict[str, str]
    judged: int
    abstained: list[tuple[str, str]]
    failed: dict[str, str]
    sources: list[str]
    notes: list[str]
    rules: dict[str, type[Rule]]

    @property
    def first_step(self) -> int:
        """The first step that anything is known of, for the left edge of the curves."""
        steps = [line.column.steps[0] for panel in self.panels for line in panel.lines if len(line.column)]
        return min(steps, default=self.run.first_step or 0)

    @property
    def last_step(self) -> int:
        """The last one."""
        steps = [line.column.steps[-1] for panel in self.panels for line in panel.lines if len(line.column)]
        return max(max(steps, default=0), self.run.step)


def gather(watch: RunWatch, rules: RuleSet) -> Content:
    """Gather what a report says of the newest run of ``watch``, which was read to its end.

    Raises:
        SourceError: A file cannot be read any more.
    """
    engine = watch.engine
    run = engine.run
    history = read_history(watch)
    incidents = _incidents(engine)
    told = incidents[:MAX_INCIDENTS]
    classes = {rule.id: rule for rule in rules.classes}
    panels = panels_of(history, reinforcement=run.kind in REINFORCEMENT)
    mark(panels, [(one.number, one.findings) for one in told], classes)
    abstained = engine.abstained()
    adapters = history.adapters or (None, None)
    return Content(
        name=watch.run_name(len(watch.engines) - 1),
        path=watch.path,
        run=run,
        verdict=_verdict(engine),
        change=_change(told),
        incidents=told,
        dropped_findings=engine.dropped_findings + sum(len(one.findings) for one in incidents[MAX_INCIDENTS:]),
        history=history,
        panels=panels,
        generations=_generations(history),
        adapter=run.adapter if adapters[1] is None else adapters[1],
        first_adapter=adapters[0],
        labels=run.labels,
        model=run.model,
        facts=fact_groups(run),
        versions=versions(run),
        judged=len(classes) - len(abstained),
        abstained=[_parted(line) for line in abstained_text(abstained)],
        failed=dict(engine.rule_errors),
        sources=watch.sources,
        notes=_notes(watch, history),
        rules=classes,
    )


def _incidents(engine: Engine) -> list[Incident]:
    return [
        Incident(number, finding, tuple(symptoms))
        for number, (finding, symptoms) in enumerate(grouped(engine.findings), 1)
    ]


def _change(incidents: Sequence[Incident]) -> tuple[Adjustment, Incident] | None:
    for incident in incidents:
        for finding in incident.findings:
            if finding.state != "firing":
                continue
            for adjustment in finding.adjustments:
                if adjustment.next:
                    return adjustment, incident
    return None


def _verdict(engine: Engine) -> Verdict:
    firing = [finding for finding in engine.active() if finding.is_root]
    if firing:
        worst = firing[0].severity
        more = f", and {len(firing) - 1} more" if len(firing) > 1 else ""
        sentence = f"{firing[0].title}{more}."
        if worst is Severity.CRITICAL:
            return Verdict("critical", "Critical", sentence)
        if worst is Severity.WARNING:
            return Verdict("warning", "Needs attention", sentence)
        return Verdict("info", "Nothing to mend", f"Worth knowing: {sentence}")
    if engine.findings:
        past = len(engine.findings)
        return Verdict("good", "Recovered", f"{past} {'finding' if past == 1 else 'findings'}, resolved by the end.")
    return Verdict("good", "No findings", "No rule that could judge found anything.")


def _generations(history: RunHistory) -> Generations | None:
    if history.samples is None:
        return None
    first, last = history.samples
    bases = {one.prompt: one for one in history.base}
    firsts = {one.prompt: one for one in first.samples} if first is not last else {}
    rows = [
        Generation(one.prompt, one.probe, bases.get(one.prompt), firsts.get(one.prompt), one) for one in last.samples
    ]
    rows.sort(key=lambda row: row.probe != "task")
    return Generations(first.step, last.step, rows, last) if rows else None


def _notes(watch: RunWatch, history: RunHistory) -> list[str]:
    notes: list[str] = []
    if len(watch.engines) > 1:
        notes.append(f"The log holds {len(watch.engines)} runs, one after another; this is the last of them.")
    if watch.engine.run.steps_estimated:
        notes.append("The log does not tell its steps: they are estimated.")
    if watch.skipped_lines:
        notes.append(f"{watch.skipped_lines:,} lines could not be read and were skipped.")
    if history.resumes:
        steps = ", ".join(f"{step:,}" for step in history.resumes[:10])
        notes.append(f"Resumed from step {steps}: what was done over stands once, as it was done last.")
    if history.thinned:
        notes.append("The series were thinned before they were drawn: the lowest and highest values were kept.")
    dropped = watch.engine.run.dropped_values
    if dropped:
        notes.append(f"{dropped:,} values of metrics beyond the first {MAX_SERIES} names were not judged.")
    if history.dropped_values:
        notes.append(f"{history.dropped_values:,} values of further metrics are not in the table of metrics.")
    if len(panels_of(history, reinforcement=False)) >= MAX_PANELS:
        notes.append(f"No more than {MAX_PANELS} curves are drawn.")
    notes += [*watch.files.notes, *watch.unread_facts]
    return notes[:MAX_NOTES]


def _parted(line: str) -> tuple[str, str]:
    names, _, reason = line.partition(" – ")
    return names, reason
