"""Whole checkpoints: pruned on disk, tensor by tensor, without being loaded.

>>> import tempfile, numpy as np, nmsolve.checkpoint
>>> folder = tempfile.TemporaryDirectory()
>>> np.savez(f"{folder.name}/dense.npz", fc=np.random.default_rng(0).standard_normal((16, 32)))
>>> done = nmsolve.checkpoint.prune(f"{folder.name}/dense.npz", f"{folder.name}/sparse.npz", "2:4T")
>>> done.density, nmsolve.checkpoint.verify(f"{folder.name}/sparse.npz", "2:4T").ok
(0.5, True)
>>> nmsolve.checkpoint.open_masks(f"{folder.name}/sparse.npz")["fc"].sum()
np.int64(256)
>>> folder.cleanup()
"""

from nmsolve.checkpoint.masks import Masks, open_masks
from nmsolve.checkpoint.pruning import prune, solve
from nmsolve.checkpoint.reporting import report
from nmsolve.checkpoint.share import Progress
from nmsolve.checkpoint.summary import PruneReport, TensorReport
from nmsolve.checkpoint.verification import TensorCheck, Verification, verify

__all__ = [
    "Masks",
    "Progress",
    "PruneReport",
    "TensorCheck",
    "TensorReport",
    "Verification",
    "open_masks",
    "prune",
    "report",
    "solve",
    "verify",
]


def __dir__() -> list[str]:
    """Return the documented names alone, without the modules that hold them."""
    return __all__
