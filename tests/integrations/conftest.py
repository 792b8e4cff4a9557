"""Real runs of Trainers with the callback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.real_training import ignore_third_party


@pytest.fixture(autouse=True)
def no_thread_is_left(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Ends the threads of runs that a test broke off, which would end by themselves some seconds later."""
    threads = pytest.importorskip("lorawatch.integrations.machine_thread").MachineThread
    made: list[Any] = []
    start = threads.start

    def started(self: Any) -> None:
        made.append(self)
        start(self)

    monkeypatch.setattr(threads, "start", started)
    yield
    for one in made:
        one.stop()
    made.clear()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ignore_third_party(items, Path(__file__).parent)
