"""Names and shapes of the tensors of a checkpoint, and its configuration: small reads that load no weight."""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

MAX_CONFIG_BYTES = 16 * 2**20
"""Size of a configuration or an index that is read."""
MAX_HEADER_BYTES = 100_000_000
"""Size of a safetensors header: the format's own limit."""

Tensors = Mapping[str, tuple[tuple[int, ...], str]]
"""Name of a tensor to its shape and its dtype as safetensors spells it; both empty where only the name is known."""


class BrokenCheckpointError(ValueError):
    """A file of a checkpoint is missing, too large, or not what its name says: one line says which."""


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        BrokenCheckpointError: There is no such file, or no object in it, or it is too large.
    """
    try:
        if path.stat().st_size > MAX_CONFIG_BYTES:
            raise BrokenCheckpointError(
                f"{path}: larger than {MAX_CONFIG_BYTES // 2**20} MiB, that is no configuration"
            )
        values = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise BrokenCheckpointError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError):
        raise BrokenCheckpointError(f"{path}: not JSON") from None
    if not isinstance(values, dict):
        raise BrokenCheckpointError(f"{path}: no JSON object in it")
    return values


def read_tensor_shapes(path: Path) -> Tensors:
    """Names, shapes and dtypes of a checkpoint's tensors, from the headers of its safetensors files.

    Args:
        path: A checkpoint's folder, or one safetensors file. A folder that holds only the index gives names alone.

    Raises:
        BrokenCheckpointError: There is no such file, or one of them is not a safetensors file.
    """
    if not path.is_dir():
        return _header(path)
    files = [file for file in sorted(path.glob("*.safetensors")) if not file.name.startswith("adapter_")]
    indices = sorted(path.glob("*.safetensors.index.json"))
    if not files and indices:
        weights = read_json(indices[0]).get("weight_map")
        if not isinstance(weights, dict):
            raise BrokenCheckpointError(f"{indices[0]}: no weight_map in it")
        return {str(name): ((), "") for name in weights}
    if not files:
        raise BrokenCheckpointError(f"{path}: no safetensors file of a model in it")
    return {name: entry for file in files for name, entry in _header(file).items()}


def _header(path: Path) -> dict[str, tuple[tuple[int, ...], str]]:
    try:
        with path.open("rb") as file:
            start = file.read(8)
            size = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
            if not 2 <= size <= MAX_HEADER_BYTES:
                raise BrokenCheckpointError(f"{path}: not a safetensors file")
            text = file.read(size)
    except OSError as error:
        raise BrokenCheckpointError(f"{path}: {error.strerror or error}") from None
    try:
        return {
            str(name): (tuple(int(one) for one in entry["shape"]), str(entry["dtype"]))
            for name, entry in json.loads(text).items()
            if name != "__metadata__"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise BrokenCheckpointError(f"{path}: its safetensors header is broken") from None
