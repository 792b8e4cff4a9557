"""Real work for a card: a language model with random weights and an adapter, and memory held by another process."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

GIB = 1 << 30
VOCABULARY = 32_000


def model(*, layers: int = 16, hidden: int = 2048) -> Any:
    """A Llama of about 1.1 billion parameters (fewer with other sizes) in bf16, with an adapter of rank 16."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=4 * hidden, num_hidden_layers=layers,
        num_attention_heads=hidden // 64, num_key_value_heads=hidden // 64, max_position_embeddings=32_768,
    )  # fmt: skip
    with torch.device("cuda"):
        base: Any = LlamaForCausalLM(config)
    return get_peft_model(base.to(torch.bfloat16), LoraConfig(task_type="CAUSAL_LM", r=16, target_modules="all-linear"))


class Tokens(torch.utils.data.Dataset[dict[str, torch.Tensor]]):
    """Random tokens: row ``i`` has ``length(i)`` of them; ``before`` is done for each row."""

    def __init__(self, length: Callable[[int], int], before: Callable[[], object] = lambda: None) -> None:
        self._length, self._before = length, before

    def __len__(self) -> int:
        return 1_000_000

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        self._before()
        dice = torch.Generator().manual_seed(index)
        row = torch.randint(0, VOCABULARY, (self._length(index),), generator=dice)
        return {"input_ids": row, "attention_mask": torch.ones_like(row), "labels": row}


class InOrder(Trainer):
    """A Trainer that takes the rows as they stand."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        rows: Any = self.train_dataset
        return torch.utils.data.SequentialSampler(rows)


def trainer(folder: Any, made: Any, data: Any, *callbacks: Any, **changes: Any) -> InOrder:
    """A Trainer on the card."""
    given: dict[str, Any] = {
        "output_dir": str(folder), "per_device_train_batch_size": 2, "max_steps": 60, "bf16": True,
        "learning_rate": 2e-4, "logging_steps": 5, "save_strategy": "no", "report_to": "none", "disable_tqdm": True,
    }  # fmt: skip
    return InOrder(model=made, args=TrainingArguments(**given | changes), train_dataset=data, callbacks=list(callbacks))


_HOLDER = """
import sys, torch
held = torch.empty(int(sys.argv[1]), dtype=torch.uint8, device="cuda").fill_(1)
torch.cuda.synchronize()
print("held", flush=True)
sys.stdin.read()
"""


@contextmanager
def held_by_another(amount: int) -> Iterator[int]:
    """Another process that holds ``amount`` bytes of the card; gives its pid."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLDER, str(amount)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdin is not None
    try:
        assert process.stdout.readline().strip() == "held"
        yield process.pid
    finally:
        process.stdin.close()
        process.wait(60)


def free_and_total() -> tuple[int, int]:
    """Bytes of the card that are free, and all of them."""
    free, total = torch.cuda.mem_get_info()
    return int(free), int(total)
