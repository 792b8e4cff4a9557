"""``lorawatch preflight TARGET``: judge a run's set-up before it starts."""

from __future__ import annotations

import argparse
import json
import math
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lorawatch.cards import GIB
from lorawatch.cli.errors import UsageError
from lorawatch.cli.options import add_rule_options, settings_of
from lorawatch.engine import order
from lorawatch.findings import Severity
from lorawatch.registry import RuleSet
from lorawatch.render import WIDTH, engine_text, finding_json, json_ready, number, printable, value_text
from lorawatch.version import __version__

if TYPE_CHECKING:
    from lorawatch.lora.preflight import Preflight
    from lorawatch.lora.vram import Choice, Estimate, Settings

SCHEMA = 1
"""Version of the JSON that ``preflight`` prints."""

_EPILOG = """\
exit code:
  0  nothing at or above --fail-on      1  something      2  nothing could be judged

examples:
  lorawatch preflight train.yaml                       TRL, axolotl or LLaMA-Factory; YAML, JSON or a Python script
  lorawatch preflight outputs/checkpoint-500           an adapter, and whether it fits its base model
  lorawatch preflight --model ./Qwen2.5-7B --dataset chats.jsonl --r 64 --learning-rate 2e-4
  lorawatch preflight train.yaml --measured 21.3       calibrated by torch.cuda.max_memory_allocated() after a step

Nothing is fetched, and no weight is read: the model is looked for at its path and in the Hugging Face cache.
"""

_WHOLE = ("r", "per_device_train_batch_size", "gradient_accumulation_steps", "max_steps", "max_length", "world_size")
_DECIMAL = ("lora_alpha", "lora_dropout", "learning_rate", "num_train_epochs")
_WORDS = ("bias", "optim", "dtype", "attn_implementation")
_LISTS = ("target_modules", "modules_to_save")
_SWITCHES = ("use_rslora", "use_dora", "load_in_4bit", "load_in_8bit", "bf16", "fp16", "activation_checkpointing",
             "packing", "use_liger_kernel", "assistant_only_loss")  # fmt: skip


def configure(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.description = (
        "Judge a LoRA run before it starts: its configuration against the model's own modules, the labels of its first "
        "rows, the memory that it needs, its length. A TARGET is a training configuration, an adapter_config.json, or "
        "the folder of a run or of an adapter; flags win over it, and can stand alone."
    )
    parser.epilog = _EPILOG
    parser.add_argument("target", metavar="TARGET", nargs="?", type=Path)
    parser.add_argument("--format", choices=("text", "json"), default="text")
    parser.add_argument(
        "--fail-on",
        choices=("info", "warning", "critical", "never"),
        help="exit with 1 from this severity on (default: warning)",
    )
    parser.add_argument("-v", "--verbose", action="store_true", help="also show what was abstained and why")
    parser.add_argument(
        "--measured", metavar="GIB", type=_size, help="peak in tensors after one step, to calibrate the memory by"
    )
    group = parser.add_argument_group("set-up")
    group.add_argument("--model", metavar="PATH", help="the base model's folder; its config.json is enough")
    group.add_argument("--dataset", metavar="FILE", help="training rows: .jsonl, .json or .csv")
    group.add_argument("--method", choices=("sft", "dpo", "kto", "orpo", "grpo", "rloo", "reward"))
    for name in _WHOLE:
        _flag(group, name, type=_count, metavar="N")
    for name in _DECIMAL:
        _flag(group, name, type=_decimal, metavar="X")
    for name in _WORDS:
        _flag(group, name, metavar="NAME")
    for name in _LISTS:
        _flag(group, name, metavar="NAMES", type=_names)
    for name in _SWITCHES:
        group.add_argument(
            f"--{name.replace('_', '-')}", dest=name, default=None, action=argparse.BooleanOptionalAction
        )
    add_rule_options(parser)


def run(options: argparse.Namespace) -> int:
    """Judge and print; returns the exit code.

    Raises:
        UsageError: There is no such target, or it states no set-up.
    """
    from lorawatch.lora.preflight import preflight  # noqa: PLC0415  (numpy and torch are loaded where they are needed)
    from lorawatch.lora.target_files import TargetError, read_target  # noqa: PLC0415

    flags = {name: getattr(options, name) for name in (*_WHOLE, *_DECIMAL, *_WORDS, *_LISTS, *_SWITCHES)}
    flags |= {"model": options.model, "dataset": options.dataset, "method": options.method}
    given = {name: value for name, value in flags.items() if value is not None}
    if options.target is None and "model" not in given:
        raise UsageError("nothing to judge: give a TARGET, or --model PATH")
    settings = settings_of(options)
    rules = RuleSet(settings)
    try:
        target = read_target(options.target, given, rules)
    except TargetError as error:
        raise UsageError(printable(error)) from None
    found = preflight(target, rules, measured=options.measured)
    if options.format == "json":
        text = json.dumps(preflight_json(found), indent=2, allow_nan=False)
    else:
        text = "\n".join(preflight_text(found, verbose=options.verbose))
    encoding = sys.stdout.encoding or "utf-8"
    sys.stdout.write(text.encode(encoding, "replace").decode(encoding) + "\n")
    sys.stdout.flush()
    fail_on = options.fail_on or settings.fail_on
    if fail_on == "never":
        return 0
    limit = Severity.parse(fail_on)
    return 1 if any(finding.severity >= limit for finding in found.engine.findings) else 0


def _flag(group: Any, name: str, **options: Any) -> None:
    group.add_argument(*dict.fromkeys((f"--{name.replace('_', '-')}", f"--{name}")), dest=name, default=None, **options)


def _count(text: str) -> int:
    value = float(text)
    if not 1 <= value < 1e12 or value != int(value):
        raise argparse.ArgumentTypeError(f"a whole number from 1 on, not {text!r}")
    return int(value)


def _decimal(text: str) -> float:
    value = float(text)
    if not math.isfinite(value) or value < 0:
        raise argparse.ArgumentTypeError(f"a number from 0 on, not {text!r}")
    return int(value) if value == int(value) else value


def _size(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"GiB, above 0, not {text!r}")
    return value * GIB


def _names(text: str) -> list[str] | str:
    """A list of what stands between commas, of one plain name too; ``all-linear`` and expressions stay as they are."""
    parts = [one.strip() for one in text.split(",") if one.strip()]
    if len(parts) > 1:
        return parts
    return text if text.lower() == "all-linear" or not text.replace("_", "").isalnum() else [text]


# ---- text


def preflight_text(found: Preflight, *, verbose: bool = False) -> list[str]:
    """What was found, as lines for a person."""
    run, target = found.engine.run, found.target
    kind = run.kind.value if target.kind_known else f"{run.kind.value} (assumed)"
    lines = [f"{printable(target.name)}: {kind}, as it is set up"]
    lines += [f"  {line}" for line in _judged(found)]
    lines.append("")
    for block in engine_text(found.engine, verbose=verbose):
        lines.append(textwrap.indent(block, "  "))
    if found.problems:
        lines += ["", "could not be read or checked:"]
        for problem in found.problems:
            lines += textwrap.wrap(
                printable(problem), WIDTH, initial_indent="  - ", subsequent_indent="    ", break_on_hyphens=False
            )
    if found.audit is not None:
        from lorawatch.lora.label_audit import audit_rich, audit_text  # noqa: PLC0415

        lines += ["", *(_coloured(audit_rich(found.audit)) if _colours() else audit_text(found.audit))]
    lines += ["", *_memory(found)]
    lines += _length(found)
    return lines


def _judged(found: Preflight) -> Iterator[str]:
    tree, run = found.tree, found.engine.run
    if tree is not None:
        parts = [f"{number(tree.parameters)} parameters", f"{tree.layers} layers", f"seen by its {tree.origin}"]
        yield f"model: {printable(found.target.model_name or 'as the run shows it')}: {', '.join(parts)}"
        if tree.trainable is not None:
            share = 100 * tree.trainable / max(tree.parameters + tree.trainable, 1)
            yield f"adapter: {tree.trainable:,} trainable parameters ({share:.2g} %)"
    if found.target.dataset is not None:
        yield f"data: {printable(found.target.dataset)}"
    by_origin: dict[str, list[str]] = {}
    for name, fact in sorted(run.facts.items()):
        by_origin.setdefault(fact.origin, []).append(f"{name} = {value_text(fact.value)}")
    for origin, facts in by_origin.items():
        yield from textwrap.wrap(
            f"{printable(origin)}: {', '.join(facts)}", WIDTH - 2, subsequent_indent="    ", break_on_hyphens=False
        )


def _colours() -> bool:
    import os  # noqa: PLC0415

    return sys.stdout.isatty() and "NO_COLOR" not in os.environ


def _coloured(lines: list[Any]) -> list[str]:
    from rich.console import Console  # noqa: PLC0415

    console = Console(force_terminal=True, soft_wrap=True)
    found: list[str] = []
    for line in lines:
        with console.capture() as captured:
            console.print(line)
        found.append(captured.get().rstrip("\n"))
    return found


def _gib(size: float) -> str:
    return f"{size / GIB:.1f}" if size >= GIB / 10 else f"{size / GIB:.2f}"


def _memory(found: Preflight) -> list[str]:
    made = found.estimate
    if made is None or found.settings is None:
        return []
    how = "scaled to the measured step" if made.calibrated else "by formula, not measured"
    band = f"{_gib(made.low)} to {_gib(made.high)} GiB"
    sure = f"± {100 * made.error:.0f} % of what a step needs"
    lines = [f"GPU memory: about {_gib(made.total)} GiB, {band} ({how}; {sure})"]
    lines += textwrap.wrap(
        "for: " + _ways_text(found.settings), WIDTH, initial_indent="  ", subsequent_indent="    "
    )  # fmt: skip
    parts = [f"{name} {_gib(size)}" for name, size in made.parts.items() if size >= GIB / 200]
    lines.append(f"  {', '.join(parts)}, context about {_gib(made.total - made.peak)} GiB")
    notes = [*found.assumed, *([made.note] if made.note else [])]
    lines += [f"  assumed: {printable(note)}" for note in notes]
    if not found.ways:
        return lines
    lines += ["", *_table(found.ways)]
    for card in found.ways[0].cards:
        fit = _fit_text(found.ways, card)
        if fit:
            lines.append(f"  {fit}")
    return lines


def _ways_text(settings: Settings) -> str:
    weights = {4: "4-bit weights", 8: "8-bit weights"}.get(settings.bits, f"{settings.dtype} weights")
    parts = [
        f"micro-batches of {settings.batch} × {settings.length} tokens" + (" × 2" if settings.copies == 2 else ""),
        weights, f"{settings.adapter_dtype} adapter", settings.optim,
        "checkpointing" if settings.checkpointing else "no checkpointing",
        "whole logits" if settings.whole_logits else "logits in chunks", f"{settings.attention} attention",
    ]  # fmt: skip
    return printable(", ".join(parts))


def _table(ways: list[Choice]) -> list[str]:
    cards = list(ways[0].cards)
    head = f"  {'':2}{'r':>5} {'batch':>6} {'weights':>8} {'checkpointing':>14} {'GiB':>7}  " + "".join(
        f"{f'{card} GB':>7}" for card in cards
    )
    lines = [head]
    for one in (ways[0], *sorted(ways[1:], key=lambda one: -one.estimate.total)):
        bits = {4: "4-bit", 8: "8-bit"}.get(
            one.settings.bits, one.settings.dtype.replace("float", "fp").replace("bfp", "bf")
        )
        mark = "→" if one.as_configured else ""
        checkpointing = "yes" if one.settings.checkpointing else "no"
        lines.append(
            f"  {mark:2}{one.rank:>5} {one.settings.batch:>6} {bits:>8} {checkpointing:>14} "
            f"{_gib(one.estimate.total):>7}  " + "".join(f"{one.cards[card]:>7}" for card in cards)
        )
    return lines


def _fit_text(ways: list[Choice], card: int) -> str:
    from lorawatch.lora.vram import nearest_fit  # noqa: PLC0415

    article = "an" if str(card).startswith("8") else "a"
    now, best = ways[0], nearest_fit(ways, card)
    if best is None:
        return f"on {article} {card} GB card none of these fits for sure"
    if best is now:
        return f"fits on {article} {card} GB card as it is"
    changes = []
    if best.rank != now.rank:
        changes.append(f"r {best.rank}")
    if best.settings.batch != now.settings.batch:
        changes.append(f"per_device_train_batch_size {best.settings.batch}")
    if best.settings.checkpointing != now.settings.checkpointing:
        changes.append("activation checkpointing" if best.settings.checkpointing else "no checkpointing")
    if best.settings.bits == now.settings.bits and best.settings.dtype != now.settings.dtype:
        changes.append(f"dtype {best.settings.dtype}")
    if best.settings.bits != now.settings.bits:
        changes.append("a 4-bit base" if best.settings.bits == 4 else f"a {best.settings.dtype} base")
    return f"fits on {article} {card} GB card with {', '.join(changes)}: {_gib(best.estimate.total)} GiB"


def _length(found: Preflight) -> list[str]:
    plan = found.plan
    parts = []
    if plan.steps is not None:
        parts.append(f"{'' if plan.exact else 'about '}{number(plan.steps)} steps")
    if plan.rows is not None:
        parts.append(f"{number(plan.rows)} rows")
    if plan.tokens is not None:
        trained = "" if plan.trained_tokens is None else f", {_round(plan.trained_tokens)} of them trained on"
        parts.append(f"about {_round(plan.tokens)} tokens{trained}")
    if not parts:
        return []
    if plan.hours is not None:
        parts.append(f"about {number(float(f'{plan.hours:.2g}'))} hours at the pace of its own steps")
    return ["", f"length: {', '.join(parts)}"]


def _round(count: float) -> str:
    return number(float(f"{count:.2g}"))


# ---- JSON


def preflight_json(found: Preflight) -> dict[str, Any]:
    """What was found, as JSON."""
    engine, target, tree = found.engine, found.target, found.tree
    plan = found.plan
    return {
        "lorawatch": __version__,
        "schema": SCHEMA,
        "target": target.name,
        "family": target.family,
        "kind": engine.run.kind.value,
        "kind_known": target.kind_known,
        "facts": {
            name: {"value": json_ready(fact.value), "origin": fact.origin, "inferred": fact.inferred}
            for name, fact in sorted(engine.run.facts.items())
        },
        "model": None if tree is None else {
            "name": target.model_name, "parameters": tree.parameters, "trainable": tree.trainable,
            "layers": tree.layers, "origin": tree.origin, "targets": json_ready(tree.targets),
            "modules_to_save": json_ready(tree.saved),
        },
        "findings": [finding_json(finding) for finding in order(engine.findings)],
        "abstained": [{"rule": one.rule, "missing": list(one.missing)} for one in engine.abstained()],
        "rule_errors": dict(engine.rule_errors),
        "problems": list(found.problems),
        "labels": None if found.audit is None else _labels_json(found),
        "memory": _memory_json(found),
        "length": {
            "rows": plan.rows, "steps": plan.steps, "exact": plan.exact, "tokens": json_ready(plan.tokens),
            "trained_tokens": json_ready(plan.trained_tokens), "hours": json_ready(plan.hours),
        },
    }  # fmt: skip


def _labels_json(found: Preflight) -> Any:
    import msgspec  # noqa: PLC0415

    return json_ready(msgspec.to_builtins(found.audit))


def _memory_json(found: Preflight) -> dict[str, Any] | None:
    if found.estimate is None or found.settings is None:
        return None
    return {
        **_estimate_json(found.estimate),
        "assumed": list(found.assumed),
        "ways": [
            {
                "r": one.rank, **_settings_json(one.settings), "as_configured": one.as_configured,
                "total_bytes": round(one.estimate.total), "low_bytes": round(one.estimate.low),
                "high_bytes": round(one.estimate.high), "fits": {f"{card} GB": fit for card, fit in one.cards.items()},
            }
            for one in found.ways
        ],
    }  # fmt: skip


def _estimate_json(made: Estimate) -> dict[str, Any]:
    return {
        "total_bytes": round(made.total), "low_bytes": round(made.low), "high_bytes": round(made.high),
        "peak_allocated_bytes": round(made.peak), "error": made.error, "calibrated": made.calibrated, "note": made.note,
        "parts_bytes": {name: round(size) for name, size in made.parts.items()},
    }  # fmt: skip


def _settings_json(settings: Settings) -> dict[str, Any]:
    return {
        "per_device_train_batch_size": settings.batch, "max_length": settings.length, "bits": settings.bits,
        "dtype": settings.dtype, "activation_checkpointing": settings.checkpointing,
    }  # fmt: skip
