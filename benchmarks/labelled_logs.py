"""How often each rule is right: recall, false alarms and delay over a folder of labelled logs.

The folder holds ``labels.csv`` (file, labels separated by ``;``, onset_step, confidence, note) and the files it names.
Only labels of high confidence count. Usage: ``python benchmarks/labelled_logs.py [FOLDER] [--all]``.
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from statistics import median

from results_file import write

from lorawatch.findings import Finding, Severity
from lorawatch.registry import RuleSet
from lorawatch.settings import Settings
from lorawatch.watch import judge

DEFAULT_CORPUS = Path(__file__).resolve().parent.parent.parent / "shared" / "runs"

INFO, WARNING = Severity.INFO, Severity.WARNING
CAUGHT_BY: dict[str, dict[str, Severity]] = {
    "no_learning": {
        "loss/not-learning": WARNING, "loss/slow-start": WARNING, "sig/no-supervision": WARNING,
        "sig/dead-gradient": WARNING, "pref/no-signal": WARNING, "rl/no-variance": WARNING,
    },
    "slow_start": {"loss/slow-start": WARNING, "loss/not-learning": WARNING},
    "loss_zero": {"sig/no-supervision": WARNING, "sig/hidden-nan": WARNING, "loss/memorised": INFO},
    "divergence": {"loss/diverging": WARNING, "loss/blow-up": WARNING, "loss/at-uniform": WARNING},
    "nan": {"sig/hidden-nan": WARNING, "sig/nan": WARNING},
    "grad_explosion": {
        "grad/explosion": WARNING, "grad/spike": INFO, "loss/blow-up": WARNING, "loss/diverging": WARNING,
    },
    "spike": {"loss/spike": INFO, "loss/diverging": WARNING},
    "oscillation": {"loss/oscillation": WARNING, "loss/periodic": INFO},
    "overfit": {"eval/overfit": WARNING, "eval/gap": INFO, "loss/memorised": INFO, "loss/stairs": INFO},
    "plateau": {"loss/plateau": INFO},
}  # fmt: skip
"""For each label the rules that catch it, and the least severity at which they do."""
ALARM_FAMILIES = ("sig/*", "loss/*", "grad/*", "lr/*", "eval/*", "pref/*", "rl/*")
DETERMINISTIC = (
    "sig/*", "loss/blow-up", "loss/at-uniform", "loss/start", "grad/explosion", "grad/spike", "lr/*",
    "rl/truncation",
)  # fmt: skip
"""Rules that rest on no trend: they may speak on a run of a few points."""


@dataclass(slots=True)
class Row:
    """One labelled file and what was found in it."""

    file: str
    labels: list[str]
    onset: int | None
    confidence: str
    group: str
    error: str = ""
    rows: int = 0
    findings: list[Finding] = field(default_factory=list)

    def alarms(self) -> list[Finding]:
        """The findings of warning or worse that would be false alarms on a healthy run."""
        return [
            finding for finding in self.findings
            if finding.severity >= WARNING and any(fnmatchcase(finding.rule, family) for family in ALARM_FAMILIES)
        ]  # fmt: skip

    def catches(self, label: str) -> list[Finding]:
        """The findings that catch ``label``, first opened first."""
        limits = CAUGHT_BY[label]
        caught = [one for one in self.findings if one.rule in limits and one.severity >= limits[one.rule]]
        return sorted(caught, key=lambda finding: finding.opened_step)

    def says(self) -> str:
        """The findings in a few words."""
        return ", ".join(f"{one.rule} {one.severity.label}@{one.opened_step}" for one in self.findings) or "–"


def read(corpus: Path) -> list[Row]:
    """Judge every labelled file."""
    groups: dict[str, str] = {}
    manifest = corpus / "manifest.csv"
    if manifest.is_file():
        with manifest.open(encoding="utf-8", newline="") as lines:
            groups = {line["file"]: line["run_group"] for line in csv.DictReader(lines)}
    rules = RuleSet(Settings())
    rows: list[Row] = []
    with (corpus / "labels.csv").open(encoding="utf-8", newline="") as lines:
        for line in csv.DictReader(lines):
            onset = int(line["onset_step"]) if line["onset_step"] else None
            row = Row(
                line["file"],
                line["labels"].split(";"),
                onset,
                line["confidence"],
                groups.get(line["file"]) or line["file"],
            )
            judged = judge([corpus / line["file"]], rules)
            row.error = "; ".join(error.message for error in judged.errors)
            for watch in judged.runs:
                for engine in watch.engines:
                    row.rows += engine.run.rows
                    row.findings += engine.findings
            rows.append(row)
    return rows


def name(file: str) -> str:
    """A file's name, short enough for a table."""
    text = file.removeprefix("files/")
    return text if len(text) <= 78 else f"{text[:40]}…{text[-37:]}"


def report(rows: list[Row]) -> str:
    """The tables."""
    judged = [row for row in rows if row.rows]
    high = [row for row in judged if row.confidence == "high"]
    lines = [
        f"{len(rows)} labelled files, {len(judged)} judged, {len(rows) - len(judged)} not readable (see the end).",
        f"{len(high)} of the judged files have a label of high confidence; only these count.",
        "",
    ]
    healthy = [row for row in high if row.labels == ["healthy"]]
    alarmed = [row for row in healthy if row.alarms()]
    groups = {row.group for row in healthy}
    alarmed_groups = {row.group for row in alarmed}
    lines += [
        "## False alarms on healthy runs",
        "",
        "| | files | with a warning or critical | share |",
        "|---|---|---|---|",
        f"| files | {len(healthy)} | {len(alarmed)} | {_share(len(alarmed), len(healthy))} |",
        f"| runs, each once | {len(groups)} | {len(alarmed_groups)} | {_share(len(alarmed_groups), len(groups))} |",
        "",
    ]
    lines += [f"- {name(row.file)}: {row.says()}" for row in alarmed]
    infos = Counter(one.rule for row in healthy for one in row.findings if one.severity == INFO)
    if infos:
        lines += ["", "Infos on healthy runs: " + ", ".join(f"{rule} {count}" for rule, count in infos.most_common())]
    lines += ["", *_failures(high), *_short(high)]
    unread = [row for row in rows if not row.rows]
    if unread:
        kinds = Counter(f"{Path(row.file.split('@')[0]).suffix or Path(row.file).name}" for row in unread)
        lines += ["", "## Not readable", "", *(f"- {kind}: {count} files" for kind, count in kinds.most_common())]
        lines += [
            f"- {name(row.file)} ({'; '.join(row.labels)}, {row.confidence})"
            for row in unread
            if row.labels != ["healthy"]
        ]
    return "\n".join(lines)


def _failures(high: list[Row]) -> list[str]:
    failures = [row for row in high if not {"healthy", "too_few_points"} & {row.labels[0]}]
    caught_files = 0
    per_label: dict[str, list[Row]] = defaultdict(list)
    lines = ["## Failures", "", "| file | label | onset | caught by | at step | delay |", "|---|---|---|---|---|---|"]
    for row in failures:
        caught = False
        for label in row.labels:
            if label not in CAUGHT_BY:
                continue
            per_label[label].append(row)
            found = row.catches(label)
            caught |= bool(found)
            first = found[0] if found else None
            delay = first.opened_step - row.onset if first and row.onset is not None else ""
            lines.append(
                f"| {name(row.file)} | {label} | {row.onset or ''} | "
                + (
                    f"{first.rule} ({first.severity.label}) | {first.opened_step} | {delay} |"
                    if first
                    else f"**missed**: {row.says()} | | |"
                )
            )
        caught_files += caught
    lines += ["", f"Caught by at least one of their labels: {caught_files} of {len(failures)} files.", ""]
    lines += ["| label | files | caught | recall | median delay (steps) |", "|---|---|---|---|---|"]
    for label, rows in sorted(per_label.items()):
        found_rows = [(row, row.catches(label)) for row in rows]
        delays = [found[0].opened_step - row.onset for row, found in found_rows if found and row.onset is not None]
        count = sum(bool(found) for _, found in found_rows)
        lines.append(
            f"| {label} | {len(rows)} | {count} | {_share(count, len(rows))} | {median(delays) if delays else '–'} |"
        )
    return lines


def _short(high: list[Row]) -> list[str]:
    short = [row for row in high if "too_few_points" in row.labels]
    spoke = []
    for row in short:
        trend = [one for one in row.alarms() if not any(fnmatchcase(one.rule, pattern) for pattern in DETERMINISTIC)]
        if trend:
            spoke.append(row)
    lines = [
        "",
        "## Runs that are too short",
        "",
        f"{len(short)} files, {len(spoke)} with a warning or critical that rests on a trend.",
    ]
    return lines + [f"- {name(row.file)}: {row.says()}" for row in spoke]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def main() -> int:
    """Run it; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("corpus", nargs="?", type=Path, default=DEFAULT_CORPUS)
    parser.add_argument("--all", action="store_true", help="print what was found in every file, and write no result")
    options = parser.parse_args()
    if not (options.corpus / "labels.csv").is_file():
        sys.stderr.write(f"{options.corpus}: holds no labels.csv; give the folder of a labelled corpus\n")
        return 2
    rows = read(options.corpus)
    if options.all:
        for row in rows:
            print(f"{row.confidence:<7}{';'.join(row.labels):<24}{row.rows:>6} {name(row.file)}")
            print(f"      {row.error or row.says()}")
        return 0
    write("labelled_logs", "Diagnosis over a labelled corpus", report(rows))
    return 0


if __name__ == "__main__":
    sys.exit(main())
