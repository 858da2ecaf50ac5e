"""Which of a user's optimizers runs the hooks of its steps."""

from __future__ import annotations

from torch.optim import Optimizer

from nmsolve.errors import InputError


def stepping(optimizer: object) -> Optimizer:
    """The optimizer whose step hooks run: the one inside a wrapper of Accelerate or Lightning, else
    the optimizer itself.

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
