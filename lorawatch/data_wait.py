"""Why training waits for its data, told from what the machine did meanwhile, and what to change.

Workers of a data loader that wait for storage are in uninterruptible sleep; those that compute take a core each; those
that wait for the network do neither. Which of these it is decides the remedy: more workers help only as far as there
are processors for them. Without evidence the cause is not told.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from lorawatch.findings import Adjustment, Confidence
from lorawatch.loaders import Load
from lorawatch.parameters import settable
from lorawatch.remedies import look
from lorawatch.run import Run

Cause = Literal["too few workers", "processors", "disk", "network", "not told"]

MOST_WORKERS = 16
"""Workers that are proposed at most: each is a process with its own copy of the data set's Python objects."""
UNSEEN_WORKERS = 4
"""Workers that are proposed at most where the number of processors is not known (rule catalogue, rule 52)."""
COMPUTES = 0.5
"""Cores of a worker from which it is mostly computing."""
BLOCKED = 0.3
"""Share of the looks in uninterruptible sleep from which storage holds a process up.

Measured on ext4: one that reads blocks of 64 KiB past the cache is so in 53 % of the looks, and takes 0.24 cores.
"""
FREE = 0.5
"""Free processors below which there is none for another worker."""
BYTES = 1e6
"""Bytes a second below which neither storage nor network is a cause."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A likely cause.

    Attributes:
        cause: Which it is.
        words: The numbers that tell it, as part of a sentence.
        workers: Workers of each rank now; None where it is not known.
        wait: Mean seconds of wait a step.
        limit: Workers of each rank that make sense on this machine.
        proposed: Workers of each rank that would do by the measured times; None where more make no sense.
        load: What it was told from.
    """

    cause: Cause
    words: str
    workers: int | None
    wait: float
    limit: int
    proposed: int | None
    load: Load

    @property
    def told(self) -> str:
        """The cause and the numbers that tell it, for a sentence."""
        known = self.cause != "not told"
        return f"likely cause: {self.cause} ({self.words})" if known else f"cause not told: {self.words}"


def diagnose(load: Load, run: Run, wait: float, work: float) -> Diagnosis:
    """Tell the likely cause of a wait.

    Args:
        load: What the machine did while training waited.
        run: The run, for its facts.
        wait: Mean seconds of wait a step.
        work: Mean seconds of work a step.
    """
    workers = _workers(load, run)
    limit = _limit(load, run)
    share = wait / (wait + work)
    if workers is None:
        cause, words = _not_told(load, "how many workers load the data is not known")
    elif workers == 0:
        cause, words = _without_workers(load, run, share)
    else:
        cause, words = _with_workers(load, run, workers, limit)
    if workers is not None and workers >= limit and (load.cpus is not None or limit == MOST_WORKERS):
        words += f"; more than {limit} workers make no sense on this machine"
    proposed = None if workers is None else min(_needed(workers, wait, work), limit)
    if proposed is not None and workers is not None and proposed <= workers:
        proposed = None
    return Diagnosis(cause, words, workers, wait, limit, proposed, load)


def streams(run: Run) -> bool:
    """Whether the data set is read as a stream: the callback saw the data and no length of it."""
    seen = run.facts.get("trainer_class")
    return seen is not None and seen.origin == "callback" and run.fact("train_rows") is None


def adjustments(found: Diagnosis, run: Run) -> list[Adjustment]:
    """What to change for a cause, best first."""
    more = _more_workers(found, run)
    first = found.cause == "too few workers" or found.workers == 0
    other = look(*_REMEDIES["processors" if found.cause == "too few workers" else found.cause])
    advice = [one for one in ((more, other) if first else (other, more)) if one is not None]
    several_epochs = (run.number("num_train_epochs") or 2.0) > 1.0
    persistent = run.fact("dataloader_persistent_workers")
    keeps = persistent is True or not settable("dataloader_persistent_workers", run)
    if found.workers and several_epochs and not keeps:
        advice.append(
            look(
                "dataloader_persistent_workers=True keeps the workers from epoch to epoch",
                "without it each epoch starts them anew; their memory then stays taken during evaluation; it adds no "
                "throughput", confidence="low",
            )
        )  # fmt: skip
    prefetch = run.number("dataloader_prefetch_factor")
    if found.workers and (prefetch or 2.0) < 4:
        advice.append(
            look(
                f"dataloader_prefetch_factor=4 ({prefetch or 2:.0f} now)",
                "evens out batches that take unequally long to make, with host memory for those in store; it adds no "
                "throughput", confidence="low",
            )
        )  # fmt: skip
    return advice


_REMEDIES: dict[Cause, tuple[str, str]] = {
    "processors": (
        "do the work once, before training: tokenise with dataset.map(…, num_proc=…) and save_to_disk",
        "what is done for each batch costs processor time in each epoch again",
    ),
    "disk": (
        "copy the data to a local SSD or to memory (keep_in_memory=True), in few large files (Arrow, Parquet)",
        "the loaders wait for storage: small files and network file systems answer slowly, however many workers ask",
    ),
    "network": (
        "download the data once, to a local disk (streaming=False, or save_to_disk), and read it from there",
        "a stream can be no faster than the network and the server at its other end",
    ),
    "not told": (
        "look where a worker spends its time: py-spy top --pid of a worker, or of the trainer where there is none",
        "nothing that was seen tells whether processors, storage or the network hold it up",
    ),
}


def _more_workers(found: Diagnosis, run: Run) -> Adjustment | None:
    if found.proposed is None or (found.cause == "processors" and found.workers):
        return None
    workers = "1 worker" if found.workers == 1 else f"{found.workers} workers"
    why = f"with {workers} each step waits {seconds(found.wait)}; {found.proposed} would keep up, by these times"
    if found.workers == 0:
        why = f"with 0 the trainer makes each batch itself, between two steps; {found.proposed} make them ahead"
    if found.cause == "disk":
        why = "more requests at once help storage that answers slowly but takes many; not a disk that is at its limit"
    if found.proposed == found.limit:
        why += f" ({found.limit} is what this machine has processors for)" if found.load.cpus else ""
    confidence: Confidence = "low"
    if found.cause in ("too few workers", "network"):
        confidence = "high" if found.cause == "too few workers" else "medium"
    cost = "host memory: each worker is a process"
    if streams(run):
        cost += "; a streamed data set feeds no more workers than it has shards"
    return Adjustment(
        "dataloader_num_workers", current=found.workers, proposed=found.proposed, why=why, direction="up",
        confidence=confidence, apply="resume", cost=cost,
    )  # fmt: skip


def _needed(workers: int, wait: float, work: float) -> int:
    """Workers of which one batch a step comes as fast as the passes take it.

    With 0 workers one batch takes the whole wait, so that ``wait / work`` workers make one while a step works; one more
    is the margin. With W workers they make one in ``wait + work`` seconds; 1.2 is the margin.
    """
    if not work > 0.0:
        return MOST_WORKERS
    ratio = min(wait / work, 1e6)
    return math.ceil(ratio) + 1 if workers == 0 else math.ceil(1.2 * workers * (1.0 + ratio))


def _limit(load: Load, run: Run) -> int:
    """Workers of one rank: no more than processors (torch warns above that), shared by the ranks of this machine."""
    if load.cpus is None:
        return UNSEEN_WORKERS
    ranks = load.ranks if load.ranks > 1 else max(run.number("world_size") or 1.0, 1.0)
    return max(min(int(load.cpus / ranks), MOST_WORKERS), 1)


def _workers(load: Load, run: Run) -> int | None:
    """Workers of each rank: as stated, or else as seen."""
    stated = run.number("dataloader_num_workers")
    if stated is not None and 0 <= stated < 1e6:
        return int(stated)
    return None if load.workers is None else round(load.workers / load.ranks)


def _without_workers(load: Load, run: Run, share: float) -> tuple[Cause, str]:
    base = "dataloader_num_workers is 0, so that training waits while the trainer makes each batch"
    if load.blocked is not None and load.blocked >= 0.5 * share:
        return _storage(load, f"the trainer waits for storage in {100 * load.blocked:.0f} % of the looks")
    if load.cpus is not None and load.cpus < 2:
        return "processors", f"{base}, and there is one processor for both"
    free = load.free
    if free is not None and free < FREE and (load.trainer_cpu is None or load.trainer_cpu >= COMPUTES):
        return "processors", f"{base}, and {_used(load)}"
    if streams(run) and (load.receive_rate or 0.0) >= BYTES:
        return "network", f"{base}, and the data comes from the network at {_rate(load.receive_rate)}"
    return "too few workers", base if free is None else f"{base}; {free:.2g} of {load.cpus:.3g} processors are free"


def _with_workers(load: Load, run: Run, workers: int, limit: int) -> tuple[Cause, str]:
    each, free = load.worker_cpu, load.free
    if each is None:
        return _not_told(load, "what the workers do is not known")
    blocked = load.blocked or 0.0
    doing = (
        f"the {workers} workers take {each:.2f} of a core each" if workers > 1 else f"its worker takes {each:.2f} cores"
    )
    if blocked >= BLOCKED and each < 1.0 - BLOCKED:
        return _storage(load, f"{doing}; storage holds them up in {100 * blocked:.0f} % of the looks")
    starved = each >= 0.5 * COMPUTES or workers * each >= 0.25 * (load.cpus or math.inf)
    if free is not None and free < FREE and starved:
        return "processors", f"{doing}, and {_used(load)}"
    if each >= COMPUTES:
        if free is None:
            return _not_told(load, f"{doing}, and how many processors are free is not known")
        left = f"{doing}, and {free:.2g} of {load.cpus:.3g} processors are free"
        return ("too few workers", left) if workers < limit else ("processors", f"{left}: a batch costs too much")
    received, stored = load.receive_rate or 0.0, load.storage_rate
    if received >= BYTES and (received > stored or streams(run)):
        return "network", f"{doing}, while {_rate(received)} come from the network"
    if stored >= BYTES:
        return "disk", f"{doing}, while {_rate(stored)} are read from storage"
    if streams(run):
        return "network", f"{doing}; the data is streamed"
    return _not_told(load, doing)


def _storage(load: Load, words: str) -> tuple[Cause, str]:
    """Storage, which is the network's where much more is received than is read from disks: a network file system."""
    received = load.receive_rate or 0.0
    if received >= BYTES and received > 2.0 * (load.disk_read_rate or 0.0):
        return "network", f"{words}; {_rate(received)} come from the network, a network file system perhaps"
    return "disk", f"{words}; {_rate(load.storage_rate)} are read" if load.storage_rate >= BYTES else words


def _not_told(load: Load, words: str) -> tuple[Cause, str]:
    return "not told", words if load.seconds else "no reading of the machine"


def _used(load: Load) -> str:
    words = f"{load.cpu:.3g} of {load.cpus:.3g} processors are in use"
    if load.cpu and load.own_cpu is not None and load.own_cpu < 0.5 * load.cpu:
        words += f", only {load.own_cpu:.3g} of them by this run"
    return words


def seconds(value: float) -> str:
    """Seconds for a person: ``1.2 s``, ``40 ms``."""
    return f"{value:.2g} s" if value >= 1.0 else f"{1000 * value:.0f} ms"


def _rate(value: float | None) -> str:
    return f"{(value or 0.0) / 1e6:.3g} MB/s"
