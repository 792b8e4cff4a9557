"""Finds every fault of this package, by name."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
from functools import cache
from typing import Any

from lorawatch.settings import nearest
from lorawatch.trainer import faults as package
from lorawatch.trainer.faults.contract import Fault
from lorawatch.trainer.recipe import Recipe, RecipeError


@cache
def faults() -> dict[str, type[Fault]]:
    """Every fault by name, in the order of their modules and of their places in them."""
    found: dict[str, type[Fault]] = {}
    for module in sorted(info.name for info in pkgutil.iter_modules(package.__path__)):
        for one in vars(importlib.import_module(f"{package.__name__}.{module}")).values():
            if inspect.isclass(one) and issubclass(one, Fault) and "name" in vars(one):
                found[one.name] = one
    return found


def fault_of(recipe: Recipe) -> Fault:
    """The fault that a recipe asks for; one that does nothing where it asks for none.

    Raises:
        RecipeError: There is no such fault, or the method cannot have it.
    """
    asked = recipe.fault
    if asked is None:
        return NoFault()
    name, amount = asked
    kind = faults().get(name)
    if kind is None:
        raise RecipeError(f"--inject {name}: there is no such fault{nearest(name, faults())}; see --list-faults")
    if recipe.method not in kind.methods:
        raise RecipeError(
            f"--inject {name}: {recipe.method} cannot have this fault; it is for {', '.join(sorted(kind.methods))}"
        )
    return kind(amount)


def unmet(kind: type[Fault]) -> str:
    """What a fault needs that this machine does not have, in words; empty where it can be run."""
    if kind.needs == "cuda":
        import torch  # noqa: PLC0415  (heavy, and wanted only where a fault is run)

        return "" if torch.cuda.is_available() else "a CUDA card, and there is none"
    if kind.needs == "tmpfs":
        superuser: Any = getattr(os, "geteuid", None)
        return "" if superuser is not None and superuser() == 0 else "to mount a tmpfs, which only root may"
    return ""


class NoFault(Fault):
    """Changes nothing."""
