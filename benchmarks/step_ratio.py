"""How much longer a training step takes with the callback: A/B in one process, on a real training loop.

The same model is trained in short runs, with and without the callback in turn, the order changed each time; a stopwatch
takes the time from step to step. Usage: ``python benchmarks/step_ratio.py [--rounds 24] [--steps 60]``.
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
from statistics import median
from typing import Any

os.environ |= {"HF_HUB_OFFLINE": "1"}

import torch
from overhead import load
from results_file import write
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

SKIPPED = 5
LENGTH = 64


class Rows(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random tokens."""

    def __len__(self) -> int:
        return 100_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        row = torch.randint(0, 512, (LENGTH,), generator=torch.Generator().manual_seed(index))
        return {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row}


class Stopwatch(TrainerCallback):
    """Seconds from step to step."""

    def __init__(self) -> None:
        self.marks: list[float] = []

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Take the time."""
        self.marks.append(time.perf_counter())

    def steps(self) -> list[float]:
        """The times of the steps, without the first ones."""
        return [after - before for before, after in zip(self.marks, self.marks[1:], strict=False)][SKIPPED:]


def model() -> Any:
    """A small Llama with an adapter, whose step takes some 50 ms on one core: a tenth of a usual one on a GPU."""
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=512, hidden_size=192, intermediate_size=512, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128,
    )  # fmt: skip
    return get_peft_model(LlamaForCausalLM(config), LoraConfig(task_type="CAUSAL_LM", target_modules="all-linear"))


def train(made: Any, steps: int, *, watched: bool) -> list[float]:
    """Train for so many steps; gives the time of each."""
    from lorawatch import LoraWatchCallback

    stopwatch = Stopwatch()
    callbacks: list[TrainerCallback] = [stopwatch, *([LoraWatchCallback()] if watched else [])]
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=steps, logging_steps=1, per_device_train_batch_size=4, learning_rate=1e-4,
            save_strategy="no", report_to="none", use_cpu=True, disable_tqdm=True, dataloader_pin_memory=False,
        )  # fmt: skip
        trainer = Trainer(model=made, args=args, train_dataset=Rows(), callbacks=callbacks)
        shown = io.StringIO()
        with contextlib.redirect_stdout(shown), contextlib.redirect_stderr(shown):
            trainer.train()
    return stopwatch.steps()


def main() -> None:
    """Measure, print and keep the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=24)
    parser.add_argument("--steps", type=int, default=60)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    before, made = load(), model()
    times: dict[bool, list[float]] = {True: [], False: []}
    ratios: list[float] = []
    train(made, options.steps, watched=True)  # what is loaded and compiled once is loaded now
    for turn in range(options.rounds):
        found = {}
        for watched in (True, False) if turn % 2 else (False, True):
            found[watched] = train(made, options.steps, watched=watched)
            times[watched] += found[watched]
        ratios.append(median(found[True]) / median(found[False]))
    ratios.sort()
    ratio = median(times[True]) / median(times[False])
    low, high = ratios[len(ratios) // 4], ratios[3 * len(ratios) // 4]
    body = (
        "| | without | with | ratio of the medians | ratio in each round, middle half |\n|---|---|---|---|---|\n"
        f"| step, median | {1e3 * median(times[False]):.2f} ms | {1e3 * median(times[True]):.2f} ms | {ratio:.4f} | "
        f"{low:.4f} to {high:.4f} |\n\n"
        f"{options.rounds} rounds of {options.steps} steps each way, interleaved, one row logged a step, all rules on; "
        f"a small Llama with LoRA on one core, the first {SKIPPED} steps of each run left out. Must hold: at most "
        f"1.002 on the median. Load average: {before} at the beginning, {load()} at the end.\n"
    )
    write("step_ratio", "A training step with the callback and without", body, "transformers", "torch")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
