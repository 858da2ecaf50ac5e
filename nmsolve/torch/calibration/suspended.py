"""Forwards that stop at each use of a planned weight and go on when they are told to.

So the calibration goes through a model side by side: all items have come to a layer, it is pruned,
and all go on from there. A model runs once per item, whatever its depth, and nothing is said about
what lies between its layers.

A forward that has stopped is a greenlet: a call stack that another one leaves standing. Greenlets
share what torch and Python keep per thread or process (autocast, modes, filters of warnings); a
model that changes it around a layer cannot be stopped there (`Inseparable`): contexts have to be
left in the order in which they were entered, backwards.
"""

from __future__ import annotations

import contextlib
import contextvars
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from greenlet import GreenletExit, getcurrent, greenlet
from torch import nn
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

from nmsolve.errors import NMSolveError
from nmsolve.torch.calibration.activations import Use


class Inseparable(NMSolveError):
    """A model whose forwards cannot run side by side; says why."""


@dataclass(frozen=True, slots=True)
class Stop:
    """A use of a weight that a forward has stopped at.

    Attributes
    ----------
    path : str
        Of the weight.
    use : Use
        What it is about to be multiplied with.
    """

    path: str
    use: Use


class Forward:
    """The forward of one calibration item.

    Attributes
    ----------
    index : int
        Of the item.
    at : Stop or None
        None before it has begun and after it has ended.
    last : (str, nn.Module) or None
        Path of the weight that it stopped at last, and the module whose call multiplies by it.
    ended : bool
        It is to stop nowhere any more.

    Parameters
    ----------
    body : callable
        Runs the model.
    index : int
    seed : int
        Of the random numbers that it may draw.
    devices : sequence of int
        GPUs whose random numbers it may draw.
    """

    def __init__(
        self, body: Callable[[], Any], index: int, seed: int, devices: Sequence[int] = ()
    ) -> None:
        self._stack = greenlet(body)
        self._stack.gr_context = contextvars.copy_context()
        self._stack.forward = self
        self.index = index
        self.at: Stop | None = None
        self.last: tuple[str, nn.Module] | None = None
        self.ended = False
        self._devices = devices
        self._random = _seeded(seed, devices)

    def advance(self) -> None:
        """Run on to the next stop, or to the end.

        Raises
        ------
        Exception
            Whatever the model raises; `Inseparable` if it cannot be stopped.
        """
        self.at = None
        before, outside = _surroundings(), _random_state(self._devices)
        _set_random_state(self._random, self._devices)
        torch.clear_autocast_cache()  # it holds weights as they were before they were pruned
        try:
            end = self._stack.switch()
            if isinstance(end, GreenletExit):
                raise end  # which ends a greenlet without a word
            if self.at is not None and _surroundings() != before:
                raise Inseparable(
                    f"layer {self.at.path} is called where the model has entered a context of "
                    "torch or of Python (autocast, inference_mode, sdpa_kernel, catch_warnings)"
                )
        finally:
            self._random = _random_state(self._devices)
            _set_random_state(outside, self._devices)

    def end(self) -> None:
        """End the forward where it stands, as if it had been interrupted; what it raises then is
        nobody's concern.
        """
        self.at, self.ended = None, True
        if self._stack:
            with contextlib.suppress(Exception):
                self._stack.throw()


def current_forward() -> Forward | None:
    """Return the forward that calls this; None outside of one."""
    here = getattr(getcurrent(), "forward", None)
    return here if isinstance(here, Forward) else None


def at_a_stop(path: str, use: Use) -> Forward:
    """Return the forward that calls this, from the hook of a layer.

    Raises
    ------
    Inseparable
        If it is none, or cannot be stopped here.
    """
    here = current_forward()
    if here is not None and here.ended:
        raise GreenletExit  # the model goes on after it was ended
    if here is None:
        raise Inseparable(f"layer {path} is called in a thread that the model starts")
    if use.past_module:
        raise Inseparable(f"the weight of layer {path} is multiplied past its module")
    return here


def suspend(forward: Forward, path: str, use: Use) -> None:
    """Stop at a layer until `advance` is called."""
    forward.at, forward.last = Stop(path, use), (path, use.call)
    getcurrent().parent.switch()


def start_random(seed: int, devices: Sequence[int]) -> None:
    """Let random numbers begin as a `Forward` with this seed has them."""
    _set_random_state(_seeded(seed, devices), devices)


def _surroundings() -> tuple[Any, ...]:
    """Settings that contexts change, and that greenlets share."""
    kinds = ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",)
    attention = torch.backends.cuda
    return (
        torch.is_grad_enabled(),
        torch.is_inference_mode_enabled(),
        torch.is_autocast_cache_enabled(),
        *((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds),
        torch._C._is_torch_function_enabled(),
        len(_get_current_function_mode_stack()),
        len(_get_current_dispatch_mode_stack()),
        torch.get_default_dtype(),
        torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(),
        attention.flash_sdp_enabled(),
        attention.mem_efficient_sdp_enabled(),
        attention.math_sdp_enabled(),
        attention.cudnn_sdp_enabled(),
        id(warnings.filters),  # another list inside of catch_warnings
    )


def _seeded(seed: int, devices: Sequence[int]) -> list[torch.Tensor]:
    """The states of random numbers with a seed."""
    kinds = ("cpu", *(f"cuda:{device}" for device in devices))
    return [torch.Generator(kind).manual_seed(seed).get_state() for kind in kinds]


def _random_state(devices: Sequence[int]) -> list[torch.Tensor]:
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state(device) for device in devices)]


def _set_random_state(states: list[torch.Tensor], devices: Sequence[int]) -> None:
    torch.set_rng_state(states[0])
    for state, device in zip(states[1:], devices, strict=True):
        torch.cuda.set_rng_state(state, device)
