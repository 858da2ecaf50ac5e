"""The memory of a masked weight that was handed out, and what tells that it was written to.

Tensors share a version counter with their views, which in-place operations advance; as long as
anything else shares the memory its counter is looked at, without keeping that memory. What no
counter sees, memory reached by `.data`, NumPy or a storage, is compared with a copy that is taken
before it is handed out.

What a mask drops reads as zero, so that a zero which is written there looks like no write. Before
anything is written, such entries are therefore made -0.0, which no write of zeros leaves, and bits
are compared.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from nmsolve.torch.weights.sharding import is_sharded, local, placed_like

_DATA: Any = Tensor.data


class Memory:
    """A masked weight that was handed out, with what tells writes into it.

    Attributes
    ----------
    weight : Tensor
        The dense weight.
    is_exposed : bool
        Whether it can be reached past its version counter.
    """

    def __init__(self, tensor: Tensor, weight: Tensor, mask: Tensor) -> None:
        self.weight = weight
        self.is_exposed = False
        self._dense: Tensor | None = (
            None  # the dense weight's values, once module.weight was assigned
        )
        self._tensor = tensor
        self._mask = mask
        self._before: Tensor | None = None  # a copy, once it is exposed
        self._version = tensor._version
        self._state = _state(weight, mask)

    @property
    def tensor(self) -> Tensor:
        """The memory that was handed out, as a plain tensor."""
        return self._tensor

    @property
    def may_be_written(self) -> bool:
        """True if its counter has moved, or can be got round."""
        return self.is_exposed or self._tensor._version != self._version

    @property
    def dense(self) -> Tensor:
        """The dense weight's values that this was computed from, with what was written."""
        if self._dense is None:
            self.settle(self.weight)
            return self.weight.detach()
        return self._dense

    def retire(self) -> None:
        """Keep the dense weight's values, before the weight is assigned."""
        if self._dense is None:
            self._dense = self.dense.clone()

    def is_all_of(self, value: Tensor) -> bool:
        """Return whether a tensor is this memory, as it lies."""
        ours = self._tensor
        return (
            value.data_ptr() == ours.data_ptr()
            and value.shape == ours.shape
            and value.stride() == ours.stride()
        )

    def observe(self) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
        """Return what is still looked at for writes: the tensor, the dense weight, the mask, and
        their state.
        """
        return self._tensor, self.weight, self._mask, self._state

    def restore(self, state: tuple[int, ...]) -> None:
        """Set the state that it was handed out in, since when it has been written to."""
        self._state, self._version = state, -1

    def expose(self) -> None:
        """Prepare for memory to be handed out past its version counter, or to be written to."""
        if self.is_exposed:
            return
        with torch.no_grad():
            memory = self._tensor.detach()
            mask = local(placed_like(self._mask, self.weight))
            _DATA.__get__(memory).masked_fill_(
                ~mask, -0.0
            )  # without a new version: to everyone else it is the same number
            self._before = memory.clone()
        self.is_exposed = True

    def assign(self, value: Tensor) -> None:
        """Write all of it, which is exposed."""
        with torch.no_grad():
            self._tensor.detach().copy_(value.detach())

    def settle(self, weight: Tensor) -> bool:
        """Set what was written in the dense weight, which is `weight` now; False if that holds
        other values since.
        """
        if not self.may_be_written:
            return True
        stale = weight is not self.weight or _state(self.weight, self._mask) != self._state
        with torch.inference_mode(self.weight.is_inference()), torch.no_grad():
            dense, tensor = local(self.weight.detach()), self._tensor.detach()
            if self._before is not None:
                changed = _bits(tensor) != _bits(self._before)
            elif stale:
                changed = torch.ones(
                    (), dtype=torch.bool
                )  # its counter says so; what it was before is not known
            else:
                changed = _bits(tensor) != _bits((dense * self._mask).to(tensor))
            written = bool(changed.any())
            if written and not stale:
                dense.copy_(torch.where(changed, tensor, dense.to(tensor)))
                self._state = _state(self.weight, self._mask)
            if written and self._before is not None:
                self._before = tensor.clone()
        self._version = self._tensor._version
        return not (written and stale)

    def is_shared(self, but_for: int = 0) -> bool:
        """Return whether anything else reaches it, but for a number of tensors."""
        tensors, variables = _references(self._tensor)
        alone, unknown = _references_alone()
        return tensors > alone + but_for or variables > unknown


class Observed:
    """Memory that plain views share still, of which nothing is kept but its version counter."""

    def __init__(self, memory: Memory) -> None:
        tensor, self._weight, self._mask, self._state = memory.observe()
        self._counter = tensor.detach()
        self._version = tensor._version
        self._place = (tensor.storage_offset(), tensor.size(), tensor.stride())
        self._storage = StorageWeakRef(tensor.untyped_storage())
        _DATA.__set__(self._counter, self._counter.new_empty(0))

    @property
    def is_there(self) -> bool:
        """True if anything still holds it."""
        return not self._storage.expired()

    @property
    def is_lost(self) -> bool:
        """True if something was written that cannot be read any more."""
        return self._counter._version != self._version and not self.is_there

    def written(self) -> Memory | None:
        """Return the memory, if something was written into it."""
        if self._counter._version == self._version:
            return None
        storage = torch.UntypedStorage._new_with_weak_ptr(self._storage.cdata)
        if storage is None:
            return None
        memory = Memory(
            self._counter.new_empty(0).set_(storage, *self._place), self._weight, self._mask
        )
        memory.restore(self._state)
        return memory


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bits as integers, which tell 0.0 from -0.0 and a NaN from none."""
    return tensor.view(
        {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    )


def _references(tensor: Tensor) -> tuple[int, int]:
    """The numbers of tensors that share a memory, and of Python variables of its storage."""
    storage = tensor.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)


@cache
def _references_alone() -> tuple[int, int]:
    """The same of a tensor that nothing else knows."""
    return _references(torch.empty(1))


def _state(weight: Tensor, mask: Tensor) -> tuple[int, ...]:
    """Numbers that change when the dense weight or its mask does."""
    version = 0 if weight.is_inference() else weight._version
    return version, 0 if is_sharded(weight) else weight.data_ptr(), id(mask), mask._version
