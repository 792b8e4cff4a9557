"""Faults of the machine: disks, processors and main memory, and what stops the loop."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer.faults.contract import Expected, Fault
from lorawatch.trainer.faults.input import CostlyRows, pace
from lorawatch.trainer.recipe import Recipe, RecipeError, changed

GIB = 1 << 30


class SlowSaves(Fault):
    """Plain: a checkpoint every second step. Subtle: every fourth."""

    name: ClassVar[str] = "slow-saves"
    cause: ClassVar[str] = "save_steps is so low that writing checkpoints takes much of the time"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Information: nothing is wrong with what is learnt."""
        return (Expected(("perf/overhead",), Severity.INFO),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Save too often, in a run of small steps."""
        return changed(
            recipe, max_steps=160, per_device_train_batch_size=4, eval_steps=0.5, save_steps=4 if self.subtle else 2
        )


class SlowEvaluation(Fault):
    """Plain: an evaluation every third step. Subtle: every tenth."""

    name: ClassVar[str] = "slow-evaluation"
    cause: ClassVar[str] = "the run evaluates so often that it measures more than it trains"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Information: nothing is wrong with what is learnt."""
        return (Expected(("eval/cost",), Severity.INFO),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Evaluate too often."""
        return changed(recipe, max_steps=80, eval_rows=64, eval_steps=10 if self.subtle else 3)


class Hang(Fault):
    """Plain: a step waits for what never comes. Subtle: a worker does, so that the trainer waits for its batch."""

    name: ClassVar[str] = "hang"
    cause: ClassVar[str] = "a step waits for an answer that does not come (released after 330 s, so that the run ends)"
    waits: ClassVar[bool] = True
    remedy: ClassVar[tuple[str, ...]] = ("py-spy",)
    at: ClassVar[int] = 40
    seconds: ClassVar[float] = 330.0

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """No sign of progress for 300 s; the readings of the machine tell, for no row comes any more."""
        ahead = 3 if self.subtle else 1  # the batch of a step is asked for while the one before it is still to come
        return (Expected(("perf/stall",), Severity.CRITICAL, self.at - ahead),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """A short run, with a worker where it is the worker that hangs."""
        return changed(recipe, max_steps=self.at + 20, eval_steps=0.5, dataloader_num_workers=1 if self.subtle else 0)

    def dataset(self, dataset: Any, recipe: Recipe) -> Any:
        """Rows, one of which never comes."""
        if not self.subtle:
            return dataset
        return CostlyRows(dataset, WaitsOnce(self.at * recipe.per_device_train_batch_size, self.seconds))

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """A step that does not end."""
        if not self.subtle:
            before_step(trainer, WaitsOnce(self.at, self.seconds))


class WaitsOnce:
    """Waits at its n-th call, as for a lock that nobody gives back.

    Args:
        call: Which call waits, from 1.
        seconds: How long.
    """

    def __init__(self, call: int, seconds: float) -> None:
        self._left, self._seconds = call, seconds

    def __call__(self) -> None:
        """Count the calls."""
        self._left -= 1
        if self._left == 0:
            threading.Event().wait(self._seconds)


class DiskFilling(Fault):
    """Plain: there is room for 4 checkpoints of 12. Subtle: for all but the last."""

    name: ClassVar[str] = "disk-filling"
    cause: ClassVar[str] = (
        "all checkpoints are kept, on a small disk (a tmpfs of 256 MiB) that is taken up by another file"
    )
    needs: ClassVar[str] = "tmpfs"
    waits: ClassVar[bool] = True
    disk_bytes: ClassVar[int] = 256 << 20
    every: ClassVar[int] = 10
    saves: ClassVar[int] = 12
    interval: ClassVar[float] = 80.0
    """Seconds from the first save to the second: how large a checkpoint is shows in two looks 30 s apart. The saves
    after it come as fast as they can."""

    @property
    def room(self) -> float:
        """Checkpoints that the disk takes."""
        return 0.5 + (self.saves - 1 if self.subtle else 4)

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told once the size of a checkpoint is known: ahead of the failing save."""
        return (Expected(("host/disk",), Severity.WARNING, self.every),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Keep them all."""
        return changed(recipe, max_steps=self.every * self.saves, save_steps=self.every, save_total_limit=None)

    def prepare(self, recipe: Recipe) -> Recipe:
        """See that a disk can be mounted.

        Raises:
            RecipeError: It cannot.
        """
        with tempfile.TemporaryDirectory() as folder, small_disk(Path(folder), 1 << 20):
            return recipe

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Train on the small disk."""
        folder, train = Path(recipe.output_dir), trainer.train
        slow = self.interval / self.every

        def on_small_disk(*given: Any, **named: Any) -> Any:
            with small_disk(folder, self.disk_bytes):
                return train(*given, **named)

        def wait() -> None:
            if self.every <= trainer.state.global_step < 2 * self.every:
                threading.Event().wait(slow)

        trainer.train = on_small_disk
        before_step(trainer, wait)

    def callbacks(self, recipe: Recipe) -> list[Any]:
        """Another file takes the room, once it is known how much a checkpoint needs."""
        from transformers import TrainerCallback  # noqa: PLC0415

        folder, room = Path(recipe.output_dir), self.room - 1

        class AnotherFile(TrainerCallback):
            """Is written after the first save."""

            def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
                other = folder / "other-users-file"
                if not other.exists():
                    saved = folder / f"checkpoint-{state.global_step}"
                    needed = sum(file.stat().st_size for file in saved.rglob("*") if file.is_file())
                    other.write_bytes(bytes(max(shutil.disk_usage(folder).free - int(room * needed), 0)))

        return [AnotherFile()]


@contextlib.contextmanager
def small_disk(folder: Path, size: int) -> Iterator[None]:
    """Mount a tmpfs on a folder; afterwards its files, checkpoints left out, lie in the folder itself.

    Raises:
        RecipeError: It cannot be mounted.
    """
    try:
        subprocess.run(  # noqa: S603  (a folder and a number)
            ["mount", "-t", "tmpfs", "-o", f"size={size},mode=0755", "tmpfs", str(folder)],  # noqa: S607
            check=True, capture_output=True, text=True,
        )  # fmt: skip
    except (OSError, subprocess.CalledProcessError) as error:
        reason = " ".join(str(getattr(error, "stderr", "") or error).split())
        raise RecipeError(
            f"--inject disk-filling: no tmpfs can be mounted here ({reason[:120]}); "
            "as root it can, or under 'unshare --map-root-user --mount'"
        ) from None
    with tempfile.TemporaryDirectory() as kept:
        try:
            yield
        finally:
            for file in folder.iterdir():
                if file.is_file() and file.name != "other-users-file":
                    shutil.copyfile(file, Path(kept) / file.name)
            # Lazily: what is written to files that are still open goes nowhere, and is no longer wanted.
            subprocess.run(["umount", "--lazy", str(folder)], check=True, capture_output=True)  # noqa: S603, S607
            for file in Path(kept).iterdir():
                shutil.copyfile(file, folder / file.name)


class Slowdown(Fault):
    """Plain: two others take their share: steps three times as long. Subtle: one does most of the time."""

    name: ClassVar[str] = "slowdown"
    cause: ClassVar[str] = "from step 130 on other processes compute on the processor that the run is bound to"
    remedy: ClassVar[tuple[str, ...]] = ("what else runs",)
    alone: ClassVar[bool] = True
    at: ClassVar[int] = 130

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The time for a token, against that of steps 21 to 120."""
        return (Expected(("perf/slowdown",), Severity.WARNING, self.at),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Long enough for a comparison, and few evaluations."""
        return changed(recipe, max_steps=200)

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Bind the run to one processor while it trains, and let the others come.

        Raises:
            RecipeError: Processes cannot be bound here.
        """
        if not hasattr(os, "sched_setaffinity"):
            raise RecipeError("--inject slowdown: binds the run to a processor, which needs Linux")
        train, others = trainer.train, list[subprocess.Popen[bytes]]()
        before = sorted(os.sched_getaffinity(0))
        processor = before[recipe.seed % len(before)]

        def come() -> None:
            if trainer.state.global_step >= self.at and not others:
                rhythm = [(0.04, 0.016)] if self.subtle else [(0.05, 0.0), (0.05, 0.0)]
                others.extend(_computing(processor, busy, idle) for busy, idle in rhythm)

        def bound(*given: Any, **named: Any) -> Any:
            os.sched_setaffinity(0, {processor})
            try:
                return train(*given, **named)
            finally:
                os.sched_setaffinity(0, before)
                for one in others:
                    one.kill()
                    one.wait()

        trainer.train = bound
        before_step(trainer, come)


_COMPUTE = """
import os, sys, time
parent, processor, busy, idle = int(sys.argv[1]), int(sys.argv[2]), float(sys.argv[3]), float(sys.argv[4])
os.sched_setaffinity(0, {processor})
while os.getppid() == parent:
    end = time.thread_time() + busy
    while time.thread_time() < end:
        pass
    time.sleep(idle)
"""


def _computing(processor: int, busy: float, idle: float) -> subprocess.Popen[bytes]:
    """A process that takes ``busy`` seconds of a processor, sleeps, and so on, as long as this one lives."""
    command = [sys.executable, "-c", _COMPUTE, str(os.getpid()), str(processor), str(busy), str(idle)]
    return subprocess.Popen(command)  # noqa: S603  (this interpreter, with numbers)


def before_step(trainer: Any, act: Callable[[], None]) -> None:
    """Do something at the beginning of each step of a trainer, within the step."""
    step = trainer.training_step

    def after_it(*given: Any, **named: Any) -> Any:
        act()
        return step(*given, **named)

    trainer.training_step = after_it


class HostMemoryLeak(Fault):
    """Plain: until 4 % of the memory is left, and at most 2 GiB. Subtle: until 8 % is left, at most 1 GiB."""

    name: ClassVar[str] = "host-memory-leak"
    cause: ClassVar[str] = "a list keeps an array of each step, for a plot that nobody makes"
    remedy: ClassVar[tuple[str, ...]] = ("what the trainer collects",)
    waits: ClassVar[bool] = True
    steps: ClassVar[int] = 200
    grows: ClassVar[int] = 100
    """Steps after which it has grown to its full size: it must stay for 20 s."""
    step_seconds: ClassVar[float] = 0.3

    def __init__(self, amount: Any = "plain") -> None:
        super().__init__(amount)
        self._kept: list[Any] = []

    @property
    def least(self) -> float:
        """Share of the memory that is left."""
        return 0.08 if self.subtle else 0.04

    @property
    def most(self) -> int:
        """Bytes that are kept at most: a fault must not take down the machine."""
        return GIB if self.subtle else 2 * GIB

    def kept_bytes(self) -> int:
        """Bytes that are kept in all, by what is available now."""
        total, available = memory()
        return max(min(self.most, available - int(self.least * total)), 0)

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Less than 10 % available, where the memory is so small: in a container, say.

        Elsewhere nothing: a growth is told after ten minutes of training, from a tenth of the memory on.
        """
        total, available = memory()
        if available - self.kept_bytes() >= 0.09 * total:
            return ()
        return (Expected(("host/ram",), Severity.WARNING if self.subtle else Severity.CRITICAL),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Long enough to stay short of memory for 20 s."""
        return changed(recipe, max_steps=self.steps)

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Keep an array of each step."""
        import numpy as np  # noqa: PLC0415

        amount = self.kept_bytes() // self.grows // 8

        def keep() -> None:
            if len(self._kept) < self.grows:
                self._kept.append(np.random.default_rng(len(self._kept)).random(amount))

        pace(trainer, self.step_seconds)
        before_step(trainer, keep)


def memory() -> tuple[int, int]:
    """Bytes of main memory that this process may use, and those that are available: a cgroup's limit counts."""
    import psutil  # noqa: PLC0415

    from lorawatch.machine.cgroup import limits_of  # noqa: PLC0415

    whole = psutil.virtual_memory()
    limits = limits_of(os.getpid())
    left = limits.memory_available()
    if limits.memory_total is None or left is None or limits.memory_total >= whole.total:
        return whole.total, whole.available
    return limits.memory_total, min(left, whole.available)
