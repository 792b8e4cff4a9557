"""The rule lora/rank-use."""

from __future__ import annotations

from dataclasses import dataclass
from statistics import median
from typing import ClassVar

from lorawatch.adapter_start import unread, unusual_start
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import AdapterReading, Judged
from lorawatch.remedies import larger_rank
from lorawatch.rule import Rule, param
from lorawatch.run import SUPERVISED, Run
from lorawatch.stats import mann_kendall_z


@dataclass(slots=True)
class LoraRankUse(Rule):
    """How much of its rank the adapter uses: very little of a large one, or all of it while the loss still falls.

    ## Why it matters
    The rank is the number of directions that each update can have. Where a few carry it all, a smaller rank gives the
    same model for less memory. Where all carry it alike, a larger one may hold more. Either is a hint only: noise has
    a high effective rank too, and in Tinker's sweep ranks from 1 to 64 differ by 0.009 nats in the test loss.

    ## How it decides
    The effective rank of scale·B·A, which is the exponential of the entropy of its singular values' shares, over the
    rank; the median over modules, from step 200 on.

    - Below 0.15 with rank 32 or more: little of it is used.
    - Above 0.9 while the loss still falls (over its last 64 logs, Mann–Kendall z below −3, and the last quarter's
      median 2 % below the first's): all of it is used. Supervised runs only.

    It is information at most. Adapters that do not begin with B at 0 are not judged: their spectrum shows how they
    began.

    ## What to change
    Nothing, for the run's sake. In the next one half the rank, with alpha at the same ratio to it, costs nothing if
    the evaluation stays; or twice the rank.

    ## Known false alarms
    Many: a high effective rank is what noise looks like, and a low one early in a run is common.

    ## Sources
    Effective rank: Roy and Vetterli, *The effective rank* (2007). The limits are this project's, without another
    authority. Measured: adapters of rank 16 of the reference trainer stand at 0.56 to 0.88, one of rank 64 that
    memorised its data at 0.14. The sweep: Tinker's cookbook, `sft_sweep`.
    """

    id: ClassVar[str] = "lora/rank-use"
    title: ClassVar[str] = "Rank that is not used, or used up"
    severity: ClassVar[Severity] = Severity.INFO
    maturity = "experimental"
    judges: ClassVar[tuple[type[Judged], ...]] = (AdapterReading,)

    release: int = param(1, unit="readings", help="Readings in between, in a row, before it resolves.")
    settle: int = param(200, unit="steps", help="Steps before which the spectrum is noise.")
    low: float = param(0.15, unit="share of rank", help="Effective rank below which little of it is used.")
    large: int = param(32, unit="rank", help="Rank from which on that is said.")
    high: float = param(0.9, unit="share of rank", help="Effective rank above which all of it is used.")
    falls: float = param(0.02, unit="share", help="Fall of the loss over 64 logs that counts as falling.")

    def missing(self, run: Run) -> tuple[str, ...]:
        """A reading late enough, of an update that began at 0."""
        start = unusual_start(run)
        if start:
            return (start,)
        reading = run.adapter
        if reading is None:
            return ()
        if not reading.modules:
            return (unread(reading),)
        if not any(module.effective_rank is not None for module in reading.modules):
            return ("modules whose update is finite and not 0",)
        return () if reading.step >= self.settle else (f"a reading from step {self.settle} on",)

    def judge(self, reading: AdapterReading, run: Run) -> Breach | None:
        """Compare the effective rank with the rank."""
        used = {
            module.name: (module.effective_rank / module.rank, module.rank) for module in reading.modules
            if module.effective_rank is not None and module.rank > 1
        }  # fmt: skip
        if reading.step < self.settle or not used or unusual_start(run):
            return None
        share, rank = median(one for one, _ in used.values()), int(median(one for _, one in used.values()))
        evidence = {"share_of_rank": share, "rank": rank, "modules": len(used), "step": reading.step}
        if share < self.low and rank >= self.large:
            return Breach(
                f"of rank {rank} about {share * rank:.1f} directions are in use at step {reading.step} (median over "
                f"{len(used)} modules): a smaller rank would do",
                evidence | {"case": "low"},
            )
        if share > self.high and self._falling(run):
            return Breach(
                f"all of rank {rank} is in use at step {reading.step} (effective rank {share * rank:.1f}, median over "
                f"{len(used)} modules) and the loss still falls: a larger rank may hold more, or it is noise",
                evidence | {"case": "high"},
            )
        return None

    def _falling(self, run: Run) -> bool:
        losses = run.series.get("loss")
        if losses is None or run.kind not in SUPERVISED:
            return False
        values = losses.window(64)
        quarter = len(values) // 4
        if quarter < 8 or mann_kendall_z(values) > -3.0:
            return False
        return median(values[-quarter:]) < (1.0 - self.falls) * median(values[:quarter])

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Half the rank or twice the rank, in another run."""
        if breach.evidence["case"] == "high":
            return larger_rank(run, "each update uses all directions that it has")
        rank, alpha = run.number("r"), run.number("lora_alpha")
        ratio = f"keeps alpha / r at {alpha / rank:g}" if rank and alpha else "keep alpha / r as it is: set r first"
        return [
            Adjustment(
                "r", current=int(rank) if rank else None, proposed=int(rank / 2) if rank else "half of it",
                why="a few directions carry the update: less memory for the same model", confidence="low",
                direction="down",
            ),
            Adjustment(
                "lora_alpha", current=alpha and int(alpha), proposed=int(alpha / 2) if alpha else "half of it",
                why=ratio, confidence="low", direction="down",
            ),
        ]  # fmt: skip
