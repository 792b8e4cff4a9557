"""``lorawatch VERB …``: reads the command line and hands it to the verb's own file, which alone is loaded."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from lorawatch.cli.errors import UsageError
from lorawatch.settings import SettingsError
from lorawatch.version import __version__

VERBS = {
    "train": "fine-tune with LoRA, watched; or break a run on purpose",
    "check": "judge finished runs, once",
    "tail": "follow a run live in the terminal, and serve /metrics",
    "compare": "say whether a change helped: two finished runs of one job",
    "rules": "list the rules",
    "explain": "print the page of a rule",
    "preflight": "judge a configuration before anything is trained, and estimate its memory",
    "report": "write a report of one run: a page, or Markdown",
    "fix": "make the next adjustment in your own configuration",
    "demo": "replay a recorded faulty run through tail",
}

_EPILOG = """\
examples:
  lorawatch check ./outputs                what is wrong with this run, why, and what to change
  lorawatch check run1 run2 --format json  for scripts; exit code 1 when a warning or worse was found
  lorawatch tail ./outputs                 the same, live, beside a job that knows nothing of it
  lorawatch explain loss/diverging         what a finding means
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0 good, 1 findings, 2 unusable input or settings."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = argparse.ArgumentParser(
        prog="lorawatch",
        description="Watches LoRA fine-tuning runs: says early what is wrong, why, and what to change.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"lorawatch {__version__}")
    verbs = parser.add_subparsers(dest="verb", metavar="VERB", required=True)
    chosen = next((word for word in words if not word.startswith("-")), None)
    for verb, purpose in VERBS.items():
        sub = verbs.add_parser(verb, help=purpose, formatter_class=argparse.RawDescriptionHelpFormatter)
        if verb == chosen:  # the other verbs' modules are not loaded
            module = importlib.import_module(f"lorawatch.cli.{verb}")
            module.configure(sub)
            sub.set_defaults(run=module.run)
    options = parser.parse_args(words)
    try:
        return int(options.run(options))
    except (SettingsError, UsageError) as error:
        print(f"lorawatch: {error}", file=sys.stderr)  # noqa: T201
        return 2
    except KeyboardInterrupt:
        return 130
    except BrokenPipeError:
        # The reader (head, less) is gone: say nothing, and keep Python's own flush at exit quiet.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


if __name__ == "__main__":
    sys.exit(main())
