"""`SparseLinear`: nn.Linear with a transposable 2:4 mask, for training on sparse tensor cores."""

from __future__ import annotations

from typing import Any, Self

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.torch.dispatch.algorithms import Memory, named
from nmsolve.torch.dispatch.availability import check_backend
from nmsolve.torch.dispatch.masked_product import masked, masked_linear
from nmsolve.torch.dispatch.packing import is_2to4
from nmsolve.torch.weights.sharding import placed_like, whole


class SparseLinear(nn.Linear):
    r"""Linear layer that is trained with a transposable 2:4 mask.

    .. math:: y = x (W \circ M)^T + b

    The parameter `weight` is dense, for the optimizer; gradients are masked; products go through
    `masked_linear`.

    Parameters
    ----------
    in_features, out_features, bias, device, dtype
        As nn.Linear.
    mask : (out_features, in_features) bool tensor
        True = keep; at most 2 of every 4 of a row and of a column of a block. Assigning
        `layer.mask` checks it too.
    backend : {"dense", "cusparselt", "cutlass"}
        The one that multiplies; the numbers are those of the masked dense weight either way.
    algorithms : tuple of int
        cuSPARSELt's algorithms as `accelerate_` measured them; kept by copies, moves and pickling,
        and used only for inputs of the size and dtype, and on the kind of GPU, that they were
        measured with.

    Attributes
    ----------
    mask : (out_features, in_features) bool tensor
        A buffer, which state dicts do not hold.
    backend : str
    algorithms : tuple of int
        As given.
    weight, bias, in_features, out_features
        As of nn.Linear; `weight` is dense.

    Raises
    ------
    InputError
        If the mask is not transposable 2:4, or not the weight's.

    Notes
    -----
    `state_dict` holds what a plain nn.Linear would, the weight with zeros baked in. Loading keeps
    the mask if the loaded weight is zero wherever the mask is (a kept weight may be zero), takes
    the loaded weight's nonzeros as the mask otherwise, and refuses a weight that is not
    transposable 2:4. It is a copy: to load in place, through `state_dict()` tensors, does nothing.

    Dropped entries of `weight` have no effect and no gradient, but an optimizer's momentum may
    still move them; entering eval mode zeroes them.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> dense = nn.Linear(8, 8)
    >>> layer = SparseLinear.from_linear(dense, torch.eye(8, dtype=torch.bool))
    >>> layer.weight is dense.weight, int(layer.state_dict()["weight"].count_nonzero())
    (True, 8)
    """

    mask: Tensor
    # of the class as well, for layers that were pickled before there were any
    algorithms: Memory = ()

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        mask: Tensor,
        backend: str = "dense",
        algorithms: Memory = (),
    ) -> None:
        super().__init__(in_features, out_features, bias, device, dtype)
        self._take(mask, backend, algorithms)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, mask: Tensor, *, backend: str = "dense", algorithms: Memory = ()
    ) -> Self:
        """Return a layer that shares the parameters, hooks and training flag of an nn.Linear, which
        may then be dropped.

        The very Parameter objects, so an optimizer that holds them goes on. InputError if the
        weight is not a parameter of its own.
        """
        if "weight" not in linear._parameters:
            raise InputError(
                f"the weight of {linear} is computed (parametrized, pruned or normalised by "
                "hooks): make it permanent first, with "
                "torch.nn.utils.parametrize.remove_parametrizations or torch.nn.utils.prune.remove"
            )
        new = cls.__new__(cls)
        # Everything of the module is shared but the dictionaries that would tie the two to one set
        # of buffers.
        new.__dict__.update(linear.__dict__)
        for own in ("_parameters", "_buffers", "_modules", "_non_persistent_buffers_set"):
            new.__dict__[own] = linear.__dict__[own].copy()
        new._take(mask, backend, algorithms)
        return new

    def _take(self, mask: Tensor, backend: str, algorithms: Memory) -> None:
        check_backend(backend)
        self.backend, self.algorithms = backend, algorithms
        self._buffers.pop("mask", None)
        self.register_buffer("mask", self._checked(mask), persistent=False)

    def _checked(self, mask: Tensor) -> Tensor:
        if (
            not isinstance(mask, Tensor)
            or mask.dtype != torch.bool
            or mask.shape != self.weight.shape
        ):
            found = (
                f"{mask.dtype} {tuple(mask.shape)}"
                if isinstance(mask, Tensor)
                else type(mask).__name__
            )
            raise InputError(
                f"the mask of a weight of shape {tuple(self.weight.shape)} is a bool tensor of "
                f"that shape, got {found}"
            )
        report = is_2to4(mask, transposable=True)
        if not report:
            raise InputError(
                f"a mask for training is transposable 2:4: {report}; solve one with pattern '2:4T'"
            )
        return mask.detach().to(self.weight.device).contiguous()

    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, self._checked(value) if name == "mask" else value)

    @property
    def masked_weight(self) -> Tensor:
        """W∘M, a new tensor outside autograd."""
        return masked(self.weight.detach(), placed_like(self.mask, self.weight))

    def train(self, mode: bool = True) -> Self:
        """Set the mode. Entering eval mode zeroes what the mask drops, for code that reads `weight`
        itself.
        """
        super().train(mode)
        weight = self._parameters.get("weight")
        if not mode and weight is not None and not weight.is_meta:
            with torch.no_grad():
                weight.copy_(masked(weight, placed_like(self.mask, weight)))
        return self

    def forward(self, input: Tensor) -> Tensor:
        """Return y for input (..., in_features)."""
        return masked_linear(
            input,
            self.weight,
            self.mask,
            self.bias,
            backend=self.backend,
            algorithms=self.algorithms,
        )

    def extra_repr(self) -> str:
        """Return what nn.Linear shows, and the backend that multiplies."""
        return (
            f"{super().extra_repr()}, pattern=2:4T, backend={named(self.backend, self.algorithms)}"
        )

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # Otherwise parametrized, or pruned by torch's own hooks: theirs to save.
        if "weight" in self._parameters:
            weight = self.weight if keep_vars else self.weight.detach()
            destination[prefix + "weight"] = masked(weight, placed_like(self.mask, weight))

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: Any,
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        loaded = state_dict.get(prefix + "weight")
        mask = None
        if isinstance(loaded, Tensor) and loaded.shape == self.weight.shape and not loaded.is_meta:
            mask = self._mask_of(whole(loaded))
            if mask is None:
                error_msgs.append(
                    f"{prefix}weight cannot be loaded into a SparseLinear: "
                    f"{is_2to4(loaded, transposable=True)}; load it into an nn.Linear, or mask it "
                    "with a '2:4T' mask first"
                )
                return
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        if mask is not None:
            self.mask = mask

    def _mask_of(self, loaded: Tensor) -> Tensor | None:
        """Return the mask for a loaded weight: our own if it covers it, else its nonzeros; None if
        those are not 2:4T.
        """
        nonzeros = loaded.detach() != 0
        if not self.mask.is_meta:
            own = self.mask.to(loaded.device)
            # to_empty() leaves any bits in the mask, so it is trusted only if it is one.
            if not (nonzeros & ~own).any() and is_2to4(own, transposable=True):
                return own
        return nonzeros if is_2to4(nonzeros, transposable=True) else None
