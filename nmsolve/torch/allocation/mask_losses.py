"""`losses`: the loss of each layer with each candidate pattern, from exact masks and, if wanted,
calibration inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.torch.allocation.candidates import Candidate, Named, candidates_of, name_of
from nmsolve.torch.allocation.layer_losses import LayerLosses, Losses, Option
from nmsolve.torch.allocation.multiply_adds import positions_of
from nmsolve.torch.calibration.inputs import Calibration, Item, run
from nmsolve.torch.calibration.moments import gram_matrices
from nmsolve.torch.calibration.padding import Padding, Weights
from nmsolve.torch.running import undisturbed
from nmsolve.torch.weights.given_scores import check_scores, scores_for
from nmsolve.torch.weights.layer_plan import (
    OpenWeight,
    Plan,
    PlannedWeight,
    SkippedWeight,
)
from nmsolve.torch.weights.parameters import parameters_of
from nmsolve.torch.weights.planned import layout_of, solve_mask
from nmsolve.torch.weights.planning import plan

#: Bytes of Gram matrices that are held at once; more layers than that take further runs over the
#: calibration.
_AT_ONCE = 2**30


def losses(
    model: nn.Module,
    candidates: Iterable[Named],
    *,
    calibration: Iterable[Item] | None = None,
    weights: Weights | None = None,
    example_inputs: Item | None = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    padding: str = "skip",
    scores: Mapping[str, Tensor] | None = None,
) -> Losses:
    r"""Measure the loss of each layer of a model with each candidate pattern, by its exact mask.
    Changes nothing.

    .. math:: l = \sum_{ij} S_{ij} (1 - X_{ij}) \quad \text{or} \quad
        l = \lVert A (W - X \circ W)^T \rVert^2 \, / \, \lVert A W^T \rVert^2

    where X is the best mask for the scores S = |W| (or those given), and A the layer's inputs over
    the calibration.

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
    weights : function, optional
        From an item, which of its positions count, as for `nmsolve.torch.scores.activation`; by
        default its `attention_mask` tells.
    example_inputs : model inputs, optional
        One item; multiply-adds are counted for it, which `FLOPs` budgets need. None: the first of
        the calibration, if there is one.
    include, exclude, padding
        As for `nmsolve.torch.plan`. With padding="skip" a pattern is a candidate only for layers
        whose shape it divides.
    scores : mapping of layer paths to tensors of the weights' shapes, optional
        Maximised by the masks instead of |W|: from `nmsolve.torch.scores`.

    Returns
    -------
    Losses
        With an entry for each weight. Where no pattern fits, it says why.

    Raises
    ------
    PatternError, InputError
        For candidates that are no patterns; as `nmsolve.torch.plan`; for weights, scores or inputs
        that are not finite, naming the layer; for layers that inputs do not reach.

    Notes
    -----
    Sums are in float64. An allocation adds losses up over layers, as if one unit were worth the
    same in each, which neither magnitudes nor output errors promise; `Losses.with_values` takes
    losses that were measured otherwise. Errors are relative because outputs of different layers
    have no unit in common. A weight that several layers share counts once, while its output errors
    and its multiply-adds add up over them. Calibration takes (columns)² float64 numbers per layer,
    and as many runs of the model as it takes to hold 1 GiB of them at a time.

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
        pattern: plan(model, pattern, include=include, exclude=exclude, padding=padding)
        for pattern in offered
        if pattern is not None
    }
    entries, fitting = _fitting(plans)
    if not fitting:
        names = ", ".join(map(name_of, offered))
        raise InputError(
            f"no candidate of {names} fits any layer of this "
            f"{type(model).__name__}:\n{Plan(entries)}"
        )
    # Which of its patterns a weight has makes no difference to its scores and inputs.
    planned = [next(iter(fits.values())) for fits in fitting.values()]
    if scores is not None:
        check_scores(planned, scores)
    items = None if calibration is None else Calibration(calibration)
    if items is None and weights is not None:
        raise InputError("weights tell which positions of the calibration count: pass calibration=")
    counting = Padding(model, weights)
    with undisturbed(model, training=False):
        example = (
            next(iter(items)) if example_inputs is None and items is not None else example_inputs
        )
        # Not every item of a calibration need reach every layer.
        by = None if example_inputs is None else "the example inputs"
        positions = (
            None
            if example is None
            else positions_of(model, planned, lambda: run(model, example, None if by else 0), by)
        )
        options: dict[str, tuple[Option, ...]] = {}
        for batch in _batches(planned, None if items is None else model):
            grams = None if items is None else gram_matrices(model, batch, items, counting)
            for owner in dict.fromkeys(weight.owner for weight in batch):
                sharing = [weight for weight in batch if weight.owner == owner]
                options[owner] = tuple(
                    _options(model, sharing, offered, fitting[owner], scores, grams)
                )
    counting.warn(stacklevel=2)
    layers = []
    for entry in entries:
        shared = [weight.path for weight in planned if weight.owner == entry.path]
        times = None if positions is None else sum(positions[path] for path in shared) or None
        layers.append(
            LayerLosses(entry=entry, options=options.get(entry.path, ()), positions=times)
        )
    return Losses(layers, scores)


def _fitting(
    plans: Mapping[Pattern, Plan],
) -> tuple[list[OpenWeight | SkippedWeight], dict[str, dict[Pattern, PlannedWeight]]]:
    """The entries without patterns; and by path, for weights that some pattern fits, each of these
    as planned.
    """
    entries: list[OpenWeight | SkippedWeight] = []
    fitting: dict[str, dict[Pattern, PlannedWeight]] = {}
    for versions in zip(*plans.values(), strict=True):
        fits = {
            version.pattern: version for version in versions if isinstance(version, PlannedWeight)
        }
        if fits:
            first = next(iter(fits.values()))
            entries.append(first.opened())
            fitting[first.path] = fits
        else:  # the first pattern's reason stands for all
            entries.append(next(entry for entry in versions if isinstance(entry, SkippedWeight)))
    return entries, fitting


def _batches(
    weights: Sequence[PlannedWeight], calibrated: nn.Module | None
) -> Iterator[list[PlannedWeight]]:
    """The weights, layers that share one together, in as few parts as the memory for their Gram
    matrices allows.
    """
    batch: list[PlannedWeight] = []
    held = 0
    for owner in dict.fromkeys(weight.owner for weight in weights):
        sharing = [weight for weight in weights if weight.owner == owner]
        if calibrated is not None:
            size = 0
            for weight in sharing:
                layout = layout_of(weight, calibrated.get_submodule(weight.name))
                columns = math.prod(weight.shape) // (layout.parts * layout.part_rows)
                size += 8 * layout.parts * columns**2
            if batch and held + size > _AT_ONCE:
                yield batch
                batch, held = [], 0
            held += size
        batch += sharing
    if batch:
        yield batch


def _options(
    model: nn.Module,
    sharing: Sequence[PlannedWeight],
    offered: Sequence[Candidate],
    fits: Mapping[Pattern, PlannedWeight],
    scores: Mapping[str, Tensor] | None,
    grams: Mapping[str, Tensor] | None,
) -> Iterator[Option]:
    """A weight with each candidate that fits; `sharing` are the layers that have the weight."""
    owner = sharing[0]
    weight = parameters_of(model.get_submodule(owner.name))[owner.parameter].detach()
    given = None if scores is None else scores_for(owner, scores)
    loss_of = (
        _lost_scores(weight, given)
        if grams is None
        else _lost_outputs(model, sharing, weight.double(), grams)
    )
    for candidate in offered:
        if candidate is None:
            yield Option(pattern=None, loss=0.0, kept=weight.numel())
        elif candidate in fits:
            mask = solve_mask(fits[candidate], weight, given, "exact")
            yield Option(pattern=candidate, loss=loss_of(mask), kept=int(mask.sum()))


def _lost_scores(weight: Tensor, scores: Tensor | None) -> Callable[[Tensor], float]:
    """The scores of the entries that a mask drops."""
    worth = weight.double().abs() if scores is None else scores.double()
    return lambda mask: float(worth.masked_fill(mask, 0).sum())


def _lost_outputs(
    model: nn.Module,
    sharing: Sequence[PlannedWeight],
    weight: Tensor,
    grams: Mapping[str, Tensor],
) -> Callable[[Tensor], float]:
    """The squared error of the outputs under a mask, as a share of them, over the layers that share
    a weight.
    """

    def squared(weight: Tensor, entry: PlannedWeight) -> float:
        """‖A Wᵀ‖² of the layer's inputs."""
        matrices = layout_of(entry, model.get_submodule(entry.name)).matrices(weight)
        return max(0.0, float(((matrices @ grams[entry.path]) * matrices).sum()))

    whole = {entry.path: squared(weight, entry) for entry in sharing}

    def lost(mask: Tensor) -> float:
        removed = weight.masked_fill(mask, 0)
        return math.fsum(
            squared(removed, entry) / whole[entry.path] for entry in sharing if whole[entry.path]
        )

    return lost
