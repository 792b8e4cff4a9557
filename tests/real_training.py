"""What every folder of tests with real trainings needs: no network, and other people's warnings named."""

from __future__ import annotations

import os
from pathlib import Path

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


def ignore_third_party(items: list[pytest.Item], folder: Path) -> None:
    """Ignore the warnings of :data:`THIRD_PARTY` in the tests below ``folder``."""
    for item in items:
        if folder in item.path.parents:
            for line in THIRD_PARTY:
                item.add_marker(pytest.mark.filterwarnings(line))
