"""Dense 2:4 weights to torch's semi-structured tensors and back. A value is never dropped: what is
not 2:4 is refused.

Packing in torch keeps two entries of every group whatever is in it, without an error, so the check
is ours.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.sparse import (
    SparseSemiStructuredTensor,
    SparseSemiStructuredTensorCUSPARSELT,
    SparseSemiStructuredTensorCUTLASS,
)

from nmsolve.errors import InputError, SolverError
from nmsolve.feasibility import Report
from nmsolve.pattern import Pattern
from nmsolve.torch.dispatch.availability import why_not

#: cuSPARSELt's descriptors promise this alignment of every operand, in bytes.
_ALIGNMENT = 16
#: Tokens are padded to a multiple of this: both backends ask it of the dense operand in float16 and
#: bfloat16.
_TOKENS = 8
#: `unpack` holds at most this many elements of the identity and of its product with the weight at a
#: time: 128 MiB in 16 bits.
_UNPACKED_AT_ONCE = 2**26
#: Columns of a slice are a multiple of this, for the dense operand of either backend.
_SLICE = 16


def is_2to4(weight: Tensor, *, transposable: bool = False) -> Report:
    """Return whether at most 2 of every 4 consecutive entries of a row (transposable: also of a
    column of a block) are nonzero.

    Parameters
    ----------
    weight : (rows, cols) tensor
        Weights, or a bool mask. On any device; one value per group is computed there, and one
        flag per axis comes back.
    transposable : bool
        Also check columns, so that the transpose can be packed too.

    Returns
    -------
    nmsolve.Report

    Raises
    ------
    InputError
        If the shape does not consist of whole groups.
    """
    pattern = Pattern(2, 4, transposable=transposable)
    if (
        weight.dim() != 2
        or weight.numel() == 0
        or weight.shape[1] % 4
        or (transposable and weight.shape[0] % 4)
    ):
        block = "rows and columns are multiples" if transposable else "columns are a multiple"
        raise InputError(
            f"pattern {pattern} needs a matrix whose {block} of 4, got shape {tuple(weight.shape)}"
        )
    kept = weight.detach() != 0
    rows, cols = kept.shape
    groups, violations = 0, 0
    first: tuple[tuple[int, ...], int] | None = None
    for axis, grouped in (
        (1, kept.view(rows, cols // 4, 4)),
        *([(0, kept.view(rows // 4, 4, cols))] if transposable else []),
    ):
        count = grouped.sum(dim=2 if axis == 1 else 1, dtype=torch.uint8)
        wrong = count > 2
        groups += count.numel()
        if wrong.any():
            violations += int(wrong.sum())
            if first is None:
                row, col = divmod(int(wrong.flatten().to(torch.uint8).argmax()), wrong.shape[1])
                index = (row, 4 * col) if axis == 1 else (4 * row, col)
                first = index, int(count[row, col])
    return Report(
        ok=violations == 0,
        pattern=pattern,
        shape=tuple(weight.shape),
        groups=groups,
        violations=violations,
        first=first,
        density=float(kept.sum()) / kept.numel(),
    )


def check_2to4(weight: Tensor) -> None:
    """Raise InputError unless a weight is 2:4."""
    report = is_2to4(weight)
    if not report:
        raise InputError(
            f"only a 2:4 weight can be packed: {report}; solve a mask first and zero what it drops"
        )


def pack(weight: Tensor, backend: str) -> SparseSemiStructuredTensor:
    """Return a dense 2:4 weight as one of torch's semi-structured tensors.

    Parameters
    ----------
    weight : (out_features, in_features) tensor, float16 or bfloat16, on a GPU
        At most 2 of every 4 consecutive entries of a row are nonzero.
    backend : {"cusparselt", "cutlass"}

    Returns
    -------
    SparseSemiStructuredTensor
        Checked: `unpack` gives the weight back bit for bit, except that −0 may come back as 0.

    Raises
    ------
    InputError
        If the weight is not 2:4, or the backend cannot serve its shape, dtype or device.
    SolverError
        If what was packed does not unpack to the weight.
    """
    return wrap(tuple(weight.shape), *checked_parts(weight, backend), backend)


def checked_parts(weight: Tensor, backend: str) -> tuple[Tensor, Tensor | None]:
    """Return the parts of what `pack` returns, `.packed` and `.meta`, with all its checks."""
    reason = why_not(backend, tuple(weight.shape), weight.dtype, weight.device)
    if reason is not None:
        raise InputError(
            f"cannot pack a {weight.dtype} weight of shape {tuple(weight.shape)} for {backend}: "
            f"{reason}"
        )
    check_2to4(weight)
    if not bool(torch.isfinite(weight).all()):
        row, col = divmod(
            int((~torch.isfinite(weight)).flatten().to(torch.uint8).argmax()), weight.shape[1]
        )
        raise InputError(
            f"a weight of shape {tuple(weight.shape)} with {float(weight[row, col])} at index "
            f"[{row}, {col}] cannot be packed"
        )
    values, meta = packed_parts(weight.detach(), backend)
    check_round_trip(wrap(tuple(weight.shape), values, meta, backend), weight)
    return values, meta


def unpack(packed: SparseSemiStructuredTensor) -> Tensor:
    """Return the dense weight of a packed one, exactly.

    Parameters
    ----------
    packed : SparseSemiStructuredTensor
        From `pack`, of shape (out_features, in_features).

    Returns
    -------
    (out_features, in_features) tensor
        Of the same dtype and device.

    Raises
    ------
    InputError
        If it is no packed weight.

    Notes
    -----
    cuSPARSELt's layout is not documented, so it is multiplied by the identity. Every sum is
    one product with 1, and zeros: it is exact. The identity is taken in slices of columns, because
    all of it may be larger than the weight.
    """
    if not isinstance(packed, SparseSemiStructuredTensor):
        raise InputError(f"unpack takes what nmt.pack returned, got a {type(packed).__name__}")
    with torch.no_grad(), torch.autocast(packed.device.type, enabled=False):
        if isinstance(packed, SparseSemiStructuredTensorCUSPARSELT):
            rows, cols = packed.shape
            return columns_by_products(
                lambda identity: torch.mm(packed, identity), rows, cols, packed.dtype, packed.device
            )
        dense: Tensor = packed.to_dense()
        return dense


def columns_by_products(
    multiply: Callable[[Tensor], Tensor],
    rows: int,
    cols: int,
    dtype: torch.dtype,
    device: torch.device,
) -> Tensor:
    """Return a matrix (rows, cols) that is known by its products alone.

    multiply : the product with a matrix (cols, any multiple of 16), if cols is one.
    """
    dense = torch.empty((rows, cols), dtype=dtype, device=device)
    for start, stop in column_slices(rows, cols):
        identity = torch.zeros((cols, stop - start), dtype=dtype, device=device)
        identity[start:stop].fill_diagonal_(1)
        dense[:, start:stop] = multiply(identity)
    return dense


def column_slices(rows: int, cols: int) -> list[tuple[int, int]]:
    """Return bounds of slices of the columns of a matrix (rows, cols), for `unpack`: as few as its
    limit allows.

    Examples
    --------
    >>> column_slices(4096, 4096), column_slices(8192, 32768)[:2]
    ([(0, 4096)], [(0, 1632), (1632, 3264)])
    """
    width = max(_SLICE, _UNPACKED_AT_ONCE // (rows + cols) // _SLICE * _SLICE)
    return [(start, min(start + width, cols)) for start in range(0, cols, width)]


def pack_unchecked(weight: Tensor, backend: str) -> SparseSemiStructuredTensor:
    """Return what `pack` does, of a weight that is 2:4 by construction; drop values of any
    other.
    """
    return wrap(tuple(weight.shape), *packed_parts(weight, backend), backend)


def packed_parts(weight: Tensor, backend: str) -> tuple[Tensor, Tensor | None]:
    """Return the parts of what `pack_unchecked` returns, `.packed` and `.meta`."""
    # What from_dense of torch's classes does; CUTLASS's part works on any device, so that it is
    # tested on every machine.
    weight = aligned(weight)
    return (torch._cslt_compress(weight), None) if backend == "cusparselt" else _to_cutlass(weight)


def wrap(
    shape: tuple[int, ...], values: Tensor, meta: Tensor | None, backend: str
) -> SparseSemiStructuredTensor:
    """Return torch's tensor around packed parts, `.packed` and `.meta`, that were kept apart from
    it.
    """
    kind: Any = (
        SparseSemiStructuredTensorCUSPARSELT
        if backend == "cusparselt"
        else SparseSemiStructuredTensorCUTLASS
    )
    with _no_prototype_warning(kind):
        packed: SparseSemiStructuredTensor = kind(
            torch.Size(shape),
            packed=values,
            meta=meta,
            packed_t=None,
            meta_t=None,
            compressed_swizzled_bitmask=None,
        )
    return packed


def check_round_trip(packed: SparseSemiStructuredTensor, weight: Tensor) -> None:
    """Raise SolverError unless a packed weight unpacks to a dense one."""
    # −0 == 0 here, on purpose: a dropped −0 comes back as 0.
    if not torch.equal(unpack(packed), weight.detach()):
        raise SolverError(
            f"a {weight.dtype} weight of shape {tuple(weight.shape)} does not survive packing by "
            f"{type(packed).__name__}; keep this layer dense and report it"
        )


def packed_linear(
    x: Tensor,
    values: Tensor,
    meta: Tensor | None,
    bias: Tensor | None,
    shape: tuple[int, int],
    backend: str,
    algorithm: int = 0,
) -> Tensor:
    """Return x Wᵀ + b, (tokens, out_features), contiguous, for x (tokens, in_features) of any
    strides and any number of tokens.

    values, meta, shape : the parts of a packed weight (`.packed`, `.meta`), and the shape of the
    dense one. algorithm : cuSPARSELt's, below `algorithms.offered`; RuntimeError where it refuses.
    CUTLASS has one alone.
    """
    tokens = x.shape[0]
    if tokens == 0:
        return x.new_empty((0, shape[0]))
    x = operand(x)
    bias = None if bias is None else aligned(bias)
    if backend == "cusparselt":
        # Through F.linear older versions of torch write y transposed and leave a copy to do; the
        # kernel can do it itself.
        y = torch._cslt_sparse_mm(values, x.t(), bias=bias, transpose_result=True, alg_id=algorithm)
    else:
        y = F.linear(x, wrap(shape, values, meta, backend), bias)
    return y[:tokens].contiguous()


def padded(tokens: int) -> int:
    """Return how many tokens are multiplied where there are some: what the kernels ask for."""
    return tokens + -tokens % _TOKENS


def operand(x: Tensor) -> Tensor:
    """Return x (tokens, in_features) as the kernels take it: padded, contiguous, aligned."""
    more = padded(x.shape[0]) - x.shape[0]
    return aligned(F.pad(x, (0, 0, 0, more)) if more else x)


def aligned(tensor: Tensor) -> Tensor:
    """Return a tensor that is contiguous and starts where the kernels may read it, which a view
    into a flat buffer may not.
    """
    tensor = tensor.contiguous()
    return tensor if tensor.data_ptr() % _ALIGNMENT == 0 else tensor.clone()


def _to_cutlass(weight: Tensor) -> tuple[Tensor, Tensor]:
    from torch.sparse._semi_structured_conversions import sparse_semi_structured_from_dense_cutlass

    values, meta = sparse_semi_structured_from_dense_cutlass(weight)
    return values, meta


@contextlib.contextmanager
def _no_prototype_warning(kind: Any) -> Iterator[None]:
    """Silence torch's warning that its tensor class is a prototype: the library's choice, not its
    user's.
    """
    if kind._PROTOTYPE_WARNING_SHOWN:
        # Filters belong to the process, and backward passes run in other threads: leave them alone
        # once it is over.
        yield
        return
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The PyTorch API of SparseSemiStructuredTensor")
        yield
