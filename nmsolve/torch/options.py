"""Checks of options that are numbers."""

from __future__ import annotations

import math
from typing import TypeGuard


def is_number(value: object) -> TypeGuard[float]:
    """Return whether a value is a finite int or float, and no bool.

    Examples
    --------
    >>> is_number(10**400), is_number(float("nan")), is_number(True)
    (True, False, False)
    """
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return -math.inf < value < math.inf  # also of an int that is too large for a float


def is_integer(value: object, least: int = 1) -> TypeGuard[int]:
    """Return whether a value is an int of `least` or more, and no bool.

    Examples
    --------
    >>> is_integer(0), is_integer(0, least=0), is_integer(1.0)
    (False, True, False)
    """
    return isinstance(value, int) and not isinstance(value, bool) and value >= least
