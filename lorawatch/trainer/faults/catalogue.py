"""Finds every fault of this package, by name."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from functools import cache

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


class NoFault(Fault):
    """Changes nothing."""
