"""What a fault needs of the machine, and whether it is there."""

from __future__ import annotations

import os
from typing import Any

import torch

from lorawatch.trainer.faults.contract import Fault


def unmet(kind: type[Fault]) -> str:
    """What a fault needs that this machine does not have, in words; empty where it can be run."""
    if kind.needs == "cuda" and not torch.cuda.is_available():
        return "a CUDA card, and there is none"
    superuser: Any = getattr(os, "geteuid", None)  # Windows has none
    if kind.needs == "tmpfs" and (superuser is None or superuser() != 0):
        return "to mount a tmpfs, which only root may"
    return ""
