"""`Losses`: the loss of each layer with each candidate pattern."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from nmsolve.table import extent, shortened, table
from nmsolve.torch.allocation.candidates import Candidate, Table, name_of, number_of, row_of
from nmsolve.torch.weights.entries import Entries
from nmsolve.torch.weights.layer_plan import OpenWeight, SkippedWeight, sharing


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A candidate for a layer.

    Attributes
    ----------
    pattern : Pattern or None
        None leaves the layer dense.
    loss : float
        Of the layer.
    kept : int or None
        Weights that it keeps; None where only its path is known, as in a mapping of losses.
    """

    pattern: Candidate
    loss: float
    kept: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLosses:
    """A weight, and its loss with each candidate that fits it.

    Attributes
    ----------
    entry : LayerPlan
        An `OpenWeight`; a `SkippedWeight`, with the reason, where no candidate pattern fits.
    options : tuple of Option
        Empty where none fits, and where the weight is another layer's, which has them.
    positions : float or None
        How often an entry of the weight is multiplied in a run of the example inputs, over all
        layers that share it; None without example inputs, or where the calibration's first item, in
        their place, does not reach it.
    """

    entry: OpenWeight | SkippedWeight
    options: tuple[Option, ...]
    positions: float | None = None

    @property
    def path(self) -> str:
        """The weight's path."""
        return self.entry.path


class Losses(Entries[LayerLosses]):
    """One entry for each weight with two axes or more, in the model's order, for `allocate` under
    any budget. Prints as a table.

    Attributes
    ----------
    layers : tuple of LayerLosses
    scores : mapping of str to Tensor, or None
        Maximised by the masks instead of |W|, by path; None: |W|.
    """

    def __init__(
        self, layers: Iterable[LayerLosses], scores: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(layers)
        self.scores = scores

    def with_values(self, values: Table) -> Losses:
        """Return the same layers and candidates with other losses, such as measured ones.

        Parameters
        ----------
        values : mapping
            Layer path → candidate → loss, for every candidate of every layer that has some; "dense"
            for no pattern.

        Returns
        -------
        Losses

        Raises
        ------
        InputError
            If a layer or a candidate is not in the mapping, or its loss is no finite number.

        Examples
        --------
        >>> from torch import nn
        >>> from nmsolve.torch import losses
        >>> found = losses(nn.Sequential(nn.Linear(8, 4)), ["2:4", "dense"])
        >>> print(found.with_values({"0": {"2:4": 0.25, "dense": 0.0}}))
        layer  kind    shape  losses
        0      Linear  4×8    2:4 0.25, dense 0
        """
        layers = []
        for layer in self.layers:
            row = row_of(values, layer.path, "the mapping of losses") if layer.options else {}
            options = [
                replace(
                    option, loss=number_of(row, layer.path, option.pattern, "the mapping of losses")
                )
                for option in layer.options
            ]
            layers.append(replace(layer, options=tuple(options)))
        return Losses(layers, self.scores)

    def __str__(self) -> str:
        rows = [
            (
                shortened(layer.path),
                layer.entry.kind,
                extent(layer.entry.shape),
                ", ".join(
                    f"{name_of(option.pattern)} {option.loss:.4g}" for option in layer.options
                )
                or layer.entry.reason
                or sharing(layer.entry),
            )
            for layer in self.layers
        ]
        return (
            table(("layer", "kind", "shape", "losses"), rows)
            if rows
            else "no weight with two axes or more"
        )

    def __repr__(self) -> str:
        return (
            f"<Losses: {sum(bool(layer.options) for layer in self)} of {len(self)} weights have "
            "candidates>"
        )
