"""Greedy replies of a model while it trains, and the base model's beside them: a :class:`SampleReading` at a time.

The base model is inside: PEFT's ``disable_adapter()`` switches the adapter off. What is looked at is left as it was:
random states, the mode of each module, what trains, the generation configuration, the state of rotary embeddings.
Only greedy decoding in evaluation mode takes place, under the Trainer's own autocast.
"""

from __future__ import annotations

import inspect
import random
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import GenerationConfig

from lorawatch.lora.probes import (
    MAX_PROMPT_TOKENS,
    Probe,
    ProbesError,
    ProbeSet,
    built_in,
    read_probes,
    task_probes,
)
from lorawatch.records import Sample, SampleReading

MOST_NEW_TOKENS = 128
"""New tokens of a reply at most."""
LEAST_NEW_TOKENS = 32
"""New tokens of a reply to a task prompt that are always allowed."""
GENERAL_NEW_TOKENS = 32
"""New tokens of a reply to a general question: a number or a word, with a sentence around it."""
LEAST_PROMPTS = 6
"""Task prompts that are asked when time is short."""
LEAST_PASSAGES = 16
"""Passages that are read when time is short."""
MOST_ROWS = 16
"""Rows of a batch at most."""
MOST_REFERENCE_TOKENS = 128
"""Tokens of a reference reply that the KL divergence is taken on."""
MAX_PASSAGE_TOKENS = 256
"""Tokens of a passage."""
LOGIT_BYTES = 256 * 2**20
"""Bytes of logits that a batch may make, in fp32; half of the free memory of a card where that is less."""
CHUNK = 64
"""Positions whose distributions are compared at once."""
TRIAL_TOKENS = 4
"""New tokens of the trial by which the first look's cost is told beforehand."""
_CHANGED_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")
"""Ways to initialise LoRA that change the base weight, so that switching the adapter off does not give the base."""


@dataclass(slots=True)
class _Cost:
    """Seconds of each part of a look, by unit."""

    prompt: float = 0.0
    general: float = 0.0
    passage: float = 0.0

    def of(self, prompts: int, passages: int, general: int) -> float:
        return self.prompt * prompts + self.passage * passages + self.general * general


@dataclass(slots=True)
class _Base:
    """What the base model says, taken once."""

    task: list[_Reply] = field(default_factory=list)
    general: list[_Reply] = field(default_factory=list)
    passages: list[tuple[float, int]] = field(default_factory=list)


@dataclass(slots=True)
class _Reply:
    """One reply: new token ids without the end token, whether it ended, and its text."""

    ids: list[int]
    ended: bool
    text: str
    logprob: float | None = None


class GenerationLooks:
    """Looks at what a model says, every so many steps, within a share of the wall time.

    A look costs what it costs on this machine: a short trial tells it before the first one, and each look before the
    next. Where a look would take more than its share, it asks fewer prompts first, then it waits.

    Args:
        probes: What is asked.
        every: Steps between two looks, at least.
        share: Share of the wall time since the first call that looks may take; infinity for no limit.
        max_new_tokens: New tokens of a reply at most; less where the references are short.
        mixed_precision: ``bf16``, ``fp16`` or ``no``, as the Trainer trains.
        clock: Seconds, monotonic.
        wall: Unix time in seconds.

    Attributes:
        why_not: Why no look is taken, for a person; "" while looks are taken, or may be.
        why_no_base: Why the base model's side is missing, for a person; "" where it is there.
        seconds: Seconds that looks took so far.
    """

    def __init__(
        self,
        probes: ProbeSet,
        *,
        every: int = 100,
        share: float = 0.02,
        max_new_tokens: int = MOST_NEW_TOKENS,
        mixed_precision: str = "no",
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.why_not = ""
        self.why_no_base = ""
        self.seconds = 0.0
        self._probes = probes
        self._every = max(every, 1)
        self._share = share
        self._most = min(max_new_tokens, MOST_NEW_TOKENS)
        self._precision = mixed_precision
        self._clock = clock
        self._wall = wall
        self._began: float | None = None
        self._next = self._every
        self._cost: _Cost | None = None
        self._base: _Base | None = None

    def look(self, model: Any, tokenizer: Any, step: int) -> SampleReading | None:
        """Look at the model, if a look is due and there is time for it; None otherwise. Never raises an ``Exception``.

        To be called between two optimizer steps, in the thread that trains: generating waits for the device.
        """
        now = self._clock()
        if self._began is None:
            self._began = now
        if self.why_not or step < self._next or (self._cost is not None and self._plan() is None):
            return None
        try:
            return self._look(model, tokenizer, step)
        except torch.cuda.OutOfMemoryError:
            self.why_not = f"no memory was left for sample generations at step {step}; training goes on without them"
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
        except Exception as error:
            self.why_not = f"sample generations failed at step {step}: {type(error).__name__}: {error}"[:300]
        return None

    def _look(self, model: Any, tokenizer: Any, step: int) -> SampleReading | None:
        tokenizer = getattr(tokenizer, "tokenizer", tokenizer)  # a processor's
        if type(model).__name__ == "DistributedDataParallel":
            model = model.module
        self.why_not = why_not(model, tokenizer, self._probes)
        if self.why_not:
            return None
        cuda: Any = torch.cuda
        if cuda.is_initialized():  # what the step left to do is not a look's cost
            cuda.synchronize()
        started = self._clock()
        try:
            speaker = _Speaker(model, tokenizer, self._precision)
            with undisturbed(model), speaker.autocast():
                if self._cost is None:
                    self._cost = self._trial(speaker)
                    self.seconds += self._clock() - started
                    started = self._clock()
                    if self._plan() is None:
                        return None
                reading = self._ask(speaker, step)
        finally:
            self.seconds += self._clock() - started
        self._next = step + self._every
        return _with_seconds(reading, self._clock() - started)

    def _plan(self) -> tuple[int, int] | None:
        """Task prompts and passages that there is time for; None where there is no time for the least of them."""
        cost, began = self._cost, self._began
        assert cost is not None and began is not None  # noqa: S101, PT018  (set by whoever calls)
        left = self._share * max(self._clock() - began, 1e-9) - self.seconds
        prompts, passages = len(self._probes.task), len(self._probes.passages)
        times = 2.0 if self._base is None and not self.why_no_base else 1.0
        for few in (False, True):
            plan = (min(prompts, LEAST_PROMPTS), min(passages, LEAST_PASSAGES)) if few else (prompts, passages)
            if times * cost.of(*plan, len(self._probes.general)) <= left:
                return plan
        return None

    def _new_tokens(self, speaker: _Speaker) -> int:
        """Limit of a reply to a task prompt: twice the references' length, so that an end that is missing shows."""
        lengths = sorted(len(ids) for one in self._probes.task if (ids := speaker.reference(one)))
        return min(max(2 * lengths[-1], LEAST_NEW_TOKENS), self._most) if lengths else self._most

    def _trial(self, speaker: _Speaker) -> _Cost:
        """The cost of a look by a few tokens of it; the first pass warms up and does not count."""
        probes, limit = self._probes, self._new_tokens(speaker)
        self.why_no_base = why_no_base(speaker.outer)
        cost = _Cost()
        for part, asked, tokens in (("prompt", probes.task, limit), ("general", probes.general, GENERAL_NEW_TOKENS)):
            rows = [speaker.prompt(one) for one in asked[:MOST_ROWS]]
            if not rows:
                continue
            if not cost.prompt:
                speaker.generate(rows[:1], 1, ends=False)
            began = self._clock()
            speaker.generate(rows, TRIAL_TOKENS, ends=False)
            setattr(cost, part, (self._clock() - began) / len(rows) * tokens / TRIAL_TOKENS)
        passages = [speaker.passage(one) for one in probes.passages[:8]]
        if passages:
            began = self._clock()
            list(speaker.logprobs([(ids, 1) for ids in passages]))
            cost.passage = (self._clock() - began) / len(passages)
        return cost

    def _ask(self, speaker: _Speaker, step: int) -> SampleReading:
        """One look."""
        plan = self._plan()
        prompts, passages = plan if plan is not None else (LEAST_PROMPTS, LEAST_PASSAGES)
        probes, cost, limit = self._probes, _Cost(), self._new_tokens(speaker)
        self.why_no_base = why_no_base(speaker.outer)
        fresh = self._base is None and not self.why_no_base
        if fresh:
            self._base = self._ask_base(speaker, limit)
        base = self._base if not self.why_no_base else None
        began = self._clock()
        asked = probes.task[:prompts]
        task = speaker.replies(asked, limit)
        kl = None
        if base is not None:
            self._add_logprobs(speaker, asked, task)
            kl = self._divergence(speaker, asked, base)
        cost.prompt = (self._clock() - began) / max(len(asked), 1)
        began = self._clock()
        general = speaker.replies(probes.general, GENERAL_NEW_TOKENS)
        cost.general = (self._clock() - began) / max(len(probes.general), 1)
        began = self._clock()
        read = list(speaker.logprobs([(speaker.passage(one), 1) for one in probes.passages[:passages]]))
        cost.passage = (self._clock() - began) / max(len(read), 1)
        self._cost = cost
        return SampleReading(
            step=step,
            samples=[*_samples(asked, task, speaker), *_samples(probes.general, general, speaker)],
            base=[*_samples(probes.task, base.task, speaker), *_samples(probes.general, base.general, speaker)]
            if fresh and base is not None
            else [],
            kl=kl, perplexity=_perplexity(read),
            base_perplexity=None if base is None else _perplexity(base.passages[: len(read)]),
            max_new_tokens=limit, time=self._wall(),
        )  # fmt: skip

    def _ask_base(self, speaker: _Speaker, limit: int) -> _Base:
        probes = self._probes
        with speaker.base():
            base = _Base(
                speaker.replies(probes.task, limit),
                speaker.replies(probes.general, GENERAL_NEW_TOKENS),
                list(speaker.logprobs([(speaker.passage(one), 1) for one in probes.passages])),
            )
        self._add_logprobs(speaker, probes.task, base.task)
        return base

    def _add_logprobs(self, speaker: _Speaker, asked: Sequence[Probe], replies: Sequence[_Reply]) -> None:
        """Note how likely the base model finds each reply."""
        rows = [
            ([*prompt, *reply.ids], len(prompt))
            for one, reply in zip(asked, replies, strict=True)
            if (prompt := speaker.prompt(one)) and reply.ids
        ]
        said = [reply for reply in replies if reply.ids]
        with speaker.base():
            for reply, (total, count) in zip(said, speaker.logprobs(rows), strict=True):
                reply.logprob = total / count if count else None

    def _divergence(self, speaker: _Speaker, asked: Sequence[Probe], base: _Base) -> float | None:
        """Mean forward KL divergence a token, on the references or else on what the base model says."""
        rows = []
        for one, said in zip(asked, base.task[: len(asked)], strict=True):
            prompt, reply = speaker.prompt(one), (speaker.reference(one) or said.ids)[:MOST_REFERENCE_TOKENS]
            if reply:
                rows.append(([*prompt, *reply], len(prompt)))
        found = list(speaker.divergences(rows))
        count = sum(tokens for _, tokens in found)
        return sum(total for total, _ in found) / count if count else None


def probes_of_run(file: str, data: Iterable[Any], tokenizer: Any) -> tuple[ProbeSet, str]:
    """What to ask in a run: prompts of the user's file, or the first ones of the first data set that has some.

    Args:
        file: The user's file; ``""`` for none.
        data: Data sets, best first: the one to evaluate on, then the one to train on. None stands for one that is not
            there.
        tokenizer: The model's, or its processor.

    Returns:
        What to ask, and why no prompt of the task is among it; "" where there is one.

    Raises:
        ProbesError: The file is wrong.
    """
    if file:
        return read_probes(Path(file)), ""
    tokenizer, why = getattr(tokenizer, "tokenizer", tokenizer), "there is no data to take prompts from"
    with _same_random_states():  # a row may be made when it is asked for, by dice
        for one in data:
            if one is None:
                continue
            try:
                return built_in(task_probes(one, tokenizer)), ""
            except ProbesError as error:
                why = str(error)
    return built_in(), why


def why_not(model: Any, tokenizer: Any, probes: ProbeSet) -> str:
    """Why a model cannot be asked while it trains, for a person; empty where it can."""
    if model is None or tokenizer is None:
        return "sample generations need the model and its tokenizer (processing_class)"
    if not (probes.task or probes.general):
        return "there is no prompt to ask"
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        return "several processes train together: one that generates would leave the others waiting"
    names = {type(module).__name__ for module in model.modules()}
    if {"FullyShardedDataParallel", "DataParallel"} & names or any(
        hasattr(one, "ds_id") or type(one).__name__ == "DTensor" for one in model.parameters()
    ):
        return "the model is sharded (FSDP, DeepSpeed ZeRO-3 or DataParallel), so that generating would gather it"
    if "OptimizedModule" in names or any(
        getattr(module, "_compiled_call_impl", None) is not None for module in model.modules()
    ):
        return "the model is compiled, and each new length of a text would compile it anew"
    inner = _inner(model)
    if getattr(getattr(inner, "config", None), "is_encoder_decoder", False):
        return "sample generations are for decoder-only models"
    if not callable(getattr(inner, "generate", None)) or not _can_generate(inner):
        return f"{type(inner).__name__} generates no text"
    if any(one.device.type == "meta" for one in model.parameters()):
        return "parts of the model are not in memory"
    return ""


def why_no_base(model: Any) -> str:
    """Why switching the adapter off does not give the base model, for a person; empty where it does."""
    configs = getattr(model, "peft_config", None)
    if not configs or not callable(getattr(model, "disable_adapter", None)):
        return "there is no adapter that could be switched off"
    for config in configs.values():
        start = getattr(config, "init_lora_weights", None)
        if isinstance(start, str) and start.lower().startswith(_CHANGED_BASE):
            return f"init_lora_weights={start!r} changes the base weights"
        if str(getattr(config, "bias", "none")) != "none":
            return f"bias={config.bias!r} trains the base model's biases"
    if any(getattr(module, "merged", False) is True for module in model.modules()):
        return "the adapter is merged into the base weights"
    marks = ("lora_", "modules_to_save", "trainable_tokens", str(getattr(model.base_model, "prefix", "lora_")))
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and not any(mark in name for mark in marks):
            return f"{name} of the base model trains, too"
    return ""


@contextmanager
def undisturbed(model: Any) -> Iterator[None]:
    """Evaluation mode within; afterwards the model and the random states are as they were, whatever happened.

    Restored are Python's, NumPy's and torch's random states, each module's mode, each parameter's ``requires_grad``
    (PEFT sets it for a whole adapter when that is switched on again), the generation configuration, ``use_cache``, and
    what rotary embeddings remember of the longest text they saw.
    """
    inner = _inner(model)
    modes = [(module, module.training) for module in model.modules()]
    trains = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    rotary = [
        (module, dict(module.__dict__), dict(module._buffers))
        for module in model.modules()
        if "rotary" in type(module).__name__.lower()
    ]
    generation, config = inner.__dict__.get("generation_config"), getattr(inner, "config", None)
    cached = getattr(config, "use_cache", None)
    cards = sorted({one.device.index for one in model.parameters() if one.device.type == "cuda"})
    with _same_random_states(cards), torch.no_grad():
        try:
            for module, _ in modes:
                module.training = False  # not by eval(), which some modules take for a sign to merge
            yield
        finally:
            for module, training in modes:
                module.training = training
            for parameter, train in trains:
                parameter.requires_grad_(train)
            for module, attributes, buffers in rotary:
                module.__dict__.update(attributes)
                module._buffers.clear()
                module._buffers.update(buffers)
            if generation is not None:
                inner.generation_config = generation
            if config is not None and getattr(config, "use_cache", None) is not cached:
                config.use_cache = cached


@contextmanager
def _same_random_states(cards: Sequence[int] = ()) -> Iterator[None]:
    """Python's, NumPy's and torch's random states are afterwards as they were before."""
    numpy: Any = sys.modules.get("numpy")
    state, arrays = random.getstate(), None if numpy is None else numpy.random.get_state()
    with torch.random.fork_rng(devices=list(cards)):
        try:
            yield
        finally:
            random.setstate(state)
            if numpy is not None:
                numpy.random.set_state(arrays)


class _Speaker:
    """The model and its tokenizer, asked in batches."""

    def __init__(self, model: Any, tokenizer: Any, precision: str) -> None:
        self.outer = model
        self._inner = _inner(model)
        self._tokenizer = tokenizer
        self._device = _device(self._inner)
        self._dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(precision)
        self._ends = _end_tokens(self._inner, tokenizer)
        pad = getattr(tokenizer, "pad_token_id", None)
        self._pad = int(pad) if pad is not None else min(self._ends, default=0)
        self._known: dict[int, list[int]] = {}
        self._keeps = "logits_to_keep" in inspect.signature(self._inner.forward).parameters
        config: Any = getattr(self._inner, "config", None)
        text = config.get_text_config() if hasattr(config, "get_text_config") else config
        self._vocabulary = int(getattr(text, "vocab_size", 0) or 32_000)
        self._config = text

    def autocast(self) -> AbstractContextManager[Any]:
        """The precision that the Trainer trains in."""
        if self._dtype is None:
            return nullcontext()
        return torch.autocast(self._device.type, dtype=self._dtype)

    def base(self) -> AbstractContextManager[Any]:
        """The base model: the adapter is switched off within."""
        found: AbstractContextManager[Any] = self.outer.disable_adapter()
        return found

    def prompt(self, probe: Probe) -> list[int]:
        """Token ids of a prompt, in the chat template where the model has one and the prompt is no plain text."""
        known = self._known.get(id(probe))
        if known is None:
            known = self._known[id(probe)] = self._encoded(probe)[-MAX_PROMPT_TOKENS:]
        return known

    def reference(self, probe: Probe) -> list[int]:
        """Token ids of the reference reply; empty where there is none."""
        if probe.reference_tokens:
            return list(probe.reference_tokens)
        return self._ids(probe.reference, special=False) if probe.reference else []

    def passage(self, text: str) -> list[int]:
        """Token ids of a passage."""
        return self._ids(text, special=True)[:MAX_PASSAGE_TOKENS]

    def replies(self, probes: Sequence[Probe], new_tokens: int) -> list[_Reply]:
        """Greedy replies, in the order of the probes."""
        made = self.generate([self.prompt(one) for one in probes], new_tokens)
        found = []
        for ids in made:
            end = next((at for at, one in enumerate(ids) if one in self._ends), None)
            said = ids if end is None else ids[:end]
            text = str(self._tokenizer.decode(said, skip_special_tokens=True)).strip()
            found.append(_Reply(said, end is not None, text))
        return found

    def generate(self, rows: Sequence[list[int]], new_tokens: int, *, ends: bool = True) -> list[list[int]]:
        """New token ids of each row; padding behind an end is left in."""
        found: list[list[int]] = []
        size = self._rows_at_once(max(map(len, rows), default=0) + new_tokens)
        for at in range(0, len(rows), size):
            batch = [row or [self._pad] for row in rows[at : at + size]]
            longest = max(map(len, batch))
            ids = torch.tensor([[self._pad] * (longest - len(row)) + row for row in batch], device=self._device)
            mask = torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in batch], device=self._device)
            # A fresh configuration, also as the model's own, from which generate() takes what this one leaves open:
            # that may hold a penalty for repetition, which would hide loops.
            make: Any = GenerationConfig
            config = make(
                do_sample=False, num_beams=1, max_new_tokens=new_tokens, use_cache=True, pad_token_id=self._pad,
                eos_token_id=sorted(self._ends) if ends and self._ends else None,
            )  # fmt: skip
            self._inner.generation_config = config
            made = self._inner.generate(input_ids=ids, attention_mask=mask, generation_config=config)
            found += made[:, longest:].tolist()
        return found

    def logprobs(self, rows: Sequence[tuple[list[int], int]]) -> Iterator[tuple[float, int]]:
        """For each row of token ids, and where in it to start: summed log-probability, and how many tokens it is of."""
        for batch, logits, keep in self._passes(rows):
            for (ids, first), row in zip(batch, logits(), strict=True):
                total, start = 0.0, max(first, 1)
                for at in range(start, len(ids), CHUNK):
                    wanted = torch.tensor(ids[at : at + CHUNK], device=row.device)
                    said = row[at - 1 - keep : at - 1 - keep + len(wanted)].float()
                    total += float(said.log_softmax(-1).gather(-1, wanted[:, None]).sum())
                yield total, max(len(ids) - start, 0)

    def divergences(self, rows: Sequence[tuple[list[int], int]]) -> Iterator[tuple[float, int]]:
        """For each row: summed KL divergence of the base's distributions from the tuned ones', and of how many."""
        for batch, logits, keep in self._passes(rows):
            tuned = logits()
            with self.base():
                base = logits()
            for (ids, start), one, other in zip(batch, tuned, base, strict=True):
                total = 0.0
                for at in range(start, len(ids), CHUNK):
                    span = slice(at - 1 - keep, min(at + CHUNK, len(ids)) - 1 - keep)
                    now, before = one[span].float().log_softmax(-1), other[span].float().log_softmax(-1)
                    total += float((before.exp() * (before - now)).sum())
                yield total, len(ids) - start

    def _passes(
        self, rows: Sequence[tuple[list[int], int]]
    ) -> Iterator[tuple[list[tuple[list[int], int]], Callable[[], Any], int]]:
        """Batches of rows, each with what makes its logits, and the position of the first of these."""
        longest = max((len(ids) for ids, _ in rows), default=0)
        size = self._rows_at_once(longest, logits=True)
        for at in range(0, len(rows), size):
            batch = list(rows[at : at + size])
            width = max(len(ids) for ids, _ in batch)
            keep = max(min(start for _, start in batch) - 1, 0) if self._keeps else 0
            ids = torch.tensor([ids + [self._pad] * (width - len(ids)) for ids, _ in batch], device=self._device)
            mask = torch.tensor([[1] * len(ids) + [0] * (width - len(ids)) for ids, _ in batch], device=self._device)
            extra = {"logits_to_keep": width - keep} if keep else {}

            def logits(ids: Any = ids, mask: Any = mask, extra: Any = extra) -> Any:
                return self._inner(input_ids=ids, attention_mask=mask, use_cache=False, **extra).logits

            yield batch, logits, keep

    def _rows_at_once(self, tokens: int, *, logits: bool = False) -> int:
        """Rows of a batch that memory is there for: of logits, or of the cache of keys and values."""
        room = LOGIT_BYTES
        if self._device.type == "cuda":
            free = torch.cuda.mem_get_info(self._device)[0]
            idle = torch.cuda.memory_reserved(self._device) - torch.cuda.memory_allocated(self._device)
            room = min(room, (free + idle) // 2) if logits else (free + idle) // 2
        row = 8 * self._vocabulary * max(tokens, 1) if logits else self._cache_bytes() * max(tokens, 1)
        return int(max(min(room // max(row, 1), MOST_ROWS), 1))

    def _cache_bytes(self) -> int:
        """Bytes that the cache of keys and values takes a token, and the logits of one position beside it."""
        config = self._config
        heads = int(getattr(config, "num_attention_heads", 0) or 1)
        shared = int(getattr(config, "num_key_value_heads", 0) or heads)
        width = int(getattr(config, "head_dim", 0) or int(getattr(config, "hidden_size", 0) or 0) // heads)
        return 2 * 4 * int(getattr(config, "num_hidden_layers", 0) or 1) * shared * width

    def _encoded(self, probe: Probe) -> list[int]:
        if probe.tokens:
            return list(probe.tokens)
        chat = (
            probe.messages or ({"role": "user", "content": probe.prompt},)
            if probe.kind == "general"
            else probe.messages
        )
        if chat and getattr(self._tokenizer, "chat_template", None):
            for messages in (chat, _without_system(chat)):
                try:
                    text = self._tokenizer.apply_chat_template(
                        [dict(one) for one in messages], tokenize=False, add_generation_prompt=True
                    )
                except Exception:  # noqa: S112  (a template is the model maker's code; Gemma's refuses a system message)
                    continue
                return self._ids(str(text), special=False)
        if probe.kind == "general":
            return self._ids(f"Question: {probe.prompt}\nAnswer:", special=True)
        return self._ids("\n\n".join(one["content"] for one in chat) or probe.prompt, special=True)

    def _ids(self, text: str, *, special: bool) -> list[int]:
        return [int(one) for one in self._tokenizer(text, add_special_tokens=special)["input_ids"]]


def _without_system(chat: Sequence[Any]) -> list[dict[str, str]]:
    """The chat with what the system says put before what the user says first."""
    said = "\n\n".join(one["content"] for one in chat if one["role"] == "system")
    rest = [dict(one) for one in chat if one["role"] != "system"]
    if said and rest:
        rest[0]["content"] = f"{said}\n\n{rest[0]['content']}"
    return rest


def _samples(probes: Sequence[Probe], replies: Sequence[_Reply], speaker: _Speaker) -> list[Sample]:
    return [
        Sample(
            prompt=one.prompt[:2000], output=reply.text[:4000], ended=reply.ended, tokens=len(reply.ids),
            probe=one.kind, right=one.is_right(reply.text), logprob=reply.logprob,
            reference_tokens=len(speaker.reference(one)) or None,
        )
        for one, reply in zip(probes, replies, strict=True)
    ]  # fmt: skip


def _perplexity(read: Sequence[tuple[float, int]]) -> float | None:
    """Of some passages: ``exp`` of the mean negative log-probability of their tokens, at most e^50."""
    count = sum(tokens for _, tokens in read)
    if not count:
        return None
    mean = -sum(total for total, _ in read) / count
    return float(torch.tensor(min(mean, 50.0), dtype=torch.float64).exp()) if mean == mean else None  # noqa: PLR0124


def _with_seconds(reading: SampleReading, seconds: float) -> SampleReading:
    import msgspec  # noqa: PLC0415

    return msgspec.structs.replace(reading, seconds=round(seconds, 3))


def _inner(model: Any) -> Any:
    """The transformers model: with its adapter in it, without PEFT's wrapper, whose ``generate`` changes it."""
    return model.get_base_model() if hasattr(model, "peft_config") and hasattr(model, "get_base_model") else model


def _can_generate(inner: Any) -> bool:
    ask = getattr(inner, "can_generate", None)
    return bool(ask()) if callable(ask) else True


def _device(inner: Any) -> torch.device:
    """Where token ids go: where the embedding is."""
    embed = inner.get_input_embeddings() if hasattr(inner, "get_input_embeddings") else None
    weight = getattr(embed, "weight", None)
    return weight.device if isinstance(weight, torch.Tensor) else next(inner.parameters()).device


def _end_tokens(inner: Any, tokenizer: Any) -> set[int]:
    """Ids that end a reply: the model's, the tokenizer's, and what the chat template puts behind a reply."""
    found: set[int] = set()
    for value in (
        getattr(getattr(inner, "generation_config", None), "eos_token_id", None),
        getattr(tokenizer, "eos_token_id", None),
    ):
        found |= set(value) if isinstance(value, list | tuple) else {value} if value is not None else set()
    if getattr(tokenizer, "chat_template", None):
        try:
            chat = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "lorawatchprobe"}]
            text = str(tokenizer.apply_chat_template(chat, tokenize=False)).rpartition("lorawatchprobe")[2]
            ids = tokenizer(text.strip(), add_special_tokens=False)["input_ids"]
            found |= set(ids[:1]) & set(tokenizer.all_special_ids)
        except Exception:  # noqa: S110  (a template is the model maker's code, and may refuse anything)
            pass
    return {int(one) for one in found}
