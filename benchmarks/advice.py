"""Does the advice help? Each fault is run, lorawatch's next adjustment is applied by machine, and it is run again.

A person who follows lorawatch is played by the machine: it takes what the incident was put down to (the worst root
finding), goes through its adjustments in the order in which they are shown, and does the first that it has not tried:
it sets a parameter in the run's recipe, or it looks where the advice says to look. A look finds the cause only where
the advice names it in the fault's own words (:attr:`Fault.remedy`); the cause is then taken out. The run is trained
again with the same seed, and ``lorawatch compare`` says whether that helped. What helped is kept, what did not is taken
back; three adjustments at most. Faults that bring information only ask for no change, and are left out. Writes
``results/advice.md``.

    python benchmarks/advice.py                            # the reported seed
    python benchmarks/advice.py --dev --only tiny-dataset  # a seed of development, printed, nothing written
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

from diagnosis import Verdict, judged
from fault_runs import DEVELOPMENT, FURTHER, REPORTED, Done, Job, fault_jobs, recipe_for, train
from results_file import write

from lorawatch.comparison.compare import CompareError, compare
from lorawatch.findings import Adjustment, Finding, Severity
from lorawatch.registry import RuleSet
from lorawatch.run_watch import RunWatch
from lorawatch.settings import Settings
from lorawatch.watch import judge

ATTEMPTS = 3
ANEW = frozenset(
    {"adapter-on-wrong-modules", "few-modules-adapted", "saved-modules-misspelt", "rate-of-full-fine-tuning",
     "adapter-in-half-precision", "labels-all-masked", "dropout-extreme", "margin-explosion", "length-rewarded"}
)  # fmt: skip
"""Faults whose advice, or the weighing of what came of it, was changed for what a first reported pass showed (38 of 53
helped, 4 worse). What is reported of them comes from a seed that was used for nothing before."""


@dataclass(slots=True)
class Attempt:
    """One adjustment that was made, and what came of it."""

    what: str
    verdict: str
    why: str
    gone: bool


@dataclass(slots=True)
class Story:
    """One fault from its first run to its last.

    Attributes:
        job: The first run.
        target: The finding that was to be mended; None when nothing was found.
        attempts: What was tried.
        outcome: ``helped``, ``no effect``, ``worse``, ``inconclusive``, ``refused``, or ``nothing to apply``.
        gone: Whether the finding is gone, or comes later or milder, after the last kept adjustment.
    """

    job: Job
    target: Finding | None
    attempts: list[Attempt] = field(default_factory=list)
    outcome: str = "nothing to apply"
    gone: bool = False


def watch_of(done: Done) -> RunWatch:
    """The run, judged whole."""
    found = judge([done.folder / "lorawatch.jsonl"], RuleSet(Settings()))
    if not found.runs:
        raise SystemExit(f"{done.folder}: {'; '.join(error.message for error in found.errors)}")
    return found.runs[0]


def follow(first: Verdict) -> Story:
    """Follow lorawatch's advice on one run."""
    story = Story(first.done.job, first.named())
    if story.target is None:
        return story
    original = watch_of(first.done)
    job, finding, tried = first.done.job, story.target, set[str]()
    for _ in range(ATTEMPTS):
        step = next_step(finding, job, tried)
        if step is None:
            break
        changed, what = step
        tried.add(what)
        done = train([changed], tell=False, workers=1)[0]
        if done.error:
            story.attempts.append(Attempt(what, "refused", done.error, gone=False))
            continue
        try:
            found = compare(original, watch_of(done))
        except CompareError as error:
            story.attempts.append(Attempt(what, "refused", str(error), gone=False))
            continue
        gone = any(
            change.rule == story.target.rule and change.change in ("gone", "later", "milder")
            for change in found.findings
        )
        story.attempts.append(Attempt(what, found.verdict, found.why, gone))
        if found.verdict == "helped":
            story.outcome, story.gone, job = "helped", gone, changed
            if gone:
                break
            named = judged([done])[0].named()
            if named is None:
                break
            finding = named
        elif story.outcome != "helped":
            story.outcome = found.verdict
    return story


def next_step(finding: Finding, job: Job, tried: set[str]) -> tuple[Job, str] | None:
    """The first adjustment of a finding that was not tried and that can be made; the job with it, and its words."""
    from lorawatch.trainer.faults.catalogue import faults

    for item in finding.adjustments:
        if not item.parameter:
            words = f"look: {item.proposed}"
            remedy = faults()[job.name].remedy
            if (
                words not in tried
                and not job.mended
                and any(word in f"{item.proposed} {item.why}".lower() for word in remedy)
            ):
                return dataclasses.replace(job, mended=True), words
            continue
        words = f"{item.parameter} {item.current} → {item.proposed}"
        changes = as_recipe(item, job)
        if words not in tried and changes:
            merged = dict(job.applied) | changes
            return dataclasses.replace(job, applied=tuple(merged.items())), words
    return None


def as_recipe(item: Adjustment, job: Job) -> dict[str, Any]:
    """An adjustment as fields of the recipe; empty where no machine can apply it."""
    from lorawatch.trainer.recipe import FIELDS, RecipeError, recipe_of

    name, value = item.parameter, item.proposed
    recipe = recipe_for(job)
    if name == "num_train_epochs" and recipe.max_steps > 0:
        return {"num_train_epochs": float(value), "max_steps": -1} if isinstance(value, int | float) else {}
    if name not in FIELDS:
        return {"training_arguments": recipe.training_arguments | {name: value}} if not isinstance(value, str) else {}
    try:
        read = getattr(recipe_of({name: value}, "advice"), name)
    except RecipeError:  # words, not a value
        return {}
    return {} if read == getattr(recipe, name) else {name: read}


def report(stories: Sequence[Story]) -> str:
    """The table."""
    counts = Counter(story.outcome for story in stories)
    helped = counts["helped"]
    lines = [
        f"{len(stories)} faults, plain amount, {_seeds(stories)}: {helped} ended as helped "
        f"({100 * helped / max(len(stories), 1):.0f} %), with the finding gone, later or milder in "
        f"{sum(story.gone for story in stories)}. "
        + ", ".join(f"{outcome} {count}" for outcome, count in counts.most_common())
        + f". From a further seed, for changes after a first pass: {', '.join(sorted(ANEW))}.",
        "",
        "| fault | finding | adjustments, in order | outcome | finding gone |",
        "|---|---|---|---|---|",
    ]  # fmt: skip
    for story in stories:
        steps = (
            "<br>".join(f"{attempt.what} → **{attempt.verdict}**: {attempt.why}" for attempt in story.attempts) or "–"
        )
        target = story.target.rule if story.target else "nothing"
        gone = "yes" if story.gone else "no"
        lines.append(f"| {story.job.name} | {target} | {steps.replace('|', '/')} | {story.outcome} | {gone} |")
    return "\n".join(lines)


def _seeds(stories: Sequence[Story]) -> str:
    seeds = Counter(story.job.seed for story in stories)
    return " and ".join(f"seed {seed} ({count})" for seed, count in sorted(seeds.items()))


def main() -> int:
    """Run it; returns the exit code."""
    from lorawatch.trainer.faults.catalogue import faults

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", action="store_true", help="a seed of development; prints, and writes nothing")
    parser.add_argument("--only", action="append", default=[], metavar="FAULT")
    options = parser.parse_args()
    seeds = (DEVELOPMENT if options.dev else REPORTED)[:1]
    jobs = [job for job in fault_jobs(seeds, only=options.only, amounts=("plain",)) if not faults()[job.name].waits]
    if not options.dev:
        jobs = [dataclasses.replace(job, seed=job.seed + FURTHER) if job.name in ANEW else job for job in jobs]
    verdicts = [
        one for one in judged(train(jobs))
        if not one.done.error and any(each.least >= Severity.WARNING for each in one.expected)
    ]  # fmt: skip
    with ThreadPoolExecutor(2) as pool:
        stories = list(pool.map(follow, verdicts))
    text = report(stories)
    if options.dev or options.only:
        print(text)
    else:
        write("advice", "Does the advice help?", text, "torch", "transformers", "trl", "peft")
    return 0


if __name__ == "__main__":
    sys.exit(main())
