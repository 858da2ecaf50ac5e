"""The way of the weights through `solve`: it goes down the files once, and comes back into few.

Counted as the program runs: a profiler sees every call of a function of the package that is handed
the weights, or something that holds their memory (an array, an object with it in a field). A call
into another file than that of the call before is a move; one into a file that was left before is a
return.
"""

import functools
import os
import sys
from dataclasses import fields, is_dataclass

import numpy as np
import pytest

import nmsolve

PACKAGE = os.path.dirname(nmsolve.__file__)


def holds(value, weights, depth=3):
    if isinstance(value, np.ndarray):
        return np.may_share_memory(value, weights)
    if depth == 0:
        return False
    if isinstance(value, (tuple, list)):
        parts = value
    elif isinstance(value, functools.partial):
        parts = value.args
    elif is_dataclass(value) and not isinstance(value, type):
        parts = [getattr(value, field.name) for field in fields(value)]
    else:
        parts = vars(value).values() if hasattr(value, "__dict__") else ()
    return any(holds(part, weights, depth - 1) for part in parts)


def walk(call, weights):
    """The files that functions are of which `call()` hands the weights to, each time it moves."""
    stays = []

    def see(frame, event, argument):
        code = frame.f_code
        if event != "call" or not code.co_filename.startswith(PACKAGE + os.sep):
            return
        names = code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]
        if any(holds(frame.f_locals[name], weights) for name in names if name in frame.f_locals):
            file = os.path.relpath(code.co_filename, PACKAGE)
            if stays[-1:] != [file]:
                stays.append(file)

    before = sys.getprofile()
    sys.setprofile(see)
    try:
        call()
    finally:
        sys.setprofile(before)
    return stays


def returns(stays):
    return [file for place, file in enumerate(stays) if file in stays[:place]]


@pytest.mark.parametrize(("text", "options"), [
    ("2:4", {}),
    ("2:4T", {}),
    ("4:8T", {}),
    ("4:8T", {"method": "greedy"}),
    ("2:4T", {"padding": "pad"}),
    ("4:8T", {"duals": True}),
])  # fmt: skip
def test_the_weights_return_to_few_files(text, options):
    W = np.random.default_rng(0).standard_normal((20, 48)).astype(np.float32)
    W = W if "padding" in options else W[:16]

    def solve():
        nmsolve.solve(W, text, threads=1, **options)

    solve()  # what is compiled or cached is out of the way
    stays = walk(solve, W)
    assert stays[:3] == ["api.py", "validate.py", "elements.py"]
    assert ("certificates.py" in stays) == ("duals" in options)
    assert len(returns(stays)) <= (6 if "duals" in options else 2), " > ".join(stays)


def test_returns_are_counted():
    assert returns(["a", "b", "a", "c", "b", "a"]) == ["a", "b", "a"]
