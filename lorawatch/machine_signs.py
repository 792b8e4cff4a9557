"""What the machine shows that would explain slow steps, as things to look at."""

from __future__ import annotations

from lorawatch.cards import is_desktop
from lorawatch.findings import Adjustment
from lorawatch.remedies import look
from lorawatch.run import Run


def interrupted(run: Run) -> bool:
    """Whether it evaluates or saves at this moment, as far as that is known."""
    return run.host is not None and run.host.phase in ("evaluation", "saving")


def of_the_cards(run: Run) -> list[Adjustment]:
    """Cards that are held back, or shared with others."""
    found: list[Adjustment] = []
    for card in () if run.gpu is None else run.gpu.cards:
        held = {reason: share for reason, share in (card.throttled or {}).items() if share >= 0.3}
        slow = card.sm_clock is not None and card.max_sm_clock and card.sm_clock < 0.7 * card.max_sm_clock
        if held and (slow or set(held) - {"sw_power_cap"}):
            reasons = ", ".join(f"{reason} in {100 * share:.0f} % of the looks" for reason, share in held.items())
            heat = f" at {card.temperature:.0f} °C" if card.temperature is not None else ""
            found.append(
                look(
                    f"look at the cooling and the power limit of GPU {card.index}: airflow, fans, its neighbours",
                    f"its clocks are held down{heat}: {reasons}", confidence="high",
                )
            )  # fmt: skip
        others = [process for process in card.processes if process.own is False and not is_desktop(process)]
        if others:
            names = ", ".join(f"{process.name or 'pid'} {process.pid}" for process in others[:3])
            found.append(look(f"move the other processes away from GPU {card.index}: {names}", "they share its time"))
    return found


def of_the_host(run: Run) -> list[Adjustment]:
    """A machine whose memory or processors are short."""
    host = run.host
    if host is None:
        return []
    found: list[Adjustment] = []
    memory = "look at what takes the machine's memory (see host/ram)"
    if host.memory_total and host.memory_available is not None and host.memory_available < 0.1 * host.memory_total:
        share = 100 * host.memory_available / host.memory_total
        found.append(look(memory, f"{share:.0f} % of it is available", confidence="high"))
    elif host.swap_in_rate is not None and host.swap_in_rate > 1e6:
        found.append(look(memory, f"{host.swap_in_rate / 1e6:.3g} MB/s are swapped in", confidence="high"))
    own = sum(process.cpu or 0.0 for process in host.processes)
    # A run that fills the processors that it is bound to is not slowed down by others.
    if host.cpu is not None and host.cpus and host.cpu > 0.95 * host.cpus and own < 0.9 * host.cpu:
        found.append(
            look(
                "look at what else runs on this machine: top, or the queue's other jobs",
                f"{host.cpu:.3g} of {host.cpus:.3g} processors are in use, {own:.3g} of them by this run",
            )
        )  # fmt: skip
    blocked = [process for process in host.processes if process.waiting_for_disk >= 0.3]
    if blocked:
        found.append(
            look("look at the storage that the run reads: iostat, nfsstat",
                 f"{len(blocked)} of its processes wait for storage in 30 % of the looks or more")
        )  # fmt: skip
    return found
