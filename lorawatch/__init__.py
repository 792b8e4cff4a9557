"""lorawatch watches LoRA fine-tuning runs: it sees them fail early, says why with numbers, and what to change."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lorawatch.version import __version__

if TYPE_CHECKING:
    from lorawatch.integrations.transformers import LoraWatchCallback

__all__ = ["LoraWatchCallback", "__version__"]


def __getattr__(name: str) -> Any:
    # The callback needs transformers, which takes seconds to import and which the command line does not have.
    if name == "LoraWatchCallback":
        from lorawatch.integrations.transformers import LoraWatchCallback  # noqa: PLC0415

        return LoraWatchCallback
    raise AttributeError(f"module 'lorawatch' has no attribute {name!r}")
