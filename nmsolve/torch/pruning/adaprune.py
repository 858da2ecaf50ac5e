"""`adaprune_`: another mask without retraining. Kept weights are adjusted so that every layer gives
what it gave before.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.selection import Patterns
from nmsolve.torch.calibration.inputs import Item
from nmsolve.torch.pruning.adam import Adam
from nmsolve.torch.pruning.layerwise import prune_layers
from nmsolve.torch.pruning.least_squares import LeastSquares
from nmsolve.torch.pruning.problem import Problem
from nmsolve.torch.pruning.reconstruction import Reconstruction
from nmsolve.torch.weights.given_scores import check_scores, scores_for
from nmsolve.torch.weights.planning import Plan
from nmsolve.torch.weights.planning import plan as make_plan

_SOLVERS = {"least_squares": LeastSquares(), "adam": Adam()}


def adaprune_(
    model: nn.Module,
    plan: Plan | Patterns,
    calibration: Iterable[Item],
    solver: str | LeastSquares | Adam = "least_squares",
    sequential: bool = True,
    *,
    scores: Mapping[str, Tensor] | str | None = None,
    progress: bool | None = None,
) -> Reconstruction:
    r"""Convert a trained model to a plan's patterns without retraining, in place.

    Layer by layer, with inputs X, the outputs Y that the dense layer gave, and the exact mask M of
    its scores:

    .. math:: \min_V \lVert Y - X V^T \rVert^2 + \delta \lVert V - M \circ W \rVert^2,
        \quad V = M \circ V

    Parameters
    ----------
    model : nn.Module
        Dense, unstructured-sparse, or with the zeros of another mask in its weights. Run in eval
        mode.
    plan : Plan, or pattern
        From `nmsolve.torch.plan`; a pattern, or a mapping of globs to patterns, means the default
        plan for it.
    calibration : iterable of model inputs
        Tensors, or tuples or lists of arguments, or mappings of keyword arguments. Run through once
        or twice a layer (iterators are kept as lists); a few hundred samples are usual.
    solver : {"least_squares", "adam"}, LeastSquares or Adam
        How kept weights are found: the normal equations to a residual, or the paper's 1000 steps of
        Adam. `LeastSquares` and `Adam` have the settings.
    sequential : bool
        X is what the layers before give once they are pruned, so that later ones make up for
        earlier ones, and Y what the dense layer gave for dense inputs. False: both are of the dense
        model, as in the released code, in fewer runs of the model.
    scores : mapping of paths to tensors, or "activation"
        What masks maximise instead of |W|, from `nmsolve.torch.scores`; "activation" scores each
        layer by the inputs that it is adjusted to. None: the plan's scores, if it was made with
        some.
    progress : bool, optional
        A progress bar over layers; None: on a terminal only.

    Returns
    -------
    Reconstruction
        Errors before and after, layer by layer. The model satisfies the plan, and no layer's error
        is above that of masking it.

    Raises
    ------
    InputError
        If the plan has nothing to do or is another model's; the calibration is empty or exhausted,
        the model fails on it, an input is not finite, or a layer is never reached, naming the
        layer; the solver needs inputs of full rank and they are not. The model is then as it was.

    Notes
    -----
    Moments, residuals and errors are float64. Memory besides the model: a copy of the planned
    weights, and for the layer at work some 75 bytes a weight and 20 for each pair of columns,
    whatever the number of samples; Adam keeps the samples of the layer at work. Biases stay as they
    are. Batch norms behind pruned layers get new statistics in the end, the mean over the
    calibration's batches.

    The released code flattens weights into groups across rows, and trains biases too.

    References
    ----------
    Hubara et al., Accelerated sparse neural training: a provable and efficient method to find N:M
    transposable masks, NeurIPS 2021, section 5 (AdaPrune).

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> found = adaprune_(model, "2:4", [torch.randn(100, 16)])
    >>> all(layer.after < layer.before for layer in found)
    True
    >>> (model[0].weight.reshape(-1, 4) != 0).sum(1).unique().tolist()
    [2]
    """
    chosen = _SOLVERS.get(solver) if isinstance(solver, str) else solver
    if not isinstance(chosen, LeastSquares | Adam):
        raise InputError(
            "solver must be 'least_squares', 'adam', nmt.LeastSquares(…) or nmt.Adam(…), got "
            f"{solver!r}"
        )
    if scores is None and isinstance(plan, Plan):
        scores = plan.scores
    if not (
        scores is None
        or isinstance(scores, Mapping)
        or (isinstance(scores, str) and scores in ("magnitude", "activation"))
    ):
        raise InputError(
            "scores must be 'magnitude', 'activation' or what nmt.scores gives, such as "
            "nmt.scores.fisher(model, items), got "
            f"{repr(scores) if isinstance(scores, str) else type(scores).__name__}"
        )

    if isinstance(scores, Mapping) and isinstance(model, nn.Module):
        plan = plan if isinstance(plan, Plan) else make_plan(model, plan)
        check_scores(plan.planned, scores)

    def plain_mask(problem: Problem) -> Tensor:
        return problem.best_mask(_scores(problem, scores))

    return prune_layers(
        model,
        plan,
        calibration,
        plain_mask,
        chosen.solve,
        sequential=sequential,
        keep_samples=isinstance(chosen, Adam),
        progress=progress,
    )


def _scores(problem: Problem, scores: Mapping[str, Tensor] | str | None) -> Tensor:
    """(parts, rows, cols)."""
    if scores is None or scores == "magnitude":
        return problem.weight.abs()
    if isinstance(scores, str):
        return problem.weight.abs() * problem.moments.gram.diagonal(
            dim1=1, dim2=2
        ).sqrt().unsqueeze(1)
    return problem.layout.matrices(scores_for(problem.entry, scores).to(problem.weight))
