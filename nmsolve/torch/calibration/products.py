"""Products with weights past their modules: F.linear(x, layer.weight), as in Swin's and BEiT's
attention.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextvars import ContextVar
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

#: Weights, by their ids, of calls of modules that are under way, which see their inputs themselves:
#: of each thread, and of each forward among those that are suspended in such calls.
WITHIN: ContextVar[tuple[int, ...]] = ContextVar("WITHIN", default=())


class Products(TorchFunctionMode):
    """While it lasts, F.linear with one of some weights calls seen(path, inputs, bias) before
    the product.

    Parameters
    ----------
    paths : mapping of int to str
        By the weight's id.
    seen : function of a path, the inputs and the bias
    """

    def __init__(
        self,
        paths: Mapping[int, str],
        seen: Callable[[str, Tensor, Tensor | None], None],
    ) -> None:
        super().__init__()
        self._paths, self._seen = paths, seen

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
            given = dict(zip(("input", "weight", "bias"), args, strict=False)) | kwargs
            weight = id(given.get("weight"))
            path = self._paths.get(weight)
            if path is not None and weight not in WITHIN.get():
                self._seen(path, given["input"], given.get("bias"))
        return func(*args, **kwargs)
