"""Needs a card: everything here is skipped without one. ``make test-gpu`` runs it, and keeps what was measured."""

from __future__ import annotations

import os
import platform
from collections.abc import Iterator
from datetime import date
from importlib import metadata
from pathlib import Path

import pytest

os.environ["HF_HUB_OFFLINE"] = "1"
RESULTS = Path(__file__).parents[2] / "benchmarks" / "results" / "gpu.md"
HERE = Path(__file__).parent


def _card() -> str:
    try:
        import torch
    except ModuleNotFoundError:
        return ""
    return torch.cuda.get_device_name() if torch.cuda.is_available() else ""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    mine = [item for item in items if HERE in item.path.parents]
    if mine and not _card():
        for item in mine:
            item.add_marker(pytest.mark.skip(reason="no CUDA card"))
    for item in mine:
        item.add_marker(pytest.mark.xdist_group("gpu"))  # one card: one test at a time
        item.add_marker(pytest.mark.filterwarnings("ignore::FutureWarning"))
        item.add_marker(pytest.mark.filterwarnings("ignore::UserWarning"))


class Figures:
    """What the tests measured, for a person to read."""

    def __init__(self) -> None:
        self.rows: list[tuple[str, str, str]] = []

    def keep(self, what: str, figure: str, limit: str = "") -> None:
        self.rows.append((what, figure, limit))


@pytest.fixture(scope="session")
def figures() -> Iterator[Figures]:
    kept = Figures()
    yield kept
    if not kept.rows:
        return
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in ("torch", "transformers", "peft"))
    lines = [
        "# On a real card", "",
        f"{date.today()} · {_card()} · Python {platform.python_version()}, {versions} · `make test-gpu`", "",
        "| what | measured | must hold |", "|---|---|---|",
        *(f"| {what} | {figure} | {limit} |" for what, figure, limit in kept.rows), "",
    ]  # fmt: skip
    RESULTS.write_text("\n".join(lines), encoding="utf-8")
