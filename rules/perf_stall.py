"""The rule perf/stall."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from lorawatch.findings import Adjustment, Breach, Severity
from lorawatch.records import HostReading, Judged
from lorawatch.remedies import look
from lorawatch.rule import Rule, param, state
from lorawatch.run import Run
from lorawatch.spans import Lasting

GONE = 30.0
"""Seconds for which a trainer must be gone: its last words may be read after it."""
ASLEEP = 0.01
"""Cores below which a process does nothing."""
SILENT = 1e5
"""Bytes a second below which the network carries nothing that a run could wait for: the machine's own chatter."""


@dataclass(slots=True)
class PerfStall(Rule):
    """The run has stopped: no sign of progress for long, or its process is gone before it said that it ended.

    ## Why it matters
    A run that hangs holds its cards and does nothing, for hours, until somebody looks. Nothing in the log says so: it
    just ends.

    ## How it decides
    The last sign of the trainer (a step, a row, a bar, a save) is longer ago than `max(10 typical steps, 300 s)`.

    - During an evaluation or a save 1800 s stand in place of 300 s, whatever the machine shows: what scores or uploads
      may be a process that is not followed, for which the trainer sleeps.
    - So they do where the GPU is at work (20 % utilisation or more, with 40 % or more of its power limit, where that is
      told), or where it is not known what the trainer does and no GPU shows that it does nothing. In the latter case
      300 s hold all the same where all of its processes have slept for 300 s (below 0.01 cores each, none waits for a
      disk) and the network carried less than 100 kB/s meanwhile.
    - From outside, where signs may be far apart, at least three times the longest silence that ended so far.
    - Before the first step, 1200 s: loading a model, tokenising a data set take long. Not where the GPU is at work.
      From outside (`lorawatch tail`) nothing is judged before the first row.
    - Or the trainer's process has been gone for 30 s, and the run did not end. Where its length is not known it may
      have ended without a word: a warning then.

    ## What to change
    See where it stands (`py-spy dump`), on each rank: a rank that waits in a collective waits for one that does
    something else. Then what fits: workers that are stuck, a collective, storage that does not answer. Resume from the
    last checkpoint; a run that has not begun loses nothing when it is started again.

    ## Known false alarms
    A silent stop of more than 5 minutes in a script of one's own, between two phases of training.

    ## Sources
    SageMaker's profiler allows 20 minutes for the start. 10 steps, 300 and 1800 s, 0.01 cores and 100 kB/s are choices.
    A card that waits in a collective shows 100 % utilisation at little power: NCCL's kernel spins.
    """

    id: ClassVar[str] = "perf/stall"
    title: ClassVar[str] = "The run has stopped"
    severity: ClassVar[Severity] = Severity.CRITICAL
    judges: ClassVar[tuple[type[Judged], ...]] = (HostReading,)
    suppresses: ClassVar[tuple[str, ...]] = ("perf/low-gpu",)

    steps: float = param(10.0, unit="typical steps", help="Silence that may pass.")
    seconds: float = param(300.0, unit="seconds", help="Silence that may pass at least.")
    busy_seconds: float = param(
        1800.0, unit="seconds", help="Silence that may pass while it evaluates, saves or works."
    )
    start_seconds: float = param(1200.0, unit="seconds", help="Silence that may pass before the first step.")
    longest: float = state(float)
    idle: float = state(float)
    gone_since: float | None = state(lambda: None)
    available: float | None = state(lambda: None)
    asleep: Lasting = state(Lasting)

    def missing(self, run: Run) -> tuple[str, ...]:
        """A sign of the trainer, or its process."""
        host = run.host
        if host is None or host.idle is not None or host.alive is not None:
            return ()
        return ("the time of the last progress, or the trainer's process",)

    def judge(self, reading: HostReading, run: Run) -> Breach | None:
        """Compare the silence with what may pass; look whether the process is there."""
        if reading.alive is False:
            return self._gone(reading, run)
        self.gone_since = None
        if reading.memory_available is not None and reading.memory_total:
            self.available = reading.memory_available / reading.memory_total
        idle = reading.idle
        asleep = self.asleep.held(_sleeps(reading), reading.time, self.seconds)
        if idle is None:
            return None
        if idle < self.idle:  # the silence before has ended
            self.longest = max(self.longest, self.idle)
        self.idle = idle
        if idle <= self.seconds:
            return None
        limit = self._limit(reading, run, asleep=asleep)
        if not idle > limit:
            return None
        self.idle = 0.0  # a silence that was too long teaches nothing
        return self._silent(reading, idle, limit, run, asleep=asleep)

    def advise(self, breach: Breach, run: Run) -> list[Adjustment]:
        """Where it stands; then what fits what is seen."""
        gone, begun = breach.evidence["case"] == "gone", breach.evidence["begun"]
        again = "start it again" if gone else "stop it, and start it again"
        resume = look(f"{again}: no step is lost", "it had not begun to train")
        if begun:
            again = "resume" if gone else "stop it, and resume"
            resume = look(
                f"{again} from the last checkpoint: trainer.train(resume_from_checkpoint=True)",
                "a process that is gone or stuck does not go on by itself",
            )
        if gone:
            look_for = "look at the end of its output, and at dmesg -T for the kernel's out-of-memory killer"
            return [look(look_for, _of_memory(breach), confidence="high"), resume]
        pid = breach.evidence["pid"]
        advice = [
            look(
                f"py-spy dump --pid {pid or 'PID'} (as the same user or root)"
                + (", and likewise each other rank" if (run.number("world_size") or 1.0) > 1 else ""),
                "it prints the line at which each thread stands, without stopping it", confidence="high",
            )
        ]  # fmt: skip
        if breach.evidence["waiting_for_disk"]:
            advice.append(
                look("look at the storage: df and ls of the data's folder, dmesg -T, the file server",
                     "the trainer is in uninterruptible sleep, as when a network file system does not answer")
            )  # fmt: skip
        if (run.number("world_size") or 1.0) > 1:
            advice.append(
                look(
                    "run with NCCL_DEBUG=INFO and TORCH_NCCL_DUMP_ON_TIMEOUT=1, and a shorter ddp_timeout than its "
                    "1800 s", "a hanging collective then ends with an error that names it and the rank that is missing",
                )
            )  # fmt: skip
        if breach.evidence["workers_seen"] or (run.number("dataloader_num_workers") or 0.0) > 0:
            advice.append(
                look(
                    "where its workers may be stuck (py-spy shows it waiting for them): try dataloader_num_workers 0",
                    "with 0 the trainer loads the data itself; slower, for the test only", confidence="low",
                )
            )  # fmt: skip
        return [*advice, resume]

    def _limit(self, reading: HostReading, run: Run, *, asleep: bool) -> float:
        gpu = _gpu(run)
        if not run.training:  # a card at work trains without a word, or evaluates first
            return math.inf if gpu == "works" else self.start_seconds
        stopped = gpu in ("idle", "spins") or ((reading.phase == "training" or asleep) and gpu != "works")
        floor = self.seconds if stopped and reading.phase not in ("evaluation", "saving") else self.busy_seconds
        limit = max(floor, self.steps * (run.typical_step_seconds or 0.0))
        inside = run.timing is not None and run.timing.steps
        return limit if inside else max(limit, 3.0 * self.longest)

    def _silent(self, reading: HostReading, idle: float, limit: float, run: Run, *, asleep: bool) -> Breach:
        trainer = next((one for one in reading.processes if one.role == "trainer"), None)
        gpu = _gpu(run)
        state_of_gpu = {"idle": "; the GPU does nothing", "works": "; the GPU is at work",
                        "spins": "; the GPU shows 100 % at little power, as when it waits in a collective"}  # fmt: skip
        if run.training:
            place = f"at {_step(reading, run)}" + (f", during {reading.phase}" if reading.phase else "")
            summary = f"no sign of progress for {_minutes(idle)} {place}"
        else:
            summary = f"no step for {_minutes(idle)} since the last sign of the trainer: it has not begun to train"
        blocked = trainer is not None and trainer.waiting_for_disk >= 0.5
        if blocked:
            summary += "; the trainer is in uninterruptible sleep, which is storage as a rule"
        elif asleep:
            summary += "; all of its processes sleep"
        return Breach(
            summary + state_of_gpu.get(gpu, ""),
            {"case": "silent", "idle_seconds": idle, "limit_seconds": limit, "phase": reading.phase or None,
             "typical_step_seconds": run.typical_step_seconds, "gpu": gpu or None,
             "pid": None if trainer is None else trainer.pid, "waiting_for_disk": blocked, "begun": _begun(run),
             "asleep": asleep, "workers_seen": any(one.role == "worker" for one in reading.processes)},
        )  # fmt: skip

    def _gone(self, reading: HostReading, run: Run) -> Breach | None:
        self.gone_since = since = reading.time if self.gone_since is None else self.gone_since
        step = run.step if reading.step is None else max(reading.step, run.step)
        if reading.time - since < GONE or (run.max_steps is not None and step >= run.max_steps):
            return None
        allocator = run.allocator
        ooms = None if allocator is None else allocator.ooms
        told = []
        if ooms:
            told.append(f"the GPU's allocator had raised {ooms} out-of-memory errors")
        if self.available is not None and self.available < 0.05:
            told.append(f"{100 * self.available:.0f} % of the machine's memory was available before")
        return Breach(
            f"the trainer's process is gone for {reading.time - since:.0f} s or more, "
            + (f"at {_step(reading, run)}; it did not say that it ended" if _begun(run) else "before its first step")
            + "".join(f"; {words}" for words in told),
            {"case": "gone", "step": step, "max_steps": run.max_steps, "memory_available": self.available,
             "ooms": ooms, "begun": _begun(run)},
            Severity.CRITICAL if run.max_steps is not None else Severity.WARNING,
        )  # fmt: skip


def _gpu(run: Run) -> str:
    """What the busiest card does: ``idle``, ``spins`` (utilisation without power), ``works``; "" where not told."""
    cards = [] if run.gpu is None else [card for card in run.gpu.cards if card.utilization is not None]
    if not cards:
        return ""
    card = max(cards, key=lambda one: one.utilization or 0.0)
    used = card.utilization or 0.0
    if used <= 0.05:
        return "idle"
    if card.power is None or not card.power_limit:
        return "works" if used >= 0.2 else ""
    if card.power < 0.4 * card.power_limit:
        return "spins" if used >= 0.95 else ""
    return "works" if used >= 0.2 else ""


def _sleeps(reading: HostReading) -> bool:
    """Whether all of the run's processes do nothing, wait for no disk, and the network carries nothing either."""
    rates = (reading.receive_rate, reading.send_rate)
    return bool(reading.processes) and all(
        one.cpu is not None and one.cpu < ASLEEP and one.waiting_for_disk <= 0.0 for one in reading.processes
    ) and all(rate is not None and rate < SILENT for rate in rates)  # fmt: skip


def _begun(run: Run) -> bool:
    """Whether steps were taken, in this process or in the one that it resumes."""
    return run.training or run.step > 0 or run.resumed_step is not None


def _step(reading: HostReading, run: Run) -> str:
    step = run.step if reading.step is None else reading.step
    return f"step {step}" + (f" of {run.max_steps}" if run.max_steps else "")


def _minutes(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def _of_memory(breach: Breach) -> str:
    available = breach.evidence["memory_available"]
    if breach.evidence["ooms"]:
        return "the GPU ran out of memory before: an error of torch stands in the output then"
    if available is not None and available < 0.05:
        return "the machine's memory was nearly all taken when it was last seen: the kernel ends a process then"
    return "a process that is killed says nothing: by the kernel for memory, by a queue for time, by a person"
