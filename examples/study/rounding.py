"""Measured values as they are kept in JSON."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from _typeshed import DataclassInstance


def rounded(measured: DataclassInstance) -> dict[str, Any]:
    """The fields of a dataclass, rounded to what means something; without what there is not."""
    found = {
        key: round(value, 6) if isinstance(value, float) else value
        for key, value in asdict(measured).items()
    }
    return {key: value for key, value in found.items() if value is not None}
