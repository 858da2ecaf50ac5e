"""Sharded parameters (DTensor, as FSDP2 keeps them between steps): a rank's part of them, and masks
cut and gathered alike.

Nothing here imports torch.distributed unless a parameter is sharded.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from nmsolve.errors import InputError


def is_sharded(tensor: Tensor) -> bool:
    """Return whether a tensor is a DTensor, as FSDP2 keeps parameters between steps. Told without
    importing torch.distributed.
    """
    return type(tensor).__name__ == "DTensor"


def placed_like(mask: Tensor, weight: Tensor) -> Tensor:
    """Return a mask that every rank holds whole, cut as a sharded weight is; no communication."""
    if not is_sharded(weight):
        return mask
    from torch.distributed.tensor import DTensor, Replicate

    mesh: Any = weight.device_mesh  # type: ignore[attr-defined]
    whole = DTensor.from_local(mask, mesh, [Replicate()] * mesh.ndim, run_check=False)
    placed: Tensor = whole.redistribute(placements=weight.placements)  # type: ignore[attr-defined]
    return placed


def local(tensor: Tensor) -> Tensor:
    """Return this rank's part of a tensor: all of it, unless it is sharded."""
    return tensor.to_local() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def whole(tensor: Tensor) -> Tensor:
    """Return all of a tensor. For a sharded one every rank has to call this."""
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined]


def first_axis(weight: Tensor) -> slice:
    """Return the entries of the first axis of a weight that this rank holds; raise InputError if it
    is cut along another.
    """
    if not is_sharded(weight):
        return slice(0, weight.shape[0])
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    sharded: Any = weight
    placements = sharded.placements
    if any(p.is_partial() or (p.is_shard() and p.dim != 0) for p in placements):
        raise InputError(
            f"it is placed as {placements}; masks follow weights that are cut along their first "
            "axis, as fully_shard does"
        )
    mesh = sharded.device_mesh
    shape, offset = compute_local_shape_and_global_offset(weight.shape, mesh, placements)
    return slice(offset[0], offset[0] + shape[0])


def gathered(part: Tensor, weight: Tensor) -> Tensor:
    """Return a bool tensor of the shape of a weight, from what each rank knows of it. Every rank
    has to call this.
    """
    if not is_sharded(weight):
        return part
    from torch.distributed.tensor import DTensor

    mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
    stride = torch.empty(weight.shape, device="meta").stride()
    sharded = DTensor.from_local(
        part.to(torch.uint8).contiguous(),
        mesh,
        placements,
        run_check=False,
        shape=weight.shape,
        stride=stride,
    )
    return sharded.full_tensor() != 0


def placed(part: Tensor, weight: Tensor, rows: int) -> Tensor:
    """Return what this rank knows of its part of a weight, for a state dict: sharded as the weight
    is, `rows` long in all.
    """
    if not is_sharded(weight):
        return part
    from torch.distributed.tensor import DTensor

    shape = torch.Size((rows, *part.shape[1:]))
    stride = torch.empty(shape, device="meta").stride()
    mesh, placements = weight.device_mesh, weight.placements  # type: ignore[attr-defined]
    return DTensor.from_local(part, mesh, placements, run_check=False, shape=shape, stride=stride)


def cut(saved: Tensor, weight: Tensor) -> Tensor:
    """Return the inverse of `placed`: this rank's part of what a state dict holds, which may have
    been saved whole.
    """
    if is_sharded(saved) or not is_sharded(weight):
        return local(saved)
    rows = first_axis(weight)
    share = (
        saved.shape[0] / weight.shape[0]
    )  # less than 1 where the first axis is that of the groups
    return saved[round(rows.start * share) : round(rows.stop * share)]


def least(number: int, weight: Tensor) -> int:
    """Return the least of a number over the ranks that hold a sharded weight."""
    import torch.distributed as dist

    value = torch.tensor(number, device=local(weight).device)
    mesh: Any = weight.device_mesh  # type: ignore[attr-defined]
    for axis in range(mesh.ndim):
        dist.all_reduce(value, op=dist.ReduceOp.MIN, group=mesh.get_group(axis))
    return int(value)


def anywhere(problem: bool, weight: Tensor) -> bool:
    """Return whether any rank that holds a part of a sharded weight has a problem, so that all stop
    together.
    """
    return least(int(not problem), weight) == 0
