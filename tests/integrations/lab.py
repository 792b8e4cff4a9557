# ruff: noqa: S106, S311  (special tokens are no passwords, and dice for a toy language need no secrecy)
"""A real but tiny language model, a tokenizer and data that it can learn: made by code, without the hub.

The language is a Markov chain over made-up words. A base model is trained on one chain, an adapter on another that
shares part of its transitions: the loss starts well above its floor and falls, as in real fine-tuning.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset  # type: ignore[import-untyped]
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

WORDS = 250
LENGTH = 24
SPECIAL = ("<pad>", "<s>", "</s>", "<unk>")
VOCABULARY = WORDS + len(SPECIAL)


@cache
def successors(seed: int, shared: float = 0.8) -> list[list[int]]:
    """Three possible next words of each word; a share of the words goes on as in chain 0."""
    base = random.Random(0)
    chain = [[base.randrange(WORDS) for _ in range(3)] for _ in range(WORDS)]
    if seed:
        own = random.Random(seed)
        chain = [old if own.random() < shared else [own.randrange(WORDS) for _ in range(3)] for old in chain]
    return chain


def sentences(count: int, *, seed: int = 1, draw: int = 0, length: int = LENGTH) -> list[list[int]]:
    """Word numbers of ``count`` sentences of the chain ``seed``."""
    chain, dice = successors(seed), random.Random(1_000 * seed + draw)
    found = []
    for _ in range(count):
        word = dice.randrange(WORDS)
        words = [word]
        while len(words) < length:
            word = chain[word][min(int(dice.expovariate(1.2)), 2)]
            words.append(word)
        found.append(words)
    return found


def tokens(count: int, *, seed: int = 1, draw: int = 0, masked: bool = False) -> Dataset:
    """Sentences as a plain Trainer takes them; ``masked`` hides every label."""
    rows = [[word + len(SPECIAL) for word in words] for words in sentences(count, seed=seed, draw=draw)]
    labels = [[-100] * len(row) for row in rows] if masked else rows
    return Dataset.from_dict({"input_ids": rows, "attention_mask": [[1] * LENGTH] * len(rows), "labels": labels})


def texts(count: int, *, seed: int = 1, draw: int = 0) -> Dataset:
    """Sentences as TRL's SFTTrainer takes them."""
    return Dataset.from_dict(
        {"text": [" ".join(f"w{word}" for word in words) for words in sentences(count, seed=seed, draw=draw)]}
    )


def preferences(count: int) -> Dataset:
    """Pairs for DPO: what is chosen goes on by the chain, what is rejected is random words."""
    dice = random.Random(7)
    rows = sentences(count, length=16)
    return Dataset.from_dict(
        {
            "prompt": [" ".join(f"w{word}" for word in row[:6]) for row in rows],
            "chosen": ["".join(f" w{word}" for word in row[6:]) for row in rows],
            "rejected": ["".join(f" w{dice.randrange(WORDS)}" for _ in row[6:]) for row in rows],
        }
    )


def tokenizer() -> Any:
    """A tokenizer of one token a word."""
    names = [*SPECIAL, *(f"w{word}" for word in range(WORDS))]
    inner = Tokenizer(WordLevel({name: index for index, name in enumerate(names)}, unk_token="<unk>"))
    inner.pre_tokenizer = WhitespaceSplit()  # type: ignore[assignment, unused-ignore]
    made: Any = PreTrainedTokenizerFast  # untyped
    return made(tokenizer_object=inner, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def base_model(*, layers: int = 2, hidden: int = 64, seed: int = 0) -> Any:
    """A small Llama with random weights."""
    set_seed(seed)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=VOCABULARY, hidden_size=hidden, intermediate_size=2 * hidden, num_hidden_layers=layers,
            num_attention_heads=4, num_key_value_heads=4, max_position_embeddings=64,
            pad_token_id=0, bos_token_id=1, eos_token_id=2, tie_word_embeddings=False,
        )
    )  # fmt: skip


def lora(**changes: Any) -> LoraConfig:
    """The adapter's configuration."""
    given: dict[str, Any] = {
        "r": 8, "lora_alpha": 16, "lora_dropout": 0.0, "task_type": "CAUSAL_LM",
        "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"],
    }  # fmt: skip
    return LoraConfig(**given | changes)


def adapted(base: Any = None, **changes: Any) -> Any:
    """``base`` (or a fresh, very small model) with an adapter."""
    base = base if base is not None else base_model(layers=1, hidden=32)
    return get_peft_model(base, lora(**changes))


def arguments(folder: Path, kind: type[TrainingArguments] = TrainingArguments, **changes: Any) -> Any:
    """Training arguments for a short run on the processor, in the installed version's names."""
    given: dict[str, Any] = {
        "output_dir": str(folder), "max_steps": 10, "per_device_train_batch_size": 4, "learning_rate": 1e-3,
        "logging_steps": 1, "save_strategy": "no", "report_to": "none", "use_cpu": True, "seed": 0,
        "dataloader_pin_memory": False,
    } | changes  # fmt: skip
    known = inspect.signature(kind.__init__).parameters
    if "max_length" in given and "max_length" not in known:
        given["max_seq_length"] = given.pop("max_length")  # TRL before 0.16
    return kind(**given)


class InOrder(Trainer):
    """A Trainer that does not shuffle."""

    def _get_train_sampler(self, *args: Any, **kwargs: Any) -> Any:
        rows: Any = self.train_dataset
        return torch.utils.data.SequentialSampler(rows)


def train(
    folder: Path,
    *callbacks: TrainerCallback,
    model: Any = None,
    data: Dataset | None = None,
    evaluation: Dataset | None = None,
    resume: bool = False,
    unshuffled: bool = False,
    **changes: Any,
) -> Trainer:
    """Train with a plain Trainer; returns it when it is done. ``unshuffled`` takes the rows as they stand."""
    trainer = (InOrder if unshuffled else Trainer)(
        model=adapted() if model is None else model,
        args=arguments(folder, **changes),
        train_dataset=tokens(64) if data is None else data,
        eval_dataset=evaluation,
        callbacks=list(callbacks),
    )
    # transformers 4.46 reads the state of its dice from a checkpoint in a way that torch 2.6 began to refuse.
    known: list[Any] = [np.zeros(1).__reduce__()[0], np.ndarray, np.dtype, type(np.dtype(np.uint32))]
    with torch.serialization.safe_globals(known):
        trainer.train(resume_from_checkpoint=resume or None)
    return trainer


def weights(model: Any) -> Mapping[str, torch.Tensor]:
    """A copy of the trained weights."""
    return {name: one.detach().clone() for name, one in model.named_parameters() if one.requires_grad}
