"""Is a dataloader stall named with its right cause? Eight set-ups that really stall, and the same eight without.

Each is a real Trainer run with the callback. What stalls is real too: processor time burnt in the data set or in the
collator, files read past the page cache, rows that come over a socket.
Usage: ``python benchmarks/stalls.py [--only N]``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import socket
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1"}

import torch
from overhead import model
from results_file import write
from transformers import Trainer, TrainingArguments, default_data_collator

from lorawatch import LoraWatchCallback
from lorawatch.findings import Finding
from lorawatch.settings import Settings
from lorawatch.trainer.faults.input import CostlyCollator, CostlyRows, DirectReads, Work, pace, write_random

SECONDS = 16.0
"""Length of a run: three readings of the machine with rates."""
LENGTH = 16


def row() -> dict[str, torch.Tensor]:
    """One row of tokens."""
    ids = torch.arange(LENGTH)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": ids}


class Rows:
    """Rows without end, all alike."""

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        return row()


def rows(cost: Callable[[], None]) -> CostlyRows:
    """Rows, each made by something that may take its time."""
    return CostlyRows(Rows(), cost)


class Stream(torch.utils.data.IterableDataset[dict[str, torch.Tensor]]):
    """Rows as they come over a connection of each worker's own."""

    def __init__(self, port: int) -> None:
        self._port = port

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        with socket.create_connection(("127.0.0.1", self._port)) as connection:
            while connection.recv(1, socket.MSG_WAITALL):
                yield row()


class Server(threading.Thread):
    """Sends one byte a row to whoever connects, so many rows a second."""

    def __init__(self, pause: float) -> None:
        super().__init__(daemon=True)
        self._pause = pause
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._socket.getsockname()[1]

    def run(self) -> None:
        """Accept until the process ends."""
        while True:
            with contextlib.suppress(OSError):
                connection, _ = self._socket.accept()
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        with contextlib.suppress(OSError), connection:
            while True:
                connection.sendall(b"." * (1 if self._pause else 256))
                time.sleep(self._pause)


@dataclass(frozen=True, slots=True)
class SetUp:
    """One way to stall.

    Attributes:
        name: What it is.
        cause: What the rule should name.
        workers: ``dataloader_num_workers``.
        data: Makes the data set, stalling or not.
        collate: Seconds of processor time in the collator, where that is what stalls.
        processors: Processors that the run may use; None for all.
    """

    name: str
    cause: str
    workers: int
    data: Callable[[bool, Path], Any]
    collate: float = 0.0
    processors: int | None = None


def burning(seconds: float) -> Callable[[bool, Path], Any]:
    """A data set whose rows take processor time."""
    return lambda stalls, _: rows(Work(seconds if stalls else 0.0))


SET_UPS = (
    SetUp("no workers, rows take processor time", "too few workers", 0, burning(0.03)),
    SetUp("no workers, the collator takes it", "too few workers", 0, burning(0.0), collate=0.06),
    SetUp(
        "no workers, rows take time but no processor", "too few workers", 0,
        lambda stalls, _: rows(Work(0.0, 0.03 if stalls else 0.0)),
    ),
    SetUp("1 worker, a processor is free", "too few workers", 1, burning(0.06)),
    SetUp("2 workers on 2 processors", "processors", 2, burning(0.1), processors=2),
    SetUp("no workers on 1 processor", "processors", 0, burning(0.03), processors=1),
    SetUp("2 workers read past the page cache", "disk", 2, lambda s, p: rows(DirectReads(p, 400 if s else 1))),
    SetUp("2 workers, rows come over the network", "network", 2, lambda s, _: Stream(_server(0.06 if s else 0.0))),
)  # fmt: skip


def _server(pause: float) -> int:
    server = Server(pause)
    server.start()
    return server.port


def train(one: SetUp, stalls: bool, file: Path) -> list[Finding]:
    """Train for a while; returns the findings about the wait for data."""
    collate = CostlyCollator(default_data_collator, Work(one.collate if stalls else 0.0))
    watch = LoraWatchCallback(Settings(select=("perf/data-wait",)), quiet=True)
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=1_000_000, logging_steps=50, per_device_train_batch_size=2,
            dataloader_num_workers=one.workers, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(
            model=model(), args=args, train_dataset=one.data(stalls, file), data_collator=collate, callbacks=[watch]
        )
        step, end = trainer.training_step, time.monotonic() + SECONDS

        def until_the_end(*given: Any, **named: Any) -> Any:
            trainer.control.should_training_stop = time.monotonic() >= end
            return step(*given, **named)

        trainer.training_step = until_the_end  # type: ignore[method-assign]
        # A step of 30 ms that leaves the processors free, as one on a GPU does: the control would else be bound by a
        # loader that must make a batch in 2 ms.
        pace(trainer, 0.03)
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            trainer.train()
    assert watch.engine is not None
    return watch.engine.findings


@contextlib.contextmanager
def processors(count: int | None) -> Iterator[None]:
    """Let this process, and what it starts, use so many processors."""
    if count is None:
        yield
        return
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, set(sorted(before)[:count]))
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def main() -> None:
    """Run, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", type=int, help="number of one set-up, from 1; keeps no table")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    lines = [
        "| set-up | should be | found, when it stalls | share | found, when it does not |",
        "|---|---|---|---|---|",
    ]
    right = quiet = 0
    with tempfile.TemporaryDirectory(dir=".") as folder:
        file = Path(folder) / "rows"
        write_random(file, 1 << 30)
        chosen = SET_UPS if options.only is None else SET_UPS[options.only - 1 : options.only]
        for one in chosen:
            with processors(one.processors):
                stalled, control = train(one, True, file), train(one, False, file)
            cause = stalled[-1].evidence["cause"] if stalled else "nothing"
            share = f"{stalled[-1].evidence['share']:.0%}" if stalled else ""
            other = control[-1].summary if control else "nothing"
            right += cause == one.cause
            quiet += not control
            lines.append(f"| {one.name} | {one.cause} | {cause} | {share} | {other} |")
            print(lines[-1], stalled[-1].summary if stalled else "", flush=True)
    body = (
        "\n".join(lines) + f"\n\n{right} of {len(chosen)} stalls named with the right cause, {quiet} of {len(chosen)} "
        f"controls without a finding. Real Trainer runs of {SECONDS:.0f} s with the callback, a tiny Llama with LoRA "
        "on the processor, a step of 30 ms, two rows a batch; the control is the same run with the cost taken out. "
        "Processors are those that the run may use.\n"
    )
    if options.only is None:
        write("stalls", "Dataloader stalls and their causes", body, "transformers", "torch")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
