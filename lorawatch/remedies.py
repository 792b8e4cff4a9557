"""Remedies that several rules propose: one wording, one arithmetic.

Each gives an adjustment with a number where the current value is known, and with words where it is not.
"""

from __future__ import annotations

from lorawatch.findings import Adjustment, Apply, Confidence, Direction
from lorawatch.run import Run

USUAL_RATE = 2e-4
"""Learning rate that TRL's PEFT page recommends for LoRA with SFT."""
LARGEST_RATE = 2e-3
"""Learning rate from which LoRA runs diverge in Tinker's sweep (rule catalogue section 0.6)."""
LARGEST_BATCH = 32
"""Sequences a step above which LoRA loses quality, against full fine-tuning (TRL's *LoRA Without Regret* page)."""


def rounded(value: float) -> float:
    """``value`` to two significant digits, as one writes a learning rate."""
    return float(f"{value:.2g}")


def _current_rate(run: Run) -> float | None:
    """The peak learning rate without the digits that single precision adds to it."""
    rate = run.peak_learning_rate
    return None if rate is None else float(f"{rate:.4g}")


def lower_rate(
    run: Run, factor: float, why: str, *, confidence: Confidence = "high", apply: Apply = "resume", cost: str = ""
) -> Adjustment:
    """The learning rate divided by ``factor``; for an adapter the usual one, where even that would be too high.

    A resumed Trainer takes its learning rate from the checkpoint's ``scheduler.pt``, not from its arguments (measured
    with transformers 5.23, linear and constant schedules): the advice says how to make the new one count.
    """
    rate = _current_rate(run)
    words = {2.0: "half of it", 3.0: "a third of it", 10.0: "a tenth of it"}.get(factor, f"1/{factor:g} of it")
    proposed: float | str = rounded(rate / factor) if rate else words
    if rate and rate / factor > LARGEST_RATE and is_adapter(run) and "adam" in str(run.fact("optim", "adamw")).lower():
        proposed = USUAL_RATE
        why += f"; {words} would still be above {LARGEST_RATE:g}, unusually high for LoRA"
    if apply == "resume":
        why += "; first delete scheduler.pt from that checkpoint, or the Trainer goes on with the old rate"
    return Adjustment(
        "learning_rate", current=rate, proposed=proposed, why=why, cost=cost, confidence=confidence, apply=apply,
        direction="down",
    )  # fmt: skip


def raise_rate(run: Run, why: str, *, confidence: Confidence = "low") -> Adjustment | None:
    """Three times the learning rate; for an adapter at most, and from below a quarter of it at once, the usual one.

    None when it is about the usual one or higher already.
    """
    rate = _current_rate(run)
    if rate is not None and rate >= USUAL_RATE * 0.75:
        return None
    proposed: float | str
    if is_adapter(run):
        proposed = rounded(min(rate * 3, USUAL_RATE)) if rate and rate >= USUAL_RATE / 4 else USUAL_RATE
    else:  # full fine-tuning takes about a tenth of an adapter's rate: no absolute figure fits both
        proposed = rounded(rate * 3) if rate else f"three times it; for a LoRA adapter up to {USUAL_RATE:g}"
    return Adjustment(
        "learning_rate", current=rate, proposed=proposed, why=why, confidence=confidence, apply="restart",
        direction="up", cost="a risk of divergence: watch the first 100 steps",
    )  # fmt: skip


def clip_gradients(
    run: Run, why: str, *, to: float = 0.3, confidence: Confidence = "medium", apply: Apply = "resume"
) -> Adjustment | None:
    """A tighter ``max_grad_norm``; None when it is that tight already."""
    clip = run.number("max_grad_norm")
    if clip is not None and 0 < clip <= to:
        return None
    return Adjustment(
        "max_grad_norm", current=clip, proposed=to, why=why, confidence=confidence, apply=apply, direction="down"
    )


def bfloat16(run: Run, *, suspected: bool = False, apply: Apply = "resume") -> Adjustment | None:
    """bf16 in place of fp16; None unless the run says fp16, or, where it is ``suspected``, does not say it is not."""
    half = run.fact("fp16")
    if run.fact("bf16") is True or not (half is True or (suspected and half is None)):
        return None
    return Adjustment(
        "bf16", current=run.fact("bf16"), proposed=True, apply=apply, confidence="high" if half else "medium",
        why="fp16 overflows above 65,504, bf16 has the range of fp32 (Ampere GPU or newer); set fp16=False with it"
        if half
        else "if the run is in fp16: that overflows above 65,504, bf16 has the range of fp32 (Ampere GPU or newer)",
    )  # fmt: skip


def effective_batch(run: Run) -> float | None:
    """Sequences per optimizer step; None unless both micro-batch and accumulation are known."""
    micro, steps = run.number("per_device_train_batch_size"), run.number("gradient_accumulation_steps")
    if micro is None or steps is None:
        return None
    return micro * steps * (run.number("world_size") or 1.0)


def larger_batch(run: Run, why: str, *, confidence: Confidence = "medium") -> Adjustment | None:
    """Twice the accumulation, up to :data:`LARGEST_BATCH` sequences a step; None when the batch is that large."""
    batch, steps = effective_batch(run), run.number("gradient_accumulation_steps")
    if (batch or steps or 0.0) * 2 > LARGEST_BATCH:
        return None
    proposed: int | str = int(steps * 2) if steps else f"twice it, to at most {LARGEST_BATCH} sequences a step"
    return Adjustment(
        "gradient_accumulation_steps", current=int(steps) if steps else None, proposed=proposed, why=why,
        confidence=confidence, apply="restart", direction="up",
        cost="half of the optimizer steps of an epoch, but no memory",
    )  # fmt: skip


def longer_warmup(run: Run, why: str, *, share: float = 0.05, confidence: Confidence = "medium") -> Adjustment | None:
    """A warm-up over ``share`` of the run; None when it is at least that long already."""
    if run.max_steps and run.warmup_steps >= int(share * run.max_steps):
        return None
    if max(run.number("warmup_steps") or 0.0, run.number("warmup_ratio") or 0.0) >= share and not run.max_steps:
        return None  # a ratio that large, or steps of a run of unknown length
    return warmup(run, why, share=share, confidence=confidence, direction="up")


def warmup(run: Run, why: str, *, share: float, confidence: Confidence, direction: Direction) -> Adjustment:
    """A warm-up over ``share`` of the run; :func:`lorawatch.parameters.spell_parameter` makes steps of it."""
    stated = run.number("warmup_steps")
    if run.max_steps and (stated is not None or run.number("warmup_ratio") is not None):
        stated = run.warmup_steps
    return Adjustment(
        "warmup_steps", current=stated, proposed=share, why=why, confidence=confidence, apply="restart",
        direction=direction,
    )  # fmt: skip


def larger_rank(run: Run, why: str, *, confidence: Confidence = "low") -> list[Adjustment]:
    """Twice the rank, with alpha kept at the same ratio to it; nothing above rank 64: 128 is the guide's largest."""
    rank, alpha = run.number("r"), run.number("lora_alpha")
    if rank is not None and rank > 64:
        return []
    ratio = f"keeps alpha / r at {alpha / rank:g}" if rank and alpha else "keep alpha / r as it is: set r first"
    return [
        Adjustment(
            "r", current=int(rank) if rank else None, proposed=int(rank * 2) if rank else "twice it", why=why,
            confidence=confidence, apply="restart", direction="up", cost="more memory, more risk of overfitting",
        ),
        Adjustment(
            "lora_alpha", current=alpha and int(alpha), proposed=int(alpha * 2) if alpha else "twice it", why=ratio,
            confidence=confidence, apply="restart", direction="up",
        ),
    ]  # fmt: skip


def look(what: str, why: str, *, confidence: Confidence = "medium") -> Adjustment:
    """Something to look at rather than to set."""
    return Adjustment("", what, why, confidence=confidence, apply="check")


def is_adapter(run: Run) -> bool:
    """Whether the facts say that it trains a LoRA adapter."""
    return run.fact("r") is not None or run.fact("lora_alpha") is not None


def length_grouped(run: Run) -> bool:
    """Whether the facts say that batches are grouped by length."""
    strategy = str(run.fact("train_sampling_strategy", ""))
    return strategy in {"group_by_length", "batch_rebalance"} or run.fact("group_by_length") is True


def against_nan(run: Run) -> list[Adjustment]:
    """What keeps a NaN from coming back, best first: a wider number format, a lower rate, a tighter clip."""
    coarse = look(
        "the weights that train: cast them to float32 (they are in float16), and leave half precision to fp16=True or "
        "bf16=True",
        "Adam's steps and squares leave the range of float16, and the next update is NaN", confidence="high",
    )  # fmt: skip
    found = [
        coarse if run.fact("trainable_dtype") == "float16" else None,
        bfloat16(run, suspected=True),
        lower_rate(
            run, 3, "too high a rate is the other common cause; a third leaves the danger zone and costs little",
            confidence="medium",
        ),
        clip_gradients(run, "limits the large gradients that come before a NaN; a NaN itself passes any clip"),
    ]  # fmt: skip
    return [adjustment for adjustment in found if adjustment is not None]
