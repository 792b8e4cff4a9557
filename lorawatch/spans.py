"""State that rules of the machine keep: how long something has held, for what share of the time, and its course.

Readings come when they come, one second apart or thirty: these count seconds and steps, never records. All of them are
bounded, and none reads a clock.
"""

from __future__ import annotations

from collections import deque


class Lasting:
    """Since when something has held without a break, in the time of the records."""

    __slots__ = ("since",)

    def __init__(self) -> None:
        self.since: float | None = None

    def held(self, holds: bool, time: float, seconds: float) -> bool:
        """Whether it holds at ``time`` and has done so for at least ``seconds``. To be called at each reading."""
        if not holds:
            self.since = None
            return False
        if self.since is None or time < self.since:
            self.since = time
        return time - self.since >= seconds


class Share:
    """For what share of the last seconds something held, from readings that each cover some of them.

    Attributes:
        covered: Seconds that the readings in the window cover; less than the window where readings are missing.
        looks: Looks that went into them.
        value: The share, 0 to 1; 0 before the first reading.
    """

    __slots__ = ("_parts", "covered", "looks", "value")

    MOST = 128
    """Readings kept: enough for two minutes of one a second."""

    def __init__(self) -> None:
        self._parts: deque[tuple[float, float, int, float]] = deque()
        self.covered = 0.0
        self.looks = 0
        self.value = 0.0

    def add(self, time: float, seconds: float, looks: int, share: float, *, window: float, least: int) -> None:
        """Take in one reading, and forget what is older than the window.

        Args:
            time: Its end.
            seconds: Time that it covers; nothing is taken in where that is not positive.
            looks: Looks that it is made of.
            share: Share of it during which the thing held.
            window: Seconds to look back over.
            least: Looks to keep, however old: one look in thirty seconds says little.
        """
        if not seconds > 0.0:
            return
        parts = self._parts
        if parts and time < parts[-1][0]:
            parts.clear()  # the clock was set back
        parts.append((time, seconds, looks, share))
        self.looks = sum(part[2] for part in parts)
        while len(parts) > 1 and (
            len(parts) > self.MOST or (parts[0][0] <= time - window and self.looks - parts[0][2] >= least)
        ):
            self.looks -= parts.popleft()[2]
        self.covered = sum(part[1] for part in parts)
        self.value = sum(part[1] * part[3] for part in parts) / self.covered


class Thinned:
    """The course of a value over all steps so far, in 32 to 64 points: when full, every other point goes.

    Attributes:
        steps: Steps of the points.
        rows: What was noted at each of them.
    """

    __slots__ = ("_spacing", "rows", "steps")

    MOST = 64

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.rows: list[tuple[float, ...]] = []
        self._spacing = 1

    def add(self, step: int, *row: float) -> bool:
        """Note a point, unless it comes too soon after the one before. True when it was kept."""
        if self.steps and step - self.steps[-1] < self._spacing:
            return False
        self.steps.append(step)
        self.rows.append(row)
        if len(self.steps) > self.MOST:
            del self.steps[1::2]
            del self.rows[1::2]
            self._spacing = max(self._spacing, (self.steps[-1] - self.steps[0]) // (len(self.steps) - 1))
        return True

    def clear(self) -> None:
        """Forget all points: what comes next belongs to another process."""
        self.steps.clear()
        self.rows.clear()
        self._spacing = 1

    @property
    def span(self) -> int:
        """Steps from the first point to the last."""
        return self.steps[-1] - self.steps[0] if self.steps else 0

    def column(self, index: int) -> list[float]:
        """One value of each row."""
        return [row[index] for row in self.rows]
