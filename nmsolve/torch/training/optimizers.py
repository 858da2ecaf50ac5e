"""A user's optimizers: which of them runs the hooks of its steps, and which holds which layer."""

from __future__ import annotations

from collections.abc import Sequence

from torch.optim import Optimizer

from nmsolve.errors import InputError
from nmsolve.torch.training.masked_layer import MaskedLayer


def hooked(optimizer: object) -> Optimizer:
    """Return the optimizer whose step hooks run: the one inside a wrapper of Accelerate or
    Lightning, else the optimizer itself.

    Raises
    ------
    InputError
        If it is no torch optimizer, or one that never called Optimizer.__init__, which is what
        makes hooks run: they would be kept and never called. Such wrappers (timm's Lookahead) hold
        the optimizer that steps, which is named.
    """
    raw = getattr(optimizer, "optimizer", optimizer)
    if not isinstance(raw, Optimizer):
        raise InputError(f"attach takes torch optimizers, got {type(raw).__name__}")
    if not getattr(type(raw).step, "hooked", False):
        inner = next(
            (name for name, value in vars(raw).items() if isinstance(value, Optimizer)), None
        )
        remedy = (
            "attach the optimizer that it wraps"
            if inner is None
            else f"attach the optimizer inside: sparse.attach(optimizer.{inner})"
        )
        raise InputError(
            f"the {type(raw).__name__} did not call torch.optim.Optimizer.__init__, so that no "
            f"hook of its steps would ever run: {remedy}"
        )
    return raw


def share_out(
    layers: Sequence[MaskedLayer], optimizers: Sequence[Optimizer], *, frozen: bool
) -> tuple[list[list[MaskedLayer]], list[MaskedLayer]]:
    """Return the layers that each optimizer holds the weights of, and those that none holds.

    Parameters
    ----------
    layers : sequence of MaskedLayer
    optimizers : sequence of Optimizer
    frozen : bool
        Whether a frozen layer (requires_grad=False) may be one that none holds.

    Raises
    ------
    InputError
        If several optimizers hold a layer, or none holds one that needs one.
    """
    held: list[list[MaskedLayer]] = [[] for _ in optimizers]
    owners = [
        {id(p) for group in optimizer.param_groups for p in group["params"]}
        for optimizer in optimizers
    ]
    lost, waiting = [], []
    for layer in layers:
        holding = [i for i, owned in enumerate(owners) if id(layer.parameter) in owned]
        if len({id(optimizers[i]) for i in holding}) > 1:
            raise InputError(
                f"the weight of layer {layer.path} is in several of these optimizers: attach "
                "those that hold it once"
            )
        if holding:
            held[holding[0]].append(layer)
        elif frozen and not layer.parameter.requires_grad:
            waiting.append(layer)
        else:
            lost.append(layer.path)
    if lost:
        names = " and ".join(type(optimizer).__name__ for optimizer in optimizers)
        more = f" and {len(lost) - 5} more layers" if len(lost) > 5 else ""
        remedy = ", or freeze them with requires_grad_(False)" if frozen else ""
        raise InputError(
            f"the {names} does not hold the weight of {', '.join(lost[:5])}{more}: make it "
            "from the parameters of this model (after fully_shard, if the model is sharded), "
            f"or leave the layers out of the plan{remedy}"
        )
    return held, waiting
