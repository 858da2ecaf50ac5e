"""The PyTorch layer: masks of tensors, and 2:4 matrix products on sparse tensor cores.

>>> import nmsolve.torch as nmt

Needs nmsolve[torch].
"""

try:
    import torch as _torch  # noqa: F401
except ImportError as _error:
    from nmsolve.errors import MissingDependencyError

    raise MissingDependencyError("nmsolve.torch needs PyTorch 2.8 or later: pip install 'nmsolve[torch]'") from _error

from nmsolve.torch.dispatch.accelerate import accelerate_
from nmsolve.torch.dispatch.backends import backends
from nmsolve.torch.dispatch.masked_linear import masked_linear
from nmsolve.torch.dispatch.packed_linear import PackedLinear
from nmsolve.torch.dispatch.packing import pack, unpack
from nmsolve.torch.dispatch.sparse_linear import SparseLinear
from nmsolve.torch.masks import solve, verify
from nmsolve.torch.result import MaskResult, TensorDuals

__all__ = [
    "MaskResult",
    "PackedLinear",
    "SparseLinear",
    "TensorDuals",
    "accelerate_",
    "backends",
    "masked_linear",
    "pack",
    "solve",
    "unpack",
    "verify",
]
