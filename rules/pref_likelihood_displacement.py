"""The rule pref/likelihood-displacement."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.parameters import library_version
from lorawatch.records import MetricRow
from lorawatch.remedies import look, lower_rate, rounded
from lorawatch.reward_signs import beta_of, has_reference, mean, reference_logp
from lorawatch.rule import Rule, param, state
from lorawatch.run import Kind, Run


@dataclass(slots=True)
class PrefLikelihoodDisplacement(Rule):
    """The chosen replies become less likely while the model learns to prefer them to the rejected ones.

    ## Why it matters
    DPO asks for a difference only. It is met as well by a model that finds both replies unlikely, the rejected ones
    more so; what it finds likely instead is neither of them, and may be the opposite of what was preferred. The loss,
    the accuracy and the margin all look good.

    ## How it decides
    From 20 logs on, over the last 10. How far the chosen replies have fallen is `-rewards/chosen / beta` in nats; it is
    told as a share of their log-likelihood under the reference, `logps/chosen - rewards/chosen / beta`, which each row
    tells exactly. It is information from 10 %, a warning from 100 %, while it is not recovering: the last five logs are
    not above the five before them.

    Where beta is not stated, 0.1 is taken, TRL's default. Losses without a reference (ORPO, CPO, SimPO) and KTO are not
    judged.

    ## What to change
    An SFT term beside the DPO loss (`loss_type=["sigmoid", "sft"]`, `loss_weights=[1.0, 0.2]`; `rpo_alpha` before TRL
    0.29), which holds the chosen replies up. Then half of the learning rate, a larger beta, and pairs that differ in
    more than a few words: the likelier both replies are at once, the more they fall together.

    ## Known false alarms
    Some displacement is normal in DPO, and a small beta allows much of it: that is why it is information below 100 %.

    ## Sources
    Razin et al., *Unintentional Unalignment* (arXiv 2410.08847): refusals fell from 74.4 % to 33.4 %. Computed from
    public model cards: 3 % (jiuhai/zephyr-7b-dpo-lora, beta taken as 0.1) and 67 % (Wenboz/zephyr-7b-dpo-lora, whose
    settings are those of zephyr-7b-dpo-qlora, beta taken as 0.01), both with accuracies of 0.72 to 0.83; 635 % after
    20 epochs, with an evaluation loss of 1.56 (LaoRay/zephyr-7b-dpo-lora, likewise). A warning from 10 % would call
    that standard recipe broken. The limits are choices without another authority.
    """

    id: ClassVar[str] = "pref/likelihood-displacement"
    title: ClassVar[str] = "Chosen replies become unlikely"
    severity: ClassVar[Severity] = Severity.WARNING
    maturity = "experimental"
    needs: ClassVar[tuple[str, ...]] = ("rewards/chosen", "logps/chosen")
    kinds = frozenset({Kind.DPO})
    min_points: ClassVar[int] = 20

    hold: int = param(3, unit="logs", help="Logs in a row before a finding opens.")
    release: int = param(5, unit="logs", help="Calm logs in a row before it resolves.")
    told: float = param(0.1, unit="ratio", help="Fall over the reference's log-likelihood from which it is told.")
    warned: float = param(1.0, unit="ratio", help="Fall from which it is a warning.")
    last: deque[tuple[float, float]] = state(lambda: deque(maxlen=10))

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        """Compare the fall of the last logs with the reference."""
        values = row.values
        beta, stated = beta_of(run)
        reference = reference_logp(values, "chosen", beta)
        if reference is None or not has_reference(values):
            return None
        self.last.append((-values["rewards/chosen"] / beta, abs(reference)))
        if len(self.last) < 10:
            return None
        falls = [fall for fall, _ in self.last]
        fall, size = mean(falls), mean([size for _, size in self.last])
        share = fall / size
        if not share > self.told * self.easing:
            return None
        if mean(falls[5:]) < 0.8 * mean(falls[:5]):
            return None  # it recovers
        severe = share > self.warned
        assumed = "" if stated else "; beta is not stated: 0.1 is taken, TRL's default"
        return Breach(
            f"chosen replies have lost {fall:.0f} nats of log-likelihood, {100 * share:.0f} % of the {size:.0f} that "
            f"they have under the reference{assumed}",
            {"fall_nats": fall, "share": share, "reference_nats": size, "beta": beta, "beta_stated": stated,
             "margin": run.last("rewards/margins"), "accuracy": run.last("rewards/accuracies")},
            None if severe else Severity.INFO,
        )  # fmt: skip

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """An SFT term; a lower rate; a larger beta; pairs that differ."""
        sure = breach.evidence["share"] > self.warned
        advice = _sft_term(run)
        advice.append(
            lower_rate(
                run, 2, "a slower run moves both replies less", confidence="medium" if sure else "low", apply="restart"
            )
        )
        beta, stated = beta_of(run)
        if beta < 0.3:
            advice.append(
                Adjustment(
                    "beta", current=beta if stated else None, proposed=min(rounded(3.0 * beta), 0.3), direction="up",
                    why="holds the policy nearer to the reference", confidence="medium" if sure else "low",
                    cost="a smaller change of the model",
                )
            )  # fmt: skip
        advice.append(
            look(
                "drop pairs whose two replies are near-identical",
                "the tokens that both share are pushed down with the rejected reply (arXiv 2410.08847)",
            )
        )
        return advice


def _sft_term(run: Run) -> list[Adjustment]:
    """The SFT loss on the chosen replies beside the DPO loss, as the run's framework spells it."""
    why = "an SFT term holds the log-likelihood of the chosen replies up"
    framework = str(run.fact("framework", "")).lower()
    stated = run.fact("loss_type")
    if "sft" in str(stated) or run.number("rpo_alpha") or run.number("pref_ftx"):
        return []
    if framework == "llamafactory":
        return [look("set pref_ftx to 0.2", why)]
    if framework == "axolotl":
        return [look("set dpo_loss_type to [sigmoid, sft] and dpo_loss_weights to [1.0, 0.2]", why)]
    if library_version(run, "trl") < (0, 29):
        return [look("set rpo_alpha to 0.2", why + " (TRL from 0.29 on: loss_type and loss_weights)")]
    return [
        Adjustment(
            "loss_type", current=stated, proposed=["sigmoid", "sft"], why=why + "; set loss_weights with it",
            confidence="medium", cost="a little less margin",
        ),
        Adjustment(
            "loss_weights", current=run.fact("loss_weights"), proposed=[1.0, 0.2], confidence="medium",
            why="the SFT term at a fifth of the preference loss; both weigh 1 where it is not set",
        ),
    ]  # fmt: skip
