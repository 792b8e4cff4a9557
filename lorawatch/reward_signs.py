"""What the metrics of preference and reinforcement runs tell, as TRL's trainers log them: shared by several rules."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median

from lorawatch.run import Run
from lorawatch.stats import mann_kendall_z

DEFAULT_BETA = 0.1
"""``beta`` of TRL's DPO and KTO where nothing states it (``DPOConfig``, ``KTOConfig``, TRL 0.12 to 1.16)."""
RISING = 2.0
"""Mann–Kendall statistic from which a series counts as rising; 2.3 % of white noise passes it."""


def beta_of(run: Run) -> tuple[float, bool]:
    """The strength of the pull to the reference, and whether the run states it: TRL's default stands in."""
    stated = run.number("beta")
    if stated is None:
        stated = run.number("pref_beta")  # LLaMA-Factory's name
    return (stated, True) if stated is not None and stated > 0 else (DEFAULT_BETA, False)


def reference_logp(values: Mapping[str, float], side: str, beta: float) -> float | None:
    """Log-likelihood of the chosen or rejected replies of one row under the reference model, in nats per reply.

    TRL logs ``rewards/SIDE = beta * (logps/SIDE - reference)``, all of them means over the same pairs, so that the
    reference follows exactly. None when the row lacks one of them, or when the reference is 0: the loss is then one
    without reference (ORPO, CPO, SimPO), whose reward is the log-likelihood itself.
    """
    reward, logp = values.get(f"rewards/{side}"), values.get(f"logps/{side}")
    if reward is None or logp is None:
        return None
    reference = logp - reward / beta
    return reference if math.isfinite(reference) and abs(reference) > 1e-3 * abs(logp) else None


def has_reference(values: Mapping[str, float]) -> bool:
    """Whether the rewards of a row are told against a reference model; True where the row does not tell.

    Without one both rewards are the same multiple, beta, of their log-likelihoods, whatever beta is.
    """
    found = [(values.get(f"rewards/{side}"), values.get(f"logps/{side}")) for side in ("chosen", "rejected")]
    if any(reward is None or not logp for reward, logp in found):
        return True
    one, other = ((reward or 0.0) / (logp or 1.0) for reward, logp in found)
    return not (one > 0.0 and abs(one - other) <= 1e-3 * one)


def sigmoid_loss(run: Run, values: Mapping[str, float]) -> bool:
    """Whether the loss is the sigmoid loss of DPO: by ``loss_type`` where it is known, or else by an early row.

    That loss is ``-log sigmoid(margin)``. It is convex, so that the mean loss of a row is never below that of its mean
    margin, and close to it while margins are small; hinge loss begins at 1, IPO at ``1 / (2 beta)²``.
    """
    stated = run.fact("loss_type", run.fact("pref_loss"))
    if isinstance(stated, list | tuple):
        stated = stated[0] if len(stated) == 1 else str(stated)
    if stated is not None:
        return str(stated) == "sigmoid"
    margin, loss = values.get("rewards/margins"), values.get("loss")
    if margin is None or loss is None or not abs(margin) < 30.0:
        return False
    return -0.01 <= loss - math.log1p(math.exp(-margin)) <= 0.05


def evaluated_rows(values: Mapping[str, float]) -> int | None:
    """Rows of an evaluation, from its run time and its speed; None when the row does not tell."""
    seconds, speed = values.get("eval_runtime"), values.get("eval_samples_per_second")
    if seconds is None or speed is None or not 0.0 < seconds * speed < 1e12:
        return None
    return round(seconds * speed)


def mean(values: Sequence[float]) -> float:
    """The mean; infinite where :func:`statistics.fmean` would raise for very large values."""
    return sum(values) / len(values)


def rises(values: Sequence[float]) -> bool:
    """Whether the series rises over its length, beyond its noise."""
    return mann_kendall_z(values, RISING) >= RISING


def falls(values: Sequence[float]) -> bool:
    """Whether the series falls over its length, beyond its noise."""
    return rises([-value for value in values])


def reward_rises(run: Run, points: int) -> bool:
    """Whether the mean reward rises over its last ``points`` logs; False where no reward is logged."""
    series = run.series.get("reward")
    return series is not None and rises(series.window(points))


def first_named(values: Mapping[str, float], names: Sequence[str]) -> str:
    """The first of ``names`` that the row carries; empty when it carries none."""
    return next((name for name in names if name in values), "")


def level(run: Run, name: str, points: int) -> float:
    """Median of the last ``points`` values of a metric; NaN before the first."""
    series = run.series.get(name)
    window = series.window(points) if series is not None else []
    return median(window) if window else math.nan


def beginning(run: Run, name: str, points: int) -> float:
    """Median of the first ``points`` values of a metric; NaN before the first."""
    series = run.series.get(name)
    head = series.head[:points] if series is not None else []
    return median(head) if head else math.nan


def average(run: Run, name: str, points: int) -> float:
    """Mean of the last ``points`` values of a metric; NaN before the first."""
    series = run.series.get(name)
    window = series.window(points) if series is not None else []
    return mean(window) if window else math.nan
