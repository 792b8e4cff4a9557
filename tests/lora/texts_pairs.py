"""Prompts and replies from a block of text: ``Q:`` and ``A:``, with a blank line between pairs."""

from __future__ import annotations

import re


def pairs(text: str) -> list[tuple[str, str]]:
    """The prompts and replies of a block of text."""
    found = re.findall(r"^Q: (.*?)\nA: (.*?)(?=\n\nQ: |\s*\Z)", text.strip(), re.DOTALL | re.MULTILINE)
    return [(prompt, reply) for prompt, reply in found]
