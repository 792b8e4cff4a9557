"""Faults of a card's memory: too little of it, too much asked of it, pieces of it, and what is never given back.

They need a CUDA card and were written without one: nothing that needs it has been run. The tiny base fills no card;
what takes its memory besides, another process or a tensor of the same one, is held for real, so that an allocation
fails where it says so. The rules read the card every ten seconds and the allocator every five, so that these runs last
some minutes.
"""

from __future__ import annotations

import math
import os
import random
import subprocess
import sys
from typing import Any, ClassVar

from lorawatch.findings import Severity
from lorawatch.trainer.faults.contract import Expected, Fault, Row
from lorawatch.trainer.faults.input import pace
from lorawatch.trainer.faults.machine import before_step
from lorawatch.trainer.recipe import Recipe, RecipeError, changed

MIB = 1 << 20


class _OnCard(Fault):
    """A fault of a run that takes its time, so that the readings of the card are many."""

    needs: ClassVar[str] = "cuda"
    waits: ClassVar[bool] = True
    step_seconds: ClassVar[float] = 0.5

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Steps of half a second."""
        pace(trainer, self.step_seconds)


class VramHeadroom(_OnCard):
    """Plain: 2 % of the card are left. Subtle: 8 %."""

    name: ClassVar[str] = "vram-headroom"
    cause: ClassVar[str] = "another process holds most of the card's memory"
    remedy: ClassVar[tuple[str, ...]] = ("is not of this run", "nvidia-smi")

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Less than 10 % free for a minute; critical below 3 %."""
        return (Expected(("mem/headroom",), Severity.WARNING if self.subtle else Severity.CRITICAL),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Three minutes."""
        return changed(recipe, max_steps=360, eval_steps=0.5)

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Let the other process come once the run holds what it needs, and go with it."""
        super().trainer(trainer, recipe)
        held: list[subprocess.Popen[bytes]] = []

        def come() -> None:
            if trainer.state.global_step >= 10 and not held:
                free, total = _free_and_total()
                held.append(_holding(max(free - int((0.08 if self.subtle else 0.02) * total), MIB)))

        before_step(trainer, come)


class _NearlyFullCard(_OnCard):
    """A card on which the usual batch fits, and a long one does not."""

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Measure what a long batch needs, then fill the card so far that it does not fit."""
        super().trainer(trainer, recipe)
        train = trainer.train

        def on_full_card(*given: Any, **named: Any) -> Any:
            import torch  # noqa: PLC0415

            tokens = self.longest(trainer.train_dataset["input_ids"], recipe)
            room = int(self.share * _needed(trainer, recipe.per_device_train_batch_size, tokens))
            torch.cuda.empty_cache()
            free, _ = _free_and_total()
            ballast = torch.empty(max(free - room, MIB), dtype=torch.uint8, device="cuda")
            try:
                return train(*given, **named)
            finally:
                del ballast

        trainer.train = on_full_card

    @property
    def share(self) -> float:
        """What is free, as a share of what a batch of the longest rows needs."""
        return 0.9 if self.subtle else 0.67

    def longest(self, rows: list[list[int]], recipe: Recipe) -> int:
        """Tokens of the longest row that is to come."""
        return max(map(len, rows))


class GrowingSequences(_NearlyFullCard):
    """Plain: the card is full at two thirds of what the longest batch needs. Subtle: at nine tenths."""

    name: ClassVar[str] = "growing-sequences"
    cause: ClassVar[str] = "the rows are sorted by length and taken in their order; the card has no room for the last"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told ahead, by the growth of the batches; the card is short of memory besides."""
        return (Expected(("mem/oom-forecast",), Severity.WARNING, 50, roots=("mem/oom-forecast", "mem/headroom")),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """In their order, each once."""
        return changed(
            recipe, train_sampling_strategy="sequential", per_device_train_batch_size=64, max_steps=200,
            train_rows=64 * 200, eval_steps=0.5,
        )  # fmt: skip

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Sort them."""
        return sorted(rows, key=tokens_of)


class OomByLongBatches(_NearlyFullCard):
    """Plain: the card is full at four fifths of what a full batch needs. Subtle: at 19 of 20 parts."""

    name: ClassVar[str] = "oom-by-long-batches"
    cause: ClassVar[str] = "rows of very different lengths in any order: the card has room for most batches, not all"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told ahead, by what a batch of ``max_length`` would need, unless the long one comes before."""
        return (Expected(("mem/oom-forecast",), Severity.WARNING, 50, roots=("mem/oom-forecast", "mem/headroom")),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """As long as the tiny base can read."""
        return changed(
            recipe, max_length=512, per_device_train_batch_size=16, max_steps=300, train_rows=16 * 300, eval_steps=0.5
        )

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Put earlier exchanges in front: lengths are log-normal, a median of 90 tokens, and one in 2,600 over 410."""
        return conversations(rows, [min(dice.lognormvariate(math.log(90), 0.45), 480.0) for _ in rows])

    @property
    def share(self) -> float:
        """What is free, as a share of what a full batch needs."""
        return 0.95 if self.subtle else 0.8

    def longest(self, rows: list[list[int]], recipe: Recipe) -> int:
        """Tokens of a row that is cut off."""
        return recipe.max_length


def _needed(trainer: Any, rows: int, tokens: int) -> int:
    """Bytes by which torch's peak rises when it trains on a batch of that size; nothing is learnt from it."""
    import torch  # noqa: PLC0415

    model = trainer.model.to("cuda")
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    batch = torch.ones((rows, tokens), dtype=torch.long, device="cuda")
    with torch.autocast("cuda", torch.bfloat16, enabled=trainer.args.bf16):
        loss = model(input_ids=batch, attention_mask=batch, labels=batch).loss
    loss.backward()
    model.zero_grad(set_to_none=True)
    needed = int(torch.cuda.max_memory_allocated()) - int(before)
    torch.cuda.reset_peak_memory_stats()
    return needed


class AllocatorFragmentation(_OnCard):
    """Plain: the card is full of pieces every 50 steps. Subtle: every 125."""

    name: ClassVar[str] = "allocator-fragmentation"
    cause: ClassVar[str] = "a scratch tensor that is a little larger at each step fits into no piece that torch keeps"
    remedy: ClassVar[tuple[str, ...]] = ("expandable_segments", "torch_empty_cache_steps")

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told once the allocator had to give its pieces back and try again."""
        return (Expected(("mem/fragmentation",), Severity.WARNING, 120 if self.subtle else 45),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Long enough for a retry."""
        return changed(recipe, max_steps=240, eval_steps=0.5)

    def prepare(self, recipe: Recipe) -> Recipe:
        """Without expandable segments, which have no pieces.

        Raises:
            RecipeError: They are on.
        """
        for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"):
            if "expandable_segments:True" in os.environ.get(name, ""):
                raise RecipeError(f"--inject allocator-fragmentation: {name} asks for expandable segments; take it out")
        return recipe

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Ask for a scratch tensor at each step, and let it go."""
        import torch  # noqa: PLC0415

        super().trainer(trainer, recipe)
        share = 0.008 if self.subtle else 0.02

        def scratch() -> None:
            _, total = _free_and_total()
            size = int(share * total) + 4 * MIB * trainer.state.global_step
            torch.empty(size, dtype=torch.uint8, device="cuda")

        before_step(trainer, scratch)


class DeviceMemoryLeak(_OnCard):
    """Plain: what each linear layer of the last MLP gives is kept, some 20 MiB a step. Subtle: at every third step."""

    name: ClassVar[str] = "device-memory-leak"
    cause: ClassVar[str] = "a hook for debugging keeps the outputs of layers in a list, on the card"
    remedy: ClassVar[tuple[str, ...]] = ("look for what keeps tensors", "detach", ".item()")

    def __init__(self, amount: Any = "plain") -> None:
        super().__init__(amount)
        self.kept: list[Any] = []

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Growth over 200 steps after the first 20."""
        return (Expected(("mem/leak",), Severity.WARNING, 220, roots=("mem/leak", "mem/oom-forecast")),)

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """Batches that make it some MiB a step."""
        return changed(recipe, max_steps=400, per_device_train_batch_size=64, eval_steps=0.5)

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Hook the layers."""
        import torch  # noqa: PLC0415

        super().trainer(trainer, recipe)
        linear = [
            module
            for name, module in trainer.model.named_modules()
            if isinstance(module, torch.nn.Linear) and "mlp" in name
        ]

        def keep(module: Any, _: Any, output: Any) -> None:
            if module.training and (not self.subtle or trainer.state.global_step % 3 == 0):
                self.kept.append(output)

        for module in linear[-9:]:  # three projections, each with its A and B
            module.register_forward_hook(keep)


def tokens_of(row: Row) -> float:
    """Tokens of a row, about: 7 a message and 1.25 a word, by the tiny base's tokenizer and template."""
    messages = _messages(row)
    return 7.0 * len(messages) + 1.25 * sum(len(message["content"].split()) for message in messages)


def conversations(rows: list[Row], tokens: list[float]) -> list[Row]:
    """The rows, each with as many exchanges of other rows in front as make it so many tokens long."""
    spoken = [[message for message in _messages(row) if message["role"] != "system"] for row in rows]
    made = []
    for number, (row, wanted) in enumerate(zip(rows, tokens, strict=True)):
        room, said, other = wanted - tokens_of(row), list[dict[str, str]](), number
        while room > 0 and len(said) < 2 * len(rows):
            other = (other + 1) % len(rows)
            room -= tokens_of({"messages": spoken[other]})
            said += spoken[other] if room >= 0 else []
        made.append(_after(said, row))
    return made


def _messages(row: Row) -> list[dict[str, str]]:
    """The messages of a chat, or of prompt and completion; a text counts as one."""
    if "messages" in row:
        return list(row["messages"])
    parts = [row[column] for column in ("prompt", "completion", "text") if column in row]
    return [one for part in parts for one in ([{"role": "user", "content": part}] if isinstance(part, str) else part)]


def _after(said: list[dict[str, str]], row: Row) -> Row:
    """The row with what was said before in front of it, behind its own system message."""
    column = "messages" if "messages" in row else "prompt"
    own = row.get(column)
    if not said or not isinstance(own, list):
        return row
    system = 1 if own[0]["role"] == "system" else 0
    return {**row, column: [*own[:system], *said, *own[system:]]}


def _free_and_total() -> tuple[int, int]:
    """Bytes of the card that are free, and all of them."""
    import torch  # noqa: PLC0415

    free, total = torch.cuda.mem_get_info()
    return int(free), int(total)


_HOLD = """
import os, sys, time, torch
held = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device="cuda").fill_(1)
torch.cuda.synchronize()
while os.getppid() == int(sys.argv[2]):
    time.sleep(1)
"""


def _holding(amount: int) -> subprocess.Popen[bytes]:
    """A process that holds so many bytes of the card, its own context among them, as long as this one lives."""
    context = 512 * MIB
    command = [sys.executable, "-c", _HOLD, str(max(amount - context, MIB)), str(os.getpid())]
    return subprocess.Popen(command)  # noqa: S603  (this interpreter, with numbers)
