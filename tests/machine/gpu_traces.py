"""Public GPU traces (``gpu/*.csv`` of the corpus: metric, unix_ts, value) as records of lorawatch.

Each timestamp gives a reading of the card and one of the machine. Weights & Biases names the metrics; what a trace does
not hold stays None. It holds no steps: a row of metrics each minute, from the first moment at which the card was at
work, stands for the trainer's log. Of a run whose card never worked there is none: it does not count as training.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from lorawatch.records import Card, GpuReading, HostReading, MetricRow, ProcessReading, Record

NOMINAL = 40 * 2**30
"""Memory of a card whose trace gives its use in per cent only: rules judge shares, so that they are right."""
AT_WORK = 0.5
"""Utilization at which a card is taken to be training."""
MINUTE = 60.0

Sample = dict[str, float]


@dataclass(frozen=True, slots=True)
class Trace:
    """One trace and what its label says of it."""

    file: Path
    label: str
    card: int

    def __str__(self) -> str:
        return f"{self.label or 'unlabelled'} {self.file.stem[:60]}"

    def samples(self) -> list[tuple[float, Sample]]:
        """The metrics of each timestamp, in order."""
        found: dict[float, Sample] = {}
        with self.file.open(encoding="utf-8", newline="") as lines:
            for row in csv.DictReader(lines):
                if row["value"]:
                    found.setdefault(float(row["unix_ts"]), {})[row["metric"]] = float(row["value"])
        return sorted(found.items())

    def records(self) -> Iterator[Record]:
        """The records of the labelled card and of the machine, and a row each minute once the card is at work."""
        before: tuple[float, Sample] | None = None
        next_row: float | None = None
        rows = 0
        for time, sample in self.samples():
            seconds = time - before[0] if before else 0.0
            card = card_of_sample(sample, self.card)
            if card is not None:
                yield GpuReading(time, [card], seconds)
                if next_row is None and (card.utilization or 0.0) >= AT_WORK:
                    next_row = time
            yield host_of_sample(time, seconds, sample, before[1] if before else None)
            if next_row is not None and time >= next_row:
                rows += 1
                next_row += MINUTE
                yield MetricRow(rows, {"progress": float(rows)}, time=time)
            before = (time, sample)


def load_traces(folder: Path) -> list[Trace]:
    """The traces that ``labels.csv`` lists, with their label; the labelled card is the one that the run was on."""
    with (folder / "labels.csv").open(encoding="utf-8", newline="") as lines:
        return [
            Trace(folder.parent / row["file"], row["labels"], int(row["gpu"].split(".")[1]))
            for row in csv.DictReader(lines)
        ]


def card_of_sample(sample: Sample, index: int) -> Card | None:
    """One card at one moment; None where the moment tells nothing of it."""
    mine = {name.split(".", 2)[2]: value for name, value in sample.items() if name.startswith(f"gpu.{index}.")}
    if not mine:
        return None
    share, used = mine.get("memoryAllocated"), mine.get("memoryAllocatedBytes")
    total = used / (share / 100) if used is not None and share else float(NOMINAL)
    if used is None and share is not None:
        used = total * share / 100
    return Card(
        index,
        f"GPU-{index}",
        memory_total=round(total) if used is not None else None,
        memory_used=None if used is None else round(used),
        utilization=_share(mine.get("gpu")),
        power=mine.get("powerWatts"),
        power_limit=mine.get("enforcedPowerLimitWatts"),
        temperature=mine.get("temp"),
        sm_clock=_times(mine.get("smClock"), 1e6),
        ecc_uncorrected=_whole(mine.get("uncorrectedMemoryErrors")),
        ecc_corrected=_whole(mine.get("correctedMemoryErrors")),
        pcie_generation=_whole(mine.get("pcieLinkGen")),
    )


def host_of_sample(time: float, seconds: float, sample: Sample, before: Sample | None) -> HostReading:
    """The machine at one moment, with the trainer as its one process."""
    available = _times(sample.get("proc.memory.availableMB"), 2**20)
    in_use = sample.get("memory_percent", sample.get("memory"))
    total = available / (1 - in_use / 100) if available is not None and in_use is not None and in_use < 100 else None
    cores = [value for name, value in sample.items() if name.startswith("cpu.") and name.endswith(".cpu_percent")]
    disk_used, disk_share = _times(sample.get("disk./.usageGB"), 2**30), _share(sample.get("disk./.usagePercent"))
    disk_total = disk_used / disk_share if disk_used is not None and disk_share else None
    rss = _times(sample.get("proc.memory.rssMB"), 2**20)
    return HostReading(
        time,
        seconds,
        memory_total=_whole(total),
        memory_available=_whole(available),
        cpus=float(len(cores)) or None,
        cpu=sum(cores) / 100 if cores else None,
        disk_path="/" if disk_total else "",
        disk_total=_whole(disk_total),
        disk_free=None if disk_total is None or disk_used is None else round(disk_total - disk_used),
        receive_rate=_rate("network.recv", sample, before, seconds),
        send_rate=_rate("network.sent", sample, before, seconds),
        processes=[ProcessReading(1, "trainer", rss=_whole(rss))] if rss is not None else [],
    )


def _times(value: float | None, factor: float) -> float | None:
    return None if value is None else value * factor


def _share(percent: float | None) -> float | None:
    return _times(percent, 0.01)


def _whole(value: float | None) -> int | None:
    return None if value is None else round(value)


def _rate(name: str, sample: Sample, before: Sample | None, seconds: float) -> float | None:
    """Of a count of bytes since the start: bytes a second since the sample before."""
    now, then = sample.get(name), before.get(name) if before else None
    return (now - then) / seconds if now is not None and then is not None and seconds > 0 and now >= then else None
