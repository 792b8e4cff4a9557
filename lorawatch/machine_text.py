"""What is known of the machine, in a few words of plain text."""

from __future__ import annotations

from lorawatch.cards import size
from lorawatch.records import Card
from lorawatch.run import Run


def machine_words(run: Run) -> str:
    """The cards and the host, to be put behind other words: ``, GPU 0 71.2 of 80.0 GiB 97% busy, RAM 12 GiB free``."""
    words: list[str] = []
    for card in (run.gpu.cards if run.gpu is not None else [])[:8]:
        part = f"GPU {card.index}" + (" lost" if card.lost else "")
        if card.memory_used is not None and card.memory_total:
            part += f" {memory_text(card)}"
        if card.utilization is not None:
            part += f" {card.utilization:.0%} busy"
        words.append(part)
    host = run.host
    if host is not None and host.memory_available is not None:
        words.append(f"RAM {size(host.memory_available)} free")
    return "".join(f", {word}" for word in words)


def memory_text(card: Card) -> str:
    """Memory used and all memory of a card, in one unit: ``71.2 of 80.0 GiB``."""
    total = size(card.memory_total or 0)
    used = size(card.memory_used or 0)
    return f"{used.removesuffix(total[total.index(' ') :])} of {total}"


def samples_per_second(run: Run) -> float | None:
    """Training samples a second, by the median step and the batch size; None where one of them is not known."""
    seconds, batch = run.typical_step_seconds, run.number("per_device_train_batch_size")
    if not seconds or batch is None:
        return None
    ranks, accumulation = run.number("world_size") or 1.0, run.number("gradient_accumulation_steps") or 1.0
    return batch * ranks * accumulation / seconds
