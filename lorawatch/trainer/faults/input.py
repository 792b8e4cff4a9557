"""Faults of the data pipeline: rows, collators, workers and disks that keep training waiting for its next batch.

The tiny base takes a step in the time that a loader of that size takes for a batch. On such a machine every loader
would stall, and a processor that computes is not free for a worker. So these faults let a step last as long as one on
a card does, :data:`STEP` at least, with the processor free for the rest of it; what stalls is real.
"""

from __future__ import annotations

import mmap
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer.faults.contract import Collator, Expected, Fault
from lorawatch.trainer.recipe import Recipe, RecipeError, changed

STEP = 0.08
"""Seconds that a step lasts at least."""
BLOCK = 64 << 10
"""Bytes of one read past the page cache."""
FILE_BYTES = 128 << 20
"""Size of the file that is read: the page cache is passed by, so that it need not be larger than memory."""


def burn(seconds: float) -> None:
    """Take processor time, as tokenising or decoding does."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        sum(range(200))


class Work:
    """What one row or one batch costs.

    Args:
        seconds: Processor time.
        waiting: Time without a processor, as for an answer of another program.
    """

    def __init__(self, seconds: float, waiting: float = 0.0) -> None:
        self._seconds, self._waiting = seconds, waiting

    def __call__(self) -> None:
        """Do it."""
        burn(self._seconds)
        if self._waiting:
            time.sleep(self._waiting)


class DirectReads:
    """Reads blocks of a large file past the page cache, as a first epoch over files that memory does not hold.

    Linux only (``O_DIRECT``); the file system must allow it, which tmpfs did not before Linux 6.6.

    Args:
        path: The file.
        blocks: Blocks for a row; None to read for ``seconds``.
        seconds: Time to read for, where ``blocks`` is None: a fast disk reads more in it, and holds up as long.
    """

    def __init__(self, path: Path, blocks: int | None = None, *, seconds: float = 0.0) -> None:
        self._path, self._blocks, self._seconds = path, blocks, seconds
        self._file: int | None = None

    def __call__(self) -> None:
        """Read the blocks of one row."""
        if self._file is None:
            self._file = os.open(self._path, os.O_RDONLY | os.O_DIRECT)
            self._buffer = mmap.mmap(-1, BLOCK)
            self._size = os.fstat(self._file).st_size // BLOCK
            self._at = os.getpid() * 7919
        if self._blocks is None:
            end = time.perf_counter() + self._seconds
            while time.perf_counter() < end:
                self._read(self._file)
        else:
            for _ in range(self._blocks):
                self._read(self._file)

    def _read(self, file: int) -> None:
        self._at = (self._at * 1_103_515_245 + 12_345) % (1 << 31)
        os.preadv(file, [self._buffer], self._at % self._size * BLOCK)


def write_random(path: Path, size: int) -> None:
    """Write a file of random bytes, and wait until it is on the disk."""
    with path.open("wb") as out:
        for _ in range(size >> 20):
            out.write(os.urandom(1 << 20))
        out.flush()
        os.fsync(out.fileno())


class CostlyRows:
    """A map-style data set, each row of which costs something.

    Args:
        rows: The data set.
        cost: Is called for each row.
    """

    def __init__(self, rows: Any, cost: Callable[[], None]) -> None:
        self._rows, self._cost = rows, cost

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> Any:
        self._cost()
        return self._rows[index]

    def __getattr__(self, name: str) -> Any:
        """Columns, features and the like, as the data set has them; not what fetches many rows at once."""
        if name.startswith("_"):
            raise AttributeError(name)
        return getattr(self._rows, name)


class CostlyCollator:
    """A collator that costs something.

    Args:
        collator: Makes the batch.
        cost: Is called for each batch.
    """

    def __init__(self, collator: Collator, cost: Callable[[], None]) -> None:
        self._collator, self._cost = collator, cost

    def __call__(self, rows: list[Any]) -> dict[str, Any]:
        """Make a batch."""
        self._cost()
        return self._collator(rows)


def pace(trainer: Any, seconds: float) -> None:
    """Let each micro-batch of a trainer last some time at least; the processor is free for the rest of it."""
    step = trainer.training_step

    def paced(*given: Any, **named: Any) -> Any:
        end = time.monotonic() + seconds
        loss = step(*given, **named)
        time.sleep(max(end - time.monotonic(), 0.0))
        return loss

    trainer.training_step = paced


class _Waits(Fault):
    """Training waits for its data: half of the time and more (plain), or a quarter of it (subtle)."""

    steps: ClassVar[int] = 100
    step_seconds: ClassVar[float] = STEP

    @property
    def batch_seconds(self) -> float:
        """Seconds that a batch costs more than it should, where training waits for all of them."""
        return STEP * (1.0 / 3.0 if self.subtle else 1.25)

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """The wait; information from 10 % on, a warning from 20, critical from 40."""
        return (Expected(("perf/data-wait",), Severity.WARNING if self.subtle else Severity.CRITICAL),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """A short run of small steps, for the rule takes the last 50; no evaluation, in which workers catch up."""
        return changed(recipe, max_steps=self.steps, per_device_train_batch_size=4, eval_rows=0)

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """As long a step as on a card."""
        pace(trainer, self.step_seconds)


class SlowDataset(_Waits):
    """Each row is made anew each time, by the trainer itself."""

    name: ClassVar[str] = "slow-dataset"
    cause: ClassVar[str] = "each row is decoded and tokenized when it is asked for, and no worker does it ahead"
    remedy: ClassVar[tuple[str, ...]] = ("do the work once",)

    def dataset(self, dataset: Any, recipe: Recipe) -> Any:
        """Rows that take processor time."""
        return CostlyRows(dataset, Work(self.batch_seconds / recipe.per_device_train_batch_size))


class SlowCollator(_Waits):
    """The collator does what belongs into preparation."""

    name: ClassVar[str] = "slow-collator"
    cause: ClassVar[str] = "the collator computes for each batch what could be computed once; no worker does it ahead"
    remedy: ClassVar[tuple[str, ...]] = ("do the work once",)

    def collator(self, collator: Collator, recipe: Recipe) -> Collator:
        """A collator that takes processor time."""
        return CostlyCollator(collator, Work(self.batch_seconds))


class TooFewWorkers(_Waits):
    """One worker makes a batch in more time than a step takes; two would keep up."""

    name: ClassVar[str] = "too-few-workers"
    cause: ClassVar[str] = "one worker (dataloader_num_workers=1) makes batches more slowly than steps use them"
    remedy: ClassVar[tuple[str, ...]] = ("do the work once",)
    alone: ClassVar[bool] = True

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """One worker."""
        return changed(super().misconfigure(recipe), dataloader_num_workers=1)

    def dataset(self, dataset: Any, recipe: Recipe) -> Any:
        """Rows that take time, most of it a processor's: a third of it is waiting, as for a file."""
        seconds = STEP * (4.0 / 3.0 if self.subtle else 2.2) / recipe.per_device_train_batch_size
        return CostlyRows(dataset, Work(0.67 * seconds, 0.33 * seconds))


class SlowDisk(_Waits):
    """Two workers read what the page cache does not hold."""

    name: ClassVar[str] = "slow-disk"
    cause: ClassVar[str] = "each row is read from a disk that cannot keep up, past the page cache"
    remedy: ClassVar[tuple[str, ...]] = ("local ssd",)
    steps: ClassVar[int] = 80
    step_seconds: ClassVar[float] = 2.0 * STEP
    """The disk does not slow down with a processor that others use too; a step must not either."""
    workers: ClassVar[int] = 2

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Workers enough for data that comes in time."""
        return changed(super().misconfigure(recipe), dataloader_num_workers=self.workers)

    def prepare(self, recipe: Recipe) -> Recipe:
        """See that the disk can be read past the page cache.

        Raises:
            RecipeError: It cannot.
        """
        file = _file(recipe)
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            write_random(file, FILE_BYTES)
            DirectReads(file, 1)()
        except (OSError, AttributeError) as error:  # no O_DIRECT on this system, or not on this file system
            file.unlink(missing_ok=True)
            raise RecipeError(
                f"--inject slow-disk: {file.parent} cannot be read past the page cache ({error}); it needs Linux and a "
                "folder on a disk"
            ) from None
        return recipe

    def dataset(self, dataset: Any, recipe: Recipe) -> Any:
        """Rows that are read: by two workers that are ready at the same time, so that every other step waits."""
        seconds = self.step_seconds * (1.5 if self.subtle else 2.5)
        seconds *= self.workers / recipe.per_device_train_batch_size
        return CostlyRows(dataset, DirectReads(_file(recipe), seconds=seconds))

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """As long a step as on a card; and the file goes when training is over."""
        super().trainer(trainer, recipe)
        train = trainer.train

        def train_and_tidy(*given: Any, **named: Any) -> Any:
            try:
                return train(*given, **named)
            finally:
                _file(recipe).unlink(missing_ok=True)

        trainer.train = train_and_tidy


def _file(recipe: Recipe) -> Path:
    return Path(recipe.output_dir) / "rows.bin"
