"""`sparsegpt_`: masks chosen by second order, together with the weights that are kept."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.selection import Patterns
from nmsolve.torch.calibration.inputs import Item
from nmsolve.torch.options import is_number
from nmsolve.torch.pruning.admm import admm_mask
from nmsolve.torch.pruning.layerwise import prune_layers
from nmsolve.torch.pruning.least_squares import LeastSquares
from nmsolve.torch.pruning.obs import obs_mask
from nmsolve.torch.pruning.problem import Problem, Solution
from nmsolve.torch.pruning.reconstruction import Reconstruction
from nmsolve.torch.weights.layer_plan import Plan
from nmsolve.torch.weights.planning import plan_for


def sparsegpt_(
    model: nn.Module,
    plan: Plan | Patterns,
    calibration: Iterable[Item],
    *,
    damping: float = 1e-2,
    sequential: bool = True,
    progress: bool | None = None,
) -> Reconstruction:
    r"""Prune a trained model by second-order information about its layers, in place.

    .. math:: \min_{M, V} \lVert Y - X V^T \rVert^2 + \delta \lVert V - W \rVert^2,
        \quad V = M \circ V

    over masks M of the plan's patterns. Row-wise masks are SparseGPT's: columns from left to right,
    in blocks, each dropped weight making up for itself to its right. Transposable masks, which no
    order of columns can serve, come from alternating between that least-squares problem and the
    exact projection onto the pattern (ADMM). Either way the kept weights are then solved for by
    least squares on the mask; where that is no better than on the mask of largest magnitudes, this
    one is taken.

    Parameters
    ----------
    model, plan, calibration, sequential, progress
        As for `adaprune_`.
    damping : float
        δ as a share of the mean diagonal of XᵀX, positive; 0.01 in SparseGPT's code.

    Returns
    -------
    Reconstruction
        With the errors of masking by magnitudes as those before.

    Raises
    ------
    InputError
        As for `adaprune_`; also for a plan with scores, which would have no say, and where XᵀX
        cannot be inverted, naming the layer.
    PatternError
        For a pattern that does not exist.

    Notes
    -----
    In float64. Memory as for `adaprune_`, up to twice as much. SparseGPT's code prunes towards the
    layer's own outputs for the pruned model's inputs; here these are pulled towards the dense
    model's outputs (Y), and the last step is not in it.

    References
    ----------
    Frantar & Alistarh, SparseGPT: massive language models can be accurately pruned in one-shot,
    ICML 2023, Algorithm 1.

    Examples
    --------
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> found = sparsegpt_(model, "2:4", [torch.randn(100, 16)])
    >>> all(layer.after < layer.before for layer in found)
    True
    """
    if not (is_number(damping) and damping > 0):
        raise InputError(f"damping must be a positive number, such as 1e-2, got {damping!r}")
    plan = plan_for(model, plan)
    if plan.scores is not None:
        raise InputError(
            "sparsegpt_ chooses masks by second order, and the plan has scores: use adaprune_, or "
            "a plan without them, nmt.plan(model, plan.patterns)"
        )
    least_squares = LeastSquares(damping=damping)

    def prune(problem: Problem, plain: Tensor) -> Solution:
        moments = problem.moments
        cols = problem.weight.shape[-1]
        hessian = moments.gram + problem.damping(damping) * torch.eye(
            cols, dtype=torch.float64, device=moments.gram.device
        )
        # Completing the square: the weights if all were kept.
        residual = moments.cross - problem.weight @ moments.gram
        try:
            target = problem.weight + torch.linalg.solve(hessian, residual, left=False)
            if problem.entry.pattern.transposable:
                mask, iterations = admm_mask(problem, target, hessian)
            else:
                mask, iterations = obs_mask(problem, target, hessian), 1
        except torch.linalg.LinAlgError as error:  # type: ignore[attr-defined]
            raise InputError(
                f"layer {problem.entry.path}: XᵀX of its inputs cannot be inverted with "
                f"damping={damping:g} ({error}): give more damping, or inputs whose squares are in "
                "the range of float64"
            ) from error
        return _better(
            problem,
            least_squares.solve(problem, mask),
            least_squares.solve(problem, plain),
            iterations,
        )

    return prune_layers(
        model,
        plan,
        calibration,
        lambda problem: problem.best_mask(problem.weight.abs()),
        prune,
        sequential=sequential,
        progress=progress,
    )


def _better(problem: Problem, second_order: Solution, plain: Solution, iterations: int) -> Solution:
    """The solution with the smaller error, row by row for row-wise patterns; its iterations are
    those of the choice of the mask.
    """
    errors = [problem.moments.error(solution.weight) for solution in (second_order, plain)]
    worse = errors[0] > errors[1]
    if problem.entry.pattern.transposable:
        worse = (errors[0].sum() > errors[1].sum()).expand_as(worse)
    pick = worse.unsqueeze(-1)
    return Solution(
        weight=torch.where(pick, plain.weight, second_order.weight),
        mask=torch.where(pick, plain.mask, second_order.mask),
        iterations=iterations,
        residual=max(second_order.residual or 0.0, plain.residual or 0.0),
        damping=second_order.damping,
    )
