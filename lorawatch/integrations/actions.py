"""What a person may ask the callback to do when a finding opens."""

from __future__ import annotations

from collections.abc import Mapping

from lorawatch.findings import Severity
from lorawatch.settings import nearest

ACTIONS = ("none", "save", "stop")
DONE = {"stop": "training stops after this step", "save": "a checkpoint is saved after this step"}
"""What a person is told that was done."""
SAME_ON_EVERY_RANK = frozenset({"sig", "loss", "grad", "lr", "eval", "pref", "rl"})
"""Families that judge only what the Trainer has gathered from all processes before it logs."""


def checked_actions(actions: Mapping[str, str]) -> dict[Severity, str]:
    """Severity to action; empty where none does anything.

    Raises:
        ValueError: A severity or an action does not exist; names the nearest one that does.
    """
    checked: dict[Severity, str] = {}
    for label, action in actions.items():
        if action not in ACTIONS:
            raise ValueError(
                f"actions[{label!r}]: unknown action {action!r}{nearest(str(action), ACTIONS)} "
                f"Use one of {', '.join(ACTIONS)}."
            )
        try:
            checked[Severity.parse(label)] = action
        except (ValueError, AttributeError):
            labels = [severity.label for severity in Severity]
            raise ValueError(
                f"actions: unknown severity {label!r}{nearest(str(label), labels)} Use one of {', '.join(labels)}."
            ) from None
    return checked if set(checked.values()) - {"none"} else {}
