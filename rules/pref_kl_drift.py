"""The rule pref/kl-drift."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import lower_rate
from lorawatch.reward_signs import beginning, level
from lorawatch.rule import Rule, param
from lorawatch.run import Kind, Run
from lorawatch.stats import mann_kendall_z

_SURE = 2.326
"""Mann–Kendall statistic of a one-sided probability of 1 %."""


@dataclass(slots=True)
class PrefKlDrift(Rule):
    """The policy moves away from its reference model, and goes on moving.

    ## Why it matters
    What the reference could do beside the task is lost with distance from it. KTO also subtracts this very number from
    its rewards: when it grows without end, the loss compares against a point that runs away.

    ## How it decides
    On `kl` (KTO) or `objective/kl` (online methods), both in nats per reply, from 30 logs on. The median of the last 10
    logs is above 10 nats and more than 5 times the median of the first tenth of the run (5 to 20 logs), and the last
    30 logs rise (Mann–Kendall, p < 1 %). A KL that has risen and stands is not told.

    ## What to change
    Twice the beta, the strength of the pull to the reference; half of the learning rate.

    ## Known false alarms
    Long replies: the number is summed over a reply. A task far from what the reference writes.

    ## Sources
    TRL's `KTOTrainer`: the KL is a mean over mismatched pairs, never below 0, that starts at 0: a multiple of the start
    alone says nothing, hence the 10 nats. KTO: arXiv 2402.01306. All limits are choices without another authority, and
    no public log of KTO with a drift was at hand.
    """

    id: ClassVar[str] = "pref/kl-drift"
    title: ClassVar[str] = "Policy drifts from the reference"
    severity: ClassVar[Severity] = Severity.WARNING
    maturity = "experimental"
    needs_any: ClassVar[tuple[str, ...]] = ("kl", "objective/kl")
    kinds = frozenset({Kind.KTO, Kind.DPO, Kind.RLOO, Kind.UNKNOWN})
    min_points: ClassVar[int] = 30

    hold: int = param(3, unit="logs", help="Logs in a row before a finding opens.")
    release: int = param(10, unit="logs", help="Calm logs in a row before it resolves.")
    times: float = param(5.0, unit="ratio", help="Level over that of the first tenth from which it drifts.")
    floor: float = param(10.0, unit="nats per reply", help="Level below which it is not told.")

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the last logs with the first tenth of the run."""
        name = "kl" if run.kind is Kind.KTO else "objective/kl"
        if name not in row.values:
            return None
        interval = max(run.logging_interval, 1)
        early = int(min(max(0.1 * (run.max_steps or 100 * interval) / interval, 5), 20))
        start, now = beginning(run, name, early), level(run, name, 10)
        if not now > max(self.floor, self.times * start) * self.easing:
            return None
        trend = mann_kendall_z(run.series[name].window(30), _SURE)
        if trend < _SURE * self.easing:
            return None
        times = f", {now / start:.0f} times that of its beginning" if start > 1e-3 * now else ""
        return Breach(
            f"KL to the reference {now:.3g} nats per reply{times}, and rising",
            {"kl": now, "kl_at_start": start, "mann_kendall_z": trend if math.isfinite(trend) else None,
             "beta": run.number("beta")},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """A stronger pull; a lower rate."""
        beta = run.number("beta")
        return [
            Adjustment(
                "beta", current=beta, proposed=2.0 * beta if beta and beta > 0 else "twice it", direction="up",
                why="twice the pull to the reference", confidence="medium", cost="a smaller change of the model",
            ),
            lower_rate(run, 2, "the policy moves half as far in a step", confidence="medium", apply="restart"),
        ]  # fmt: skip
