"""Candidates for a layer: patterns, or None, which leaves it dense; and tables of numbers by layer
and candidate.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern

#: A pattern; None leaves the layer dense.
Candidate = Pattern | None
#: A candidate in any of its spellings: "dense" for None.
Named = Pattern | str | None
#: Layer path → candidate → number.
Table = Mapping[str, Mapping[Any, float]]


def candidate_of(named: Named) -> Candidate:
    """Return a candidate from any of its spellings."""
    return None if named is None or named == "dense" else Pattern.of(named)


def name_of(candidate: Candidate) -> str:
    """Return the name of a candidate in tables."""
    return "dense" if candidate is None else str(candidate)


def candidates_of(named: Iterable[Named] | None) -> tuple[Candidate, ...]:
    """Return the candidates, each once, in the order given.

    Raises
    ------
    InputError, PatternError
        If there are none, or none but dense; if one is no pattern.
    """
    remedy = (
        "candidates are an iterable of patterns, with 'dense' among them if layers may stay "
        "dense: ['2:4', '1:4', 'dense']"
    )
    if isinstance(named, str | Pattern) or not isinstance(named, Iterable):
        raise InputError(f"{remedy}; got {named!r}")
    found = tuple(dict.fromkeys(candidate_of(one) for one in named))
    if not any(found):
        raise InputError(f"{remedy}; got no pattern")
    return found


def row_of(table: Table, path: str, what: str) -> dict[Candidate, float]:
    """Return a layer's numbers by candidate; `what` is "the latency table", for messages.

    Raises
    ------
    InputError
        If the layer is not in the table, or has something else than finite numbers there.
    """
    if not isinstance(table, Mapping):
        raise InputError(
            f"{what} maps layer paths to candidates to numbers, {{'fc': {{'2:4': 0.1, 'dense': "
            f"0.2}}}}; got {table!r}"
        )
    if path not in table:
        raise InputError(f"{what} has nothing for layer {path}; it has {_listed(table)}")
    row = table[path]
    if not isinstance(row, Mapping):
        raise InputError(
            f"{what} maps layer {path} to {row!r}, not candidates to numbers: {{'2:4': 0.1, "
            f"'dense': 0.2}}"
        )
    found: dict[Candidate, float] = {}
    for named, value in row.items():
        try:
            number = float(value)
        except (TypeError, ValueError):
            number = math.nan
        if not math.isfinite(number):
            raise InputError(
                f"{what} has {value!r} for layer {path} with {named}: finite numbers are needed"
            )
        candidate = candidate_of(named)
        if candidate in found:
            raise InputError(f"{what} has {name_of(candidate)} twice for layer {path}")
        found[candidate] = number
    return found


def number_of(row: Mapping[Candidate, float], path: str, candidate: Candidate, what: str) -> float:
    """Return a candidate's number in a layer's row; InputError with those that there are."""
    if candidate not in row:
        raise InputError(
            f"{what} has nothing for layer {path} with {name_of(candidate)}; it has "
            f"{_listed(map(name_of, row))}"
        )
    return row[candidate]


def _listed(names: Iterable[str]) -> str:
    some = list(names)
    return ", ".join(some[:8]) + (", …" if len(some) > 8 else "") if some else "nothing at all"
