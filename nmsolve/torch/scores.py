"""What a mask should keep, beyond magnitudes: scores of every weight of a model, from calibration
inputs.

>>> import nmsolve.torch as nmt
>>> model = nn.Linear(8, 4)
>>> found = nmt.scores.activation(model, [torch.randn(16, 8)])
>>> nmt.solve(model.weight, "2:4", found["weight"]).status.value
'optimal'
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.table import shortened, table
from nmsolve.torch.calibration.activations import Use, run_watched, unreached
from nmsolve.torch.calibration.inputs import Calibration, Item, check_finite, run, run_all
from nmsolve.torch.calibration.layout import layout_of
from nmsolve.torch.running import undisturbed
from nmsolve.torch.tensors import check_tensor
from nmsolve.torch.verification import planned_modules
from nmsolve.torch.weights.entries import entry_of
from nmsolve.torch.weights.planning import LayerPlan, Plan, parameters_of
from nmsolve.torch.weights.planning import plan as make_plan

#: From the model and a calibration item, the scalar that gradients are taken of.
Loss = Callable[[nn.Module, Any], Tensor]


class ModelScores(Mapping[str, Tensor]):
    """Scores of weights by their paths, each a tensor of the weight's shape. Prints as a table.

    criterion : what made them.
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
                "×".join(map(str, s.shape)),
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
    model: nn.Module, include: str | Iterable[str] | None = None, exclude: str | Iterable[str] = ()
) -> ModelScores:
    r"""Magnitudes, which masks maximise unless given other scores.

    .. math:: S_{ij} = |W_{ij}|

    Parameters
    ----------
    model : nn.Module
    include, exclude : globs of module paths
        As for `nmsolve.torch.plan`.

    Returns
    -------
    ModelScores
        For every weight that `plan` could give a pattern.

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
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    progress: bool | None = None,
) -> ModelScores:
    r"""Activation-aware scores (Wanda): magnitudes times the norms of the inputs that they
    multiply.

    .. math:: S_{ij} = |W_{ij}| \, \lVert X_j \rVert_2

    where X_j is what the weight's column j is multiplied by, over all tokens (for a convolution
    over all output positions, a column for each input channel and kernel position) of all
    calibration inputs.

    Parameters
    ----------
    model : nn.Module
        Run in eval mode, without gradients; left as it was.
    calibration : iterable of model inputs
        Tensors, or tuples or lists of arguments, or mappings of keyword arguments. Run through
        once, and summed up as it goes: memory does not depend on how many there are.
    include, exclude : globs of module paths
        As for `nmsolve.torch.plan`.
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
        finite, or a layer is never reached, naming it.

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
    squares: dict[
        str, Tensor
    ] = {}  # by owner: what several layers share has the inputs of all of them

    def add(path: str, use: Use, item: int) -> None:
        entry = by_path[path]
        for part, x in use.matrices():
            check_finite(x, f"the input of layer {path}", item)
            if entry.owner not in squares:
                squares[entry.owner] = x.new_zeros(
                    layout_of(entry, use.module).parts, x.shape[1], dtype=torch.float64
                )
            squares[entry.owner][part] += x.double().square().sum(0)

    with undisturbed(model, training=False):
        run_watched(
            model, plan.planned, Calibration(calibration, once=True), add, "activations", progress
        )
    _check_reached(plan, squares)
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
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    progress: bool | None = None,
) -> ModelScores:
    r"""First-order scores: by how much the loss changes, to first order, where a weight is removed.

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
    return _by_gradients("gradient", model, calibration, loss, include, exclude, progress)


def fisher(
    model: nn.Module,
    calibration: Iterable[Item],
    loss: Loss | None = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    progress: bool | None = None,
) -> ModelScores:
    r"""Second-order scores by the diagonal of the empirical Fisher information, which stands for
    the Hessian's.

    .. math:: S_{ij} = \tfrac{1}{2} W_{ij}^2 \, F_{ij},
        \quad F = \frac{1}{K} \sum_{k=1}^K \left( \nabla_W \ell_k \right)^2

    Parameters, return value and errors as for `gradient`. The diagonal is over items: with items of
    one sample it is the empirical Fisher information, with batches that of their mean gradients,
    which is smaller.

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
    return _by_gradients("fisher", model, calibration, loss, include, exclude, progress)


def _by_gradients(
    criterion: str, model: nn.Module, calibration: Iterable[Item], loss: Loss | None, include: Any,
    exclude: Any,
    progress: bool | None,
) -> ModelScores:  # fmt: skip
    plan = _plan(model, include, exclude)
    entries, modules = plan.planned, planned_modules(model, plan)
    weights = [
        parameters_of(module)[entry.parameter]
        for entry, module in zip(entries, modules, strict=True)
    ]
    made_in_inference = [
        entry.path for entry, weight in zip(entries, weights, strict=True) if weight.is_inference()
    ]
    if made_in_inference:
        raise InputError(
            f"layer {made_in_inference[0]} was made under torch.inference_mode, and can have no "
            "gradients"
        )
    sums: list[Tensor | None] = [None] * len(weights)
    items = Calibration(calibration, once=True)

    def each(item: Item, index: int) -> None:
        with torch.enable_grad():
            _loss_of(model, item, index, loss).backward()  # type: ignore[no-untyped-call]  # autograd.grad knows no reentrant checkpoints
        for i, weight in enumerate(weights):
            if weight.grad is not None:
                check_finite(weight.grad, f"the gradient of layer {entries[i].path}", index)
                term = (
                    weight.grad.double().square() if criterion == "fisher" else weight.grad.double()
                )
                sums[i] = term if sums[i] is None else sums[i] + term  # type: ignore[operator]
        for parameter in model.parameters():
            parameter.grad = None

    with _gradients_aside(model, weights), undisturbed(model, training=False):
        run_all(items, each, "gradients", progress)
    _check_reached(
        plan, {entry.owner for entry, total in zip(entries, sums, strict=True) if total is not None}
    )
    assert items.count is not None
    scores = {}
    for (entry, weight), total in zip(_weights(model, plan), sums, strict=True):
        assert total is not None
        mean, wide = total / items.count, weight.double()
        scores[entry.path] = (
            0.5 * wide.square() * mean if criterion == "fisher" else (wide * mean).abs()
        ).to(weight.dtype)
    return ModelScores(criterion, scores)


@contextmanager
def _gradients_aside(model: nn.Module, weights: Iterable[Tensor]) -> Iterator[None]:
    """Without gradients in the beginning, and with those that were there in the end; weights
    require theirs meanwhile.
    """
    before = [
        (parameter, parameter.grad, parameter.requires_grad) for parameter in model.parameters()
    ]
    try:
        for parameter, *_ in before:
            parameter.grad = None
        for weight in weights:
            weight.requires_grad_(True)
        yield
    finally:
        for parameter, gradient, required in before:
            parameter.grad = gradient
            parameter.requires_grad_(required)


def _loss_of(model: nn.Module, item: Item, index: int, loss: Loss | None) -> Tensor:
    try:
        value = (
            getattr(run(model, item, index), "loss", None) if loss is None else loss(model, item)
        )
    except InputError:
        raise
    except Exception as error:
        raise InputError(
            f"the loss of calibration item {index}, called as loss(model, item), failed: "
            f"{type(error).__name__}: {error}"
        ) from error
    if not isinstance(value, Tensor) or value.numel() != 1 or not value.requires_grad:
        what = (
            f"a tensor of shape {tuple(value.shape)}"
            if isinstance(value, Tensor)
            else f"a {type(value).__name__}"
        )
        if loss is None and value is None:
            raise InputError(
                f"the output of {type(model).__name__} for calibration item {index} has no loss: "
                "pass loss=, a function of (model, item) such as lambda model, item: "
                "F.cross_entropy(model(item[0]), item[1])"
            )
        if isinstance(value, Tensor) and value.numel() == 1:
            what += " without a gradient"
        raise InputError(
            f"the loss of calibration item {index} is {what}: it has to be one number that depends "
            "on the weights"
        )
    check_finite(value.detach(), "the loss", index)
    return value.reshape(())


def _plan(model: nn.Module, include: Any, exclude: Any) -> Plan:
    """Every weight with a reduction axis: groups of one always fit."""
    plan = make_plan(model, "1:1", include, exclude)
    if not plan.planned:
        raise InputError(f"there is nothing to score, every weight is skipped:\n{plan}")
    for entry, module in zip(plan.planned, planned_modules(model, plan), strict=True):
        weight = parameters_of(module)[entry.parameter]
        if weight.is_meta:
            check_tensor(weight, f"the weight of layer {entry.path}", "scores")
    return plan


def _weights(model: nn.Module, plan: Plan) -> Iterator[tuple[LayerPlan, Tensor]]:
    """Entries with their weights, in float32 or wider."""
    for entry, module in zip(plan.planned, planned_modules(model, plan), strict=True):
        weight = parameters_of(module)[entry.parameter].detach()
        yield entry, weight if weight.dtype == torch.float64 else weight.float()


def _check_reached(plan: Plan, found: Iterable[str]) -> None:
    reached = set(found)
    unused = [entry.path for entry in plan.planned if entry.owner not in reached]
    if unused:
        raise InputError(unreached(unused, "the calibration"))
