"""Where the device solvers can be tested on this machine: (device, engine) pairs, and solving on
one of them.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

import nmsolve.torch as nmt
from nmsolve.pattern import Pattern
from nmsolve.torch import masks
from nmsolve.torch.device.engines import engine_named

#: On a CPU Triton's interpreter runs the kernels (conftest.py); with a GPU the compiler does, on
#: the GPU.
PLACES = [pytest.param(("cpu", "torch"), id="plain")]
if torch.cuda.is_available():
    PLACES += [
        pytest.param(("cuda", engine), id=f"cuda-{engine}", marks=pytest.mark.gpu)
        for engine in ("triton", "torch")
    ]
else:
    PLACES.append(pytest.param(("cpu", "triton"), id="interpreter"))
TRITON = PLACES[1]
#: Where blocks that the interpreter is too slow for are solved as a whole.
COMPILED = [place for place in PLACES if place.id != "interpreter"]
on_every_place = pytest.mark.parametrize("place", PLACES)


def tensor(array: np.ndarray, device: str = "cpu") -> Tensor:
    """A NumPy array, of ml_dtypes' bfloat16 too, as a tensor."""
    if array.dtype.name == "bfloat16" or array.dtype.names:
        return (
            torch.from_numpy(np.ascontiguousarray(array).view(np.int16))
            .view(torch.bfloat16)
            .to(device)
        )
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def engine_of(place):
    return engine_named(place[1])


def solve(place, weights, pattern, scores=None, padding="error", duals=False) -> nmt.MaskResult:
    """`nmt.solve` on a device, by a named engine; weights are moved there."""
    weights = weights.to(place[0])
    scores = None if scores is None else scores.to(place[0])
    return masks.solve_on_device(
        weights, scores, Pattern.of(pattern), "exact", None, padding, duals, engine_of(place)
    )
