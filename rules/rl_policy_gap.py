"""The rule rl/policy-gap."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import MetricRow
from lorawatch.remedies import look, lower_rate
from lorawatch.reward_signs import beginning, first_named, level
from lorawatch.rule import Rule, param
from lorawatch.run import REINFORCEMENT, Run

_SAMPLING = "sampling/sampling_logp_difference/mean"
_CLIPS = ("clip_ratio/region_mean", "clip_ratio")


@dataclass(slots=True)
class RlPolicyGap(Rule):
    """The policy that is trained is far from the one that wrote the completions, or from the reference.

    ## Why it matters
    Policy gradients hold near the policy that sampled. Where sampler and trainer disagree about the same weights, or a
    batch is used for too many steps, the gradient points elsewhere; where the policy runs away from its reference, what
    the base could do goes with it. Both look like noise until the reward falls.

    ## How it decides
    After 20 steps, on medians of the last 10 logs, any of three:

    - `sampling/sampling_logp_difference/mean` above 0.1 nats per token: vLLM and the trainer give the same tokens
      different probabilities.
    - `clip_ratio/region_mean` (or `clip_ratio` of older TRL) above 0.3: so many tokens are clipped. A ratio of 0 is
      normal where each batch is used for one step.
    - `kl` above 1 nat per token, and above 10 times the median of the first tenth of the run (5 to 20 logs).

    ## What to change
    By cause. Sampler: keep `vllm_importance_sampling_correction`, use the same number format in both. Clipping: fewer
    `num_iterations`, a lower rate. KL: half of the rate, twice the beta.

    ## Known false alarms
    A task far from what the base writes: its KL grows because it must.

    ## Sources
    TRL 1.16's `GRPOTrainer` for the keys; `kl` is the k3 estimate per token, 0 at the start, so that a multiple of the
    start alone would fire on every run: hence the 1 nat. Public logs: a healthy run rises from 1e-5 to 0.28, two others
    stay below 0.15; runs that did not learn, or whose gradients exploded, stand at 2 to 3. `clip_ratio` is 0 in all
    public GRPO logs. The limits are choices without another authority.
    """

    id: ClassVar[str] = "rl/policy-gap"
    title: ClassVar[str] = "Policy is far from its sampler or reference"
    severity: ClassVar[Severity] = Severity.WARNING
    suppresses: ClassVar[tuple[str, ...]] = ("rl/truncation", "lora/update-size", "gen/*", "base/*")
    maturity = "experimental"
    needs_any: ClassVar[tuple[str, ...]] = ("kl", _SAMPLING, *_CLIPS)
    kinds = REINFORCEMENT
    min_points: ClassVar[int] = 10
    retells: ClassVar[bool] = True

    hold: int = param(3, unit="logs", help="Logs in a row before a finding opens.")
    release: int = param(10, unit="logs", help="Calm logs in a row before it resolves.")
    steps: int = param(20, unit="steps", help="Steps before it is judged.")
    sampling: float = param(
        0.1, unit="nats per token", help="Difference between sampler and trainer that is too large."
    )
    clipped: float = param(0.3, unit="share of tokens", help="Share of clipped tokens that is too large.")
    kl: float = param(1.0, unit="nats per token", help="KL to the reference that is too large.")
    times: float = param(10.0, unit="ratio", help="KL over that of the first tenth that it must exceed as well.")

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Look at each of the three distances."""
        if run.step < self.steps:
            return None
        values = row.values
        difference = level(run, _SAMPLING, 10) if _SAMPLING in values else 0.0
        if difference > self.sampling * self.easing:
            return Breach(
                f"sampler and trainer differ by {difference:.2g} nats per token on the same weights",
                {"case": "sampling", "sampling_logp_difference": difference, "limit": self.sampling},
            )
        name = first_named(values, _CLIPS)
        clipped = level(run, name, 10) if name else 0.0
        if clipped > self.clipped * self.easing:
            return Breach(
                f"{100 * clipped:.0f} % of the tokens are clipped: the policy has left the one that sampled them",
                {"case": "clipped", "clip_ratio": clipped, "limit": self.clipped},
            )
        if "kl" not in values:
            return None
        interval = max(run.logging_interval, 1)
        early = int(min(max(0.1 * (run.max_steps or 100 * interval) / interval, 5), 20))
        start, now = beginning(run, "kl", early), level(run, "kl", 10)
        if not now > max(self.kl, self.times * start) * self.easing:
            return None
        return Breach(
            f"KL to the reference {now:.2g} nats per token, from {start:.2g} at the beginning",
            {"case": "kl", "kl": now, "kl_at_start": start, "limit": self.kl, "beta": run.number("beta")},
        )

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """What brings the two policies together again."""
        slower = lower_rate(
            run, 2, "the policy moves half as far in a step", confidence="medium", apply="restart"
        )  # fmt: skip
        case = breach.evidence["case"]
        if case == "sampling":
            advice = [
                look(
                    "do vLLM and the trainer use the same number format, the same chat template and the same weights "
                    "(is the adapter merged or synchronised before each generation)?",
                    "the same weights should give the same probabilities, up to rounding",
                )
            ]
            if run.fact("vllm_importance_sampling_correction") is False:
                advice.insert(
                    0,
                    Adjustment(
                        "vllm_importance_sampling_correction", current=False, proposed=True, confidence="high",
                        why="weighs each token by how likely the trainer finds what vLLM sampled",
                    ),
                )  # fmt: skip
            return [*advice, slower]
        if case == "clipped":
            times = run.number("num_iterations")
            fewer = Adjustment(
                "num_iterations", current=int(times) if times else None, proposed=1, direction="down",
                confidence="medium", why="each batch is used once, by the policy that wrote it", cost="more generation",
            )  # fmt: skip
            return [fewer, slower] if times is None or times > 1 else [slower]
        beta = run.number("beta")
        pull = Adjustment(
            "beta", current=beta, proposed=2.0 * beta if beta and beta > 0 else "twice it", direction="up",
            confidence="medium", why="twice the pull to the reference", cost="a smaller change of the model",
        )  # fmt: skip
        return [slower, pull]
