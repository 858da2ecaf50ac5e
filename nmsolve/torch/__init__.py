"""The PyTorch layer: masks of tensors, training with them, and 2:4 matrix products on sparse tensor
cores.

>>> import nmsolve.torch as nmt

Needs nmsolve[torch].
"""

from importlib import import_module
from typing import TYPE_CHECKING

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    from nmsolve.errors import MissingDependencyError

    raise MissingDependencyError(
        "nmsolve.torch needs PyTorch 2.8 or later: pip install 'nmsolve[torch]'"
    ) from _error

from nmsolve.torch import scores
from nmsolve.torch.allocation.allocated import Allocation
from nmsolve.torch.allocation.budget import FLOPs, Latency, Params
from nmsolve.torch.allocation.domino import domino_search
from nmsolve.torch.allocation.exact import allocate
from nmsolve.torch.allocation.layer_losses import LayerLosses, Losses, Option
from nmsolve.torch.allocation.mask_losses import losses
from nmsolve.torch.allocation.search import Drop, Search
from nmsolve.torch.dispatch.accelerate import accelerate_
from nmsolve.torch.dispatch.availability import backends
from nmsolve.torch.dispatch.masked_product import masked_linear
from nmsolve.torch.dispatch.packed_linear import PackedLinear
from nmsolve.torch.dispatch.packing import pack, unpack
from nmsolve.torch.dispatch.sparse_linear import SparseLinear
from nmsolve.torch.language import Perplexity, perplexity
from nmsolve.torch.masks import solve
from nmsolve.torch.offload.context import offloaded
from nmsolve.torch.pruning.adam import Adam
from nmsolve.torch.pruning.adaprune import adaprune_
from nmsolve.torch.pruning.least_squares import LeastSquares
from nmsolve.torch.pruning.matching import matching_plan
from nmsolve.torch.pruning.one_shot import mask_
from nmsolve.torch.pruning.reconstruction import LayerReconstruction, Reconstruction
from nmsolve.torch.pruning.sparsegpt import sparsegpt_
from nmsolve.torch.result import MaskResult, TensorDuals
from nmsolve.torch.scores import ModelScores
from nmsolve.torch.training.lbc import LBC
from nmsolve.torch.training.method import Method
from nmsolve.torch.training.removal import remove_masks_
from nmsolve.torch.training.solved_methods import SRSTE, STE, Fixed
from nmsolve.torch.training.sparse_model import SparseModel
from nmsolve.torch.training.sparsify import sparsify_
from nmsolve.torch.training.stats import LayerStats, Stats
from nmsolve.torch.verification import ModelReport, verify
from nmsolve.torch.weights.layer_plan import LayerPlan, Plan
from nmsolve.torch.weights.planning import plan

if TYPE_CHECKING:
    from nmsolve.torch.training.hugging_face import TrainerCallback
    from nmsolve.torch.training.lightning import LightningCallback

__all__ = [
    "LBC",
    "SRSTE",
    "STE",
    "Adam",
    "Allocation",
    "Drop",
    "FLOPs",
    "Fixed",
    "Latency",
    "LayerLosses",
    "LayerPlan",
    "LayerReconstruction",
    "LayerStats",
    "LeastSquares",
    "LightningCallback",
    "Losses",
    "MaskResult",
    "Method",
    "ModelReport",
    "ModelScores",
    "Option",
    "PackedLinear",
    "Params",
    "Perplexity",
    "Plan",
    "Reconstruction",
    "Search",
    "SparseLinear",
    "SparseModel",
    "Stats",
    "TensorDuals",
    "TrainerCallback",
    "accelerate_",
    "adaprune_",
    "allocate",
    "backends",
    "domino_search",
    "losses",
    "mask_",
    "masked_linear",
    "matching_plan",
    "offloaded",
    "pack",
    "perplexity",
    "plan",
    "remove_masks_",
    "scores",
    "solve",
    "sparsegpt_",
    "sparsify_",
    "unpack",
    "verify",
]

#: Imported when asked for: each needs a library of its own.
_CALLBACKS = {"TrainerCallback": "hugging_face", "LightningCallback": "lightning"}


def __getattr__(name: str) -> object:
    if name in _CALLBACKS:
        return getattr(import_module(f"nmsolve.torch.training.{_CALLBACKS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
