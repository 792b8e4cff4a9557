"""The contract of an exporter: what it may see of the runs that are watched.

An exporter sees the watch through the two protocols below and nothing else: the same view that the terminal and the web
page have. :class:`~lorawatch.watch.FolderWatch` and :class:`~lorawatch.watch.RunWatch` fulfil them.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Protocol

from lorawatch.engine import Engine
from lorawatch.findings import Severity

if TYPE_CHECKING:
    from prometheus_client import Metric


class Watched(Protocol):
    """One run that is watched."""

    @property
    def name(self) -> str:
        """Name of the run, as a person knows it; may hold any character that a file name may."""
        ...

    @property
    def path(self) -> str:
        """Where the run is."""
        ...

    @property
    def engine(self) -> Engine:
        """The engine that judges the run now; another one after the run was read again."""
        ...

    @property
    def skipped_lines(self) -> int:
        """Lines that looked like metrics and could not be read."""
        ...

    @property
    def sources(self) -> Sequence[str]:
        """Each source as format and file name, best first."""
        ...


class Watching(Protocol):
    """All that is watched now."""

    @property
    def runs(self) -> Sequence[Watched]:
        """The runs that were found so far."""
        ...

    @property
    def waiting_for(self) -> str:
        """What is waited for while there is no run."""
        ...

    @property
    def problems(self) -> Mapping[str, str]:
        """Path to a one-line message, for what cannot be read."""
        ...

    @property
    def notes(self) -> Mapping[str, str]:
        """What was found out of the machine and what cannot be seen of it, one line each, to the run's name."""
        ...


class MetricsCollector(Protocol):
    """What :func:`prometheus_client.generate_latest` needs of a registry."""

    def collect(self) -> Iterable[Metric]:
        """The metric families as they are now."""
        ...


def metrics_collector(watching: Watching, severities: Mapping[str, Severity]) -> MetricsCollector:
    """The Prometheus exporter over ``watching``.

    Args:
        watching: What is watched.
        severities: Rule id to the rule's own severity, of the rules that are in use.
    """
    # By name, not by import statement: exporters are leaves, on which nothing stands.
    module: Any = importlib.import_module("lorawatch.exporters.prometheus")
    collector: MetricsCollector = module.WatchCollector(watching, severities)
    return collector
