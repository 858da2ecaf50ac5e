"""`sparsegpt_`: masks chosen by second order, together with the weights that are kept."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from pathlib import Path

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.selection import Patterns
from nmsolve.torch.calibration.inputs import Item
from nmsolve.torch.calibration.padding import Weights
from nmsolve.torch.options import is_number
from nmsolve.torch.pruning.admm import admm_mask
from nmsolve.torch.pruning.held_out import with_damping
from nmsolve.torch.pruning.layerwise import prune_layers
from nmsolve.torch.pruning.least_squares import LeastSquares
from nmsolve.torch.pruning.problem import Problem, Solution
from nmsolve.torch.pruning.pruning_options import PruningOptions
from nmsolve.torch.pruning.reconstruction import Reconstruction
from nmsolve.torch.weights.heads import plan_without_heads
from nmsolve.torch.weights.layer_plan import Plan

#: Share of a held-out error that is left by damping which is worth another mask.
_WORTH = 0.999


def sparsegpt_(
    model: nn.Module,
    plan: Plan | Patterns,
    calibration: Iterable[Item],
    *,
    damping: float = 1e-2,
    sequential: bool = True,
    targets: str = "dense",
    bias: bool = True,
    unreached: str = "magnitude",
    moments: torch.dtype = torch.float32,
    weights: Weights | None = None,
    offload: str | Path | None = None,
    progress: bool | None = None,
) -> Reconstruction:
    r"""Prune a trained model by second-order information about its layers, in place.

    .. math:: \min_{M, V, b} \lVert Y - X V^T - 1 b^T \rVert^2 + \delta \lVert V - W \rVert^2,
        \quad V = M \circ V

    over masks M of the plan's patterns, row-wise or transposable: by alternating between that
    least-squares problem and the exact projection onto the pattern (ADMM). The kept weights are
    then solved for by least squares on the mask.

    Parameters
    ----------
    model, plan, calibration, sequential, targets, bias, unreached, moments, weights
    offload, progress
        As for `adaprune_`.
    damping : float
        δ as a share of the mean diagonal of XᵀX, positive; 0.01 in SparseGPT's code. Where the
        error on held-out inputs is well above that on the fitted ones, tenfold and more is tried.

    Returns
    -------
    Reconstruction
        With the errors of masking by magnitudes as those before.

    Raises
    ------
    InputError
        As for `adaprune_`; also for a plan with scores, which would have no say.
    PatternError
        For a pattern that does not exist.

    Warns
    -----
    UserWarning
        As for `adaprune_`.

    Notes
    -----
    Time and memory as for `adaprune_`. SparseGPT's code goes through the columns from left to
    right, decides a group's mask by the columns that are left, and prunes towards the layer's own
    outputs for the pruned model's inputs (targets="own"); here all columns are decided together,
    and later layers make up for earlier ones.

    References
    ----------
    Frantar & Alistarh, SparseGPT: massive language models can be accurately pruned in one-shot,
    ICML 2023. Meng et al., ALPS: improved optimization for highly sparse one-shot pruning for large
    language models, NeurIPS 2024 (ADMM).

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> found = sparsegpt_(model, "2:4", [torch.randn(200, 8) @ torch.randn(8, 16)])
    >>> all(layer.held_out_after < layer.held_out_before for layer in found)
    True
    """
    if not (is_number(damping) and damping > 0):
        raise InputError(f"damping must be a positive number, such as 1e-2, got {damping!r}")
    options = PruningOptions.checked(
        sequential=sequential,
        targets=targets,
        bias=bias,
        unreached=unreached,
        moments=moments,
        weights=weights,
        offload=offload,
        progress=progress,
    )
    plan, heads = plan_without_heads(model, plan)
    if plan.scores is not None:
        raise InputError(
            "sparsegpt_ chooses masks by second order, and the plan has scores: use adaprune_, or "
            "a plan without them, nmt.plan(model, plan.patterns)"
        )
    return prune_layers(
        model,
        plan,
        calibration,
        lambda problem: problem.best_mask(problem.weight.abs()),
        lambda problem, mask, masked: _second_order(problem, mask, masked, damping),
        options,
        heads,
    )


def _second_order(problem: Problem, plain: Tensor, masked: Tensor, damping: float) -> Solution:
    """Weights on the mask of second order; on the plain one, where the other is no better than
    masking.
    """

    def fit(share: float, near: Solution | None) -> Solution:
        hessian = problem.hessian(share)
        side = problem.right_hand_side(hessian)
        settled = None
        if near is not None:
            # Another mask is worth its time where more damping helps on the one at hand.
            settled = dataclasses.replace(
                LeastSquares().solve(problem, near.mask, share, near.weight, side),
                method=near.method,
                iterations=near.iterations,
            )
            if problem.judged(settled.weight) > _WORTH * problem.judged(near.weight):
                return settled
        mask, weight, iterations = admm_mask(problem, hessian, side)
        solution = LeastSquares().solve(problem, mask, share, weight, side)
        if settled is not None and problem.judged(settled.weight) < problem.judged(solution.weight):
            return settled
        return dataclasses.replace(solution, method="second order", iterations=iterations)

    def on_plain(share: float, near: Solution | None) -> Solution:
        start = None if near is None else near.weight
        return LeastSquares().solve(problem, plain, share, start)

    found = with_damping(problem, damping, fit)
    if problem.judged(found.weight) <= problem.judged(masked):
        return found
    other = with_damping(problem, damping, on_plain)
    return min(found, other, key=lambda solution: problem.judged(solution.weight))
