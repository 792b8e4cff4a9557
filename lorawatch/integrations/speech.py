"""What the callback says, and how it says it without breaking the progress bar."""

from __future__ import annotations

import dataclasses
import sys

from transformers.utils import is_in_notebook  # type: ignore[attr-defined, unused-ignore]

from lorawatch.engine import Change
from lorawatch.findings import Finding
from lorawatch.render import finding_text, printable


def change_text(change: Change, finding: Finding) -> str:
    """What a person is told when a finding changes; empty for what only moves it under another."""
    if change == "folded":
        return ""
    if change == "rule-error":
        return f"lorawatch: {printable(finding.summary)}"
    if change == "resolved":
        return f"lorawatch: resolved at step {finding.resolved_step}: {finding.title} [{finding.rule}]"
    if not finding.is_root:
        return f"lorawatch: {finding.title} [{finding.rule}] at step {finding.last_step}, with {finding.incident}"
    first = next((item for item in finding.adjustments if item.next), None) or next(iter(finding.adjustments), None)
    shown = dataclasses.replace(finding, adjustments=[] if first is None else [first])
    return f"lorawatch: {finding_text(shown)}"


def say(text: str) -> None:
    """Show ``text`` above the progress bar; a stream that is closed or full is no reason to trouble a run."""
    try:
        if is_in_notebook():
            sys.stdout.write(f"{text}\n")
            return
        from tqdm import tqdm  # type: ignore[import-untyped, unused-ignore]  # noqa: PLC0415  (comes with transformers; the bar is its own)

        tqdm.write(text, file=sys.stderr)
    except Exception:  # noqa: S110
        pass
