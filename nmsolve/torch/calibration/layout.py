"""Weights as matrices beside their inputs: parts × rows × columns, so that outputs are inputs times
the transposed part.

A part is what has inputs of its own: a filter group of a convolution, one of the three projections
of packed attention weights; all of every other weight. Columns are runs of input channels, one run
a kernel position: groups are consecutive columns in a run.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor, nn

from nmsolve.pattern import Pattern
from nmsolve.torch.weights.layer_kinds import filter_groups
from nmsolve.torch.weights.planning import LayerPlan


@dataclass(frozen=True, slots=True)
class Layout:
    """How a weight is laid out. parts : how many. run : columns of one kernel position, along which
    groups lie.
    """

    shape: tuple[int, ...]
    axis: int
    parts: int

    @property
    def run(self) -> int:
        """Columns of a kernel position."""
        return self.shape[self.axis]

    def matrices(self, weight: Tensor) -> Tensor:
        """(parts, rows, cols) of a weight, or of a mask or scores of its shape."""
        if self.axis == 0:
            return weight.T.unsqueeze(0)
        flat = weight.flatten(2).transpose(1, 2).flatten(1) if weight.dim() > 2 else weight
        return flat.reshape(self.parts, weight.shape[0] // self.parts, -1)

    def weight(self, matrices: Tensor) -> Tensor:
        """The inverse of `matrices`."""
        if self.axis == 0:
            return matrices[0].T
        flat = matrices.flatten(0, 1)
        if len(self.shape) == 2:
            return flat
        return flat.reshape(self.shape[0], -1, self.shape[1]).transpose(1, 2).reshape(self.shape)


def layout_of(entry: LayerPlan, module: nn.Module) -> Layout:
    """The layout of a planned weight."""
    assert entry.axis is not None
    parts = 3 if entry.parameter == "in_proj_weight" else filter_groups(module)
    return Layout(entry.shape, entry.axis, parts)


def groups_of_run(layout: Layout, pattern: Pattern, padding: str) -> list[tuple[int, int, int]]:
    """(first column, columns, columns kept) of every group of a run; a remainder that is shorter
    than m as `padding` has it.
    """
    run, m = layout.run, pattern.m
    groups = [(start, min(m, run - start)) for start in range(0, run, m)]
    return [
        (
            start,
            size,
            pattern.n if size == m else size if padding == "dense" else min(pattern.n, size),
        )
        for start, size in groups
    ]
