"""Layers with a forward of their own: `alters_weight` runs it once, to see whether it multiplies by
the weight as it is, so that the weight's zeros are the product's.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from nmsolve.torch.weights.layer_kinds import base_of, layer_kind

#: Products that take a weight (out, in, …) as their second argument, and those that take matrices.
_WITH_WEIGHT = ("linear", "conv1d", "conv2d", "conv3d")
_OF_MATRICES = ("matmul", "__matmul__", "mm", "bmm")


def alters_weight(module: nn.Module, weight: Tensor) -> str | None:
    """Return why the products of a layer with a forward of its own are not with its weight as it
    is; None if they are, and of layers that run their base's forward.

    Its forward is run once, on tensors without values, and what becomes of the weight is watched.
    """
    kind: Any = parametrize.type_before_parametrizations(module)
    known, base = layer_kind(module), base_of(module)
    own = ("forward", "_conv_forward")
    if (
        known is None
        or known.probe is None
        or all(getattr(kind, name, None) is getattr(base, name, None) for name in own)
    ):
        return None
    probe = kind.__new__(kind)
    probe.__dict__.update(module.__dict__)
    held = {
        name: nn.Parameter(torch.empty_like(p, device="meta"), False)
        for name, p in module._parameters.items()
        if p is not None
    }
    held["weight"] = nn.Parameter(
        torch.empty(weight.shape, dtype=weight.dtype, device="meta"), False
    )
    buffers = {
        name: b if b is None else torch.empty_like(b, device="meta")
        for name, b in module._buffers.items()
    }
    empty = dict.fromkeys(name for name, p in module._parameters.items() if p is None)
    probe.__dict__.update(_parameters=held | empty, _buffers=buffers)
    for given in known.probe(module, weight.dtype):
        watch, failed = _Watch(held["weight"]), ""
        try:
            with torch.no_grad(), watch:
                kind.forward(probe, given)
        except (
            Exception
        ) as error:  # what it wants beside an input is unknown; what was seen until then counts
            failed = type(error).__name__
        if watch.products or watch.computed:
            break
    if failed and not watch.products:
        return (
            f"the forward of {kind.__name__}, and so what it multiplies by, could not be run "
            f"({failed})"
        )
    if watch.computed is not None:
        return (
            f"{kind.__name__} does not multiply by its weight as it is, (out, in, …), but uses "
            f"{watch.computed} on it first"
        )
    return (
        None
        if watch.products
        else f"the forward of {kind.__name__} does not multiply by its weight, as far as can be "
        "seen"
    )


class _Watch(TorchFunctionMode):
    """Follows a weight through views; counts its products, and keeps the name of the first other
    thing that is done with it.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self._weight = weight
        self.products = 0
        self.computed: str | None = None

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if (
            isinstance(out, Tensor)
            and not self._is_weight(out)
            and any(map(self._is_weight, tree_leaves((args, kwargs))))
        ):
            name = getattr(func, "__name__", str(func))
            if self._multiplies(name, args, kwargs or {}):
                self.products += 1
            elif self.computed is None:
                self.computed = name
        return out

    def _is_weight(self, value: Any) -> bool:
        return (
            isinstance(value, Tensor)
            and value.untyped_storage()._cdata == self._weight.untyped_storage()._cdata
        )

    def _multiplies(self, name: str, args: Any, kwargs: Any) -> bool:
        """Return whether this is a product that sums over the weight's input channels."""
        if name in _WITH_WEIGHT:
            given = args[1] if len(args) > 1 else kwargs.get("weight")
            return self._is_weight(given) and (given.shape, given.stride()) == (
                self._weight.shape,
                self._weight.stride(),
            )
        if name in _OF_MATRICES and len(args) == 2 and self._weight.dim() == 2:
            first, second = args
            summed = second.stride(-2) if self._is_weight(second) else first.stride(-1)
            return bool(
                summed == self._weight.stride(1)
                and self._is_weight(first) != self._is_weight(second)
            )
        return False
