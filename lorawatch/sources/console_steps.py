"""Tells the optimizer step of a console row, which the trainer does not print.

Three signs are weighed: the progress bar before the row, the epoch in the row, and the even spacing of rows
(``logging_steps``). None is good alone. The bar runs ahead when stdout is buffered and stderr is not (about ninety
rows then arrive at once, long after their bars); it lags by up to 0.1 s of steps, because tqdm redraws no more often;
the epoch is rounded to two decimals or four digits. Rows, however, are evenly spaced in every run but for the first.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from typing import Any

_RENEW = 1.3
"""Growth of the epoch after which the steps an epoch are told anew: a later, larger epoch is rounded less."""
STRIKES = 3
"""Rows in a row whose bar must contradict the spacing before the bar is believed: rows were lost then."""


class StepClock:
    """Gives each row of one run its step; steps of training rows strictly increase until :meth:`restart`.

    Attributes:
        start: First position of the bar that was seen.
        bar: Position of the training bar when last seen; None before.
        total: Its total, the run's ``max_steps``; None when unknown.
        every: Steps between two rows; None while unknown.
        settled: ``every`` was seen twice, or was read from the log.
        confirmed: A bar stood where ``every`` said that the next row is due.
        step: Step of the last training row, 0 before the first.
        epoch: Epoch of the last training row.
        rows: Training rows so far.
    """

    __slots__ = (
        "_base",
        "_rate",
        "_strikes",
        "bar",
        "bar_used",
        "confirmed",
        "epoch",
        "epoch_of_rate",
        "every",
        "first_epoch",
        "first_step",
        "rows",
        "settled",
        "start",
        "stated_epochs",
        "stated_every",
        "stated_total",
        "step",
        "total",
    )

    def __init__(self) -> None:
        self.stated_every: int | None = None
        self.stated_epochs: float | None = None
        self.stated_total: int | None = None
        self.restart()

    def restart(self) -> None:
        """Forget the run, and keep what was stated: a script that starts anew states its arguments before."""
        self.bar: int | None = None
        self.total: int | None = self.stated_total
        self.every: int | None = None
        self.settled = False
        self.step = 0
        self.epoch: float | None = None
        self.first_epoch: float | None = None
        self.first_step = 0
        self.rows = 0
        self.start: int | None = None
        self._rate: float | None = None
        self.epoch_of_rate = 0.0
        self._strikes = 0
        self.bar_used: int | None = None
        self.confirmed = False
        self._base = (1, 0)  # a row, counted from 1, and its step: the others lie evenly after it

    def go_on_from(self, step: int) -> None:
        """The run was resumed: the next row comes after ``step``, the spacing stays."""
        self.step = step
        self.epoch = None
        self._strikes = 0
        self._base = (self.rows, step)

    def state(self) -> dict[str, Any]:
        """All attributes, as plain JSON."""
        return {name: getattr(self, name) for name in self.__slots__}

    def restore(self, state: dict[str, Any]) -> None:
        """Take over what :meth:`state` returned."""
        for name in self.__slots__:
            setattr(self, name, state[name])

    def step_at(self, epoch: float | None, bar: int | None) -> int:
        """Return the step from which a resumed run goes on, told by its first row and the bar before it.

        The bar may lag behind the row; but rows lie where they lay before, a whole number of ``every`` apart.
        """
        every = self.every or 1
        expected = self._expected(epoch)
        if bar is None:
            back = self.step - expected[0] if expected else 0
            return max(0, self.step - max(0, round(back / every)) * every - every)
        due = bar + (self.step - bar) % every
        if expected and expected[1] < every:
            due += max(0, round((expected[0] - due) / every)) * every
        return max(0, due - every)

    def train(self, epoch: float | None, marks: list[int]) -> tuple[int, bool]:
        """Return the step of the next training row, and whether it is an estimate.

        Args:
            epoch: The row's epoch.
            marks: Bar positions at which something was printed since the last row, as tqdm's redraws tell.
        """
        self.rows += 1
        if self.settled:
            step = self.step + self.every  # type: ignore[operator]
            if step == self.bar:
                self._strikes = 0
                self.confirmed = True
                estimated = False
            else:
                step, estimated = self._weigh(step, epoch)
        else:
            step, estimated = self._first(epoch, marks)
        if self.total is not None and step > self.total > 0:
            step, estimated = max(self.total, self.step), True  # no row lies beyond the end
        if self.rows == 1:
            self.first_epoch, self.first_step = epoch, step
            self._base = (1, step)
        self.step, self.epoch = step, epoch
        self.bar_used = self.bar
        if epoch and epoch > self.epoch_of_rate * _RENEW and (self.settled or not estimated):
            self._rate, self.epoch_of_rate = step / epoch, epoch
        return step, estimated

    def advance(self, rows: int, step: int, epoch: float) -> None:
        """Take over that ``rows`` training rows were read, each at its bar and where the spacing said."""
        self.rows += rows
        self.step = self.bar = self.bar_used = step
        self.epoch = epoch
        self._strikes = 0
        self.confirmed = True

    def learn_rate(self, steps: Sequence[int], epochs: Sequence[float]) -> None:
        """Take the steps an epoch from settled rows, just as :meth:`train` would, row by row.

        Args:
            steps: Their steps.
            epochs: Their epochs, ascending.
        """
        while epochs[-1] > self.epoch_of_rate * _RENEW:
            index = bisect_right(epochs, self.epoch_of_rate * _RENEW)
            if not epochs[index]:
                return
            self._rate, self.epoch_of_rate = steps[index] / epochs[index], epochs[index]

    def other(self, epoch: float | None, marks: list[int]) -> tuple[int, bool]:
        """Return the step of a row that is no training row (an evaluation), and whether it is an estimate."""
        if epoch is not None and epoch == self.epoch:
            return self.step, False
        if not self.settled and marks and self.bar is not None and self.step < marks[0] < self.bar:
            return marks[0], True
        ahead = self.bar is not None and self.bar > self.step
        if ahead and (not self.settled or self.bar <= self.step + self.every):  # type: ignore[operator]
            return self.bar, False  # type: ignore[return-value]
        expected = self._expected(epoch)
        if expected is not None:
            return max(self.step, round(expected[0])), True
        return self.step, self.step != self.bar

    def _expected(self, epoch: float | None, *, learned: bool = False) -> tuple[float, float] | None:
        """The step that the epoch tells, and how far that may be off.

        Args:
            epoch: The epoch.
            learned: Go by the rows alone: a trainer that is told ``max_steps`` states its epochs rounded up.
        """
        rate = self._rate
        doubt = 0.0
        if self.stated_epochs and self.total and not learned:
            rate = self.total / self.stated_epochs
        elif rate is not None:
            # The rate was learnt from an epoch that was rounded too, which is much of a small one.
            doubt = min(1.0, _rounding(self.epoch_of_rate) / self.epoch_of_rate)
        if epoch is None or rate is None or not 0 <= epoch < 1e6:
            return None
        return epoch * rate, (_rounding(epoch) + epoch * doubt) * rate + 1

    def _first(self, epoch: float | None, marks: list[int]) -> tuple[int, bool]:
        """The step while the spacing is not known yet."""
        last, bar, every = self.step, self.bar, self.every
        start = self.start or 0
        if self.stated_every and self.total is not None and self.stated_every > self.total:
            self.stated_every = None
        marks = [mark for mark in marks if mark > last]
        expected = self._expected(epoch)
        if self.stated_every and self.rows > 0 and (bar is None or bar <= last or bar >= last + self.stated_every):
            step = (last // self.stated_every + 1) * self.stated_every
            self.every, self.settled = self.stated_every, last % self.stated_every == 0
            return step, step != bar
        if bar is not None and marks and marks[0] < bar:
            return self._by_marks(marks), True
        if bar is not None and bar > last and bar != self.bar_used:
            if not last and bar == self.total and bar > 1:
                return 1, True  # the whole run is over already: its bar tells nothing of its first row
            if every and last and epoch and self.epoch and bar != last + every:
                # The first row tells how far apart rows are only in a log that begins at step 0.
                expected = expected or (epoch * last / self.epoch, 1.0)
                if abs(last + every - expected[0]) < abs(bar - expected[0]):
                    self.settled = True
                    return last + every, True
            # Rows at 1 and 2 may be logging_first_step's and the first of even ones.
            self.settled = bar - last == every and (last > 1 or (not last and start <= 1))
            # A log that begins in the middle of a run shows where its first row is, not how far apart rows are.
            self.every = bar - last if last or start <= 1 else None
            return bar, not self.settled
        if every and (self.total is None or last + every <= self.total):
            return last + every, True
        if expected and expected[0] > last + 1:
            self.every = round(expected[0]) - last
            return last + self.every, True
        return last + 1, True

    def _by_marks(self, marks: list[int]) -> int:
        """The step of a row whose bar is long past: what it left is a redraw where something was printed."""
        step, last = marks[0], self.step
        if (self.start or 0) > 1 and not last:
            self.every = marks[1] - step if len(marks) > 1 else None
            self.settled = len(marks) > 1
        elif step == 1:
            # With logging_first_step a row stands at 1 too, outside the even spacing.
            self.every = 1 if marks in ([1], [1, 2], [1, 2, 3]) else None
            self.settled = marks == [1, 2, 3]
        else:
            # Trainers log at multiples of logging_steps: the first of them is the spacing.
            self.every = step if last <= 1 else step - last
            self.settled = True
        return step

    def _even(self, epoch: float | None, step: int) -> int:
        """The step, with the spacing mended where the epochs contradict it and no bar has confirmed it yet."""
        rows, base = self.rows - self._base[0], self._base[1]
        expected = None if self.confirmed or rows < 1 else self._expected(epoch, learned=True)
        if expected is None or abs(step - expected[0]) <= expected[1]:
            return step
        every = max(1, round((expected[0] - base) / rows))
        if base + rows * every <= self.step:
            return step
        self.every = every
        return base + rows * every

    def _weigh(self, step: int, epoch: float | None) -> tuple[int, bool]:
        """The step when the bar is not where the spacing says; ``step`` is what the spacing says."""
        bar, last = self.bar, self.step
        expected = self._expected(epoch)
        if self.total is not None and step > self.total > last:
            step = last + 1  # rows cannot lie beyond the end
        if bar is None or bar <= last or bar == self.bar_used:
            self._strikes = 0
            step = self._even(epoch, step)
            if expected is not None and abs(step - expected[0]) > expected[1] + self.every:  # type: ignore[operator]
                return self._snap(expected[0], step), True
            return step, True
        if bar > step:
            if expected is not None:
                if abs(step - expected[0]) <= expected[1]:
                    return step, True
                if abs(bar - expected[0]) <= expected[1]:
                    self._strikes = 0
                    return bar, False
            self._strikes += 1
            if self._strikes >= STRIKES:
                self._strikes = 0
                return bar, False
        return step, True

    def _snap(self, expected: float, step: int) -> int:
        every = self.every or 1
        snapped = round(expected / every) * every
        return snapped if snapped > self.step else step


def _rounding(epoch: float) -> float:
    """How far a printed epoch may be off: transformers 4 rounds to two decimals, 5 to four digits."""
    return 0.005 if round(epoch, 2) == epoch else 0.0005 * epoch
