"""Looks at the GPUs once a second, in a thread of its own, and hands each run what it saw of the run's cards.

A driver may answer slowly, or never again: no lock is held while it is asked, and nothing waits for it.
"""

from __future__ import annotations

import threading
import time
import weakref
from collections.abc import Callable, Collection, Mapping, Sequence

from lorawatch.machine.gpu_view import GpuView, Look
from lorawatch.machine.problems import Problems
from lorawatch.source import GpuCollector

__all__ = ["GpuSampler", "GpuView", "default_collectors"]

INTERVAL = 1.0
"""Seconds between two looks."""
HANG = 10.0
"""Seconds after which a look that has not ended counts as a driver that hangs."""
_LIBRARY = {"nvidia": "NVML", "amd": "amdsmi"}


def default_collectors() -> list[GpuCollector]:
    """A collector for each vendor whose library there is: NVIDIA, and AMD where ``amdsmi`` is installed."""
    from lorawatch.machine.amd import AmdCollector  # noqa: PLC0415 - only who looks at GPUs pays for loading them
    from lorawatch.machine.nvml import NvmlCollector  # noqa: PLC0415

    found: list[GpuCollector] = [NvmlCollector()]
    if AmdCollector.available():
        found.append(AmdCollector())
    return found


class GpuSampler:
    """Looks at all GPUs of the machine, for any number of runs.

    The collectors are made, asked and closed in the sampler's thread alone, so that a driver that hangs keeps nobody
    else waiting, not even at the end.
    """

    def __init__(
        self,
        collectors: Sequence[GpuCollector] | None = None,
        *,
        interval: float = INTERVAL,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Make a sampler; nothing is looked at before :meth:`start` or :meth:`look`.

        Args:
            collectors: What looks at the cards; None for :func:`default_collectors`, made at the first look.
            interval: Seconds between two looks.
            clock: Seconds that only go forward; given by tests.
        """
        self.interval = interval
        self._collectors = None if collectors is None else list(collectors)
        self._clock = clock
        self._problems = Problems()
        self._lock = threading.Lock()
        self._views: weakref.WeakSet[GpuView] = weakref.WeakSet()
        self._asked: tuple[str, float] | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    @property
    def problems(self) -> Sequence[str]:
        """What cannot be read of this machine's GPUs, one line each; each is said once."""
        return [*self._problems.lines, *(line for one in self._collectors or () for line in one.problems)]

    @property
    def aliases(self) -> Mapping[str, str]:
        """Other names of MIG instances in CUDA_VISIBLE_DEVICES, to their UUIDs."""
        found: dict[str, str] = {}
        for one in self._collectors or ():
            found.update(getattr(one, "aliases", {}))  # only NVIDIA's devices have such
        return found

    def hangs(self) -> bool:
        """Whether a driver has not answered for longer than :data:`HANG`; if so it is said, once."""
        asked = self._asked
        if asked is None:
            return False
        vendor, since = asked
        seconds = self._clock() - since
        if seconds <= HANG:
            return False
        library = _LIBRARY.get(vendor, vendor)
        self._problems.say(f"{library} has not answered for {seconds:.0f} s; GPU readings pause", f"hang {vendor}")
        return True

    def start(self) -> None:
        """Start looking, in a thread that ends with the process. Once is enough; one that was stopped stays so."""
        if self._thread is None and not self._stop.is_set():
            self._thread = threading.Thread(target=self._work, name="lorawatch-gpus", daemon=True)
            self._thread.start()

    def stop(self) -> None:
        """Look no more. Waits a second for the look that is under way, not longer."""
        self._stop.set()
        if self._thread is None:
            self._close()
        elif self._thread is not threading.current_thread():
            self._thread.join(timeout=1.0)

    def view(self, visible: str | None = None, *, pids: Collection[int] = (), order: str | None = None) -> GpuView:
        """A view for one run; what is seen from now on waits there for its readings.

        Args:
            visible: The run's CUDA_VISIBLE_DEVICES; None when it is not set or not known.
            pids: The run's processes, for readings that are not told better.
            order: The run's CUDA_DEVICE_ORDER.
        """
        view = GpuView(self, visible, pids, order)
        with self._lock:
            self._views.add(view)
        return view

    def look(self) -> None:
        """Look once at all cards. Never raises."""
        seen: Look = []
        if self._collectors is None:
            self._collectors = self._make_collectors()
        for collector in self._collectors:
            self._asked = collector.vendor, self._clock()
            try:
                seen += collector.look()
            except Exception as error:  # one vendor's trouble is not another's, and never the thread's
                library = _LIBRARY.get(collector.vendor, collector.vendor)
                what = f"{type(error).__name__}: {error}"
                self._problems.say(f"{library} cannot be read ({what}); its cards are left out", f"error {library}")
            finally:
                self._asked = None
        if not seen:
            return
        with self._lock:
            views = list(self._views)
        for view in views:
            view.add(seen)

    def _make_collectors(self) -> list[GpuCollector]:
        try:
            return default_collectors()
        except Exception as error:  # a library that is half installed
            self._problems.say(f"no GPU readings: {type(error).__name__}: {error}; reinstall nvidia-ml-py")
            return []

    def _work(self) -> None:
        try:
            while not self._stop.is_set():
                begun = self._clock()
                self.look()
                self._stop.wait(max(self.interval - (self._clock() - begun), self.interval / 10))
        finally:
            self._close()

    def _close(self) -> None:
        for collector in self._collectors or ():
            try:
                collector.close()
            except Exception as error:
                self._problems.say(f"{collector.vendor}: cannot be closed ({type(error).__name__}: {error})")
