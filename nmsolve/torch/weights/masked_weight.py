"""Tensors that module.weight gives of a weight with a mask: like any other, but they
notice when they are written to.

They tell their origin, and written.py brings what was written to the dense weight.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any, NoReturn, Protocol

import torch
from torch import Tensor

from nmsolve.errors import InputError

#: Attributes that reach the memory of a tensor past its version counter.
_RAW = (
    "numpy",
    "__array__",
    "__dlpack__",
    "untyped_storage",
    "storage",
    "_typed_storage",
    "share_memory_",
    "__setitem__",
)
#: Operators that write.
_OPERATORS = (
    "__iadd__",
    "__isub__",
    "__imul__",
    "__itruediv__",
    "__ifloordiv__",
    "__imod__",
    "__ipow__",
)
#: Methods that write: those whose names end in "_", without some that write no values.
_IN_PLACE = tuple(
    name
    for name in dir(Tensor)
    if name.endswith("_")
    and not name.startswith("_")
    and name not in ("requires_grad_", "detach_", "set_", "resize_", "resize_as_")
)
#: Attributes that give views of it.
_VIEWS = (
    "__getitem__", "adjoint", "as_strided", "chunk", "contiguous", "diagonal", "dsplit", "expand",
    "expand_as", "flatten", "hsplit", "movedim", "moveaxis", "narrow", "permute", "ravel",
    "reshape",
    "reshape_as", "select", "split", "split_with_sizes", "squeeze", "swapaxes", "swapdims", "t",
    "tensor_split", "transpose", "unbind", "unflatten", "unfold", "unsafe_chunk", "unsafe_split",
    "unsqueeze",
    "view", "view_as", "vsplit",
)  # fmt: skip
_VIEW_PROPERTIES = ("T", "mT", "H", "mH", "real")
_DATA: Any = Tensor.data
_GRAD: Any = Tensor.grad
_REQUIRES_GRAD: Any = Tensor.requires_grad
_NO_FUNCTION: Any = torch._C._disabled_torch_function_impl


class Origin(Protocol):
    """The origin of a masked weight.

    Attributes
    ----------
    weight : Tensor
        The dense weight.
    """

    @property
    def weight(self) -> Tensor: ...

    def expose(self) -> None:
        """Prepare for its memory to be handed out past its version counter."""

    def assign(self, value: Tensor) -> None:
        """Put other values in its place."""


class MaskedView(Tensor):
    """A view of a masked weight.

    Attributes
    ----------
    origin : Origin
    """

    __torch_function__ = (
        _NO_FUNCTION  # as nn.Parameter: results are plain tensors, and fused paths take it
    )
    origin: Origin

    @property
    def data(self) -> Tensor:
        """The memory, without its version counter."""
        self.origin.expose()
        memory: Tensor = _DATA.__get__(self)
        memory.origin = self.origin  # type: ignore[attr-defined]  # so that it is looked at once both are let go
        return memory

    @data.setter
    def data(self, value: Tensor) -> None:
        _DATA.__set__(self, value)

    def detach(self) -> Tensor:
        """Return the memory, with its version counter, outside of autograd: a plain tensor, as
        nn.Parameter wants it.
        """
        self.origin.expose()
        memory: Tensor = self.as_subclass(Tensor).detach()
        memory.origin = self.origin  # type: ignore[attr-defined]
        return memory

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        copied: Tensor = self.as_subclass(Tensor).__deepcopy__(memo)
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


class MaskedWeight(MaskedView):
    """A masked weight as module.weight gives it: a tensor like any other, for which writing is
    writing to the dense weight.

    `grad`, hooks and what is set of `requires_grad` are those of the dense weight.

    Attributes
    ----------
    origin : Origin
    """

    @property
    def data(self) -> Tensor:
        """The memory, without its version counter."""
        memory: Tensor = MaskedView.data.__get__(self)
        return memory

    @data.setter
    def data(self, value: Tensor) -> None:
        self.origin.assign(value)

    @property
    def grad(self) -> Tensor | None:
        """The dense weight's gradient; the tensor's own, where it was asked to keep one."""
        with warnings.catch_warnings():  # it has none unless it was asked, and torch warns of that
            warnings.simplefilter("ignore")
            own: Tensor | None = _GRAD.__get__(self)
        return self.origin.weight.grad if own is None else own

    @grad.setter
    def grad(self, value: Tensor | None) -> None:
        self.origin.weight.grad = value

    @property
    def requires_grad(self) -> bool:
        """True if gradients are recorded; setting it trains or freezes the dense weight."""
        return bool(_REQUIRES_GRAD.__get__(self))

    @requires_grad.setter
    def requires_grad(self, value: bool) -> None:
        self.origin.weight.requires_grad = value

    def requires_grad_(self, requires_grad: bool = True) -> Tensor:
        """Train the dense weight, or freeze it."""
        self.origin.weight.requires_grad_(requires_grad)
        return self

    def register_hook(self, hook: Callable[[Tensor], Tensor | None]) -> Any:
        """Register a hook on the dense weight's gradient."""
        return self.origin.weight.register_hook(hook)

    def register_post_accumulate_grad_hook(self, hook: Callable[[Tensor], None]) -> Any:
        """Register a hook on the dense weight, for when it has its gradient."""
        return self.origin.weight.register_post_accumulate_grad_hook(hook)

    def set_(self, *_: Any, **__: Any) -> NoReturn:
        """Raise InputError: memory of masked weights is their dense weight's."""
        raise InputError(
            "a masked weight cannot be given other memory: assign module.weight, or take the masks "
            "off first"
        )

    resize_ = set_


def handle(tensor: Tensor, origin: Origin, kind: type[MaskedView]) -> Tensor:
    """Return a tensor as a handle of a kind, with its origin."""
    masked = tensor.as_subclass(kind)
    masked.origin = origin
    return masked


def _as_views(result: Any, origin: Origin) -> Any:
    if isinstance(result, tuple | list):
        return type(result)(_as_views(part, origin) for part in result)
    return handle(result, origin, MaskedView) if type(result) is Tensor else result


def _raw(name: str) -> Callable[..., Any]:
    method = getattr(Tensor, name)

    def exposed(self: MaskedView, *args: Any, **kwargs: Any) -> Any:
        self.origin.expose()
        return method(self, *args, **kwargs)

    return exposed


def _view(name: str) -> Callable[..., Any]:
    method = getattr(Tensor, name)

    def viewed(self: MaskedView, *args: Any, **kwargs: Any) -> Any:
        return _as_views(method(self, *args, **kwargs), self.origin)

    return viewed


def _view_property(name: str) -> property:
    getter = getattr(Tensor, name).__get__
    return property(lambda self: _as_views(getter(self), self.origin))


for _name in (*_RAW, *_OPERATORS, *_IN_PLACE):
    setattr(MaskedView, _name, _raw(_name))
for _name in _VIEWS:
    setattr(MaskedView, _name, _view(_name))
for _name in _VIEW_PROPERTIES:
    setattr(MaskedView, _name, _view_property(_name))
