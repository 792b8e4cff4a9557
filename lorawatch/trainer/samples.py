"""Sample generations while a run trains: a few fixed prompts, answered greedily, written to ``samples.jsonl``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback

FILE_NAME = "samples.jsonl"


@torch.no_grad()
def generate(model: Any, tokenizer: Any, prompts: Sequence[list[dict[str, str]]], *, max_new_tokens: int) -> list[str]:
    """Greedy replies to chat prompts.

    The model's mode is as it was afterwards; no random number is drawn.

    Args:
        model: A causal language model.
        tokenizer: Its tokenizer, with a chat template.
        prompts: Messages, each list ending with the user's.
        max_new_tokens: Tokens of a reply at most.

    Returns:
        The replies, without special tokens, in the order of the prompts.
    """
    side, tokenizer.padding_side = tokenizer.padding_side, "left"
    training, cached = model.training, getattr(model.config, "use_cache", None)
    try:
        model.eval()
        if cached is False:
            model.config.use_cache = True
        texts = [tokenizer.apply_chat_template(one, tokenize=False, add_generation_prompt=True) for one in prompts]
        batch = tokenizer(texts, return_tensors="pt", padding=True, add_special_tokens=False).to(model.device)
        batch.pop("token_type_ids", None)
        made = model.generate(
            **batch, max_new_tokens=max_new_tokens, do_sample=False, pad_token_id=tokenizer.pad_token_id
        )
        replies = tokenizer.batch_decode(made[:, batch["input_ids"].shape[1] :], skip_special_tokens=True)
        return [reply.strip() for reply in replies]
    finally:
        tokenizer.padding_side = side
        model.train(training)
        if cached is False:
            model.config.use_cache = False


class SampleCallback(TrainerCallback):
    """Writes replies to a few prompts every ``steps`` steps, and at the end.

    Args:
        folder: The run's folder.
        tokenizer: The model's tokenizer.
        prompts: Messages.
        steps: Steps between samples.
        max_new_tokens: Tokens of a reply at most.
    """

    def __init__(
        self, folder: Path, tokenizer: Any, prompts: Sequence[list[dict[str, str]]], *, steps: int, max_new_tokens: int
    ) -> None:
        self.file = folder / FILE_NAME
        self.tokenizer = tokenizer
        self.prompts = prompts
        self.steps = steps
        self.max_new_tokens = max_new_tokens

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Sample, where it is time to."""
        if state.global_step % self.steps and state.global_step != state.max_steps:
            return
        if not state.is_world_process_zero:
            return
        replies = generate(kwargs["model"], self.tokenizer, self.prompts, max_new_tokens=self.max_new_tokens)
        with self.file.open("a", encoding="utf-8") as lines:
            for prompt, reply in zip(self.prompts, replies, strict=True):
                row = {"step": state.global_step, "prompt": prompt[-1]["content"], "reply": reply}
                lines.write(json.dumps(row, ensure_ascii=False) + "\n")
