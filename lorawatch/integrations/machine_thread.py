"""The thread beside the training loop: it looks at the machine, and judges what has come in."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from lorawatch.machine.gpus import GpuSampler
from lorawatch.machine.host import HostSampler, Progress
from lorawatch.machine.processes import this_process
from lorawatch.machine.run_machine import RunMachine
from lorawatch.records import Reading, StepTiming

INTERVAL = 1.0
"""Seconds between two looks."""
LEFT_AFTER = 3
"""Looks in a row at which training must seem to have been left, before it is believed."""
TIMINGS_EVERY = 5
"""Looks between two times that the times of the steps are taken on."""


class MachineThread:
    """Looks at host and cards once a second until it is stopped, and hands on what it sees.

    The cards are asked in yet another thread: a driver that hangs keeps neither training nor this one from going on.
    Both threads end with the process.

    Args:
        folder: The run's folder.
        take: Where readings go.
        timings: The times of the steps since it was last asked.
        judge: Judges what has come in, from here and from the training loop.
        progress: How far training is; None when it was left, which ends the looking.
        left: Training was left without an end: lets go of it, so that nothing keeps its model in memory.
        say: Tells a person, in one line, what cannot be read.
        fail: What to do when something here fails.
        gpus: Looks at the cards; made where it is not given.
    """

    def __init__(
        self,
        folder: Path,
        *,
        take: Callable[[list[Reading]], None],
        timings: Callable[[], Iterable[StepTiming]],
        judge: Callable[[], None],
        progress: Callable[[], Progress | None],
        left: Callable[[], None],
        say: Callable[[str], None],
        fail: Callable[[Exception], None],
        gpus: GpuSampler | None = None,
        wall: Callable[[], float] = time.time,
    ) -> None:
        self._folder = folder
        self._take = take
        self._timings = timings
        self._judge = judge
        self._progress = progress
        self._left = left
        self._say = say
        self._fail = fail
        self._gpus = gpus or GpuSampler()
        self._wall = wall
        self._machine: RunMachine | None = None
        self._said: set[str] = set()
        self._looks = 0
        self._absent = 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._work, name="lorawatch-machine", daemon=True)

    def start(self) -> None:
        """Begin to look. What takes long for once, such as loading libraries, is done here, before the first step."""
        self._prepare()
        self._gpus.start()
        self._thread.start()

    def stop(self) -> None:
        """Look no longer; waits for a look that is under way, for a second at most. Any thread may call it."""
        self._stop.set()
        if self._thread is not threading.current_thread() and self._thread.ident is not None:
            self._thread.join(timeout=1.0)
        self._gpus.stop()

    def tick(self) -> bool:
        """Judge what came in, look once, and hand on what is due; False when training was left."""
        self._judge()
        progress = self._progress()
        if progress is None:
            self._absent += 1
            return self._absent < LEFT_AFTER
        self._absent = 0
        machine = self._prepare()
        readings = machine.tick(self._wall(), progress)
        if self._stop.is_set():  # training has ended meanwhile: the rest is the loop's
            return True
        self._looks += 1
        if readings or self._looks % TIMINGS_EVERY == 0:
            readings = [*self._timings(), *readings]
        if readings:
            self._take(readings)
            self._judge()
        for problem in machine.problems:
            if problem not in self._said:
                self._said.add(problem)
                self._say(problem)
        return True

    def _prepare(self) -> RunMachine:
        if self._machine is None:
            trainer = this_process()
            view = self._gpus.view(trainer.visible_devices, order=trainer.device_order)
            self._machine = RunMachine(HostSampler(self._folder, trainer), view)
            self._machine.host.look()
        return self._machine

    def _work(self) -> None:
        try:
            while not self._stop.wait(INTERVAL):
                if not self.tick():
                    self._left()
                    return
        except Exception as error:
            if not self._stop.is_set():
                self._fail(error)
