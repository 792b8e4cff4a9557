"""Two runs of one job, before and after a change: what differs, which findings came and went, and whether it helped."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from lorawatch.comparison.facts import FactChange, another_job, fact_changes
from lorawatch.comparison.history import common_axis, read_history
from lorawatch.comparison.losses import eval_loss, finite_loss, spikes, train_metric
from lorawatch.comparison.measures import Measure, Pair, Verdict, effect_text, figure, refusal
from lorawatch.comparison.speed import peak_memory, speed
from lorawatch.engine import Engine
from lorawatch.findings import Finding, Severity
from lorawatch.ledger import adoption_notes, read_ledger
from lorawatch.render import printable
from lorawatch.run_watch import RunWatch

__all__ = ["CompareError", "Comparison", "FactChange", "FindingChange", "Measure", "Verdict", "compare"]

Change = Literal[
    "gone", "milder", "later", "stayed", "earlier", "worse", "new", "past its end", "first judged", "not reached",
    "not judged",
]  # fmt: skip

LATER = 2.0
"""Factor on the trained tokens to an alarm from which it counts as later (rule catalogue section 7: divergence)."""
WATCHED_STEPS = 200
"""Steps without a new alarm after which divergence counts as mended, or twice the old time to alarm where longer."""

CHANGES = 8
"""Changes by ``lorawatch fix`` that are spoken of, the last ones."""

_TROUBLES = {
    "divergence": (
        "loss/diverging", "loss/blow-up", "loss/at-uniform", "grad/explosion", "sig/nan", "sig/hidden-nan",
    ),
    "no learning": ("loss/not-learning", "loss/slow-start"),
    "overfitting": ("eval/overfit", "eval/gap", "loss/memorised", "loss/stairs"),
}  # fmt: skip
_MACHINE = ("perf/", "mem/", "hw/", "host/")
_SET_UP = "cfg/"
"""Rules that judge a set-up before it is tried: they are listed, but a verdict rests on what came of it."""
_GAMED: dict[str, tuple[str, ...]] = {
    "pref/margin-explosion": ("loss", "eval_loss"), "rl/entropy-collapse": ("reward",), "rl/length-drift": ("reward",),
}  # fmt: skip
"""What a trouble makes look good: a margin that explodes is a loss of nothing, and a reward that is gamed is high. Such
a measure cannot judge whether the trouble was mended."""
_TROUBLE_OF = {rule: trouble for trouble, rules in _TROUBLES.items() for rule in rules}
"""Rules that tell one trouble, each at another stage of it: one that comes in another's place is the same trouble."""


class CompareError(Exception):
    """Two runs cannot be compared at all: says in one line which, and why."""


@dataclass(frozen=True, slots=True)
class FindingChange:
    """What became of one rule's findings.

    Attributes:
        rule: The rule; in a verdict, one of those that tell the same trouble.
        change: ``gone``, ``milder``, ``later`` (after at least twice as much training), ``stayed``, ``earlier``,
            ``worse`` (more severe) or ``new``; ``past its end``: new, but later than the first run reached;
            ``first judged``: the rule could not judge the first run; ``not judged``: it could not judge the second;
            ``not reached``: the second run ended before the place of the first one's alarm.
        before: The first run's worst finding of it; None where it has none.
        after: The second run's.
        note: What weakens it, in one phrase; "" when nothing does.
    """

    rule: str
    change: Change
    before: Finding | None
    after: Finding | None
    note: str = ""

    @property
    def worst(self) -> Finding:
        """The second run's finding, or else the first's."""
        found = self.after or self.before
        assert found is not None  # noqa: S101 - one of them made this change
        return found


@dataclass(slots=True)
class Comparison:
    """What :func:`compare` found.

    Attributes:
        before: Name of the first run; its path where both have one name.
        after: Name of the second; likewise.
        facts: What differs in the set-up.
        findings: What became of the findings, causes and the worst first.
        measures: What both measure; those that neither run tells are left out.
        verdict: Whether the change helped.
        why: One sentence.
        axis: Which axis stands for what was trained, and why; "" when the runs are not of one job.
        notes: What to bear in mind, one sentence each.
    """

    before: str
    after: str
    facts: list[FactChange]
    findings: list[FindingChange]
    measures: list[Measure]
    verdict: Verdict
    why: str
    axis: str = ""
    notes: list[str] = field(default_factory=list)


def compare(before: RunWatch, after: RunWatch) -> Comparison:
    """Compare two finished runs of one job.

    The verdict, by the first of these that holds. A *trouble* is what one or several rules tell (divergence has six);
    only causes of warning or critical count. *Mended* is a trouble of the first run that is gone, less severe, or
    comes after at least twice as much training (and, for divergence, 200 steps; not where the runs log at
    different spacings, which moves alarms too). *Quality* is the first that decides of: a finite loss that one run
    kept and the other lost, the evaluation loss, the training loss or the reward; none that the first run's trouble
    made look good (the training loss where it overfitted, both losses where a margin exploded, a gamed reward).

    1. refused: another model or another method.
    2. A trouble came, grew or came after at most half the training, and is at least as severe as the worst that was
       mended (or none was): worse, but inconclusive when quality is better. What an experimental rule warns of does
       not weigh against a better quality: it is told beside it.
    3. Nothing was mended, and a critical trouble of divergence or of the training signal stayed: no effect. Such a run
       is lost, whatever its loss.
    4. Quality is worse: worse, but inconclusive when a critical trouble was mended.
    5. A trouble was mended: helped, but inconclusive when the second run meets a more severe one past the first's end.
    6. Quality is better: helped.
    7. A trouble of speed, memory or spikes stayed, or could not be judged again, and that measure changed: as it says.
    8. The second run ended before the place of the alarm, or could not be judged for it: inconclusive.
    9. Quality is the same: as the speed says, where nothing was to be mended, or else no effect.
    10. A trouble stayed and no loss can be compared: no effect.
    11. refused where the losses mean different things, else inconclusive.

    Args:
        before: The run before the change, judged whole.
        after: The run after it, judged by the same rules.

    Raises:
        CompareError: One of them holds no run, or several.
        SourceError: A file cannot be read any more.
    """
    for watch in (before, after):
        if len(watch.engines) != 1:
            held = ", ".join(watch.run_name(index) for index in range(len(watch.engines)))
            raise CompareError(f"{watch.path}: holds {len(watch.engines)} runs ({held}); give the log of one run")
        if not watch.rows:
            raise CompareError(f"{watch.path}: holds no logged metrics")
    runs = before.engine.run, after.engine.run
    facts = fact_changes(*runs)
    names = (before.name, after.name) if before.name != after.name else (before.path, after.path)
    found = Comparison(*names, facts, [], [], "refused", "")
    reason = another_job(*runs, facts)
    if reason:
        found.why = reason
        found.measures = [refusal("loss", reason)]
        return found
    histories = read_history(before), read_history(after)
    pair = Pair(runs, histories, common_axis(*runs, histories), facts)
    found.axis = pair.axis.why
    found.findings = _changes(pair, (before.engine, after.engine), lambda rule: rule)
    troubles = _changes(pair, (before.engine, after.engine), _trouble)
    before_rules = {finding.rule for finding in before.engine.findings if finding.severity >= Severity.WARNING}
    gamed = {name for rule, names in _GAMED.items() if rule in before_rules for name in names}
    overfitted = any(_matters(change.before) and _trouble(change.rule) == "overfitting" for change in troubles)
    measured = finite_loss(pair), eval_loss(pair, best=overfitted), train_metric(pair)
    if overfitted:
        gamed.add("loss")
    quality = next((one for one in measured if one is not None and _counts(one, gamed)), None)
    beside = spikes(pair), speed(pair), peak_memory(pair)
    found.measures = [one for one in (*measured, *beside) if one is not None]
    found.notes = _notes(pair)
    found.verdict, found.why = _combine(troubles, quality, found.measures)
    found.why = _joined([found.why, *_beside(found)])
    return found


def _beside(found: Comparison) -> list[str]:
    """Speed and memory, where they changed and the reason does not tell so."""
    if found.verdict == "refused":
        return []
    told = [one for one in found.measures if one.name in ("speed", "peak memory")]
    changed = [quality_text(one) for one in told if one.verdict in ("helped", "worse")]
    return [text for text in changed if text not in found.why]


def _trouble(rule: str) -> str:
    return _TROUBLE_OF.get(rule, rule)


def _counts(measure: Measure, gamed: set[str]) -> bool:
    """Whether a measure decides on quality: not one that the first run's trouble itself made look good."""
    return measure.verdict not in ("refused", "inconclusive") and measure.name not in gamed


def _changes(pair: Pair, engines: tuple[Engine, Engine], key: Callable[[str], str]) -> list[FindingChange]:
    worst: list[dict[str, Finding]] = [{}, {}]
    for findings, engine in zip(worst, engines, strict=True):
        for finding in engine.findings:
            known = findings.get(key(finding.rule))
            if known is None or _weight(finding) > _weight(known):
                findings[key(finding.rule)] = finding
    silent = tuple({one.rule: "; ".join(one.missing) for one in engine.abstained()} for engine in engines)
    changes = [
        _change(pair, worst[0].get(name), worst[1].get(name), (silent[0], silent[1]))
        for name in worst[0].keys() | worst[1].keys()
    ]
    return sorted(changes, key=lambda one: (not one.worst.is_root, -_heaviest(one), one.worst.opened_step, one.rule))


def _weight(finding: Finding) -> tuple[bool, int, int]:
    return finding.is_root, int(finding.severity), -finding.opened_step


def _heaviest(change: FindingChange) -> int:
    return max(int(one.severity) for one in (change.before, change.after) if one is not None)


def _change(
    pair: Pair, before: Finding | None, after: Finding | None, silent: tuple[dict[str, str], dict[str, str]]
) -> FindingChange:
    axis = pair.axis
    if before is None:
        assert after is not None  # noqa: S101 - one of the runs has it
        place = axis.after.at(after.opened_step)
        if after.rule in silent[0]:
            return FindingChange(after.rule, "first judged", None, after, f"not judged before: {silent[0][after.rule]}")
        if place > axis.before.at(pair.histories[0].last_step) * 1.001:
            return FindingChange(after.rule, "past its end", None, after, "later than the first run reached")
        return FindingChange(after.rule, "new", None, after)
    alarm = axis.before.at(before.opened_step)
    if after is None:
        return _gone(pair, before, alarm, silent[1])
    if after.severity != before.severity:
        return FindingChange(after.rule, "worse" if after.severity > before.severity else "milder", before, after)
    return FindingChange(after.rule, _when(pair, before, after), before, after)


def _when(pair: Pair, before: Finding, after: Finding) -> Literal["later", "stayed", "earlier"]:
    """Whether an alarm as severe came at another time; ``stayed`` where its time says nothing of the training."""
    axis = pair.axis
    spacing = [place.at(run.logging_interval) - place.at(0) for place, run in zip(pair.places, pair.runs, strict=True)]
    if after.rule.startswith((*_MACHINE, _SET_UP)) or max(spacing) > 1.5 * min(spacing):
        return "stayed"
    alarm, place = axis.before.at(before.opened_step), axis.after.at(after.opened_step)
    if place >= LATER * alarm > 0:
        long_enough = _trouble(after.rule) != "divergence" or after.opened_step >= WATCHED_STEPS
        return "later" if long_enough else "stayed"
    return "earlier" if place * LATER <= alarm else "stayed"


def _gone(pair: Pair, before: Finding, alarm: float, silent: dict[str, str]) -> FindingChange:
    rule, last = before.rule, pair.histories[1].last_step
    if rule == "perf/padding-waste" and any(pair.runs[1].fact(name) is True for name in ("packing", "padding_free")):
        return FindingChange(rule, "gone", before, None, "its rows are packed: nothing is padded")
    if rule in silent:
        return FindingChange(rule, "not judged", before, None, f"not judged after: {silent[rule]}")
    if pair.axis.after.at(last) * 1.001 < alarm:
        if _trouble(rule) == "overfitting" and pair.runs[1].ended:  # fewer epochs are its first remedy
            return FindingChange(rule, "gone", before, None, f"it ended at step {last}, before it could overfit")
        return FindingChange(rule, "not reached", before, None, f"it ended at step {last}, before the alarm's place")
    if _trouble(rule) != "divergence":
        return FindingChange(rule, "gone", before, None)
    needed = round(max(WATCHED_STEPS, LATER * before.opened_step * pair.axis.steps_after))
    note = f"weaker: it was watched for {last} steps, {needed} would be enough" if last < needed else ""
    return FindingChange(rule, "gone", before, None, note)


def _matters(finding: Finding | None) -> bool:
    if finding is None or finding.rule.startswith(_SET_UP):
        return False
    return finding.is_root and finding.severity >= Severity.WARNING


def _is_lost(rule: str) -> bool:
    """Whether a run that breaks this rule critically is lost: what its loss says no longer matters."""
    return _trouble(rule) == "divergence" or rule.startswith("sig/")


def _combine(troubles: list[FindingChange], quality: Measure | None, measures: list[Measure]) -> tuple[Verdict, str]:
    """The verdict and its reason; the rule stands in :func:`compare`."""
    targets = [one for one in troubles if _matters(one.before)]
    mended = [one for one in targets if one.change in ("gone", "milder", "later")]
    unsettled = [one for one in targets if one.change in ("not judged", "not reached")]
    stayed = [one for one in targets if one.change == "stayed"]
    lost = [one for one in stayed if one.worst.severity is Severity.CRITICAL and _is_lost(one.worst.rule)]
    grown = [one for one in troubles if one.change in ("new", "worse", "earlier") and _matters(one.after)]
    least = max((one.before.severity for one in mended if one.before), default=None)
    grave = [one for one in grown if least is None or one.worst.severity >= least]
    past = [one for one in troubles if one.change == "past its end" and _matters(one.after)]
    past = [one for one in past if least is not None and one.worst.severity > least]
    better, worse = (quality is not None and quality.verdict == verdict for verdict in ("helped", "worse"))
    told = "" if quality is None else quality_text(quality)
    good = _joined([*map(_mended_text, mended), told if better else ""])
    bad = _joined([*map(_came_text, grave), told if worse else ""])
    doubtful = better and all(
        one.worst.maturity == "experimental" and one.worst.severity < Severity.CRITICAL for one in grave
    )
    if grave and doubtful:
        good = f"{good}; but {_joined(map(_came_text, grave))}"
    elif grave:
        return (
            ("inconclusive", f"{bad}; but {good}") if better else ("worse", _joined([bad, *map(_mended_text, mended)]))
        )
    if lost and not mended:
        return "no effect", _joined(map(_stayed_text, lost))
    if worse:
        saved = any(one.before is not None and one.before.severity is Severity.CRITICAL for one in mended)
        return ("inconclusive", f"{bad}; but {good}") if saved else ("worse", _joined([bad, good]))
    if mended:
        if past:
            return "inconclusive", f"{good}; but {_joined(map(_came_text, past))}, past the end of the first run"
        return "helped", good if better or quality is None else _joined([good, told])
    if better:
        return "helped", _joined([good, *map(_stayed_text, stayed)])
    rates = {one.name: one for one in measures}
    for family, name in (("perf/", "speed"), ("mem/", "peak memory"), ("loss/spike", "spikes")):
        rate = rates.get(name)
        aimed = any(one.rule.startswith(family) for one in (*stayed, *unsettled))
        if aimed and rate is not None and rate.verdict in ("helped", "worse"):
            return rate.verdict, _joined([quality_text(rate), *map(_stayed_text, stayed)])
    if unsettled:
        return "inconclusive", _joined(f"{one.rule}: {one.note}" for one in unsettled)
    if quality is not None:
        rate = rates.get("speed")
        if not stayed and rate is not None and rate.verdict in ("helped", "worse") and quality.verdict == "no effect":
            return rate.verdict, _joined([quality_text(rate), told])
        return "no effect", _joined([told, *map(_stayed_text, stayed)])
    losses = [one for one in measures if one.name not in ("finite loss", "spikes", "speed", "peak memory")]
    refused = all(one.refused for one in losses)
    if stayed and refused:
        return "no effect", _joined([*map(_stayed_text, stayed), "no loss can be compared"])
    why = "; ".join(dict.fromkeys(f"{one.name}: {one.why}" for one in losses))
    return ("refused" if refused else "inconclusive"), why


def quality_text(measure: Measure) -> str:
    """A measure's outcome in one phrase with its number."""
    if measure.effect is None:
        return measure.why
    return f"{measure.name} {effect_text(measure)}"


def _mended_text(change: FindingChange) -> str:
    assert change.before is not None  # noqa: S101 - what is mended was there
    what = f"{change.before.rule} (step {change.before.opened_step})"
    if change.after is None:
        return f"{what} is gone{f' ({change.note})' if change.note else ''}"
    now = f"{change.after.rule}, {change.after.severity.label}, step {change.after.opened_step}"
    return f"{what} is {change.change}: now {now}"


def _came_text(change: FindingChange) -> str:
    finding = change.worst
    verb = "came" if change.before is None else "came earlier" if change.change == "earlier" else "grew"
    return f"{finding.rule} {verb} ({finding.severity.label}, step {finding.opened_step})"


def _stayed_text(change: FindingChange) -> str:
    finding, before = change.worst, change.before
    now = f"{finding.severity.label}, step {finding.opened_step}"
    if before is not None and before.rule != finding.rule:
        return f"{finding.rule} ({now}) took the place of {before.rule} (step {before.opened_step})"
    return f"{finding.rule} stays ({now})"


def _joined(parts: Iterable[str]) -> str:
    return "; ".join(part for part in parts if part)


def _notes(pair: Pair) -> list[str]:
    notes: list[str] = []
    (old, new), axis = pair.runs, pair.axis
    ends = [place.at(history.last_step) for place, history in zip(pair.places, pair.histories, strict=True)]
    if min(ends) < 0.9 * max(ends):
        longer = "first" if ends[0] > ends[1] else "second"
        notes.append(
            f"Both trained {figure(axis.end)} {axis.name}, {100 * min(ends) / max(ends):.0f} % of the {longer} run."
        )
    shares = [
        axis.end / place.at(run.max_steps) if run.max_steps else None
        for place, run in zip(pair.places, pair.runs, strict=True)
    ]
    if (
        shares[0] is not None
        and shares[1] is not None
        and abs(shares[0] - shares[1]) > 0.1
        and not all(str(run.fact("lr_scheduler_type", "linear")).startswith("constant") for run in pair.runs)
    ):
        notes.append(
            "At the end of what both trained, the learning-rate schedules stand at "
            f"{100 * shares[0]:.0f} % and {100 * shares[1]:.0f} % of their length: part of any difference is theirs."
        )
    if any(change.group == "seed" and not change.one_sided for change in pair.changes):
        notes.append("The seeds differ: what chance does from one seed to the next is not in the ±.")
    if old.steps_estimated or new.steps_estimated:
        notes.append("Steps are estimated from a log that does not state them.")
    made = [one for one in read_ledger(Path(old.path)) if one.run == old.name and one.started == old.first_time]
    notes += (f"{printable(note)}." for note in adoption_notes(made[-CHANGES:], new.fact))
    return notes
