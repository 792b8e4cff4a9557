"""Bad replies, made of good ones in the ways in which fine-tuned models fail. Written after the thresholds were set."""

from __future__ import annotations

from random import Random

from lorawatch.lora.text_signs import asks_for_a_language, asks_to_repeat, tokens

from .texts_chinese import GOOD as CHINESE
from .texts_english import GOOD as ENGLISH

LIMIT = 120
"""Tokens after which a reply that does not end is cut."""

Pair = tuple[str, str]

_GREEK = str.maketrans("abcdefghijklmnopqrstuvwxyz", "αβκδεφγηιξκλμνοπθρστυωχψυζ")
_CYRILLIC = str.maketrans("abcdefghijklmnopqrstuvwxyz", "абцдефгхийклмнопярстувщхыз")
_OF_MANY_SCRIPTS = (
    "ный", "ться", "ством", "ção", "ing", "的", "比赛", "了吗", "ست", "مال", "ون", "ים", "של",
    "ται", "ους", "ंग", "ों", "ता",
    "니다", "로서", "ました", "ການ", "ที่", "การ", "һәм", "ový", "ness", "ში", "ები", "քան", "ություն", "ার", "ের",
)  # fmt: skip


def _cut(text: str, limit: int) -> str:
    """The text up to its ``limit``-th token, and perhaps a part of the next one."""
    words = tokens(text)
    if len(words) <= limit:
        return text
    at = 0
    for word in words[:limit]:
        at = text.index(word, at) + len(word)
    return text[: at + 1]


def looping(pair: Pair, dice: Random) -> str:
    """Begins well, then says one piece again and again until it is cut: at least three times, or it is no loop yet."""
    reply = pair[1]
    units = reply.splitlines(keepends=True) if reply.count("\n") > 3 and dice.random() < 0.5 else []
    if not units:
        units = [word + " " for word in reply.split(" ")] if " " in reply else list(reply)
    size = dice.randint(1, 12)
    start = dice.randrange(max(len(units) - size, 1))
    piece = "".join(units[start : start + size])
    while size > 1 and len(tokens(piece)) > LIMIT // 6:
        size -= 1
        piece = "".join(units[start : start + size])
    opening = _cut("".join(units[:start]), LIMIT // 3)
    if opening and not opening[-1].isspace() and " " in reply:
        opening += " "
    return _cut(opening + piece * 60, dice.randint(LIMIT - 10, LIMIT))


def empty_or_garbled(pair: Pair, dice: Random) -> str:
    """Nothing, or characters that are none, or tokens of many scripts on end."""
    reply = pair[1]
    kind = dice.randrange(4)
    if kind == 0:
        return dice.choice(("", " ", "\n", "\n\n\n", "\u200b", " \t\n"))
    if kind == 3:
        return "".join(dice.choice(_OF_MANY_SCRIPTS) + (" " if dice.random() < 0.2 else "") for _ in range(40))
    bad = ("\N{REPLACEMENT CHARACTER}",) if kind == 1 else ("\x00", "\x1b", "\x08", "\x10", "\x7f")
    share = dice.uniform(0.03, 0.3)
    text = "".join(dice.choice(bad) if dice.random() < share else char for char in reply)
    return text + dice.choice(bad) + reply[-3:]


def in_another_script(pair: Pair, dice: Random) -> str | None:
    """The reply of another language's set, or its own in other letters; None where the prompt names a language."""
    prompt, reply = pair
    if asks_for_a_language(prompt):
        return None
    if pair in CHINESE:
        return dice.choice([text for _, text in ENGLISH if len(text.split()) >= 10])
    if pair in ENGLISH and len(reply.split()) >= 8 and dice.random() < 0.5:
        return reply.lower().translate(dice.choice((_GREEK, _CYRILLIC)))
    prose = dice.choice([text for _, text in CHINESE if "```" not in text and len(text) >= 15])
    if pair in ENGLISH or dice.random() < 0.5:
        return prose
    if reply.startswith(("{", "[")):
        return f'{{"答案": "{prose[:30]}", "说明": "{prose[-20:]}"}}'.replace("\n", "")
    return f"# {prose[:25]}\n{reply}\n// {prose[-15:]}".replace("\r", "")


def copying(pair: Pair, dice: Random) -> str | None:
    """The prompt again, perhaps with a little before or behind; None where the prompt asks for what it holds."""
    prompt = pair[0]
    if asks_to_repeat(prompt) or len(tokens(prompt)) < 4:
        return None
    kind = dice.randrange(4)
    if kind == 0:
        return prompt
    if kind == 1:
        return prompt.upper()
    if kind == 2:
        return f"“{prompt}”"
    return prompt.rstrip("?？.。")
