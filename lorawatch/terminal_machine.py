"""The part of the live view about the machine: the cards, where the time of the steps goes, the host."""

from __future__ import annotations

from collections.abc import Iterable

from lorawatch.cards import size
from lorawatch.findings import Severity
from lorawatch.machine_text import memory_text, samples_per_second
from lorawatch.records import Card, HostReading
from lorawatch.run import Run
from lorawatch.terminal_text import ACCENT, BOLD, DIM, PLAIN, SEVERITY_STYLES, Line, Part, clean, line

_BAR = 12
_PHASES = (
    ("data_wait", "data wait"), ("forward_backward", "passes"), ("optimizer", "optimizer"), ("callbacks", "callbacks"),
    ("logging", "logging"), ("evaluation", "evaluation"), ("saving", "saving"),
)  # fmt: skip
_WARN, _ALARM = Severity.WARNING, Severity.CRITICAL


def machine(run: Run, width: int, most_cards: int = 4) -> list[Line]:
    """What is known of the machine; nothing where nothing is.

    Args:
        run: The run whose last readings are shown.
        width: Cells.
        most_cards: Cards that get a line of their own, the fullest first.
    """
    lines: list[Line] = []
    cards = list(run.gpu.cards) if run.gpu is not None else []
    cards.sort(key=lambda card: (not card.lost, -_fill(card)))
    lines += [_card(card, width) for card in cards[:most_cards]]
    if len(cards) > most_cards:
        lines.append(line([(f"and {len(cards) - most_cards} more GPUs", DIM)], width))
    shares = _shares(run)
    if shares:
        lines.append(_labelled("time", shares, width))
    if run.host is not None:
        lines.append(_labelled("host", _host(run.host), width))
    return lines


def _fill(card: Card) -> float:
    return (card.memory_used or 0) / card.memory_total if card.memory_total else 0.0


def _card(card: Card, width: int) -> Line:
    parts: list[Part] = [(f"GPU {card.index} ", DIM), (clean(card.name or card.vendor, 28), PLAIN), ("  ", PLAIN)]
    if card.lost:
        return line([*parts, ("lost: it does not answer any more", SEVERITY_STYLES[_ALARM])], width)
    if card.memory_total and card.memory_used is not None:
        fill = _fill(card)
        style = SEVERITY_STYLES[_ALARM] if fill > 0.97 else SEVERITY_STYLES[_WARN] if fill > 0.9 else ACCENT
        done = min(round(fill * _BAR), _BAR)
        parts += [("▮" * done, style), ("▯" * (_BAR - done), DIM), (f" {memory_text(card)}", BOLD)]
        others = sum(one.memory or 0 for one in card.processes if one.own is False)
        if others:
            parts.append((f" ({size(others)} by others)", SEVERITY_STYLES[_WARN]))
    if card.utilization is not None:
        parts += [("   busy ", DIM), (f"{card.utilization:.0%}", BOLD)]
    held = sorted(
        reason for reason, share in (card.throttled or {}).items() if share >= 0.5 and reason != "sw_power_cap"
    )
    if held:
        parts.append((f"   slowed: {', '.join(held)}", SEVERITY_STYLES[_WARN]))
    if card.power is not None:
        limit = f" of {card.power_limit:.0f}" if card.power_limit else ""
        parts += [("   ", PLAIN), (f"{card.power:.0f}{limit} W", PLAIN)]
    if card.temperature is not None:
        parts += [("   ", PLAIN), (f"{card.temperature:.0f} °C", PLAIN)]
    return line(parts, width)


def _shares(run: Run) -> list[Part]:
    """Where the time of the run went, and how many samples a second it takes."""
    parts: list[Part] = []
    total = sum(run.phase_seconds.values())
    if total > 0:
        shown = [(label, run.phase_seconds.get(name, 0.0) / total) for name, label in _PHASES]
        kept = [(label, share) for label, share in shown if share >= 0.005]
        for index, (label, share) in enumerate(kept):
            style = SEVERITY_STYLES[_WARN] if label == "data wait" and share >= 0.2 else BOLD
            parts += [("  ·  " if index else "", DIM), (f"{label} ", DIM), (f"{share:.0%}", style)]
    speed = samples_per_second(run)
    if speed is not None:
        parts += [("    " if parts else "", PLAIN), (f"{speed:.3g} samples/s", PLAIN)]
    return parts


def _host(host: HostReading) -> list[Part]:
    words: list[Part] = []

    def tell(label: str, value: str, *, alarm: bool = False) -> None:
        words.extend([("   " if words else "", PLAIN), (f"{label} ", DIM)])
        words.append((value, SEVERITY_STYLES[_WARN] if alarm else PLAIN))

    if host.memory_available is not None:
        total = host.memory_total or 0
        of = f" of {size(total)}" if total else ""
        tell("RAM free", f"{size(host.memory_available)}{of}", alarm=host.memory_available < 0.1 * total)
    if host.cpu is not None:
        of = f" of {host.cpus:.3g}" if host.cpus else ""
        own = sum(one.cpu or 0.0 for one in host.processes)
        tell("cores", f"{host.cpu:.1f}{of}" + (f" ({own:.1f} by this run)" if host.processes else ""))
    trainer = next((one for one in host.processes if one.role == "trainer"), None)
    if trainer is not None:
        tell("trainer", f"pid {trainer.pid}" + ("" if trainer.rss is None else f" {size(trainer.rss)}"))
    workers = [one for one in host.processes if one.role == "worker"]
    if workers:
        tell("workers", f"{len(workers)} on {sum(one.cpu or 0.0 for one in workers):.2g} cores")
    if host.disk_free is not None:
        needed = 2 * (host.checkpoint_bytes or 0)
        tell("disk free", size(host.disk_free), alarm=host.disk_free < needed)
    for label, rate in (("read", host.disk_read_rate), ("net in", host.receive_rate)):
        if rate is not None and rate >= 1 << 20:
            tell(label, f"{size(rate)}/s")
    if host.alive is False:
        words.append(("   the trainer's process is gone", SEVERITY_STYLES[_ALARM]))
    return words


def _labelled(label: str, parts: Iterable[Part], width: int) -> Line:
    return line([(f"{label:<6}", DIM), *parts], width)
