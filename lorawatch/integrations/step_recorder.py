"""Where the time of each training step goes, taken by two callbacks: one that stands first and one that stands last.

Order of events in the Trainer (transformers 4.46 to 5.24, ``_inner_training_loop``): all micro-batches of a step are
fetched, then ``on_step_begin``, the micro-steps, clipping, ``on_pre_optimizer_step``, the optimizer, ``on_step_end``,
then logging, evaluation and saving, each with its event at its end. The wait for data is from the last of these to the
next ``on_step_begin``. What other callbacks do between would count as wait, were it not for the two that stand at
either end: the first takes the time before all others, the last after them.

Times are of the host. On a GPU the passes run behind it, but the Trainer waits for them in each step, to look whether
the loss is NaN (``logging_nan_inf_filter``) and to log: a step's time is honest, its split between passes and optimizer
less so.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import CodeType, FrameType
from typing import Any

from transformers import TrainerCallback

from lorawatch.integrations.batch_sizes import BatchSizes
from lorawatch.records import AllocatorReading, Step, StepTiming

BATCH = 16
"""Steps in one record, unless they take long."""
LONGEST = 10.0
"""Seconds after which a record is made of fewer steps."""
ALLOCATOR_SECONDS = 1.0
"""Least time between two looks at the allocator, which take 0.1 ms."""

Taker = Callable[[StepTiming], None]


class StepRecorder:
    """Takes the times of the steps, and hands them on a few steps at a time.

    Nothing here raises into the training loop: what fails is handed to ``fail`` once, and nothing is taken afterwards.

    Args:
        take: Where the records go.
        sizes: The sizes of the batches.
        read_allocator: Reads torch's allocator.
        fail: What to do when taking or handing on fails.
        clock: Seconds, monotonic.
        wall: Unix time in seconds.
    """

    def __init__(
        self,
        take: Taker,
        sizes: BatchSizes,
        read_allocator: Callable[[], AllocatorReading | None] = lambda: None,
        fail: Callable[[Exception], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.first = FirstRecorder(self)
        self.last = LastRecorder(self)
        self.phase = ""
        self._take = take
        self._sizes = sizes
        self._read_allocator = read_allocator
        self._fail = fail
        self._clock = clock
        self._wall = wall
        self._handler: Any = None
        self._loop: tuple[int, CodeType] | None = None
        self._pending: list[Step] = []
        self._fresh = True  # the next wait is an epoch's first
        self._open = False  # a step was finished and is not put down yet
        now = clock()
        self._boundary = self._begin = self._optimizer = self._end = self._sign = self._flushed = now
        self._asked = now - ALLOCATOR_SECONDS
        self._wait: float | None = None
        self._logging = self._evaluation = self._saving = 0.0
        self._saves = 0
        self.step = 0

    def attach(self) -> bool:
        """Stand first and last among the trainer's callbacks; False where they cannot be found.

        To be called from within an event of a callback: a callback is not told of its trainer, so that the handler of
        the callbacks is found as the one that is calling it.
        """
        handler = _calling_handler()
        if handler is None:
            return False
        # A new list: the one that is being walked at this moment stays as it is.
        handler.callbacks = [self.first, *handler.callbacks, self.last]
        self._handler = handler
        self._loop = _loop_around(handler)
        return True

    def in_training(self) -> bool:
        """Whether the training loop still stands on its thread's stack; True where that cannot be told.

        An exception, or an interrupted cell of a notebook, leaves the loop without an event. Any thread may ask.
        """
        if self._loop is None:
            return True
        thread, code = self._loop
        frame = sys._current_frames().get(thread)
        while frame is not None:
            if frame.f_code is code:
                return True
            frame = frame.f_back
        return False

    def detach(self) -> None:
        """Leave the trainer's callbacks as they were."""
        handler, self._handler = self._handler, None
        if handler is not None:
            handler.callbacks = [one for one in handler.callbacks if one is not self.first and one is not self.last]
        self._sizes.detach()

    def idle(self) -> float:
        """Seconds since the trainer last gave a sign."""
        return self._clock() - self._sign

    def flush(self, step: int) -> None:
        """Hand on what was taken: training ends after ``step``."""
        try:
            if self._open:
                self.step = step
                self._put_down(self._boundary)
            if self._pending:
                self._hand_on(self._clock())
        except Exception as error:
            self._failed(error)

    def begin_epoch(self, step: int) -> None:
        """An epoch begins after ``step``: its first wait holds the start of the workers and one batch of look-ahead."""
        now = self._clock()
        if self._open:
            self.step = step
            self._put_down(self._boundary)
        elif not self._pending:  # what was before training is no step's time
            self._flushed = now
        self._sizes.begin_epoch()
        self._fresh = True
        self._boundary = self._sign = now

    def begin_step(self, step: int) -> None:
        """All micro-batches are there; ``step`` is the number of steps done."""
        now = self._clock()
        wait = None if self._fresh else now - self._boundary
        self._fresh = False
        if self._open:
            self.step = step
            self._put_down(self._boundary)
            if len(self._pending) >= BATCH or now - self._flushed >= LONGEST:
                self._hand_on(now)
                now = self._clock()
        self._wait = wait
        self.phase = "training"
        self._begin = self._optimizer = self._sign = now

    def end_work(self, control: Any) -> None:
        """All callbacks are done with a step or an epoch; ``control`` says what the trainer does next."""
        self._boundary = self._sign = self._clock()
        if control.should_evaluate:
            self.phase = "evaluation"
        elif control.should_save:
            self.phase = "saving"

    def end_logging(self, logs: Mapping[str, Any]) -> None:
        """A row was logged: by training, or by an evaluation, which logs before it says that it is over."""
        now = self._clock()
        if self.phase == "evaluation" and "loss" not in logs:
            self._evaluation += now - self._boundary
        else:
            self._logging += now - self._boundary
        self._boundary = self._sign = now

    def end_evaluation(self, control: Any) -> None:
        """An evaluation is over."""
        now = self._clock()
        self._evaluation += now - self._boundary
        self._boundary = self._sign = now
        self.phase = "saving" if control.should_save else "training"

    def end_saving(self) -> None:
        """A checkpoint is written."""
        now = self._clock()
        self._saving += now - self._boundary
        self._saves += 1
        self._boundary = self._sign = now
        self.phase = "training"

    def _put_down(self, boundary: float) -> None:
        tokens, padded, largest = self._sizes.take()
        self._open = False
        self._pending.append(
            Step(
                None if self._wait is None else round(self._wait, 6),
                round(self._optimizer - self._begin, 6),
                round(self._end - self._optimizer, 6),
                round(boundary - self._end, 6),
                tokens,
                padded,
                largest,
            )
        )

    def _hand_on(self, now: float) -> None:
        allocator = None
        if now - self._asked >= ALLOCATOR_SECONDS:
            self._asked = now
            allocator = self._read_allocator()
        steps, self._pending = self._pending, []
        timing = StepTiming(
            step=self.step, span=len(steps), steps=steps, seconds=round(now - self._flushed, 6), time=self._wall(),
            logging=round(self._logging, 6), evaluation=round(self._evaluation, 6), saving=round(self._saving, 6),
            saves=self._saves, allocator=allocator,
        )  # fmt: skip
        self._flushed = now
        self._logging = self._evaluation = self._saving = 0.0
        self._saves = 0
        self._take(timing)

    def _failed(self, error: Exception) -> None:
        self.detach()
        self._fail(error)


class FirstRecorder(TrainerCallback):
    """Stands before all other callbacks."""

    def __init__(self, recorder: StepRecorder) -> None:
        self._recorder = recorder

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The data is there."""
        recorder = self._recorder
        try:
            recorder.begin_step(state.global_step)
        except Exception as error:
            recorder._failed(error)

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The passes and the clipping are done."""
        recorder = self._recorder
        recorder._optimizer = recorder._clock()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The optimizer's step is done."""
        recorder = self._recorder
        recorder._end = recorder._clock()
        recorder._open = True


class LastRecorder(TrainerCallback):
    """Stands behind all other callbacks."""

    def __init__(self, recorder: StepRecorder) -> None:
        self._recorder = recorder

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The next wait is an epoch's first."""
        recorder = self._recorder
        try:
            recorder.begin_epoch(state.global_step)
        except Exception as error:
            recorder._failed(error)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All other callbacks are done with the step."""
        self._recorder.end_work(control)

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluation and saving may follow, once an epoch."""
        self._recorder.end_work(control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """Logging is done."""
        self._recorder.end_logging(logs or {})

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluation is done."""
        self._recorder.end_evaluation(control)

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """The checkpoint is written."""
        self._recorder.end_saving()

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A batch was evaluated: a sign of life."""
        recorder = self._recorder
        recorder._sign = recorder._clock()


def _callers() -> Iterator[FrameType]:
    frame = sys._getframe(1).f_back
    while frame is not None:
        yield frame
        frame = frame.f_back


def _calling_handler() -> Any:
    """The callback handler in whose event this is called; None when there is none."""
    for frame in islice(_callers(), 8):
        candidate = frame.f_locals.get("self")
        if hasattr(candidate, "call_event") and isinstance(getattr(candidate, "callbacks", None), list):
            return candidate
    return None


def _loop_around(handler: Any) -> tuple[int, CodeType] | None:
    """The thread and the code that asked ``handler`` to call its callbacks: the Trainer's training loop."""
    inside = False
    for frame in islice(_callers(), 12):
        if frame.f_locals.get("self") is handler:
            inside = True
        elif inside:
            return threading.get_ident(), frame.f_code
    return None
