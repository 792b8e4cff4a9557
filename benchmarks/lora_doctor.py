"""What the LoRA doctor costs: preflight of a 7B configuration, spectra of an adapter, an adapter of 7B offline.

Preflight runs as the verb does, in a process of its own; loading the libraries counts. The spectrum of scale·B·A comes
from Gram matrices of rank x rank; beside it stands the full SVD of the product, which is what it replaces. The adapter
is one of all linear layers of a Qwen2.5-7B (28 layers, 7 modules each) at rank 64 in bf16, read from its safetensors
alone. Shares of the time that sample generations take are told by the tests, by an injected clock.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # one core: what a training process has to spare

import numpy as np
import torch
from results_file import write
from safetensors.torch import save_file

from lorawatch.lora.adapter_files import read_adapter
from lorawatch.lora.adapter_health import Spectrum, grams_of_array, spectra

RANK = 64
HIDDEN, INNER, LAYERS, KEYS = 3584, 18944, 28, 512
QWEN_7B: dict[str, Any] = {
    "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "hidden_size": HIDDEN, "intermediate_size": INNER,
    "num_hidden_layers": LAYERS, "num_attention_heads": 28, "num_key_value_heads": 4, "vocab_size": 152064,
    "max_position_embeddings": 32768, "torch_dtype": "bfloat16", "tie_word_embeddings": False,
}  # fmt: skip
MODULES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (HIDDEN, KEYS), "self_attn.v_proj": (HIDDEN, KEYS),
    "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (HIDDEN, INNER), "mlp.up_proj": (HIDDEN, INNER),
    "mlp.down_proj": (INNER, HIDDEN),
}  # fmt: skip


def preflight(folder: Path) -> list[str]:
    """Wall time and peak memory of the verb."""
    (folder / "config.json").write_text(json.dumps(QWEN_7B), encoding="utf-8")
    script = (
        "import resource, sys, time\n"
        "began = time.perf_counter()\n"
        "from lorawatch.cli.main import main\n"
        "sys.argv = ['lorawatch', *sys.argv[1:]]\n"
        "code = main()\n"
        "told = (time.perf_counter() - began, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, code)\n"
        "print(*told, file=sys.stderr)\n"
    )
    words = [
        "preflight",
        "--model",
        str(folder),
        "--r",
        "64",
        "--learning-rate",
        "2e-4",
        "--target-modules",
        "all-linear",
    ]
    seconds, mebibytes = [], []
    for _ in range(3):
        done = subprocess.run([sys.executable, "-c", script, *words], capture_output=True, text=True, check=True)
        wall, peak, _code = done.stderr.splitlines()[-1].split()
        seconds.append(float(wall))
        mebibytes.append(float(peak))
    return [
        f"| preflight of a 7B configuration, median of 3 | {median(seconds):.1f} s | 5 s |",
        f"| its peak memory | {max(mebibytes):.0f} MiB | 1,024 MiB |",
    ]


def milliseconds(work: Callable[[], object], times: int = 20) -> float:
    """Median wall time."""
    taken = []
    for _ in range(times):
        began = time.perf_counter()
        work()
        taken.append(1e3 * (time.perf_counter() - began))
    return median(taken)


def spectrum() -> list[str]:
    """Time a module, and the distance from a full SVD."""
    torch.set_num_threads(1)
    draw = torch.Generator().manual_seed(0)
    a = torch.randn(RANK, 4096, generator=draw)
    b = torch.randn(14336, RANK, generator=draw)

    def told_of(one: torch.Tensor, other: torch.Tensor) -> Spectrum:
        gram_a, gram_b = (grams_of_array(each.numpy()[None]) for each in (one, other.T))
        return spectra(gram_a, gram_b, 2.0)[0]

    took = milliseconds(lambda: told_of(a, b))
    small_a, small_b = a[:, :1024].double(), b[:3584].double()
    began = time.perf_counter()
    exact = 2.0 * torch.linalg.svdvals(small_b @ small_a)[:RANK].numpy()
    svd = time.perf_counter() - began
    told = told_of(small_a.float(), small_b.float())
    shares = exact / exact.sum()
    wanted = (float(exact[0]), float(np.sqrt((exact**2).sum())), float(np.exp(-(shares * np.log(shares)).sum())))
    got = (told.largest, told.update, told.effective_rank)
    apart = max(abs((one or 0.0) - other) / other for one, other in zip(got, wanted, strict=True))
    return [
        f"| spectrum of a module of 4096 x 14336 at rank 64, median of 20 | {took:.1f} ms | 3 ms |",
        f"| largest value, norm and effective rank against a full SVD (1024 x 3584), relative | {apart:.1e} | 1e-5 |",
        f"| that full SVD | {1e3 * svd:,.0f} ms | |",
    ]


def offline(folder: Path) -> list[str]:
    """Time of a whole adapter."""
    draw = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in range(LAYERS):
        for name, (inputs, outputs) in MODULES.items():
            key = f"base_model.model.model.layers.{layer}.{name}"
            tensors[f"{key}.lora_A.weight"] = torch.randn(RANK, inputs, generator=draw).bfloat16()
            tensors[f"{key}.lora_B.weight"] = torch.randn(outputs, RANK, generator=draw).bfloat16()
    save_file(tensors, folder / "adapter_model.safetensors")
    config = {
        "peft_type": "LORA",
        "r": RANK,
        "lora_alpha": 2 * RANK,
        "target_modules": [name.split(".")[-1] for name in MODULES],
    }
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    reading = read_adapter(folder)
    size = (folder / "adapter_model.safetensors").stat().st_size / 2**20
    return [
        f"| adapter of 7B, {len(reading.modules)} modules, {size:.0f} MiB, offline | {reading.seconds:.1f} s | 10 s |"
    ]


def main() -> int:
    """Run it; returns the exit code."""
    lines = ["| what | measured | limit |", "|---|---|---|"]
    for part in (preflight, offline):
        with tempfile.TemporaryDirectory() as folder:
            lines += part(Path(folder))
    lines += spectrum()
    write("lora_doctor", "What the LoRA doctor costs", "\n".join(lines), "torch", "transformers", "peft")
    return 0


if __name__ == "__main__":
    sys.exit(main())
