"""The rule rl/entropy-collapse."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.parameters import library_version
from lorawatch.records import MetricRow
from lorawatch.remedies import lower_rate
from lorawatch.reward_signs import beginning, first_named, level, reward_rises
from lorawatch.rule import Rule, param
from lorawatch.run import REINFORCEMENT, Kind, Run

_NAMES = ("entropy", "policy/entropy_avg", "objective/entropy")


@dataclass(slots=True)
class RlEntropyCollapse(Rule):
    """The policy has narrowed to few completions, and the reward no longer rises.

    ## Why it matters
    Exploration is what reinforcement learns from. A policy that always says the same gets the same reward for all
    completions of a prompt, and stops there, often at something that the reward pays for by mistake.

    ## How it decides
    From 30 logs on: the median of the last 10 entropies is below 0.3 of the median of the first 10, and the reward does
    not rise over the last 20 logs (Mann–Kendall, 2 sigma). A falling entropy beside a rising reward is how learning
    looks, and is not told.

    The comparison is with the run's own beginning. An absolute limit does not exist: a healthy public run begins at
    0.117 nats, another at 1.4.

    ## What to change
    Clip upwards less: `epsilon_high=0.28` in place of 0.2, so that rare tokens can grow. Then a third of the learning
    rate; a temperature of 1; a small beta, 0.001 to 0.04; an entropy bonus where TRL has it (`entropy_coef`).

    ## Known false alarms
    A run that has solved its task: the reward stands at its best, and the policy is sure.

    ## Sources
    Cui et al. (arXiv 2505.22617): reward and entropy go together as R = -a exp(H) + b, so that entropy is spent for
    reward. DAPO (arXiv 2503.14476): clipping at 0.2 below and 0.28 above. Public logs fall to 0.6 and 0.5 of their
    beginning without collapse. Reference trainer, seed 0, at four times its rate: 2.5 to 0.04 nats within ten steps,
    then every group without variance. The limit of 0.3 is a choice. The baseline is the first 10 logs, not the first
    20: at too high a rate a collapse is over by then.
    """

    id: ClassVar[str] = "rl/entropy-collapse"
    title: ClassVar[str] = "Entropy collapses"
    severity: ClassVar[Severity] = Severity.WARNING
    maturity = "experimental"
    needs_any: ClassVar[tuple[str, ...]] = _NAMES
    kinds = REINFORCEMENT
    min_points: ClassVar[int] = 30
    suppresses: ClassVar[tuple[str, ...]] = (
        "rl/no-variance", "rl/truncation", "rl/length-drift", "gen/*", "base/*",
    )  # fmt: skip

    hold: int = param(3, unit="logs", help="Logs in a row before a finding opens.")
    release: int = param(10, unit="logs", help="Calm logs in a row before it resolves.")
    share: float = param(0.3, unit="ratio", help="Entropy over that of the beginning below which it has collapsed.")
    deep: float = param(0.1, unit="ratio", help="Entropy over that of the beginning below which little is left.")

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the entropy with that of the beginning."""
        name = first_named(row.values, _NAMES)
        start, now = beginning(run, name, 10), level(run, name, 10)
        if not (start > 0.0 and now < self.share * start / self.easing):
            return None
        if reward_rises(run, 20):
            return None
        left = "; next to nothing is left" if now < self.deep * start else ""
        return Breach(
            f"entropy fell from {start:.3g} to {now:.3g} nats, {now / start:.2f} of its beginning, and the reward no "
            f"longer rises{left}",
            {"entropy": now, "entropy_at_start": start, "ratio": now / start, "limit": self.share,
             "reward": level(run, "reward", 10), "learning_rate": run.peak_learning_rate},
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Room upwards in the clip; a lower rate; temperature, a pull to the base, an entropy bonus."""
        advice = [
            lower_rate(
                run, 3, "a policy that moves less in a step explores longer", confidence="medium", apply="restart"
            )
        ]
        high, low = run.number("epsilon_high"), run.number("epsilon")
        if (high if high is not None else low if low is not None else 0.2) < 0.28:
            advice.append(
                Adjustment(
                    "epsilon_high", current=high, proposed=0.28, direction="up", confidence="medium",
                    why="rare tokens may grow by more than frequent ones fall, which keeps the entropy up (DAPO); it "
                    "matters where a batch is used for several steps",
                )
            )  # fmt: skip
        temperature = run.number("temperature")
        if temperature is not None and temperature < 1.0:
            advice.append(
                Adjustment(
                    "temperature", current=temperature, proposed=1.0, direction="up", confidence="medium",
                    why="completions that differ more",
                )
            )  # fmt: skip
        beta = run.number("beta")
        if beta is not None and beta < 0.001:
            advice.append(
                Adjustment(
                    "beta", current=beta, proposed=0.01, direction="up", confidence="low",
                    why="a small pull to the base model, which is broad", cost="a forward pass of the reference",
                )
            )  # fmt: skip
        if run.kind is Kind.GRPO and library_version(run, "trl") >= (1, 16) and not run.number("entropy_coef"):
            advice.append(
                Adjustment(
                    "entropy_coef", current=run.number("entropy_coef"), proposed=0.001, direction="up",
                    confidence="low", why="a bonus for entropy in the loss",
                )
            )  # fmt: skip
        return advice
