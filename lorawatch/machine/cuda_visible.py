"""Which cards a process sees: the meaning of CUDA_VISIBLE_DEVICES.

As in the CUDA programming guide (*CUDA Environment Variables*) and in torch's own reading of it
(``torch.cuda._parse_visible_devices``): indices, or UUIDs that may be cut short, in order; the first entry that names
no card hides itself and all that follow; a card that is named twice leaves none. AMD's runtime reads it likewise.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

import msgspec

from lorawatch.records import Card

_MOST = 256
"""Entries that are read: more than any machine has cards."""
_INDEX = re.compile(r"[+-]?[0-9]{1,9}")


class Visible(msgspec.Struct, frozen=True):
    """The cards that are seen.

    Attributes:
        cards: In the order in which the process counts them.
        stopped_at: The entry that named no card, or one a second time; "" when all were understood.
        by_index: Whether cards were named by index.
    """

    cards: list[Card]
    stopped_at: str = ""
    by_index: bool = False


def visible_cards(text: str | None, cards: Sequence[Card], aliases: Mapping[str, str]) -> Visible:
    """The cards that ``text`` lets a process see.

    Args:
        text: The value of CUDA_VISIBLE_DEVICES; None when it is not set.
        cards: All cards and MIG instances, in the driver's order.
        aliases: Other names of some, to their UUIDs.
    """
    if text is None:
        return Visible(list(cards))
    if not text.strip():
        return Visible([])
    entries = [entry.strip() for entry in text.split(",")[:_MOST]]
    prefix = next((prefix for prefix in ("GPU-", "MIG-") if entries[0].startswith(prefix)), "")
    found: list[Card] = []
    for entry in entries:
        if prefix and not entry.startswith(prefix):
            return Visible(found, entry)  # the first entry says of which kind all are
        chosen = _by_name(entry, cards, aliases) if prefix else _by_index(entry, cards)
        if not chosen:
            return Visible(found, entry or text[:100], not prefix)
        if any(card in found for card in chosen):
            return Visible([], entry, not prefix)
        found += chosen
    return Visible(found, "", not prefix)


def _by_index(entry: str, cards: Sequence[Card]) -> list[Card]:
    """The card of an index, of each vendor; of a card in MIG mode its first instance, which is what CUDA takes."""
    match = _INDEX.match(entry)
    if match is None:
        return []
    index = int(match[0])
    found: dict[str, Card] = {}
    for card in cards:
        if card.index == index:
            found.setdefault(card.vendor, card)
    return list(found.values())


def _by_name(entry: str, cards: Sequence[Card], aliases: Mapping[str, str]) -> list[Card]:
    """The one card whose UUID, or other name, begins with ``entry``; none when several do."""
    named = {uuid for alias, uuid in aliases.items() if alias == entry}
    if not named:
        named = {card.uuid for card in cards if card.uuid.startswith(entry)}
        named |= {uuid for alias, uuid in aliases.items() if alias.startswith(entry)}
    return [card for card in cards if card.uuid in named] if len(named) == 1 else []
