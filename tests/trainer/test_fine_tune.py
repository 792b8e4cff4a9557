"""The reference trainer on its tiny base: real runs of a few steps."""

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from lorawatch.cli.main import main
from lorawatch.trainer.base_model import load_base, load_tokenizer
from lorawatch.trainer.fine_tune import adapter, arguments, fine_tune
from lorawatch.trainer.recipe import RecipeError, recipe_of
from lorawatch.trainer.replies import generate

QUICK: dict[str, Any] = {
    "max_steps": 6, "train_rows": 48, "eval_rows": 8, "eval_steps": 3, "save_steps": 3, "sample_steps": 3,
    "logging_steps": 1, "per_device_train_batch_size": 4,
}  # fmt: skip


def words_of(told: pytest.CaptureFixture[str]) -> str:
    return told.readouterr().err


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_a_run_of_each_method_leaves_a_folder_like_anybodys(tmp_path: Path, method: str) -> None:
    more: dict[str, Any] = {"max_completion_length": 8, "eval_rows": 0, "max_steps": 3} if method == "grpo" else {}
    recipe = recipe_of(QUICK | {"method": method, "output_dir": str(tmp_path / "run")} | more, "test")
    outcome = fine_tune(recipe, quiet=True)
    assert outcome.steps == recipe.max_steps
    names = {file.name for file in outcome.folder.iterdir()}
    wanted = {"adapter_model.safetensors", "adapter_config.json", "trainer_state.json", "lorawatch.jsonl"}
    assert wanted | {"recipe.yaml", "checkpoint-3"} <= names
    history = json.loads((outcome.folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
    assert [row["step"] for row in history if "loss" in row] == list(range(1, recipe.max_steps + 1))
    if method != "grpo":
        assert [row["step"] for row in history if "eval_loss" in row] == [3, 6]
    records = [
        json.loads(line) for line in (outcome.folder / "lorawatch.jsonl").read_text(encoding="utf-8").splitlines()
    ]
    looks = [record for record in records if record["type"] == "samples"]
    assert [look["step"] for look in looks] == list(range(3, recipe.max_steps + 1, 3))
    assert {sample.get("probe", "task") for sample in looks[0]["base"]} == {"task", "general"}
    again = recipe_of(yaml.safe_load((outcome.folder / "recipe.yaml").read_text(encoding="utf-8")), "recipe.yaml")
    assert again == recipe


def test_samples_do_not_change_the_training(tmp_path: Path) -> None:
    losses = []
    for steps in (0, 2):
        recipe = recipe_of(
            QUICK | {"sample_steps": steps, "lora_dropout": 0.1, "output_dir": str(tmp_path / str(steps))}, "test"
        )
        history = fine_tune(recipe, quiet=True).trainer.state.log_history
        losses.append([row["loss"] for row in history if "loss" in row])
    assert losses[0] == losses[1]


def test_a_run_goes_on_from_its_last_checkpoint(tmp_path: Path) -> None:
    given = QUICK | {"output_dir": str(tmp_path)}
    fine_tune(recipe_of(given | {"max_steps": 3}, "test"), quiet=True)
    outcome = fine_tune(recipe_of(given | {"resume_from_checkpoint": "last"}, "test"), quiet=True)
    assert [row["step"] for row in outcome.trainer.state.log_history if "loss" in row] == [1, 2, 3, 4, 5, 6]
    text = (tmp_path / "lorawatch.jsonl").read_text(encoding="utf-8")
    assert '"event":"resumed","step":3' in text


def test_the_guides_defaults_reach_peft_and_trl() -> None:
    recipe = recipe_of({}, "test")
    config = adapter(recipe)
    assert (config.r, config.lora_alpha, config.lora_dropout, config.bias) == (16, 32, 0.0, "none")
    assert config.target_modules == "all-linear"
    args = arguments(recipe)
    assert args.learning_rate == recipe.peak_rate
    assert args.eval_steps == 0.1
    assert args.report_to == []


def test_any_other_training_argument_can_be_set() -> None:
    assert arguments(recipe_of({"training_arguments": {"neftune_noise_alpha": 5.0}}, "test")).neftune_noise_alpha == 5.0
    with pytest.raises(RecipeError, match=r"no field 'neftune_alpha'; did you mean 'neftune_noise_alpha'"):
        arguments(recipe_of({"training_arguments": {"neftune_alpha": 5.0}}, "test"))
    with pytest.raises(RecipeError, match="training arguments: "):
        arguments(recipe_of({"lr_scheduler_type": "cosinus"}, "test"))


def test_replies_are_greedy_and_leave_model_tokenizer_and_dice_as_they_were() -> None:
    recipe = recipe_of({}, "test")
    model, tokenizer = load_base(recipe), load_tokenizer(recipe)
    model.train()
    side, state, dice = tokenizer.padding_side, torch.get_rng_state(), random.getstate()
    prompts = [[{"role": "user", "content": "Take 2 from 3."}], [{"role": "user", "content": "Hello"}]]
    replies = generate(model, tokenizer, prompts, max_new_tokens=12)
    assert replies == generate(model, tokenizer, prompts, max_new_tokens=12)
    assert replies[0] == generate(model, tokenizer, prompts[:1], max_new_tokens=12)[0]
    assert model.training
    assert tokenizer.padding_side == side
    assert torch.equal(torch.get_rng_state(), state)
    assert random.getstate() == dice


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--model", "./none"], "model ./none: there is no such folder"),
        (["--model", "nobody/no-such-model"], "model nobody/no-such-model: it is no folder here, and the hub cannot"),
        (["--dataset", "./none.jsonl"], "dataset ./none.jsonl: there is no such file"),
        (["--target-modules", "q_prj,v_prj"], "q_prj"),
        (["--inject", "no-such-fault"], "there is no such fault"),
        (["--method", "grpo", "--inject", "labels-all-masked"], "grpo cannot have this fault; it is for sft"),
        (["--method", "dpo", "--load-in-4bit"], "load_in_4bit needs a CUDA card"),
        (["--method", "grpo", "--num-generations", "3"], "must be a multiple of num_generations 3"),
        (["--resume-from-checkpoint", "last"], "holds no checkpoint"),
        (["--config", "none.yaml"], "none.yaml: cannot be read"),
        (["--output-dir", "/dev/null/run"], "output_dir /dev/null/run: cannot be made"),
    ],
)
def test_what_cannot_be_trained_is_told_in_a_line_before_training(
    flags: list[str], words: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub.constants

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    assert main(["train", "--quiet", "--train-rows", "8", "--eval-rows", "4", *flags]) == 2
    told = words_of(capsys)
    assert words in told
    assert "Traceback" not in told
    assert len(told.strip().splitlines()) == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="here is a card")
def test_a_fault_of_the_card_is_refused_without_one(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match="--inject vram-headroom: needs a CUDA card, and there is none"):
        fine_tune(recipe_of({"output_dir": str(tmp_path / "run"), "inject": "vram-headroom:plain"}, "test"))
    assert not (tmp_path / "run").exists()


def test_a_folder_that_holds_an_adapter_is_no_base(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}", encoding="utf-8")
    with pytest.raises(RecipeError, match="holds an adapter, not a base model"):
        load_tokenizer(recipe_of({"model": str(tmp_path)}, "test"))


def test_too_little_memory_is_told_before_loading(monkeypatch: pytest.MonkeyPatch) -> None:
    import psutil

    class Memory:
        available = 1_000_000

    monkeypatch.setattr(psutil, "virtual_memory", Memory)
    with pytest.raises(RecipeError, match=r"its weights need about .* are free; take a smaller model"):
        load_base(recipe_of({}, "test"))


def test_the_command_trains_and_tells_how_it_went(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = [f"--{name}={value}" for name, value in QUICK.items()]
    assert main(["train", "--quiet", *flags, "--set", "neftune_noise_alpha=5"]) == 0
    told = capsys.readouterr().out
    assert "6 steps in" in told
    assert "eval_loss" in told
    assert "task probes" in told
    assert "lorawatch check lorawatch-run" in told


def test_the_faults_are_listed_with_what_should_come_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["train", "--list-faults"]) == 0
    told = capsys.readouterr().out
    assert "learning-rate-too-high  [" in told
    assert "→ sig/no-supervision (critical)" in told
