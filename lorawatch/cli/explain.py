"""``lorawatch explain RULE``: print the page of a rule."""

from __future__ import annotations

import argparse
import sys

from lorawatch.cli.errors import UsageError
from lorawatch.registry import rule_classes
from lorawatch.render import rule_markdown
from lorawatch.settings import nearest

_EPILOG = """\
examples:
  lorawatch explain loss/diverging
  lorawatch explain sig/hidden-nan | less
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "Print what a rule means, how it decides, what to change, and where its numbers come from."
    parser.epilog = _EPILOG
    parser.add_argument("rule", metavar="RULE", help="id of the rule, as a finding shows it: loss/diverging")
    parser.add_argument(
        "--rules", metavar="PATH", action="append", default=[], help="load further rules from a file or folder"
    )


def run(options: argparse.Namespace) -> int:
    """Print the page; returns 0.

    Raises:
        UsageError: There is no such rule.
    """
    known = {rule.id: rule for rule in rule_classes(options.rules)}
    rule = known.get(options.rule)
    if rule is None:
        raise UsageError(f"no rule {options.rule!r}{nearest(options.rule, known)} ('lorawatch rules' lists them)")
    sys.stdout.write(rule_markdown(rule))
    return 0
