"""Runs made up for the tests of what shows and exports them: no file is read."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar

from lorawatch.engine import Engine
from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow
from lorawatch.rule import Rule, param
from lorawatch.run import REINFORCEMENT, Run


@dataclass(slots=True)
class LossTooHigh(Rule):
    id: ClassVar[str] = "loss/too-high"
    title: ClassVar[str] = "Training loss is too high"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[str, ...]] = ("loss",)
    suppresses: ClassVar[tuple[str, ...]] = ("grad/*",)
    hold: int = param(2, unit="judgements", help="Hold.")
    cooldown: int = param(5, unit="steps", help="Cooldown.")
    limit: float = param(10.0, unit="nats", help="Limit.")

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        loss = row.values["loss"]
        if not loss > self.limit:
            return None
        return Breach(
            f"loss is at {loss:.3g}, above its best of {run.loss.best:.3g} (step {run.loss.best_step}) for 2 points",
            {"loss": loss, "best_level": run.loss.best, "limit": self.limit},
            Severity.CRITICAL if loss > 50 else None,
        )

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        rate = run.number("learning_rate") or 2e-3
        return [
            Adjustment(
                "learning_rate", current=rate, proposed=f"{rate / 3:.2g}", direction="down", confidence="high",
                apply="resume", cost="the steps since that checkpoint",
                why="the loss rises since step 212; resume from a checkpoint before it with a lower rate",
            ),
            Adjustment("max_grad_norm", current=1.0, proposed=0.3, why="a tighter clip limits what one batch can do"),
            Adjustment("", "the rows of the batch at step 212", why="a broken example can start it", apply="check"),
        ]  # fmt: skip


@dataclass(slots=True)
class GradientHigh(Rule):
    id: ClassVar[str] = "grad/high"
    title: ClassVar[str] = "Gradient norm is high"
    severity: ClassVar[Severity] = Severity.WARNING
    needs: ClassVar[tuple[str, ...]] = ("grad_norm",)

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        norm = row.values["grad_norm"]
        return Breach(f"gradient norm {norm:.3g}", {"grad_norm": norm}) if norm > 5 else None


@dataclass(slots=True)
class RewardCollapse(LossTooHigh):
    id: ClassVar[str] = "rl/collapse"
    kinds = REINFORCEMENT


@dataclass(slots=True)
class NeedsEvaluation(LossTooHigh):
    id: ClassVar[str] = "eval/overfit"
    needs: ClassVar[tuple[str, ...]] = ("eval_loss",)
    min_points: ClassVar[int] = 6

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        return None


@dataclass(slots=True)
class Raises(LossTooHigh):
    id: ClassVar[str] = "test/raises"

    def judge(self, row: MetricRow, run: Run) -> Breach | None:
        raise ZeroDivisionError("by zero")


def rules() -> list[Rule]:
    return [LossTooHigh(), GradientHigh(), RewardCollapse(), NeedsEvaluation()]


@dataclass
class SyntheticRun:
    """A run that is fed by hand."""

    name: str = "qwen-sft"
    path: str = ""
    skipped_lines: int = 0
    sources: list[str] = field(default_factory=lambda: ["console train.log", "trainer_state trainer_state.json"])
    rules: list[Rule] = field(default_factory=rules)
    engine: Engine = field(init=False)

    def __post_init__(self) -> None:
        self.path = self.path or f"/runs/{self.name}"
        self.engine = Engine(Run(self.name, self.path), self.rules, timed=True)

    def learn(self, **facts: object) -> None:
        self.engine.feed(FactUpdate(dict(facts), "test"))

    def row(self, step: int, time: float | None = None, **values: float) -> None:
        self.engine.feed(MetricRow(step, values, epoch=step / 200, time=time))

    def train(self, steps: Iterable[int], start: float | None = 1_000_000.0, seed: int = 1) -> None:
        """Log a loss that falls and is noisy, as a healthy run does, and an evaluation each 50 steps."""
        noise = random.Random(seed)  # noqa: S311
        for step in steps:
            loss = 1.2 + 3 * math.exp(-step / 60) + noise.gauss(0, 0.08)
            time = None if start is None else start + 1.1 * step
            self.row(step, time, loss=loss, grad_norm=0.5 + noise.random() / 5, learning_rate=2e-4 * (1 - step / 1000))
            if step % 50 == 0:
                self.row(step, time, eval_loss=1.25 + 3 * math.exp(-step / 60))

    def fail(self, step: int, loss: float = 20.0, points: int = 2) -> None:
        for index in range(points):
            self.row(step + index, 1_000_000.0 + 1.1 * (step + index), loss=loss, grad_norm=9.0)

    def end(self) -> None:
        self.engine.feed(LifecycleEvent("ended"))


@dataclass
class SyntheticWatch:
    """Several of them."""

    runs: list[SyntheticRun] = field(default_factory=list)
    waiting_for: str = "/runs to hold a training log"
    problems: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeClock:
    """A clock that stands until it is moved."""

    now: float = 1_000_400.0

    def __call__(self) -> float:
        return self.now
