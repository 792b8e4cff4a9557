"""Faults of a card's memory: too little of it, too much asked of it, pieces of it, and what is never given back.

They need a CUDA card, but for growing sequences, and were written without one: nothing of that has been run. The
tiny base fills no card; what takes its memory besides, another process or a tensor of the same one, is held for real,
so that an allocation fails where it says so. The rules read the card every ten seconds and the allocator every five, so
that these runs last some minutes.
"""

from __future__ import annotations

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
LONGEST_TOKENS = 480
"""Tokens of the longest rows: the tiny base knows 512 positions."""


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


class GrowingSequences(Fault):
    """Plain: rows of up to 480 tokens at the end. Subtle: of up to 240."""

    name: ClassVar[str] = "growing-sequences"
    cause: ClassVar[str] = "the rows are sorted by length and taken in their order, so that the longest come last"

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """A forecast from torch's allocator, where a card is about to be full: see :class:`OomByLongBatches`."""
        return ()

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """In their order."""
        return changed(recipe, train_sampling_strategy="sequential", max_length=512)

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """Sorted, the later ones with ever more of what was said before."""
        return growing(rows, LONGEST_TOKENS // 2 if self.subtle else LONGEST_TOKENS)


class OomByLongBatches(GrowingSequences):
    """Plain: the card is full at two thirds of the longest batch. Subtle: at nine tenths."""

    name: ClassVar[str] = "oom-by-long-batches"
    cause: ClassVar[str] = "rows sorted by length need more memory in the end than a nearly full card has left"
    needs: ClassVar[str] = "cuda"
    waits: ClassVar[bool] = True
    step_seconds: ClassVar[float] = 0.5

    def expected(self, recipe: Recipe) -> tuple[Expected, ...]:
        """Told ahead, by the growth of the batches; the card is short of memory besides."""
        return (
            Expected(("mem/oom-forecast",), Severity.WARNING, 50, roots=("mem/oom-forecast", "mem/headroom")),
        )  # fmt: skip

    def misconfigure(self, recipe: Recipe) -> Recipe:
        """In their order, in larger batches: one epoch."""
        batch, steps = 32, 200
        return changed(
            super().misconfigure(recipe), per_device_train_batch_size=batch, max_steps=steps, train_rows=batch * steps,
            eval_steps=0.5,
        )  # fmt: skip

    def rows(self, rows: list[Row], dice: random.Random) -> list[Row]:
        """As many as the run takes, so that the longest are among them."""
        return growing(rows, LONGEST_TOKENS)

    def trainer(self, trainer: Any, recipe: Recipe) -> None:
        """Measure what the longest batch needs, then fill the card so far that it does not fit."""
        pace(trainer, self.step_seconds)
        train = trainer.train

        def on_full_card(*given: Any, **named: Any) -> Any:
            import torch  # noqa: PLC0415

            need = self._longest_batch_bytes(trainer, recipe)
            torch.cuda.empty_cache()
            free, _ = _free_and_total()
            room = int((0.9 if self.subtle else 0.67) * need)
            ballast = torch.empty(max(free - room, MIB), dtype=torch.uint8, device="cuda")
            try:
                return train(*given, **named)
            finally:
                del ballast

        trainer.train = on_full_card

    def _longest_batch_bytes(self, trainer: Any, recipe: Recipe) -> int:
        """What torch's peak rises by when it trains on a batch as long as the last; nothing is learnt from it."""
        import torch  # noqa: PLC0415

        model = trainer.model.to("cuda")
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        size = (recipe.per_device_train_batch_size, max(len(row) for row in trainer.train_dataset["input_ids"]))
        tokens = torch.ones(size, dtype=torch.long, device="cuda")
        with torch.autocast("cuda", torch.bfloat16, enabled=trainer.args.bf16):
            loss = model(input_ids=tokens, attention_mask=tokens, labels=tokens).loss
        loss.backward()
        model.zero_grad(set_to_none=True)
        peak = int(torch.cuda.max_memory_allocated()) - int(before)
        torch.cuda.reset_peak_memory_stats()
        return peak


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
    """Plain: what each linear layer of the last block gives is kept. Subtle: at every third step only."""

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
        linear = [module for module in trainer.model.modules() if isinstance(module, torch.nn.Linear)]

        def keep(module: Any, _: Any, output: Any) -> None:
            if module.training and (not self.subtle or trainer.state.global_step % 3 == 0):
                self.kept.append(output)

        for module in linear[-22:]:  # seven projections with their A and B, and the head
            module.register_forward_hook(keep)


def growing(rows: list[Row], longest: int) -> list[Row]:
    """The rows by length, the later ones with ever more of the rows before them in front, as a conversation has.

    Args:
        rows: Prompt–completion rows or chats.
        longest: Tokens that the last ones have, about; none has more, but for rows that are longer by themselves.
    """
    by_length = sorted(rows, key=lambda row: _tokens(_messages(row)))
    without_system = [[one for one in _messages(row) if one["role"] != "system"] for row in by_length]
    grown = []
    for number, row in enumerate(by_length):
        room, said = longest * number / len(rows) - _tokens(_messages(row)), list[dict[str, str]]()
        for other in range(number):  # the short ones, so that the length comes out
            more = without_system[(other + number) % (number // 2 + 1)]
            room -= _tokens(more)
            if room < 0:
                break
            said += more
        grown.append(_after(said, row))
    return grown


def _messages(row: Row) -> list[dict[str, str]]:
    return list(row["messages"]) if "messages" in row else [*row["prompt"], *row["completion"]]


def _tokens(messages: list[dict[str, str]]) -> float:
    """Their tokens, about: 7 a message and 1.25 a word, by the tiny base's tokenizer and template."""
    return 7.0 * len(messages) + 1.25 * sum(len(message["content"].split()) for message in messages)


def _after(said: list[dict[str, str]], row: Row) -> Row:
    """The row with what was said before in front of it, behind its own system message."""
    column = "messages" if "messages" in row else "prompt"
    own = list(row[column])
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
