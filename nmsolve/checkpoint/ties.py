"""One tensor that a checkpoint holds twice, as a head that is tied to its embedding: what stays
dense once stays dense twice.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from nmsolve.checkpoint.stored import CHUNK, Stored, WeightFile

#: Bytes that are compared before all are.
_FIRST = 2**12
#: Names of heads that a configuration ties.
_HEADS = ("lm_head", "embed_out", "output_projection", "proj_out", "decoder")

Where = tuple[WeightFile, Stored]


def untie(
    files: Sequence[WeightFile],
    pruned: Collection[str],
    dense: Mapping[str, str],
    tied: Collection[str],
) -> dict[str, str]:
    """Return which of the tensors that are to be pruned are the same as one that stays dense, and
    the reason for each to do so too.

    A model that ties them loads one of the two for both. They are the same if their bytes are, or
    if a configuration says so of a head and a table of embeddings of the same shape.

    Parameters
    ----------
    pruned : names of the tensors that are planned.
    dense : the others, with two axes or more, and their reasons.
    tied : names of tensors whose configuration ties a head to the embedding.
    """
    where = {
        tensor.name: (file, tensor) for file in files if not file.arrays for tensor in file.tensors
    }
    planned = [name for name in pruned if name in where]
    kinds = {_kind(where[name]) for name in planned}
    kept = [name for name in dense if name in where and _kind(where[name]) in kinds]
    alike: dict[tuple[object, bytes], list[str]] = {}
    for name in kept:
        alike.setdefault((_kind(where[name]), _begin(where[name])), []).append(name)
    tables = [name for name in kept if name in tied and "embed" in name + dense[name]]
    found = {}
    for name in planned:
        kind = _kind(where[name])
        same = [
            other
            for other in tables
            if name in tied and _is_head(name) and _kind(where[other]) == kind
        ]
        if kept and not same:
            same = [
                other
                for other in alike.get((kind, _begin(where[name])), ())
                if _same(where[name], where[other])
            ]
        if same:
            found[name] = f"it is the same tensor as {same[0]}: {dense[same[0]]}"
    return found


def _kind(place: Where) -> tuple[object, ...]:
    """The traits that tensors that are the same have in common."""
    return place[1].dtype, place[1].shape, place[1].folder


def _is_head(name: str) -> bool:
    return name.split(".")[-2:-1] != [] and name.split(".")[-2] in _HEADS


def _begin(place: Where) -> bytes:
    """A tensor's first bytes."""
    file, tensor = place
    return bytes(next(file.chunks(tensor, np.empty(min(_FIRST, tensor.size), np.uint8))))


def _same(one: Where, other: Where) -> bool:
    """Return whether two tensors of one size hold the same bytes."""
    here, there = (
        file.chunks(tensor, np.empty(min(CHUNK, tensor.size), np.uint8))
        for file, tensor in (one, other)
    )
    return all(part == beside for part, beside in zip(here, there, strict=True))
