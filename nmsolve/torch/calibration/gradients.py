"""Gradients of a model's loss, summed up over the items of a calibration."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.torch.calibration.inputs import Calibration, Item, check_finite, run, run_all
from nmsolve.torch.running import undisturbed

#: From the model and a calibration item, the scalar that gradients are taken of.
Loss = Callable[[nn.Module, Any], Tensor]


def mean_gradients(
    model: nn.Module,
    weights: Mapping[str, Tensor],
    calibration: Calibration,
    loss: Loss | None,
    *,
    squared: bool,
    progress: bool | None,
) -> dict[str, Tensor]:
    r"""Return the mean gradient of each weight over the items, or the mean of its square.

    .. math:: \frac{1}{K} \sum_{k=1}^K \nabla_W \ell_k \quad \text{or} \quad
        \frac{1}{K} \sum_{k=1}^K \left( \nabla_W \ell_k \right)^2

    Parameters
    ----------
    model : nn.Module
        Run in eval mode; left as it was, gradients included.
    weights : mapping of str to Tensor
        Parameters of the model, by layer path.
    calibration : Calibration
        Of K items.
    loss : function of (model, item), or None
        None: an item is called as model inputs, and the output has a `.loss`.
    squared : bool
    progress : bool or None
        A progress bar; None: on a terminal only.

    Returns
    -------
    dict of str to Tensor
        By path, float64, of the weights' shapes; without weights that no item gave a gradient.

    Raises
    ------
    InputError
        If a weight can have no gradients, a gradient or the loss is not finite, or the loss is no
        scalar, naming the layer or the item.
    """
    for path, weight in weights.items():
        if weight.is_inference():
            raise InputError(
                f"layer {path} was made under torch.inference_mode, and can have no gradients"
            )
    sums: dict[str, Tensor] = {}

    def each(item: Item, index: int) -> None:
        with torch.enable_grad():
            # autograd.grad knows no reentrant checkpoints.
            _loss_of(model, item, index, loss).backward()
        for path, weight in weights.items():
            if weight.grad is not None:
                check_finite(weight.grad, f"the gradient of layer {path}", index)
                wide = weight.grad.double()
                term = wide.square() if squared else wide
                sums[path] = sums[path] + term if path in sums else term
        for parameter in model.parameters():
            parameter.grad = None

    with _gradients_aside(model, weights.values()), undisturbed(model, training=False):
        count = run_all(calibration, each, "gradients", progress)
    return {path: total / count for path, total in sums.items()}


@contextmanager
def _gradients_aside(model: nn.Module, weights: Iterable[Tensor]) -> Iterator[None]:
    """Start without gradients, and put back those that were there; weights require theirs
    meanwhile.
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
    """The loss of an item; InputError unless it is a finite scalar with its graph."""
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
