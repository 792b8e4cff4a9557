"""The base model and its tokenizer: the tiny one that comes with lorawatch, a folder, or a hub id."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import psutil
import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from lorawatch.cards import size
from lorawatch.trainer.recipe import TINY, Recipe, RecipeError

TINY_FOLDER = Path(__file__).parent / "tiny_base"
_SPARE = 1.25
"""Bytes of weights times this is what loading takes at least: the weights, and the largest of them once more."""


def location(recipe: Recipe) -> str:
    """Folder or hub id of the base model.

    Raises:
        RecipeError: It looks like a folder, and there is none.
    """
    if recipe.model == TINY:
        return str(TINY_FOLDER)
    path = Path(recipe.model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            what = "an adapter, not a base model" if (path / "adapter_config.json").is_file() else "no model"
            raise RecipeError(f"model {recipe.model}: the folder holds {what} (no config.json)")
        return str(path)
    if path.is_absolute() or recipe.model.startswith((".", "~")) or recipe.model.count("/") > 1:
        raise RecipeError(f"model {recipe.model}: there is no such folder")
    return recipe.model


def load_tokenizer(recipe: Recipe) -> Any:
    """The tokenizer, with a padding token that does not end a turn.

    Raises:
        RecipeError: It cannot be had, or has no chat template.
    """
    where = location(recipe)
    tokenizer = _fetched(recipe, lambda: AutoTokenizer.from_pretrained(where))  # type: ignore[no-untyped-call, unused-ignore]
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token or tokenizer.eos_token
    if not tokenizer.chat_template:
        raise RecipeError(
            f"model {recipe.model}: its tokenizer has no chat template; take the instruct version of the model"
        )
    return tokenizer


def load_base(recipe: Recipe) -> Any:
    """The base model, in 4 bit where the recipe says so, else in its own precision on a card and in fp32 without one.

    Raises:
        RecipeError: It cannot be had, does not fit into memory, or cannot be quantised here.
    """
    where = location(recipe)
    options: dict[str, Any] = {}
    on_card = torch.cuda.is_available()
    if recipe.load_in_4bit:
        options["quantization_config"] = _four_bit(recipe)
        options["device_map"] = {"": torch.cuda.current_device()}
    config = _fetched(recipe, lambda: AutoConfig.from_pretrained(where))
    precision = (getattr(config, "dtype", None) or torch.bfloat16) if on_card and not recipe.is_tiny else torch.float32
    _fits(recipe, where, precision)
    return _fetched(recipe, lambda: AutoModelForCausalLM.from_pretrained(where, dtype=precision, **options))


def _four_bit(recipe: Recipe) -> Any:
    if not torch.cuda.is_available():
        raise RecipeError(
            "load_in_4bit needs a CUDA card, and none is seen here; leave it out to train in 16 or 32 bit"
        )
    try:
        import bitsandbytes  # type: ignore[import-not-found, import-untyped, unused-ignore] # noqa: F401, PLC0415
    except ImportError:
        raise RecipeError("load_in_4bit needs bitsandbytes: pip install bitsandbytes") from None
    from transformers import BitsAndBytesConfig  # noqa: PLC0415

    make: Any = BitsAndBytesConfig
    return make(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=torch.bfloat16 if recipe.bf16 is not False else torch.float16,
    )  # fmt: skip


def _fits(recipe: Recipe, where: str, precision: torch.dtype) -> None:
    """Raises RecipeError when the weights alone do not fit into free memory. Silent where their size is not known."""
    files = [*Path(where).glob("*.safetensors")] or [*Path(where).glob("pytorch_model*.bin")]
    stored = sum(file.stat().st_size for file in files)
    if recipe.load_in_4bit:
        needed, free = stored * 0.35, torch.cuda.mem_get_info()[0]
    elif torch.cuda.is_available():
        needed, free = stored * _SPARE, torch.cuda.mem_get_info()[0]
    else:
        needed = stored * _SPARE * (2 if precision == torch.float32 else 1)
        free = psutil.virtual_memory().available
    if needed > free:
        raise RecipeError(
            f"model {recipe.model}: its weights need about {size(needed)}, and {size(free)} are free; "
            "take a smaller model" + ("" if recipe.load_in_4bit else ", or load_in_4bit on a card")
        )


def _fetched(recipe: Recipe, fetch: Any) -> Any:
    """What ``fetch`` brings, or the reason in one line why it cannot."""
    try:
        return fetch()
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        text = " ".join(str(error).split())
        if "offline" in text.lower() or "connect" in text.lower() or "couldn't find them in the cached files" in text:
            reason = "it is no folder here, and the hub cannot be reached; give a folder, or download it first"
        elif "not a valid model identifier" in text or "is not a local folder" in text or "404" in text:
            reason = "no folder and no model of that name on the hub"
        else:
            reason = text[:200]
        raise RecipeError(f"model {recipe.model}: {reason}") from None
