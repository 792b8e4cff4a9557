"""Real runs of the reference trainer."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.real_training import ignore_third_party


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ignore_third_party(items, Path(__file__).parent)
