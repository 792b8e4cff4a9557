"""Keeps the real runs of this folder off the network, and names the warnings of other people's code."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"  # read when huggingface_hub is imported, so before any test module is
os.environ["TOKENIZERS_PARALLELISM"] = "false"

THIRD_PARTY = (
    # peft and TRL still use the names that transformers 5.23 replaced by activation_checkpointing.
    r"ignore:`(is_)?gradient_checkpointing\w*` is deprecated:FutureWarning",
    # peft looks for the base model's configuration on the hub; a model made by code has none.
    "ignore:Could not find a config file in:UserWarning",
    "ignore:Unable to fetch remote file due to the following error:UserWarning",
)


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
    for item in items:
        if Path(__file__).parent in item.path.parents:
            for line in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(line))
