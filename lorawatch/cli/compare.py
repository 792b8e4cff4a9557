"""``lorawatch compare RUN RUN``: whether a change helped."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from lorawatch.cli.errors import UsageError
from lorawatch.cli.options import add_rule_options, settings_of
from lorawatch.comparison.compare import CompareError, compare
from lorawatch.comparison.text import comparison_json, comparison_markdown, comparison_text
from lorawatch.registry import RuleSet
from lorawatch.render import printable
from lorawatch.run_watch import RunWatch
from lorawatch.source import SourceError
from lorawatch.watch import judge

_EPILOG = """\
exit code:
  0  helped, no effect or inconclusive      1  worse      2  refused, or a run cannot be used

examples:
  lorawatch compare outputs/run1 outputs/run2
  lorawatch compare before.log after.log --format markdown > comparison.md
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Compare two finished runs of one job, before and after a change: what differs, which findings came and went, "
        "and whether it helped after equal training. A RUN is a log file or a run's folder."
    )
    parser.epilog = _EPILOG
    parser.add_argument("before", metavar="RUN", type=Path, help="the run before the change")
    parser.add_argument("after", metavar="RUN", type=Path, help="the run after it")
    parser.add_argument("--format", choices=("text", "json", "markdown"), default="text")
    add_rule_options(parser)


def run(options: argparse.Namespace) -> int:
    """Compare and print; returns the exit code.

    Raises:
        UsageError: A path holds no run, or several.
    """
    rules = RuleSet(settings_of(options))
    try:
        found = compare(_one_run(options.before, rules), _one_run(options.after, rules))
    except (CompareError, SourceError) as error:
        raise UsageError(printable(error)) from None
    if options.format == "json":
        text = json.dumps(comparison_json(found), indent=2, allow_nan=False)
    elif options.format == "markdown":
        text = comparison_markdown(found).rstrip("\n")
    else:
        text = comparison_text(found)
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stdout.flush()
    return {"worse": 1, "refused": 2}.get(found.verdict, 0)


def _one_run(path: Path, rules: RuleSet) -> RunWatch:
    judged = judge([path], rules)
    if len(judged.runs) > 1:
        names = [watch.name for watch in judged.runs]
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise UsageError(f"{path}: holds {len(names)} runs ({', '.join(names[:3])}{more}); give one of them")
    if not judged.runs:
        why = judged.errors[0].message if judged.errors else f"{path}: holds no run"
        raise UsageError(printable(why))
    return judged.runs[0]
