"""Speed and memory of two runs of one job."""

from __future__ import annotations

import math
import random
from itertools import pairwise
from statistics import median, stdev

from lorawatch.comparison.measures import Measure, Pair, Verdict, figure, percent, refusal

LEAST_SPEED = 0.1
"""Share by which the speed must differ. One job run again with another seed, on two cores that others used too, was
up to 6 % faster or slower, and 19 % with another rank of a tiny adapter: the resamples cannot know of such a load."""
SKIPPED_STEPS = 20
ENOUGH_STEPS = 100
LEAST_STEPS = 30
"""Steps at the start that do not count, steps after them that are asked for (rule catalogue section 7), and steps
below which the times between rows are taken instead."""
LEAST_ROWS = 8
"""Times between rows below which nothing is told."""
LEAST_MEMORY = 0.02
"""Share by which the peak of memory must differ. A choice, not measured."""
SAME_SIZE = 0.05
"""Share by which the largest micro-batches of two peaks may differ and still count as matched."""
_BLOCK, _RESAMPLES = 10, 400


def speed(pair: Pair) -> Measure | None:
    """What is trained in a second: the ratio of the medians; None where the times are not known of both.

    Its error is that of 400 bootstrap samples of blocks of 10 neighbours, drawn with a fixed seed (moving blocks:
    Künsch 1989): one slow minute is one accident, not sixty. Steps from 20 on; 100 of them are asked for.
    """
    cards = [sorted(card.name for card in run.gpu.cards) if run.gpu is not None else None for run in pair.runs]
    if cards[0] is not None and cards[1] is not None and cards[0] != cards[1]:
        return refusal("speed", f"other cards: {', '.join(cards[0] or ['none'])} → {', '.join(cards[1] or ['none'])}")
    inside = [_after_start(history.step_seconds) for history in pair.histories]
    source = "steps"
    if min(map(len, inside)) < LEAST_STEPS:
        inside = [_row_seconds(history.times) for history in pair.histories]
        source = "stretches between rows"
    fewest = min(map(len, inside))
    if fewest < LEAST_ROWS:
        return None
    units = [place.at(1000) / 1000 - place.at(0) / 1000 for place in pair.places]
    unit = pair.axis.name
    if unit == "tokens":  # how many a step trains, over the whole run
        units = [
            (place.at(history.last_step) - place.at(0)) / max(history.last_step, 1)
            for place, history in zip(pair.places, pair.histories, strict=True)
        ]
    rates = [each / median(seconds) for each, seconds in zip(units, inside, strict=True)]
    effect = rates[1] / rates[0] - 1
    draw = random.Random(0)  # noqa: S311 - a bootstrap, not a secret
    medians = [_resampled(seconds, draw) for seconds in inside]
    ratios = sorted(math.log((units[1] / b) / (units[0] / a)) for a, b in zip(*medians, strict=True))
    low, high = math.expm1(ratios[int(0.025 * _RESAMPLES)]), math.expm1(ratios[int(0.975 * _RESAMPLES) - 1])
    why = (
        f"{figure(rates[0])} → {figure(rates[1])} {unit}/s (95 % of resamples: {percent(low)} to {percent(high)}), "
        f"medians of {len(inside[0])} and {len(inside[1])} {source}"
    )
    verdict: Verdict = "inconclusive"
    if abs(effect) > LEAST_SPEED and (low > 0.0 or high < 0.0):
        verdict = "helped" if effect > 0.0 else "worse"
    elif abs(effect) <= LEAST_SPEED and high - low <= 2 * LEAST_SPEED:
        verdict = "no effect"
    if source == "steps" and fewest < ENOUGH_STEPS:
        why += f"; fewer than {ENOUGH_STEPS} steps: weaker"
    error = stdev(ratios) * (1 + effect)
    return Measure("speed", rates[0], rates[1], effect, error, verdict, why, unit=f"{unit}/s")


def _after_start(seconds: dict[int, float]) -> list[float]:
    steps = sorted(seconds)[SKIPPED_STEPS:]
    return [seconds[step] for step in steps[-2000:] if seconds[step] > 0.0]


def _row_seconds(times: dict[int, float]) -> list[float]:
    steps = [step for step in sorted(times) if step >= SKIPPED_STEPS][-2000:]
    spans = [(times[b] - times[a]) / (b - a) for a, b in pairwise(steps)]
    return [one for one in spans if one > 0.0]


def _resampled(values: list[float], draw: random.Random) -> list[float]:
    block = max(1, min(_BLOCK, len(values) // _BLOCK))
    starts = len(values) - block + 1
    blocks = -(-len(values) // block)
    found: list[float] = []
    for _ in range(_RESAMPLES):
        sample: list[float] = []
        for _ in range(blocks):
            start = draw.randrange(starts)
            sample += values[start : start + block]
        found.append(median(sample))
    return found


def peak_memory(pair: Pair) -> Measure | None:
    """The peak that torch's allocator tells, at micro-batches of one size; None where it is not known of both.

    The allocator's peak only grows, so that it is taken at the last reading before a run had a larger micro-batch than
    the other one's largest. It has no error to speak of: a difference of more than 2 % counts.
    """
    peaks = [history.peaks for history in pair.histories]
    if not peaks[0] or not peaks[1]:
        return None
    sizes = [readings[-1][0] for readings in peaks]
    if sizes[0] is None or sizes[1] is None:
        chosen, matched = [readings[-1] for readings in peaks], "sizes of the batches are not known"
    else:
        most = min(sizes[0], sizes[1]) * (1 + SAME_SIZE)
        found = [next((one for one in reversed(r) if one[0] is not None and one[0] <= most), None) for r in peaks]
        if found[0] is None or found[1] is None or not _close(found[0][0] or 0, found[1][0] or 0):
            return refusal(
                "peak memory", f"micro-batches of {sizes[0]:,} → {sizes[1]:,} tokens at most: no peaks at one size"
            )
        chosen = [found[0], found[1]]
        matched = f"at micro-batches of {chosen[0][0]:,} and {chosen[1][0]:,} tokens, padding included"
    before, after = (peak / 2**30 for _, peak in chosen)
    effect = after / before - 1 if before else 0.0
    verdict: Verdict = "no effect"
    if abs(effect) > LEAST_MEMORY:
        verdict = "helped" if effect < 0 else "worse"
    why = f"{before:.3g} → {after:.3g} GiB allocated at most, {matched}"
    return Measure("peak memory", before, after, effect, None, verdict, why, unit="GiB")


def _close(one: int, other: int) -> bool:
    return abs(one - other) <= SAME_SIZE * max(one, other)
