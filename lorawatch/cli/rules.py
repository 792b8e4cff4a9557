"""``lorawatch rules``: list the rules."""

from __future__ import annotations

import argparse
import json
import sys

from lorawatch.cli.options import add_rule_options, settings_of
from lorawatch.registry import RuleSet
from lorawatch.render import rule_json

_EPILOG = """\
examples:
  lorawatch rules
  lorawatch rules --select eval --format json
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "List the rules that are in force."
    parser.epilog = _EPILOG
    parser.add_argument("--format", choices=("table", "json", "markdown"), default="table")
    add_rule_options(parser)


def run(options: argparse.Namespace) -> int:
    """Print the list; returns 0."""
    rules = RuleSet(settings_of(options)).classes
    if options.format == "json":
        sys.stdout.write(json.dumps([rule_json(rule) for rule in rules], indent=2) + "\n")
        return 0
    rows = [(rule.id, rule.severity.label, rule.maturity, rule.title) for rule in rules]
    if options.format == "markdown":
        sys.stdout.write("| rule | severity | maturity | what it says |\n|---|---|---|---|\n")
        sys.stdout.writelines(
            f"| `{one}` | {severity} | {maturity} | {title} |\n" for one, severity, maturity, title in rows
        )
        return 0
    widths = [max((len(row[column]) for row in rows), default=0) for column in range(3)]
    for row in rows:
        start = "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=False))
        sys.stdout.write(f"{start}  {row[3]}\n")
    return 0
