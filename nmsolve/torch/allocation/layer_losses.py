"""What each layer loses with each candidate pattern: `losses`, from exact masks and, if wanted,
calibration inputs.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.table import shortened, table
from nmsolve.torch.allocation.candidates import (
    Candidate,
    Named,
    Table,
    candidates_of,
    name_of,
    number_of,
    row_of,
)
from nmsolve.torch.allocation.multiply_adds import positions_of
from nmsolve.torch.calibration.inputs import Calibration, Item, run
from nmsolve.torch.calibration.layout import layout_of
from nmsolve.torch.calibration.moments import gram_matrices
from nmsolve.torch.running import undisturbed
from nmsolve.torch.training.masked_layer import solve_mask
from nmsolve.torch.weights.entries import Entries
from nmsolve.torch.weights.given_scores import check_scores, scores_for
from nmsolve.torch.weights.planning import LayerPlan, Plan, parameters_of, plan

#: Bytes of Gram matrices that are held at once; more layers than that take further runs over the
#: calibration.
_AT_ONCE = 2**30


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """A candidate for a layer. pattern : None leaves it dense. loss : what the layer loses. kept :
    weights that it keeps.
    """

    pattern: Candidate
    loss: float
    kept: int | None


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerLosses:
    """A weight, and what it loses with each candidate that fits it.

    entry : as planned, without a pattern; where no candidate pattern fits, with the reason. options
    : empty there, and where the weight is another layer's, which has them. positions : how often an
    entry of it is multiplied in a run of the example inputs, over all layers that share it; None
    without example inputs, or where the calibration's first item, in their place, does not reach
    it.
    """

    entry: LayerPlan
    options: tuple[Option, ...]
    positions: float | None = None

    @property
    def path(self) -> str:
        """The weight's path."""
        return self.entry.path


class Losses(Entries[LayerLosses]):
    """One entry a weight with two axes or more, in the model's order, for `allocate` under any
    budget. Prints as a table.

    scores : what the masks maximise instead of |W|, by path; None: |W|.
    """

    def __init__(
        self, layers: Iterable[LayerLosses], scores: Mapping[str, Tensor] | None = None
    ) -> None:
        super().__init__(layers)
        self.scores = scores

    def with_values(self, values: Table) -> Losses:
        """The same layers and candidates with other losses, such as measured ones.

        values : layer path → candidate → loss, for every candidate of every layer that has some;
        "dense" for no pattern.

        Examples
        --------
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
                "×".join(map(str, layer.entry.shape)),
                ", ".join(
                    f"{name_of(option.pattern)} {option.loss:.4g}" for option in layer.options
                )
                or layer.entry.reason
                or f"shares weight and mask with {layer.entry.tied_to}",
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


def losses(
    model: nn.Module,
    candidates: Iterable[Named],
    calibration: Iterable[Item] | None = None,
    example_inputs: Item | None = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    padding: str = "skip",
    scores: Mapping[str, Tensor] | None = None,
) -> Losses:
    r"""What each layer of a model loses with each candidate pattern, by its exact mask. Changes
    nothing.

    .. math:: l = \sum_{ij} S_{ij} (1 - X_{ij}) \quad \text{or} \quad
        l = \lVert A (W - X \circ W)^T \rVert^2 \, / \, \lVert A W^T \rVert^2

    where X is the best mask for the scores S = |W| (or those given), and A what the calibration
    gives to the layer.

    Parameters
    ----------
    model : nn.Module
    candidates : iterable of Pattern, str or None
        "2:4", "4:8T", …; row-wise and transposable, with any n and m. None or "dense" leaves a
        layer as it is, at no loss.
    calibration : iterable of model inputs, optional
        Tensors, lists or tuples of arguments, mappings of keyword arguments. With it losses are
        squared errors of the layer's outputs over all samples, as shares of the outputs without
        their bias, with inputs from the dense model.
    example_inputs : model inputs, optional
        One item; multiply-adds are counted for it, which `FLOPs` budgets need. None: the first of
        the calibration, if there is one.
    include, exclude, padding
        As for `nmsolve.torch.plan`. With padding="skip" a pattern is a candidate only for layers
        whose shape it divides.
    scores : mapping of layer paths to tensors of the weights' shapes, optional
        What masks maximise instead of |W|: from `nmsolve.torch.scores`.

    Returns
    -------
    Losses
        With an entry a weight. Where no pattern fits, it says why.

    Raises
    ------
    PatternError, InputError
        For candidates that are none, as `nmsolve.torch.plan`, for weights, scores or inputs that
        are not finite, naming the layer, for layers that inputs do not reach.

    Notes
    -----
    Sums are in float64. An allocation adds losses up over layers, as if one unit were worth the
    same in each, which neither magnitudes nor output errors promise; `Losses.with_values` takes
    what was measured otherwise. Errors are relative because outputs of different layers have no
    unit in common. A weight that several layers share counts once, while its output errors and its
    multiply-adds add up over them. Calibration takes (columns)² float64 numbers a layer, and as
    many runs of the model as it takes to hold 1 GiB of them at a time.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 3))
    >>> found = losses(model, ["2:4", "2:4T", "dense"])
    >>> [[str(option.pattern) for option in layer.options] for layer in found]
    [['2:4', '2:4T', 'None'], ['2:4', 'None']]
    >>> by_hand = model[0].weight.detach().abs().reshape(-1, 4).sort().values[:, :2].double().sum()
    >>> abs(found[0].options[0].loss - float(by_hand)) < 1e-6
    True
    """
    offered = candidates_of(candidates)
    plans = {
        pattern: plan(model, pattern, include, exclude, padding).layers
        for pattern in offered
        if pattern is not None
    }
    entries, fitting = _fitting(offered, plans)
    planned = [entry for entry in entries if fitting[entry.owner]]
    if not planned:
        names = ", ".join(map(name_of, offered))
        raise InputError(
            f"no candidate of {names} fits any layer of this "
            f"{type(model).__name__}:\n{Plan(entries)}"
        )
    if scores is not None:
        check_scores(planned, scores)
    items = None if calibration is None else Calibration(calibration)
    with undisturbed(model, training=False):
        example = (
            next(iter(items)) if example_inputs is None and items is not None else example_inputs
        )
        by = (
            None if example_inputs is None else "the example inputs"
        )  # not every item need reach every layer
        positions = (
            None
            if example is None
            else positions_of(model, planned, lambda: run(model, example, None if by else 0), by)
        )
        options: dict[str, tuple[Option, ...]] = {}
        for uses in _batches(planned, fitting, None if items is None else model):
            grams = None if items is None else gram_matrices(model, uses, items)
            for owner in dict.fromkeys(use.owner for use in uses):
                sharing = [use for use in uses if use.owner == owner]
                options[owner] = tuple(_options(model, sharing, fitting[owner], scores, grams))
    layers = []
    for entry in entries:
        shared = [use.path for use in planned if use.owner == entry.path]
        times = None if positions is None else sum(positions[path] for path in shared) or None
        layers.append(
            LayerLosses(entry=entry, options=options.get(entry.path, ()), positions=times)
        )
    return Losses(layers, scores)


def _fitting(
    offered: tuple[Candidate, ...], plans: Mapping[Any, tuple[LayerPlan, ...]]
) -> tuple[list[LayerPlan], dict[str, dict[Candidate, LayerPlan]]]:
    """The entries without patterns, and by path of those that own their weight the candidates that
    fit, each as planned.
    """
    entries: list[LayerPlan] = []
    fitting: dict[str, dict[Candidate, LayerPlan]] = {}
    for versions in zip(*plans.values(), strict=True):
        fits = {version.pattern: version for version in versions if version.pattern is not None}
        # Where nothing fits, the first pattern's reason stands for all.
        entry = replace(next(iter(fits.values()), versions[0]), pattern=None)
        entries.append(entry)
        if entry.tied_to is None:
            fitting[entry.path] = (
                {c: fits.get(c, entry) for c in offered if c in fits or c is None} if fits else {}
            )
    return entries, fitting


def _batches(
    planned: list[LayerPlan], fitting: Mapping[str, object], calibrated: nn.Module | None
) -> Iterator[list[LayerPlan]]:
    """The layers, those that share a weight together, in as few parts as the memory for their Gram
    matrices allows.
    """
    batch: list[LayerPlan] = []
    held = 0
    for owner in fitting:
        uses = [entry for entry in planned if entry.owner == owner]
        if calibrated is not None:
            size = 0
            for use in uses:
                layout = layout_of(use, calibrated.get_submodule(use.name))
                rows = use.shape[1 - layout.axis] // layout.parts
                size += (
                    8 * layout.parts * (torch.Size(use.shape).numel() // (rows * layout.parts)) ** 2
                )
            if batch and held + size > _AT_ONCE:
                yield batch
                batch, held = [], 0
            held += size
        batch += uses
    if batch:
        yield batch


def _options(
    model: nn.Module,
    uses: list[LayerPlan],
    fitting: Mapping[Candidate, LayerPlan],
    scores: Mapping[str, Tensor] | None,
    grams: Mapping[str, Tensor] | None,
) -> Iterator[Option]:
    """A weight with each candidate, where `uses` are the layers that have it."""
    owner = uses[0]
    weight = parameters_of(model.get_submodule(owner.name))[owner.parameter].detach()
    given = None if scores is None else scores_for(owner, scores)

    def squared(weight: Tensor, use: LayerPlan) -> float:
        """‖A Wᵀ‖² of the layer's inputs."""
        assert grams is not None
        matrices = layout_of(use, model.get_submodule(use.name)).matrices(weight)
        return max(0.0, float(((matrices @ grams[use.path]) * matrices).sum()))

    whole = {} if grams is None else {use.path: squared(weight.double(), use) for use in uses}
    for candidate, entry in fitting.items():
        if candidate is None:
            yield Option(pattern=None, loss=0.0, kept=weight.numel())
            continue
        mask = solve_mask(entry, weight, given, "exact")
        if grams is None:
            lost = weight.double().abs() if given is None else given.double()
            loss = float(lost.masked_fill(mask, 0).sum())
        else:
            removed = weight.double().masked_fill(mask, 0)
            loss = math.fsum(
                squared(removed, use) / whole[use.path] for use in uses if whole[use.path]
            )
        yield Option(pattern=candidate, loss=loss, kept=int(mask.sum()))
