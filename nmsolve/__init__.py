"""nmsolve finds the best N:M sparsity mask of a weight matrix and proves that it is the best.

>>> import numpy as np, nmsolve
>>> W = np.random.default_rng(0).standard_normal((128, 128), dtype=np.float32)
>>> result = nmsolve.solve(W, "2:4T")
>>> result.status is nmsolve.Status.OPTIMAL
True
>>> result.verify(W).ok
True
"""

from nmsolve import starting as _starting  # noqa: F401  # isort: skip  # Ctrl-C from here on, if this process is the command
from importlib import import_module
from types import ModuleType

from nmsolve.api import methods, solve
from nmsolve.certificates import Duals
from nmsolve.elements import bfloat16
from nmsolve.errors import (
    InputError,
    MissingDependencyError,
    NMSolveError,
    PatternError,
    SolverError,
)
from nmsolve.feasibility import Report, verify
from nmsolve.lbc import combinations, remove_lowest, removed_by, survivor_mask
from nmsolve.mask_diversity import Diversity, diversity
from nmsolve.pattern import Pattern
from nmsolve.result import MaskResult, Status
from nmsolve.version import __version__ as __version__

__all__ = [
    "Diversity",
    "Duals",
    "InputError",
    "MaskResult",
    "MissingDependencyError",
    "NMSolveError",
    "Pattern",
    "PatternError",
    "Report",
    "SolverError",
    "Status",
    "bfloat16",
    "combinations",
    "diversity",
    "methods",
    "remove_lowest",
    "removed_by",
    "solve",
    "survivor_mask",
    "verify",
]


def __getattr__(name: str) -> ModuleType:
    """Load `nmsolve.checkpoint` when it is first used, which needs no import of its own."""
    if name == "checkpoint":
        return import_module("nmsolve.checkpoint")
    raise AttributeError(f"module 'nmsolve' has no attribute {name!r}")


def __dir__() -> list[str]:
    """Return the documented names alone, without the modules that hold them."""
    return __all__
