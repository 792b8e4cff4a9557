"""Microseconds that a callback costs a training step: LoraWatchCallback beside others, in one process.

Each arm trains the same tiny model by a real Trainer with one callback more; a stopwatch stands around each event of
that callback and of what it brings with it, so that what is added up is their own time, with the caches as cold as a
real step leaves them.
Arms are interleaved and medians taken over the rounds. Usage: ``python benchmarks/overhead.py [--rounds 5]``.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from statistics import fmean, median
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1", "TRACKIO_GPU_LOG_INTERVAL": "0"}

import torch
from results_file import write
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

EVENTS = (
    "on_train_begin", "on_train_end", "on_epoch_begin", "on_epoch_end", "on_step_begin", "on_pre_optimizer_step",
    "on_optimizer_step", "on_substep_end", "on_step_end", "on_log", "on_evaluate", "on_save",
)  # fmt: skip
SKIPPED = 20
"""First steps of each run, in which files are opened and caches filled: left out."""


class Noop(TrainerCallback):
    """Overrides nothing."""


@dataclass(slots=True)
class Times:
    """Nanoseconds of one callback, by step: of steps that were logged, and of the others."""

    logged: list[int] = field(default_factory=list)
    others: list[int] = field(default_factory=list)


class Meter:
    """Adds up, step by step, what a callback and all that belongs to it take."""

    def __init__(self, times: Times) -> None:
        self._times = times
        self._step = -1
        self.spent = 0
        self.logged = False

    def at(self, step: int) -> None:
        """An event of ``step`` begins: with the first one of a step, the step before is put down."""
        if step == self._step:
            return
        if self._step > SKIPPED:
            (self._times.logged if self.logged else self._times.others).append(self.spent)
        self._step, self.spent, self.logged = step, 0, False


def timed(callback: TrainerCallback, meter: Meter) -> TrainerCallback:
    """The same callback, with a stopwatch around each of its events."""
    clock = time.perf_counter_ns

    def around(method: Callable[..., Any], event: str) -> Callable[..., Any]:
        def call(args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
            meter.at(state.global_step)
            before = clock()
            result = method(args, state, control, **kwargs)
            meter.spent += clock() - before
            if event == "on_log":
                meter.logged = True
            return result

        return call

    for event in EVENTS:
        setattr(callback, event, around(getattr(callback, event), event))
    return callback


class Companions(TrainerCallback):
    """Puts a stopwatch around the callbacks that a callback adds at the beginning of training."""

    def __init__(self, meter: Meter) -> None:
        self._meter = meter
        self.trainer: Any = None

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The first event at which they all stand."""
        for one in self.trainer.callback_handler.callbacks:
            if type(one).__name__.endswith("Recorder") and "on_step_begin" not in vars(one):
                timed(one, self._meter)


@contextlib.contextmanager
def batches_timed(meter: Meter) -> Iterator[None]:
    """Takes the time of looking at each batch, which happens in the data loader."""
    from lorawatch.integrations.batch_sizes import BatchSizes

    see = BatchSizes._see

    def seen(self: BatchSizes, batch: Any) -> None:
        before = time.perf_counter_ns()
        see(self, batch)
        meter.spent += time.perf_counter_ns() - before

    BatchSizes._see = seen  # type: ignore[method-assign]
    try:
        yield
    finally:
        BatchSizes._see = see  # type: ignore[method-assign]


class Judging:
    """Adds up the processor time of judging, which is done beside the loop."""

    def __init__(self) -> None:
        self.seconds = 0.0

    @contextlib.contextmanager
    def timed(self) -> Iterator[None]:
        """Take it."""
        from lorawatch.integrations.judgement import Judgement

        judge = Judgement.judge

        def judged(judgement: Any) -> Any:
            before = time.thread_time()
            changes = judge(judgement)
            self.seconds += time.thread_time() - before
            return changes

        setattr(Judgement, "judge", judged)  # noqa: B010  (mypy would have the type of the method)
        try:
            yield
        finally:
            setattr(Judgement, "judge", judge)  # noqa: B010


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random tokens."""

    def __init__(self, count: int) -> None:
        self._rows = torch.randint(0, 128, (count, 16), generator=torch.Generator().manual_seed(0))

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = self._rows[index]
        return {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row}


def model() -> Any:
    """A very small Llama with an adapter, so that the rules see what they see in a real run."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=128, hidden_size=32, intermediate_size=64, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, max_position_embeddings=32,
    )  # fmt: skip
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(task_type="CAUSAL_LM", target_modules=["q_proj"]))


def train(make: Callable[[], TrainerCallback], times: Times, *, steps: int, logging_steps: int) -> None:
    """Train once with the callback that ``make`` gives, and add its times to ``times``."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        args = TrainingArguments(
            output_dir=folder, max_steps=steps, logging_steps=logging_steps, per_device_train_batch_size=2,
            learning_rate=1e-3, save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True,
            dataloader_pin_memory=False,
        )  # fmt: skip
        meter = Meter(times)
        companions = Companions(meter)
        trainer = Trainer(
            model=model(), args=args, train_dataset=Rows(512), callbacks=[timed(make(), meter), companions]
        )
        companions.trainer = trainer
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown), batches_timed(meter):
            trainer.train()


def arms() -> dict[str, Callable[[], TrainerCallback]]:
    """The callbacks to measure, by the name in the table."""
    from transformers.integrations.integration_utils import TensorBoardCallback, TrackioCallback

    from lorawatch import LoraWatchCallback

    return {
        "no-op callback": Noop,
        "LoraWatchCallback": LoraWatchCallback,
        "TensorBoardCallback": TensorBoardCallback,
        "TrackioCallback (local)": TrackioCallback,
    }


def table(found: dict[str, tuple[Times, str]]) -> str:
    """The result, as Markdown."""
    lines = [
        "| | logged step, median | mean | p99 | other step, median | mean | p99 |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, (times, problem) in found.items():
        if problem:
            lines.append(f"| {name} | not measured: {problem} | | | | | |")
            continue
        cells = [
            f"{value / 1e3:.1f}"
            for one in (times.logged, times.others)
            for value in (median(one), fmean(one), percentile(one, 0.99))
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def percentile(values: list[int], share: float) -> int:
    """The value below which a share of the values lies."""
    return sorted(values)[int(share * (len(values) - 1))]


def load() -> str:
    """Processes that ran or waited to, over the last minute; this benchmark is about one of them."""
    return f"{os.getloadavg()[0]:.1f}" if hasattr(os, "getloadavg") else "unknown"


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=5, help="times that each arm is run")
    parser.add_argument("--steps", type=int, default=400, help="steps of each run")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    before = load()
    with tempfile.TemporaryDirectory() as home:
        os.environ["TRACKIO_DIR"] = home
        found = {name: (Times(), "") for name in arms()}
        judging = Judging()
        for _ in range(options.rounds):
            for name, make in arms().items():
                times, problem = found[name]
                if problem:
                    continue
                try:
                    # Two kinds of run: a row at each step, and a row at each tenth.
                    with judging.timed():
                        train(make, times, steps=options.steps, logging_steps=1)
                        train(make, times, steps=options.steps, logging_steps=10)
                except Exception as error:
                    found[name] = (times, f"{type(error).__name__}: {str(error)[:100]}")
    judged = 1e6 * judging.seconds / (2 * options.rounds * options.steps)
    rows = len(found["LoraWatchCallback"][0].logged)
    conditions = f"Load average of the machine, which others share: {before} at the beginning, {load()} at the end."
    body = (
        f"{table(found)}\n\n"
        f"Beside the loop LoraWatchCallback takes {judged:.0f} µs of processor time a step for judging rows and times "
        "of steps by all rules; what looking at the machine takes is measured in sampler.md.\n\n"
        "Microseconds of the callback's own time a step: perf_counter_ns around each of its events in a real Trainer "
        f"loop, tiny Llama with LoRA, one thread; {options.rounds} interleaved rounds of {options.steps} steps with "
        f"logging_steps 1 and 10, {rows} logged steps an arm, the first {SKIPPED} steps of a run left out. The "
        "stopwatch itself is part of each figure: what a callback adds is the difference to the no-op. Must hold: "
        "LoraWatchCallback at most 60 on a logged step, at most 12 over the no-op on others. Its recorder of the steps "
        "and its look at each batch are in it; it judges in the loop only where actions ask for it. TrackioCallback "
        f"writes to its local store; nothing is sent. {conditions}\n"
    )
    write("overhead", "Cost inside the training loop", body, "transformers", "torch", "tensorboard", "trackio")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
