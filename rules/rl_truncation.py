"""The rule rl/truncation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import look
from lorawatch.reward_signs import falls, mean, reward_rises
from lorawatch.rule import Rule, param
from lorawatch.run import REINFORCEMENT, Run
from lorawatch.stats import mean_error


@dataclass(slots=True)
class RlTruncation(Rule):
    """Many completions are cut at the length limit before they end.

    ## Why it matters
    A completion that is cut has no answer, and is punished for its length rather than for what it says. The policy
    learns from the few that end, or that long ones never pay.

    ## How it decides
    On `completions/clipped_ratio`, the share of completions without an end token. Its mean over the last 10 or
    20 logs is as good as surely (2 standard errors) above 0.3, and so is the mean of the last 3. It is information only
    while the run mends it by itself: over these logs the share falls and the reward rises (Mann–Kendall, 2 sigma).

    ## What to change
    Twice the `max_completion_length` (TRL's default is 512). Where that is too dear: leave cut completions out of the
    loss (`mask_truncated_completions`), or let the reward punish length gently before the limit. Where even short
    answers are cut, look at the end token: one that the policy never learnt to write cuts everything.

    ## Known false alarms
    Stop strings or tool calls that end a completion without an end token count as cut. A policy that soon learns to be
    short.

    ## Sources
    Measured on public logs: 0.88 to 0.96 at 128 tokens, and 0.45 to 1.0 at 512, in runs whose reward did not rise; 0.93
    in a run that learnt to end within 120 steps and whose reward rose twelvefold, which is why that one is information
    only. Healthy runs of the reference trainer: 0 to 0.06. The limit of 0.3 is a choice.
    """

    id: ClassVar[str] = "rl/truncation"
    title: ClassVar[str] = "Completions are cut"
    severity: ClassVar[Severity] = Severity.WARNING
    suppresses: ClassVar[tuple[str, ...]] = ("gen/no-eos",)
    needs: ClassVar[tuple[str, ...]] = ("completions/clipped_ratio",)
    kinds = REINFORCEMENT
    min_points: ClassVar[int] = 10

    hold: int = param(2, unit="logs", help="Logs in a row before a finding opens.")
    release: int = param(5, unit="logs", help="Calm logs in a row before it resolves.")
    share: float = param(0.3, unit="share of completions", help="Mean share that is cut from which it is told.")

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the mean of the last logs with the limit."""
        shares = run.series["completions/clipped_ratio"].window(20)
        if len(shares) < 10:
            return None
        cut, limit = mean(shares), self.share * self.easing
        if not (max(_surely(shares), _surely(shares[-10:])) > limit and mean(shares[-3:]) > limit):
            return None
        mends = falls(shares) and reward_rises(run, len(shares))
        tokens = _limit(run)
        at = f" at {tokens} tokens" if tokens else ""
        mending = "; the reward rises and the share falls: it may mend itself" if mends else ""
        return Breach(
            f"{100 * cut:.0f} % of the completions are cut{at} before they end{mending}",
            {"clipped_share": cut, "limit": self.share, "max_completion_length": tokens, "mends": mends,
             "mean_length": run.last("completions/mean_length"),
             "mean_terminated_length": run.last("completions/mean_terminated_length")},
            Severity.INFO if mends else None,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """More room; cut completions out of the loss; the end token."""
        limit, stated = breach.evidence["max_completion_length"], run.number("max_completion_length")
        mends = breach.evidence["mends"]
        advice = [
            Adjustment(
                "max_completion_length", current=int(stated) if stated else None,
                proposed=2 * limit if limit else "twice it", direction="up", confidence="low" if mends else "high",
                why="completions that end can be judged by what they say", cost="time and memory of generation",
            )
        ]  # fmt: skip
        if run.fact("mask_truncated_completions") is not True and breach.evidence["clipped_share"] < 0.9:
            advice.append(
                Adjustment(
                    "mask_truncated_completions", current=run.fact("mask_truncated_completions"), proposed=True,
                    why="what was cut no longer teaches anything", confidence="low" if mends else "medium",
                    cost="the share that is cut is generated for nothing",
                )
            )  # fmt: skip
        advice.append(
            look(
                "read five completions that were cut: do they go on well, repeat themselves, or go on after the answer "
                "because the end token never comes?",
                "a longer limit helps only the first of these; a reward that punishes length gently helps the second",
            )
        )
        return advice


def _surely(shares: Sequence[float]) -> float:
    """Two standard errors below the mean."""
    return mean(shares) - 2.0 * mean_error(shares)


def _limit(run: Run) -> int | None:
    """The length at which completions are cut, in tokens: as it is stated, or else the longest that was logged."""
    limit = run.number("max_completion_length")
    series = run.series.get("completions/max_length")
    if limit is None and series is not None and series.count:
        limit = max(*series.head, *series.recent)
    return round(limit) if limit is not None and 0 < limit < 1e9 else None
