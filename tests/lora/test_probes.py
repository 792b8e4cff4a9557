"""What a model is asked: the built-in questions, prompts of a file, prompts of the run's own data."""

from __future__ import annotations

import json
import operator
import re
from pathlib import Path
from typing import Any

import pytest

from lorawatch.lora import probe_texts
from lorawatch.lora.probes import (
    MAX_PROBES,
    MAX_TEXT,
    Probe,
    ProbesError,
    built_in,
    general_probes,
    last_turn,
    read_probes,
    task_probes,
)


def test_there_are_25_sums_25_questions_of_common_sense_and_64_passages() -> None:
    assert (len(probe_texts.ARITHMETIC), len(probe_texts.COMMON_SENSE)) == (25, 25)
    assert len(set(probe_texts.PASSAGES)) == 64
    assert all(20 <= len(passage.split()) <= 60 for passage in probe_texts.PASSAGES)
    asked = general_probes()
    assert len({probe.prompt for probe in asked}) == 50
    assert {probe.kind for probe in asked} == {"general"}


def test_the_sums_are_right() -> None:
    signs = {"+": operator.add, "-": operator.sub, "×": operator.mul, "÷": operator.floordiv}
    seen = 0
    for question, answer in probe_texts.ARITHMETIC:
        found = re.fullmatch(r"What is (\d+) ([-+×÷]) (\d+)\?", question)
        if found:
            assert signs[found[2]](int(found[1]), int(found[3])) == int(answer), question
            seen += 1
    assert seen == 16


def test_every_question_offers_its_answer_among_others_and_the_right_one_is_not_always_first() -> None:
    first = 0
    for question, answer, rivals in probe_texts.COMMON_SENSE:
        words = re.findall(r"\w+", question.lower())
        assert answer in words
        assert all(rival in words for rival in rivals)
        first += words.index(answer) < words.index(rivals[0])
    assert 10 <= first <= 16


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("12", True),
        ("7 + 5 = 12.", True),
        ("12.0", True),
        ("Let me see.\n7 + 5 is 12", True),
        ("12\n\nQuestion: What is 3 + 4?\nAnswer: 7", True),
        ("11", False),
        ("twelve", False),
        ("", False),
        ("1,200", False),
    ],
)
def test_a_sum_is_right_by_the_last_number_of_its_first_line_or_of_all(reply: str, right: bool) -> None:
    assert Probe("What is 7 + 5?", "general", answer="12", check="number").is_right(reply) is right


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("Cold.", True),
        ("Ice is cold, not hot.", True),
        ("hot", False),
        ("It is not hot but cold", False),
        ("Warm", False),
    ],
)
def test_a_word_is_right_where_it_comes_before_its_rivals(reply: str, right: bool) -> None:
    assert (
        Probe("Is ice hot or cold?", "general", answer="cold", rivals=("hot",), check="word").is_right(reply) is right
    )


def test_a_text_is_right_where_it_holds_the_answer_as_whole_words() -> None:
    probe = Probe("Capital of Peru?", answer="Lima")
    assert probe.is_right("It is LIMA, of course.")
    assert not probe.is_right("Limassol")
    assert Probe("Hello").is_right("Hello") is None
    assert Probe("Hello", judge=lambda reply: reply == "x").is_right("x") is True


def _file(folder: Path, name: str, content: str | bytes) -> Path:
    file = folder / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    return file


def test_prompts_are_read_from_json_lines(tmp_path: Path) -> None:
    rows: list[dict[str, Any]] = [
        {"prompt": "Hello"},
        {"prompt": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "Hi"}], "reference": "Hi!"},
        {"prompt": "2 + 2?", "answer": 4, "probe": "general"},
    ]
    found = read_probes(_file(tmp_path, "p.jsonl", "\n".join(map(json.dumps, rows)) + "\n\n"))
    assert [one.prompt for one in found.task] == ["Hello", "Hi"]
    assert [one["role"] for one in found.task[1].messages] == ["system", "user"]
    assert found.task[1].reference == "Hi!"
    assert [one.prompt for one in found.general] == ["2 + 2?"]
    assert found.general[0].is_right("It is 4.")
    assert len(found.passages) == 64


def test_prompts_are_read_from_csv_and_from_lines_of_text(tmp_path: Path) -> None:
    found = read_probes(_file(tmp_path, "p.csv", '\ufeffprompt,answer\n"Name, please?",Ann\nTwo\r\n'))
    assert [(one.prompt, one.answer) for one in found.task] == [("Name, please?", "Ann"), ("Two", None)]
    found = read_probes(_file(tmp_path, "p.txt", "First\r\n\n  Second  \n"))
    assert [one.prompt for one in found.task] == ["First", "Second"]
    assert len(found.general) == 50


def test_of_many_prompts_the_first_are_taken_and_the_rest_counted(tmp_path: Path) -> None:
    found = read_probes(_file(tmp_path, "p.txt", "\n".join(f"prompt {number}" for number in range(100))))
    assert (len(found.task), found.left_out) == (MAX_PROBES, 100 - MAX_PROBES)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("p.jsonl", b'{"prompt": "caf\xe9"}', "prompts that are not text (no UTF-8 at byte 15)"),
        ("p.txt", b"\x89PNG\r\n\x1a\n\0\0", "prompts that are not text (no UTF-8 at byte 0)"),
        ("p.txt", "good\nba\0d\n", "line 2: prompt is not text"),
        ("p.jsonl", '{"prompt": 5}', "line 1: prompt must be text or messages, is int"),
        ("p.jsonl", '{"prompt": [{"role": "user"}]}', "line 1: prompt must be text or messages, is list"),
        ("p.jsonl", '{"prompt": "a"}\n{"question": "b"}', "line 2: has no prompt"),
        ("p.jsonl", '{"prompt": "a"}\n{"prompt"', "line 2: is not JSON"),
        ("p.jsonl", "[" * 100_000, "line 1: is not JSON"),
        ("p.jsonl", '["a"]', "line 1: must be an object"),
        ("p.jsonl", '{"prompt": "  "}', "line 1: prompt is empty"),
        ("p.jsonl", '{"prompt": "a", "answer": []}', "line 1: answer must be text or a number, is list"),
        ("p.jsonl", '{"prompt": "a", "probe": "hard"}', "line 1: probe must be task or general, is 'hard'"),
        ("p.jsonl", json.dumps({"prompt": "a" * (MAX_TEXT + 1)}), "line 1: prompt is longer than 8000 characters"),
        ("p.csv", "question\nHello\n", "must name the columns, one of them prompt"),
        ("p.csv", "prompt\n" + "a" * 200_000, "is not CSV"),
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.yaml", "a", "not from .yaml"),
    ],
)
def test_a_wrong_file_is_told_in_one_line(tmp_path: Path, name: str, content: str | bytes, words: str) -> None:
    file = _file(tmp_path, name, content)
    with pytest.raises(ProbesError, match=re.escape(words)) as told:
        read_probes(file)
    assert str(told.value).startswith(str(file))
    assert "\n" not in str(told.value)


def test_a_file_that_is_not_there_or_too_large_is_told(tmp_path: Path) -> None:
    with pytest.raises(ProbesError, match="cannot be read: No such file"):
        read_probes(tmp_path / "none.txt")
    with pytest.raises(ProbesError, match="larger than 4 MB"):
        read_probes(_file(tmp_path, "p.txt", b"a" * 4_000_001))


@pytest.mark.parametrize(
    ("row", "prompt", "reference"),
    [
        ({"messages": [{"role": "user", "content": "Q"}, {"role": "assistant", "content": "A"}]}, "Q", "A"),
        ({"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]}, "Q", "A"),
        ({"prompt": "Q", "completion": " A"}, "Q", " A"),
        ({"prompt": [{"role": "user", "content": "Q"}], "chosen": [{"role": "assistant", "content": "A"}]}, "Q", "A"),
        ({"instruction": "Do", "input": "this", "output": "A"}, "Do\n\nthis", "A"),
        ({"question": "Q", "answer": "A"}, "Q", "A"),
        ({"prompt": "Q"}, "Q", None),
    ],
)
def test_the_prompt_and_the_reply_of_a_row_are_found(row: dict[str, Any], prompt: str, reference: str | None) -> None:
    (found,) = task_probes([row, row])
    assert (found.prompt, found.reference, found.kind) == (prompt, reference, "task")


class _Stream:
    def __iter__(self) -> Any:
        raise AssertionError("a stream must not be read")


@pytest.mark.parametrize("data", [_Stream(), None])
def test_a_stream_is_not_read(data: Any) -> None:
    with pytest.raises(ProbesError, match="is a stream"):
        task_probes(data)


def test_rows_without_a_prompt_are_told(tmp_path: Path) -> None:
    with pytest.raises(ProbesError, match="no row of the data tells where its prompt ends"):
        task_probes([{"text": "Once upon a time"}, {"input_ids": [1, 2, 3]}])


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    from lorawatch.trainer.base_model import TINY_FOLDER

    return transformers.AutoTokenizer.from_pretrained(TINY_FOLDER)


@pytest.mark.parametrize("mask", ["labels", "completion_mask", "assistant_masks", "none", "all"])
def test_the_prompt_of_a_tokenized_row_ends_where_its_reply_begins(tokenizer: Any, mask: str) -> None:
    asked = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "What is a lantern?"}]
    prompt = tokenizer(tokenizer.apply_chat_template(asked, tokenize=False, add_generation_prompt=True),
                       add_special_tokens=False)["input_ids"]  # fmt: skip
    reply = tokenizer("A lantern gives light.", add_special_tokens=False)["input_ids"]
    ids = [*prompt, *reply, tokenizer.eos_token_id]
    row: dict[str, Any] = {"input_ids": ids}
    if mask == "labels":
        row["labels"] = [-100] * len(prompt) + ids[len(prompt) :]
    elif mask == "all":
        row["labels"] = list(ids)
    elif mask != "none":
        row[mask] = [0] * len(prompt) + [1] * (len(reply) + 1)
    (found,) = task_probes([row], tokenizer)
    assert found.prompt == "What is a lantern?"
    assert found.tokens == tuple(prompt)
    assert found.reference == "A lantern gives light."
    assert found.reference_tokens == tuple(reply)


def test_a_prompt_without_a_template_is_shown_as_it_is(tokenizer: Any) -> None:
    ids = tokenizer("What is a lantern?", add_special_tokens=False)["input_ids"]
    assert last_turn(ids, tokenizer) == "What is a lantern?"


def test_long_prompts_are_passed_over(tokenizer: Any) -> None:
    ids = tokenizer("a lantern " * 600, add_special_tokens=False)["input_ids"]
    rows = [
        {"input_ids": [*ids, 5], "labels": [-100] * len(ids) + [5]},
        {"input_ids": [7, 8, 9], "labels": [-100, 8, 9]},
    ]
    assert [one.tokens for one in task_probes(rows, tokenizer)] == [(7,)]


def test_general_prompts_of_a_file_take_the_place_of_the_built_in_ones() -> None:
    mine = Probe("Who?", "general", answer="Me")
    assert built_in([mine]).general == (mine,)
    assert len(built_in([Probe("Who?")]).general) == 50
