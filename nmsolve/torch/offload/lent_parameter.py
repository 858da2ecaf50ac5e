"""Parameters whose values are fetched when an operator asks for them, and given back when others
need the room.

An operator of torch that is given one finds its values in memory: nothing has to be known about
where a model's modules use their weights, and nothing is read before that. What is changed in place
goes home when the room is needed, or with `Lender.settle`.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class Home(Protocol):
    """Where the values of parameters are while nothing is computed with them.

    `names` are those that a model has for a parameter, several where it is tied.
    """

    def read(self, names: Sequence[str]) -> Tensor:
        """Return the values, in memory that is the caller's."""

    def write(self, names: Sequence[str], values: Tensor) -> None:
        """Replace the values."""

    def has_dense(self, names: Sequence[str]) -> bool:
        """Return whether `restore` will bring the present values back once they are replaced."""

    def restore(self, names: Sequence[str]) -> None:
        """Bring back the values that were there before any was replaced."""


class LentParameter(nn.Parameter):
    """A parameter of shape, dtype and device as its model needs it, whose values a lender has.

    Without them it is not a number everywhere, in the memory of one.

    Attributes
    ----------
    lender : Lender
    known_as : tuple of str
        In its model.
    """

    lender: Lender
    known_as: tuple[str, ...]

    @classmethod
    def __torch_function__(
        cls,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Fetch the values of those that an operator is given, then run it on plain tensors."""
        kwargs = kwargs or {}
        if func not in _OUTSIDE:
            lent = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, LentParameter)]
            for parameter in lent:
                parameter.lender.fetch(parameter, keep=lent)
            if func is _DATA:
                return lent[0].lender.values_of(lent[0])
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        copied = nn.Parameter(self.detach().clone(), self.requires_grad)
        memo[id(self)] = copied
        return copied


def _getter(name: str) -> Callable[..., Any]:
    get: Callable[..., Any] = getattr(torch.Tensor, name).__get__
    return get


#: What a parameter tells of itself without its values.
_OUTSIDE = frozenset(
    [
        *map(
            _getter,
            (
                *("shape", "dtype", "device", "layout", "ndim", "requires_grad", "grad", "grad_fn"),
                *("is_meta", "is_leaf", "is_cuda", "is_cpu", "is_sparse", "is_quantized"),
                *("is_nested",),
            ),
        ),
        *(torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.nelement),
        *(torch.Tensor.element_size, torch.Tensor.is_floating_point, torch.Tensor.is_complex),
        *(torch.Tensor.is_inference, torch.Tensor.requires_grad_, torch.Tensor.__len__),
        *(torch.is_floating_point, torch.is_complex, torch.numel, torch.is_inference),
    ]
)
_DATA = _getter("data")


class Lender:
    """Brings values of parameters from their home, and back if they have changed.

    Parameters
    ----------
    home : Home
    room : int
        Bytes of values that are in memory at a time; more where a single operator needs more.
    """

    def __init__(self, home: Home, room: int) -> None:
        self.home = home
        self._room = room
        self._size = 0
        #: By id, the one that was used last at the end: the parameter, its values, their versions,
        #: and how many tensors have their memory.
        self._here: OrderedDict[int, tuple[LentParameter, Tensor, tuple[int, int], int]] = (
            OrderedDict()
        )

    def lend(self, like: Tensor, names: Sequence[str], device: torch.device) -> LentParameter:
        """Return a parameter in place of one of a model."""
        parameter = LentParameter(_nothing(like.shape, like.dtype, device), requires_grad=False)
        parameter.lender, parameter.known_as = self, tuple(names)
        return parameter

    def fetch(self, parameter: LentParameter, keep: Sequence[LentParameter] = ()) -> None:
        """Have a parameter's values in memory, and those of `keep` where they are already."""
        if id(parameter) in self._here:
            self._here.move_to_end(id(parameter))
            return
        size = parameter.numel() * parameter.element_size()
        kept = {id(other) for other in keep}
        for key in list(self._here):
            if self._size + size <= self._room:
                break
            if key not in kept:
                self._give_back(key)
        read = self.home.read(parameter.known_as)
        values = read.to(parameter.device, parameter.dtype)
        with torch._C.DisableTorchFunctionSubclass():
            parameter.data = values
        self._size += size
        versions = self._versions(parameter, values)
        self._here[id(parameter)] = parameter, values, versions, _holders(values)

    def values_of(self, parameter: LentParameter) -> Tensor:
        """Return the values of one that was fetched."""
        return self._here[id(parameter)][1]

    def settle(self) -> None:
        """Write home what has changed, and hold nothing in memory that nobody else does."""
        for key in list(self._here):
            self._give_back(key)

    def keeps(self, parameter: LentParameter) -> bool:
        """Return whether `restore` will bring back the present values."""
        found = self._here.get(id(parameter))
        changed = found is not None and self._versions(parameter, found[1]) != found[2]
        return not changed and self.home.has_dense(parameter.known_as)

    def restore(self, parameter: LentParameter) -> None:
        """Bring back the values that were at home before any was replaced."""
        found = self._here.pop(id(parameter), None)
        if found is not None:
            self._forget(parameter)
        self.home.restore(parameter.known_as)

    def _give_back(self, key: int) -> None:
        parameter, values, versions, holders = self._here[key]
        now = self._versions(parameter, values)
        if now != versions:
            self.home.write(parameter.known_as, values)
            self._here[key] = parameter, values, now, holders
        if _holders(values) > holders:
            return  # a view of them may be written to later
        del self._here[key]
        self._forget(parameter)

    def _forget(self, parameter: LentParameter) -> None:
        nothing = _nothing(parameter.shape, parameter.dtype, parameter.device)
        with torch._C.DisableTorchFunctionSubclass():
            parameter.data = nothing
        self._size -= parameter.numel() * parameter.element_size()

    @staticmethod
    def _versions(parameter: LentParameter, values: Tensor) -> tuple[int, int]:
        """Count changes in place: those made through the parameter, and through its `data`."""
        with torch._C.DisableTorchFunctionSubclass():
            return parameter._version, values._version


def is_lent(tensor: object) -> bool:
    """Return whether a tensor is a parameter whose values are elsewhere."""
    return isinstance(tensor, LentParameter)


def settle(model: nn.Module) -> None:
    """Write home what has changed of a model's parameters, where they are lent."""
    for lender in {p.lender for p in model.parameters() if isinstance(p, LentParameter)}:
        lender.settle()


def _nothing(shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A tensor of a shape in the memory of one element: not a number, in dtypes that have that."""
    value = float("nan") if dtype.is_floating_point or dtype.is_complex else 0
    one = torch.zeros((), dtype=dtype, device=device)
    if value:
        one = torch.full((), value, dtype=torch.float32, device=device).to(dtype)
    return one.expand(tuple(shape))


def _holders(values: Tensor) -> int:
    """Number of tensors that share the memory of these."""
    count: int = torch._C._storage_Use_Count(values.untyped_storage()._cdata)
    return count
