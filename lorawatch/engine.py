"""Records in, findings out: the one place where breaches become findings.

For each rule the engine counts breaches (``hold``) and calm judgements (``release``), opens, escalates and resolves
findings, folds symptoms under their cause, and switches a rule off, for this run only, when it raises.
It reads no clock: the same records in the same order give the same findings, live or replayed.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from lorawatch import advice
from lorawatch.findings import Adjustment, Breach, Finding, Severity
from lorawatch.records import (
    AdapterReading,
    FactUpdate,
    GpuReading,
    HostReading,
    LabelAudit,
    LifecycleEvent,
    MetricRow,
    ModelTree,
    Record,
    SampleReading,
    StepTiming,
)
from lorawatch.rule import Rule
from lorawatch.run import Run

MAX_FINDINGS_PER_RULE = 20
"""Findings of one rule kept per run; later ones are counted in :attr:`Engine.dropped_findings`."""

_READINGS: dict[type, str] = {
    StepTiming: "step timings (the callback takes them)",
    GpuReading: "readings of the GPU",
    HostReading: "readings of the machine",
    FactUpdate: "facts of the set-up",
    ModelTree: "the model's modules (the callback or preflight looks at them)",
    LabelAudit: "collated rows (the callback or preflight looks at them)",
    AdapterReading: "the adapter's weights (the callback, or a checkpoint)",
    SampleReading: "sample generations",
}
"""What a person is told that a rule misses when no such record came."""

_NO_FACTS = FactUpdate({}, "")
"""What rules of facts are handed where no fact is new."""

Change = Literal["opened", "escalated", "resolved", "reopened", "folded", "rule-error"]
Listener = Callable[[Change, Finding], None]


@dataclass(frozen=True, slots=True)
class Abstention:
    """A rule that did not judge this run, and what it missed."""

    rule: str
    missing: tuple[str, ...]


class _Watch:
    """One rule at work on one run."""

    __slots__ = (
        "breaches", "calm", "enough", "error", "finding", "findings", "judge", "judged", "last", "rule", "seconds",
        "since", "worst",
    )  # fmt: skip

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.judge = rule.judge
        self.judged = False
        self.enough = rule.min_points <= 1
        self.breaches = 0
        self.calm = 0
        self.since = 0
        self.worst: Breach | None = None
        self.last: Finding | None = None
        self.finding: Finding | None = None
        self.findings = 0
        self.error = ""
        self.seconds = 0.0


class Engine:
    """Judges one run.

    Args:
        run: The run; the engine adds the records to it.
        rules: Rules of this run's own: they keep state, so each run needs its own instances.
        timed: Measure the time that each rule takes, for ``lorawatch_rule_seconds_total``. Costs 0.1 µs a judgement.
    """

    def __init__(self, run: Run, rules: Iterable[Rule], *, timed: bool = False) -> None:
        self.run = run
        self.findings: list[Finding] = []
        self.listeners: list[Listener] = []
        self.dropped_findings = 0
        self.rule_errors: dict[str, str] = {}
        self._watches = [_Watch(rule) for rule in rules]
        self._plans: dict[tuple[str, ...], list[_Watch]] = {}
        self._reading_plans: dict[type, list[_Watch]] = {}
        self._time_now: float | None = None
        self._kind = run.kind
        self._timed = timed

    def feed(self, record: Record) -> None:
        """Take in one record and judge it. Never raises for what a rule does."""
        run = self.run
        if type(record) is not MetricRow:
            self._feed_other(record)
            return
        run.add(record)
        if run.kind is not self._kind:
            self._kind = run.kind
            self._forget_plans()
            self._judge(self._plan_of(FactUpdate), _NO_FACTS)  # what is usual depends on the kind
        plan = self._plans.get(run.keys)
        if plan is None:
            plan = self._plan(run.keys)
        self._time_now = run.time
        self._judge(plan, record)

    def adopt(self, before: Engine, types: Collection[type]) -> None:
        """Take over what ``before``, the engine of the same run as it was read before, judged from readings.

        Logs can be read again, and are; a reading of the machine is seen once. To be called before the first record.

        Args:
            before: The engine whose place this one takes.
            types: Record types that no file holds: rules that judge only these keep their state and their findings.
        """
        self.run.take_over(before.run)
        known = {watch.rule.id: watch for watch in before._watches if set(watch.rule.judges) <= set(types)}
        self._watches = [known.get(watch.rule.id, watch) for watch in self._watches]
        self.findings += [finding for finding in before.findings if finding.rule in known]
        self.rule_errors |= {rule: error for rule, error in before.rule_errors.items() if rule in known}
        self._forget_plans()

    def abstained(self) -> list[Abstention]:
        """The rules that have not judged this run so far, and what each of them misses."""
        found: list[Abstention] = []
        for watch in self._watches:
            missing = self._missing(watch)
            if missing:
                found.append(Abstention(watch.rule.id, missing))
        return found

    def active(self) -> list[Finding]:
        """The findings that are firing now, worst first, causes before their symptoms."""
        return order(finding for finding in self.findings if finding.state == "firing")

    def next_adjustment(self) -> Adjustment | None:
        """The one change to make first; None when nothing that is firing asks for one."""
        for finding in self.active():
            for adjustment in finding.adjustments:
                if adjustment.next:
                    return adjustment
        return None

    def renew_advice(self) -> None:
        """Advise anew on what is firing: more is known now (the peak learning rate, the length) than when it opened."""
        for watch in self._watches:
            if watch.finding is not None and watch.worst is not None:
                self._advise(watch, watch.finding, watch.worst)
        advice.rank(self.active())

    def rule_seconds(self) -> dict[str, float]:
        """Seconds that each rule took so far; zeros unless the engine was made with ``timed``."""
        return {watch.rule.id: watch.seconds for watch in self._watches}

    def _feed_other(self, record: Record) -> None:
        run = self.run
        if isinstance(record, FactUpdate):
            if run.learn(record):
                self._forget_plans()
                self._time_now = run.time
                self._judge(self._plan_of(FactUpdate), record)
        elif isinstance(record, LifecycleEvent):
            run.happen(record)
        elif not isinstance(record, MetricRow):
            run.observe(record)
            if run.ended and isinstance(record, StepTiming | GpuReading | HostReading):
                return
            self._time_now = run.time if record.time is None else record.time
            self._judge(self._plan_of(type(record)), record)

    def _judge(self, plan: Iterable[_Watch], record: Record) -> None:
        run, timed = self.run, self._timed
        for watch in plan:
            try:
                breach = self._time(watch, record) if timed else watch.judge(record, run)
            except Exception as error:  # a rule must never take anything else down
                self._switch_off(watch, error)
                continue
            if breach is not None:
                self._broken(watch, breach)
            elif watch.breaches or watch.finding is not None:
                self._calm(watch)

    def _forget_plans(self) -> None:
        self._plans.clear()
        self._reading_plans.clear()

    def _time(self, watch: _Watch, record: Record) -> Breach | None:
        before = time.perf_counter()
        breach = watch.judge(record, self.run)
        watch.seconds += time.perf_counter() - before
        return breach

    def _plan(self, keys: tuple[str, ...]) -> list[_Watch]:
        present = set(keys)
        plan: list[_Watch] = []
        for watch in self._watches:
            rule = watch.rule
            if MetricRow not in rule.judges or not self._applies(watch) or not present.issuperset(rule.needs):
                continue
            if rule.needs_any and not any(_carried(name, present) for name in rule.needs_any):
                continue
            watch.judged = True
            plan.append(watch)
        if len(self._plans) < 1024:  # rows with ever new metric names must not grow it without end
            self._plans[keys] = plan
        return plan

    def _plan_of(self, kind: type) -> list[_Watch]:
        plan = self._reading_plans.get(kind)
        if plan is not None:
            return plan
        plan = [watch for watch in self._watches if kind in watch.rule.judges and self._applies(watch)]
        for watch in plan:
            watch.judged = True
        self._reading_plans[kind] = plan
        return plan

    def _applies(self, watch: _Watch) -> bool:
        rule, run = watch.rule, self.run
        if watch.error or run.kind not in rule.kinds:
            return False
        return not any(run.fact(name) is None for name in rule.needs_facts)

    def _missing(self, watch: _Watch) -> tuple[str, ...]:
        rule, run = watch.rule, self.run
        if watch.error:
            return (f"switched off: {watch.error}",)
        if run.kind not in rule.kinds:
            return (f"not for a run of kind {run.kind.value}",)
        missing = [name for name in rule.needs if name not in run.series]
        if rule.needs_any and not any(_carried(name, run.series) for name in rule.needs_any):
            missing.append(" or ".join(rule.needs_any))
        missing += [f"fact {name}" for name in rule.needs_facts if run.fact(name) is None]
        if not watch.judged and not missing and MetricRow not in rule.judges:
            return (" or ".join(_READINGS[one] for one in rule.judges),)
        if not missing and rule.min_points > 1 and watch.finding is None:
            name, seen = _points(rule, run)
            if seen < rule.min_points:
                missing.append(f"{rule.min_points} points of {name} ({seen} so far)")
        if not missing and watch.finding is None:
            missing += rule.missing(run)
        if not missing and not watch.judged and MetricRow in rule.judges:
            missing.append("a row that carries " + " and ".join(rule.needs or rule.needs_any))
        return tuple(missing)

    def _switch_off(self, watch: _Watch, error: Exception) -> None:
        watch.error = f"{type(error).__name__}: {error}"
        self.rule_errors[watch.rule.id] = watch.error
        self._forget_plans()
        rule = watch.rule
        note = Finding(
            rule=rule.id, title=rule.title, severity=Severity.INFO, maturity=rule.maturity,
            summary=f"rule {rule.id} failed and is off for this run: {watch.error}", evidence={},
            since_step=self.run.step, opened_step=self.run.step, last_step=self.run.step,
        )  # fmt: skip
        self._tell("rule-error", note)

    def _broken(self, watch: _Watch, breach: Breach) -> None:
        rule, run = watch.rule, self.run
        if not watch.enough:
            if _points(rule, run)[1] < rule.min_points:
                return
            watch.enough = True  # points are never taken back
        watch.calm = 0
        if watch.breaches == 0:
            watch.since = run.step
        watch.breaches += 1
        finding = watch.finding
        if finding is None:
            if watch.breaches >= rule.hold:
                self._open(watch, breach)
            return
        finding.last_step = run.step
        severity = rule.severity if breach.severity is None else breach.severity
        if severity > finding.severity:
            finding.severity = severity
            self._describe(watch, finding, breach)
            self._tell("escalated", finding)
        elif (
            rule.retells
            and severity == finding.severity
            and breach.evidence.get("case") != finding.evidence.get("case")
        ):
            self._describe(watch, finding, breach)

    def _open(self, watch: _Watch, breach: Breach) -> None:
        rule, run, last = watch.rule, self.run, watch.last
        rule.easing = 0.7
        if last is not None and last.resolved_step is not None and run.step - last.resolved_step <= rule.cooldown:
            last.state, last.resolved_step, last.last_step = "firing", None, run.step
            watch.finding = last
            last.severity = max(last.severity, rule.severity if breach.severity is None else breach.severity)
            self._describe(watch, last, breach)  # it may come back larger than it went
            self._tell("reopened", last)
            return
        if watch.findings >= MAX_FINDINGS_PER_RULE:
            self.dropped_findings += 1
            return
        severity = rule.severity if breach.severity is None else breach.severity
        finding = Finding(
            rule=rule.id, title=rule.title, severity=severity, maturity=rule.maturity, summary="", evidence={},
            since_step=watch.since, opened_step=run.step, last_step=run.step, opened_time=self._time_now,
        )  # fmt: skip
        watch.finding = watch.last = finding
        watch.findings += 1
        self.findings.append(finding)
        self._fold(rule, finding)
        self._describe(watch, finding, breach)
        self._tell("opened", finding)

    def _describe(self, watch: _Watch, finding: Finding, breach: Breach) -> None:
        finding.summary, finding.evidence = breach.summary, breach.evidence
        watch.worst = breach
        self._advise(watch, finding, breach)
        advice.rank(self.active())

    def _advise(self, watch: _Watch, finding: Finding, breach: Breach) -> None:
        try:
            proposed = watch.rule.advise(breach, self.run)
        except Exception as error:
            self.rule_errors[watch.rule.id] = f"{type(error).__name__}: {error}"
            return
        finding.adjustments = advice.spell(proposed, self.run)

    def _calm(self, watch: _Watch) -> None:
        watch.breaches = 0
        finding, rule = watch.finding, watch.rule
        if finding is None or rule.latched:
            return
        watch.calm += 1
        if watch.calm < rule.release:
            return
        finding.state, finding.resolved_step = "resolved", self.run.step
        advice.lay_down(finding)
        watch.finding, watch.calm = None, 0
        rule.easing = 1.0
        advice.rank(self.active())
        self._tell("resolved", finding)

    def _fold(self, rule: Rule, finding: Finding) -> None:
        finding.incident = finding.id
        for other in self._watches:
            cause = other.finding
            if cause is not None and cause is not finding and _covers(other.rule.suppresses, finding.rule):
                finding.incident = cause.incident
                break
        for other in self._watches:
            symptom = other.finding
            if symptom is None or symptom is finding or not _covers(rule.suppresses, symptom.rule):
                continue
            if symptom.incident != finding.incident:
                symptom.incident = finding.incident
                self._tell("folded", symptom)

    def _tell(self, change: Change, finding: Finding) -> None:
        for listener in self.listeners:
            listener(change, finding)


def _carried(name: str, present: Collection[str]) -> bool:
    return name in present or ("*" in name and any(fnmatchcase(one, name) for one in present))


def _points(rule: Rule, run: Run) -> tuple[str, int]:
    """The first needed metric, or the best known one of ``needs_any``, and how many finite values it has."""
    if rule.needs:
        return rule.needs[0], run.points(rule.needs[0])
    names = [one for name in rule.needs_any for one in run.series if _carried(name, (one,))]
    return max(((name, run.points(name)) for name in names), key=lambda pair: pair[1], default=("", 0))


def _covers(patterns: tuple[str, ...], rule_id: str) -> bool:
    return any(fnmatchcase(rule_id, pattern) for pattern in patterns)


def order(findings: Iterable[Finding]) -> list[Finding]:
    """Findings as a person should read them: firing first, causes before symptoms, worst first, then oldest first.

    Of the same severity those of stable rules come before those of experimental ones, which may rest on a prior.
    """
    return sorted(
        findings,
        key=lambda finding: (
            finding.state != "firing", not finding.is_root, -finding.severity, finding.maturity == "experimental",
            finding.opened_step,
        ),
    )  # fmt: skip
