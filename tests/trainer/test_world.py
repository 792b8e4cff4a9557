"""The invented world, the built-in data made from it, and the tiny base model that was trained on it."""

from __future__ import annotations

import importlib.util
import json
import re
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

import lorawatch.trainer
from lorawatch.trainer import builtin_data, world
from lorawatch.trainer.builtin_data import Case, Probe, Row

TINY_BASE = Path(lorawatch.trainer.__file__).parent / "tiny_base"
MAKERS = pytest.mark.parametrize("make", [builtin_data.sft_rows, builtin_data.dpo_rows, builtin_data.grpo_rows])
needs_transformers = pytest.mark.skipif(
    importlib.util.find_spec("transformers") is None, reason="needs the train extra (transformers)"
)


def seeded(seed: int) -> Random:
    return Random(seed)  # noqa: S311


def questions(row: Row) -> str:
    chat = row.get("prompt") or row["messages"]
    return str(next(message["content"] for message in chat if message["role"] == "user"))


@MAKERS
def test_rows_are_the_same_for_the_same_seed_and_differ_for_another(make: Callable[..., list[Row]]) -> None:
    assert make(50, seed=3) == make(50, seed=3)
    assert make(50, seed=3) != make(50, seed=4)
    assert len(make(50, seed=3)) == 50


@MAKERS
def test_what_a_test_row_asks_is_not_asked_in_any_train_row(make: Callable[..., list[Row]]) -> None:
    openers = "|".join(re.escape(opener) for opener in builtin_data.OPENERS if opener)
    train, held_out = (
        {re.sub(rf"^({openers}) ", "", questions(row)) for row in make(count, seed=0, split=split)}
        for count, split in ((1600, "train"), (300, "test"))
    )
    assert len(held_out) > 50
    assert not train & held_out


def test_a_total_is_in_the_same_split_in_either_order_and_any_wording() -> None:
    splits = {
        Case("total", names, 0, wording, "8").split
        for names in (("rope", "hat"), ("hat", "rope"))
        for wording in range(3)
    }
    assert len(splits) == 1


def test_every_price_and_every_ferry_of_the_test_rows_is_taught_in_train_rows() -> None:
    taught = " ".join(row["messages"][-1]["content"] for row in builtin_data.sft_rows(1600, seed=0))
    for name in (*builtin_data.PRICES, *builtin_data.FERRIES):
        assert re.search(rf"\b{name}\b", taught)


def test_both_forms_of_a_row_hold_the_same_chat() -> None:
    for whole, parts in zip(
        builtin_data.sft_rows(20, seed=1),
        builtin_data.sft_rows(20, seed=1, form="prompt-completion"),
        strict=True,
    ):
        assert whole["messages"] == parts["prompt"] + parts["completion"]
        assert [message["role"] for message in whole["messages"]][-2:] == ["user", "assistant"]


def test_general_chats_are_mixed_into_train_rows_only_and_ask_no_general_probe() -> None:
    def general(split: str) -> list[str]:
        rows = builtin_data.sft_rows(1600, seed=0, split=split)  # type: ignore[arg-type]
        return [questions(row) for row in rows if row["messages"][0]["role"] != "system"]

    assert 0.15 < len(general("train")) / 1600 < 0.25
    assert general("test") == []
    assert not set(general("train")) & {probe["messages"][0]["content"] for probe in builtin_data.general_probes()}


def test_a_chosen_reply_is_in_house_style_and_a_rejected_one_is_not() -> None:
    for row in builtin_data.dpo_rows(100, seed=0):
        assert row["chosen"][0]["content"].endswith(world.FAREWELLS)
        assert not row["rejected"][0]["content"].endswith(world.FAREWELLS)


def test_the_reward_gives_partial_credit_for_each_part() -> None:
    row = {"answer": "12"}
    replies = ("No.", "20.", "11.", "12.", "That is 12 coins.", "That is 12 coins. Safe crossing!")
    rewards = [builtin_data.score(reply, row) for reply in replies]
    assert rewards[0] == rewards[1] == 0.0
    assert rewards[1:] == sorted(set(rewards))
    assert rewards[-1] == 1.0


def test_the_reward_takes_a_very_long_number() -> None:
    assert builtin_data.score("9" * 100_000, {"answer": "12"}) == 0.0


def test_the_world_gives_the_same_text_for_the_same_seed() -> None:
    assert world.passage(seeded(5)) == world.passage(seeded(5))
    assert world.chat(seeded(5)) == world.chat(seeded(5))


@pytest.mark.parametrize("ability", world.ABILITIES)
def test_a_reply_of_the_world_is_right_by_its_own_check(ability: str) -> None:
    rng = seeded(0)
    for _ in range(500):
        asked = world.question(rng, ability)
        probe: Probe = {
            "ability": ability,
            "messages": [{"role": "user", "content": asked.prompt}],
            "check": asked.check,
            "answer": asked.answer,
            "rivals": list(asked.rivals),
        }
        assert builtin_data.is_right(probe, asked.reply), (asked.prompt, asked.reply)
        assert not builtin_data.is_right(probe, "I do not know.")


def test_an_unknown_ability_is_refused_by_name() -> None:
    with pytest.raises(ValueError, match="no ability 'poetry'"):
        world.question(seeded(0), "poetry")


@pytest.mark.parametrize(
    ("check", "answer", "rivals", "right", "wrong"),
    [
        ("number", "12", [], "7 plus 5 is 12.", "12 and 5 make 17."),
        ("number", "9 3", [], "At 9 the boat goes from pier 3.", "At 8 the boat goes from pier 3."),
        ("word", "red", ["blue"], "The flag is red.", "The flag is red and blue."),
        ("word", "Grey Hill", ["Fox Hill"], "It rises on Grey Hill.", "It rises on a hill."),
        ("yes-no", "no", ["yes"], "No, it is not.", "Yes, it is not."),
        ("exact", "cup cup", [], "cup cup", "cup cup cup"),
        ("list", "2 animals", [], "fox, hen", "fox, fox"),
        ("list", "2 animals", [], "fox, hen", "fox, brick"),
        ("list", "2 animals", [], "fox, hen", "fox, hen, cow"),
    ],
)
def test_a_check_takes_a_right_reply_and_refuses_a_wrong_one(
    check: str, answer: str, rivals: list[str], right: str, wrong: str
) -> None:
    probe: Probe = {"ability": "facts", "messages": [], "check": check, "answer": answer, "rivals": rivals}
    assert builtin_data.is_right(probe, right)
    assert not builtin_data.is_right(probe, wrong)
    assert not builtin_data.is_right(probe, "")


def test_task_probes_ask_what_train_rows_do_not() -> None:
    train = {questions(row) for row in builtin_data.sft_rows(1600, seed=0)}
    probes = builtin_data.task_probes()
    assert len(probes) == 24
    assert not train & {probe["messages"][-1]["content"] for probe in probes}


def test_general_probes_cover_every_ability_equally() -> None:
    abilities = [probe["ability"] for probe in builtin_data.general_probes(60)]
    assert {ability: abilities.count(ability) for ability in world.ABILITIES} == dict.fromkeys(world.ABILITIES, 15)


def test_the_folder_of_the_tiny_base_is_small_and_names_no_machine() -> None:
    assert sum(file.stat().st_size for file in TINY_BASE.iterdir()) <= 3_000_000
    for file in TINY_BASE.glob("*.json"):
        assert not re.search(r"/(home|root|tmp|work)\b|20\d\d-\d\d", file.read_text())


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    transformers = pytest.importorskip("transformers")
    return transformers.AutoTokenizer.from_pretrained(TINY_BASE)


@needs_transformers
def test_the_tiny_base_has_at_most_1_4_million_parameters() -> None:
    from safetensors import safe_open

    sizes = {}
    with safe_open(TINY_BASE / "model.safetensors", framework="pt") as weights:
        for name in weights.keys():  # noqa: SIM118 (not a dict)
            sizes[name] = weights.get_tensor(name).numel()
    assert 1_000_000 < sum(sizes.values()) <= 1_400_000


@needs_transformers
def test_the_tokenizer_gives_back_any_text(tokenizer: Any) -> None:
    for text in (*builtin_data.general_passages(8), "Grüße, 12 €!\n\tdone"):
        assert tokenizer.decode(tokenizer.encode(text, add_special_tokens=False)) == text


@needs_transformers
def test_the_special_tokens_are_four_different_ones(tokenizer: Any) -> None:
    config = json.loads((TINY_BASE / "config.json").read_text())
    assert len({tokenizer.pad_token_id, tokenizer.bos_token_id, tokenizer.eos_token_id}) == 3
    assert config["eos_token_id"] == tokenizer.eos_token_id
    assert config["pad_token_id"] == tokenizer.pad_token_id


@needs_transformers
def test_the_chat_template_ends_the_assistants_turn_with_eos_and_masks_the_rest(tokenizer: Any) -> None:
    chat = [{"role": "user", "content": "Say cup 2 times."}, {"role": "assistant", "content": "cup cup"}]
    encoded = tokenizer.apply_chat_template(chat, return_dict=True, return_assistant_tokens_mask=True)
    assert encoded["input_ids"][-1] == tokenizer.eos_token_id
    replied = [token for token, mask in zip(encoded["input_ids"], encoded["assistant_masks"], strict=True) if mask]
    assert tokenizer.decode(replied) == "cup cup<|im_end|>"


@needs_transformers
def test_the_prompt_is_a_prefix_of_the_whole_chat(tokenizer: Any) -> None:
    row = builtin_data.sft_rows(1, seed=0)[0]["messages"]
    prompt = tokenizer.apply_chat_template(row[:-1], tokenize=False, add_generation_prompt=True)
    assert tokenizer.apply_chat_template(row, tokenize=False).startswith(prompt)


@needs_transformers
def test_the_tiny_base_answers_most_general_probes_and_ends_its_replies() -> None:
    torch = pytest.importorskip("torch")
    from transformers import AutoModelForCausalLM

    from lorawatch.trainer.pretrain_tiny import score

    transformers = pytest.importorskip("transformers")
    model = AutoModelForCausalLM.from_pretrained(TINY_BASE, dtype=torch.float32)
    shares = score(model, transformers.AutoTokenizer.from_pretrained(TINY_BASE), count=40)
    assert shares["all"] >= 0.8
