"""The result of `nmsolve.torch.solve`: the core's, with tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from nmsolve import result as core
from nmsolve.certificates import Duals
from nmsolve.errors import SolverError
from nmsolve.torch.tensors import as_array, as_matrices, check_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDuals(Duals[Tensor]):
    """Potentials of every group or block, as in `nmsolve.Duals`. Convolution weights (out, in,
    kernel …) have theirs for the matrices (kernel …, out, in).

    Attributes
    ----------
    rows : (..., rows, cols / m) float64 tensor, on the weights' device
        One per row of a block; row-wise, per group.
    columns : (..., rows / m, cols) float64 tensor or None
        One per column of a block; None for row-wise patterns.
    """


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskResult(core.MaskResult[Tensor]):
    """A mask and what is known about it: the attributes of `nmsolve.MaskResult`, with tensors.
    `verify` takes tensors on any device and works on the host.

    Attributes
    ----------
    mask : bool tensor
        Of the weights' shape, on their device. True = keep.
    status, objective, bound, gap, method, stats, pattern, padding, scored
        As in `nmsolve.MaskResult`.
    duals : TensorDuals or None
        Potentials that prove `bound`, if asked for.
    """

    def _on_host(self, weights: Any, scores: Any) -> tuple[core.MaskResult, Any, Any]:
        if not isinstance(self.mask, Tensor) or self.mask.dtype != torch.bool:
            raise SolverError(f"the mask is a {type(self.mask).__name__}, not a bool tensor")
        duals = _checked(self.duals)
        arrays = [
            None
            if tensor is None
            else as_array(as_matrices(check_tensor(tensor, name, f"pattern {self.pattern}")).cpu())
            for tensor, name in ((weights, "weights"), (scores, "scores"))
        ]
        mask = as_matrices(self.mask).cpu().numpy()
        host = core.MaskResult(**_fields(self) | {"mask": mask, "duals": duals})
        return host, arrays[0], arrays[1]


def _checked(duals: object) -> Duals | None:
    """Return the core's duals for those of tensors; SolverError for anything else."""
    if duals is None:
        return None
    rows, columns = (getattr(duals, name, None) for name in ("rows", "columns"))
    if not isinstance(rows, Tensor) or not isinstance(columns, Tensor | None):
        raise SolverError(f"duals {type(duals).__name__} are not TensorDuals of tensors")
    for part in (rows, columns):
        if part is not None and part.dtype != torch.float64:
            raise SolverError(f"duals are float64 tensors, got {part.dtype}")
    return Duals(
        rows=rows.detach().cpu().numpy(),
        columns=None if columns is None else columns.detach().cpu().numpy(),
    )


def with_tensors(
    result: core.MaskResult[Any], mask: Tensor, duals: TensorDuals | None
) -> MaskResult:
    """Return a result of the core with tensors in the place of its arrays."""
    return MaskResult(**_fields(result) | {"mask": mask, "duals": duals})


def _fields(result: core.MaskResult[Any]) -> dict[str, Any]:
    """Return a result's fields by name."""
    return {field.name: getattr(result, field.name) for field in fields(result)}
