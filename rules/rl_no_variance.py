"""The rule rl/no-variance."""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import look
from lorawatch.reward_signs import first_named, mean
from lorawatch.rule import Rule, param, state
from lorawatch.run import REINFORCEMENT, Run
from lorawatch.stats import mean_error

_SHARES = ("frac_reward_zero_std", "zero_std_ratio")


@dataclass(slots=True)
class RlNoVariance(Rule):
    """Completions of one prompt all earn the same reward: there is nothing to prefer, and nothing to learn from.

    ## Why it matters
    GRPO and RLOO compare the completions of one prompt with each other. A group whose rewards are equal has an
    advantage of 0, and its gradient is 0: the time that was spent on generating it is lost. The loss does not show it:
    near 0 is normal.

    ## How it decides
    On `frac_reward_zero_std`, the share of groups without variance. Its mean over the last 40 logs (20 at least) is
    information where it is as good as surely (2 standard errors) above 0.3, a warning above 0.6. The mean, with its
    error, since a log of few groups is 0 or 1 by chance.

    Critical where it is 1 and `grad_norm` exactly 0: from the first log on for 10 logs, or later for 20 in a row. Where
    an older TRL does not log the share, only this is judged, by a `reward_std` of exactly 0.

    ## What to change
    Look at the reward first: print it for the completions of one prompt. A reward that is always the same (a pattern
    that never matches, a function that raises and returns a default) is a mistake. Otherwise the prompts are too hard
    or too easy: partial credit, a mix of other difficulty, 16 generations in place of 8, a temperature of 1.

    ## Known false alarms
    A format reward late in a run, which all completions have learnt: then the run is done rather than ill.

    ## Sources
    TRL's documentation of GRPO, *Logged metrics*. DAPO (arXiv 2503.14476) drops such groups for this reason. Two
    public runs rise from 0 to about 0.75 while their reward stands still; another has 1.0 with gradients of 0. A run of
    two groups a log, 0.36 on average, passes 0.6 by chance in some windows of 20 logs: hence the standard errors. Ten
    logs, since hard prompts, a group or two a log, earn nothing for five at the start. Limits are choices.
    """

    id: ClassVar[str] = "rl/no-variance"
    title: ClassVar[str] = "Rewards have no variance"
    severity: ClassVar[Severity] = Severity.WARNING
    suppresses: ClassVar[tuple[str, ...]] = ("sig/dead-gradient", "lora/dead-modules")
    needs_any: ClassVar[tuple[str, ...]] = (*_SHARES, "reward_std")
    kinds = REINFORCEMENT
    min_points: ClassVar[int] = 5

    release: int = param(5, unit="logs", help="Calm logs in a row before it resolves.")
    told: float = param(0.3, unit="share of groups", help="Mean share without variance from which it is told.")
    warned: float = param(0.6, unit="share of groups", help="Mean share from which it is a warning.")
    start: int = param(10, unit="logs", help="Logs from the first on without any variance that are critical.")
    later: int = param(20, unit="logs", help="Logs in a row without any variance that are critical later.")
    last: deque[float] = state(lambda: deque(maxlen=40))
    streak: int = state(int)
    varied: bool = state(bool)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Take in the share of a log."""
        values = row.values
        name = first_named(values, _SHARES)
        spread = values.get("reward_std", math.nan)
        logged = values[name] if name else math.nan
        if 0.0 <= logged <= 1.0:
            self.last.append(logged)
        none = logged >= 1.0 if name else spread == 0.0
        self.varied = self.varied or not none
        self.streak = self.streak + 1 if none and values.get("grad_norm") == 0.0 else 0
        evidence = {
            "share_without_variance": mean(self.last) if self.last else None, "logs": len(self.last),
            "logs_without_any": self.streak, "reward": values.get("reward"), "grad_norm": values.get("grad_norm"),
            "never_any": not self.varied,
        }  # fmt: skip
        if self.streak >= (self.later if self.varied else self.start):
            since = "so far" if not self.varied else f"for {self.streak} logs"
            return Breach(
                f"no group of completions had two different rewards {since}, and the gradient is 0: nothing is trained",
                evidence, Severity.CRITICAL,
            )  # fmt: skip
        if len(self.last) < 20:
            return None
        share = mean(self.last)
        surely = share - 2.0 * mean_error(self.last)
        if not surely > self.told * self.easing:
            return None
        return Breach(
            f"{100 * share:.0f} % of the groups of the last {len(self.last)} logs have one reward throughout: they "
            "teach nothing",
            evidence, None if surely > self.warned else Severity.INFO,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Look at the reward and the completions; then partial credit, a higher temperature, more generations."""
        never, none = bool(breach.evidence["never_any"]), breach.evidence["logs_without_any"] >= self.start
        if never:
            first = look(
                "print the reward of eight completions of one prompt: does the reward function ever tell two of them "
                "apart? A pattern that never matches, or an exception that is caught, gives the same reward to all",
                "the reward has been the same for all completions since the first step",
                confidence="high",
            )
        else:
            first = look(
                "read eight completions of one prompt with their rewards: all alike (the policy has narrowed), all "
                "right (the prompts are too easy), or all wrong (they are too hard)?",
                "each of the three gives one reward, and each has another remedy",
                confidence="high" if none else "medium",
            )
        advice = [
            first,
            look(
                "give partial credit in the reward, and mix in prompts that the model solves now and then",
                "only prompts that are solved sometimes have rewards to compare",
            ),
        ]
        if none:
            return advice  # more of the same completions would not differ either
        temperature = run.number("temperature")
        if temperature is not None and temperature < 0.9:
            advice.append(
                Adjustment(
                    "temperature", current=temperature, proposed=1.0, direction="up", confidence="medium",
                    why="completions that hardly differ earn the same; TRL's default is 1",
                )
            )  # fmt: skip
        count = run.number("num_generations")
        if count is None or 0 < count < 16:
            advice.append(
                Adjustment(
                    "num_generations", current=int(count) if count else None,
                    proposed=min(int(count * 2), 16) if count else "twice it, to at most 16", direction="up",
                    confidence="medium", why="more completions: two that differ are likelier",
                    cost="twice the time of generation; the batch of a step must be a multiple of it",
                )
            )  # fmt: skip
        return advice
