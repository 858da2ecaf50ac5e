"""`PackedLinear`: a 2:4 linear layer for inference that keeps the packed weight alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nmsolve.torch.dispatch.algorithms import Memory, named, recall
from nmsolve.torch.dispatch.availability import check_backend, machine_at, warn_once, why_not
from nmsolve.torch.dispatch.masked_product import autocast, transformed
from nmsolve.torch.dispatch.packing import (
    check_2to4,
    checked_parts,
    is_2to4,
    packed_linear,
    unpack,
    wrap,
)
from nmsolve.torch.dispatch.sparse_linear import SparseLinear


class PackedLinear(nn.Module):
    r"""Linear layer for inference whose weight is 2:4 and packed: 9/16 of the dense weight's
    memory.

    .. math:: y = x W^T + b

    Made by `from_linear`. Where the backend cannot serve (on a CPU, say) the weight is kept dense,
    with the same numbers; moved to a device or dtype that it can serve, the layer packs again.

    Attributes
    ----------
    in_features, out_features : int
    backend : {"dense", "cusparselt", "cutlass"}
        The one that multiplies, wherever it can.
    algorithms : tuple of int
        cuSPARSELt's algorithms as `accelerate_` measured them; kept by copies, moves and pickling,
        and used only for inputs of the size and dtype, and on the kind of GPU, that they were
        measured with.
    bias : nn.Parameter or None
        Not trained.

    Notes
    -----
    `state_dict` holds what a plain nn.Linear would, the weight dense with its zeros. A weight that
    is not 2:4 is not loaded. Gradients reach the input, by the unpacked weight; the weight has
    none.

    Examples
    --------
    >>> linear = nn.Linear(4, 2)
    >>> weight = torch.tensor([[1.0, 0, 0, 2.0], [0, 3.0, 0, 0]])
    >>> _ = linear.load_state_dict({"weight": weight, "bias": torch.zeros(2)})
    >>> PackedLinear.from_linear(linear, "dense")(torch.ones(1, 4)).tolist()
    [[3.0, 3.0]]
    """

    in_features: int
    out_features: int
    backend: str
    algorithms: Memory = ()  # of the class, for layers that were pickled before there were any
    bias: nn.Parameter | None
    # The dense weight or, where it is packed, its values. Packed parts are kept apart, not as
    # torch's tensor class, which can neither be converted nor loaded and which a compiler has to
    # know; its own operators see them again in `packing.wrap`.
    _stored: Tensor
    _packed: bool
    _meta: Tensor | None

    @classmethod
    def from_linear(cls, linear: nn.Linear, backend: str, *, algorithms: Memory = ()) -> Self:
        """Return a layer with the weight (of a SparseLinear: the masked weight), bias and hooks of
        an nn.Linear.

        Raises
        ------
        InputError
            If the weight is not 2:4, or the backend does not exist.
        """
        check_backend(backend)
        weight = (
            linear.masked_weight if isinstance(linear, SparseLinear) else linear.weight.detach()
        )
        check_2to4(weight)
        new = cls()
        # Hooks, by the very dictionaries, so that handles given out before still remove them.
        new.__dict__.update(
            {name: value for name, value in linear.__dict__.items() if "_hook" in name}
        )
        new.training = linear.training
        new.in_features, new.out_features = linear.in_features, linear.out_features
        new.backend, new.algorithms = backend, algorithms
        bias = (
            None if linear.bias is None else nn.Parameter(linear.bias.detach(), requires_grad=False)
        )
        new.register_parameter("bias", bias)
        new._store(weight)
        if new._stored is weight:  # the two are not to change together
            new._stored = weight.clone()
        return new

    @property
    def packed(self) -> bool:
        """True while the weight is packed."""
        return self._packed

    @property
    def weight(self) -> Tensor:
        """The dense weight; unpacked by every access, if packed."""
        return self._unpacked()

    def _unpacked(self) -> Tensor:
        if not self._packed:
            return self._stored
        shape = (self.out_features, self.in_features)
        return unpack(wrap(shape, self._stored, self._meta, self.backend))

    def forward(self, input: Tensor) -> Tensor:
        """Return y for input (..., in_features)."""
        if self._packed and not transformed():
            x = autocast(input)
            if x.dtype == self._stored.dtype and x.dim() and x.shape[-1] == self.in_features:
                bias = None if self.bias is None else autocast(self.bias)
                y: Tensor = packed_product(
                    x.reshape(-1, self.in_features),
                    self._stored,
                    self._meta,
                    bias,
                    self.out_features,
                    self.in_features,
                    self.backend,
                    self.algorithms,
                )
                return y.reshape(*x.shape[:-1], self.out_features)
        # Also an input that does not fit comes here, which torch refuses in its own words.
        return F.linear(input, self._unpacked(), self.bias)

    def extra_repr(self) -> str:
        """Return what nn.Linear shows, and the backend that multiplies."""
        shape = (
            f"in_features={self.in_features}, out_features={self.out_features}, "
            f"bias={self.bias is not None}"
        )
        backend = named(self.backend, self.algorithms) if self.packed else "dense"
        return f"{shape}, pattern=2:4, backend={backend}"

    def _store(self, weight: Tensor) -> None:
        """Keep a 2:4 weight, packed where the backend can."""
        self._stored, self._meta, self._packed = weight, None, False
        if self.backend == "dense":
            return
        reason = why_not(self.backend, tuple(weight.shape), weight.dtype, weight.device)
        if reason is not None:
            warn_once(
                "masked dense",
                f"nmsolve keeps 2:4 weights dense where {self.backend} cannot serve; here: "
                f"{reason}",
            )
            return
        self._stored, self._meta = checked_parts(weight, self.backend)
        self._packed = True

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        weight = fn(self.weight)
        if weight.device.type == "cuda" and not is_2to4(weight):
            # Only to_empty() makes values up; what is loaded next is checked.
            weight = torch.zeros_like(weight)
        self._store(weight)
        return self

    def __getstate__(self) -> dict[str, Any]:
        # Dense, so that a copy can be opened on a machine that has no such backend.
        return {**self.__dict__, "_stored": self.weight, "_packed": False, "_meta": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        if "_dense" in state:  # as earlier versions pickled it, with `_values` for None
            state = {"_stored": state["_dense"], "_packed": False} | {
                name: state[name] for name in state if name not in ("_dense", "_values")
            }
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self._store(self._stored)

    def _save_to_state_dict(
        self, destination: dict[str, Any], prefix: str, keep_vars: bool
    ) -> None:
        destination[prefix + "weight"] = self.weight
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        super()._load_from_state_dict(
            state_dict, prefix, local_metadata, strict, missing_keys, unexpected_keys, error_msgs
        )
        key = prefix + "weight"
        if key in unexpected_keys:
            unexpected_keys.remove(key)
        loaded = state_dict.get(key)
        if loaded is None:
            if strict:
                missing_keys.append(key)
            return
        loaded = loaded.detach()
        expected = (self.out_features, self.in_features)
        if tuple(loaded.shape) != expected:
            error_msgs.append(
                f"size mismatch for {key}: the checkpoint has {tuple(loaded.shape)}, the layer "
                f"{expected}"
            )
        elif not loaded.is_meta and not (report := is_2to4(loaded)):
            error_msgs.append(
                f"{key} cannot be loaded into a PackedLinear: {report}; load it into an nn.Linear"
            )
        elif local_metadata.get("assign_to_params_buffers", False):
            self._store(loaded)
        else:
            # A copy, as loading is everywhere: the layer must not follow the checkpoint's tensor.
            self._store(loaded.to(self._stored.device, self._stored.dtype, copy=True))


@torch.library.custom_op(
    "nmsolve::packed_linear",
    mutates_args=(),
    schema="(Tensor x, Tensor values, Tensor? meta, Tensor? bias, int out_features, int "
    "in_features, str backend, int[] algorithms=[]) -> Tensor",
)
def packed_product(
    x: Tensor,
    values: Tensor,
    meta: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    backend: str,
    algorithms: Sequence[int] = (),
) -> Tensor:
    """Return x Wᵀ + b for x (tokens, in_features) and the parts of a packed W."""
    algorithm = recall(algorithms, machine_at(x.device.index), x.dtype, x.shape[0])
    with torch.autocast(x.device.type, enabled=False):
        return packed_linear(x, values, meta, bias, (out_features, in_features), backend, algorithm)


@torch.library.custom_op(
    "nmsolve::packed_linear_grad_input",
    mutates_args=(),
    schema="(Tensor dy, Tensor values, Tensor? meta, int out_features, int in_features, str "
    "backend) -> Tensor",
)
def packed_product_grad_input(
    dy: Tensor,
    values: Tensor,
    meta: Tensor | None,
    out_features: int,
    in_features: int,
    backend: str,
) -> Tensor:
    """Return dy W for dy (tokens, out_features). The transpose is not packed in inference, so W is
    unpacked.
    """
    with torch.autocast(dy.device.type, enabled=False):
        return dy @ unpack(wrap((out_features, in_features), values, meta, backend))


@packed_product.register_fake
def _(
    x: Tensor,
    values: Tensor,
    meta: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    in_features: int,
    backend: str,
    algorithms: Sequence[int] = (),
) -> Tensor:
    return x.new_empty((x.shape[0], out_features))


@packed_product_grad_input.register_fake
def _(
    dy: Tensor,
    values: Tensor,
    meta: Tensor | None,
    out_features: int,
    in_features: int,
    backend: str,
) -> Tensor:
    return dy.new_empty((dy.shape[0], in_features))


def _save_parts(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, values, meta, _, *ctx.options, _ = inputs
    ctx.save_for_backward(values, meta)


def _backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
    values, meta = ctx.saved_tensors
    dx = (
        packed_product_grad_input(dy, values, meta, *ctx.options)
        if ctx.needs_input_grad[0]
        else None
    )
    return dx, None, None, dy.sum(0) if ctx.needs_input_grad[3] else None, None, None, None, None


packed_product.register_autograd(_backward, setup_context=_save_parts)
