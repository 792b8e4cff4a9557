"""How much a report shows, so that the file stays small whatever the log holds."""

from __future__ import annotations

from dataclasses import dataclass

PAGE_BYTES = 2_000_000
"""Bytes that a page stays below."""


@dataclass(frozen=True, slots=True)
class Limits:
    """How much is shown of what may be long.

    Attributes:
        points: Points of a curve in the main picture; half as many in the others.
        samples: Prompts with their replies.
        characters: Of a prompt and of each reply.
        evidence: Numbers behind a finding.
        modules: Modules of the adapter in the table that stands for a heat map.
        heat_map: Bytes of a heat map; a larger one is left out.
        pages: Whether the rules' pages are part of it.
    """

    points: int = 2_000
    samples: int = 24
    characters: int = 1_200
    evidence: int = 40
    modules: int = 60
    heat_map: int = 600_000
    pages: bool = True


STEPS = (
    Limits(),
    Limits(points=600, samples=12, characters=500, modules=30, heat_map=200_000),
    Limits(points=200, samples=6, characters=200, evidence=12, modules=10, heat_map=0, pages=False),
)
"""Each is tried where the one before made too large a page; the last one cannot."""
