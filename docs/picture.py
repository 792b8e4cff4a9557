"""Draws ``docs/images/tail.svg``: what ``lorawatch tail`` shows of the demo's recording, a moment after it goes wrong.

``python docs/picture.py``. The picture is the live view's own screen, drawn by rich.
"""

from __future__ import annotations

import io
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

from lorawatch.registry import RuleSet
from lorawatch.settings import Settings
from lorawatch.terminal_live import LiveView
from lorawatch.watch import FolderWatch

ROOT = Path(__file__).resolve().parent.parent
RECORDING = ROOT / "lorawatch" / "recordings"
WIDTH, HEIGHT = 104, 36
STEP = 362


def main() -> int:
    """Replay the recording up to :data:`STEP` and draw the screen; returns 0."""
    console = Console(file=io.StringIO(), record=True, width=WIDTH, height=HEIGHT, force_terminal=True)
    with tempfile.TemporaryDirectory() as scratch:
        run = Path(scratch) / "outputs"
        run.mkdir()
        for file in RECORDING.glob("*.json"):
            (run / file.name).write_bytes(file.read_bytes())
        watch = FolderWatch(run, RuleSet(Settings()))
        view = LiveView(console, "http://127.0.0.1:10910/metrics", clock=lambda: 0.0)
        watch.listeners.append(view.heard)
        with (run / "train.log").open("wb", buffering=0) as log:
            for line in (RECORDING / "train.log").read_bytes().splitlines(keepends=True):
                log.write(line)
                watch.poll()
                view.lines(watch, watch.runs, 0.0, WIDTH - 2, HEIGHT)  # the curve grows with each look
                if watch.runs and watch.runs[0].engine.run.step >= STEP:
                    break
        for line in view.lines(watch, watch.runs, 0.0, WIDTH - 2, HEIGHT):
            text = Text()
            for words, style in line.parts:
                text.append(words, style)
            console.print(text, no_wrap=True, overflow="crop")
    target = ROOT / "docs" / "images" / "tail.svg"
    target.parent.mkdir(exist_ok=True)
    target.write_text(console.export_svg(title="lorawatch tail ./outputs"), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
