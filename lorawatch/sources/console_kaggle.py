"""Kaggle keeps a notebook's console as a JSON array of pieces: this takes the text out again."""

from __future__ import annotations

from typing import Any

import msgspec

_MARK = b'"stream_name":'
_CARRY = 1 << 16
"""Bytes of an unfinished line that are kept."""


class _Piece(msgspec.Struct):
    """One entry. Its time counts from the start of the session, so that it is no time of day."""

    data: str


_decode = msgspec.json.Decoder(_Piece).decode


def is_wrapped(block: bytes) -> bool:
    """Whether a block of lines is, or holds, Kaggle's JSON."""
    return b'"' in block and _MARK in block


class KaggleWrapping:
    """Unwraps block after block; a line of the log may go over several pieces.

    Attributes:
        used: A wrapped line was seen.
        bad_lines: Wrapped lines that could not be decoded.
    """

    def __init__(self) -> None:
        self.used = False
        self.bad_lines = 0
        self._carry = b""

    def unwrap(self, block: bytes) -> bytes:
        """Return the text of whole lines inside; lines that are not wrapped stay as they are."""
        self.used = True
        pieces = [self._carry]
        for line in block.split(b"\n"):
            entry = line.strip().lstrip(b"[,")
            if _MARK not in entry:
                if entry not in {b"", b"]"}:
                    pieces.append(line + b"\n")
                continue
            try:
                pieces.append(_decode(entry).data.encode("utf-8", "replace"))
            except (msgspec.MsgspecError, UnicodeDecodeError):
                self.bad_lines += 1
        text = b"".join(pieces)
        cut = max(text.rfind(b"\n"), text.rfind(b"\r")) + 1
        self._carry = text[cut:][-_CARRY:]
        return text[:cut]

    def rest(self) -> bytes:
        """Return the unfinished last line, and forget that anything was wrapped."""
        rest, self._carry, self.used = self._carry, b"", False
        return rest

    def state(self) -> dict[str, Any]:
        """All of it, as plain JSON."""
        return {"used": self.used, "bad_lines": self.bad_lines, "carry": self._carry.decode("latin-1")}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned."""
        self.used, self.bad_lines, self._carry = state["used"], state["bad_lines"], state["carry"].encode("latin-1")
