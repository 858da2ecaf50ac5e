"""Products with weights past their modules: F.linear(x, layer.weight), as in Swin's and BEiT's
attention.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Mapping
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class Products(TorchFunctionMode):
    """While it lasts, F.linear with one of some weights calls seen(path, inputs) before the
    product.

    Parameters
    ----------
    paths : mapping of int to str
        By the weight's id.
    within : container of int
        Ids of the weights whose modules are being called, which see their inputs themselves.
    seen : function of a path and a tensor
    """

    def __init__(
        self, paths: Mapping[int, str], within: Container[int], seen: Callable[[str, Tensor], None]
    ) -> None:
        super().__init__()
        self._paths, self._within, self._seen = paths, within, seen

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Of every operation of torch."""
        kwargs = kwargs or {}
        if func is F.linear:
            given = dict(zip(("input", "weight"), args, strict=False)) | kwargs
            weight = id(given.get("weight"))
            path = self._paths.get(weight)
            if path is not None and weight not in self._within:
                self._seen(path, given["input"])
        return func(*args, **kwargs)
