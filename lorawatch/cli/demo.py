"""``lorawatch demo``: replay a recorded faulty run through the real path.

A writer appends the recorded console log to a folder as a trainer would, sped up, and ``tail`` follows that folder:
what it shows is what it would show beside a real job. The recording is of a real Trainer run of this project.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import threading
from importlib import resources
from pathlib import Path

from lorawatch.cli.errors import UsageError
from lorawatch.cli.options import add_rule_options, settings_of
from lorawatch.cli.tail import add_view_options, follow, serve
from lorawatch.registry import RuleSet
from lorawatch.sources.notice import FileNotifier
from lorawatch.terminal import make_view
from lorawatch.watch import FolderWatch
from lorawatch.web.server import Server

LOG = "train.log"
BEATS_PER_SECOND = 10
_EPILOG = """\
examples:
  lorawatch demo
  lorawatch demo --seconds 10 --no-color
"""
_AFTERWARDS = """
This was a recording. For a run of your own:
  lorawatch check PATH    a finished run: what is wrong, why, and what to change
  lorawatch tail PATH     a live one, as you just saw
  lorawatch explain RULE  the page of a finding
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = "Replay a recorded faulty run, as tail would show it live. Needs no GPU and no torch."
    parser.epilog = _EPILOG
    parser.add_argument("--seconds", type=float, default=25.0, help="how long the replay takes (default 25)")
    add_view_options(parser)
    add_rule_options(parser)


def run(options: argparse.Namespace) -> int:
    """Replay; returns 0.

    Raises:
        UsageError: The recording is not installed, or the address cannot be listened on.
    """
    if not 0 < options.seconds < 3600:
        raise UsageError(f"--seconds must lie between 0 and 3600, is {options.seconds:g}")
    settings = settings_of(options)
    rules = RuleSet(settings)
    recording = resources.files("lorawatch") / "recordings"
    if not (recording / LOG).is_file():
        raise UsageError("the recording is missing from this installation; install lorawatch again")
    with tempfile.TemporaryDirectory(prefix="lorawatch-demo-") as scratch:
        folder = Path(scratch) / "lr-too-high"
        watch = FolderWatch(folder, rules, timed=True)
        server = _serve(watch, rules, settings.listen_address if options.listen is None else options.listen)
        view = make_view(
            sys.stdout,
            form=options.format,
            color=not options.no_color,
            metrics_address=f"{server.url}/metrics" if server else "",
        )
        notifier = FileNotifier(folder)
        with resources.as_file(recording) as place:
            writer = RecordingWriter(place, folder, options.seconds)
            try:
                if server:
                    server.start()
                writer.start()
                follow(watch, view, lambda: notifier.wait(1.0))
            finally:
                writer.stop()
                notifier.close()
                if server:
                    server.stop()
    if options.format == "text":
        sys.stdout.write(_AFTERWARDS)
    return 0


def _serve(watch: FolderWatch, rules: RuleSet, listen: str) -> Server | None:
    try:
        return serve(watch, rules, listen)
    except UsageError:
        # Another lorawatch may be at work on the usual port: a demo takes any.
        return serve(watch, rules, "127.0.0.1:0")


class RecordingWriter(threading.Thread):
    """Writes a recorded run into a folder, piece by piece, as a trainer does.

    Args:
        recording: Folder of the recording: ``train.log`` and the files that state the set-up.
        folder: Where to write; made when the writer starts.
        seconds: How long it takes.
    """

    def __init__(self, recording: Path, folder: Path, seconds: float) -> None:
        super().__init__(name="lorawatch-demo-writer", daemon=True)
        self._recording = recording
        self._folder = folder
        self._beats = max(1, round(seconds * BEATS_PER_SECOND))
        self._pause = seconds / self._beats
        self._stopped = threading.Event()

    def run(self) -> None:
        """Write until the log ends or :meth:`stop` is called."""
        self._folder.mkdir(parents=True)
        for file in self._recording.iterdir():
            if file.name != LOG and file.is_file():
                shutil.copyfile(file, self._folder / file.name)
        data = (self._recording / LOG).read_bytes()
        size = -(-len(data) // self._beats)
        with (self._folder / LOG).open("wb", buffering=0) as out:
            for start in range(0, len(data), size):
                out.write(data[start : start + size])  # torn lines are part of what a reader meets
                if self._stopped.wait(self._pause):
                    return

    def stop(self) -> None:
        """Stop writing and wait for the thread."""
        self._stopped.set()
        if self.ident is not None:
            self.join(5.0)
