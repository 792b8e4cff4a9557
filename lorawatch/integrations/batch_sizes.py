"""How large the batches of a training run are, seen where the data loader makes them: on the host, before any device.

Looking at a batch on its device would mean to wait for the device. So the loader below accelerate's is asked, whose
batches still stand in host memory. What it does not show stays unknown.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from typing import Any

COUNTED_STEPS = 8
"""Of so many steps one has the tokens of its attention masks counted: a sum costs 5 µs, a shape nothing."""
_KEPT = 4096


class BatchSizes:
    """Remembers the sizes of the micro-batches that a data loader made and the trainer has not worked off yet.

    accelerate fetches one batch ahead: what was made last is not what is trained on now. Batches are worked off in the
    order in which they were made, so that a queue pairs them rightly.

    The loader of an epoch that a resumed run takes up in its middle is another one: its sizes stay unknown.

    Args:
        accumulation: Micro-batches of an optimizer step.
    """

    def __init__(self, accumulation: int = 1) -> None:
        self._accumulation = max(accumulation, 1)
        self._queue: deque[tuple[int, int | None] | None] = deque(maxlen=_KEPT)
        self._made = 0
        self._epochs = 0
        self._restore: Callable[[], None] | None = None

    def attach(self, train_dataloader: Any) -> bool:
        """Watch the batches of ``train_dataloader``; False where it does not show them on the host."""
        self.detach()
        base = getattr(train_dataloader, "base_dataloader", None)
        # The loader that accelerate wraps is asked for its iterator by name, on the object: DataLoaderShard.__iter__.
        if base is None or base is train_dataloader or "__iter__" in vars(base):
            return False
        make = base.__iter__
        try:
            base.__iter__ = lambda: self._watched(make())
        except (AttributeError, TypeError):
            return False

        def restore() -> None:
            vars(base).pop("__iter__", None)

        self._restore = restore
        return True

    def detach(self) -> None:
        """Watch no longer."""
        if self._restore is not None:
            self._restore()
            self._restore = None
        self._queue.clear()

    def begin_epoch(self) -> None:
        """Forget what an epoch that was cut short left behind."""
        self._queue.clear()
        self._made = 0
        self._epochs += 1

    def take(self) -> tuple[int | None, int | None, int | None]:
        """The micro-batches of one optimizer step: tokens without padding, tokens, tokens of the largest.

        Each is None where it is not known.
        """
        queue = self._queue
        if not queue:
            return None, None, None
        if self._accumulation == 1:
            one = queue.popleft()
            return (None, None, None) if one is None else (one[1], one[0], one[0])
        taken = [queue.popleft() for _ in range(min(self._accumulation, len(queue)))]
        known = [one for one in taken if one is not None]
        if len(known) < len(taken):
            return None, None, None
        sizes_, counts = zip(*known, strict=True)
        return None if None in counts else sum(counts), sum(sizes_), max(sizes_)

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        for batch in batches:
            try:
                self._see(batch)
            except Exception:
                self._queue.append(None)  # an odd batch keeps its place, or all that follow would be paired wrongly
            yield batch

    def _see(self, batch: Any) -> None:
        # Another step in each epoch: the first one may hold the longest rows.
        counted = (self._made // self._accumulation + 3 * self._epochs) % COUNTED_STEPS == 0
        self._made += 1
        self._queue.append(sizes(batch, counted=counted))


def sizes(batch: Any, *, counted: bool = True) -> tuple[int, int | None] | None:
    """Tokens of a batch with and without padding; None for what is no batch of tokens in host memory.

    Args:
        batch: What the collator made.
        counted: Count the attention mask too; otherwise the tokens without padding are None.
    """
    if type(batch) is not dict and not isinstance(batch, Mapping):
        return None
    ids: Any = batch.get("input_ids")
    if getattr(ids, "ndim", 0) != 2:
        return None
    padded = int(ids.numel())
    if not counted:
        return padded, None
    shape, mask = ids.shape, batch.get("attention_mask")
    if mask is None:
        # Without padding the sequences lie in one row, and positions tell them apart.
        return padded, padded if "position_ids" in batch and shape[0] == 1 else None
    if getattr(mask, "shape", None) != shape or getattr(getattr(mask, "device", None), "type", "cpu") != "cpu":
        return padded, None
    return padded, int(mask.sum())
