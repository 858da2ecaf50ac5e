"""Sums over the calibration for a layer: second moments of its inputs, and those of a tenth of the
inputs that nothing is fitted to.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from nmsolve.torch.calibration.activations import Use
from nmsolve.torch.calibration.padding import Padding
from nmsolve.torch.calibration.second_moments import SecondMoments
from nmsolve.torch.pruning.layer_inputs import LayerInputs
from nmsolve.torch.pruning.pruned_layer import PrunedLayer

#: One in so many items that come to a layer is held out; of fewer items, one in so many samples of
#: each, the last ones.
HELD_OUT = 10
#: Rows over columns up to which products with a layer's outputs are fewer than with its inputs.
_FEWER = 0.75


@dataclass(frozen=True, slots=True, kw_only=True)
class Gathering:
    """The inputs and outputs that are gathered.

    Attributes
    ----------
    sequential : bool
        Inputs of a layer are those that the pruned layers before give; else the dense model's.
    targets : {"dense", "own"}
        If sequential, the outputs that a layer is fitted to: the dense layer's for the dense
        model's inputs, or for its own.
    bias : bool
        Moments about the mean will be asked for.
    keep_samples : bool
        Samples too, for updates that draw from them.
    precise : bool
        Multiply in float64.
    padding : Padding
        Rows of inputs that do not count.
    """

    sequential: bool
    targets: str
    bias: bool
    keep_samples: bool
    precise: bool
    padding: Padding


@dataclass(slots=True, kw_only=True)
class Gathered:
    """Sums over the calibration for a layer.

    Attributes
    ----------
    fitted, held_out : SecondMoments
        Of the inputs that weights are fitted to, and of the others.
    samples : list of (int, Tensor, Tensor)
        As in `Problem`; empty unless they are kept.
    """

    fitted: SecondMoments
    held_out: SecondMoments
    samples: list[tuple[int, Tensor, Tensor]] = field(default_factory=list)
    _inputs: dict[tuple[bool, torch.dtype], LayerInputs] = field(default_factory=dict)

    @classmethod
    def nothing(
        cls, layer: PrunedLayer, how: Gathering, *, own: bool, shared: bool = False
    ) -> Gathered:
        """Return sums over no item.

        Parameters
        ----------
        layer : PrunedLayer
        how : Gathering
        own : bool
            Whether the layer's outputs are to be its own, for its own inputs.
        shared : bool
            Whether other layers may be given the same inputs, and take these sums.
        """
        weight = layer.layout.matrices(layer.own if layer.dense is None else layer.dense)
        parts, rows, cols = weight.shape
        by_outputs = not shared and rows <= _FEWER * cols

        def empty() -> SecondMoments:
            return SecondMoments.empty(
                parts,
                cols,
                layer.own.device,
                own=own,
                centred=how.bias,
                precise=how.precise or layer.own.dtype == torch.float64,
                weight=weight if by_outputs else None,
            )

        return cls(fitted=empty(), held_out=empty())

    def inputs(self, *, centred: bool, kind: torch.dtype) -> LayerInputs:
        """Return what problems are solved with, about the means where a bias is fitted along, in
        some dtype; the same for all layers that share these sums.
        """
        if (centred, kind) not in self._inputs:
            self._inputs[centred, kind] = LayerInputs(
                sums=self.fitted,
                held_out_sums=self.held_out,
                about=self.fitted.means if centred else None,
                kind=kind,
            )
        return self._inputs[centred, kind]

    def finish(self) -> Gathered:
        """Complete the sums."""
        self.fitted.finish()
        self.held_out.finish()
        return self

    def add(
        self,
        use: Use,
        dense: Sequence[tuple[int, Tensor]] | None,
        *,
        index: int,
        items: int,
        keep_for: Tensor | None = None,
        again: bool = False,
    ) -> None:
        """Add what an item gives the layer.

        Parameters
        ----------
        use : Use
        dense : sequence of (int, Tensor), or None
            `Use.matrices` of the same item in the dense model; None: the same.
        index, items : int
            Of the item among those that come to the layer, and how many do.
        keep_for : (parts, rows, cols) Tensor, optional
            The dense weight whose samples are kept.
        again : bool
            Whether the sums have these inputs already, and only samples are to be kept.
        """
        # Nothing is held out of a layer (an expert) that no item before has reached.
        turn = items >= HELD_OUT and index % HELD_OUT == HELD_OUT - 1
        out = turn and bool(self.fitted.count.all())
        for at, (part, x) in enumerate(use.matrices()):
            wanted = x
            if dense is not None and at < len(dense) and _belongs(dense[at][1], x):
                wanted = dense[at][1]
            # Without padding, samples have no common length.
            padded = bool(use.rows) and use.rows[part] is not None
            positions = 1 if padded else use.positions_of_sample(part)
            first = len(x)
            if out:
                first = 0
            elif items < HELD_OUT:
                first -= _last_tenth(len(x), positions, keep_for is not None)
            for sums, rows in ((self.fitted, slice(first)), (self.held_out, slice(first, None))):
                piece = x[rows]
                if not again:
                    sums.add(part, piece, piece if wanted is x else wanted[rows])
            if keep_for is not None and first:
                kind = torch.promote_types(x.dtype, torch.float32)
                y = wanted[:first].to(kind) @ keep_for[part].T.to(kind)
                given = x[:first].to(kind).reshape(-1, positions, x.shape[1])
                self.samples.append((part, given, y.reshape(-1, positions, y.shape[1])))


def _last_tenth(rows: int, positions: int, whole_samples: bool) -> int:
    """Rows of an item that are held out: of whole samples, if there are enough."""
    samples = rows // max(1, positions)
    if samples >= HELD_OUT or whole_samples:
        return samples // HELD_OUT * positions
    return rows // HELD_OUT


def _belongs(wanted: Tensor, given: Tensor) -> bool:
    """Return whether inputs of the dense model are those of the same samples.

    A model that routes tokens may route others here once it is pruned. Then their number differs,
    or they are further from these inputs than from zero.
    """
    return wanted.shape == given.shape and bool(
        (wanted - given).float().norm() <= wanted.float().norm()
    )
