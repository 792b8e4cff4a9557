"""Healthy runs of varied set-ups, for the rate of false alarms: what careful people do, not what the defaults are.

Drawn by lot within sane bounds: model, method, learning rate, batch, accumulation, schedule, warm-up, rank, target
modules, dropout, weight decay, ``logging_steps`` from 1 to 50, evaluation, data. The draws for development and the
reported ones are different.
"""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

from fault_runs import CACHE, Job

REPORTED_RUNS = 66
DEVELOPMENT_RUNS = 24
MODELS = CACHE.parent / "models"


def healthy_jobs(*, reported: bool) -> list[Job]:
    """The healthy runs: the reported ones, or those of development."""
    dice = random.Random(1000 if reported else 0)  # noqa: S311  (a draw that can be repeated)
    jobs = []
    for number in range(REPORTED_RUNS if reported else DEVELOPMENT_RUNS):
        method = ("sft", "sft", "sft", "sft", "dpo", "sft", "sft", "grpo")[number % 8]
        changes = {"sft": _sft, "dpo": _dpo, "grpo": _grpo}[method](dice) | {"method": method}
        jobs.append(Job(f"healthy-{method}-{number}", "", (1000 if reported else 0) + number, tuple(changes.items())))
    return jobs


def _common(dice: random.Random) -> dict[str, Any]:
    r = dice.choice((4, 8, 16, 16, 32, 64))
    return {
        "r": r,
        "lora_alpha": dice.choice((r, 2 * r, 2 * r)),
        "lora_dropout": dice.choice((0.0, 0.0, 0.05, 0.1)),
        "target_modules": dice.choice(("all-linear", "all-linear", "all-linear", "q_proj,k_proj,v_proj,o_proj")),
        "lr_scheduler_type": dice.choice(("cosine", "cosine", "linear", "constant_with_warmup")),
        "warmup_steps": dice.choice((0.03, 0.05, 0.1)),
        "weight_decay": dice.choice((0.0, 0.0, 0.01)),
        "optim": dice.choice(("adamw_torch", "adamw_torch", "adamw_torch_fused")),
        "logging_first_step": dice.random() < 0.6,
        "logging_nan_inf_filter": dice.random() < 0.5,
    }


def _sft(dice: random.Random) -> dict[str, Any]:
    logging_steps = dice.choice((1, 1, 2, 5, 5, 10, 10, 20, 50))
    batch, accumulation = dice.choice(((8, 1), (8, 1), (4, 2), (16, 1), (4, 4), (2, 8), (8, 2)))
    steps = max(dice.choice((120, 160, 200, 240)) // (2 if batch * accumulation > 8 else 1), 4 * logging_steps)
    changes = _common(dice) | {
        "model": dice.choice(("tiny", "tiny", "tiny-tuned", "tiny-shallow")),
        "learning_rate": dice.choice((5e-4, 1e-3, 2e-3, 2e-3, 3e-3)),
        "max_steps": steps,
        "logging_steps": logging_steps,
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulation,
        "eval_steps": dice.choice((0.05, 0.1, 0.2, 0.25)),
        "eval_rows": dice.choice((48, 64, 128)),
        "train_sampling_strategy": dice.choice(("random", "random", "random", "random", "group_by_length")),
        "packing": dice.random() < 0.1,
        "dataloader_num_workers": dice.choice((0, 0, 0, 2)),
    }
    if dice.random() < 0.25:  # two epochs of a smaller set of data
        changes["train_rows"] = max(steps * batch * accumulation // 2, 64)
    if changes["packing"]:
        changes |= {"max_length": 128, "train_sampling_strategy": "random", "train_rows": 1600, "num_train_epochs": 4}
    return changes


def _dpo(dice: random.Random) -> dict[str, Any]:
    return _common(dice) | {
        "learning_rate": dice.choice((2e-4, 3e-4, 5e-4)),
        "beta": dice.choice((0.1, 0.1, 0.2)),
        "max_steps": dice.choice((80, 100, 120)),
        "logging_steps": dice.choice((1, 2, 5, 10)),
        "per_device_train_batch_size": dice.choice((4, 8)),
        "eval_rows": 32,
        "eval_steps": 0.2,
    }


def _grpo(dice: random.Random) -> dict[str, Any]:
    return _common(dice) | {
        "learning_rate": dice.choice((3e-4, 5e-4, 1e-3)),
        "max_steps": dice.choice((40, 50, 60)),
        "logging_steps": dice.choice((1, 2)),
        "per_device_train_batch_size": dice.choice((8, 16)),
        "num_generations": 4,
        "max_completion_length": 48,
        "eval_rows": 0,
        "beta": dice.choice((0.0, 0.02)),
    }


def model_folder(name: str) -> str:
    """Folder of a model that is made of the tiny base, made when it is first asked for.

    ``tiny-tuned`` was fine-tuned on the built-in data already (a second round of training starts low);
    ``tiny-shallow`` lost its last layer (a worse model, which starts high).
    """
    folder = MODELS / name
    if not (folder / "config.json").is_file():
        scratch = MODELS / f"{name}.part"
        shutil.rmtree(scratch, ignore_errors=True)
        {"tiny-tuned": _tuned, "tiny-shallow": _shallow}[name](scratch)
        scratch.rename(folder)
    return str(folder)


def _tuned(folder: Path) -> None:
    from lorawatch.trainer.fine_tune import fine_tune
    from lorawatch.trainer.recipe import recipe_of

    run = folder.with_suffix(".run")
    outcome = fine_tune(
        recipe_of(
            {"max_steps": 60, "seed": 77, "output_dir": str(run), "eval_rows": 0, "sample_steps": 0}, "benchmark"
        ),
        quiet=True,
    )
    outcome.trainer.model.merge_and_unload().save_pretrained(folder)
    outcome.trainer.processing_class.save_pretrained(folder)
    shutil.rmtree(run)


def _shallow(folder: Path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from lorawatch.trainer.base_model import TINY_FOLDER

    load: Any = AutoModelForCausalLM.from_pretrained
    model = load(str(TINY_FOLDER))
    model.model.layers = model.model.layers[:-1]
    model.config.num_hidden_layers -= 1
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = model.config.layer_types[:-1]
    model.save_pretrained(folder)
    tokenizer: Any = AutoTokenizer.from_pretrained(str(TINY_FOLDER))  # type: ignore[no-untyped-call, unused-ignore]
    tokenizer.save_pretrained(folder)
