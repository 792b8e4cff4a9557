"""How often each rule is right, on runs that were broken on purpose and on healthy ones: recall, precision, delay.

Each fault of the reference trainer in two amounts with three seeds, and at least sixty healthy runs of varied set-ups
(:mod:`fault_runs` trains and keeps them). Beside lorawatch the same runs are judged by published detectors
(:mod:`published_detectors`). Writes ``results/diagnosis.md`` and ``results/diagnosis.svg``.

    python benchmarks/diagnosis.py            # the reported seeds; trains what is missing, 90 minutes on two cores
    python benchmarks/diagnosis.py --dev      # the seeds of development, printed, nothing written
    python benchmarks/diagnosis.py --keep     # also keep some of the runs for the tests, in tests/fault_runs

A fault is *caught* when a finding that it expects opened at or after the step from which it acts, at the severity that
it names. Its *root is right* when that is what the incident was put down to: the worst root finding that is firing at
the end, or the worst that ever fired where none is, is one of the rules that the fault names as root; among infos
alone, which claim no cause, any of them.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import lzma
import math
import re
import shutil
import statistics
import sys
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fault_runs import DEVELOPMENT, RENEWED, REPORTED, Done, Job, fault_jobs, findings_of, recipe_for, train, words
from healthy_runs import healthy_jobs
from published_detectors import DETECTORS, AbstainError, LoggedRow, peer_versions
from results_file import RESULTS, write

from lorawatch.engine import order
from lorawatch.findings import Finding, Severity
from lorawatch.registry import RuleSet
from lorawatch.settings import Settings
from lorawatch.stats import mcnemar
from lorawatch.trainer.faults.contract import Expected

KEPT_RUNS = RESULTS.parent.parent / "tests" / "fault_runs"
KEPT_HEALTHY = 10
FORGETTING = ("base/ability-drop", "base/ppl", "lora/update-size")
"""The rules that say that the base is being overwritten. Their warnings are judged by further questions, for a run of a
tiny base does forget. The third one was put beside the others when the first reported pass had shown that it spoke in
eight healthy runs, each of which had lost a seventh to a quarter of what its base could do."""


@dataclass(slots=True)
class Verdict:
    """One run, judged.

    Attributes:
        done: The run.
        findings: What lorawatch found.
        expected: What the fault expects, of the rules that there are; empty for a healthy run.
        rows: What the run logged.
        peers: Steps of the alarms of each published detector that could judge it.
    """

    done: Done
    findings: list[Finding]
    expected: list[Expected] = field(default_factory=list)
    rows: list[LoggedRow] = field(default_factory=list)
    peers: dict[str, list[int]] = field(default_factory=dict)

    @property
    def onset(self) -> int:
        """Step from which the fault acts."""
        return min((one.from_step for one in self.expected), default=0)

    def caught(self) -> Finding | None:
        """The first finding that the fault expects."""
        found = [
            finding
            for one in self.expected
            for finding in self.findings
            if finding.rule in one.rules and finding.severity >= one.least and finding.opened_step >= one.from_step
        ]
        return min(found, key=lambda finding: finding.opened_step, default=None)

    @property
    def forgot(self) -> bool:
        """Whether the run lost abilities of its base, by questions that lorawatch never asked (McNemar, p < 1 %)."""
        told = self.done.details.get("held_out") or {}
        return bool(told) and mcnemar(told["lost"], told["won"]) < 0.01

    def confirmed(self, finding: Finding) -> bool:
        """Whether a warning that the base is being overwritten is true: a trouble of its own beside the fault."""
        return finding.rule in FORGETTING and self.forgot

    def warned(self, families: Sequence[str] = ()) -> bool:
        """Whether anything was found of warning or worse; of some families of rules only, where they are given."""
        return any(
            one.severity >= Severity.WARNING and (not families or one.rule.split("/")[0] in families)
            for one in self.findings
        )

    def alarms(self) -> list[Finding]:
        """Findings of warning or worse, but those that are confirmed."""
        return [one for one in self.findings if one.severity >= Severity.WARNING and not self.confirmed(one)]

    def named(self) -> Finding | None:
        """What is named first: the worst root, of those still firing where there are any.

        What the fault does not expect and the further questions confirm is set aside: the run has that trouble too.
        """
        right = {rule for one in self.expected for rule in one.roots or one.rules}
        roots = [one for one in self.findings if one.is_root and (one.rule in right or not self.confirmed(one))]
        return next(iter(order(roots)), None)

    def root_is_right(self) -> bool:
        """Whether what is named first is what was broken.

        Information names no cause: where nothing worse was found, it is enough that what was broken is among it.
        """
        named = self.named()
        if named is None:
            return False
        right = {rule for one in self.expected for rule in one.roots or one.rules}
        if named.severity is Severity.INFO:
            return any(finding.is_root and finding.rule in right for finding in self.findings)
        return named.rule in right

    def delay(self, finding: Finding) -> tuple[int, str]:
        """Judgements between the onset and the finding, and what is counted: logged rows, or evaluations.

        What is learnt by heart does no harm before ``eval_loss`` turns: its onset is the lowest one before the finding.
        """
        if not finding.rule.startswith("eval/"):
            steps = [row.step for row in self.rows if "loss" in row.values]
            return sum(self.onset < step <= finding.opened_step for step in steps), "rows"
        losses = {
            row.step: row.values["eval_loss"] for row in self.rows
            if "eval_loss" in row.values and row.step <= finding.opened_step
        }  # fmt: skip
        turn = max(self.onset, min(losses, key=losses.__getitem__, default=0))
        return sum(turn < step for step in losses), "evaluations"


def judged(done: Iterable[Done]) -> list[Verdict]:
    """Judge every run by lorawatch and by the published detectors."""
    known = {rule.id for rule in RuleSet(Settings()).make()}
    verdicts = []
    for one in done:
        verdict = Verdict(one, findings_of(one.folder), rows=logged(one.folder))
        if not one.job.healthy:
            verdict.expected = expected_of(one, known)
        for detector in DETECTORS:
            with contextlib.suppress(AbstainError):  # said once, under the table
                verdict.peers[detector.name] = [alarm.step for alarm in detector.judge(verdict.rows)]
        verdicts.append(verdict)
    return verdicts


def expected_of(done: Done, known: set[str]) -> list[Expected]:
    """What the fault of a run expects, without the rules that there are not."""
    from lorawatch.trainer.faults.catalogue import faults

    fault = faults()[done.job.name](done.job.amount)  # type: ignore[arg-type]
    found = []
    for one in fault.expected(fault.prepare(recipe_for(done.job))):
        rules = tuple(rule for rule in one.rules if rule in known)
        if rules:
            found.append(Expected(rules, one.least, one.from_step, one.roots, one.within))
    return found


def worth_training(job: Job, seeds: Sequence[int]) -> bool:
    """Whether a rule can see the fault; one that none sees is trained once, to show that it runs."""
    from lorawatch.trainer.faults.catalogue import faults

    known = {rule.id for rule in RuleSet(Settings()).make()}
    fault = faults()[job.name](job.amount)  # type: ignore[arg-type]
    expected = fault.expected(fault.prepare(recipe_for(job)))
    if any(rule in known for one in expected for rule in one.rules):
        return True
    return job.seed == seeds[0] and job.amount == "plain"


def logged(folder: Path) -> list[LoggedRow]:
    """The rows that a run logged, as the Trainer logged them."""
    rows = []
    try:
        lines = (folder / "lorawatch.jsonl").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    for line in lines:
        record = json.loads(line)
        if record.get("type") == "metrics":
            values = {name: _number(value) for name, value in record["values"].items()}
            rows.append(LoggedRow(record["step"], {name: value for name, value in values.items() if value is not None}))
    return rows


def _number(value: object) -> float | None:
    try:
        return float(value)  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None


def wilson(part: int, whole: int) -> tuple[float, float]:
    """The 95 % interval of a share (Wilson 1927): honest for few runs and for shares near 0 and 1."""
    if not whole:
        return 0.0, 1.0
    z, share = 1.96, part / whole
    centre = (share + z * z / (2 * whole)) / (1 + z * z / whole)
    half = z * math.sqrt(share * (1 - share) / whole + z * z / (4 * whole * whole)) / (1 + z * z / whole)
    return max(centre - half, 0.0), min(centre + half, 1.0)


def share(part: int, whole: int) -> str:
    """A share with its count: ``97 % (58/60)``."""
    return f"{100 * part / whole:.0f} % ({part}/{whole})" if whole else "–"


def report(faulty: Sequence[Verdict], healthy: Sequence[Verdict]) -> str:
    """The tables."""
    scored = [one for one in faulty if one.expected]
    unseen = [one for one in faulty if not one.expected]
    caught = [one for one in scored if one.caught()]
    right = [one for one in scored if one.root_is_right()]
    alarmed = [one for one in healthy if one.alarms()]
    low, high = wilson(len(caught), len(scored))
    lines = [
        (
            f"{len(scored)} faulty runs of {len({one.done.job.name for one in scored})} faults that a rule of this "
            f"version should see, {len(healthy)} healthy runs. Seeds {_seeds(scored)}; amounts and thresholds were "
            f"chosen with seeds {_range(DEVELOPMENT)}. After a first pass a rule, its advice or an amount was changed "
            f"for {', '.join(sorted(RENEWED))}: what stands here of them comes from {len(REPORTED)} seeds further on. "
            "Healthy runs, and those of faults of configuration, adapter, labels, generations, preferences, rewards, "
            "were asked every 50 steps what the model says; the others were trained before there were such looks."
        ),
        "",
        "| | |",
        "|---|---|",
        f"| recall | {share(len(caught), len(scored))}, 95 % interval {100 * low:.0f}–{100 * high:.0f} % |",
        f"| root cause named first | {share(len(right), len(scored))} |",
        f"| healthy runs with any warning or critical | {share(sum(one.warned() for one in healthy), len(healthy))} |",
        f"| … that further questions do not bear out | {share(len(alarmed), len(healthy))} |",
        f"| healthy runs that were warned of forgetting | {_forgetting(healthy)} |",
        (
            "| runs with a warning that are faulty (precision), borne-out forgetting set aside | "
            f"{_precision(scored, alarmed)} |"
        ),
        *_delays(caught),
        "",
        "## By fault",
        "",
        "| fault | amount | caught | root right | delay (median) | found, first seed |",
        "|---|---|---|---|---|---|",
        *_by_fault(scored),
        "",
        "## By rule",
        "",
        (
            "A rule's recall is over the runs whose fault names it first, caught by any of the rules that the fault "
            "names; its precision is over all runs in which it opened as a warning or critical."
        ),
        "",
        "| rule | recall | precision |",
        "|---|---|---|",
        *_by_rule(scored, faulty, healthy),
        "",
        "## Confusion of causes",
        "",
        *_confusion(scored),
        "",
        "## Beside published detectors",
        "",
        (
            "The same logged rows. A fault counts as caught for a detector when it raises any alarm at or after the "
            "onset, whatever it is called; for lorawatch only what the fault expects counts. *In scope* are the faults "
            "of the loss, the gradient and the evaluation, which a detector of losses could see; of the warnings "
            "of lorawatch on healthy runs those of the same kind count, as the others come of no loss. A detector that "
            "always speaks has full recall: what it is worth is the difference of the two (Youden 1950)."
        ),
        "",
        *_peers(scored, healthy),
        "",
        "## Healthy runs that were alarmed",
        "",
        *([f"- {one.done.job}: {words(one.alarms())}" for one in alarmed] or ["None."]),
        "",
        f"Infos on healthy runs: {_infos(healthy)}.",
    ]
    if unseen:
        names = Counter(one.done.job.name for one in unseen)
        lines += [
            "",
            "## Faults that no rule of this version sees",
            "",
            "They were run, and count in no figure above: " + ", ".join(sorted(names)) + ".",
        ]
    return "\n".join(lines)


def _seeds(verdicts: Sequence[Verdict]) -> str:
    return _range(sorted({one.done.job.seed for one in verdicts}))


def _range(seeds: Sequence[int]) -> str:
    return f"{seeds[0]} to {seeds[-1]}" if seeds else "–"


def _precision(scored: Sequence[Verdict], alarmed: Sequence[Verdict]) -> str:
    true = sum(bool(one.alarms()) for one in scored)
    return share(true, true + len(alarmed))


def _forgetting(verdicts: Sequence[Verdict]) -> str:
    """How many runs were warned, by which rules, and how many of these and of all did forget."""
    asked = [one for one in verdicts if one.done.details.get("held_out")]
    by_rule: dict[str, list[Verdict]] = defaultdict(list)
    for one in asked:
        for rule in {each.rule for each in one.findings if each.severity >= Severity.WARNING} & set(FORGETTING):
            by_rule[rule].append(one)
    warned = {id(one): one for group in by_rule.values() for one in group}.values()
    told = ", ".join(
        f"{rule} {sum(one.forgot for one in group)} of {len(group)}" for rule, group in sorted(by_rule.items())
    )
    return (
        f"{len(warned)} of {len(asked)}; true by 240 questions asked afterwards (McNemar, p < 1 %): {told or 'none'}; "
        f"{sum(one.forgot for one in warned)} of the {sum(one.forgot for one in asked)} that did forget"
    )


def _delays(caught: Sequence[Verdict]) -> list[str]:
    by_kind: dict[str, list[int]] = defaultdict(list)
    for one in caught:
        finding = one.caught()
        if finding is None or finding.rule.split("/")[0] not in ("sig", "loss", "grad", "lr", "eval"):
            continue
        count, kind = one.delay(finding)
        by_kind[kind].append(count)
    return [
        f"| delay from onset, {kind} | median {statistics.median(counts):g}, longest tenth from "
        f"{sorted(counts)[int(0.9 * (len(counts) - 1))]} |"
        for kind, counts in sorted(by_kind.items(), reverse=True)
    ]


def _by_fault(scored: Sequence[Verdict]) -> list[str]:
    groups: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for one in scored:
        groups[one.done.job.name, one.done.job.amount].append(one)
    lines = []
    for (name, amount), group in groups.items():
        found = [(one, finding) for one in group if (finding := one.caught())]
        counts = [one.delay(finding) for one, finding in found]
        delay = f"{statistics.median(count for count, _ in counts):g} {counts[0][1]}" if counts else "–"
        right = sum(one.root_is_right() for one in group)
        lines.append(
            f"| {name} | {amount} | {len(found)}/{len(group)} | {right}/{len(group)} | {delay} | "
            f"{words(group[0].findings)} |"
        )
    return lines


def _by_rule(scored: Sequence[Verdict], faulty: Sequence[Verdict], healthy: Sequence[Verdict]) -> list[str]:
    wanted: Counter[str] = Counter()
    found: Counter[str] = Counter()
    for one in scored:
        first = one.expected[0].rules[0]
        wanted[first] += 1
        found[first] += one.caught() is not None
    spoke: Counter[str] = Counter()
    true: Counter[str] = Counter()
    for one in (*faulty, *healthy):
        rules = {finding.rule for finding in one.alarms()}
        ok = {rule for each in one.expected for rule in (*each.rules, *each.roots)}
        for rule in rules:
            spoke[rule] += 1
            # A symptom folded under an expected root is no false alarm either.
            folded = all(not finding.is_root for finding in one.alarms() if finding.rule == rule)
            true[rule] += rule in ok or (folded and not one.done.job.healthy)
    return [
        f"| {rule} | {share(found[rule], wanted[rule])} | {share(true[rule], spoke[rule])} |"
        for rule in sorted({*wanted, *spoke})
    ]


def _confusion(scored: Sequence[Verdict]) -> list[str]:
    wrong: Counter[tuple[str, str, str]] = Counter()
    for one in scored:
        if not one.root_is_right():
            named = one.named()
            wrong[one.done.job.name, one.done.job.amount, named.rule if named else "nothing"] += 1
    if not wrong:
        return ["The root was right in every run."]
    return ["| fault | amount | named first instead | runs |", "|---|---|---|---|"] + [
        f"| {name} | {amount} | {rule} | {count} |" for (name, amount, rule), count in wrong.most_common()
    ]


LOSS_FAMILIES = ("sig", "loss", "grad", "lr", "eval")


def in_scope(verdict: Verdict) -> bool:
    """Whether a detector of losses, gradients and evaluations could see the fault."""
    return any(rule.split("/")[0] in LOSS_FAMILIES for one in verdict.expected for rule in one.rules)


def peer_table(scored: Sequence[Verdict], healthy: Sequence[Verdict]) -> list[tuple[str, int, int, int, int]]:
    """For lorawatch and each detector: name, caught, of, alarmed healthy runs, of; over the faults in scope."""
    scope = [one for one in scored if in_scope(one)]
    table = [
        ("lorawatch", sum(bool(one.caught()) for one in scope), len(scope),
         sum(one.warned(LOSS_FAMILIES) for one in healthy), len(healthy))
    ]  # fmt: skip
    for detector in DETECTORS:
        name = detector.name
        if all(name in one.peers for one in (*scope, *healthy)):
            caught = sum(any(step >= one.onset for step in one.peers[name]) for one in scope)
            table.append((name, caught, len(scope), sum(bool(one.peers[name]) for one in healthy), len(healthy)))
    return table


def _peers(scored: Sequence[Verdict], healthy: Sequence[Verdict]) -> list[str]:
    lines = ["| detector | recall in scope | healthy runs alarmed | difference, points |", "|---|---|---|---|"]
    for name, caught, of, alarmed, runs in peer_table(scored, healthy):
        apart = f"{100 * caught / of - 100 * alarmed / runs:.0f}" if of and runs else "–"
        lines.append(f"| {name} | {share(caught, of)} | {share(alarmed, runs)} | {apart} |")
    told = {name for name, *_ in peer_table(scored, healthy)}
    missing = [detector.name for detector in DETECTORS if detector.name not in told]
    if missing:
        lines += ["", f"Not installed, so they could not judge: {', '.join(missing)}."]
    versions = ", ".join(f"{name} {version}" for name, version in peer_versions().items())
    return [*lines, "", f"Packages: {versions}."]


def _infos(healthy: Sequence[Verdict]) -> str:
    infos = Counter(one.rule for verdict in healthy for one in verdict.findings if one.severity == Severity.INFO)
    return ", ".join(f"{rule} {count}" for rule, count in infos.most_common()) or "none"


def plot(scored: Sequence[Verdict], healthy: Sequence[Verdict], file: Path) -> None:
    """Recall against false alarms, for lorawatch and the published detectors; and recall by fault."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "lorawatch"
    from matplotlib import pyplot as plt

    groups: dict[tuple[str, str], list[Verdict]] = defaultdict(list)
    for one in scored:
        groups[one.done.job.name, one.done.job.amount].append(one)
    names = sorted({name for name, _ in groups})
    figure, (left, right) = plt.subplots(
        1, 2, figsize=(13, 0.24 * len(names) + 1.5), width_ratios=(1, 1.1), layout="constrained"
    )
    for name, caught, of, alarmed, runs in peer_table(scored, healthy):
        ours = name == "lorawatch"
        left.scatter(100 * alarmed / max(runs, 1), 100 * caught / max(of, 1), s=70 if ours else 40, zorder=3)
        below = name.endswith("strict")  # its neighbour has the same height
        left.annotate(name, (100 * alarmed / max(runs, 1), 100 * caught / max(of, 1)), xytext=(6, -14 if below else 5),
                      textcoords="offset points", weight="bold" if ours else "normal",
                      ha="center" if below else "left")  # fmt: skip
    left.set(xlim=(-4, 108), ylim=(-4, 108), xlabel="healthy runs alarmed (%)", ylabel="faulty runs caught (%)",
             title="Faults of loss, gradient and evaluation")  # fmt: skip
    left.grid(alpha=0.3)
    for at, name in enumerate(reversed(names)):
        for amount, offset, colour in (("plain", 0.2, "#1f5fa8"), ("subtle", -0.2, "#e08a1e")):
            group = groups.get((name, amount), [])
            if group:
                width = 100 * sum(bool(one.caught()) for one in group) / len(group)
                right.barh(at + offset, width, height=0.36, color=colour, label=amount if at == 0 else None)
    right.set_yticks(range(len(names)), list(reversed(names)), fontsize=8)
    right.set(xlim=(0, 100), xlabel="runs caught (%)", ylim=(-0.7, len(names) - 0.3))
    right.set_title("Recall by fault", loc="left")
    right.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=2, fontsize=8, frameon=False)
    figure.savefig(file, metadata={"Date": None})
    plt.close(figure)


def keep(faulty: Sequence[Verdict], healthy: Sequence[Verdict]) -> None:
    """Keep one run of each fault and some healthy ones, for the tests: what was caught must stay caught."""
    shutil.rmtree(KEPT_RUNS, ignore_errors=True)
    KEPT_RUNS.mkdir(parents=True)
    index = []
    chosen = []
    for _, group in itertools.groupby(
        (one for one in faulty if one.expected and one.done.job.amount == "plain"), lambda one: one.done.job.name
    ):
        first = min(group, key=lambda one: one.done.job.seed)
        chosen += [first] if first.caught() else []
    for one in [*chosen, *[one for one in healthy if not one.alarms()][:KEPT_HEALTHY]]:
        name = one.done.job.name
        caught = one.caught()
        text = (one.done.folder / "lorawatch.jsonl").read_text(encoding="utf-8")
        # A reading of the host names the folder whose disk it looked at: not one of this machine.
        text = re.sub(r'/[^"\s]*lorawatch-run-[^"/\s]*/run', f"/runs/{name}", text)
        text = text.replace(str(RESULTS.parents[1]), "/lorawatch")
        if str(Path.home()) + "/" in text or str(RESULTS.parents[1]) in text:
            raise SystemExit(f"{one.done.folder}: names a folder of this machine")
        packed = lzma.compress(text.encode(), preset=9 | lzma.PRESET_EXTREME)
        (KEPT_RUNS / f"{name}.jsonl.xz").write_bytes(packed)
        index.append(
            {
                "run": name,
                "expected": [
                    {"rules": each.rules, "least": each.least.label, "from_step": each.from_step}
                    for each in one.expected
                ],
                "opened_step": caught.opened_step if caught else None,
            }
        )
    (KEPT_RUNS / "index.json").write_text(json.dumps(index, indent=1) + "\n", encoding="utf-8")


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dev", action="store_true", help="the seeds of development; prints, and writes nothing")
    parser.add_argument("--only", action="append", default=[], metavar="FAULT[:AMOUNT]")
    parser.add_argument("--seeds", type=int, help="this many seeds instead of three")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--keep", action="store_true", help="keep some of the runs for the tests")
    options = parser.parse_args()
    seeds = (DEVELOPMENT if options.dev else REPORTED)[: options.seeds]
    jobs = [job for job in fault_jobs(seeds, only=options.only) if worth_training(job, seeds)]
    healthy = [] if options.only else healthy_jobs(reported=not options.dev)
    verdicts = judged(train([*healthy, *jobs], workers=options.workers))
    broken = [one for one in verdicts if one.done.error]
    for one in broken:
        print(f"not trained: {one.done.job}: {one.done.error}", file=sys.stderr)
    faulty = [one for one in verdicts if not one.done.job.healthy and not one.done.error]
    fine = [one for one in verdicts if one.done.job.healthy and not one.done.error]
    if options.keep:
        keep(faulty, fine)
    if options.dev or options.only:
        print(report(faulty, fine))
        return 0
    plot([one for one in faulty if one.expected], fine, RESULTS / "diagnosis.svg")
    body = report(faulty, fine) + "\n\n![recall and false alarms](diagnosis.svg)\n"
    write("diagnosis", "Diagnosis of runs that were broken on purpose", body, "torch", "transformers", "trl", "peft")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
