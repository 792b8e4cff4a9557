"""Several sources of one run into one stream of records.

A run is often told twice: by its console log and, at each save, by ``trainer_state.json``. For each metric the better
source wins wherever it tells that metric; another source adds only what the better one never told: other metrics, the
steps before it begins, the steps after it ends.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lorawatch.records import FactUpdate, LifecycleEvent, MetricRow, Record
from lorawatch.source import Source, SourceError


@dataclass(slots=True)
class Coverage:
    """Which metrics the better sources tell, and from which step to which.

    Attributes:
        spans: Metric name to its first and last step.
        segments: Runs that the best source holds.
        rows: Rows seen.
    """

    spans: dict[str, tuple[int, int]] = field(default_factory=dict)
    segments: int = 1
    rows: int = 0
    last_step: int = 0

    def add(self, record: Record) -> None:
        """Take in one record of a better source."""
        if type(record) is MetricRow:
            self.rows += 1
            step = self.last_step if record.step is None else record.step
            self.last_step = max(self.last_step, step)
            for name in record.values:
                first, last = self.spans.get(name, (step, step))
                self.spans[name] = (min(first, step), max(last, step))
        elif isinstance(record, LifecycleEvent) and record.event == "started" and self.rows:
            self.segments += 1

    def uncovered(self, row: MetricRow, *, open_ended: bool = False) -> MetricRow | None:
        """What ``row`` tells that no better source does; None when that is nothing.

        Args:
            row: A row of a lesser source.
            open_ended: Take a metric for covered beyond its last step too: the better source is still being written.
        """
        if row.step is None:
            return None
        values = {}
        for name, value in row.values.items():
            span = self.spans.get(name)
            if span is None or row.step < span[0] or (row.step > span[1] and not open_ended):
                values[name] = value
        if not values:
            return None
        if len(values) == len(row.values):
            return row
        return MetricRow(row.step, values, row.epoch, row.time, row.estimated)


def everything(source: Source) -> Iterator[Record]:
    """All that a source says from where it stands to its end, a torn last line included."""
    yield from source.poll()
    yield from source.finish()


def _readable(source: Source, *, finished: bool, best: bool) -> Iterator[Record]:
    """What a source says; a lesser one that cannot be read, or not any more, does not spoil the run."""
    try:
        yield from everything(source) if finished else source.poll()
    except SourceError:
        if best:
            raise


def merged(sources: Sequence[Source], *, finished: bool = True) -> Iterator[Record]:
    """The records of one run's sources, in the order of their steps, each metric from the best source that tells it.

    Reads lazily, and twice where there are several sources; memory does not grow with the length of the run.

    Args:
        sources: Best first, each at its start. Afterwards each stands at its end.
        finished: The files are complete: a torn last line is read too.

    Raises:
        SourceError: The best source cannot be used.
    """
    if len(sources) == 1 or (sources and sources[0].format == "lorawatch"):
        # The callback told lorawatch.jsonl all that the other files say.
        yield from everything(sources[0]) if finished else sources[0].poll()
        return
    coverages: list[Coverage] = []
    coverage = Coverage()
    for source in sources:
        coverages.append(Coverage(dict(coverage.spans), coverage.segments, coverage.rows, coverage.last_step))
        start = source.cursor()
        for record in _readable(source, finished=False, best=source is sources[0]):
            if isinstance(record, FactUpdate) and coverages[-1].rows:
                yield record  # what a lesser source states holds for the whole run: first of all
            coverage.add(record)
        source.resume(start)
    best_has_rows = [index for index, before in enumerate(coverages) if before.rows == 0][-1]
    streams = [
        _steps(source, index, coverages[index], primary=index <= best_has_rows, finished=finished)
        for index, source in enumerate(sources)
        if index <= best_has_rows or coverage.segments == 1
    ]
    for _, _, _, record in heapq.merge(*streams):
        yield record


def _steps(
    source: Source, rank: int, better: Coverage, *, primary: bool, finished: bool
) -> Iterator[tuple[int, int, int, Record]]:
    step = 0
    for count, record in enumerate(_readable(source, finished=finished, best=rank == 0)):
        if type(record) is MetricRow:
            if record.step is not None:
                step = record.step
            if primary:
                yield step, rank, count, record
            else:
                row = better.uncovered(record)
                if row is not None:
                    yield step, rank, count, row
        elif primary:
            yield step, rank, count, record
