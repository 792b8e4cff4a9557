"""Signs in a generated text that need no model: loops, emptiness, garbage, another script than asked in, copying.

Each function looks at one text, or at a prompt and its reply, and costs well under a millisecond for a short reply.
What they find is a sign, not a verdict: rules count it over several replies and hold it against the base model's.
"""

from __future__ import annotations

import json
import re
import unicodedata
from collections import Counter
from dataclasses import dataclass
from difflib import SequenceMatcher
from functools import lru_cache

LOOP_TOKENS = 400
"""Tokens at the end of a text that are searched for a loop."""
LONGEST_PERIOD = 60
"""Tokens of a loop's period at most."""
LEAST_REPEATS = 3.0
"""Times that a period stands there, the last one perhaps cut."""
LEAST_SHARE = 0.3
"""Share of the searched text that the loop fills. These four are the rule catalogue's; real text showed 0.0 %."""
LEAST_LOOP_BYTES = 30
"""Bytes of UTF-8 of the whole loop, so that ``1000000`` is none: ten Chinese characters, or five English words."""
MOST_GARBLED = 0.01
"""Share of characters that no writer types from which a text is garbled (rule catalogue, gen/empty-gibberish)."""
SWITCHED_POINTS = 0.5
"""Distance of prompt's and reply's scripts, 0 to 1, from which a reply is in another script (rule catalogue)."""
LEAST_WORDS = 6
"""Words of a reply below which its script says nothing: a name or an abbreviation may be all of it."""
COMMON_SHARE = 0.15
"""A reply's main script that has this share of the prompt was asked in, too."""
LEAST_COPIED = 12
"""Tokens of a run that is in prompt and reply alike, below which it is a phrase, not a copy."""
LEAST_PROMPT = 4
"""Tokens of a prompt that is said again as a whole, at least."""
WHOLE_PROMPT = 0.8
"""Share of a prompt that is all of it: its question mark may be missing."""
COPIED_SHARE = 0.6
"""Share of the reply that the longest such run fills from which the reply is a copy (rule catalogue)."""
LEAST_REPEATED = 40
"""Tokens of a text below which its share of repeated 4-grams says nothing."""
REPEATED_SHARE = 0.5
"""Share of repeated 4-grams that is above nearly all real text: 99 % of English lies below 0.32 to 0.58, of Chinese
below 0.29 to 0.38 (rule catalogue, measured)."""

# Scripts written without spaces: each character is a token.
_UNSPACED = "\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uac00-\ud7af\uf900-\ufaff\U00020000-\U000323af"
_TOKEN = re.compile(rf"[{_UNSPACED}]|[^\W{_UNSPACED}]+|[^\w\s]")
_WORD = re.compile(rf"[{_UNSPACED}]|[^\W\d_{_UNSPACED}]+")


@dataclass(frozen=True, slots=True)
class Loop:
    """The end of a text that repeats itself exactly.

    Attributes:
        period: What is repeated, spaces around it taken away.
        repeats: How many times it stands there; not whole where the last one is cut.
        share: Share of the searched text that it fills.
    """

    period: str
    repeats: float
    share: float


def tokens(text: str) -> list[str]:
    """Words, single characters of scripts without spaces, and punctuation marks, in order."""
    return _TOKEN.findall(text)


def loop_at_end(text: str) -> Loop | None:
    """The longest exactly periodic end of a text, when it is long enough to be no accident; else None.

    A white-space run counts as one space. The smallest period of every end comes from the prefix function of the
    reversed text (Knuth, Morris and Pratt 1977), so that the search is linear.
    """
    squeezed = " ".join(text.split())
    squeezed = squeezed[_start_of_last(squeezed, LOOP_TOKENS) :]
    length = len(squeezed)
    least = max(LEAST_SHARE * length, 1.0)
    backwards = squeezed[::-1]
    borders = [0] * length
    best = 0
    for end in range(1, length):
        border = borders[end - 1]
        while border and backwards[end] != backwards[border]:
            border = borders[border - 1]
        if backwards[end] == backwards[border]:
            border += 1
        borders[end] = border
        whole = end + 1
        if whole >= least and whole >= LEAST_REPEATS * (whole - border):
            best = whole
    if not best:
        return None
    looped = squeezed[length - best :]
    size = best - borders[best - 1]
    period = looped[:size]
    if len(looped.encode("utf-8", "replace")) < LEAST_LOOP_BYTES or len(tokens(period)) > LONGEST_PERIOD:
        return None
    return Loop(period.strip(), best / size, best / length)


def _start_of_last(text: str, count: int) -> int:
    starts = [found.start() for found in _TOKEN.finditer(text)]
    return starts[-count] if len(starts) > count else 0


def repeated_share(text: str, size: int = 4) -> float | None:
    """Share of a text's n-grams of tokens that were there before; None for a short text.

    The ``rep-n`` of Welleck et al. 2020 (*Neural Text Generation with Unlikelihood Training*).
    """
    words = tokens(text)
    if len(words) < LEAST_REPEATED:
        return None
    grams = [tuple(words[at : at + size]) for at in range(len(words) - size + 1)]
    return 1.0 - len(set(grams)) / len(grams)


_FENCE = re.compile(r"```[\w+-]*\n(.*?)(?:```|\Z)", re.DOTALL)
_CODE_LINE = re.compile(
    r"""^\s*(?:
        (?:def|class|import|from|return|if|elif|else|for|while|try|except|with|const|let|var|function|public|private
          |static|struct|enum|using|package|func|fn|impl|SELECT|INSERT|UPDATE|DELETE|CREATE|FROM|WHERE)\b.*[(){}:;=,*].*
        |[#]include.*|[@]\w+.*|//.*|/\*.*|\*/|</?\w[^>]*>.*
        |.*[;{}]\s*
        |.*[\])][;,:]?\s*
        |[\w.\[\]"']+\s*(?:[-+*/|&]?=|:=|=>|->)\s*\S.*
        |["']?[\w.-]+["']?\s*:\s*["'\[{\d].*
        |[\])}]+[;,]?
        |(?:return|break|continue|pass|end|fi|done|else:)\b\s*\S*
        |[#]\s.*
    )$""",
    re.VERBOSE,
)


def is_structured(text: str) -> bool:
    """Whether a text is code or JSON rather than prose: more than half of it in a fence, or of its lines look it."""
    text = text.strip()
    if not text:
        return False
    if sum(map(len, _FENCE.findall(text))) > len(text) / 2 or _is_json(text):
        return True
    lines = [line for line in text.splitlines() if line.strip()]
    return sum(_CODE_LINE.match(line) is not None for line in lines) > 0.5 * len(lines)


def _is_json(text: str) -> bool:
    if text[0] not in "{[":
        return False
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return len(re.findall(r'"\s*:|\d\s*,|"\s*,', text)) >= 3  # cut, or nearly JSON
    return True


def is_empty(text: str) -> bool:
    """Whether a text shows nothing: white space, control and format characters only."""
    return all(char.isspace() or unicodedata.category(char) in ("Cc", "Cf") for char in text)


def garbled_share(text: str, *, cut: bool = False) -> float:
    """Share of characters that no writer types: U+FFFD, control characters, lone surrogates.

    Args:
        text: The text.
        cut: Whether it was cut after some token. Then a U+FFFD at its end is half of a character, and does not count.
    """
    text = text.strip()
    if cut:
        text = text.rstrip("\N{REPLACEMENT CHARACTER}")
    return sum(map(_never_typed, text)) / len(text) if text else 0.0


def _never_typed(char: str) -> bool:
    if char.isprintable():
        return char == "\N{REPLACEMENT CHARACTER}"
    return char not in "\t\n\v\f\r\x85" and unicodedata.category(char) in ("Cc", "Cs")


_ALWAYS_MIXED = frozenset({"LATIN", "CJK", "HIRAGANA", "KATAKANA", "HANGUL"})
"""Scripts whose letters stand side by side in ordinary East Asian text."""


def is_script_soup(text: str) -> bool:
    """Whether letters of many scripts run into each other, as random tokens of a multilingual vocabulary do.

    Four scripts or more, and at least three places where two of them meet without a break that do not meet in ordinary
    text. A list of words in many languages has breaks between them. The numbers are a choice without an authority.
    """
    seen: set[str] = set()
    clashes = 0
    before = ""
    for char in text:
        script = _script(char)
        if script:
            seen.add(script)
            clashes += bool(before) and before != script and not {before, script} <= _ALWAYS_MIXED
        if script or unicodedata.category(char)[0] != "M":  # a mark belongs to the letter before it
            before = script
    return len(seen) >= 4 and clashes >= 3


_SCRIPT_NAMES = frozenset(
    {
        "LATIN", "CYRILLIC", "GREEK", "ARABIC", "HEBREW", "DEVANAGARI", "BENGALI", "GURMUKHI", "GUJARATI", "ORIYA",
        "TAMIL", "TELUGU", "KANNADA", "MALAYALAM", "SINHALA", "THAI", "LAO", "TIBETAN", "MYANMAR", "GEORGIAN", "HANGUL",
        "ETHIOPIC", "KHMER", "MONGOLIAN", "HIRAGANA", "KATAKANA", "BOPOMOFO", "CJK", "ARMENIAN",
    }
)  # fmt: skip


@lru_cache(maxsize=8192)
def _script(char: str) -> str:
    """The script of a letter, from its name in Unicode: ``LATIN``, ``CJK``; empty for what is no letter."""
    if char.isascii():
        return "LATIN" if char.isalpha() else ""
    if not char.isalpha():
        return ""
    words = unicodedata.name(char, "").replace("-", " ").split()
    return next((word for word in words if word in _SCRIPT_NAMES), "")


def script_shares(text: str, *, leave_out: frozenset[str] = frozenset()) -> Counter[str]:
    """Words by script, hiragana and katakana as ``KANA``; of scripts without spaces each character counts as a word."""
    found: Counter[str] = Counter()
    for word in _WORD.findall(text):
        script = _script(word[0])
        if script and script not in leave_out:
            found["KANA" if script in ("HIRAGANA", "KATAKANA") else script] += 1
    return found


_LANGUAGES = re.compile(
    r"\b(?:translat\w*|transliterat\w*|pinyin|romaji|language|english|french|german|spanish|portuguese|italian|dutch"
    r"|russian|ukrainian|polish|greek|turkish|arabic|hebrew|persian|hindi|bengali|urdu|tamil|thai|vietnamese|indonesian"
    r"|korean|japanese|chinese|mandarin|cantonese)\b"
    r"|翻译|译成|译为|英语|英文|中文|汉语|日语|日文|韩语|法语|德语|俄语|西班牙语|葡萄牙语|意大利语|阿拉伯语|拼音|语言|外语",
    re.IGNORECASE,
)
_REPEATING = re.compile(
    r"\b(?:repeat\w*|cop(?:y|ies|ied)|quot\w+|extract\w*|translat\w*|rewrit\w*|rephras\w*|paraphras\w*|proofread\w*"
    r"|correct\w*|fix\w*|edit\w*|improv\w*|format\w*|reformat\w*|convert\w*|complet\w*|continu\w*|summar\w*"
    r"|highlight\w*|echo|refactor\w*|renam\w*|add|annotate\w*|sort\w*|reverse|indent\w*|sentence|spell\w*|original"
    r"|verbatim|exactly|following)\b"
    r"|重复|复述|抄写|照抄|引用|原文|原样|提取|抽取|翻译|改写|润色|修改|改正|纠正|修正|校对|格式|转换|补全|补充|续写|总结|摘要|概括"
    r"|整理|加上|添加|重构|改成|改为|以下|下面|上文",
    re.IGNORECASE,
)


def asks_for_a_language(prompt: str) -> bool:
    """Whether a prompt names a language or asks for a translation, so that a reply in another script is in order."""
    return _LANGUAGES.search(prompt) is not None


def asks_to_repeat(prompt: str) -> bool:
    """Whether a prompt asks to extract, correct, complete or say again what it holds."""
    return _REPEATING.search(prompt) is not None


def switched_script(prompt: str, reply: str) -> tuple[str, str] | None:
    """The main scripts of prompt and reply where the reply is in another one than was asked in; else None.

    Of code and JSON the Latin part is left out: it is their own, whatever is asked in. Two languages of one script
    (English and French) cannot be told apart so.
    """
    if asks_for_a_language(prompt):
        return None
    asked = script_shares(prompt)
    said = script_shares(reply, leave_out=frozenset({"LATIN"}) if is_structured(reply) else frozenset())
    if not asked or said.total() < LEAST_WORDS:
        return None
    distance = 0.5 * sum(abs(asked[script] / asked.total() - said[script] / said.total()) for script in {*asked, *said})
    main = said.most_common(1)[0][0]
    if distance <= SWITCHED_POINTS or asked[main] >= COMMON_SHARE * asked.total():
        return None
    if main == "CJK" and asked["KANA"]:  # Japanese without kana is rare, but is Japanese
        return None
    return asked.most_common(1)[0][0], main


def copied_share(prompt: str, reply: str) -> float:
    """Share of the reply's tokens that its longest run common with the prompt fills; 0 where that run is a phrase.

    A run is more than a phrase when it is long, or when it is all of a short prompt.
    """
    asked, said = (tokens(text.lower()) for text in (prompt, reply))
    asked, said = asked[:600], said[:LOOP_TOKENS]
    if not asked or not said:
        return 0.0
    found = SequenceMatcher(None, asked, said, autojunk=False).find_longest_match(0, len(asked), 0, len(said))
    whole = found.size >= LEAST_PROMPT and found.size >= WHOLE_PROMPT * len(asked)
    return found.size / len(said) if whole or found.size >= LEAST_COPIED else 0.0


def is_copy(prompt: str, reply: str) -> bool:
    """Whether a reply says the prompt again, unasked."""
    return copied_share(prompt, reply) > COPIED_SHARE and not asks_to_repeat(prompt)


SCRIPT_NAMES = {
    "LATIN": "Latin", "CJK": "Chinese", "KANA": "Japanese kana", "HANGUL": "Korean", "CYRILLIC": "Cyrillic",
}  # fmt: skip


def script_name(script: str) -> str:
    """A script's name for a person."""
    return SCRIPT_NAMES.get(script, script.capitalize())
