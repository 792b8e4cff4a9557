"""The rule perf/low-gpu."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.machine_signs import interrupted
from lorawatch.memory_remedies import larger_micro_batch
from lorawatch.records import Card, GpuReading, Judged
from lorawatch.remedies import look
from lorawatch.rule import Rule, param, state
from lorawatch.run import LANGUAGE_MODELLING, Run

WINDOW = 240.0
"""Seconds of training that the level is told from: twice the longest gap that should not count as a level."""
IDLE = 0.50
"""Utilisation below which a card counts as stopped: a stop rarely begins and ends with a reading."""
GAP = 30.0
"""Seconds in a row below it that make a gap; a save or a short evaluation takes less."""
LEAST_GAPS = 2


@dataclass(slots=True)
class PerfLowGpu(Rule):
    """The GPU is often without work while the run trains.

    ## Why it matters
    The time in which no kernel runs is lost. Batches too small to fill a card, waiting for data, or stops between the
    steps leave it idle; each has its own remedy.

    ## How it decides
    By the busiest card of the run, so that a card that it does not use is no finding; only while it takes steps, and
    not during an evaluation or a save, where that is known.

    - Level: the median of the utilisation over the last 240 s of training is below 30 % (low), or below 70 %
      (moderate). It resolves above 79 %.
    - Gaps: stretches of at least 30 s below 50 %, at least 2 of them, together more than 10 % of the training time so
      far.

    A card that tells no utilisation, such as a MIG instance, is not judged. Always information: a kernel may run and
    do little, and a run may be limited by something that cannot be changed.

    ## What to change
    Where training waits for data, see `perf/data-wait`. Otherwise a larger `per_device_train_batch_size` with fewer
    `gradient_accumulation_steps`, as far as memory allows; packing; `torch_compile`; fewer syncs
    (`logging_nan_inf_filter=False`). For gaps: what happens then, a save, an evaluation's metrics, a log sent away.

    ## Known false alarms
    Small models, whose kernels are too short to fill a large card, and runs that share the card on purpose. A trainer
    whose answers a vLLM server makes on other cards stands idle meanwhile, by design: it is not judged where
    `use_vllm` with `vllm_mode="server"` is known, and may be told where it is not.

    ## Sources
    30 and 70 % are TraceML's. The rule catalogue (55) has 120 s, within which a gap of 70 s passes for a level. 240 s,
    30 s, 50 %, 10 % and 2 gaps were chosen on 19 recordings of real cards, 10 to 30 s apart: both that are labelled
    *util_gaps* are found, and of the 8 labelled healthy or steady none fires.
    """

    id: ClassVar[str] = "perf/low-gpu"
    title: ClassVar[str] = "The GPU is often without work"
    severity: ClassVar[Severity] = Severity.INFO
    judges: ClassVar[tuple[type[Judged], ...]] = (GpuReading,)

    release: int = param(1, unit="judgements", help="Calm judgements in a row before it resolves.")
    low: float = param(0.30, unit="ratio", help="Median utilisation below which it is low.")
    moderate: float = param(0.70, unit="ratio", help="Median utilisation below which it is worth a word.")
    gaps: float = param(0.10, unit="ratio", help="Share of the training time in gaps that is worth a word.")
    window: deque[tuple[float, float]] = state(lambda: deque(maxlen=256))
    covered: float = state(float)
    trained: float = state(float)
    idle: float = state(float)
    lost: float = state(float)
    count: int = state(int)
    training: bool = state(bool)
    told: Breach | None = state(lambda: None)

    def missing(self, run: Run) -> tuple[str, ...]:
        """Utilisation over a whole window of training, of a card that trains all the time."""
        if _served(run):
            return ("a card that trains all the time: it waits while a vLLM server generates",)
        if run.gpu is not None and not any(card.utilization is not None for card in run.gpu.cards):
            return ("utilisation of the GPU (a MIG instance tells none)",)
        if self.covered >= WINDOW:
            return ()
        return (f"utilisation over {WINDOW:.0f} s of training ({self.covered:.0f} s so far)",)

    def judge(self, reading: GpuReading, run: Run) -> Breach | None:
        """Take in a reading, and compare level and gaps with the limits."""
        if _served(run):
            return None
        trains, self.training = self.training, run.training
        if not trains or interrupted(run):  # the reading in which training begins holds some of what came before
            return self.told
        used = [card.utilization for card in own_cards(reading) if card.utilization is not None]
        if not used or not 0.0 < reading.seconds < 1e6:
            return self.told
        self._take(max(used), reading.seconds)
        self.told = self._level() or self._gaps()
        return self.told

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """More work at a time, or fewer stops between."""
        if breach.evidence["case"] == "gaps":
            return [
                look(
                    "look at what happens in the gaps: a save to a slow disk, an evaluation's metrics on the "
                    "processor, a log or checkpoint that is sent away, the wait for data",
                    "the card works fully in between: it is stopped from time to time, not fed too slowly",
                )
            ]
        found = _larger_micro_batch(run)
        if run.kind in LANGUAGE_MODELLING and run.fact("trainer_class") == "SFTTrainer":
            found.append(
                Adjustment(
                    "packing", current=run.fact("packing"), proposed=True, confidence="low", apply="restart",
                    why="full rows give each kernel more to do", cost="FlashAttention, and fewer steps an epoch",
                )
            )  # fmt: skip
        if run.fact("torch_compile") is not True:
            found.append(
                Adjustment(
                    "torch_compile", current=run.fact("torch_compile"), proposed=True, confidence="low",
                    apply="resume", why="fuses small kernels, between which the card waits",
                    cost="the first steps take minutes; each new length compiles again unless batches are padded to "
                    "a multiple",
                )
            )  # fmt: skip
        if run.fact("logging_nan_inf_filter") is True:
            found.append(
                Adjustment(
                    "logging_nan_inf_filter", current=True, proposed=False, confidence="low", apply="resume",
                    why="spares a wait for the card at each micro-batch", cost="a NaN loss poisons the logged mean",
                )
            )  # fmt: skip
        return found

    def _take(self, used: float, seconds: float) -> None:
        window = self.window
        if len(window) == window.maxlen:
            self.covered -= window.popleft()[1]
        window.append((used, seconds))
        self.covered += seconds
        self.trained += seconds
        while self.covered - window[0][1] >= WINDOW:
            self.covered -= window.popleft()[1]
        if used >= IDLE:
            self.idle = 0.0
            return
        before, self.idle = self.idle, self.idle + seconds
        if self.idle >= GAP:
            self.count += before < GAP
            self.lost += self.idle if before < GAP else seconds

    def _level(self) -> Breach | None:
        if self.covered < WINDOW:
            return None
        level = _weighted_median(self.window)
        if 1.0 - level <= (1.0 - self.moderate) * self.easing:
            return None
        case = "low" if level < self.low else "moderate"
        return Breach(
            f"the GPU works {100 * level:.0f} % of the time (median of the last {self.covered:.0f} s of training): "
            f"{case} use",
            {"case": case, "utilization": level, "seconds": self.covered},
        )

    def _gaps(self) -> Breach | None:
        if self.count < LEAST_GAPS or self.lost <= self.gaps * self.easing * self.trained:
            return None
        return Breach(
            f"the GPU stood still {self.count} times for {GAP:.0f} s or more: "
            f"{100 * self.lost / self.trained:.0f} % of the {self.trained:.0f} s of training",
            {"case": "gaps", "gaps": self.count, "idle_seconds": self.lost, "seconds": self.trained},
        )


def own_cards(reading: GpuReading) -> list[Card]:
    """The cards on which the run's own processes hold memory; all of them where none is told to."""
    own = [card for card in reading.cards if card.own_memory or any(process.own for process in card.processes)]
    return own or reading.cards


def _weighted_median(window: deque[tuple[float, float]]) -> float:
    """The level that was not exceeded for half of the time."""
    half = sum(seconds for _, seconds in window) / 2.0
    passed = 0.0
    for used, seconds in sorted(window):
        passed += seconds
        if passed >= half:
            return used
    return 0.0


def _served(run: Run) -> bool:
    """Whether the facts say that a vLLM server generates, on other cards, while this one waits."""
    return run.fact("use_vllm") is True and run.fact("vllm_mode") == "server"


def _larger_micro_batch(run: Run) -> list[Adjustment]:
    """Twice the micro-batch at the same effective batch, where the card has room for it."""
    cards = [] if run.gpu is None else own_cards(run.gpu)
    full = [card.memory_used / card.memory_total for card in cards if card.memory_used and card.memory_total]
    if full and max(full) > 0.7:
        return []
    why = "larger kernels fill the card better"
    if full:
        why += f"; {100 * max(full):.0f} % of its memory is taken"
    return larger_micro_batch(run, why, busy=False)
