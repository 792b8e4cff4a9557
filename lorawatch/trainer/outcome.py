"""What a run of the reference trainer came to, and how that is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(slots=True)
class Outcome:
    """What a run came to.

    Attributes:
        folder: The run's folder.
        steps: Optimizer steps done.
        seconds: Wall time of training, evaluation and samples included.
        trainer: The trainer, with its history in ``state.log_history``.
        probes: Share of right answers before and after, by kind of probe; empty where no probes were asked.
        watch: The attached callback.
    """

    folder: Path
    steps: int
    seconds: float
    trainer: Any
    watch: Any
    probes: dict[str, tuple[float, float]] = field(default_factory=dict)


def summary_text(outcome: Outcome) -> str:
    """A few lines: how the losses went, what the probes say, where to look further."""
    history: list[dict[str, Any]] = outcome.trainer.state.log_history
    lines = [f"{outcome.steps} steps in {outcome.seconds:.0f} s; everything is in {outcome.folder}"]
    for name in ("loss", "eval_loss", "rewards/margins", "reward"):
        values = [float(row[name]) for row in history if name in row]
        if len(values) > 1:
            lines.append(f"  {name:<16}{values[0]:8.3f} → {values[-1]:.3f}")
    for kind, (before, after) in outcome.probes.items():
        lines.append(f"  {kind + ' probes':<16}{100 * before:6.0f} % → {100 * after:.0f} % right")
    lines.append(f"look again: lorawatch check {outcome.folder}")
    return "\n".join(lines)
