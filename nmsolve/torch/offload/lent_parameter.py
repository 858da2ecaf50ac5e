"""Parameters whose values are fetched when an operator asks for them, and given back when others
need the room.

An operator of torch that is given one computes with its values: nothing has to be known about where
a model's modules use their weights, and nothing is read before that. What is changed in place goes
home when the room is needed, or with `Lender.settle`.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map_only

from nmsolve.errors import InputError, MissingDependencyError


class Home(Protocol):
    """Where the values of parameters are while nothing is computed with them.

    `names` are those that a model has for a parameter, several where it is tied.
    """

    def read(self, names: Sequence[str]) -> Tensor:
        """Return the values, in memory that is the caller's."""

    def write(self, names: Sequence[str], values: Tensor) -> None:
        """Replace the values."""

    def has_dense(self, names: Sequence[str]) -> bool:
        """Return whether `restore` will bring the present values back once they are replaced.

        Raises
        ------
        InputError
            If they cannot be replaced.
        """

    def restore(self, names: Sequence[str]) -> None:
        """Bring back the values that were there before any was replaced."""


class LentParameter(nn.Parameter):
    """A parameter of shape, dtype and device as its model needs it, whose values a lender has.

    By itself it is not a number everywhere, in the memory of one.

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
        """Run an operator on the values of those that it is given."""
        kwargs = kwargs or {}
        if func in _GRADIENTS and _asked_for(*args[1:], **kwargs):
            raise InputError(
                f"{args[0].known_as[0]} is offloaded, and has no gradient there: train the model "
                "in memory"
            )
        if func == _SET_DATA:
            return args[0].lender.replace(args[0], args[1])
        if func in _OUTSIDE:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        return _on_values(func, args, kwargs)

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        copied = self._plain()
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self._plain().__reduce_ex__(protocol)

    def _plain(self) -> nn.Parameter:
        """A parameter in memory, with the same values."""
        return nn.Parameter(self.detach().clone(), requires_grad=False)


def _on_values(func: Callable[..., Any], args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
    """Run an operator on values of lent parameters; where it gives back what it changed, give the
    parameters.
    """
    taken: dict[int, _Here] = {}
    try:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, LentParameter) and id(leaf) not in taken:
                taken[id(leaf)] = leaf.lender.take(leaf)
        if not taken:
            raise InputError(
                f"{getattr(func, '__name__', func)} is given weights that are offloaded in a "
                "container of its own kind: pass a list or a tuple"
            )
        args, kwargs = tree_map_only(
            LentParameter, lambda lent: taken[id(lent)].values, (args, kwargs)
        )
        found = func(*args, **kwargs)
        owners = {id(here.values): here.parameter for here in taken.values()}
        found = tree_map_only(Tensor, lambda tensor: owners.get(id(tensor), tensor), found)
        for here in taken.values():
            here.exposed |= _is_shared(here.values)
        return found
    finally:
        for here in taken.values():
            here.parameter.lender.leave(here)


def _asked_for(requires_grad: bool = True) -> bool:
    return requires_grad


def _getter(name: str) -> Callable[..., Any]:
    get: Callable[..., Any] = getattr(torch.Tensor, name).__get__
    return get


def _setter(name: str) -> Callable[..., Any]:
    put: Callable[..., Any] = getattr(torch.Tensor, name).__set__
    return put


#: What asks for gradients.
_GRADIENTS = frozenset([_setter("requires_grad"), torch.Tensor.requires_grad_])
_SET_DATA = _setter("data")
#: What a parameter tells of itself, or has, without its values.
_OUTSIDE = frozenset(
    [
        *map(
            _getter,
            (
                *("shape", "dtype", "device", "layout", "ndim", "requires_grad", "grad", "grad_fn"),
                *("is_meta", "is_leaf", "is_cuda", "is_cpu", "is_sparse", "is_quantized"),
                *("is_nested", "itemsize", "nbytes"),
            ),
        ),
        *(_setter("grad"), *_GRADIENTS),
        *(torch.Tensor.size, torch.Tensor.dim, torch.Tensor.numel, torch.Tensor.nelement),
        *(torch.Tensor.element_size, torch.Tensor.is_floating_point, torch.Tensor.is_complex),
        *(torch.Tensor.is_inference, torch.Tensor.__len__),
        *(torch.is_floating_point, torch.is_complex, torch.numel, torch.is_inference),
    ]
)


@dataclass(slots=True, eq=False)
class _Here:
    """Values that are in memory.

    Attributes
    ----------
    parameter : LentParameter
    values : Tensor
    version : int
        Of the values when they were those at home.
    users : int
        Operators that are at work with them.
    exposed : bool
        Whether something else had their memory too, so that they may have changed in spite of their
        version.
    """

    parameter: LentParameter
    values: Tensor
    version: int
    users: int = 0
    exposed: bool = False

    @property
    def size(self) -> int:
        return self.values.numel() * self.values.element_size()


class Lender:
    """Brings values of parameters from their home, and back if they have changed.

    Parameters
    ----------
    home : Home
    room : int
        Bytes of values that are in memory at a time, and a single larger weight; more where
        somebody holds views of them.
    """

    def __init__(self, home: Home, room: int) -> None:
        if not hasattr(torch._C, "_storage_Use_Count"):
            raise MissingDependencyError(
                f"offloading takes torch 2.9, or 2.8 built for CUDA; this is {torch.__version__}"
            )
        self.home = home
        self._room = room
        #: By the parameter's id, the one that was used last at the end.
        self._here: OrderedDict[int, _Here] = OrderedDict()
        self._lock = threading.RLock()

    def lend(self, like: Tensor, names: Sequence[str], device: torch.device) -> LentParameter:
        """Return a parameter in place of one of a model."""
        value = float("nan") if like.is_floating_point() or like.is_complex() else 0
        one = torch.full((), value, dtype=torch.float32, device=device).to(like.dtype)
        parameter = LentParameter(one.expand(tuple(like.shape)), requires_grad=False)
        parameter.lender, parameter.known_as = self, tuple(names)
        return parameter

    def take(self, parameter: LentParameter) -> _Here:
        """Have a parameter's values in memory until `leave`."""
        with self._lock:
            here = self._here.get(id(parameter))
            if here is None:
                self._make_room(parameter.numel() * parameter.element_size())
                values = self._read(parameter)
                here = _Here(parameter, values, values._version)
                self._here[id(parameter)] = here
            self._here.move_to_end(id(parameter))
            here.users += 1
            return here

    def leave(self, here: _Here) -> None:
        """Let values go when their room is needed."""
        with self._lock:
            here.users -= 1

    def replace(self, parameter: LentParameter, values: Tensor) -> None:
        """Have other values, and their memory, from now on.

        Raises
        ------
        InputError
            If they are of another shape, dtype or device.
        """
        if values is parameter:
            return
        for what in ("shape", "dtype", "device"):
            own, other = getattr(parameter, what), getattr(values, what)
            if own != other:
                raise InputError(
                    f"{parameter.known_as[0]} is offloaded, has {what} {own} and is given "
                    f"{other}: convert the model before or after"
                )
        with self._lock:
            here = self.take(parameter)
            here.values, here.version, here.exposed = values.detach(), -1, True
            self.leave(here)

    def settle(self) -> None:
        """Write home what has changed, and hold nothing in memory that nobody else does."""
        with self._lock:
            for key, here in list(self._here.items()):
                self._keep_changes(here)
                if not (here.users or _is_shared(here.values)):
                    del self._here[key]

    def keeps(self, parameter: LentParameter) -> bool:
        """Return whether `restore` will bring back the present values.

        Raises
        ------
        InputError
            If they cannot be replaced.
        """
        with self._lock:
            here = self._here.get(id(parameter))
            if here is not None:
                self._keep_changes(here)
            return self.home.has_dense(parameter.known_as)

    def restore(self, parameter: LentParameter) -> None:
        """Bring back the values that were at home before any was replaced."""
        with self._lock:
            self.home.restore(parameter.known_as)
            here = self._here.get(id(parameter))
            if here is not None:  # views of it that somebody holds get them too
                with torch.no_grad():
                    here.values.copy_(self._read(parameter))
                here.version = here.values._version

    def _read(self, parameter: LentParameter) -> Tensor:
        with torch.inference_mode(False), torch.no_grad():  # to be changed outside of it, too
            return self.home.read(parameter.known_as).to(parameter.device, parameter.dtype)

    def _make_room(self, size: int) -> None:
        """Give back what was used longest ago, until there is room; of weights that are larger than
        all of the room, one stays until others are given back that were used later.
        """
        used = sum(here.size for here in self._here.values() if here.size <= self._room)
        for key, here in list(self._here.items()):
            large = here.size > self._room
            if size > self._room:
                if not large:
                    continue
            elif used + size <= self._room:
                return
            if here.users or _is_shared(here.values):
                continue  # a view of them may be written to later
            self._keep_changes(here)
            del self._here[key]
            used -= 0 if large else here.size

    def _keep_changes(self, here: _Here) -> None:
        """Write values home if they have changed."""
        version, names = here.values._version, here.parameter.known_as
        if here.values.shape != here.parameter.shape:
            raise InputError(
                f"{names[0]} is offloaded, and was changed from shape "
                f"{tuple(here.parameter.shape)} to {tuple(here.values.shape)}: change models in "
                "memory"
            )
        changed = version != here.version
        if not changed and here.exposed:
            changed = not torch.equal(bits(here.values), bits(self._read(here.parameter)))
        if changed:
            self.home.write(names, here.values)
        here.version, here.exposed = version, _is_shared(here.values)


def is_lent(tensor: object) -> bool:
    """Return whether a tensor is a parameter whose values are elsewhere."""
    return isinstance(tensor, LentParameter)


def check_not_lent(model: nn.Module, doing: str) -> None:
    """InputError if values of a model are elsewhere, saying what needs them in memory."""
    for name, parameter in model.named_parameters():
        if is_lent(parameter):
            raise InputError(
                f"{name} is offloaded, and {doing} has to stay in the model: call it after the "
                "block, on a model in memory"
            )


def settle(model: nn.Module) -> None:
    """Write home what has changed of a model's parameters, where they are lent."""
    for lender in {p.lender for p in model.parameters() if isinstance(p, LentParameter)}:
        lender.settle()


def bits(tensor: Tensor) -> Tensor:
    """Return a tensor's bytes: equal where values are NaN, too."""
    return tensor.detach().contiguous().flatten().view(torch.uint8)


def _holders(values: Tensor) -> int:
    """Number of tensors, arrays and such that have the memory of these."""
    count: int = torch._C._storage_Use_Count(values.untyped_storage()._cdata)
    return count


@cache
def _of_its_own() -> int:
    """The number of holders of memory that one tensor has."""
    return _holders(torch.empty(1, device="cpu"))


def _is_shared(values: Tensor) -> bool:
    """Return whether something else has the memory of these."""
    return _holders(values) > _of_its_own()
