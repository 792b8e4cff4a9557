"""Greedy replies of a model to chat prompts, for the built-in probes before and after training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


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
