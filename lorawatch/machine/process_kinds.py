"""What a process is, told from its name and command line: a training script, its launcher, a worker, or none of them.

Command lines are hostile input, and may hold secrets (``--hub_token``): only the program's own name is ever shown.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Sequence

_PYTHON = re.compile(r"(?:i?python|pypy)[\d.]*\Z")
_OPTION = re.compile(r"-[bBdEhiIOPqRsSuvx]*([cmWX])(.*)\Z", re.DOTALL)
"""An option of the interpreter that takes a value, alone or after options that take none (``-um module``)."""
LAUNCHERS = frozenset({
    "torchrun", "torch.distributed.run", "torch.distributed.launch", "accelerate", "accelerate.commands.launch",
    "accelerate.commands.accelerate_cli", "deepspeed", "deepspeed.launcher.runner", "deepspeed.launcher.launch",
    "colossalai", "horovodrun", "conda", "mamba", "supervisord", "circusd", "honcho",
})  # fmt: skip
"""Python programs that only start others, and may write what these print."""
DRIVERS = frozenset({
    "llamafactory-cli", "llamafactory.cli", "axolotl", "axolotl.cli.main", "axolotl.cli.train", "trl", "swift", "tune",
    "xtuner", "oumi", "autotrain",
})  # fmt: skip
"""Python programs that train themselves or start a launcher, as their configuration says."""
_HELPERS = frozenset({
    "compile_worker", "debugpy", "adapter", "gpustat", "jupyter", "jupyter-lab", "jupyter-notebook", "jupyterhub",
    "jupyterlab", "lorawatch", "lorawatch.cli.main", "mlflow", "notebook", "nvitop", "pip", "popen_loky_posix",
    "tensorboard", "tensorboard.main", "trackio", "uv", "wandb", "wandb-service", "http.server",
})  # fmt: skip
"""Python programs that never train, even when they stand beside a run or were started by it."""
_HELPER_CODE = ("resource_tracker", "semaphore_tracker", "multiprocessing.forkserver", "loky")
_TRAINING = re.compile(
    r"(?:\A|[\W_])(?:pre|re)?(?:train(?:er|ing)?|sft|dpo|orpo|kto|grpo|rloo|rlhf|q?lora|fine[-_]?tun(?:e|ing))(?:[\W_\d]|\Z)"
    r"|\Arun_(?:clm|mlm|seq2seq|glue)",
    re.IGNORECASE,
)
_OUTPUT = re.compile(r"(?:output|logging|save|out|default_root)[-_]dir\Z")
"""Options that say where a run's output goes: transformers, LLaMA-Factory and axolotl, Lightning."""
_SHOWN = 60
"""Characters of a program's name that are shown."""
_MOST_WORDS = 1000
"""Arguments of a command that are looked at."""


def is_python(command: Sequence[str], executable: str = "") -> bool:
    """Whether an interpreter of Python runs the command; ``executable`` helps where it wrote over its command line."""
    return any(_PYTHON.match(_name(word)) for word in (*command[:1], executable))


def program(command: Sequence[str]) -> str:
    """What an interpreter runs: a script's name without ``.py``, a module's full name, ``-c``, or "" for a prompt.

    For a command that no Python runs, the name of its program.
    """
    how, what = _entry(command)
    if how != "script":
        return what
    stem = _name(what).removesuffix(".py")
    return _name(what.rpartition("/")[0]) if stem == "__main__" else stem


def shown(command: Sequence[str], name: str = "") -> str:
    """A command for a person to read: interpreter and program, without its arguments and without control characters."""
    how, what = _entry(command)
    if how == "program":
        text = what or name or "?"
    else:
        text = f"python {'-m ' if how == 'module' else ''}{_name(what)}".rstrip()
    return "".join(letter if letter.isprintable() else "?" for letter in text[:_SHOWN])


def is_launcher(command: Sequence[str]) -> bool:
    """Whether the command only starts processes that train."""
    return program(command) in LAUNCHERS


def is_driver(command: Sequence[str]) -> bool:
    """Whether the command trains itself or starts others that do."""
    return program(command) in DRIVERS


def is_helper(command: Sequence[str]) -> bool:
    """Whether the command is known never to train."""
    what = program(command)
    if what == "-c":
        return any(part in word for word in command[1:4] for part in _HELPER_CODE)
    return what in _HELPERS or what.split(".", 1)[0] in {"wandb", "jupyter", "tensorboard", "debugpy", "pip"}


def is_worker(name: str, command: Sequence[str], parent: Sequence[str]) -> bool:
    """Whether a child is a worker of a data loader.

    Torch 2.13 names its workers itself (``torch/utils/data/_utils/worker.py``). Older ones are told as what
    :mod:`multiprocessing` makes: forks share their parent's command line, spawned ones have ``--multiprocessing-fork``.
    A pool that prepares data (``Dataset.map(num_proc=8)``) looks the same and counts as well.

    Args:
        name: The child's name.
        command: Its command line.
        parent: Its parent's command line.
    """
    if name.startswith("pt_data_worker"):
        return True
    if "--multiprocessing-fork" in command or any("spawn_main(" in word for word in command[1:4]):
        return True
    return bool(command) and list(command) == list(parent) and is_python(command)


def looks_like_training(command: Sequence[str]) -> bool:
    """Whether program or first argument speak of training; a sign, no evidence."""
    what = program(command)
    if what in {"", "-c"} or is_helper(command):
        return False
    if _TRAINING.search(what) or what in LAUNCHERS - {"conda", "mamba", "supervisord", "circusd", "honcho"}:
        return True
    return what in DRIVERS and any(_TRAINING.search(word) for word in command[1:4])


def names_output(command: Sequence[str], folder: str, cwd: str) -> bool:
    """Whether a command line says that its output goes to a folder.

    An option such as ``--output_dir`` decides where there is one; else a bare argument of a training command does. The
    value of any other option does not: ``--model_name_or_path out/run1`` trains something else from that run.

    Args:
        command: The command line.
        folder: The folder, absolute.
        cwd: Folder that a relative argument starts from; "" when it is not known.
    """
    outputs: list[str] = []
    bare: list[str] = []
    before = ""
    for word in command[1:_MOST_WORDS]:
        option, equals, value = word.partition("=")
        if equals:
            if _OUTPUT.search(option):
                outputs.append(value)
        elif _OUTPUT.search(before):
            outputs.append(word)
        elif not word.startswith("-") and not before.startswith("-"):
            bare.append(word)
        before = word
    told = outputs or (bare if looks_like_training(command) else [])
    return any(posixpath.normpath(posixpath.join(cwd, word)) == folder for word in told if cwd or word.startswith("/"))


def _entry(command: Sequence[str]) -> tuple[str, str]:
    """How a command is run (``program``, ``script``, ``module``, ``code``, ``prompt``), and what of it."""
    if not is_python(command):
        return "program", _name(command[0]) if command else ""
    words = iter(command[1:])
    for word in words:
        option = _OPTION.match(word)
        if option is None:
            if word.startswith("--"):
                if word == "--check-hash-based-pycs":
                    next(words, "")
            elif not word.startswith("-"):
                return "script", word
            continue
        letter, attached = option.groups()
        if letter == "c":
            return "code", "-c"
        value = attached or next(words, "")
        if letter == "m":
            return "module", value
    return "prompt", ""


def _name(word: str) -> str:
    return word.rpartition("/")[2]
