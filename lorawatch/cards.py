"""What rules that look at a card share: its name, which of torch's devices it is, and whose memory is whose."""

from __future__ import annotations

from lorawatch.records import AllocatorReading, Card, GpuProcess, GpuReading

GIB = 2**30
MIB = 2**20
MOST_CARDS = 64
"""Cards of a run that a rule keeps state for: more than any machine holds."""


def label(card: Card) -> str:
    """``GPU 1 (NVIDIA L4)``."""
    kind = "MIG instance of GPU" if card.mig else "GPU"
    return f"{kind} {card.index} ({card.name})" if card.name else f"{kind} {card.index}"


def size(count: float) -> str:
    """Bytes for a person, in the unit that fits: ``31.2 GiB``, ``640 MiB``, ``512 B``."""
    amount = abs(count)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if amount < 999.5 or unit == "TiB":
            break
        amount /= 1024
    text = f"{amount:.0f}" if unit == "B" or amount >= 99.95 else f"{amount:.1f}"
    return f"{'-' if count < 0 else ''}{text} {unit}"


def card_of(allocator: AllocatorReading | None, reading: GpuReading | None) -> Card | None:
    """The card that torch's allocator spoke of: the one of that UUID, or the only one there is; else None."""
    if allocator is None or reading is None:
        return None
    if allocator.uuid:
        return next((card for card in reading.cards if card.uuid == allocator.uuid), None)
    return reading.cards[0] if len(reading.cards) == 1 else None


def foreign(card: Card) -> tuple[int, GpuProcess | None]:
    """Bytes that processes known to be of another run hold, and the largest of these processes."""
    return _held([process for process in card.processes if process.own is False])


def _held(processes: list[GpuProcess]) -> tuple[int, GpuProcess | None]:
    """Bytes that they hold, and the largest of them."""
    holding = [process for process in processes if (process.memory or 0) > 0]
    largest = max(holding, key=lambda process: process.memory or 0, default=None)
    return sum(process.memory or 0 for process in holding), largest


DESKTOP = (
    "xorg", "xwayland", "gnome-", "kwin", "plasmashell", "mutter", "sddm", "gdm", "lightdm", "weston", "sway",
    "hyprland", "cinnamon", "xfwm", "xfce4-", "dwm.exe",
)  # fmt: skip
"""How names of programs that draw the screen begin."""


def is_desktop(process: GpuProcess) -> bool:
    """Whether it draws the screen of this machine: a display server, a compositor, a desktop's shell."""
    name = process.name.rsplit("/", 1)[-1].lower()
    return process.own is False and (name == "x" or name.startswith(DESKTOP))


def strangers(card: Card) -> tuple[int, GpuProcess | None]:
    """Like :func:`foreign`, without what draws the screen."""
    return _held([one for one in card.processes if one.own is False and not is_desktop(one)])


def desktop(card: Card) -> int:
    """Bytes that the screen takes."""
    return _held([one for one in card.processes if is_desktop(one)])[0]


def unused_cache(allocator: AllocatorReading) -> int:
    """Bytes that torch holds beyond the most it ever had in tensors at once: they could be given back."""
    return max(allocator.reserved - allocator.peak_allocated, 0)


def outside_torch(card: Card, allocator: AllocatorReading) -> int:
    """Bytes in use that are not torch's: the CUDA context, NCCL, the driver, and other processes.

    ``memory_used`` is the most at any look, so that what torch held at most is taken away from it, not what it held
    at the end of the step: between the two, ``empty_cache`` may have given gigabytes back.
    """
    return max((card.memory_used or 0) - allocator.peak_reserved, foreign(card)[0], 0)
