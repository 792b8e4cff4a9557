"""What a person did wrong on the command line."""

from __future__ import annotations


class UsageError(Exception):
    """The command cannot be carried out as given: says in one line what, where, and what to do."""
