"""`solve` and `verify` for tensors: on a CPU through the core without a copy, elsewhere on the
tensor's own device.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from functools import cache, wraps
from typing import Any, ParamSpec, TypeVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from nmsolve import api, feasibility
from nmsolve.blocks import check_divisible, core_shape
from nmsolve.certificates import Proof
from nmsolve.conclusion import conclude
from nmsolve.errors import InputError
from nmsolve.feasibility import Report
from nmsolve.pattern import Pattern
from nmsolve.proofs import prove
from nmsolve.stopwatch import Stopwatch
from nmsolve.torch.device.engines import engine_named
from nmsolve.torch.device.failures import explained
from nmsolve.torch.device.problem import Engine
from nmsolve.torch.result import MaskResult, TensorDuals, with_tensors
from nmsolve.torch.tensors import (
    FLOATS8,
    as_array,
    as_matrices,
    check_tensor,
    explain_layout,
    from_matrices,
    is_nonzero,
    tolerance,
)
from nmsolve.totals import exact_sum
from nmsolve.validate import (
    check_flag,
    non_finite_message,
    read_scores,
    thread_count,
    too_large_error,
)

P = ParamSpec("P")
R = TypeVar("R")


def _outside_graphs(function: Callable[P, R]) -> Callable[P, R]:
    """Solving is no graph of tensor operations: compiled code calls the function as it is.

    That is torch.compiler.disable, which imports the compiler. It takes a second, so that is left
    to programs that have imported it already.
    """
    disabled: list[Callable[P, R]] = []

    @wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        if "torch._dynamo" not in sys.modules:
            return function(*args, **kwargs)
        if not disabled:
            disabled.append(torch.compiler.disable(function))
        return disabled[0](*args, **kwargs)

    return call


@_outside_graphs
def solve(
    weights: Tensor,
    pattern: Pattern | str,
    scores: Tensor | None = None,
    *,
    method: str = "auto",
    at_most: bool | None = None,
    threads: int | None = None,
    padding: str = "error",
    duals: bool = False,
) -> MaskResult:
    r"""Find the best n:M mask of a weight tensor, and prove that it is the best: `nmsolve.solve`
    for tensors.

    .. math:: \max_X \sum_{ij} S_{ij} X_{ij}, \quad X \in \{0, 1\}^{rows \times cols}

    where every m consecutive entries of a row, and for a transposable pattern every row and column
    of every m × m block, keep exactly n (with `at_most`: n or fewer), and S = |weights| unless
    `scores` are given.

    Parameters
    ----------
    weights : (rows, cols), (batch, rows, cols) or (out, in, kernel …) tensor
        float8, float16, bfloat16, float32, float64 or integers, any strides, on any device,
        requiring grad or not. Groups run along cols. Tensors of four and five axes are convolution
        weights: one (out, in) matrix per kernel position, groups along `in`. A weight of a Conv1d
        is passed as weight.unsqueeze(2), which has four.
    scores : tensor, optional
        What is maximised instead of |weights|, signs kept. Same shape and device.
    pattern, method, at_most, threads, padding, duals
        As in `nmsolve.solve`. The approximate methods run on the host wherever the tensor is.

    Returns
    -------
    MaskResult
        With `mask` a bool tensor of the weights' shape on their device, `duals` of tensors, and
        `verify` for tensors.

    Raises
    ------
    PatternError, InputError, MissingDependencyError
        As `nmsolve.solve`; meta, sparse, quantized, complex and wrapped tensors are refused by
        name.
    SolverError
        If memory runs out, or the device is lost. The weights are as they were; a mask is a new
        tensor.

    Notes
    -----
    CPU tensors are read where they are, bfloat16 and float8 through their bits. Others are solved
    on their device: by Triton kernels where there is Triton and m is 32 or less, by torch
    operations elsewhere. Certificates are evaluated there, in float64. Only blocks that five levels
    of dual ascent do not prove visit the host (`stats["solved_on_host"]` counts them); transposable
    blocks of m > 32, and devices without float64 (mps), are left to it. Row-wise masks are the same
    on every device, transposable ones score the same; each is deterministic and depends on its
    block alone. The host waits for the device once or twice for every 2²⁶ weights, and more often
    only where it solves blocks. Workspace: a byte per block, and a copy of 2²⁶ integers or float8
    at a time.

    Examples
    --------
    >>> import torch
    >>> W = torch.randn(64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.bfloat16)
    >>> result = solve(W, "4:8T")
    >>> result.status.value, result.mask.float().mean().item()
    ('optimal', 0.5)
    >>> result.verify(W).ok
    True
    """
    pattern = Pattern.of(pattern, at_most)
    purpose = f"pattern {pattern}"
    weights = check_tensor(weights, "weights", purpose)
    if scores is not None:
        scores = check_tensor(scores, "scores", purpose)
        if scores.shape != weights.shape:
            raise InputError(
                f"scores have shape {tuple(scores.shape)}, weights {tuple(weights.shape)}: "
                f"{purpose} needs one score a weight"
            )
        if scores.device != weights.device:
            raise InputError(
                f"scores are on {scores.device}, weights on {weights.device}: move them with "
                "scores.to(weights.device)"
            )
    read = weights if scores is None else scores
    if read.dtype == torch.bool:
        raise InputError(
            f"{'weights' if scores is None else 'scores'} are bool: {purpose} needs numbers; "
            "convert with .to(torch.uint8)"
        )
    what = (
        f"{'weights' if scores is None else 'scores'} of shape {tuple(read.shape)}, "
        f"{read.dtype}, on {read.device}, pattern {pattern}"
    )
    try:
        with explained(what, read.device):
            api.check_method(method, pattern)
            name = engine_name(weights.device, pattern)
            if name is None or method not in ("auto", "exact"):
                return _solve_on_host(weights, scores, pattern, method, threads, padding, duals)
            return solve_on_device(
                weights, scores, pattern, method, threads, padding, duals, engine_named(name)
            )
    except InputError as error:
        raise explain_layout(error, weights) from None


def engine_name(device: torch.device, pattern: Pattern) -> str | None:
    """Return which engine serves tensors of a device, "triton" or "torch"; None: the host does.

    Triton's kernels up to the m whose lines fit registers. Torch operations the rest, but for
    blocks of larger m, of which the core solves thousands in the time that launching a hundred
    thousand operations takes, and for devices without float64.
    """
    if device.type in ("cpu", "mps") or (pattern.transposable and pattern.m > 32):
        return None
    return (
        "triton"
        if device.type in ("cuda", "xpu") and pattern.m <= 32 and _has_triton()
        else "torch"
    )


@cache
def _has_triton() -> bool:
    """Return whether Triton can be imported; a broken installation raises anything."""
    try:
        import triton  # noqa: F401
    except Exception:
        return False
    return True


def _solve_on_host(
    weights: Tensor,
    scores: Tensor | None,
    pattern: Pattern,
    method: str,
    threads: int | None,
    padding: str,
    duals: bool,
) -> MaskResult:
    """Return the core's solve on the tensors' own memory (of other devices: on copies)."""
    arrays = [
        None if tensor is None else as_array(as_matrices(tensor.cpu()))
        for tensor in (weights, scores)
    ]
    given, given_scores = arrays
    assert given is not None
    result = api.solve(
        given, pattern, given_scores, method=method, threads=threads, padding=padding, duals=duals
    )

    def moved(array: NDArray[Any]) -> Tensor:
        return torch.from_numpy(array).to(weights.device)

    potentials = None
    if result.duals is not None:
        columns = result.duals.columns
        potentials = TensorDuals(
            rows=moved(result.duals.rows), columns=None if columns is None else moved(columns)
        )
    return with_tensors(result, from_matrices(moved(result.mask), weights), potentials)


def solve_on_device(
    weights: Tensor, scores: Tensor | None, pattern: Pattern, method: str, threads: int | None,
    padding: str, duals: bool,
    engine: Engine,
) -> MaskResult:  # fmt: skip
    """Return the exact solver's result by an engine, on the device where the scores are."""
    stopwatch = Stopwatch()
    name = "weights" if scores is None else "scores"
    absolute = scores is None
    given = as_matrices(weights if scores is None else scores)
    shape = tuple(given.shape)
    check_divisible(shape, pattern, padding)
    check_flag(duals, "duals")
    workers = thread_count(threads)
    from nmsolve.torch.device.driver import solve_matrices

    X = given.reshape(-1, *given.shape[-2:])
    rows, cols = core_shape(tuple(X.shape), pattern, padding)
    with torch.no_grad():
        found = solve_matrices(
            engine, X[:, :rows, :cols], pattern, absolute, tolerance(X.dtype), duals, workers
        )
        found.totals.kept = _remainder_score(X, rows, cols, absolute)
    if found.totals.refused or not math.isfinite(found.totals.objective):
        raise _non_finite_error(name, given, pattern)
    mask = found.mask[:, :rows, :cols]
    if (rows, cols) != X.shape[1:]:
        mask = torch.ones(X.shape, dtype=torch.bool, device=X.device)
        mask[:, :rows, :cols] = found.mask

    def magnitude() -> float:
        return float(X[mask].double().abs().sum())

    def recheck() -> Proof:
        array = as_array(given.cpu())
        read = read_scores(array, None if absolute else array, pattern)
        return prove(read, mask.reshape(shape).cpu().numpy(), pattern, padding)

    potentials = found.duals(shape[:-2]) if duals else None
    result = conclude(
        found.totals,
        None,
        found.solver,
        mask=from_matrices(mask.reshape(shape), weights),
        duals=potentials,
        tolerance=tolerance(X.dtype),
        magnitude=magnitude,
        recheck=recheck,
        method=method,
        pattern=pattern,
        padding=padding,
        scored=name,
        size=X.numel(),
        threads=workers,
        stopwatch=stopwatch,
    )
    return with_tensors(result, result.mask, potentials)


def _non_finite_error(name: str, given: Tensor, pattern: Pattern) -> InputError:
    """Return the error for scores, or a sum of them, that are not finite."""
    shape = tuple(given.shape)
    index = torch.nonzero(~torch.isfinite(given.float() if given.dtype in FLOATS8 else given))
    if not len(index):
        return too_large_error(name, shape)
    first = tuple(index[0].tolist())
    return non_finite_message(name, first, float(given[first]), shape, pattern)


def _remainder_score(X: Tensor, rows: int, cols: int, absolute: bool) -> float:
    """Return what the entries outside the solved part are worth, in float64."""
    parts = [part.double() for part in (X[:, :rows, cols:], X[:, rows:]) if part.numel()]
    return exact_sum([float((part.abs() if absolute else part).sum()) for part in parts])


@_outside_graphs
def verify(
    mask: Tensor, pattern: Pattern | str, *, at_most: bool | None = None, padding: str = "error"
) -> Report:
    """Check that a mask tensor, or a tensor of weights, satisfies a pattern: `nmsolve.verify` for
    tensors, on the host.

    Parameters
    ----------
    mask : (rows, cols), (batch, rows, cols) or (out, in, kernel …) tensor
        A bool mask, or weights of any other dtype, of which at most n of a group may be nonzero.
        Laid out as for `solve`.
    pattern, at_most, padding
        As in `nmsolve.verify`.

    Returns
    -------
    Report
        Its indices for convolution weights are those of the matrices (kernel …, out, in).

    Raises
    ------
    PatternError, InputError
        If the pattern or the shape cannot be checked, or the tensor has no values (meta, sparse,
        …).

    Examples
    --------
    >>> import torch
    >>> verify(torch.tensor([[True, False, True, False]]), "2:4").ok
    True
    """
    pattern = Pattern.of(pattern, at_most)
    tensor = check_tensor(mask, "mask", f"pattern {pattern}")
    # Weights count by what is not zero, which is all that needs to cross to the host.
    matrices = as_matrices(
        tensor if tensor.dtype == torch.bool else is_nonzero(tensor).to(torch.uint8)
    )
    try:
        return feasibility.verify(matrices.cpu().numpy(), pattern, padding=padding)
    except InputError as error:
        raise explain_layout(error, tensor) from None
