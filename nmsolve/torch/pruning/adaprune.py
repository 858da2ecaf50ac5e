"""`adaprune_`: another mask without retraining. Kept weights are adjusted so that the outputs of
every layer change least.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.renamed import renamed, warn_renamed
from nmsolve.selection import Patterns
from nmsolve.torch.calibration.inputs import Item
from nmsolve.torch.pruning.adam import Adam
from nmsolve.torch.pruning.layerwise import prune_layers
from nmsolve.torch.pruning.least_squares import LeastSquares
from nmsolve.torch.pruning.problem import Problem
from nmsolve.torch.pruning.reconstruction import Reconstruction
from nmsolve.torch.weights.given_scores import check_scores, scores_for
from nmsolve.torch.weights.layer_plan import Plan
from nmsolve.torch.weights.planning import plan_for

_UPDATES = {"least_squares": LeastSquares(), "adam": Adam()}
_CRITERIA = ("magnitude", "activation")


@renamed(old="solver", new="update")
def adaprune_(
    model: nn.Module,
    plan: Plan | Patterns,
    calibration: Iterable[Item],
    *,
    update: str | LeastSquares | Adam = "least_squares",
    sequential: bool = True,
    criterion: str | None = None,
    scores: Mapping[str, Tensor] | None = None,
    progress: bool | None = None,
) -> Reconstruction:
    r"""Convert a trained model to a plan's patterns without retraining, in place.

    Layer by layer, with inputs X, the outputs Y that the dense layer gave, and the exact mask M for
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
        or twice for each layer (iterators are kept as lists); a few hundred samples are usual.
    update : {"least_squares", "adam"}, LeastSquares or Adam
        The way to the kept weights: the normal equations, to a residual, or the paper's 1000 steps
        of Adam. `LeastSquares` and `Adam` have the settings.
    sequential : bool
        True: X are the outputs of the layers before once they are pruned, so that later layers make
        up for earlier ones, and Y the outputs of the dense layer for dense inputs. False: both are
        of the dense model, as in the released code, in fewer runs of the model.
    criterion : {"magnitude", "activation"}, optional
        The rule that scores weights for the masks: |W|, or |W| times the norms of the inputs that
        the layer is adjusted to. None: the scores given.
    scores : mapping of paths to tensors of the weights' shapes, optional
        Maximised by the masks; from `nmsolve.torch.scores`. None: the plan's scores, if it was made
        with some, and |W| otherwise.
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
        layer; the update needs inputs of full rank and they are not; an option does not exist, or a
        criterion and scores are both given. The model is then as it was.
    PatternError
        For a pattern that does not exist.

    Notes
    -----
    Moments, residuals and errors are float64. Memory besides the model: a copy of the planned
    weights, and for the layer at work some 75 bytes per weight and 20 per pair of columns,
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
    chosen = _UPDATES.get(update) if isinstance(update, str) else update
    if not isinstance(chosen, LeastSquares | Adam):
        raise InputError(
            "update must be 'least_squares', 'adam', nmt.LeastSquares(…) or nmt.Adam(…), got "
            f"{update!r}"
        )
    criterion, scores = _criterion_or_scores(criterion, scores)
    plan = plan_for(model, plan)
    if criterion is None and scores is None:
        scores = plan.scores
    if scores is not None:
        check_scores(plan.planned, scores)

    def plain_mask(problem: Problem) -> Tensor:
        if scores is not None:
            given = scores_for(problem.entry, scores).to(problem.weight)
            return problem.best_mask(problem.layout.matrices(given))
        return problem.best_mask(
            _activation(problem) if criterion == "activation" else problem.weight.abs()
        )

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


def _criterion_or_scores(
    criterion: object, scores: object
) -> tuple[str | None, Mapping[str, Tensor] | None]:
    """The one that is given, checked; a criterion in place of scores, as it was once given, with a
    warning.
    """
    if isinstance(scores, str) and scores in _CRITERIA and criterion is None:
        warn_renamed(f"adaprune_(scores={scores!r})", f"criterion={scores!r}", depth=2)
        return scores, None
    if not (scores is None or isinstance(scores, Mapping)):
        raise InputError(
            "scores must be what nmt.scores gives, such as nmt.scores.fisher(model, items), got "
            f"{repr(scores) if isinstance(scores, str) else type(scores).__name__}; "
            "criterion='activation' scores each layer by its inputs"
        )
    if not (criterion is None or (isinstance(criterion, str) and criterion in _CRITERIA)):
        raise InputError(f"criterion must be 'magnitude' or 'activation', got {criterion!r}")
    if criterion is not None and scores is not None:
        raise InputError(
            f"criterion={criterion!r} and scores were both given, and either chooses the masks"
        )
    return criterion, scores


def _activation(problem: Problem) -> Tensor:
    """|W| times the norms of the inputs, (parts, rows, cols)."""
    squares = problem.moments.gram.diagonal(dim1=1, dim2=2)
    return problem.weight.abs() * squares.sqrt().unsqueeze(1)
