"""Scores of every weight of a model, for masks to keep more than large magnitudes: by a criterion,
from calibration inputs.

>>> import nmsolve.torch as nmt
>>> model = nn.Linear(8, 4)
>>> found = nmt.scores.activation(model, [torch.randn(16, 8)])
>>> nmt.solve(model.weight, "2:4", found["weight"]).status.value
'optimal'
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.table import extent, shortened, table
from nmsolve.torch.calibration.activations import Use, check_reached, run_watched
from nmsolve.torch.calibration.gradients import Loss, mean_gradients
from nmsolve.torch.calibration.inputs import Calibration, Item, check_finite
from nmsolve.torch.calibration.padding import Padding, Weights
from nmsolve.torch.running import undisturbed
from nmsolve.torch.tensors import check_tensor
from nmsolve.torch.weights.entries import entry_of
from nmsolve.torch.weights.layer_plan import Plan, PlannedWeight
from nmsolve.torch.weights.parameters import parameters_of
from nmsolve.torch.weights.planned import layout_of, planned_modules
from nmsolve.torch.weights.planning import plan as make_plan

__all__ = ["ModelScores", "activation", "fisher", "gradient", "magnitude"]


class ModelScores(Mapping[str, Tensor]):
    """Scores of weights by their paths, each a tensor of the weight's shape. Prints as a table.

    Attributes
    ----------
    criterion : str
        The rule that made them: "magnitude", "activation", "gradient" or "fisher".
    """

    def __init__(self, criterion: str, scores: Mapping[str, Tensor]) -> None:
        self.criterion = criterion
        self._scores = dict(scores)

    def __getitem__(self, path: str) -> Tensor:
        return entry_of(self._scores, path)

    def __iter__(self) -> Iterator[str]:
        return iter(self._scores)

    def __len__(self) -> int:
        return len(self._scores)

    def __str__(self) -> str:
        rows = [
            (
                shortened(path),
                extent(s.shape),
                *(f"{value:.3g}" for value in (s.min(), s.mean(), s.max())),
                "",
            )
            for path, s in self._scores.items()
        ]
        return table(
            ("layer", "shape", "least", "mean", "greatest", self.criterion), rows, {2, 3, 4}
        )

    def __repr__(self) -> str:
        return f"<ModelScores: {self.criterion}, {len(self)} weights>"


def magnitude(
    model: nn.Module,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
) -> ModelScores:
    r"""Score weights by magnitude, as masks do unless given other scores.

    .. math:: S_{ij} = |W_{ij}|

    Parameters
    ----------
    model : nn.Module
    include, exclude : globs of module paths
        As for `nmsolve.torch.plan`.

    Returns
    -------
    ModelScores
        For every weight that `plan` could give a pattern: float32 (float64 for weights in float64),
        of the weight's shape.

    Raises
    ------
    InputError
        If there is no such weight, or one has no values (meta), naming the layer.

    Examples
    --------
    >>> model = nn.Sequential(nn.Linear(8, 4), nn.ReLU(), nn.Linear(4, 2))
    >>> found = magnitude(model)
    >>> list(found), torch.equal(found["2"], model[2].weight.detach().abs())
    (['0', '2'], True)
    """
    plan = _plan(model, include, exclude)
    return ModelScores(
        "magnitude", {entry.path: weight.abs() for entry, weight in _weights(model, plan)}
    )


def activation(
    model: nn.Module,
    calibration: Iterable[Item],
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    weights: Weights | None = None,
    progress: bool | None = None,
) -> ModelScores:
    r"""Score weights by activation (Wanda): magnitudes times the norms of the inputs that they
    multiply.

    .. math:: S_{ij} = |W_{ij}| \, \lVert X_j \rVert_2

    where X_j are the inputs that the weight's column j multiplies, over all tokens but padding (for
    a convolution over all output positions, a column for each input channel and kernel position) of
    all calibration inputs.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode, without gradients; left as it was.
    calibration : iterable of model inputs
        Tensors, or tuples or lists of arguments, or mappings of keyword arguments. Run through
        once, and summed up as it goes: memory does not depend on how many there are.
    include, exclude : globs of module paths
        As for `nmsolve.torch.plan`.
    weights : function, optional
        From an item, a tensor of 1 (or True) for tokens that count and 0 for padding, in the shape
        that layers' inputs have without their last axis; None: all tokens count. By default tokens
        count by the item's `attention_mask` (batch, positions), if it has one. A warning names
        layers whose inputs have another shape: all of theirs count.
    progress : bool, optional
        A progress bar; None: on a terminal only.

    Returns
    -------
    ModelScores
        float32 (float64 for weights in float64).

    Raises
    ------
    InputError
        If the calibration is empty or exhausted, the model fails on it, an input of a layer is not
        finite, or a layer is never reached, naming it; if a mask holds other values than 0 and 1.

    References
    ----------
    Sun et al., A simple and effective pruning approach for large language models, ICLR 2024, Eq. 1.

    Examples
    --------
    >>> model, x = nn.Linear(8, 4), torch.randn(16, 8)
    >>> found = activation(model, [x[:10], x[10:]])
    >>> torch.allclose(found["weight"], model.weight.detach().abs() * x.norm(dim=0))
    True
    """
    plan = _plan(model, include, exclude)
    by_path = {entry.path: entry for entry in plan.planned}
    # By owner: a weight that several layers share has the inputs of all of them.
    squares: dict[str, Tensor] = {}

    def add(path: str, use: Use, item: int) -> None:
        entry = by_path[path]
        for part, x in use.matrices():
            check_finite(x, f"the input of layer {path}", item)
            if entry.owner not in squares:
                squares[entry.owner] = x.new_zeros(
                    layout_of(entry, use.module).parts, x.shape[1], dtype=torch.float64
                )
            squares[entry.owner][part] += x.double().square().sum(0)

    padding = Padding(model, weights)
    items = Calibration(calibration, once=True)
    with undisturbed(model, training=False):
        run_watched(model, plan.planned, items, add, "activations", progress, padding)
    check_reached(plan.planned, squares, "the calibration")
    padding.warn(stacklevel=2)
    scores = {}
    for (entry, weight), module in zip(
        _weights(model, plan), planned_modules(model, plan), strict=True
    ):
        layout = layout_of(entry, module)
        norms = squares[entry.owner].sqrt().unsqueeze(1)
        scores[entry.path] = layout.weight(
            (layout.matrices(weight).abs().double() * norms).to(weight.dtype)
        ).contiguous()
    return ModelScores("activation", scores)


def gradient(
    model: nn.Module,
    calibration: Iterable[Item],
    loss: Loss | None = None,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    progress: bool | None = None,
) -> ModelScores:
    r"""Score weights to first order: by how much the loss changes where a weight is removed.

    .. math:: S_{ij} = |W_{ij} \, \bar g_{ij}|,
        \quad \bar g = \frac{1}{K} \sum_{k=1}^K \nabla_W \ell_k

    Parameters
    ----------
    model : nn.Module
        Run in eval mode; left as it was, gradients included.
    calibration : iterable
        Of K items; run through once, and summed up as it goes.
    loss : function of (model, item), optional
        Returns the scalar loss of an item. None: an item is called as model inputs, and the output
        has a `.loss`, as those of Hugging Face's models do if labels are among the inputs.
    include, exclude, progress
        As for `activation`.

    Returns
    -------
    ModelScores
        float32 (float64 for weights in float64).

    Raises
    ------
    InputError
        As for `activation`; also where the loss is no scalar, is not finite, or a weight has no
        gradient.

    References
    ----------
    Molchanov et al., Pruning convolutional neural networks for resource efficient inference, ICLR
    2017, Eq. 8.

    Examples
    --------
    >>> model, x = nn.Linear(8, 4), torch.randn(16, 8)
    >>> found = gradient(model, [x], lambda model, x: model(x).square().mean())
    >>> found["weight"].shape
    torch.Size([4, 8])
    """
    plan = _plan(model, include, exclude)
    means = _mean_gradients(model, plan, calibration, loss, squared=False, progress=progress)
    return ModelScores(
        "gradient",
        {
            entry.path: (weight.double() * means[entry.path]).abs().to(weight.dtype)
            for entry, weight in _weights(model, plan)
        },
    )


def fisher(
    model: nn.Module,
    calibration: Iterable[Item],
    loss: Loss | None = None,
    *,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    progress: bool | None = None,
) -> ModelScores:
    r"""Score weights to second order, by the diagonal of the empirical Fisher information, which
    stands for the Hessian's.

    .. math:: S_{ij} = \tfrac{1}{2} W_{ij}^2 \, F_{ij},
        \quad F = \frac{1}{K} \sum_{k=1}^K \left( \nabla_W \ell_k \right)^2

    Parameters
    ----------
    model, calibration, loss, include, exclude, progress
        As for `gradient`.

    Returns
    -------
    ModelScores
        float32 (float64 for weights in float64).

    Raises
    ------
    InputError
        As for `gradient`.

    Notes
    -----
    The diagonal is over items: with items of one sample it is the empirical Fisher information,
    with batches that of their mean gradients, which is smaller.

    References
    ----------
    LeCun et al., Optimal brain damage, NeurIPS 1989, Eq. 3; Theis et al., Faster gaze prediction
    with dense networks and Fisher pruning, arXiv:1801.05787, Eq. 7.

    Examples
    --------
    >>> model, x = nn.Linear(8, 4), torch.randn(16, 8)
    >>> found = fisher(model, x.split(1), lambda model, x: model(x).square().mean())
    >>> bool((found["weight"] >= 0).all())
    True
    """
    plan = _plan(model, include, exclude)
    means = _mean_gradients(model, plan, calibration, loss, squared=True, progress=progress)
    return ModelScores(
        "fisher",
        {
            entry.path: (0.5 * weight.double().square() * means[entry.path]).to(weight.dtype)
            for entry, weight in _weights(model, plan)
        },
    )


def _mean_gradients(
    model: nn.Module,
    plan: Plan,
    calibration: Iterable[Item],
    loss: Loss | None,
    *,
    squared: bool,
    progress: bool | None,
) -> dict[str, Tensor]:
    """By path, float64, for every planned weight."""
    weights = {
        entry.path: parameters_of(module)[entry.parameter]
        for entry, module in zip(plan.planned, planned_modules(model, plan), strict=True)
    }
    means = mean_gradients(
        model,
        weights,
        Calibration(calibration, once=True),
        loss,
        squared=squared,
        progress=progress,
    )
    reached = {entry.owner for entry in plan.planned if entry.path in means}
    check_reached(plan.planned, reached, "the calibration")
    return means


def _plan(
    model: nn.Module, include: str | Iterable[str] | None, exclude: str | Iterable[str]
) -> Plan:
    """Every weight with a reduction axis: groups of one always fit."""
    plan = make_plan(model, "1:1", include=include, exclude=exclude)
    if not plan.planned:
        raise InputError(f"there is nothing to score, every weight is skipped:\n{plan}")
    for entry, module in zip(plan.planned, planned_modules(model, plan), strict=True):
        weight = parameters_of(module)[entry.parameter]
        if weight.is_meta:
            check_tensor(weight, f"the weight of layer {entry.path}", "scores")
    return plan


def _weights(model: nn.Module, plan: Plan) -> Iterator[tuple[PlannedWeight, Tensor]]:
    """Entries with their weights, in float32 or wider."""
    for entry, module in zip(plan.planned, planned_modules(model, plan), strict=True):
        weight = parameters_of(module)[entry.parameter].detach()
        yield entry, weight if weight.dtype == torch.float64 else weight.float()
