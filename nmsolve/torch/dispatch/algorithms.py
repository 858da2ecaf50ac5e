"""cuSPARSELt's algorithms: their number for a product, the choice of one, and what a layer
remembers of that.

An algorithm is a kernel with its tiling; 0 is the library's own choice. Which is fastest depends on
the shapes and on the GPU, and the library does not promise that all are right, so they are checked
by value before they are timed (`measuring`).

What was measured is known for one GPU architecture, one version of the library, one dtype and one
number of tokens alone. Everywhere else the layer uses algorithm 0: the same number may be another
kernel there, one that nobody checked or that is refused.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from nmsolve.torch.device.failures import is_lost
from nmsolve.torch.dispatch.availability import Machine
from nmsolve.torch.dispatch.packing import operand, padded

#: No more are tried. cuSPARSELt 0.6.2 has 37.
MOST = 64
#: Algorithm 0 is kept unless another is this much faster: less is within what timings scatter.
MARGIN = 0.02
#: What can be packed; a dtype is remembered as its place here.
_DTYPES = (torch.float16, torch.bfloat16)


class Fastest(NamedTuple):
    """The fastest right algorithms of a layer's products for inputs of one size, and where they
    were found.

    All are numbers, because operators of torch take lists of numbers: see `Memory`.

    Attributes
    ----------
    architecture : int
        90 for compute capability 9.0.
    version : int
        cuSPARSELt's, as `Machine` gives it.
    dtype : int
        Place in (float16, bfloat16).
    tokens : int
        Rows of the input, padded.
    forward, backward : int
        Algorithms of x Wᵀ and of dy W; −1 if not measured.
    """

    architecture: int
    version: int
    dtype: int
    tokens: int
    forward: int
    backward: int


#: What a layer remembers: the fields of any number of `Fastest`, one after another.
Memory = tuple[int, ...]


def offered(values: Tensor, x: Tensor) -> int:
    """Return how many algorithms cuSPARSELt offers for a product: their numbers are 0, 1, … .

    Parameters
    ----------
    values : tensor
        A weight that was packed for "cusparselt", its `.packed`.
    x : (tokens, in_features) tensor
        Inputs as `packed_linear` takes them, of the weight's dtype and device.

    Returns
    -------
    int
        1 where torch has no search for them, or the search fails; at most `MOST`.

    Notes
    -----
    The library tells by searching, which runs its kernels. The winner of its own search is not
    used: it is the fastest of few runs, and was not checked.
    """
    search = getattr(getattr(torch._C, "_cusparselt", None), "mm_search", None)
    if search is None or values.device.type != "cuda":
        return 1
    try:
        *_, count = search(values, operand(x).t(), None, None, None, True)
    except (RuntimeError, TypeError) as error:  # it is not public, and may change
        if is_lost(error, values.device):
            raise
        return 1
    return max(1, min(int(count), MOST))


def sorted_out(
    count: int, wrong: Callable[[int], str | None], device: torch.device
) -> tuple[list[int], dict[int, str]]:
    """Return the right ones of the algorithms 0 … count − 1, and what is wrong with each of the
    others.

    wrong : what is wrong with an algorithm's result, None if it is right. The first that raises, as
    one that the library refuses does, is the last that is tried; but what algorithm 0 raises, and
    what a lost device does, is raised here too.
    """
    right, bad = [], {}
    for algorithm in range(count):
        try:
            reason = wrong(algorithm)
        except RuntimeError as error:
            if algorithm == 0 or is_lost(error, device):
                raise
            break
        if reason is None:
            right.append(algorithm)
        else:
            bad[algorithm] = reason
    return right, bad


def fastest(times_us: Mapping[int, float]) -> int:
    """Return the algorithm to use, from the times of those that are right: 0, unless another is
    faster by more than `MARGIN`.

    Examples
    --------
    >>> fastest({0: 10.0, 1: 9.9, 2: 12.0}), fastest({0: 10.0, 1: 9.9, 2: 8.0})
    (0, 2)
    """
    best = min(times_us, key=lambda algorithm: times_us[algorithm])
    return best if times_us[best] <= (1 - MARGIN) * times_us[0] else 0


def remembered(
    machine: Machine, dtype: torch.dtype, tokens: int, forward: int, backward: int = -1
) -> Memory:
    """Return what a layer remembers of one size of its inputs; memories of several are added."""
    architecture, version = _where(machine)
    return Fastest(architecture, version, _DTYPES.index(dtype), padded(tokens), forward, backward)


def recall(
    memory: Sequence[int], machine: Machine, dtype: torch.dtype, tokens: int, backward: bool = False
) -> int:
    """Return the algorithm to use for a product; 0 where nothing was measured under the same
    circumstances.
    """
    if not memory or dtype not in _DTYPES:
        return 0
    circumstances = (*_where(machine), _DTYPES.index(dtype), padded(tokens))
    for found in _entries(memory):
        if found[:4] == circumstances:
            return max(0, found.backward if backward else found.forward)
    return 0


def named(backend: str, memory: Sequence[int]) -> str:
    """Return a backend and the algorithms that are remembered for it, without repeats:
    "cusparselt/3", or "cutlass" if there are none.

    Examples
    --------
    >>> named("cusparselt", (90, 801, 1, 1024, 3, 0, 90, 801, 1, 4096, 3, 5))
    'cusparselt/3,0,5'
    """
    numbers = dict.fromkeys(
        number
        for found in _entries(memory)
        for number in (found.forward, found.backward)
        if number >= 0
    )
    return backend + "/" * bool(numbers) + ",".join(map(str, numbers))


def _where(machine: Machine) -> tuple[int, int]:
    major, minor = machine.capability or (0, 0)
    return 10 * major + minor, machine.cusparselt or 0


def _entries(memory: Sequence[int]) -> list[Fastest]:
    width = len(Fastest._fields)
    return [Fastest(*memory[i : i + width]) for i in range(0, len(memory), width)]
