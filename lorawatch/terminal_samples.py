"""The part of the live view about what the model says: the last sample generations beside the base model's."""

from __future__ import annotations

from collections.abc import Sequence

from lorawatch.findings import Severity
from lorawatch.records import Sample, SampleReading
from lorawatch.render import number
from lorawatch.run import Run
from lorawatch.terminal_text import BOLD, DIM, PLAIN, SEVERITY_STYLES, Line, Part, clean, line, wrapped

_REPLY_LINES = 2


def samples(run: Run, width: int, most: int) -> list[Line]:
    """What was measured on the last samples, and a few of them; nothing where there are none.

    Args:
        run: The run whose last samples are shown.
        width: Cells.
        most: Samples that are shown, task prompts first.
    """
    reading = run.samples
    if reading is None:
        return []
    lines = [line([("says  ", DIM), *_measured(reading, run.base_samples)], width)]
    for sample in sorted(reading.samples, key=lambda one: one.probe != "task")[:most]:
        lines.append(line([("  asked    ", DIM), (clean(sample.prompt, 400), DIM)], width))
        reply = clean(sample.output, 600) or "(nothing)"
        if not sample.ended:
            reply += " … (cut at the limit)"
        told = wrapped(reply, width - 11, 0, most=_REPLY_LINES)
        for index, one in enumerate(told):
            lines.append(Line([("  replies  " if index == 0 else " " * 11, DIM), *one.parts]))
    return lines


def _measured(reading: SampleReading, base: Sequence[Sample]) -> list[Part]:
    parts: list[Part] = [(f"at step {reading.step:,}", PLAIN)]
    for probe in ("general", "task"):
        now, before = _right(reading.samples, probe), _right(base, probe)
        if now is None:
            continue
        style = BOLD if before is None or now[0] * before[1] >= before[0] * now[1] else SEVERITY_STYLES[Severity.INFO]
        parts += [(f"   {probe} right ", DIM), (f"{now[0]} of {now[1]}", style)]
        if before is not None:
            parts.append((f" (base {before[0]} of {before[1]})", DIM))
    ended = sum(one.ended for one in reading.samples)
    if ended < len(reading.samples):
        parts += [("   ended ", DIM), (f"{ended} of {len(reading.samples)}", BOLD)]
    if reading.perplexity is not None:
        of = "" if reading.base_perplexity is None else f" (base {number(reading.base_perplexity)})"
        parts += [("   perplexity ", DIM), (number(reading.perplexity), BOLD), (of, DIM)]
    if reading.kl is not None:
        parts += [("   KL from base ", DIM), (number(reading.kl), BOLD)]
    return parts


def _right(replies: Sequence[Sample], probe: str) -> tuple[int, int] | None:
    """Right replies out of those that can be judged; None where none can."""
    judged = [one.right for one in replies if one.probe == probe and one.right is not None]
    return (sum(judged), len(judged)) if judged else None
