"""Runs made for the report's tests, as the callback would write them."""

from __future__ import annotations

import math
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

from lorawatch.records import (
    AdaptedModule,
    AdapterReading,
    AllocatorReading,
    Card,
    FactUpdate,
    GpuReading,
    LabelAudit,
    LabelledPiece,
    LifecycleEvent,
    MetricRow,
    ModelTree,
    ModuleGroup,
    Record,
    Sample,
    SampleReading,
    Step,
    StepTiming,
)
from lorawatch.sources.lorawatch_jsonl import encode

GIB = 1 << 30
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
FACTS: dict[str, Any] = {
    "learning_rate": 2e-4, "lr_scheduler_type": "cosine", "warmup_steps": 20, "max_grad_norm": 1.0, "r": 16,
    "lora_alpha": 32, "lora_dropout": 0.05, "target_modules": list(PROJECTIONS), "per_device_train_batch_size": 4,
    "gradient_accumulation_steps": 4, "max_length": 2048, "train_rows": 5000, "model_name_or_path": "base/model-1b",
    "hidden_size": 2048, "vocab_size": 32000, "bf16": True, "logging_steps": 5, "max_steps": 600,
    "trainer_class": "SFTTrainer", "transformers_version": "5.24.0", "trl_version": "1.16.0", "peft_version": "0.21.2",
}  # fmt: skip


def write(folder: Path, records: Iterable[Record]) -> Path:
    """Write a run's ``lorawatch.jsonl``; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "lorawatch.jsonl").write_bytes(b"".join(encode(record) for record in records))
    return folder


def rows(losses: Iterable[float], *, every: int = 5, start: float = 1.7e9) -> list[Record]:
    """Rows of a training: its losses, with a learning rate, a gradient norm and a time."""
    return [
        MetricRow(
            step=index * every,
            values={"loss": loss, "grad_norm": 0.5 + 0.1 * math.sin(index), "learning_rate": 2e-4},
            epoch=index * every / 300,
            time=start + index * every * 1.5,
        )
        for index, loss in enumerate(losses, 1)
    ]


def diverging(points: int = 120) -> list[float]:
    """A loss that falls for half the run, and then rises."""
    draw = random.Random(1)  # noqa: S311
    half = points // 2
    return [max(2.6 * 0.985**index, 1.2) + draw.gauss(0, 0.03) + max(index - half, 0) * 0.05 for index in range(points)]


def sample(
    prompt: str,
    output: str,
    *,
    ended: bool = True,
    tokens: int = 1,
    probe: Literal["task", "general"] = "task",
    right: bool | None = None,
) -> Sample:
    """A reply that ended by itself, unless told otherwise."""
    return Sample(prompt, output, ended, tokens, probe, right)


def adapter(step: int, *, layers: int = 8, name: str = "model.layers.{}.{}", growth: float = 1.0) -> AdapterReading:
    """A look at an adapter of seven projections a layer."""
    draw = random.Random(step)  # noqa: S311
    modules = []
    for layer in range(layers):
        for kind, projection in enumerate(PROJECTIONS):
            update = growth * (0.05 + 0.02 * layer + 0.03 * kind) * (1 + draw.random() / 5)
            part = "self_attn" if kind < 4 else "mlp"
            modules.append(
                AdaptedModule(
                    name.format(layer, f"{part}.{projection}"),
                    rank=16,
                    scale=2.0,
                    norm_a=4.0,
                    norm_b=update / 3,
                    update=update,
                    base=40.0 + 5 * kind,
                    largest=update / 2,
                    effective_rank=4 + 8 * draw.random(),
                )
            )
    return AdapterReading(step, modules, seconds=0.01)


def labels() -> LabelAudit:
    """An audit of 64 rows, three of them shown."""
    return LabelAudit(
        rows=64, tokens=18_240, trained=7_120, untrained_rows=2, truncated_rows=3, ended_rows=62, unsupervised_ends=4,
        duplicate_rows=1, pad_is_eos=False, max_length=2048, marker="<|im_end|>",
        examples=[
            [
                LabelledPiece("<|im_start|>user\nWhat is the capital?<|im_end|>\n<|im_start|>assistant\n", False),
                LabelledPiece(f"The capital of France is Paris. ({index})<|im_end|>", True),
                LabelledPiece("\n", False),
            ]
            for index in range(3)
        ],
    )  # fmt: skip


def tree() -> ModelTree:
    """Modules of a small Llama."""
    groups = [
        ModuleGroup(f"model.layers.*.self_attn.{one}", "linear", 2048, 2048, 16, 4_194_304) for one in PROJECTIONS
    ]
    targets = dict.fromkeys(PROJECTIONS, 16) | {"gate_prj": 0}
    return ModelTree(groups, targets, {}, 1_235_814_400, 11_272_192, 16, "model")


def told() -> list[Record]:
    """A run with everything that a report can show: it diverges at its middle."""
    records: list[Record] = [
        LifecycleEvent("started", 0, 1.7e9), FactUpdate(FACTS, "callback"), tree(), labels(),
    ]  # fmt: skip
    draw = random.Random(2)  # noqa: S311
    losses = rows(diverging())
    for index, row in enumerate(losses, 1):
        step = index * 5
        steps = [
            Step(0.01, 1.2 + draw.random() / 8, 0.05, 0.0, 6_000 + draw.randrange(800), 8_192, 2_048) for _ in range(5)
        ]
        memory = int((15.2 + index / 60 + draw.random() / 4) * GIB)
        allocator = AllocatorReading(memory - 2 * GIB, memory - GIB, memory - GIB, memory - GIB // 2)
        records.append(StepTiming(step, 5, steps, 7.0, time=1.7e9 + step * 1.5, allocator=allocator))
        card = Card(0, "GPU-1", "Accelerator", memory_total=24 * GIB, memory_used=memory, utilization=0.9)
        records += [GpuReading(1.7e9 + step * 1.5, [card], 7.0), row]
        if step % 60 == 0:
            value = losses[index - 1].values["loss"] + 0.1  # type: ignore[union-attr]
            records.append(MetricRow(step, {"eval_loss": value}, time=1.7e9 + step * 1.5 + 1))
        if step % 100 == 0:
            records.append(adapter(step, growth=step / 200))
            records.append(
                SampleReading(
                    step,
                    [
                        sample("What is the capital of France?", f"The capital of France is Paris. {step}", tokens=8),
                        sample(
                            "Write a haiku about rain.",
                            "Soft rain on the roof\nthe cat counts every droplet\nand sleeps before ten",
                            tokens=17,
                        ),
                        sample(
                            "What is 17 + 25?",
                            "42" if step < 400 else "43",
                            probe="general",
                            right=step < 400,
                            tokens=2,
                        ),
                        sample(
                            "写一句关于春天的诗。", "春风拂面,花开满园。" * (1 if step < 400 else 20), ended=step < 400
                        ),
                    ],
                    [
                        sample(
                            "What is the capital of France?",
                            "Paris is the capital and most populous city of France.",
                            tokens=12,
                        ),
                        sample("What is 17 + 25?", "17 + 25 = 42", probe="general", right=True, tokens=7),
                    ]
                    if step == 100
                    else [],
                    kl=0.02 * step / 100,
                    perplexity=9.1 + step / 300,
                    base_perplexity=9.0,
                    max_new_tokens=128,
                )
            )
    records.append(LifecycleEvent("ended", 600, 1.7e9 + 960))
    return records
