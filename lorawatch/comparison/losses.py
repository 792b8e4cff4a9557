"""Losses of two runs at equal training: whether they stay finite, the evaluation's, the training's, and their spikes.

Formulas and thresholds are the rule catalogue's (section 7, *Verification*) unless another source stands beside them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from statistics import median

from lorawatch.comparison.facts import eval_loss_redefined, reward_redefined, train_loss_redefined
from lorawatch.comparison.history import History, intervals, paired
from lorawatch.comparison.measures import Measure, Pair, Verdict, figure, refusal
from lorawatch.run import REINFORCEMENT, SUPERVISED
from lorawatch.stats import Level, mean_error

LEAST_EFFECT = 0.005
"""Share of the level below which a difference of losses is no effect, however certain."""
LEAST_NATS = 0.002
"""The same in absolute terms, for losses near zero: the floor of eval/overfit."""
EVAL_NOISE = 0.001
"""Relative noise of an evaluation loss that is assumed at least: 0.08 to 0.10 % was measured on real runs."""
MOST_EVAL_NOISE = 0.01
"""What it counts for at most: eval/overfit likewise lets 3 sigma be no more than 3 %."""
LEAST_PAIRS = 8
"""Pairs of stretches below which the training losses decide nothing: no error can be told from fewer."""
SAME_PLACE = 0.05
"""Share of what both trained by which two evaluations may lie apart and still count as at the same place."""
SPIKE_START = 20
"""Points of a log before which nothing counts as a spike, as for loss/spike."""
_LOST_ROWS = 10


def lost_step(history: History) -> int | None:
    """The first step of the stretch without a finite loss in which a run ends; None when it ends with a finite loss.

    Where the Trainer's filter hides NaN, the loss stands as 0.0 beside a gradient norm that is not finite; a norm that
    is not finite for 10 rows on end beside another loss counts too. Single ones are skipped steps of fp16's scaler.
    """
    losses, norms = history.series.get("loss", {}), history.series.get("grad_norm", {})
    first: int | None = None
    rows, sure = 0, False
    for step in sorted(losses, reverse=True):
        loss, norm = losses[step], norms.get(step, 0.0)
        if loss - loss == 0.0 and norm - norm == 0.0:
            break
        first, rows = step, rows + 1
        sure = sure or loss - loss != 0.0 or loss == 0.0
    return first if sure or rows >= _LOST_ROWS else None


def finite_loss(pair: Pair) -> Measure | None:
    """Whether one run kept a finite loss where the other lost it; None when both kept it."""
    lost = lost_step(pair.histories[0]), lost_step(pair.histories[1])
    if lost == (None, None):
        return None
    before, after = (None if step is None else float(step) for step in lost)

    def told(verdict: Verdict, why: str) -> Measure:
        return Measure("finite loss", before, after, None, None, verdict, why, unit="lost at step")

    if lost[0] is not None and lost[1] is not None:
        return told("no effect", f"both lose their finite loss: at step {lost[0]} before, at step {lost[1]} after")
    which = 0 if lost[0] is not None else 1
    step, other = lost[which], pair.histories[1 - which].last_step
    assert step is not None  # noqa: S101 - for the type checker: one of them is set
    names = ("before", "after")
    place = pair.places[which].at(step)
    if pair.places[1 - which].at(other) < place:
        return told(
            "inconclusive",
            f"not finite from step {step} on {names[which]}; {names[1 - which]} ends at step {other}, too soon to tell",
        )
    verdict: Verdict = "helped" if which == 0 else "worse"
    why = f"not finite from step {step} on {names[which]}, finite to its end (step {other}) {names[1 - which]}"
    return told(verdict, why)


def eval_loss(pair: Pair, *, best: bool) -> Measure | None:
    """The evaluation loss where both runs had trained as much; None unless both evaluated.

    Better or worse when it differs by more than 2 standard errors, 0.5 % and 0.002. The error is that of a difference
    of two evaluations, whose noise is told from the second differences of each run's last 10.

    Args:
        pair: The runs.
        best: Compare the best of each whole run instead, as is right for one that overfitted.
    """
    names = sorted(
        (name for name in pair.histories[0].series if name.startswith("eval_") and name.endswith("loss")),
        key=lambda one: (one != "eval_loss", one),
    )
    name = next((one for one in names if all(history.finite(one) for history in pair.histories)), None)
    if name is None or pair.runs[0].kind in REINFORCEMENT:
        return None
    rows = [history.eval_rows for history in pair.histories]
    equal = None if rows[0] is None or rows[1] is None else abs(rows[0] - rows[1]) <= 0.02 * rows[0]
    reason = eval_loss_redefined(pair.runs[0], pair.changes, eval_rows_equal=equal)
    if reason:
        return refusal(name, reason)
    curves = [
        [(place.at(step), value, step) for step, value in history.finite(name).items()]
        for history, place in zip(pair.histories, pair.places, strict=True)
    ]
    if best:
        chosen = [min(curve, key=lambda point: point[1]) for curve in curves]
        what = f"best {name} of each whole run"
    else:
        matches = [
            (min(a[0], b[0]), -abs(a[0] - b[0]), a, b)
            for a in curves[0]
            for b in curves[1]
            if abs(a[0] - b[0]) <= SAME_PLACE * pair.axis.end
        ]
        if not matches:
            why = "no two evaluations lie where both runs had trained as much"
            return Measure(name, None, None, None, None, "inconclusive", why)
        chosen = list(max(matches)[2:])
        what = f"last {name} where both had trained as much"
    (_, before, old_step), (_, after, new_step) = chosen
    level = max(abs(before), 1e-12)
    error = math.hypot(*(_eval_noise([one[1] for one in curve], level) for curve in curves))
    if len(series := _differences(curves, pair.axis.end)) >= 3:
        error = math.sqrt(2) * _eval_noise([one / math.sqrt(2) for one in series], level)
    verdict, certainty = _judge(after - before, error, level)
    why = f"{what}: {before:.4g} (step {old_step}) → {after:.4g} (step {new_step})"
    data = next((change.name for change in pair.changes if change.note == "another data set"), "")
    why += f"; {data} changed, both evaluation sets have {rows[0]} rows" if data else ""
    why += f"; {certainty}" if certainty else ""
    return Measure(name, before, after, (after - before) / level, error / level, verdict, why)


def train_metric(pair: Pair) -> Measure:
    """The training loss, or for GRPO and RLOO the reward, over the last half of what both trained.

    Differences are taken stretch by stretch of the common axis. Their mean is the effect; its standard error counts
    ``n(1-rho)/(1+rho)`` independent ones, rho being the correlation of neighbours. The last half, because the question
    is where the runs have come to: early differences pass.
    """
    reinforced = pair.runs[0].kind in REINFORCEMENT
    name = "reward" if reinforced else "loss"
    if not all(history.finite(name) for history in pair.histories):
        missing = "before" if not pair.histories[0].finite(name) else "after"
        return refusal(name, f"no {name} is logged {missing}")
    reason = reward_redefined(pair.changes) if reinforced else train_loss_redefined(pair.runs[0], pair.changes)
    if reason:
        return refusal(name, reason)
    for which, history in zip(("before", "after"), pair.histories, strict=True):
        if (step := lost_step(history)) is not None:
            return refusal(name, f"the loss is not finite from step {step} on {which}")
        if not reinforced and not any(history.finite(name).values()):
            return refusal(name, f"the loss is 0 throughout {which}: no label is trained on")
    series = [
        intervals(history.series[name], place) for history, place in zip(pair.histories, pair.places, strict=True)
    ]
    pairs = paired(series[0], series[1])
    low = max(series[0][0][0], series[1][0][0]) if pairs else 0.0
    half = [one for one in pairs if one[0] > low + (pairs[-1][0] - low) / 2]
    if len(half) < LEAST_PAIRS:
        why = f"only {len(half)} logged stretches lie in the last half of what both trained; {LEAST_PAIRS} are needed"
        return Measure(name, None, None, None, None, "inconclusive", why)
    before = math.fsum(one[1] for one in half) / len(half)
    after = math.fsum(one[2] for one in half) / len(half)
    error = difference_error([one[2] - one[1] for one in half])
    level = max(abs(before), 1e-12)
    verdict, certainty = _judge(after - before, error, level, better_is_higher=reinforced)
    span = f"{figure(half[0][0])} to {figure(half[-1][0])} {pair.axis.name}"
    why = f"{name} {before:.4g} → {after:.4g} over {span}, {len(half)} pairs"
    return Measure(
        name, before, after, (after - before) / level, error / level, verdict,
        f"{why}{'; ' if certainty else ''}{certainty}",
    )  # fmt: skip


def difference_error(differences: Sequence[float]) -> float:
    """Standard error of the mean of paired differences, widened by ``1 + 8/n`` for n of them.

    From few points the correlation of neighbours is told too small (Marriott and Pope 1954). Measured on 1,500 pairs
    of AR(1) series without a difference, of 8 to 300 points, noise 5 %, a verdict at 2 errors and 0.5 %: with a
    correlation of 0.4, 3 to 6 % were told apart wrongly (18 % at most if not widened), with 0.7 6 to 12 % (35 %).
    """
    return mean_error(differences) * (1 + 8 / len(differences))


def _judge(effect: float, error: float, level: float, *, better_is_higher: bool = False) -> tuple[Verdict, str]:
    least = max(LEAST_EFFECT * level, LEAST_NATS)
    if abs(effect) > least:
        if abs(effect) <= 2 * error:
            return "inconclusive", "within its uncertainty"
        return ("helped" if (effect < 0) != better_is_higher else "worse"), ""
    if 2 * error <= least:
        return "no effect", ""
    return "inconclusive", "too uncertain to rule an effect out"


def _eval_noise(values: Sequence[float], level: float) -> float:
    """Standard deviation of one evaluation's noise: median |second difference| / (0.6745 √6) over the last 10.

    Few evaluations of a curve that still falls steeply bend more than they scatter: 1 % is taken at most.
    """
    last = values[-12:]
    bends = [abs(a - 2 * b + c) for a, b, c in zip(last, last[1:], last[2:], strict=False)]
    noise = median(bends) / (0.6745 * 6**0.5) if bends else 0.0
    return min(max(noise, EVAL_NOISE * level), MOST_EVAL_NOISE * level)


def _differences(curves: Sequence[Sequence[tuple[float, float, int]]], end: float) -> list[float]:
    """After less before at each place where both evaluated, within a hundredth of what both trained."""
    found: list[float] = []
    first = 0
    for place, value, _ in curves[0]:
        while first < len(curves[1]) and curves[1][first][0] < place - 0.01 * end:
            first += 1
        if first < len(curves[1]) and curves[1][first][0] <= place + 0.01 * end:
            found.append(curves[1][first][1] - value)
    return found


def spikes(pair: Pair) -> Measure | None:
    """Loss spikes for what was trained, by the exact test of two Poisson rates; None where neither run has any.

    A spike is what loss/spike takes for one: more than 6 sigma, 30 % and 0.2 above the level, after 20 points. Given
    their sum, the second run's count is binomial with its share of the exposure (Przyborowski and Wilenski 1940).
    """
    if pair.runs[0].kind not in SUPERVISED:
        return None
    losses = [history.finite("loss") for history in pair.histories]
    counts = [count_spikes(one) for one in losses]
    if not sum(counts) or min(map(len, losses)) <= SPIKE_START:
        return None
    spacing = [_spacing(list(one)) for one in losses]
    if spacing[0] != spacing[1]:
        return refusal(
            "spikes",
            f"a loss logged each {spacing[0]:g} steps before and {spacing[1]:g} after hides spikes differently",
        )
    exposure = [
        place.at(history.last_step) - place.at(min(one))
        for history, place, one in zip(pair.histories, pair.places, losses, strict=True)
    ]
    share = exposure[1] / (exposure[0] + exposure[1])
    chance = binomial_p(counts[1], sum(counts), share)
    rates = [count / length for count, length in zip(counts, exposure, strict=True)]
    verdict: Verdict = "inconclusive"
    if chance < 0.05:
        verdict = "helped" if rates[1] < rates[0] else "worse"
    why = (
        f"{counts[0]} in {figure(exposure[0])} {pair.axis.name} → {counts[1]} in {figure(exposure[1])}; "
        f"exact Poisson test p = {chance:.2g}"
    )
    effect = rates[1] / rates[0] - 1 if counts[0] else None
    return Measure("spikes", float(counts[0]), float(counts[1]), effect, None, verdict, why)


def count_spikes(losses: dict[int, float]) -> int:
    """Spikes in a series of finite losses; points above the limit within 10 points of one another are one."""
    level, count, last = Level(), 0, -SPIKE_START
    for index, (step, loss) in enumerate(losses.items()):
        level.add(loss, step)
        if index < SPIKE_START or level.z < 6.0:
            continue
        if level.excess > max(0.3 * (loss - level.excess), 0.2):
            count += index - last > 10
            last = index
    return count


def binomial_p(count: int, total: int, share: float) -> float:
    """Two-sided exact p: the chance of all counts that are no likelier than ``count``, of ``total`` with ``share``."""

    def log_chance(k: int) -> float:
        ways = math.lgamma(total + 1) - math.lgamma(k + 1) - math.lgamma(total - k + 1)
        return ways + k * math.log(share) + (total - k) * math.log1p(-share)

    if not 0.0 < share < 1.0:
        return 1.0
    limit = log_chance(count) + 1e-7
    return min(math.fsum(math.exp(one) for k in range(total + 1) if (one := log_chance(k)) <= limit), 1.0)


def _spacing(steps: list[int]) -> float:
    return median(b - a for a, b in pairwise(steps)) if len(steps) > 1 else 0.0
