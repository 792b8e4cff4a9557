"""Where the time of each training step goes, taken by a callback that stands first and one that stands last.

Order of events in the Trainer (transformers 4.46 to 5.24, ``_inner_training_loop``): all micro-batches of a step are
fetched, then ``on_step_begin``, the micro-steps, clipping, ``on_pre_optimizer_step``, the optimizer, ``on_step_end``,
then logging, evaluation and saving, each with its event at its end. The wait for data is from the last of these to the
next ``on_step_begin``. What other callbacks do between would count as wait, were it not for the two at either end: the
``LoraWatchCallback`` stands before all others, so that it also sees a row before another callback fails on it, and
tells its :class:`StepRecorder`, which stands behind them.

Times are of the host. On a GPU the passes run behind it, but the Trainer waits for them in each step, to look whether
the loss is NaN (``logging_nan_inf_filter``) and to log: a step's time is honest, its split between passes and optimizer
less so.
"""

from __future__ import annotations

import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from itertools import islice
from types import CodeType, FrameType
from typing import Any, NamedTuple

from transformers import TrainerCallback

from lorawatch.integrations.batch_sizes import BatchSizes
from lorawatch.records import AllocatorReading, Step, StepTiming

MOST_STEPS = 256
"""Steps in one record."""
KEPT_STEPS = 8_192
"""Steps that wait to be handed on; of more, the oldest are lost: whoever should take them has stopped."""
ALLOCATOR_SECONDS = 1.0
"""Least time between two looks at the allocator, which take 0.1 ms."""


class _Taken(NamedTuple):
    """What was taken of one step: its number, its wait, the moments in it, its sizes, and the totals up to its end."""

    step: int
    wait: float | None
    begin: float
    optimizer: float
    end: float
    boundary: float
    sizes: tuple[int | None, int | None, int | None]
    logging: float
    evaluation: float
    saving: float
    saves: int


class StepRecorder(TrainerCallback):
    """Takes the times of the steps; another thread comes for them now and then, so that judging costs the loop nothing.

    Its events never raise into the training loop: what fails is handed to ``fail`` once, and nothing is taken after it.

    Args:
        owner: The callback that this one belongs to; it stands first, and tells when steps begin and end.
        sizes: The sizes of the batches.
        read_allocator: Reads torch's allocator.
        fail: What to do when taking a time fails.
        clock: Seconds, monotonic.
        wall: Unix time in seconds.
    """

    def __init__(
        self,
        owner: TrainerCallback,
        sizes: BatchSizes,
        read_allocator: Callable[[], AllocatorReading | None] = lambda: None,
        fail: Callable[[Exception], None] = lambda _: None,
        *,
        clock: Callable[[], float] = time.perf_counter,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self.phase = ""
        self._owner = owner
        self._sizes = sizes
        self._read_allocator = read_allocator
        self._fail = fail
        self._clock = clock
        self._wall = wall
        self._handler: Any = None
        self._place = 0
        self._loop: tuple[int, CodeType] | None = None
        self._pending: deque[_Taken] = deque(maxlen=KEPT_STEPS)
        self._fresh = True  # the next wait is an epoch's first
        self._open = False  # a step was finished and is not put down yet
        now = clock()
        self._boundary = self._begin = self._optimizer = self._end = self._sign = now
        self._asked = now - ALLOCATOR_SECONDS
        self._wait: float | None = None
        self._allocator: AllocatorReading | None = None
        # Totals, which only the training loop adds to, and what of them was handed on, which it never touches.
        self._logging = self._evaluation = self._saving = 0.0
        self._saves = 0
        self._handed_on = (0.0, 0.0, 0.0, 0)
        self._until: float | None = None
        self._working = False  # within a step: what is logged there is not logged after it
        self._taking = threading.Lock()
        self._last = 0

    def attach(self, step: int = 0) -> bool:
        """Stand last among the trainer's callbacks, and let the owner stand first; False where that cannot be.

        Args:
            step: Steps done before, by a run that resumes.

        To be called from within an event of the owner: a callback is not told of its trainer, so that the handler of
        the callbacks is found as the one that is calling it.
        """
        handler = calling_handler()
        if handler is None:
            return False
        others = [one for one in handler.callbacks if one is not self._owner]
        if len(others) == len(handler.callbacks):
            return False  # something else stands there in the owner's place
        self._place = handler.callbacks.index(self._owner)
        # A new list: the one that is being walked at this moment stays as it is.
        handler.callbacks = [self._owner, *others, self]
        self._handler = handler
        self._loop = _loop_around(handler)
        self._last = step
        return True

    def detach(self) -> None:
        """Leave the trainer's callbacks as they were."""
        handler, self._handler = self._handler, None
        if handler is not None:
            others = [one for one in handler.callbacks if one is not self and one is not self._owner]
            if self._owner in handler.callbacks:
                others.insert(self._place, self._owner)
            handler.callbacks = others
        self._sizes.detach()

    def in_training(self) -> bool:
        """Whether the training loop still stands on its thread's stack; True where that cannot be told.

        An exception, or an interrupted cell of a notebook, leaves the loop without an event. Any thread may ask.
        """
        if self._loop is None:
            return True
        # The stack of a thread that runs may change under the walk, and end where a generator has just yielded.
        return any(_stands(*self._loop) for _ in range(3))

    def idle(self) -> float:
        """Seconds since the trainer last gave a sign."""
        return self._clock() - self._sign

    def step_begins(self, step: int) -> None:
        """All micro-batches of the next step are there; ``step`` steps are done. Raises nothing."""
        now = self._clock()
        wait = None if self._fresh else now - self._boundary
        self._fresh = False
        if self._open:
            try:
                self._put_down(step)
                if now - self._asked >= ALLOCATOR_SECONDS:  # at the end of a step, when its activations are gone
                    self._asked = now
                    self._allocator = self._read_allocator()
            except Exception as error:
                self._failed(error)
        self._wait = wait
        self._working = True
        self.phase = "training"
        self._begin = self._optimizer = self._sign = now

    def optimizer_begins(self) -> None:
        """The passes and the clipping are done."""
        self._optimizer = self._clock()

    def optimizer_ends(self) -> None:
        """The optimizer's step is done."""
        self._end = self._clock()
        self._open, self._working = True, False

    def leave_out(self, seconds: float) -> None:
        """The owner looked at the model for so long after a step: that is no logging of the trainer's."""
        self._boundary += seconds

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An epoch begins: its first wait holds the start of the workers and one batch of look-ahead."""
        try:
            now = self._clock()
            if self._open:
                self._put_down(state.global_step)
            if self._until is None:  # what was before training, such as eval_on_start, is no step's time
                self._until = now
                self._handed_on = (self._logging, self._evaluation, self._saving, self._saves)
            self._sizes.begin_epoch()
            self._fresh = True
            self._boundary = self._sign = now
        except Exception as error:
            self._failed(error)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """All callbacks are done with a step; ``control`` says what the trainer does next."""
        self._boundary = self._sign = self._clock()
        if control.should_evaluate:
            self.phase = "evaluation"
        elif control.should_save:
            self.phase = "saving"

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Evaluation and saving may follow, once an epoch."""
        self.on_step_end(args, state, control)

    def on_log(self, args: Any, state: Any, control: Any, logs: Mapping[str, Any] | None = None, **kwargs: Any) -> None:
        """A row was logged: by training, or by an evaluation, which logs before it says that it is over."""
        now = self._clock()
        if self._working:  # by the user's own compute_loss
            self._sign = now
            return
        if self.phase == "evaluation" and "loss" not in (logs or {}):
            self._evaluation += now - self._boundary
        else:
            self._logging += now - self._boundary
        self._boundary = self._sign = now

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """An evaluation is over."""
        now = self._clock()
        self._evaluation += now - self._boundary
        self._boundary = self._sign = now
        self.phase = "saving" if control.should_save else "training"

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A checkpoint is written."""
        now = self._clock()
        self._saving += now - self._boundary
        self._saves += 1
        self._boundary = self._sign = now
        self.phase = "training"

    def on_prediction_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A batch of an evaluation is done: a sign of life."""
        self._sign = self._clock()
        if not self._working:
            self.phase = "evaluation"

    def training_ends(self, step: int) -> None:
        """Training is over after ``step``."""
        if self._open:
            self._put_down(step)

    @property
    def step(self) -> int:
        """The last step that was finished."""
        return self._pending[-1][0] if self._pending else self._last

    def timings(self) -> Iterator[StepTiming]:
        """What was taken since the last call, from whichever thread."""
        with self._taking:
            while self._pending:
                taken = [self._pending.popleft() for _ in range(min(len(self._pending), MOST_STEPS))]
                yield self._timing(taken)

    def _timing(self, taken: list[_Taken]) -> StepTiming:
        last = taken[-1]
        self._last = last.step
        before = self._handed_on
        self._handed_on = logging, evaluation, saving, saves = last.logging, last.evaluation, last.saving, last.saves
        seconds = None if self._until is None else round(last.boundary - self._until, 6)
        self._until = last.boundary
        allocator, self._allocator = self._allocator, None
        ended = self._wall() - (self._clock() - last.boundary)
        return StepTiming(
            step=self._last, span=len(taken), steps=[_step(one) for one in taken], seconds=seconds, time=ended,
            logging=round(logging - before[0], 6), evaluation=round(evaluation - before[1], 6),
            saving=round(saving - before[2], 6), saves=saves - before[3], allocator=allocator,
        )  # fmt: skip

    def _put_down(self, step: int) -> None:
        self._open = False
        self._pending.append(
            _Taken(
                step,
                self._wait,
                self._begin,
                self._optimizer,
                self._end,
                self._boundary,
                self._sizes.take(),
                self._logging,
                self._evaluation,
                self._saving,
                self._saves,
            )
        )

    def __reduce__(self) -> tuple[type[TrainerCallback], tuple[()]]:
        """A copy takes no times: it would hold the trainer and its model."""
        return TrainerCallback, ()

    def _failed(self, error: Exception) -> None:
        self.detach()
        self._fail(error)


def _step(taken: _Taken) -> Step:
    # To the microsecond: the digits behind are noise, and take space in the file.
    return Step(
        None if taken.wait is None else round(taken.wait, 6),
        round(taken.optimizer - taken.begin, 6),
        round(taken.end - taken.optimizer, 6),
        round(taken.boundary - taken.end, 6),
        *taken.sizes,
    )


def _stands(thread: int, code: CodeType) -> bool:
    """Whether a frame of ``code`` stands on the stack of a thread, as far as one can see."""
    frame = sys._current_frames().get(thread)
    while frame is not None:
        if frame.f_code is code:
            return True
        frame = frame.f_back
    return False


def _callers() -> Iterator[FrameType]:
    frame = sys._getframe(1).f_back
    while frame is not None:
        yield frame
        frame = frame.f_back


def calling_handler() -> Any:
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
