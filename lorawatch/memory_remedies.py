"""What frees memory of a GPU, or uses what is free: one wording and one arithmetic for the rules mem/*.

Savings are formulas, not measurements, unless they come from torch's own figures of the run: take them with ± 25 %
(rule catalogue section 3). Sources of the formulas stand with the functions.
"""

from __future__ import annotations

from lorawatch.cards import size
from lorawatch.findings import Adjustment, Confidence
from lorawatch.parameters import NEWEST, library_version
from lorawatch.records import AllocatorReading
from lorawatch.remedies import LARGEST_BATCH, effective_batch, is_adapter, look
from lorawatch.run import PREFERENCE, REINFORCEMENT, Kind, Run


def less_memory(run: Run, tokens: float | None = None, *, segments: bool = True) -> list[Adjustment]:
    """All that lowers the peak and is not so already, in order of what it costs.

    Args:
        run: The run whose facts tell what is so already, and the sizes.
        tokens: Tokens of the largest micro-batch, padding included; by the facts where None.
        segments: Name the allocator's setting as well. It spares memory that torch holds beyond its tensors, and does
            nothing for a figure that this has been taken off.
    """
    tokens = batch_tokens(run) if tokens is None else tokens
    dynamic = step_memory(run.allocator)
    found = [
        *vllm_share(run),
        expandable_segments(run, "spares what torch holds in pieces that fit nothing; costs next to nothing")
        if segments
        else None,
        liger(run, tokens),
        checkpointing(run, tokens, dynamic),
        *smaller_micro_batch(run, dynamic),
        shorter(run, dynamic),
        eight_bit_optimizer(run),
        four_bit_base(run),
        *smaller_rank(run),
    ]
    return [one for one in found if one is not None]


def batch_tokens(run: Run) -> float | None:
    """Tokens of a full micro-batch of the longest sequences; None unless both are known.

    Preference trainers put the chosen and the rejected answer into one batch: twice the rows.
    """
    length, rows = _count(run, "max_length"), _count(run, "per_device_train_batch_size")
    if length is None or rows is None:
        return None
    return length * rows * (2 if run.kind in PREFERENCE and run.kind is not Kind.KTO else 1)


def step_memory(allocator: AllocatorReading | None) -> int | None:
    """Bytes that a step needs on top of what stays: activations, logits, gradients. Torch's own figures; None without.

    It is the peak of the process less what is in tensors at the end of a step, so that a peak from loading the model
    counts in.
    """
    if allocator is None or not allocator.peak_allocated > allocator.allocated > 0:
        return None
    return allocator.peak_allocated - allocator.allocated


def expandable_segments(run: Run, why: str, *, confidence: Confidence = "medium") -> Adjustment:
    """The allocator's setting against fragmentation, by the name that the run's torch reads.

    torch 2.9 named ``PYTORCH_ALLOC_CONF`` first, but 2.9.1 does not heed it for this setting (pytorch issue 183387);
    2.11 does. The older name works in all of them, 2.13 included: it stands where the version is not known.
    """
    version = library_version(run, "torch")
    name = "PYTORCH_ALLOC_CONF" if (2, 11) <= version < NEWEST else "PYTORCH_CUDA_ALLOC_CONF"
    return Adjustment(
        "", proposed=f"set {name}=expandable_segments:True in the environment before the start", why=why,
        confidence=confidence, apply="check",
    )  # fmt: skip


def empty_cache(run: Run, why: str, *, steps: int = 50) -> Adjustment | None:
    """``torch_empty_cache_steps``; None where it is set already."""
    current = _count(run, "torch_empty_cache_steps")
    if current is not None and current <= steps:
        return None
    return Adjustment(
        "torch_empty_cache_steps", current=current, proposed=steps, why=why, confidence="medium", apply="resume",
        cost="about 10 % of the speed at every step, by its documentation; less when it is rare",
    )  # fmt: skip


def vllm_share(run: Run) -> list[Adjustment]:
    """For a run that generates with vLLM: its share of the card is set by hand, and large on purpose."""
    if run.kind not in REINFORCEMENT or run.fact("use_vllm") is False or run.fact("vllm_mode") == "server":
        return []
    why = "a vLLM engine in the trainer's process (vllm_mode=colocate) takes this share of the card and keeps it"
    return [
        Adjustment(
            "vllm_gpu_memory_utilization", current=run.number("vllm_gpu_memory_utilization"),
            proposed="less than it is (TRL's default is 0.3)", why=why, confidence="medium", direction="down",
            cost="fewer sequences are generated at a time",
        ),
        look("or vllm_enable_sleep_mode=True: vLLM lets go of its memory while the model trains", why),
    ]  # fmt: skip


def liger(run: Run, tokens: float | None) -> Adjustment | None:
    """Liger's kernels: the logits are never whole in memory.

    Logits take 8 to 12 bytes an element: bf16, a copy in fp32, its gradient (rule catalogue section 3). From 1.16 on
    TRL's SFTTrainer computes the loss in chunks without Liger.
    """
    if run.fact("use_liger_kernel") is True or run.kind in {Kind.CLASSIFICATION, Kind.REWARD}:
        return None
    if run.fact("trainer_class") == "SFTTrainer" and library_version(run, "trl") >= (1, 16):
        return None
    vocabulary = run.number("vocab_size")
    why = "the logits of a batch are never whole in memory"
    if tokens and vocabulary and vocabulary > 0:
        elements = tokens * vocabulary
        why += f": by the formula {size(8 * elements)} to {size(12 * elements)} of the peak (± 25 %)"
    return Adjustment(
        "use_liger_kernel", current=run.fact("use_liger_kernel"), proposed=True, why=why, confidence="medium",
        apply="resume", cost="the package liger-kernel, and a model that it knows",
    )  # fmt: skip


def checkpointing(run: Run, tokens: float | None, dynamic: int | None) -> Adjustment | None:
    """Activation checkpointing; None where it is on.

    Without it a layer keeps about 34 bytes for each token and hidden unit (Korthikanti et al. 2022, 16-bit, without the
    attention matrix, which FlashAttention does not keep); with it 2, and one layer is whole at a time.
    """
    if run.fact("activation_checkpointing") is True or run.fact("gradient_checkpointing") is True:
        return None
    hidden, layers = run.number("hidden_size"), run.number("num_hidden_layers")
    why = "keeps one layer's activations at a time instead of all"
    if tokens and hidden and layers and hidden > 0 and layers > 1:
        saved = tokens * hidden * (34 * (layers - 1) - 2 * layers)
        bound = "" if dynamic is None or saved <= dynamic else f", and no more than the {size(dynamic)} of a step"
        why += f": about {size(saved)} less by the formula for a transformer block (± 25 %){bound}"
    return Adjustment(
        "activation_checkpointing", current=run.fact("activation_checkpointing", run.fact("gradient_checkpointing")),
        proposed=True, why=why, confidence="high", apply="resume", cost="about a third more computation a step",
    )  # fmt: skip


def smaller_micro_batch(run: Run, dynamic: int | None) -> list[Adjustment]:
    """A smaller micro-batch with as much more accumulation: the optimizer sees the same; empty at one row."""
    rows, steps = _count(run, "per_device_train_batch_size"), _count(run, "gradient_accumulation_steps")
    if rows == 1:
        return []
    factor = 2 if rows is None or rows % 2 == 0 else rows
    share = "half" if factor == 2 else f"{100 * (1 - 1 / factor):.0f} %"
    why = f"frees about {share} of what a step needs on top of the weights"
    if dynamic is not None:
        why += f": {size(dynamic * (1 - 1 / factor))} of {size(dynamic)} by torch's own figures"
    batch = effective_batch(run)
    same = f"keeps the effective batch at {batch:.0f} sequences" if batch else "keeps the effective batch as it is"
    return [
        Adjustment(
            "per_device_train_batch_size", current=rows, proposed=rows // factor if rows else "half of it", why=why,
            confidence="high", apply="resume", direction="down",
            cost="some speed where the GPU is not full with the smaller batch",
        ),
        Adjustment(
            "gradient_accumulation_steps", current=steps, proposed=steps * factor if steps else "twice as many",
            why=same, confidence="high", apply="resume", direction="up",
        ),
    ]  # fmt: skip


def shorter(run: Run, dynamic: int | None) -> Adjustment | None:
    """A lower ``max_length``: with packing half of it, else what nearly all rows fit in."""
    length = _count(run, "max_length")
    if length is not None and length <= 128:
        return None
    if run.fact("packing") is True and length is not None:
        proposed: int | str = length // 2
        why = "with packing every batch is as long as this allows: half of it halves what a step needs"
        if dynamic is not None:
            why += f", {size(dynamic / 2)}"
    else:
        proposed = "the 99th percentile of the rows' lengths"
        why = "a few very long rows set the peak for the whole run"
    return Adjustment(
        "max_length", current=length, proposed=proposed, why=why,
        confidence="medium", direction="down", cost="longer rows are cut off: look at which ones first",
    )  # fmt: skip


def eight_bit_optimizer(run: Run) -> Adjustment | None:
    """Adam's moments in 8 bits: 10 instead of 16 bytes a trained parameter (rule catalogue section 3)."""
    current, trained = str(run.fact("optim", "adamw_torch")), run.number("trainable_parameters")
    if not current.startswith("adamw") or "bit" in current:
        return None
    why = "keeps Adam's moments in 8 bits"
    if trained is not None and trained > 0:
        why += f": up to {size(6 * trained)} less" + (", little for an adapter" if is_adapter(run) else "")
    elif is_adapter(run):
        why += ": little for an adapter"
    return Adjustment(
        "optim", current=run.fact("optim"), proposed="paged_adamw_8bit", why=why,
        confidence="low" if is_adapter(run) else "medium", cost="the package bitsandbytes",
    )  # fmt: skip


def four_bit_base(run: Run) -> Adjustment | None:
    """The frozen base in NF4: 0.5 byte a parameter and 0.0625 of constants, instead of 2 (QLoRA, Dettmers et al. 2023).

    Only for an adapter, whose base is frozen. Embeddings, the head and norms stay in 16 bits: not taken off here.
    """
    if not is_adapter(run) or run.fact("load_in_4bit") is True:
        return None
    total, trained = run.number("total_parameters"), run.number("trainable_parameters") or 0.0
    eight = run.fact("load_in_8bit") is True
    why = "the frozen base takes 0.56 instead of " + ("1 byte" if eight else "2 bytes") + " a parameter"
    if total is not None and total > trained:
        why += f": about {size((total - trained) * ((1 if eight else 2) - 0.5625))} less"
    return Adjustment(
        "load_in_4bit", current=run.fact("load_in_4bit"), proposed=True, why=why + " (BitsAndBytesConfig, nf4)",
        confidence="medium", cost="a slower step, a little quality, and the package bitsandbytes",
    )  # fmt: skip


def smaller_rank(run: Run) -> list[Adjustment]:
    """Half the rank, with alpha in proportion: 16 bytes for each parameter fewer (fp32 AdamW), the least of all."""
    rank, alpha, trained = _count(run, "r"), _count(run, "lora_alpha"), run.number("trainable_parameters")
    if rank is None or rank < 8:
        return []
    why = f"half of {rank} frees usually little"
    if trained is not None and trained > 0:
        why += f": at most {size(trained / 2 * 16)}, for half of {trained / 1e6:.1f} M trained parameters"
    return [
        Adjustment(
            "r", current=rank, proposed=rank // 2, why=why, confidence="low", direction="down",
            cost="half the capacity of the adapter",
        ),
        Adjustment(
            "lora_alpha", current=alpha, proposed=alpha // 2 if alpha and alpha > 1 else "half of it", confidence="low",
            direction="down",
            why=f"keeps alpha / r at {alpha / rank:g}" if alpha else "keeps alpha / r as it is",
        ),
    ]  # fmt: skip


def larger_micro_batch(run: Run, why: str, *, busy: bool) -> list[Adjustment]:
    """Twice the micro-batch, with half the accumulation where there is some: the optimizer then sees the same."""
    rows, steps = _count(run, "per_device_train_batch_size"), _count(run, "gradient_accumulation_steps")
    batch = effective_batch(run)
    divisible = steps is not None and steps % 2 == 0
    if not divisible and steps is not None and (batch or 0.0) * 2 > LARGEST_BATCH:
        return []  # it would make the effective batch larger than LoRA likes
    confidence: Confidence = "low" if busy else "medium"
    found = [
        Adjustment(
            "per_device_train_batch_size", current=rows, proposed=rows * 2 if rows else "twice it", why=why,
            confidence=confidence, apply="resume", direction="up",
            cost="up to twice the memory of a step"
            + ("" if divisible else ", and a larger effective batch: fewer optimizer steps an epoch"),
        )
    ]  # fmt: skip
    if divisible and steps is not None:
        found.append(
            Adjustment(
                "gradient_accumulation_steps", current=steps, proposed=steps // 2, confidence=confidence,
                why="keeps the effective batch" + (f" at {batch:.0f} sequences" if batch else " as it is"),
                apply="resume", direction="down",
            )
        )  # fmt: skip
    return found


def _count(run: Run, name: str) -> int | None:
    """Value of a fact as a count of at least 1; None where it is not known, or is none."""
    value = run.number(name)
    return int(value) if value is not None and 1 <= value < 1e9 else None
