"""Wakes a caller soon after something below a folder changed, without costing CPU while nothing does."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

SWEEP = 5.0
"""Seconds after which a caller looks for itself although nothing was noticed: inotify drops events when its queue is
full, sees nothing on NFS, and past ``max_user_watches`` sees only part of a tree, all without saying so."""
SETTLE = 0.2
"""Seconds between the first change and the wake-up, so that thousands of appends a second cost one look."""


class FileNotifier:
    """Notices changes below one folder, or to one file.

    A sleep that ends early, no more: the caller still looks at the files, and never waits longer than it asked to.
    Where watching is impossible it is a plain sleep.
    """

    def __init__(
        self,
        root: Path,
        *,
        sweep: float = SWEEP,
        settle: float = SETTLE,
        wake: threading.Event | None = None,
        pause: Callable[[float], None] = time.sleep,
        observer: Callable[[], Any] | None = None,
    ) -> None:
        """Make a notifier; nothing is watched before the first wait.

        Args:
            root: Folder or file; may be missing yet.
            sweep: Longest wait in seconds.
            settle: Seconds to wait after a change for more of them.
            wake: Set when something changed; given by tests.
            pause: Waits for ``settle``; given by tests.
            observer: Makes a watchdog observer; given by tests.
        """
        self.root = root
        self._sweep = sweep
        self._settle = settle
        self._wake = wake or threading.Event()
        self._pause = pause
        self._make_observer = observer or _watchdog_observer
        self._observer: Any = None
        self._folder: Path | None = None
        self._given_up = False

    @property
    def watching(self) -> bool:
        """Whether changes are noticed; False means that only the sweep finds them."""
        return self._observer is not None and bool(self._observer.is_alive())

    def wait(self, timeout: float) -> bool:
        """Wait up to ``timeout`` seconds; returns True as soon as something changed."""
        # A root that is missing is asked for often: there is nothing to watch yet, and one stat costs nothing.
        self._start()
        limit = min(timeout, self._sweep)
        if not self.watching:
            limit = min(limit, 1.0)
        changed = self._wake.wait(limit)
        if changed:
            self._pause(self._settle)
            self._wake.clear()
        return changed

    def notify(self) -> None:
        """End the wait that is under way, or the next one."""
        self._wake.set()

    def close(self) -> None:
        """Stop watching."""
        observer, self._observer = self._observer, None
        self._given_up = True
        if observer is not None:
            observer.stop()
            observer.join(timeout=1.0)

    def _start(self) -> None:
        if self._given_up:
            return
        folder = self.root if self.root.is_dir() else self.root.parent
        if folder == self._folder or not folder.is_dir():
            return
        if self._observer is not None:
            # The root was missing and has appeared: from now on it is watched itself.
            self._observer.stop()
            self._observer = None
        try:
            # One recursive watch a root; a single file only needs its folder.
            observer = self._make_observer()
            observer.schedule(_Handler(self), str(folder), recursive=folder == self.root)
            observer.start()
        except (ImportError, OSError, RuntimeError):
            self._given_up = True  # out of inotify watches or instances: the sweep has to do
            return
        self._observer = observer
        self._folder = folder


class _Handler:
    """What watchdog calls; it only ever asks for ``dispatch``."""

    def __init__(self, notifier: FileNotifier) -> None:
        self._notifier = notifier

    def dispatch(self, event: Any) -> None:
        # Reading makes events too (opened, closed_no_write): waking on those would never end.
        if event.event_type in {"created", "modified", "moved", "deleted", "closed"}:
            self._notifier.notify()


def _watchdog_observer() -> Any:
    from watchdog.observers import Observer  # noqa: PLC0415 - 8 MiB and 35 ms that `check` does not need

    # It logs that a thread was stopped while it slept: true at each end, and nobody's concern.
    logging.getLogger("watchdog").addHandler(logging.NullHandler())

    return Observer()
