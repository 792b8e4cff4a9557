"""``lorawatch train``: the reference LoRA fine-tune, and the faults that it can inject."""

from __future__ import annotations

import argparse
import os
import re
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from lorawatch.cli.errors import UsageError
from lorawatch.trainer.recipe import FIELDS, RecipeError, load_recipe, recipe_of

_EPILOG = """\
examples:
  lorawatch train --max-steps 200                          the tiny base on built-in data: a minute on a processor
  lorawatch train --model ./Qwen2.5-7B-Instruct --dataset chats.jsonl --r 64
  lorawatch train --config run.yaml --learning-rate 1e-4   a flag wins over the file
  accelerate launch -m lorawatch.cli.main train --config run.yaml     on several cards
  lorawatch train --list-faults
  lorawatch train --inject learning-rate-too-high          break it, and see what is said
"""

GROUPS = (
    ("run", ("model", "dataset", "eval_dataset", "method", "output_dir", "seed", "resume_from_checkpoint")),
    ("adapter", ("r", "lora_alpha", "lora_dropout", "target_modules", "modules_to_save", "bias", "use_rslora",
                 "load_in_4bit")),
    ("optimization", ("learning_rate", "lr_scheduler_type", "warmup_steps", "optim", "adam_beta1", "adam_beta2",
                      "weight_decay", "max_grad_norm", "per_device_train_batch_size", "gradient_accumulation_steps",
                      "num_train_epochs", "max_steps", "early_stopping_patience")),
    ("preference and reinforcement", ("beta", "loss_type", "label_smoothing", "num_generations",
                                      "max_completion_length", "temperature")),
)  # fmt: skip
NEEDED = {"torch": (2, 4), "transformers": (5, 0), "peft": (0, 17), "trl": (1, 0), "datasets": (2, 21), "accelerate": (1, 0)}  # fmt: skip  # noqa: E501
"""Libraries that training needs, and their oldest versions."""


class _Flags(argparse.Action):
    """Collects ``NAME=VALUE`` of ``--set``."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        name, sign, value = str(values).partition("=")
        if not sign or not name:
            parser.error(f"--set {values}: write NAME=VALUE")
        held = dict(getattr(namespace, self.dest, None) or {})
        held[name] = _plain(value)
        setattr(namespace, self.dest, held)


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options: one for each field of the recipe."""
    parser.description = (
        "Fine-tune a language model with LoRA as TRL, PEFT and transformers do it, with lorawatch attached. "
        "Without --model and --dataset it trains a tiny base model on built-in data."
    )
    parser.epilog = _EPILOG
    parser.add_argument("--config", metavar="FILE", type=Path, help="YAML file with these same parameters")
    parser.add_argument("--list-faults", action="store_true", help="list what --inject can break, and stop")
    parser.add_argument("--quiet", action="store_true", help="no progress bar, no findings: only how it ended")
    grouped = {name: title for title, names in GROUPS for name in names}
    groups = {
        title: parser.add_argument_group(title) for title in [*dict(GROUPS), "data, logging, checkpoints, faults"]
    }
    for name, item in FIELDS.items():
        group = groups[grouped.get(name, "data, logging, checkpoints, faults")]
        words = str(item.metadata["help"])
        if item.metadata.get("flag"):
            group.add_argument(
                f"--{item.metadata['flag']}", action=_Flags, dest=name, default=argparse.SUPPRESS, metavar="NAME=VALUE",
                help=words,
            )  # fmt: skip
            continue
        if item.default not in (None, -1) and "default" not in words:
            words += f" (default: {item.default})"
        spellings = dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}"))
        # A switch may stand alone; a value may follow it, as in the YAML file.
        alone: dict[str, Any] = {"nargs": "?", "const": True} if isinstance(item.default, bool) else {}
        group.add_argument(
            *spellings, dest=name, default=argparse.SUPPRESS, metavar="VALUE", help=words.replace("%", "%%"), **alone
        )


def run(options: argparse.Namespace) -> int:
    """Train; returns the exit code."""
    if options.list_faults:
        return _list_faults()
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # PEFT and TRL still use names that transformers 5.23 replaced: nothing that a user of this command can change.
    warnings.filterwarnings("ignore", r"`(is_)?gradient_checkpointing\w*` is deprecated", FutureWarning)
    try:
        given = load_recipe(options.config) if options.config is not None else {}
        flags = {name: value for name, value in vars(options).items() if name in FIELDS}
        recipe = recipe_of(given, str(options.config)) if given else None  # an error in the file names the file
        if "training_arguments" in flags and recipe is not None:
            flags["training_arguments"] = recipe.training_arguments | flags["training_arguments"]
        recipe = recipe_of(given | flags, "command line")
        _libraries()
        from lorawatch.trainer.fine_tune import fine_tune, misconfigured  # noqa: PLC0415  (loads torch)
        from lorawatch.trainer.outcome import summary_text  # noqa: PLC0415

        recipe = misconfigured(recipe)
        outcome = fine_tune(recipe, quiet=options.quiet, probes=recipe.is_tiny, tell=_tell)
    except RecipeError as error:
        raise UsageError(str(error)) from None
    if outcome.trainer.is_world_process_zero():
        _tell(summary_text(outcome))
    return 0


def _tell(text: str) -> None:
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def _libraries() -> None:
    """Raises RecipeError when a library that training needs is missing or too old."""
    for name, least in NEEDED.items():
        wanted = ".".join(map(str, least))
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            raise RecipeError(f"train needs {name}: pip install 'lorawatch[train]'") from None
        if tuple(int(part) for part in re.findall(r"\d+", found)[:2]) < least:
            raise RecipeError(f"train needs {name} {wanted} or newer, and {found} is installed: pip install -U {name}")


def _plain(text: str) -> Any:
    """A value of ``--set`` as YAML reads it, and ``1e-4`` as the number it is."""
    import yaml  # noqa: PLC0415

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return text
    if isinstance(value, str):
        try:
            return float(value)
        except ValueError:
            return value
    return value


def _list_faults() -> int:
    from lorawatch.registry import RuleSet  # noqa: PLC0415
    from lorawatch.settings import Settings  # noqa: PLC0415
    from lorawatch.trainer.faults.listing import listing_text  # noqa: PLC0415

    _tell(listing_text({rule.id for rule in RuleSet(Settings()).make()}))
    return 0
