"""Numbers and lists as a configuration writes them: in the style of the value that stood there."""

from __future__ import annotations

import re
from decimal import Decimal
from typing import Any

_EXPONENT = re.compile(r"[-+]?[\d_.]+[eE][-+]?(\d+)")
_TINY = 1e-3
_POSITIONAL = (-9, 16)
"""Powers of ten between which a number is written without an exponent, where the old one had none."""


def number_text(value: float, like: str = "", *, dotted: bool = False) -> str:
    """A number in the style of another: ``6.7e-4`` for ``2e-3``, ``0.00067`` for ``0.002``, ``2.0`` for ``3.0``.

    Args:
        value: The number, finite.
        like: Text of the number that it stands for; "" when there is none: then below 0.001 with an exponent.
        dotted: Write ``2.0e-4``, never ``2e-4``. YAML 1.1, which PyYAML reads, takes an exponent without a dot for
            words (https://yaml.org/type/float.html).
    """
    exponent = _EXPONENT.fullmatch(like)
    if isinstance(value, int):
        return f"{value}.0" if exponent is None and re.fullmatch(r"[-+]?\d*\.\d*", like) else str(value)
    if exponent is None and value.is_integer() and re.fullmatch(r"[-+]?\d+", like):
        return str(int(value))
    number = Decimal(repr(value))
    power = number.adjusted()
    small = not like and 0 < abs(value) < _TINY
    if value and ((exponent is not None and power < 0) or small or not _POSITIONAL[0] <= power < _POSITIONAL[1]):
        width = len(exponent[1]) if exponent else 1
        digits = "".join(map(str, number.normalize().as_tuple().digits))
        mantissa = digits[0] + (f".{digits[1:]}" if len(digits) > 1 else ".0" if dotted else "")
        sign = "-" if value < 0 else ""
        return f"{sign}{mantissa}e{'-' if power < 0 else '+'}{abs(power):0{width}d}"
    text = f"{number:f}"
    return text if "." in text else f"{text}.0"


def comma_list(value: Any) -> Any:
    """A list as LLaMA-Factory writes it, in one string; anything else as it is."""
    return ",".join(map(str, value)) if isinstance(value, list | tuple) else value
