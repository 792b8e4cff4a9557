"""What of a machine cannot be read: said once, for a person, and never raised."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

MOST = 32
"""Lines that are kept; more of them would tell nobody anything."""
_LONGEST = 300
"""Characters kept of a line."""
T = TypeVar("T")


class Problems:
    """Lines for a person, one for each matter, each kept once."""

    __slots__ = ("_lines",)

    def __init__(self) -> None:
        self._lines: dict[str, str] = {}

    @property
    def lines(self) -> Sequence[str]:
        """What was said so far, in order."""
        return tuple(self._lines.values())

    def say(self, line: str, matter: str = "") -> None:
        """Keep ``line``, unless one of the same matter was kept; a line without a matter is its own."""
        matter = matter or line
        if matter and matter not in self._lines and len(self._lines) < MOST:
            self._lines[matter] = "".join(letter if letter.isprintable() else "?" for letter in line[:_LONGEST])

    def ask(self, what: str, call: Callable[[], T]) -> T | None:
        """What ``call`` returns; None, and a line about ``what``, when the system does not tell it."""
        try:
            return call()
        except Exception as error:  # psutil raises whatever its parsing meets in a /proc that it does not expect
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}".rstrip(": ")
            self.say(f"{what}: cannot be read ({reason}); what depends on it is left out", what)
            return None
