"""What `nmsolve.torch.solve` returns: the core's result, with tensors."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from nmsolve import result as core
from nmsolve.certificates import Duals
from nmsolve.errors import SolverError
from nmsolve.feasibility import Report
from nmsolve.torch.tensors import as_array, as_matrices, check_tensor


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorDuals:
    """Potentials of every group or block, float64, on the weights' device; axes as in
    `nmsolve.Duals`.

    Convolution weights (out, in, kernel …) have theirs for the matrices (kernel …, out, in).
    """

    rows: Tensor
    columns: Tensor | None


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class MaskResult(core.MaskResult):
    """A mask and what is known about it; the fields of `nmsolve.MaskResult`, with `mask` a bool
    tensor.

    mask : bool tensor of the weights' shape, on their device. duals : TensorDuals or None.
    """

    mask: Tensor  # type: ignore[assignment]
    duals: TensorDuals | None  # type: ignore[assignment]

    def __str__(self) -> str:
        text = core.MaskResult.__str__(self)
        return text.replace(str(self.mask.shape), str(tuple(self.mask.shape)))

    def verify(self, weights: Tensor, scores: Tensor | None = None) -> Report:  # type: ignore[override]
        """Recompute feasibility, objective and bound from the weights, on the host, trusting
        nothing in this result.

        Parameters, errors and return value as in `nmsolve.MaskResult.verify`, with tensors on any
        device.
        """
        if not isinstance(self.mask, Tensor) or self.mask.dtype != torch.bool:
            raise SolverError(f"the mask is a {type(self.mask).__name__}, not a bool tensor")
        duals = _checked(self.duals)
        arrays = [
            None
            if tensor is None
            else as_array(as_matrices(check_tensor(tensor, name, f"pattern {self.pattern}")).cpu())
            for tensor, name in ((weights, "weights"), (scores, "scores"))
        ]
        result = core.MaskResult(
            **_fields(self) | {"mask": as_matrices(self.mask).cpu().numpy(), "duals": duals}
        )
        given, given_scores = arrays
        assert given is not None
        return result.verify(given, given_scores)


def _checked(duals: object) -> Duals | None:
    """The core's duals for those of tensors; SolverError for anything else."""
    if duals is None:
        return None
    parts = [getattr(duals, name, None) for name in ("rows", "columns")]
    if parts[0] is None or not all(part is None or isinstance(part, Tensor) for part in parts):
        raise SolverError(f"duals {type(duals).__name__} are not TensorDuals of tensors")
    wrong = [part.dtype for part in parts if part is not None and part.dtype != torch.float64]
    if wrong:
        raise SolverError(f"duals are float64 tensors, got {wrong[0]}")
    columns = None if parts[1] is None else parts[1].detach().cpu().numpy()
    return Duals(rows=parts[0].detach().cpu().numpy(), columns=columns)


def with_tensors(result: core.MaskResult, mask: Tensor, duals: TensorDuals | None) -> MaskResult:
    """A result of the core, with tensors in the place of its arrays."""
    return MaskResult(**_fields(result) | {"mask": mask, "duals": duals})


def _fields(result: core.MaskResult) -> dict[str, Any]:
    return {field.name: getattr(result, field.name) for field in fields(result)}
