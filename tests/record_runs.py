"""Records the runs of ``tests/runs`` and the one that ``lorawatch demo`` replays: real training, tiny, from seeds.

    python -m tests.record_runs              # all of them, a few minutes on two cores
    python -m tests.record_runs lr-too-high  # one of them

Each scenario is trained by a real Trainer in a process of its own, with its console written as a shell's
``> train.log 2>&1`` would. Its folder then holds ``train.log``, ``trainer_state.json``, ``adapter_config.json`` and the
callback's ``lorawatch.jsonl``. Losses are the same each time; timings and the redrawing of bars are not.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "tests" / "runs"
RECORDINGS = ROOT / "lorawatch" / "recordings"
DEMO = "demo"
BASE_STEPS = 600


@dataclass(frozen=True, slots=True)
class Scenario:
    """One run to record.

    Attributes:
        expect: What the run shows, for the README of the recordings.
        train: Trains it into a folder, with the callbacks that it is handed.
        buffered: Whether Python buffers the console, as it does when it is sent to a file without ``-u``.
        every_bar: Draw the bar at each step, as a run does whose steps take longer than a tenth of a second. Without
            it these quick steps leave gaps between the bars.
    """

    expect: str
    train: Callable[..., Any]
    buffered: bool = False
    every_bar: bool = True


def base() -> Any:
    """A base model that knows chain 0: trained once, kept for the scenarios that follow."""
    import torch

    from tests.integrations import lab

    file = Path(os.environ["LORAWATCH_BASE"])
    model = lab.base_model()
    if file.exists():
        model.load_state_dict(torch.load(file, weights_only=True))
        return model
    with tempfile.TemporaryDirectory() as folder:
        lab.train(
            Path(folder), model=model, data=lab.tokens(4_000, seed=0), max_steps=BASE_STEPS, logging_steps=100,
            learning_rate=5e-3, per_device_train_batch_size=16, disable_tqdm=True,
        )  # fmt: skip
    torch.save(model.state_dict(), file)
    return model


def plain(folder: Path, *callbacks: Any, **changes: Any) -> Any:
    """LoRA fine-tuning by the plain Trainer on chain 1."""
    from tests.integrations import lab

    given: dict[str, Any] = {
        "max_steps": 300, "learning_rate": 5e-3, "per_device_train_batch_size": 8, "logging_steps": 2,
        "data": lab.tokens(2_000), "lr_scheduler_type": "cosine", "warmup_steps": 10,
    } | changes  # fmt: skip
    return lab.train(folder, *callbacks, model=lab.adapted(base()), **given)


def healthy_sft(folder: Path, *callbacks: Any) -> Any:
    from tests.integrations import lab

    return plain(
        folder, *callbacks, evaluation=lab.tokens(64, draw=1), eval_strategy="steps", eval_steps=50,
        gradient_accumulation_steps=2,
    )  # fmt: skip


def lr_too_high(folder: Path, *callbacks: Any) -> Any:
    return plain(folder, *callbacks, learning_rate=1.0, max_steps=60, logging_steps=1, max_grad_norm=1000.0)


def labels_masked(folder: Path, *callbacks: Any) -> Any:
    from tests.integrations import lab

    return plain(folder, *callbacks, data=lab.tokens(400, masked=True), max_steps=40, logging_steps=1)


def nan_from_step_40(folder: Path, *callbacks: Any) -> Any:
    from tests.integrations.test_transformers import Poison

    return plain(folder, *callbacks, Poison(40), max_steps=80, logging_steps=1)


def overfit(folder: Path, *callbacks: Any) -> Any:
    from tests.integrations import lab

    return plain(
        folder, *callbacks, data=lab.tokens(48), evaluation=lab.tokens(64, draw=1), max_steps=400,
        eval_strategy="steps", eval_steps=20, lr_scheduler_type="constant", logging_steps=4, warmup_steps=0,
    )  # fmt: skip


def oscillating(folder: Path, *callbacks: Any) -> Any:
    """Batches that alternate between two languages without shuffling: the loss saws with the period of the data."""
    from datasets import Dataset  # type: ignore[import-untyped]

    from tests.integrations import lab

    easy, hard = lab.tokens(1_000, seed=0), lab.tokens(1_000, seed=2)
    rows = [(easy if index // 8 % 5 else hard)[index] for index in range(1_000)]
    data = Dataset.from_list(rows * 3)
    return plain(folder, *callbacks, data=data, max_steps=128, logging_steps=1, unshuffled=True)


def lr_too_low(folder: Path, *callbacks: Any) -> Any:
    return plain(folder, *callbacks, learning_rate=1e-7, max_steps=240)


def resumed(folder: Path, *callbacks: Any) -> Any:
    """Stopped at step 130, taken up again from the checkpoint of step 100."""
    from lorawatch import LoraWatchCallback
    from tests.integrations import lab

    saving: dict[str, Any] = {
        "save_strategy": "steps", "save_steps": 50, "max_steps": 240, "evaluation": lab.tokens(64, draw=1),
        "eval_strategy": "steps", "eval_steps": 50,
    }  # fmt: skip

    from transformers import TrainerCallback

    class Killed(TrainerCallback):
        def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if state.global_step == 130:
                raise KeyboardInterrupt

    try:
        plain(folder, *callbacks, Killed(), **saving)
    except KeyboardInterrupt:
        sys.stderr.write("\nKeyboardInterrupt\n")
    return plain(folder, LoraWatchCallback(quiet=True), resume=True, **saving)


def trl_run(folder: Path, *callbacks: Any, dpo: bool) -> Any:
    from tests.integrations import lab

    config: Any
    maker: Any
    more: dict[str, Any]
    if dpo:
        from trl.trainer.dpo_config import DPOConfig
        from trl.trainer.dpo_trainer import DPOTrainer

        config, maker = DPOConfig, DPOTrainer
        data, more = lab.preferences(800), {"beta": 0.1, "learning_rate": 5e-4}
    else:
        from trl.trainer.sft_config import SFTConfig
        from trl.trainer.sft_trainer import SFTTrainer

        config, maker = SFTConfig, SFTTrainer
        data, more = lab.texts(1_200), {"dataset_text_field": "text", "learning_rate": 5e-3, "eval_strategy": "steps"}
    args = lab.arguments(
        folder, config, max_steps=120, per_device_train_batch_size=8, max_length=32, logging_steps=3 if dpo else 2,
        eval_steps=40,
        **more,
    )  # fmt: skip
    evaluation = {} if dpo else {"eval_dataset": lab.texts(64, draw=1)}
    trainer = maker(
        model=base(), args=args, train_dataset=data, peft_config=lab.lora(), processing_class=lab.tokenizer(),
        callbacks=list(callbacks), **evaluation,
    )  # fmt: skip
    trainer.train()
    return trainer


def waits_for_data(folder: Path, *callbacks: Any) -> Any:
    """Learns well, but each row takes 8 ms to make and no worker makes it ahead."""
    import time

    from torch.utils.data import Dataset

    from tests.integrations import lab

    class Slow(Dataset[dict[str, list[int]]]):
        def __init__(self) -> None:
            self.rows = lab.tokens(2_000)

        def __len__(self) -> int:
            return len(self.rows)

        def __getitem__(self, index: int) -> dict[str, list[int]]:
            time.sleep(0.008)
            row: dict[str, list[int]] = self.rows[index]
            return row

    return plain(folder, *callbacks, data=Slow(), max_steps=160)


def demo(folder: Path, *callbacks: Any) -> Any:
    """A learning rate a few times too high, and no clipping: it learns well for 300 steps, then loses everything."""
    return plain(
        folder, *callbacks, max_steps=420, learning_rate=0.02, warmup_steps=20,
        lr_scheduler_type="constant_with_warmup", logging_steps=1, max_grad_norm=1000.0,
    )  # fmt: skip


SCENARIOS = {
    "healthy-sft": Scenario("learns, with evaluation and gradient accumulation", healthy_sft),
    "healthy-trl": Scenario("learns, by TRL's SFTTrainer", partial(trl_run, dpo=False), buffered=True, every_bar=False),
    "healthy-dpo": Scenario("learns to prefer, by TRL's DPOTrainer", partial(trl_run, dpo=True)),
    "lr-too-high": Scenario("blows up in the first steps", lr_too_high),
    "labels-masked": Scenario("every label is -100: nothing is learnt", labels_masked, buffered=True),
    "nan-from-step-40": Scenario(
        "one weight becomes infinite after step 40; the log shows a loss of 0", nan_from_step_40
    ),
    "overfit": Scenario("learns 48 sentences by heart while the evaluation loss rises", overfit),
    "oscillating": Scenario("one batch in five is of another, harder kind", oscillating),
    "lr-too-low": Scenario("a learning rate at which nothing moves", lr_too_low),
    "resumed": Scenario("interrupted at step 130, resumed from step 100", resumed),
    "waits-for-data": Scenario("learns, but waits for its data four fifths of the time", waits_for_data),
    DEMO: Scenario("learns for 300 steps, then diverges", demo),
}


def record(name: str, base_file: Path) -> None:
    """Train one scenario in a process of its own and keep what it left."""
    scenario = SCENARIOS[name]
    with tempfile.TemporaryDirectory() as folder:
        environment = os.environ | {
            "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "LORAWATCH_BASE": str(base_file),
            "PYTHONUNBUFFERED": "" if scenario.buffered else "1", "PYTHONWARNINGS": "ignore", "COLUMNS": "80",
            "TQDM_MININTERVAL": "0" if scenario.every_bar else "0.1",
        }  # fmt: skip
        log = Path(folder) / "train.log"
        with log.open("wb") as console:
            subprocess.run(
                [sys.executable, "-m", "tests.record_runs", "--train", name, folder], cwd=ROOT, env=environment,
                stdout=console, stderr=subprocess.STDOUT, check=True,
            )  # fmt: skip
        keep(Path(folder), name)


def keep(folder: Path, name: str) -> None:
    """Move what belongs to a recording to its place; nothing in it names a folder of the machine it was made on."""
    if name == DEMO:
        target, files = RECORDINGS, ["train.log", "adapter_config.json", "training_args.json"]
    else:
        target = RUNS / name
        files = ["train.log", "adapter_config.json", "trainer_state.json", "lorawatch.jsonl"]
    shutil.rmtree(target, ignore_errors=True)
    target.mkdir(parents=True)
    for file in files:
        data = (folder / file).read_bytes()
        if file == "lorawatch.jsonl":  # a reading of the host names the folder whose disk it looked at
            data = data.replace(str(folder).encode(), b"/runs/" + name.encode())
        if str(folder).encode() in data or str(Path.home()).encode() + b"/" in data or str(ROOT).encode() in data:
            raise SystemExit(f"{name}/{file} names a folder of this machine")
        (target / file).write_bytes(data)


def train(name: str, folder: Path) -> None:
    """Train one scenario here, and write beside its log what a Trainer's job leaves."""
    from lorawatch import LoraWatchCallback

    trainer = SCENARIOS[name].train(folder, LoraWatchCallback(quiet=True))
    state = folder / "trainer_state.json"
    trainer.state.save_to_json(str(state))
    # One row a line instead of five: the recordings stay small, and a bare NaN stays what it is.
    told = json.loads(state.read_text(encoding="utf-8"))
    history = ",\n".join(json.dumps(entry) for entry in told.pop("log_history"))
    state.write_text(json.dumps(told)[:-1] + f', "log_history": [\n{history}\n]}}\n', encoding="utf-8")
    adapter = {
        field: sorted(value) if isinstance(value, set) else getattr(value, "value", value)
        for field, value in trainer.model.peft_config["default"].to_dict().items()
        if field
        in ("r", "lora_alpha", "lora_dropout", "target_modules", "bias", "task_type", "peft_type", "use_rslora")
    }
    (folder / "adapter_config.json").write_text(json.dumps(adapter, indent=2, default=str) + "\n", encoding="utf-8")
    lines = (folder / "lorawatch.jsonl").read_text(encoding="utf-8").splitlines()
    facts = next(json.loads(line)["values"] for line in lines if json.loads(line)["type"] == "facts")
    arguments = {name: value for name, value in facts.items() if name not in adapter}
    (folder / "training_args.json").write_text(json.dumps(arguments, indent=2) + "\n", encoding="utf-8")


def main(arguments: list[str]) -> None:
    if arguments[:1] == ["--train"]:
        train(arguments[1], Path(arguments[2]))
        return
    with tempfile.TemporaryDirectory() as folder:
        base_file = Path(folder) / "base.pt"
        os.environ["LORAWATCH_BASE"] = str(base_file)
        base()  # before any console is recorded
        for name in arguments or SCENARIOS:
            sys.stderr.write(f"{name}: {SCENARIOS[name].expect}\n")
            record(name, base_file)


if __name__ == "__main__":
    main(sys.argv[1:])
