from __future__ import annotations

import os
from pathlib import Path

import pytest

from lorawatch.source import SourceError
from lorawatch.sources.discover import RunFiles, discover, source_for_file
from lorawatch.sources.facts import read_fact_file
from lorawatch.sources.lorawatch_jsonl import encode

from .samples import event_file, generic, live_console, llamafactory, own_records, trainer_state

FILES = {
    "trainer_state.json": trainer_state(range(5, 20, 5)),
    "trainer_log.jsonl": llamafactory(),
    "train.log": live_console(),
    "metrics.jsonl": generic(),
    "lorawatch.jsonl": b"".join(map(encode, own_records())).decode(),
    "adapter_config.json": '{"r": 8, "lora_alpha": 16, "target_modules": ["q_proj"], "secret": 1}',
    "config.json": '{"text_config": {"vocab_size": 7}, "transformers_version": "5.0"}',
}


def lay(root: Path, *names: str) -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if "tfevents" in name:
            path.write_bytes(event_file())
        else:
            path.write_text(FILES[path.name] if path.name in FILES else live_console())


def found(root: Path) -> dict[str, list[str]]:
    return {run.name: [source.format for source in run.sources] for run in discover(root)}


def test_the_files_of_one_run_are_ordered_by_how_far_they_are_believed(tmp_path: Path) -> None:
    lay(tmp_path, *FILES, "runs/Jan01_00-00-00_host/events.out.tfevents.1.host.1.0", "checkpoint-5/trainer_state.json")
    (run,) = discover(tmp_path)
    formats = [source.format for source in run.sources]
    assert formats == ["lorawatch", "console", "llamafactory", "jsonl", "tensorboard", "trainer_state"]
    assert sorted(path.name for path in run.fact_files) == ["adapter_config.json", "config.json"]
    assert run.notes
    assert not any("\n" in note for note in run.notes)


def test_a_folder_of_runs_is_several_runs(tmp_path: Path) -> None:
    lay(
        tmp_path, "a/trainer_state.json", "b/checkpoint-5/trainer_state.json", "b/train.log", "c/deep/trainer_log.jsonl"
    )
    assert found(tmp_path) == {"a": ["trainer_state"], "b": ["console", "trainer_state"], "c/deep": ["llamafactory"]}


def test_unrelated_console_logs_in_one_folder_are_several_runs(tmp_path: Path) -> None:
    lay(tmp_path, "sft.log", "grpo.log", "dpo.out")
    assert found(tmp_path) == {"dpo.out": ["console"], "grpo.log": ["console"], "sft.log": ["console"]}


def test_a_console_log_above_several_runs_belongs_to_none_of_them(tmp_path: Path) -> None:
    lay(tmp_path, "train.log", "a/trainer_state.json", "b/trainer_state.json")
    runs = found(tmp_path)
    assert runs["a"] == runs["b"] == ["trainer_state"]
    assert ["console"] in runs.values()


def test_a_console_log_above_the_only_run_is_that_runs(tmp_path: Path) -> None:
    lay(tmp_path, "train.log", "output/trainer_state.json")
    assert found(tmp_path) == {"output": ["console", "trainer_state"]}


def test_a_checkpoint_folder_alone_is_a_run(tmp_path: Path) -> None:
    lay(tmp_path, "checkpoint-5/trainer_state.json", "checkpoint-5/adapter_config.json")
    (run,) = discover(tmp_path / "checkpoint-5")
    assert [source.format for source in run.sources] == ["trainer_state"]
    assert [path.name for path in run.fact_files] == ["adapter_config.json"]


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        ("trainer_state.json", "trainer_state"),
        ("trainer_log.jsonl", "llamafactory"),
        ("train.log", "console"),
        ("metrics.jsonl", "jsonl"),
        ("lorawatch.jsonl", "lorawatch"),
        ("events.out.tfevents.1", "tensorboard"),
        ("nohup.out", "console"),
    ],
)
def test_a_file_is_known_by_what_it_holds(name: str, wanted: str, tmp_path: Path) -> None:
    lay(tmp_path, name)
    (tmp_path / name).rename(tmp_path / "renamed.log")
    assert source_for_file(tmp_path / "renamed.log").format == wanted
    assert [source.format for source in discover(tmp_path / "renamed.log")[0].sources] == [wanted]


def test_a_log_with_a_megabyte_of_noise_before_its_first_row_is_found(tmp_path: Path) -> None:
    (tmp_path / "slurm-12.out").write_text("downloading\n" * 90_000 + live_console())
    assert source_for_file(tmp_path / "slurm-12.out").format == "console"
    assert found(tmp_path) == {tmp_path.name: ["console"]}


def test_a_log_without_a_row_yet_is_read_when_asked_for_by_name(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("Loading model\n")
    (tmp_path / "empty.log").write_text("")
    assert source_for_file(tmp_path / "train.log").format == "console"
    assert source_for_file(tmp_path / "empty.log").format == "console"


def test_an_empty_state_beside_a_good_log_is_left_out_and_said(tmp_path: Path) -> None:
    lay(tmp_path, "train.log")
    (tmp_path / "trainer_state.json").write_text('{"log_history": []}')
    (run,) = discover(tmp_path)
    assert [source.format for source in run.sources] == ["console"]
    assert any("left out" in note for note in run.notes)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.wandb", b"\0\1\2", r"\.wandb files cannot be read yet; give files/output\.log"),
        ("training_args.bin", b"\x80\x02}", "a pickle, which is never opened"),
        ("x.safetensors", bytes(range(256)) * 20, "binary data|no known log format"),
        ("x.csv", b"a,b\n1,2\n", "no known log format"),
        ("x.json", b"", "empty"),
    ],
)
def test_what_cannot_be_read_says_so_in_one_line(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message) as caught:
        source_for_file(tmp_path / name)
    assert "\n" not in str(caught.value)
    assert str(tmp_path / name) in str(caught.value)


def test_missing_paths_and_folders_without_a_log_say_so(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        discover(tmp_path / "nowhere")
    with pytest.raises(SourceError, match="no training log in it"):
        discover(tmp_path)


def test_links_pipes_and_sockets_are_never_followed(tmp_path: Path) -> None:
    lay(tmp_path, "a/trainer_state.json")
    (tmp_path / "a" / "again").symlink_to(tmp_path)
    os.mkfifo(tmp_path / "a" / "pipe.log")
    (tmp_path / "dangling.log").symlink_to(tmp_path / "nowhere")
    assert found(tmp_path) == {"a": ["trainer_state"]}
    with pytest.raises(SourceError, match="not a regular file"):
        source_for_file(tmp_path / "a" / "pipe.log")


def test_an_unreadable_file_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay(tmp_path, "train.log")

    def refuse(*_: object) -> int:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(SourceError, match="Permission denied"):
        source_for_file(tmp_path / "train.log")


def facts_of(run: RunFiles) -> dict[str, object]:
    return {
        name: value
        for path in run.fact_files
        for update in read_fact_file(path)
        for name, value in update.values.items()
    }


def test_set_up_files_are_facts_under_the_names_of_the_libraries(tmp_path: Path) -> None:
    lay(tmp_path, "trainer_state.json", "adapter_config.json", "config.json")
    (tmp_path / "sft.yaml").write_text(
        "lora_rank: 4\nlora_target: q_proj,v_proj\nlr: 1e-4\ncutoff_len: 512\nstage: sft\nx: 1\n"
    )
    (run,) = discover(tmp_path)
    assert facts_of(run) == {
        "r": 4,
        "lora_alpha": 16,
        "target_modules": ["q_proj", "v_proj"],
        "vocab_size": 7,
        "transformers_version": "5.0",
        "learning_rate": 1e-4,
        "max_length": 512,
        "stage": "sft",
    }


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [*a]",
        "[" * 5_000,
        "!!python/object/apply:os.system ['true']",
        "lr: [",
        "- 1",
        "\0",
        "a: &b [1]\nc: [*b, *b]",
    ],
)
def test_hostile_yaml_states_nothing(text: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    assert read_fact_file(tmp_path / "x.yaml") == []


def test_a_pickle_is_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "training_args.bin").write_bytes(b"x")
    monkeypatch.setattr(os, "open", lambda *_: pytest.fail("opened"))
    assert read_fact_file(tmp_path / "training_args.bin") == []


def test_a_log_that_was_rotated_away_does_not_make_a_second_run_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text(live_console(40))
    (tmp_path / "train.log.1").write_text(live_console(20))
    found = {run.path.name: [source.path.name for source in run.sources] for run in discover(tmp_path)}
    assert found == {tmp_path.name: ["train.log"], "train.log.1": ["train.log.1"]}
