"""What a comparison of two runs measures: the two side by side, the outcome of one measure, and how it is told."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from lorawatch.comparison.facts import FactChange
from lorawatch.comparison.history import Axis, History, Positions
from lorawatch.run import Run

Verdict = Literal["helped", "no effect", "worse", "inconclusive", "refused"]


@dataclass(frozen=True, slots=True)
class Measure:
    """One thing that both runs measure.

    Attributes:
        name: ``finite loss``, ``eval_loss`` (or another evaluation's), ``loss``, ``reward``, ``spikes``, ``speed``,
            ``peak memory``.
        before: The first run's value, in ``unit``; None where there is none.
        after: The second run's.
        effect: ``after / before - 1``; for a loss, of its level. None where it cannot be told.
        standard_error: Standard error of ``effect``; None where there is none to tell (``why`` then says how it was
            decided). It is that of these two runs, not over seeds.
        verdict: Whether it is better; ``refused`` where the two values mean different things.
        why: One sentence with the numbers.
        refused: Whether ``verdict`` is ``refused``.
        unit: Of ``before`` and ``after``; "" for a loss.
    """

    name: str
    before: float | None
    after: float | None
    effect: float | None
    standard_error: float | None
    verdict: Verdict
    why: str
    refused: bool = False
    unit: str = ""


def refusal(name: str, why: str) -> Measure:
    """A measure that is refused, and why."""
    return Measure(name, None, None, None, None, "refused", why, refused=True)


@dataclass(frozen=True, slots=True)
class Pair:
    """Two runs side by side.

    Attributes:
        runs: What the engines know of them.
        histories: Their rows in full.
        axis: On which they stand.
        changes: Facts that differ.
    """

    runs: tuple[Run, Run]
    histories: tuple[History, History]
    axis: Axis
    changes: list[FactChange]

    @property
    def places(self) -> tuple[Positions, Positions]:
        """Where the steps of each run lie on the axis."""
        return self.axis.before, self.axis.after


def figure(value: float) -> str:
    """A count or a rate for a person: whole from a thousand on."""
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4g}"


def percent(share: float) -> str:
    """A change for a person: ``+4.6 %``, ``-0.28 %``, ``+1,062 %``."""
    value = 100 * share
    return f"{value:+,.0f} %" if abs(value) >= 100 else f"{value:+.3g} %"


def effect_text(measure: Measure) -> str:
    """The effect with two standard errors; without them for a speed, whose resamples are not symmetric; "" for none."""
    if measure.effect is None:
        return ""
    if measure.standard_error is None or measure.name == "speed":
        return percent(measure.effect)
    spread = 200 * measure.standard_error
    return f"{percent(measure.effect)[:-2]} ± {spread if spread >= 0.005 else 0:.2g} %"
