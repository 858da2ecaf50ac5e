"""What was written into module.weight of a weight with a mask, brought to the dense weight.

A parametrization computes module.weight anew at every use, so that a write into what it gave would
be lost: `.data.copy_`, `.data =`, `clamp_`, nn.init, an adapter that is merged. Everything else
that holds weights treats module.weight as the parameter, so this does too: entries that were
written are set in the dense weight, all others stay as they are.

Tensors share a version counter with their views, which in-place operations advance; once the last
handle is let go it is looked at, and as long as anything else shares the memory it goes on being
looked at, without keeping that memory. What no counter sees, memory reached by `.data`, NumPy or a
storage, is compared with a copy that is taken before it is handed out. The path of training, where
layers only multiply by their weights, pays for none of that.

What a mask drops reads as zero, so that a zero which is written there looks like no write. Before
anything is written, such entries are therefore made -0.0, which no write of zeros leaves, and bits
are compared.
"""

from __future__ import annotations

import sys
import warnings
import weakref
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import _disable_current_modes

from nmsolve.errors import InputError
from nmsolve.torch.weights.masked_weight import MaskedWeight, handle
from nmsolve.torch.weights.sharding import is_sharded, local, placed_like

_DATA: Any = Tensor.data


class Written:
    """What has been handed out of one weight, and is to be looked at for writes.

    path : the weight's path in the model, for errors.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._living: list[weakref.ref[_HandedOut]] = []
        self._reachable: list[_Memory] = []
        self._observed: list[_Observed] = []
        self._problem: str | None = None
        self._closed = False

    def hand_out(self, masked: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        """The masked weight as module.weight gives it, now that what was written before has been
        settled.
        """
        if is_sharded(masked):  # no class can be derived from it
            memory = _Memory(local(masked.detach()).detach(), weight, mask)
            memory.expose()
            self._reachable.append(memory)
            return masked
        if (
            type(masked) is not Tensor
            or masked.is_meta
            or torch._C._functorch.is_functorch_wrapped_tensor(masked)
        ):
            return masked  # within a transformation, which has no memory to write to
        handed = _HandedOut(self, _Memory(masked, weight, mask))
        self._living.append(weakref.ref(handed))
        return handle(masked, handed, MaskedWeight)

    def settle(self, weight: Tensor | None = None) -> None:
        """Bring what was written into module.weight to the dense weight, which is `weight` now
        (None: as it was then).

        Raises
        ------
        InputError
            If something was written into values that the dense weight had no longer. It is told
            once.
        """
        if self._living:
            living = [
                (reference, handed)
                for reference in self._living
                if (handed := reference()) is not None
            ]
            self._living = [reference for reference, _ in living]
            for _, handed in living:
                self.take(handed.memory, weight)
        if self._observed:
            observed, self._observed = self._observed, []
            for one in observed:
                self._look_at(one, weight)
        if self._reachable:
            # Forwards of fully_shard work on gathered weights: the shards, which were handed out,
            # are there again at the step.
            plain = weight is not None and not is_sharded(weight)
            waiting = [memory for memory in self._reachable if plain and is_sharded(memory.weight)]
            settled = [memory for memory in self._reachable if memory not in waiting]
            for memory in settled:
                self.take(memory, weight)
            self._reachable = waiting + [memory for memory in settled if memory.is_shared()]
        if self._problem is not None:
            problem, self._problem = self._problem, None
            raise InputError(problem)

    def take(self, memory: _Memory, weight: Tensor | None = None) -> None:
        """Settle one of them; its error is raised when the weight is used next, for it may be found
        where nothing can be raised.
        """
        if not memory.settle(memory.weight if weight is None else weight):
            self.report(
                "something was written into what its weight had given out earlier, after the dense "
                "weight or its mask had changed (a step of the optimizer, a checkpoint that was "
                "loaded, another write), so it was not taken. Read module.weight again before "
                "writing to it"
            )

    def _look_at(self, observed: _Observed, weight: Tensor | None) -> None:
        memory = observed.written()
        if memory is not None:
            self.take(memory, weight)
            memory.expose()
            self._reachable.append(memory)
        elif observed.is_lost:
            self.report(
                "something was written into a view of its weight that is gone since (as "
                "torch.chunk(module.weight, 2) makes them), so it could not be taken. Write to "
                "module.weight itself, or to views that its methods make"
            )
        elif observed.is_there:
            self._observed.append(observed)

    def dense_of(self, value: Tensor) -> Tensor:
        """What assigning module.weight sets the dense weight to; what is written to earlier ones
        from now on is late.

        Assigning what module.weight gave, as torch.func.functional_call does to put a weight back,
        restores the dense weight that it was computed from.
        """
        origin = getattr(value, "origin", None)
        before: Tensor | None = None
        if (
            isinstance(origin, _HandedOut)
            and origin.written is self
            and origin.memory.is_all_of(value)
        ):
            before = origin.memory.dense
        living = [
            handed.memory for reference in self._living if (handed := reference()) is not None
        ]
        for memory in self._reachable + living:
            self.take(memory)
            memory.retire()
        return (value.detach() if before is None else before).clone()

    def let_go(self, memory: _Memory) -> None:
        """The last tensor that was handed out of a memory is on its way out."""
        try:
            if memory.may_be_written:
                self.take(memory)
                if memory.is_exposed and memory.is_shared(but_for=1):
                    self._reachable.append(memory)
            elif memory.is_shared(
                but_for=1
            ):  # autograd's view of a weight that a layer has multiplied by, for the most part
                self._observed.append(_Observed(memory))
        except Exception as error:  # nobody would see it
            self.report(f"what was written into its weight could not be taken over: {error}")

    def report(self, problem: str) -> None:
        """An error to raise when the weight is used next."""
        text = f"layer {self.path}: {problem}"
        if self._closed:
            warnings.warn(text, stacklevel=2)
        self._problem = self._problem or text

    def close(self) -> None:
        """The mask is taken off, and nothing will ask again."""
        self._closed = True


class _Memory:
    """The masked weight that was handed out, and how to tell what was written into it.

    weight : the dense weight. is_exposed : whether it can be reached past its version counter.
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
        """What was handed out, as a plain tensor."""
        return self._tensor

    @property
    def may_be_written(self) -> bool:
        """Whether its counter has moved, or can be got round."""
        return self.is_exposed or self._tensor._version != self._version

    @property
    def dense(self) -> Tensor:
        """The dense weight's values that this was computed from, with what was written."""
        if self._dense is None:
            self.settle(self.weight)
            return self.weight.detach()
        return self._dense

    def retire(self) -> None:
        """The weight is about to be assigned."""
        if self._dense is None:
            self._dense = self.dense.clone()

    def is_all_of(self, value: Tensor) -> bool:
        """Whether a tensor is this memory, as it lies."""
        ours = self._tensor
        return (
            value.data_ptr() == ours.data_ptr()
            and value.shape == ours.shape
            and value.stride() == ours.stride()
        )

    def observe(self) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
        """What goes on being looked at: the tensor, the dense weight, the mask, and how they
        were.
        """
        return self._tensor, self.weight, self._mask, self._state

    def restore(self, state: tuple[int, ...]) -> None:
        """It was handed out in another state, and has been written to since."""
        self._state, self._version = state, -1

    def expose(self) -> None:
        """Before memory is handed out past its version counter, or written to."""
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
        """Whether anything else reaches it, but for a number of tensors."""
        tensors, variables = _references(self._tensor)
        alone, unknown = _references_alone()
        return tensors > alone + but_for or variables > unknown


class _Observed:
    """Memory that plain views share still, of which nothing is kept but its version counter.

    is_there : whether anything still holds it.
    """

    def __init__(self, memory: _Memory) -> None:
        tensor, self._weight, self._mask, self._state = memory.observe()
        self._counter = tensor.detach()
        self._version = tensor._version
        self._place = (tensor.storage_offset(), tensor.size(), tensor.stride())
        self._storage = StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]
        _DATA.__set__(self._counter, self._counter.new_empty(0))

    @property
    def is_there(self) -> bool:
        return not self._storage.expired()  # type: ignore[no-untyped-call]

    @property
    def is_lost(self) -> bool:
        """Whether something was written that cannot be read any more."""
        return self._counter._version != self._version and not self.is_there

    def written(self) -> _Memory | None:
        """The memory, if something was written into it."""
        if self._counter._version == self._version:
            return None
        storage = torch.UntypedStorage._new_with_weak_ptr(self._storage.cdata)
        if storage is None:
            return None
        memory = _Memory(
            self._counter.new_empty(0).set_(storage, *self._place), self._weight, self._mask
        )
        memory.restore(self._state)
        return memory


class _HandedOut:
    """What all tensors that were handed out of a memory refer to, so that it goes when the last of
    them does.
    """

    def __init__(self, written: Written, memory: _Memory) -> None:
        self.written = written
        self.memory = memory

    @property
    def weight(self) -> Tensor:
        """The dense weight."""
        return self.memory.weight

    def expose(self) -> None:
        """Before memory is handed out past the version counter."""
        with (
            _disable_current_modes()
        ):  # compilers look at memory under modes in which there is none
            self.written.take(self.memory)
            self.memory.expose()

    def assign(self, value: Tensor) -> None:
        """`.data = value` on what was handed out: written where it differs."""
        ours = self.memory.tensor
        if not isinstance(value, Tensor) or (value.shape, value.dtype, value.device) != (
            ours.shape,
            ours.dtype,
            ours.device,
        ):
            found = _described(value) if isinstance(value, Tensor) else type(value).__name__
            raise InputError(
                f"layer {self.written.path}: the weight is {_described(ours)}; .data = … was given "
                f"{found}. To put another weight in its place, take the masks off first: "
                "nmt.remove_masks_(model); model.to(…) converts a model with its masks"
            )
        self.expose()
        self.memory.assign(value)
        self.written.take(self.memory)

    def __del__(self) -> None:
        if not sys.is_finalizing():
            self.written.let_go(self.memory)


def _described(tensor: Tensor) -> str:
    return (
        f"{str(tensor.dtype).removeprefix('torch.')} of shape {tuple(tensor.shape)} on "
        f"{tensor.device}"
    )


def _bits(tensor: Tensor) -> Tensor:
    """A tensor's bits as integers, which tell 0.0 from -0.0 and a NaN from none."""
    return tensor.view(
        {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[tensor.element_size()]
    )


def _references(tensor: Tensor) -> tuple[int, int]:
    """How many tensors share a tensor's memory, and how many Python variables its storage."""
    storage = tensor.untyped_storage()
    return torch._C._storage_Use_Count(storage._cdata), sys.getrefcount(storage)


@cache
def _references_alone() -> tuple[int, int]:
    """The same of a tensor that nothing else knows."""
    return _references(torch.empty(1))


def _state(weight: Tensor, mask: Tensor) -> tuple[int, ...]:
    """Changes when the dense weight or its mask does."""
    version = 0 if weight.is_inference() else weight._version
    return version, 0 if is_sharded(weight) else weight.data_ptr(), id(mask), mask._version
