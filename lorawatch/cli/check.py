"""``lorawatch check PATH…``: judge finished runs, once."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lorawatch.cli.options import add_rule_options, settings_of
from lorawatch.findings import Severity
from lorawatch.registry import RuleSet
from lorawatch.render import judged_json, judged_markdown, printable, watches_text
from lorawatch.watch import Judged, judge

_EPILOG = """\
exit code:
  0  nothing at or above --fail-on      1  something      2  nothing could be judged

examples:
  lorawatch check ./outputs
  lorawatch check train.log --format markdown > findings.md
  lorawatch check runs/* --fail-on critical --ignore loss/noisy
  lorawatch check ./outputs -v              also: which files, which facts, what was abstained and why
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "Judge finished runs. A PATH is a log file, a run's folder, or a folder of runs."
    parser.epilog = _EPILOG
    parser.add_argument("paths", metavar="PATH", nargs="+", type=Path)
    parser.add_argument("--format", choices=("text", "json", "markdown"), default="text")
    parser.add_argument(
        "--fail-on",
        choices=("info", "warning", "critical", "never"),
        help="exit with 1 from this severity on (default: warning)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="also show sources, facts and what was abstained")
    add_rule_options(parser)


def run(options: argparse.Namespace) -> int:
    """Judge and print; returns the exit code."""
    settings = settings_of(options)
    judged = judge(options.paths, RuleSet(settings))
    if options.format == "json":
        text = json.dumps(judged_json(judged), indent=2, allow_nan=False)
    elif options.format == "markdown":
        text = judged_markdown(judged).rstrip("\n")
    else:
        text = watches_text(judged.runs, verbose=options.verbose)
    if text:
        sys.stdout.write(text.encode(sys.stdout.encoding or "utf-8", "replace").decode(sys.stdout.encoding or "utf-8"))
        sys.stdout.write("\n")
    sys.stdout.flush()
    for error in judged.errors:
        sys.stderr.write(f"lorawatch: {printable(error.message)}\n")
    if not judged.runs:
        return 2
    return 1 if _fails(judged, options.fail_on or settings.fail_on) else 0


def _fails(judged: Judged, fail_on: str) -> bool:
    if fail_on == "never":
        return False
    limit = Severity.parse(fail_on)
    return any(
        finding.severity >= limit for watch in judged.runs for engine in watch.engines for finding in engine.findings
    )
