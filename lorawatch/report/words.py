"""Text from a log, made safe for a page or for Markdown, and cut to a length."""

from __future__ import annotations

import html
import json
import math
import re
from typing import Any

from lorawatch.findings import Adjustment
from lorawatch.render import number, printable, value_text

LINE = 300
"""Characters of a name or a value that are shown."""
_JOINERS = re.compile("([\u200c\u200d])")
"""Format characters without which Persian, Hindi and emoji read wrong; they reorder nothing."""
_MARKDOWN = re.compile(r"([\\`*_\[\]<>|#~&!$(){}])")
_LINKS = re.compile(r"(?i)\b(https?|ftp)://|\bwww\.|@")


def cut(text: str, limit: int = LINE) -> str:
    """``text``, cut to ``limit`` characters; says how many were left out."""
    if len(text) <= limit:
        return text
    return f"{text[:limit]}… ({len(text) - limit:,} more characters)"


def shown(text: object, limit: int = LINE) -> str:
    """One line of text without what could act on a page or reorder it, cut to ``limit`` characters."""
    parts = _JOINERS.split(cut(str(text), limit))  # every second one is a joiner
    return "".join(part if at % 2 else printable(part) for at, part in enumerate(parts))


def escaped(text: object, limit: int = LINE) -> str:
    """One line of text for a page: neither markup nor controls are left of it."""
    return html.escape(shown(text, limit))


def escaped_block(text: object, limit: int) -> str:
    """Text of several lines for a page; line ends and tabs stay."""
    lines = cut(str(text), limit).replace("\r\n", "\n").split("\n")
    return "\n".join("\t".join(escaped(part, limit + 99) for part in line.split("\t")) for line in lines)


def marked_down(text: object, limit: int = LINE) -> str:
    """One line of text for Markdown: no markup, no link, no mention of a person, no end of a table's cell."""
    words = re.sub(r"\r?\n", " ↵ ", cut(str(text), limit)).replace("\t", " ")
    words = _MARKDOWN.sub(r"\\\1", shown(words, limit + 99))
    return _LINKS.sub(_unlinked, words)


def _unlinked(found: re.Match[str]) -> str:
    text = found.group()
    # Hosts of repositories make links of addresses and mentions that stand bare; a word joiner is not seen.
    return "@\u2060" if text == "@" else text.replace(":", "\\:").replace(".", "\\.")


def value(thing: Any) -> str:
    """A fact's or an evidence's value in words, not escaped yet; nested tables as JSON."""
    if isinstance(thing, dict):
        return ", ".join(f"{key}: {value(item)}" for key, item in list(thing.items())[:40]) or "empty"
    return value_text(thing[:100] if isinstance(thing, list | tuple) else thing)


def evidence_value(name: object, thing: Any) -> str:
    """A number behind a finding: bytes as a person counts them, the rest as it stands."""
    if isinstance(thing, int | float) and not isinstance(thing, bool) and "bytes" in str(name).split("_"):
        size = float(min(max(thing, -1e300), 1e300))
        for unit in ("B", "KiB", "MiB", "GiB"):
            if abs(size) < 1024:
                return f"{size:.3g} {unit}"
            size /= 1024
        return f"{size:,.3g} TiB"
    return value(thing)


def config_line(adjustment: Adjustment) -> str:
    """What to write into a configuration, ``learning_rate: 0.00067``; "" where the change is told in words."""
    proposed = adjustment.proposed
    if not adjustment.parameter or (isinstance(proposed, str) and not re.fullmatch(r"[\w.+-]{1,60}", proposed)):
        return ""
    return f"{adjustment.parameter}: {_literal(proposed)}"


def _literal(thing: Any) -> str:
    if isinstance(thing, float):
        if not math.isfinite(thing):
            return str(thing)
        mantissa, mark, exponent = repr(thing).partition("e")
        # YAML 1.1 takes 1e-05 for a word and 1.0e-05 for a number.
        return f"{mantissa if '.' in mantissa else mantissa + '.0'}e{exponent}" if mark else mantissa
    if isinstance(thing, str):
        return thing
    try:
        return json.dumps(thing, ensure_ascii=False)
    except (TypeError, ValueError):
        return str(thing)


def seconds_text(seconds: float) -> str:
    """A duration: ``12 s``, ``3 min 20 s``, ``5 h 12 min``."""
    if seconds < 60:
        return f"{number(round(seconds, 1))} s"
    if seconds < 3600:
        return f"{int(seconds // 60)} min {int(seconds % 60)} s"
    return f"{int(seconds // 3600):,} h {int(seconds % 3600 // 60)} min"
