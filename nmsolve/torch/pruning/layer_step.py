"""A layer pruned piece by piece: its problems, the solutions that do best on held-out inputs, and
its new weights in place.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.torch.pruning.dense_copies import DenseCopies
from nmsolve.torch.pruning.gathered import Gathered
from nmsolve.torch.pruning.layer_inputs import LayerInputs
from nmsolve.torch.pruning.problem import Errors, Problem, Solution
from nmsolve.torch.pruning.pruned_layer import PrunedLayer
from nmsolve.torch.pruning.reconstruction import LayerReconstruction
from nmsolve.torch.pruning.row_pieces import RowPiece, row_pieces

#: A problem's plain mask; its new weights, from both and the masked weights.
PlainMask = Callable[[Problem], Tensor]
Prune = Callable[[Problem, Tensor, Tensor], Solution]


@dataclass(kw_only=True)
class LayerStep:
    """Prunes one layer after the other.

    Attributes
    ----------
    plain_mask, prune : callables
    bias : bool
        Whether biases are fitted along.
    precise : bool
        Whether to compute in float64.
    copies : DenseCopies
        That keep what is changed.
    layers : list of LayerReconstruction
        Those that are done.
    """

    plain_mask: PlainMask
    prune: Prune
    bias: bool
    precise: bool
    copies: DenseCopies
    layers: list[LayerReconstruction] = field(default_factory=list)

    def __call__(self, layer: PrunedLayer, gathered: Gathered, seconds: float) -> None:
        """Put a layer's new weights in place, and a bias that fits them; without samples, leave
        it as it is.
        """
        if not bool(gathered.fitted.count.all()):
            return
        began = time.perf_counter()
        for sums in (gathered.fitted, gathered.held_out):
            if not sums.in_range(torch.float64):
                raise InputError(
                    f"layer {layer.entry.path}: squares of its inputs leave the range of float64; "
                    "scale the calibration inputs down, or leave the layer out (exclude=…)"
                )
        bias = layer.bias if self.bias else None
        most = max(map(abs, map(float, torch.aminmax(layer.own))))
        narrow = all(
            sums.in_range(torch.float32, most) for sums in (gathered.fitted, gathered.held_out)
        )
        kind = torch.float32 if narrow and not self.precise else torch.float64
        inputs = gathered.inputs(
            centred=bias is not None, kind=torch.promote_types(layer.own.dtype, kind)
        )
        self.copies.keep([layer.own] if bias is None else [layer.own, bias])
        done = [
            self._prune(layer, bias, inputs, gathered, piece)
            for piece in row_pieces(layer.layout, layer.entry.pattern)
        ]
        layer.pruned = True
        before, after = _share(done, "masking"), _share(done, "best")
        self.layers.append(
            LayerReconstruction(
                path=layer.entry.path,
                pattern=layer.entry.pattern,
                shape=layer.entry.shape,
                before=before.fitted,
                after=after.fitted,
                held_out_before=before.held_out,
                held_out_after=after.held_out,
                samples=int(gathered.fitted.count.min()),
                columns=gathered.fitted.gram.shape[-1],
                method=_methods(done),
                iterations=max(one.iterations for one in done),
                residual=max(
                    (one.residual for one in done if one.residual is not None), default=None
                ),
                damping=max(one.damping for one in done),
                seconds=seconds + time.perf_counter() - began,
            )
        )

    def _prune(
        self,
        layer: PrunedLayer,
        bias: Tensor | None,
        inputs: LayerInputs,
        gathered: Gathered,
        piece: RowPiece,
    ) -> _Pruned:
        """Put new weights of some rows in place."""
        dense = piece.of(layer.own if layer.dense is None else layer.dense)
        weight = piece.layout.matrices(dense).to(inputs.kind)
        problem = Problem(
            entry=layer.entry,
            piece=piece,
            weight=weight,
            inputs=inputs,
            samples=_samples_of(gathered.samples, piece),
        )
        mask = self.plain_mask(problem)
        plain = torch.where(mask, weight, 0)
        solution = self.prune(problem, mask, plain)
        new = _no_worse(problem, solution, plain, layer.own.dtype)
        # Masking alone leaves the bias as it is; all errors are shares of the same energy.
        masking = _Way(plain, "masking", None, problem.errors(plain, bias=0.0))
        here = None if bias is None else bias[piece.rows]
        ways = [_fitted(problem, new, solution.method, here)]
        if here is not None:
            ways.append(_fitted(problem, plain, "masking, bias fitted", here))
        best = min([*ways, masking], key=lambda way: way.judged)
        energy = problem.energy  # of the dense weight, which may be a view of the model's
        if here is not None and best.bias is not None:
            here.copy_(best.bias)
        piece.of(layer.own).copy_(piece.layout.weight(best.weight))
        return _Pruned(
            masking=masking.errors,
            best=best.errors,
            energy=energy,
            method=best.method,
            iterations=solution.iterations,
            residual=solution.residual,
            damping=solution.damping,
        )


@dataclass(frozen=True, slots=True)
class _Way:
    """Weights that rows may get, the bias unless it stays as it is, and their errors."""

    weight: Tensor
    method: str
    bias: Tensor | None
    errors: Errors

    @property
    def judged(self) -> float:
        """The error that decides."""
        error = self.errors.judged
        return float("inf") if error != error else error


@dataclass(frozen=True, slots=True, kw_only=True)
class _Pruned:
    """The figures of rows that are done, for the report."""

    masking: Errors
    best: Errors
    energy: Errors
    method: str
    iterations: int
    residual: float | None
    damping: float


def _fitted(problem: Problem, weight: Tensor, method: str, bias: Tensor | None) -> _Way:
    """Weights with the bias that fits them, as the model's dtype holds it."""
    if bias is None:
        return _Way(weight, method, None, problem.errors(weight))
    change = problem.bias_change(weight)
    new = (bias.double() + change.flatten()).to(bias.dtype)
    changed = (new.double() - bias.double()).reshape(change.shape)
    return _Way(weight, method, new, problem.errors(weight, bias=changed))


def _samples_of(
    samples: Sequence[tuple[int, Tensor, Tensor]], piece: RowPiece
) -> list[tuple[int, Tensor, Tensor]]:
    """Samples of a piece's parts, with the outputs of its rows."""
    first, last = piece.parts.start, piece.parts.stop
    return [
        (part - first, x, y[..., piece.within]) for part, x, y in samples if first <= part < last
    ]


def _no_worse(problem: Problem, solution: Solution, plain: Tensor, dtype: torch.dtype) -> Tensor:
    """New weights as the model's dtype holds them, without rows that are worse than masked ones: by
    rounding, or where an update does not go down.
    """
    new = solution.weight.to(dtype).to(solution.weight.dtype)
    before, after = problem.rises(plain), problem.rises(new)
    worse = ~(after <= before)
    if problem.entry.pattern.transposable and not torch.equal(plain != 0, solution.mask):
        worse = (~(after.sum() <= before.sum())).expand_as(worse)  # rows of two masks make no third
    return torch.where(worse.unsqueeze(-1), plain, new) if bool(worse.any()) else new


def _share(pruned: Sequence[_Pruned], errors: str) -> Errors:
    """Errors of all rows, as shares of the energy of all outputs."""
    energy = sum((one.energy for one in pruned), Errors(0.0, 0.0))
    total: Errors = sum((getattr(one, errors) for one in pruned), Errors(0.0, 0.0))
    return total.shares(energy)


def _methods(pruned: Sequence[_Pruned]) -> str:
    """The way to the new weights, for the report; where pieces of rows went several, how many."""
    counts = Counter(one.method for one in pruned)
    if len(counts) == 1:
        return pruned[0].method
    return ", ".join(
        f"{method} ({count} of {len(pruned)} pieces of rows)"
        for method, count in counts.most_common()
    )
