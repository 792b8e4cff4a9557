import json
from pathlib import Path
from typing import Any

import pytest

from lorawatch.trainer.recipe import Recipe, RecipeError, recipe_of
from lorawatch.trainer.rows import load_rows


def made(**given: Any) -> Recipe:
    return recipe_of(given, "test")


def jsonl(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


@pytest.mark.parametrize("method", ["sft", "dpo", "grpo"])
def test_the_built_in_rows_have_what_the_method_takes(method: str) -> None:
    rows = load_rows(made(method=method, train_rows=20, eval_rows=8))
    assert len(rows.train) == 20
    assert len(rows.evaluation) == 8
    wanted = {"sft": {"prompt", "completion"}, "dpo": {"prompt", "chosen", "rejected"}, "grpo": {"prompt"}}[method]
    assert wanted <= set(rows.train[0])
    assert rows == load_rows(made(method=method, train_rows=20, eval_rows=8))


def test_no_evaluation_where_none_is_asked_for() -> None:
    assert load_rows(made(eval_rows=0, train_rows=4)).evaluation == []


def test_a_conversation_trains_its_last_reply_and_a_tenth_is_kept_out(tmp_path: Path) -> None:
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
    file = jsonl(tmp_path / "chats.jsonl", [{"messages": messages, "source": "x"}] * 50)
    rows = load_rows(made(dataset=file))
    assert (len(rows.train), len(rows.evaluation)) == (45, 5)
    assert rows.train[0] == {"prompt": messages[:1], "completion": messages[1:]}


def test_csv_and_parquet_are_read(tmp_path: Path) -> None:
    from datasets import Dataset  # type: ignore[import-untyped]

    data = Dataset.from_dict({"prompt": ["a", "b"], "completion": ["c", "d"]})
    data.to_csv(str(tmp_path / "d.csv"))
    data.to_parquet(str(tmp_path / "d.parquet"))
    for name in ("d.csv", "d.parquet"):
        assert load_rows(made(dataset=str(tmp_path / name))).train == [
            {"prompt": "a", "completion": "c"}, {"prompt": "b", "completion": "d"}
        ]  # fmt: skip


def test_a_file_of_its_own_to_evaluate_on(tmp_path: Path) -> None:
    rows = [{"prompt": f"p{n}", "completion": "c"} for n in range(20)]
    file, other = jsonl(tmp_path / "a.jsonl", rows), jsonl(tmp_path / "b.jsonl", rows[:3])
    found = load_rows(made(dataset=file, eval_dataset=other))
    assert (len(found.train), len(found.evaluation)) == (20, 3)


@pytest.mark.parametrize(
    ("rows", "method", "words"),
    [
        ([{"question": "a", "reply": "b"}], "sft", "needs the columns messages or prompt + completion or text; it has"),
        ([{"prompt": "a", "completion": "b"}], "dpo", "dpo needs the columns prompt + chosen + rejected"),
        ([{"prompt": "a", "completion": "b"}], "grpo", "grpo needs the columns prompt + answer"),
        (
            [{"prompt": "a", "completion": "b"}, {"prompt": "", "completion": "b"}],
            "sft",
            "row 2 has nothing in 'prompt'",
        ),
    ],
)
def test_wrong_columns_are_told_with_those_that_are_needed(
    tmp_path: Path, rows: list[dict[str, Any]], method: str, words: str
) -> None:
    with pytest.raises(RecipeError) as told:
        load_rows(made(dataset=jsonl(tmp_path / "d.jsonl", rows), method=method))
    assert words in str(told.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./none.jsonl", "there is no such file"),
        ("none.parquet", "there is no such file"),
        ("nobody/no-such-data", "it is no file here, and the hub cannot be reached"),
    ],
)
def test_data_that_cannot_be_had_is_told_in_a_line(name: str, words: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets.config  # type: ignore[import-untyped]

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    with pytest.raises(RecipeError) as told:
        load_rows(made(dataset=name))
    assert words in str(told.value)
    assert "\n" not in str(told.value)


def test_a_broken_file_is_told(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "a"\n', encoding="utf-8")
    with pytest.raises(RecipeError, match=r"dataset .*d\.jsonl"):
        load_rows(made(dataset=str(file)))
    text = tmp_path / "d.txt"
    text.write_text("x", encoding="utf-8")
    with pytest.raises(RecipeError, match=r"is none of \.jsonl"):
        load_rows(made(dataset=str(text)))
