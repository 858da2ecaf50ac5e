"""Writes into module.weight of a weight with a mask, brought to the dense weight.

A parametrization computes module.weight again at every use, so that a write into what it gave would
be lost: `.data.copy_`, `.data =`, `clamp_`, nn.init, an adapter that is merged. Everything else
that holds weights treats module.weight as the parameter, so this does too: entries that were
written are set in the dense weight, all others stay as they are.

Once the last handle of a memory is let go it is looked at, and as long as anything else shares the
memory it goes on being looked at; memory.py tells how writes are seen. The path of training, where
layers only multiply by their weights, pays for none of that.
"""

from __future__ import annotations

import sys
import warnings
import weakref

import torch
from torch import Tensor
from torch.utils._python_dispatch import _disable_current_modes

from nmsolve.errors import InputError
from nmsolve.torch.weights.masked_weight import MaskedWeight, handle
from nmsolve.torch.weights.memory import Memory, Observed
from nmsolve.torch.weights.sharding import is_sharded, local


class Written:
    """The memories that were handed out of one weight, and are to be looked at for writes.

    Attributes
    ----------
    path : str
        The weight's path in the model, for errors.
    """

    def __init__(self, path: str) -> None:
        self.path = path
        self._living: list[weakref.ref[_HandedOut]] = []
        self._reachable: list[Memory] = []
        self._observed: list[Observed] = []
        self._problem: str | None = None
        self._closed = False

    def hand_out(self, masked: Tensor, weight: Tensor, mask: Tensor) -> Tensor:
        """Return the masked weight as module.weight gives it, now that what was written before has
        been settled.
        """
        if is_sharded(masked):  # no class can be derived from it
            memory = Memory(local(masked.detach()).detach(), weight, mask)
            memory.expose()
            self._reachable.append(memory)
            return masked
        if (
            type(masked) is not Tensor
            or masked.is_meta
            or torch._C._functorch.is_functorch_wrapped_tensor(masked)
        ):
            return masked  # within a transformation, which has no memory to write to
        handed = _HandedOut(self, Memory(masked, weight, mask))
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

    def take(self, memory: Memory, weight: Tensor | None = None) -> None:
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

    def _look_at(self, observed: Observed, weight: Tensor | None) -> None:
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
        """Return what assigning module.weight sets the dense weight to; what is written to earlier
        ones from now on is late.

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

    def let_go(self, memory: Memory) -> None:
        """Settle a memory, of which the last tensor that was handed out is on its way out."""
        try:
            if memory.may_be_written:
                self.take(memory)
                if memory.is_exposed and memory.is_shared(but_for=1):
                    self._reachable.append(memory)
            elif memory.is_shared(
                but_for=1
            ):  # autograd's view of a weight that a layer has multiplied by, for the most part
                self._observed.append(Observed(memory))
        except Exception as error:  # nobody would see it
            self.report(f"what was written into its weight could not be taken over: {error}")

    def report(self, problem: str) -> None:
        """Note an error, to be raised when the weight is used next."""
        text = f"layer {self.path}: {problem}"
        if self._closed:
            warnings.warn(text, stacklevel=2)
        self._problem = self._problem or text

    def close(self) -> None:
        """Make errors warnings: the mask is taken off, and nothing will ask again."""
        self._closed = True


class _HandedOut:
    """The common origin of all tensors that were handed out of a memory; it goes when the last of
    them does.

    Attributes
    ----------
    written : Written
    memory : Memory
    """

    def __init__(self, written: Written, memory: Memory) -> None:
        self.written = written
        self.memory = memory

    @property
    def weight(self) -> Tensor:
        """The dense weight."""
        return self.memory.weight

    def expose(self) -> None:
        """Prepare for memory to be handed out past the version counter."""
        with (
            _disable_current_modes()
        ):  # compilers look at memory under modes in which there is none
            self.written.take(self.memory)
            self.memory.expose()

    def assign(self, value: Tensor) -> None:
        """Write `.data = value`, where it differs."""
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
