"""The rule cfg/rank-capacity."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

from lorawatch.findings import Adjustment, Breach, Confidence, Severity
from lorawatch.lora.targets import full_rank, lora_parameters
from lorawatch.records import FactUpdate, Judged, LabelAudit, ModelTree
from lorawatch.remedies import larger_rank
from lorawatch.rule import Rule, param
from lorawatch.run import REINFORCEMENT, Kind, Run

LARGEST_RANK = 2.0**20
"""No adapter has a higher rank: what states one is not to be believed."""


@dataclass(slots=True)
class CfgRankCapacity(Rule):
    """The rank does not go with the amount of data: too little to hold it, or far more than it can use.

    ## Why it matters
    An adapter holds about as much as it has parameters. With many more trained tokens than parameters it learns less
    of them than full fine-tuning would; with far fewer, it has room to learn the rows by heart. The effect of the rank
    is small beside that of the learning rate: in Tinker's sweep rank 1 to 64 moved the test loss by 0.009.

    ## How it decides
    Two rules, both shown. Trained tokens are those whose label counts, each row once however many epochs: their share
    is taken from rows that were looked at (`cfg/label-audit`) or from `trained_tokens_per_row`, times `train_rows`.

    - The guide's rule, by rows: fewer than 1,000 and a rank above 64: information.
    - The capacity rule, by tokens a LoRA parameter: above 1 information, above 3 a warning; below 0.01 with a rank
      above 64 information.
    - A rank at which B and A hold as many numbers as the weight itself (half its width, for a square one): information.

    Reinforcement learning is left out: a few bits a completion fit into any rank.

    ## What to change
    Too small: twice the rank, alpha with it, and rsLoRA at high ranks. Too large: 16, alpha with it.

    ## Known false alarms
    Data that repeats itself or that the base model knows already needs far less than a parameter a token, so that large
    chat data sets are commonly trained at rank 16 with little loss.

    ## Sources
    Both sides. The tuning guide: r 8 to 128, 64 to start with for 7B to 13B; below 1,000 samples not above 64; above
    10,000 samples 128 may be tried. Tinker's documentation: LoRA does as well as full fine-tuning while it has at least
    as many parameters as there are completion tokens; TRL's page *LoRA Without Regret* uses 256 for supervised
    fine-tuning and 1 to 32 for reinforcement learning. Unsloth advises 16 to 32. The limits 3 and 0.01 are a heuristic.
    """

    id: ClassVar[str] = "cfg/rank-capacity"
    title: ClassVar[str] = "Rank and amount of data do not go together"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (FactUpdate, ModelTree, LabelAudit)
    needs_facts: ClassVar[tuple[str, ...]] = ("r",)
    kinds: ClassVar[frozenset[Kind]] = frozenset(Kind) - REINFORCEMENT
    retells: ClassVar[bool] = True

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")
    few_rows: float = param(1000.0, unit="rows", help="The guide's limit below which a high rank overfits.")
    high_rank: float = param(64.0, unit="rank", help="Rank above which it is too much for few rows or few tokens.")
    full: float = param(1.0, unit="tokens a parameter", help="Tokens a LoRA parameter above which it is told.")
    overfull: float = param(3.0, unit="tokens a parameter", help="Tokens a LoRA parameter above which it warns.")
    empty: float = param(0.01, unit="tokens a parameter", help="Tokens a parameter below which a high rank is told.")

    def judge(self, record: FactUpdate | ModelTree | LabelAudit, run: Run) -> Breach | None:
        """Weigh the rank against rows, tokens and width."""
        rank, rows = run.number("r"), run.number("train_rows")
        if rank is None or not 1 <= rank <= LARGEST_RANK:
            return None
        parameters, tokens, widest = _lora_parameters(run, rank), _trained_tokens(run), _full_rank(run)
        ratio = tokens / parameters if tokens is not None and parameters else None
        evidence: dict[str, Any] = {
            "r": rank, "train_rows": rows, "lora_parameters": parameters, "trained_tokens": tokens,
            "tokens_per_parameter": ratio,
            "guide": "below 1,000 rows not above 64; above 10,000 rows 128 may be tried",
            "capacity": "at least as many LoRA parameters as trained tokens",
        }  # fmt: skip
        if ratio is not None and ratio > self.full:
            return Breach(
                f"{tokens:,.0f} trained tokens are {_times(ratio)} times the {parameters:,.0f} LoRA parameters at r = "
                f"{rank:g}: more than the adapter holds by the capacity rule" + _by_rows(rows),
                evidence | {"case": "under"},
                Severity.WARNING if ratio > self.overfull else None,
            )
        if widest is not None and rank >= widest:
            return Breach(
                f"r = {rank:g} gives B and A as many numbers as the weights that they adapt have (from r = "
                f"{widest:.0f}): a low rank is what LoRA saves by",
                evidence | {"full_rank": widest, "case": "width"},
            )
        if rank > self.high_rank and rows is not None and 0 < rows < self.few_rows:
            told = f"r = {rank:g} for {rows:,.0f} rows: the guide stays at 64 or below under {self.few_rows:,.0f} rows"
            if ratio is not None:
                told += f"; by the capacity rule {ratio:.2g} tokens a parameter, room to learn them by heart"
            return Breach(told, evidence | {"case": "few_rows"})
        if rank > self.high_rank and ratio is not None and ratio < self.empty:
            return Breach(
                f"{tokens:,.0f} trained tokens for {parameters:,.0f} LoRA parameters at r = {rank:g}: {ratio:.2g} a "
                "parameter, far more room than the data can use" + _by_rows(rows),
                evidence | {"case": "over"},
            )
        return None

    def missing(self, run: Run) -> tuple[str, ...]:
        """The rows, or what tells the tokens and parameters."""
        if run.number("train_rows") is None:
            return ("fact train_rows",)
        return ()

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """A larger rank, or a smaller one; alpha goes with it."""
        rank, alpha = breach.evidence["r"], run.number("lora_alpha")
        sure: Confidence = "medium" if breach.severity is Severity.WARNING else "low"
        if breach.evidence["case"] == "under":
            advice = larger_rank(run, "more room for the data; its effect is small beside that of the learning rate")
            if rank >= 64 and run.fact("use_rslora") is not True:
                advice.append(
                    Adjustment(
                        "use_rslora", current=run.fact("use_rslora"), proposed=True, confidence="low",
                        why="scales by alpha / sqrt(r), so that a high rank is used; set alpha to about 2·sqrt(r) then",
                    )
                )  # fmt: skip
            return advice
        rank = run.number("r") or rank  # advice is renewed when more is known
        if rank <= 16:
            return []
        smaller = [
            Adjustment(
                "r", current=run.fact("r"), proposed=16, direction="down", confidence=sure,
                why="holds what so little data can teach; less memory, less to overfit with",
            )
        ]  # fmt: skip
        if alpha:
            smaller.append(
                Adjustment(
                    "lora_alpha", current=run.fact("lora_alpha"), direction="down",
                    proposed=max(round(16 * min(abs(alpha), 1e12) / rank), 1),
                    confidence=sure, why=f"keeps alpha / r at {alpha / rank:g}",
                )
            )  # fmt: skip
        return smaller


def _times(ratio: float) -> str:
    return f"{ratio:,.0f}" if ratio >= 10 else f"{ratio:.2g}"


def _by_rows(rows: float | None) -> str:
    if rows is None:
        return ""
    if rows > 10_000:
        return f"; the guide's rule for {rows:,.0f} rows: r = 128 may be tried"
    return f"; the guide's rule for {rows:,.0f} rows: " + ("r of 64 at most" if rows < 1000 else "r of 8 to 128")


def _lora_parameters(run: Run, rank: float) -> float | None:
    """Parameters of B and A: by the modules, else what is trained, where that is B and A alone."""
    tree = run.model
    if tree is not None:
        counted = lora_parameters(tree, rank)
        if counted:
            return counted
        if tree.trainable and not any(tree.saved.values()):
            return tree.trainable
    if run.fact("modules_to_save") or run.fact("bias", "none") != "none":
        return None
    return run.number("trainable_parameters")


def _trained_tokens(run: Run) -> float | None:
    """Tokens with a label in all rows, each row once; None where rows or labels are not known."""
    rows, labels = run.number("train_rows"), run.labels
    if rows is None or rows <= 0:
        return None
    stated = run.number("trained_tokens_per_row")
    if stated is not None:
        return rows * stated if stated > 0 else None
    return (
        rows * labels.trained / labels.rows if labels is not None and labels.rows > 0 and labels.trained > 0 else None
    )


def _full_rank(run: Run) -> float | None:
    """Rank from which B and A are as large as the weights: median of what is adapted, else by the model's width."""
    if run.model is not None:
        ranks = [full_rank(group) for group in run.model.groups if group.adapted and group.inputs and group.outputs]
        if ranks:
            return max(median(ranks), 1.0)
    hidden = run.number("hidden_size")
    return hidden / 2 if hidden is not None and hidden >= 2 else None
