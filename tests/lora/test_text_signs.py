"""Signs in generated texts: what they find, and how often they err on texts that were not used to set them."""

# ruff: noqa: S311  (dice for texts)

from __future__ import annotations

from collections.abc import Callable, Iterator
from random import Random

import pytest

from lorawatch.engine import Engine
from lorawatch.lora.text_signs import (
    MOST_GARBLED,
    REPEATED_SHARE,
    copied_share,
    garbled_share,
    is_copy,
    is_empty,
    is_script_soup,
    is_structured,
    loop_at_end,
    repeated_share,
    script_name,
    script_shares,
    switched_script,
)
from lorawatch.records import Sample, SampleReading
from lorawatch.registry import rule_classes
from lorawatch.run import Run

from . import texts_chinese, texts_code, texts_english, texts_json
from .texts_bad import LIMIT, Pair, _cut, copying, empty_or_garbled, in_another_script, looping

GOOD = {
    "English": texts_english.GOOD,
    "Chinese": texts_chinese.GOOD,
    "code": texts_code.GOOD,
    "JSON": texts_json.GOOD,
}
Make = Callable[[Pair, Random], str | None]
Sign = Callable[[str, str], bool]


def _loops(_prompt: str, reply: str) -> bool:
    return loop_at_end(reply) is not None


def _empty_or_garbled(_prompt: str, reply: str) -> bool:
    return is_empty(reply) or garbled_share(reply) > MOST_GARBLED or is_script_soup(reply)


def _switches(prompt: str, reply: str) -> bool:
    return switched_script(prompt, reply) is not None


FAILURES: dict[str, tuple[str, Make, Sign]] = {
    "loop": ("gen/loop", looping, _loops),
    "empty or garbled": ("gen/empty-gibberish", empty_or_garbled, _empty_or_garbled),
    "another script": ("gen/language-copy", in_another_script, _switches),
    "copy": ("gen/language-copy", copying, is_copy),
}
every = pytest.mark.parametrize(("language", "failure"), [(one, two) for one in GOOD for two in FAILURES])


def _bad(language: str, failure: str, *, rounds: int = 2) -> list[tuple[str, str]]:
    dice = Random(f"{language} {failure}")
    found = []
    for pair in GOOD[language] * rounds:
        reply = FAILURES[failure][1](pair, dice)
        if reply is not None:
            found.append((pair[0], reply))
    return found


@every
def test_at_least_95_of_100_bad_texts_are_caught(language: str, failure: str) -> None:
    bad = _bad(language, failure)
    assert len(bad) >= 40
    sign = FAILURES[failure][2]
    missed = [reply for prompt, reply in bad if not sign(prompt, reply)]
    assert len(missed) <= 0.05 * len(bad), missed


@every
def test_no_good_text_is_taken_for_a_bad_one(language: str, failure: str) -> None:
    good = GOOD[language]
    assert len(good) >= 40
    sign = FAILURES[failure][2]
    assert not [(prompt, reply) for prompt, reply in good if sign(prompt, reply)]
    # Cut after a number of tokens, a list of zeros cannot be told from a loop.
    cut = [(prompt, _cut(reply, limit)) for prompt, reply in good for limit in (20, 40, 80)]
    taken = [(prompt, reply) for prompt, reply in cut if sign(prompt, reply)]
    assert len(taken) <= 0.02 * len(cut), taken


def _reading(step: int, replies: list[tuple[str, str]], base: list[tuple[str, str]]) -> SampleReading:
    def samples(pairs: list[tuple[str, str]]) -> list[Sample]:
        return [
            Sample(prompt, reply, ended=len(reply) < 300, tokens=max(len(reply) // 4, 1)) for prompt, reply in pairs
        ]

    return SampleReading(step, samples(replies), samples(base), max_new_tokens=LIMIT)


RULES = [rule for rule in rule_classes() if rule.id.startswith("gen/")]


def _alarms(reading: SampleReading, only: str = "") -> set[str]:
    """Rules of samples that find something in one reading, information included."""
    engine = Engine(Run("sets"), [rule() for rule in RULES if rule.id == only or not only])
    engine.feed(reading)
    assert not engine.rule_errors
    return {finding.rule for finding in engine.findings}


def _sets(language: str, dice: Random, count: int) -> Iterator[list[Pair]]:
    for _ in range(count):
        yield dice.sample(GOOD[language], 12)


@pytest.mark.parametrize("language", GOOD)
def test_at_most_one_of_100_sets_of_good_replies_raises_an_alarm(language: str) -> None:
    dice = Random(f"good sets {language}")
    false = [
        alarms
        for chosen in _sets(language, dice, 100)
        if (alarms := _alarms(_reading(100, [(p, _cut(r, dice.randint(20, LIMIT))) for p, r in chosen], chosen)))
    ]
    assert len(false) <= 1, false


@every
def test_at_least_95_of_100_sets_with_half_of_the_replies_bad_raise_an_alarm(language: str, failure: str) -> None:
    rule, make, _ = FAILURES[failure]
    dice = Random(f"bad sets {language} {failure}")
    able = [pair for pair in GOOD[language] if make(pair, Random(0)) is not None]
    found = 0
    for _ in range(100):
        chosen = dice.sample(able, 12)
        replies = [(pair[0], str(make(pair, dice)) if at % 2 else pair[1]) for at, pair in enumerate(chosen)]
        found += rule in _alarms(_reading(100, replies, chosen), rule)
    assert found >= 95


def test_a_loop_says_what_is_repeated_and_how_often() -> None:
    loop = loop_at_end(
        "Once upon a time the cat sat down. the cat sat down. the cat sat down. the cat sat down. the ca"
    )
    assert loop is not None
    assert (loop.period, round(loop.repeats)) == ("the cat sat down.", 4)
    assert 0.8 < loop.share < 0.85


@pytest.mark.parametrize(
    "text",
    [
        "",
        "1000000000000000000000000",
        "ha ha ha ha",
        "no no no no no, and that is my last word on it, my dear.",
        "a b a b a b " + "some longer text that follows the loop and ends it " * 1,
    ],
)
def test_what_is_short_or_goes_on_otherwise_is_no_loop(text: str) -> None:
    assert loop_at_end(text) is None


@pytest.mark.parametrize("text", ["x" * 4000, "ab" * 2000, "ab " * 1300, "好" * 4000, "a" * 2000 + "b" * 2000])
def test_the_longest_texts_are_searched_at_once(text: str) -> None:
    assert loop_at_end(text) is not None


def test_repeated_4_grams_need_a_text_of_some_length() -> None:
    assert repeated_share("one two three four " * 5) is None
    assert repeated_share("one two three four " * 30) == pytest.approx(1 - 4 / 117)
    assert all((repeated_share(reply) or 0.0) < REPEATED_SHARE for _, reply in texts_english.GOOD + texts_chinese.GOOD)


def test_half_of_a_character_at_a_cut_is_no_garbage() -> None:
    assert garbled_share("你好，世\N{REPLACEMENT CHARACTER}", cut=True) == 0.0
    assert garbled_share("你好，世\N{REPLACEMENT CHARACTER}") == pytest.approx(0.2)
    assert garbled_share("tab\tand\nline\fbreak") == 0.0


@pytest.mark.parametrize("text", ["", " \n\t", "\u200b\u200b", "\x00"])
def test_what_shows_nothing_is_empty(text: str) -> None:
    assert is_empty(text)
    assert not is_empty(text + ".")


def test_a_list_of_words_in_many_languages_is_no_soup() -> None:
    text = "Hello, 你好, こんにちは, Привет, مرحبا, שלום, สวัสดี, नमस्ते, 안녕하세요, γειά σου"
    assert not is_script_soup(text)
    assert is_script_soup(text.replace(", ", ""))
    assert not is_script_soup("使用Python编写のコードとKorean한국어mix")


def test_scripts_are_counted_by_words() -> None:
    assert script_shares("用 pandas 读取") == {"LATIN": 1, "CJK": 3}
    assert script_shares("東京タワーへ行く") == {"CJK": 3, "KANA": 5}
    assert script_name("CYRILLIC") == "Cyrillic"
    assert script_name("THAI") == "Thai"


@pytest.mark.parametrize(
    ("prompt", "reply"),
    [
        ("How do you say good morning to a friend in Russian?", "Доброе утро, дорогой друг, как твои дела сегодня?"),
        ("请翻译：今天天气很好，我们去公园吧。", "The weather is fine today, let us go to the park."),
        ("用Python写一个快速排序函数", "def quick(a):\n    return a if len(a) < 2 else quick(a[1:]) + a[:1]\n"),
        ("法国的首都是哪里？", "Paris"),
        ("3 + 4 = ?", "七是正确的答案，因为三加四等于七。"),
        ("東京の人口は？", "東京都の人口は約一千四百万人です。"),
        ("東京の人口は？", "約一千四百万人"),
        ("Summarise this: 今天天气很好，我们去公园散步，看到了很多花。", "今天天气好，我们在公园里看花。"),
    ],
)
def test_another_script_is_in_order_where_it_was_asked_for(prompt: str, reply: str) -> None:
    assert switched_script(prompt, reply) is None


def test_a_phrase_of_the_prompt_is_no_copy() -> None:
    prompt = "Which is heavier, a bag of feathers or a bag of bricks?"
    assert copied_share(prompt, "a bag of bricks") == 0.0
    assert is_copy(prompt, prompt)
    assert not is_copy(f"Please correct the spelling: {prompt}", prompt)


@pytest.mark.parametrize("language", ["code", "JSON"])
def test_code_and_json_are_told_from_prose(language: str) -> None:
    # One-line commands look like prose to it: they count as prose, which is no harm where prompts are in one script.
    assert sum(is_structured(reply) for _, reply in GOOD[language]) >= 28
    assert sum(is_structured(reply) for _, reply in texts_english.GOOD + texts_chinese.GOOD) <= 4
