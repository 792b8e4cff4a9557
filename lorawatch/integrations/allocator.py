"""What torch's caching allocator says of the device that is trained on; read without waiting for the device."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

from lorawatch.records import AllocatorReading


def allocator_reader() -> Callable[[], AllocatorReading | None]:
    """A function that reads the allocator of the thread's present device; it gives None where no GPU is in use.

    Its figures are counters that the allocator keeps on the host (``torch.cuda.memory_stats``, CUDA and ROCm alike).
    Peaks are never reset: that would falsify what the user's own code asks of them.
    """
    torch: Any = sys.modules.get("torch")
    uuids: dict[int, str] = {}

    def read() -> AllocatorReading | None:
        cuda = getattr(torch, "cuda", None)
        if cuda is None or not cuda.is_initialized():
            return None
        device = int(cuda.current_device())
        stats = cuda.memory_stats(device)
        if not stats:
            return None
        if device not in uuids:
            uuid = getattr(cuda.get_device_properties(device), "uuid", None)
            uuids[device] = f"GPU-{uuid}" if uuid is not None else ""
        return AllocatorReading(
            allocated=int(stats.get("allocated_bytes.all.current", 0)),
            peak_allocated=int(stats.get("allocated_bytes.all.peak", 0)),
            reserved=int(stats.get("reserved_bytes.all.current", 0)),
            peak_reserved=int(stats.get("reserved_bytes.all.peak", 0)),
            alloc_retries=int(stats.get("num_alloc_retries", 0)),
            ooms=int(stats.get("num_ooms", 0)),
            device=device,
            uuid=uuids[device],
        )

    return read
