"""What rules of the adapter's weights must know of how it began, and of what was read."""

from __future__ import annotations

from lorawatch.records import AdapterReading
from lorawatch.run import Run

_AT_ZERO = frozenset({"true", "gaussian", "eva", "mica"})
"""Values of ``init_lora_weights`` with which B·A begins at 0 (PEFT 0.21: ``lora/layer.py``), in lower case."""


def unusual_start(run: Run) -> str:
    """What a rule misses where scale·B·A does not begin at 0, as with PiSSA, OLoRA or LoftQ; empty where it does."""
    start = str(run.fact("init_lora_weights", True))
    if start.lower() in _AT_ZERO:
        return ""
    return f"an update that begins at 0 (init_lora_weights is {start[:40]})"


def unread(reading: AdapterReading) -> str:
    """What a rule misses where no module of the adapter could be judged; empty where there are some."""
    if reading.modules:
        return ""
    return f"adapted modules that can be judged (left out: {reading.why_left_out or 'all'})"
