"""The rule rl/length-drift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import look
from lorawatch.reward_signs import beginning, first_named, level, rises
from lorawatch.rule import Rule, param
from lorawatch.run import REINFORCEMENT, Run

_LENGTHS = ("completions/mean_length", "completion_length")
_WINDOW = 20


@dataclass(slots=True)
class RlLengthDrift(Rule):
    """The reward may be gamed: it rises while lengths run away, or while one of several rewards is given up.

    ## Why it matters
    A policy finds what the reward pays for, not what was meant by it. Length is the commonest short cut: three words
    that always match, or a page that holds every answer. Only reading completions tells it from learning.

    ## How it decides
    From 40 logs on, either of two, while the reward stands above its beginning (the last 20 logs above the first 20 by
    more than their spread, or rising over all that is kept):

    - The median length of the last 20 logs is below 0.3 or above 3 times that of the first 20. Shortening is not
      told where half of the first completions were cut: their length was the limit's, not the policy's.
    - Several rewards are logged (`rewards/NAME/mean` and `/std`), and one that varied in the first 20 logs has no
      variance any more in the last 20, at a mean below that of its beginning.

    ## What to change
    Read completions, of the beginning and of now. Then weigh or cap what is gamed: `reward_weights`, a length penalty
    or `max_completion_length`, a small beta.

    ## Known false alarms
    A task that is answered in a word, by a model that used to ramble; reasoning that grows because it helps.

    ## Sources
    A heuristic of reward hacking, without another authority. A public run whose length fell from 370 to 42 tokens while
    its reward rose twelvefold is healthy: most of its first completions were cut, which is why such runs are left out.
    """

    id: ClassVar[str] = "rl/length-drift"
    title: ClassVar[str] = "Reward may be gamed"
    severity: ClassVar[Severity] = Severity.WARNING
    suppresses: ClassVar[tuple[str, ...]] = ("rl/truncation", "gen/no-eos", "gen/loop", "base/*")
    maturity = "experimental"
    needs: ClassVar[tuple[str, ...]] = ("reward",)
    needs_any: ClassVar[tuple[str, ...]] = _LENGTHS
    kinds = REINFORCEMENT
    min_points: ClassVar[int] = 40

    hold: int = param(3, unit="logs", help="Logs in a row before a finding opens.")
    release: int = param(10, unit="logs", help="Calm logs in a row before it resolves.")
    shorter: float = param(0.3, unit="ratio", help="Length over that of the beginning below which it is told.")
    longer: float = param(3.0, unit="ratio", help="Length over that of the beginning above which it is told.")

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare lengths and rewards with those of the beginning."""
        if run.points("reward") < self.min_points:
            return None
        name = first_named(row.values, _LENGTHS)
        start, now = beginning(run, name, _WINDOW), level(run, name, _WINDOW)
        ratio = now / start if start > 0.0 else math.nan
        cut = beginning(run, "completions/clipped_ratio", _WINDOW) >= 0.5
        drifts = ratio > self.longer * self.easing or (ratio < self.shorter / self.easing and not cut)
        given_up = "" if drifts else self._given_up(row, run)
        if not (drifts or given_up) or not _reward_has_risen(run):
            return None
        before, reward = beginning(run, "reward", _WINDOW), level(run, "reward", _WINDOW)
        evidence = {
            "length": now, "length_at_start": start, "ratio": ratio, "reward": reward, "reward_at_start": before,
            "given_up": given_up or None, "case": "reward" if given_up else "length",
        }  # fmt: skip
        rising = f"while the reward went from {before:.3g} to {reward:.3g}"
        if given_up:
            return Breach(f"reward {given_up} no longer varies and is lower than it was, {rising}", evidence)
        return Breach(f"completions went from {start:.0f} to {now:.0f} tokens ({ratio:.2g} times) {rising}", evidence)

    def _given_up(self, row: MetricRow, run: Run) -> str:
        """Name of a reward function whose reward varied at the beginning and stands at a low value now."""
        names = [one[len("rewards/") : -len("/std")] for one in row.values if _is_spread(one)]
        if len(names) < 2:
            return ""
        for name in names:
            spread, mean = f"rewards/{name}/std", f"rewards/{name}/mean"
            varied, varies = beginning(run, spread, _WINDOW), level(run, spread, _WINDOW)
            if varied > 0.0 and varies <= 0.02 * varied and level(run, mean, _WINDOW) < beginning(run, mean, _WINDOW):
                return name
        return ""

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Read completions; then weigh, cap, hold near the base."""
        given_up = breach.evidence["given_up"]
        what = f"reward {given_up} was given up for the others" if given_up else "the length follows the reward"
        advice = [
            look(
                "read ten completions of the first steps and ten of now, beside their rewards: are the new ones better "
                "or only what the reward pays for?",
                f"{what}; whether that is learning or a short cut only the text tells",
                confidence="high",
            )
        ]
        if given_up:
            advice.append(
                Adjustment(
                    "reward_weights", current=run.fact("reward_weights"), proposed=f"twice the weight for {given_up}",
                    why="a reward that is given up is outweighed by the others", confidence="low",
                )
            )  # fmt: skip
        else:
            advice.append(
                look(
                    "let the reward punish length away from what a good answer needs, or cap what length can earn",
                    "a short cut that does not pay is not taken",
                )
            )
        beta = run.number("beta")
        if beta is not None and beta < 0.001:
            advice.append(
                Adjustment(
                    "beta", current=beta, proposed=0.01, direction="up", confidence="low",
                    cost="a forward pass of the reference", why="a small pull to the base makes short cuts dearer",
                )
            )  # fmt: skip
        return advice


def _is_spread(name: str) -> bool:
    return name.startswith("rewards/") and name.endswith("/std") and len(name) > len("rewards//std")


def _reward_has_risen(run: Run) -> bool:
    series = run.series["reward"]
    head, window = series.head[:_WINDOW], series.window(_WINDOW)
    spread = max(max(head) - min(head), max(window) - min(window))
    return level(run, "reward", _WINDOW) > beginning(run, "reward", _WINDOW) + 0.5 * spread or rises(series.window(128))
