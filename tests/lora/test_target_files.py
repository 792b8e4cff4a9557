"""What preflight is pointed at: configurations of three families, adapters, folders, flags, and what is wrong there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from lorawatch.lora.library_defaults import UNKNOWN, fields_of
from lorawatch.lora.target_files import Target, TargetError, count_rows, local_model, read_target
from lorawatch.registry import RuleSet
from lorawatch.settings import Settings

RULES = RuleSet(Settings())


def apart_from_data(target: Target) -> list[str]:
    """What is wrong with a target but that its data are not on this machine."""
    return [problem for problem in target.problems if not problem.startswith("rows: ")]


MODEL = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64, "num_hidden_layers": 2}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(MODEL))
    return folder


def target(path: Path | None, **flags: Any) -> Target:
    return read_target(path, flags, RULES)


def written(path: Path, text: str) -> Path:
    path.write_text(text)
    return path


TRL = """\
# how we train
model_name_or_path: model
dataset_name: rows.jsonl
use_peft: true
lora_r: 64
lora_target_modules: all-linear
learning_rate: 1e-4
per_device_train_batch_size: 2
max_length: 512
"""


def test_a_trl_configuration_gives_facts_adapter_model_and_data(tmp_path: Path, model: Path) -> None:
    written(tmp_path / "rows.jsonl", '{"text": "a"}\n')
    found = target(written(tmp_path / "train.yaml", TRL))
    assert found.family == "transformers"
    assert (found.value("r"), found.value("learning_rate"), found.value("max_length")) == (64, 1e-4, 512)
    assert found.adapter is not None
    assert (found.adapter["r"], found.adapter["target_modules"]) == (64, "all-linear")
    assert found.model == model
    assert found.dataset == tmp_path / "rows.jsonl"
    assert apart_from_data(found) == []


def test_what_is_not_stated_is_the_installed_versions_default(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("trl")
    found = target(written(tmp_path / "train.yaml", TRL))
    assert found.value("lora_alpha") == fields_of("ModelConfig")["lora_alpha"] == 32
    assert found.value("lora_dropout") == 0.05
    assert found.value("activation_checkpointing") is True
    assert found.value("bf16") is True
    origins = {update.origin: update.inferred for update in found.facts}
    assert origins["default of TRL's ModelConfig"] is origins["default of SFTConfig"] is True
    assert origins["train.yaml"] is False


def test_the_defaults_that_are_read_from_source_are_those_of_the_classes() -> None:
    trl = pytest.importorskip("trl")
    import dataclasses

    for name in ("SFTConfig", "DPOConfig", "GRPOConfig", "ModelConfig"):
        read = fields_of(name)
        real = {item.name: item for item in dataclasses.fields(getattr(trl, name))}
        assert set(real) <= set(read)
        told = {key: value for key, value in read.items() if value is not UNKNOWN and key in real}
        assert len(told) > 10
        for key, value in told.items():
            # A class may set a field anew without a literal; what is told has to be right.
            if real[key].default is not dataclasses.MISSING:
                assert value == real[key].default, (name, key)
    assert fields_of("NoSuchConfig") == {}


AXOLOTL = """\
base_model: model
adapter: qlora
lora_r: 32
lora_alpha: 16
lora_target_linear: true
sequence_len: 4096
sample_packing: true
micro_batch_size: 2
num_epochs: 2
optimizer: paged_adamw_8bit
learning_rate: 0.0002
bf16: auto
gradient_checkpointing: true
flash_attention: true
datasets:
  - path: org/data
    type: alpaca
"""


def test_an_axolotl_configuration(tmp_path: Path, model: Path) -> None:
    found = target(written(tmp_path / "axolotl.yml", AXOLOTL))
    assert found.family == "axolotl"
    wanted = {
        "r": 32, "lora_alpha": 16, "target_modules": "all-linear", "load_in_4bit": True, "packing": True,
        "max_length": 4096, "per_device_train_batch_size": 2, "num_train_epochs": 2, "bf16": True,
        "activation_checkpointing": True, "attn_implementation": "flash_attention_2", "trainer_class": "SFTTrainer",
        "optim": "paged_adamw_8bit",
    }  # fmt: skip
    assert {name: found.value(name) for name in wanted} == wanted
    assert found.adapter is not None
    assert found.adapter["target_modules"] == "all-linear"
    assert apart_from_data(found) == []


LLAMAFACTORY = """\
model_name_or_path: model
stage: dpo
finetuning_type: lora
lora_rank: 16
lora_target: q_proj,v_proj
quantization_bit: 4
dataset: mine
dataset_dir: data
template: llama3
cutoff_len: 1024
per_device_train_batch_size: 1
bf16: true
"""


def test_a_llamafactory_configuration(tmp_path: Path, model: Path) -> None:
    (tmp_path / "data").mkdir()
    written(tmp_path / "data" / "dataset_info.json", json.dumps({"mine": {"file_name": "mine.json"}}))
    written(tmp_path / "data" / "mine.json", json.dumps([{"instruction": "a", "output": "b"}] * 3))
    found = target(written(tmp_path / "lf.yaml", LLAMAFACTORY))
    assert found.family == "llamafactory"
    wanted = {
        "r": 16, "lora_alpha": 32, "target_modules": ["q_proj", "v_proj"], "load_in_4bit": True, "max_length": 1024,
        "trainer_class": "DPOTrainer", "activation_checkpointing": True,
    }  # fmt: skip
    assert {name: found.value(name) for name in wanted} == wanted
    assert found.dataset == tmp_path / "data" / "mine.json"
    assert found.kind_known


def test_the_literals_of_a_script_are_read_and_nothing_is_run(tmp_path: Path, model: Path) -> None:
    script = written(
        tmp_path / "train.py",
        "raise SystemExit('never run')\n"
        "args = GRPOConfig(output_dir='out', learning_rate=1e-5, num_generations=8, max_completion_lenght=256)\n"
        "peft_config = LoraConfig(r=16, lora_alpha=32, target_modules=['q_proj'], use_rslora=True)\n",
    )
    found = target(script, model=str(model))
    assert found.value("trainer_class") == "GRPOTrainer"
    assert (found.value("r"), found.value("use_rslora"), found.value("learning_rate")) == (16, True, 1e-5)
    assert found.model == model
    if fields_of("GRPOConfig"):
        assert apart_from_data(found) == [
            "train.py: GRPOConfig: unknown setting 'max_completion_lenght'; did you mean 'max_completion_length'?"
        ]


def test_nested_json(tmp_path: Path, model: Path) -> None:
    values = {"model_name_or_path": "model", "training_arguments": {"learning_rate": 5e-5, "bf16": False},
              "peft": {"r": 8, "lora_alpha": 8, "target_modules": ["q_proj"], "bias": "all"}}  # fmt: skip
    found = target(written(tmp_path / "run.json", json.dumps(values)))
    assert found.adapter is not None
    assert (found.value("r"), found.value("bias"), found.adapter["bias"], found.value("bf16")) == (
        8,
        "all",
        "all",
        False,
    )


def adapter(folder: Path, **values: Any) -> Path:
    folder.mkdir(exist_ok=True)
    known = {
        "peft_type": "LORA",
        "r": 16,
        "lora_alpha": 32,
        "target_modules": ["q_proj", "v_proj"],
        "task_type": "CAUSAL_LM",
    }
    return written(folder / "adapter_config.json", json.dumps(known | values))


def test_an_adapter_by_its_file_its_folder_or_the_run_around_it(tmp_path: Path, model: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    file = adapter(run / "checkpoint-20", base_model_name_or_path=str(model), rank_pattern={"q_proj": 8})
    adapter(run / "checkpoint-3")
    for path in (file, file.parent, run):
        found = target(path)
        assert found.adapter is not None
        assert found.adapter["rank_pattern"] == {"q_proj": 8}
        assert (found.adapter_folder, found.model, found.value("r")) == (file.parent, model, 16)
        assert found.value("learning_rate") is None  # an adapter does not say what trains it


def test_a_run_that_logged_states_what_it_was(tmp_path: Path, model: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    rows = [{"step": one, "loss": 2.0, "learning_rate": 1e-4} for one in range(1, 6)]
    state = {"global_step": 5, "max_steps": 100, "log_history": rows, "logging_steps": 1, "train_batch_size": 4}
    written(run / "trainer_state.json", json.dumps(state))
    adapter(run, base_model_name_or_path=str(model))
    found = target(run, r=32)
    assert found.run is not None
    assert found.value("max_steps") == 100
    assert (found.value("r"), found.adapter["r"] if found.adapter else None) == (32, 32)
    assert found.model == model


def test_a_path_that_only_a_log_names_is_not_opened(tmp_path: Path, model: Path) -> None:
    run = tmp_path / "run"
    run.mkdir()
    facts = {"type": "facts", "values": {"model_name_or_path": str(model), "r": 8}, "origin": "callback"}
    row = {"type": "metrics", "step": 1, "values": {"loss": 2.0}}
    written(run / "lorawatch.jsonl", "".join(f"{json.dumps(one)}\n" for one in (facts, row)))
    found = target(run)
    assert found.model is None
    assert any("--model" in problem for problem in found.problems)


def test_flags_win_over_the_file_and_can_stand_alone(tmp_path: Path, model: Path) -> None:
    found = target(
        written(tmp_path / "train.yaml", TRL), r=8, learning_rate=3e-4, target_modules=["q_proj"], method="dpo"
    )
    assert (found.value("r"), found.value("learning_rate"), found.value("trainer_class")) == (8, 3e-4, "DPOTrainer")
    assert found.adapter is not None
    assert (found.adapter["r"], found.adapter["target_modules"]) == (8, ["q_proj"])
    alone = target(None, model=str(model), r=4)
    assert (alone.value("trainer_class"), alone.kind_known) == ("SFTTrainer", False)
    assert alone.adapter is not None
    assert alone.adapter["r"] == 4
    assert alone.model == model


def test_full_fine_tuning_has_no_adapter(tmp_path: Path, model: Path) -> None:
    found = target(
        written(tmp_path / "lf.yaml", LLAMAFACTORY.replace("finetuning_type: lora", "finetuning_type: full"))
    )
    assert found.adapter is None


def test_unknown_keys_are_told_in_a_line_each_and_the_rest_is_read(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("trl")
    text = TRL + "lora_dropuot: 0.1\nfrobnicate: 3\nwibble: [1]\n"
    found = target(written(tmp_path / "train.yaml", text))
    assert apart_from_data(found) == [
        "train.yaml: unknown setting 'lora_dropuot'; did you mean 'lora_dropout'?",
        "train.yaml: not known to the installed TRL, transformers and PEFT, left alone: frobnicate, wibble",
    ]
    assert found.value("r") == 64


def test_a_longer_name_is_no_misspelling(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("trl")
    found = target(written(tmp_path / "train.yaml", TRL + "eos_token_id: 2\n"))
    assert [one for one in found.problems if "did you mean" in one] == []


def test_a_key_that_acts_on_a_terminal_is_shown_harmlessly(tmp_path: Path, model: Path) -> None:
    pytest.importorskip("trl")
    found = target(written(tmp_path / "train.yaml", TRL + '"evil\\e[31m": 3\n'))
    assert all("\x1b" not in problem for problem in found.problems)
    assert len(apart_from_data(found)) == 1


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("adapter_config.json", "{", "not JSON"),
        ("train.yaml", "a: [", "train.yaml"),
        ("train.yaml", "colour: red\n", "none of its settings"),
        ("train.toml", "r = 1", "neither YAML, JSON nor Python"),
        ("train.py", "def (", "not valid Python"),
        ("config.json", '{"model_type": "llama", "architectures": ["A"]}', "model's config.json"),
    ],
)
def test_what_cannot_be_used_is_one_clear_line(tmp_path: Path, name: str, text: str, words: str) -> None:
    with pytest.raises(TargetError, match=words) as caught:
        target(written(tmp_path / name, text))
    assert "\n" not in str(caught.value)


def test_no_such_path_and_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(TargetError, match="no such file"):
        target(tmp_path / "absent")
    (tmp_path / "empty").mkdir()
    with pytest.raises(TargetError, match="give the file"):
        target(tmp_path / "empty")


def test_a_model_that_is_not_here_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    found = target(None, model="meta-llama/Llama-3.1-8B", r=16)
    assert found.model is None
    assert apart_from_data(found) == [
        "the model meta-llama/Llama-3.1-8B is not on this machine; give --model PATH, a folder with its config.json"
    ]


def test_a_model_of_the_hugging_face_cache_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    folder = tmp_path / "models--org--name"
    for commit in ("aaaaaaa", "bbbbbbb"):
        (folder / "snapshots" / commit).mkdir(parents=True)
        written(folder / "snapshots" / commit / "config.json", "{}")
    (folder / "refs").mkdir()
    written(folder / "refs" / "main", "bbbbbbb")
    assert local_model("org/name") == folder / "snapshots" / "bbbbbbb"
    written(folder / "refs" / "main", "../../../etc")
    assert local_model("org/name") == folder / "snapshots" / "aaaaaaa"
    assert local_model("org/other") is None
    assert local_model("\0") is None


@pytest.mark.parametrize(
    ("name", "text", "rows"),
    [
        ("a.jsonl", '{"a": 1}\n\n{"a": 2}', 2),
        ("a.json", '[{"a": 1}, {"a": 2}, {"a": 3}]', 3),
        ("a.json", '{"a": 1}', None),
        ("a.json", "[", None),
        ("a.csv", "prompt,completion\na,b\nc,d\n", 2),
    ],
)
def test_rows_of_a_data_file_are_counted(tmp_path: Path, name: str, text: str, rows: int | None) -> None:
    assert count_rows(written(tmp_path / name, text)) == rows


@pytest.mark.parametrize(
    ("listed", "found"),
    [
        ("[{path: chats.jsonl, type: chat_template}]", True),
        ("[{path: chats.jsonl}, {path: more.jsonl}]", False),
        ("[{path: tatsu-lab/alpaca}]", False),
        ("[{path: 3}, chats]", False),
    ],
)
def test_axolotls_list_of_data_sets_is_followed_where_it_names_one_file(
    tmp_path: Path, listed: str, found: bool
) -> None:
    (tmp_path / "chats.jsonl").write_text("{}\n")
    config = tmp_path / "run.yaml"
    config.write_text(f"base_model: m\nadapter: lora\nlora_r: 8\nmicro_batch_size: 1\ndatasets: {listed}\n")
    target = read_target(config, {}, RULES)
    assert (target.dataset == tmp_path / "chats.jsonl") is found
    assert any("give --dataset FILE" in problem for problem in target.problems) is not found
    told = read_target(config, {"dataset": str(tmp_path / "chats.jsonl")}, RULES)
    assert told.problems == apart_from_data(told)
