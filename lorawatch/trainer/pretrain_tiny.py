"""Pre-train the `tiny` base model from scratch on the text of the invented world (`world.py`).

The result is a Llama of about 1.1 M parameters with a byte-level BPE tokenizer and a ChatML-like chat template. It
is committed beside this file, so that training works without a network; run this only to make it anew::

    python -m lorawatch.trainer.pretrain_tiny --output DIR

It takes about 12 minutes on one CPU core. The committed base had 3,200 steps, then 500 with ``--start``, after signs
were added to the world's text. The seeds are fixed, but float sums depend on the number of threads and on the CPU, so a
second run does not give the same bytes.
"""

from __future__ import annotations

import argparse
import json
import math
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from random import Random
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from tokenizers.trainers import BpeTrainer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lorawatch.trainer import world
from lorawatch.trainer.builtin_data import general_probes, is_right

TINY_BASE = Path(__file__).parent / "tiny_base"
"""The committed folder of the tiny base model."""

PAD, BOS, TURN, EOS = "<|pad|>", "<|bos|>", "<|im_start|>", "<|im_end|>"

# ChatML with a begin token, and no line break after the last turn: a chat ends with the eos token. The generation
# markers let TRL mask everything but the assistant's replies (SFTConfig.assistant_only_loss).
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if not loop.first %}{{ '\\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['role'] == 'assistant' %}"
    "{% generation %}{{ message['content'] + '<|im_end|>' }}{% endgeneration %}"
    "{% else %}{{ message['content'] + '<|im_end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\\n<|im_start|>assistant\\n' }}{% endif %}"
)

VOCABULARY = 1024
CONTEXT = 512
SEQUENCE = 256  # longer than nearly every chat, so that positions up to here are trained
BATCH = 8
STEPS = 3600
WARMUP = 100
PEAK_LR = 3e-3
CHAT_SHARE = 0.75
LABEL_SMOOTHING = 0.1
"""Keeps it as unsure of words that it never saw together as a large model is: without it, text of another domain starts
at a loss near that of guessing, and no real fine-tuning run starts there."""


def train_tokenizer(seed: int = 0) -> PreTrainedTokenizerFast:
    """Train the byte-level BPE tokenizer on 12,000 texts of the world."""
    rng = Random(seed)  # noqa: S311 (text, not cryptography)
    texts: list[str] = []
    for _ in range(6000):
        texts.append(world.passage(rng))
        texts.extend(message["content"] for message in world.chat(rng))
    texts.extend(["system", "user", "assistant"] * 500)
    backend = Tokenizer(BPE())
    backend.pre_tokenizer = ByteLevel(add_prefix_space=False)
    backend.decoder = ByteLevelDecoder()
    backend.train_from_iterator(
        texts,
        BpeTrainer(
            vocab_size=VOCABULARY,
            special_tokens=[PAD, BOS, TURN, EOS],
            initial_alphabet=ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(  # type: ignore[no-untyped-call, unused-ignore]
        tokenizer_object=backend,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        additional_special_tokens=[TURN],
        model_input_names=["input_ids", "attention_mask"],
        model_max_length=CONTEXT,
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
    )


def new_model(tokenizer: PreTrainedTokenizerFast, seed: int = 0) -> LlamaForCausalLM:
    """Make the untrained model, in float32."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=128,
        intermediate_size=352,
        num_hidden_layers=5,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        initializer_range=0.05,
        pad_token_id=tokenizer.get_vocab()[PAD],
        bos_token_id=tokenizer.get_vocab()[BOS],
        eos_token_id=tokenizer.get_vocab()[EOS],
    )
    return LlamaForCausalLM(config)


def batches(tokenizer: PreTrainedTokenizerFast, seed: int) -> Iterator[torch.Tensor]:
    """Yield packed token ids without end, shaped (BATCH, SEQUENCE): plain passages and chats, mixed."""
    rng = Random(seed)  # noqa: S311 (text, not cryptography)
    ids: list[int] = []
    while True:
        while len(ids) < BATCH * SEQUENCE:
            if rng.random() < CHAT_SHARE:
                text = tokenizer.apply_chat_template(world.chat(rng), tokenize=False)
            else:
                text = BOS + world.passage(rng) + EOS
            ids.extend(tokenizer.encode(str(text), add_special_tokens=False))
        yield torch.tensor(ids[: BATCH * SEQUENCE]).view(BATCH, SEQUENCE)
        ids = ids[BATCH * SEQUENCE :]


def learning_rate(step: int, progress: float) -> float:
    """Warm up over WARMUP steps, then fall as a cosine to 2 % of PEAK_LR at progress 1."""
    warm = min(1.0, (step + 1) / WARMUP)
    return PEAK_LR * warm * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(1.0, progress))))


def pretrain(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, steps: int = STEPS, minutes: float = math.inf
) -> None:
    """Train the model in place on all tokens, for so many steps or minutes, whichever ends first."""
    decayed = [p for p in model.parameters() if p.ndim > 1]
    plain = [p for p in model.parameters() if p.ndim == 1]
    groups = [{"params": decayed, "weight_decay": 0.1}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=PEAK_LR, betas=(0.9, 0.95), fused=True)
    model.train()
    start = time.monotonic()
    for step, ids in enumerate(batches(tokenizer, seed=1)):
        elapsed = (time.monotonic() - start) / 60
        progress = max(step / steps, elapsed / minutes)
        if progress >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, progress)
        with torch.autocast("cpu", dtype=torch.bfloat16):  # the weights and their updates stay in float32
            logits = model(input_ids=ids).logits
        loss = torch.nn.functional.cross_entropy(
            logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten(), label_smoothing=LABEL_SMOOTHING
        )
        loss.backward()  # type: ignore[no-untyped-call, unused-ignore]
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0:
            print(f"step {step:5d}  loss {loss.item():.3f}  {elapsed:.1f} min", flush=True)  # noqa: T201


@torch.no_grad()
def reply(model: Any, tokenizer: PreTrainedTokenizerFast, messages: list[world.Message]) -> str:
    """Answer a chat greedily. A reply that does not end with eos within 48 tokens ends with `...`."""
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    ids = torch.tensor([tokenizer.encode(str(text), add_special_tokens=False)])
    output = model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=48, do_sample=False)[
        0, ids.shape[1] :
    ]
    ended = output[-1].item() == tokenizer.eos_token_id
    return str(tokenizer.decode(output, skip_special_tokens=True)) + ("" if ended else "...")


def score(model: Any, tokenizer: PreTrainedTokenizerFast, count: int = 120) -> dict[str, float]:
    """Share of general probes answered right, by ability and in `all`; printed with the wrong answers."""
    model.train(False)
    right: Counter[str] = Counter()
    total: Counter[str] = Counter()
    for probe in general_probes(count):
        answer = reply(model, tokenizer, probe["messages"])
        good = is_right(probe, answer)
        for key in (probe["ability"], "all"):
            total[key] += 1
            right[key] += good
        if not good:
            print(f"wrong: {probe['messages'][-1]['content']} -> {answer} (want {probe['answer']})")  # noqa: T201
    return {key: right[key] / total[key] for key in total}


def save(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the model in bfloat16 and the tokenizer, so that transformers 4.46 and 5 both read them."""
    model.generation_config.do_sample = False
    for parameter in model.parameters():
        parameter.data = parameter.data.to(torch.bfloat16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 writes the template to a file of its own, its own names for the dtype and the special tokens,
    # and the version that wrote; 4.46 knows none of these.
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    config = json.loads((folder / "config.json").read_text())
    config["torch_dtype"] = "bfloat16"
    config["rope_theta"] = 10000.0
    config.pop("transformers_version", None)
    _write_json(folder / "config.json", config)
    generation = json.loads((folder / "generation_config.json").read_text())
    generation.pop("transformers_version", None)
    _write_json(folder / "generation_config.json", generation)
    _write_json(
        folder / "tokenizer_config.json",
        {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "pad_token": PAD,
            "bos_token": BOS,
            "eos_token": EOS,
            "additional_special_tokens": [TURN],
            "model_input_names": ["input_ids", "attention_mask"],
            "model_max_length": CONTEXT,
            "clean_up_tokenization_spaces": False,
            "chat_template": CHAT_TEMPLATE,
        },
    )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


def main() -> None:
    """Train, save and score the tiny base model."""
    parser = argparse.ArgumentParser(description="Pre-train lorawatch's tiny base model from scratch.")
    parser.add_argument("--output", type=Path, default=TINY_BASE, help="folder to write (default: the committed one)")
    parser.add_argument(
        "--minutes", type=float, default=math.inf, help="stop after so many minutes (default: no limit)"
    )
    parser.add_argument("--steps", type=int, default=STEPS, help="optimizer steps (default: %(default)s)")
    parser.add_argument("--start", type=Path, help="go on from a base that was made before, with its tokenizer")
    options = parser.parse_args()
    if options.start is None:
        tokenizer = train_tokenizer()
        model = new_model(tokenizer)
    else:
        tokenizer = PreTrainedTokenizerFast.from_pretrained(options.start)
        model = LlamaForCausalLM.from_pretrained(options.start, dtype=torch.float32)
    print(f"{model.num_parameters():,} parameters, {len(tokenizer)} tokens")  # noqa: T201
    pretrain(model, tokenizer, options.steps, options.minutes)
    save(model, tokenizer, options.output)
    saved = LlamaForCausalLM.from_pretrained(options.output, dtype=torch.float32)
    for ability, share in score(saved, tokenizer).items():
        print(f"{ability}: {share:.0%} of the general probes right")  # noqa: T201


if __name__ == "__main__":
    main()
