"""`Masked`: the parametrization that makes a weight the masked one.

torch.nn.utils.parametrize rather than new module classes: fused paths (attention,
nn.TransformerEncoderLayer) read `weight` past any forward, and so get the masked one. What is
written into it reaches the dense weight: see written.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.pattern import Pattern
from nmsolve.torch.weights.candidates import Candidates
from nmsolve.torch.weights.masked_weight import MaskedWeight
from nmsolve.torch.weights.sharding import placed_like
from nmsolve.torch.weights.written import Written


@dataclass(slots=True)
class Progress:
    """Counters of a mask, which a checkpoint holds.

    Attributes
    ----------
    step : int
        Optimizer steps taken.
    refreshes : int
        Masks solved after the first.
    sad : int
        Entries that differ between the last two masks.
    flips : int
        The sum of `sad` over all refreshes.
    density_sum : float
        The mask's density summed over the steps.
    """

    step: int = 0
    refreshes: int = 0
    sad: int = 0
    flips: int = 0
    density_sum: float = 0.0


class _StraightThrough(torch.autograd.Function):
    """W∘M forward, the identity backward: what is dropped goes on learning."""

    generate_vmap_rule = True

    @staticmethod
    def forward(weight: Tensor, mask: Tensor) -> Tensor:
        return weight * mask

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class _ForwardToo(_StraightThrough):
    """The same with a derivative for forward mode, which the compiler does not take."""

    @staticmethod
    def jvp(ctx: Any, tangent: Tensor, mask_tangent: None) -> Tensor:
        return tangent.view_as(tangent)


class Masked(nn.Module):
    """W ↦ M∘W for a parametrized weight.

    Attributes
    ----------
    mask : bool buffer of the weight's shape
        True = keep; every rank of a sharded weight holds all of it.
    pattern : Pattern
    axis : int
        The weight's axis that groups lie along.
    padding : {"error", "pad", "dense"}
    straight_through : bool
        Whether gradients reach what is dropped.
    path : str
        The weight's in the model that was sparsified, wherever it is now.
    run : str
        The call of sparsify_ that put it on; copies have it too.
    written : Written
        What is to be brought to the dense weight.
    mounted : bool
        Whether it is on a parameter, so that assigning copies.
    backend : str
        The one that multiplies, where a layer is accelerated.
    progress : Progress
    candidates : Candidates or None
        LBC's, once it is attached.
    """

    mask: Tensor

    def __init__(
        self,
        mask: Tensor,
        pattern: Pattern,
        axis: int,
        padding: str,
        straight_through: bool,
        path: str,
        run: str,
    ) -> None:
        super().__init__()
        if mask.is_inference():
            with torch.inference_mode(False):
                mask = mask.clone()
        self.register_buffer(
            "mask", mask, persistent=False
        )  # checkpoints hold it in bits: see training/state_dict.py
        self.pattern = pattern
        self.axis = axis
        self.padding = padding
        self.straight_through = straight_through
        self.path = path
        self.run = run
        self.written = Written(path)
        self.mounted = False
        self.backend = "dense"
        self.progress = Progress()
        self._counted: tuple[tuple[int, int], float] | None = None
        self.candidates: Candidates | None = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """As nn.Module's; what casts everything, as model.type(dtype) does, leaves the mask
        bool.
        """
        self.written.settle()
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self.mask.dtype != torch.bool:
            self.mask = self.mask != 0
        return self

    def forward(self, weight: Tensor) -> Tensor:
        """Return W∘M; of a sharded weight, read outside the model's forward, sharded too."""
        if torch.compiler.is_compiling() or _is_traced():
            return self._product(weight)
        self.written.settle(weight)
        if torch.is_inference_mode_enabled():  # tensors of that mode do not count their versions
            with torch.inference_mode(False), torch.no_grad():
                masked = self._product(weight)
        else:
            masked = self._product(weight)
        return self.written.hand_out(masked, weight, self.mask)

    def _product(self, weight: Tensor) -> Tensor:
        mask = placed_like(self.mask, weight)
        if not self.straight_through:
            return weight * mask
        compiling = torch.compiler.is_compiling()
        if (
            not compiling and torch._C._get_tracing_state() is not None
        ):  # a trace of torch.jit holds no Python functions
            return torch.where(mask, weight, weight - weight.detach())
        function = _StraightThrough if compiling else _ForwardToo
        masked: Tensor = function.apply(weight, mask)  # type: ignore[no-untyped-call]
        return masked

    def right_inverse(self, weight: Tensor) -> Tensor:
        """Return the dense weight's new values, where module.weight is assigned."""
        if not self.mounted:  # the weight itself, when the mask is put on
            return weight
        if weight.shape != self.mask.shape:
            raise InputError(
                f"the weight has shape {tuple(self.mask.shape)}; a tensor of shape "
                f"{tuple(weight.shape)} was assigned"
            )
        if (
            weight.requires_grad and not isinstance(weight, MaskedWeight)
        ) or torch._C._functorch.is_functorch_wrapped_tensor(weight):
            raise InputError(
                "a masked weight is a copy of what is assigned, without its gradient: assign "
                "weight.detach(), or give torch.func.functional_call the names of "
                "model.named_parameters() (parametrizations.weight.original)"
            )
        return self.written.dense_of(weight)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Set what was pickled; earlier versions lack some of it."""
        missing = {"path": "", "run": "", "mounted": False, "written": Written("")}
        super().__setstate__(missing | state)  # type: ignore[no-untyped-call]

    def __getstate__(self) -> dict[str, Any]:
        """Return the state of a copy, which has handed out nothing yet."""
        return self.__dict__ | {"written": Written(self.path)}

    def put(self, mask: Tensor) -> int:
        """Exchange the mask, in place for compiled code; return how many entries changed."""
        if mask.device.type == "cpu":  # NumPy counts bools an order of magnitude faster
            changed = int(np.count_nonzero(mask.numpy() != self.mask.numpy()))
        else:
            changed = int(torch.count_nonzero(mask ^ self.mask))
        self.mask.copy_(mask)
        return changed

    @property
    def version(self) -> tuple[int, int]:
        """A number that changes whenever the mask does, whoever changes it: a refresh, a
        checkpoint, a broadcast.
        """
        return id(self.mask), self.mask._version

    @property
    def density(self) -> float:
        """The share of the mask that is kept; counted again only when the mask has changed."""
        if self._counted is None or self._counted[0] != self.version:
            self._counted = self.version, int(torch.count_nonzero(self.mask)) / self.mask.numel()
        return self._counted[1]

    def extra_repr(self) -> str:
        """Return the pattern."""
        return f"pattern={self.pattern}"


def _is_traced() -> bool:
    """Return whether torch.jit.trace or make_fx records what is done."""
    proxy = torch._C._get_dispatch_mode(torch._C._TorchDispatchModeKey.PROXY)
    return torch._C._get_tracing_state() is not None or proxy is not None


def masked_parameters(module: nn.Module) -> dict[str, Masked]:
    """Return the masks on a module's own parameters, by parameter name."""
    if not parametrize.is_parametrized(module):
        return {}
    lists: Any = module.parametrizations
    return {name: parts[0] for name, parts in lists.items() if isinstance(parts[0], Masked)}


def original(module: nn.Module, parameter: str) -> Tensor:
    """Return the dense parameter under a mask, with what was written into module.weight."""
    lists: Any = module.parametrizations
    tensor: Tensor = lists[parameter].original
    masked: Masked = lists[parameter][0]
    if parameter in module._parameters:
        raise InputError(
            f"layer {masked.path}: module._parameters[{parameter!r}] was set beside its mask, "
            f"where nothing reads it: assign module.{parameter} instead"
        )
    if not torch.compiler.is_compiling():
        masked.written.settle(tensor)
    return tensor
