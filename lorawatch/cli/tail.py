"""``lorawatch tail PATH``: follow a run live."""

from __future__ import annotations

import argparse
import contextlib
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from lorawatch.cli.errors import UsageError
from lorawatch.cli.options import add_rule_options, settings_of
from lorawatch.exporter import metrics_collector
from lorawatch.machine_watch import MachineWatch
from lorawatch.registry import RuleSet
from lorawatch.render import watches_text
from lorawatch.sources.notice import FileNotifier
from lorawatch.terminal import View, make_view
from lorawatch.watch import FolderWatch
from lorawatch.web.address import ListenError
from lorawatch.web.server import Server

LOOK_SECONDS = 1.0
"""Longest time between two looks at the files: what no notice told of is seen at the latest then."""

_EPILOG = """\
Starts before the run's files exist and waits for them. Ends with a summary when the run ends, or on Ctrl-C.

examples:
  lorawatch tail ./outputs
  lorawatch tail train.log --web.listen-address 127.0.0.1:0
  lorawatch tail ./outputs --format jsonl | my-own-tool
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "Follow a log file, a run's folder, or a folder of runs, while it is written."
    parser.epilog = _EPILOG
    parser.add_argument("path", metavar="PATH", type=Path)
    parser.add_argument("--no-machine", action="store_true", help="do not look at GPU, host and processes")
    add_view_options(parser)
    add_rule_options(parser)


def add_view_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that decide what is shown and where the metrics are."""
    parser.add_argument(
        "--web.listen-address",
        dest="listen",
        metavar="HOST:PORT",
        help="where to serve /metrics (default 127.0.0.1:10910; '' for nowhere)",
    )
    parser.add_argument("--no-color", action="store_true", help="no colour (NO_COLOR in the environment does the same)")
    parser.add_argument("--format", choices=("text", "jsonl"), default="text")


def run(options: argparse.Namespace) -> int:
    """Follow until the run ends or Ctrl-C; returns 0.

    Raises:
        UsageError: The address cannot be listened on.
    """
    settings = settings_of(options)
    rules = RuleSet(settings)
    listen = settings.listen_address if options.listen is None else options.listen
    watch = FolderWatch(options.path, rules, timed=True)
    server = serve(watch, rules, listen)
    view = make_view(
        sys.stdout,
        form=options.format,
        color=not options.no_color,
        metrics_address=f"{server.url}/metrics" if server else "",
    )
    machine = MachineWatch(watch) if settings.machine and not options.no_machine else None
    notifier = FileNotifier(options.path)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        if server:
            server.start()
        if machine:
            machine.start()
        follow(watch, view, lambda: notifier.wait(LOOK_SECONDS), machine)
    finally:
        notifier.close()
        if machine:
            machine.stop()
        if server:
            server.stop()
    return 0


def serve(watch: FolderWatch, rules: RuleSet, listen: str) -> Server | None:
    """The server of ``/metrics``, bound and not started yet; None for the address ``""``.

    Raises:
        UsageError: The address is wrong, taken, or reachable by other machines.
    """
    if not listen:
        return None
    severities = {rule.id: rule.severity for rule in rules.classes}
    try:
        return Server(watch, metrics_collector(watch, severities), listen)
    except ListenError as error:
        raise UsageError(str(error)) from None


def follow(watch: FolderWatch, view: View, wait: Callable[[], object], machine: MachineWatch | None = None) -> None:
    """Look, show and wait until every run has ended or Ctrl-C, then read once more and show the summary."""
    watch.listeners.append(view.heard)
    summary = ""
    try:
        with contextlib.suppress(KeyboardInterrupt):  # the usual way to leave
            while True:
                watch.poll()
                if machine is not None:
                    machine.poll()
                view.update(watch)
                if watch.ended:
                    break
                wait()
        watch.finish()
        view.update(watch)
        summary = watches_text(watch.runs, width=min(shutil.get_terminal_size((102, 24)).columns, 102))
    finally:
        view.close(summary)  # whatever happened, the terminal is left as it was


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    raise KeyboardInterrupt
