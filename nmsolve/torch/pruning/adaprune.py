"""`adaprune_`: another mask without retraining. Kept weights are adjusted so that the outputs of
every layer change least.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.renamed import renamed, warn_renamed
from nmsolve.selection import Patterns
from nmsolve.torch.calibration.inputs import Item
from nmsolve.torch.calibration.padding import Weights
from nmsolve.torch.pruning.adam import Adam
from nmsolve.torch.pruning.held_out import with_damping
from nmsolve.torch.pruning.layerwise import prune_layers
from nmsolve.torch.pruning.least_squares import LeastSquares
from nmsolve.torch.pruning.problem import Problem, Solution
from nmsolve.torch.pruning.pruning_options import PruningOptions
from nmsolve.torch.pruning.reconstruction import Reconstruction
from nmsolve.torch.weights.given_scores import check_scores, scores_for
from nmsolve.torch.weights.heads import plan_without_heads
from nmsolve.torch.weights.layer_plan import Plan

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
    targets: str = "dense",
    bias: bool = True,
    unreached: str = "magnitude",
    moments: torch.dtype = torch.float32,
    weights: Weights | None = None,
    offload: str | Path | None = None,
    criterion: str | None = None,
    scores: Mapping[str, Tensor] | None = None,
    progress: bool | None = None,
) -> Reconstruction:
    r"""Convert a trained model to a plan's patterns without retraining, in place.

    Layer by layer, with inputs X, wanted outputs Y, and the exact mask M for its scores:

    .. math:: \min_{V, b} \lVert Y - X V^T - 1 b^T \rVert^2 +
        \delta \lVert V - M \circ W \rVert^2, \quad V = M \circ V

    Parameters
    ----------
    model : nn.Module
        Dense, unstructured-sparse, or with the zeros of another mask in its weights. Run in eval
        mode.
    plan : Plan, or pattern
        From `nmsolve.torch.plan`; a pattern, or a mapping of globs to patterns, means the default
        plan for it without the heads of language models (the report's notes name them), unless it
        names one by its path.
    calibration : iterable of model inputs
        Tensors, or tuples or lists of arguments, or mappings of keyword arguments. A few hundred
        samples are usual; of language models, 128 sequences of 2,048 tokens. A tenth of them is
        held out: every tenth item, or the last tenth of each where they are fewer than ten.
    update : {"least_squares", "adam"}, LeastSquares or Adam
        The way to the kept weights: the normal equations, or the paper's 1000 steps of Adam.
        `LeastSquares` and `Adam` have the settings.
    sequential : bool
        True: X are the outputs of the layers before once they are pruned, so that later layers make
        up for earlier ones. False: of the dense model, as in the released code.
    targets : {"dense", "own"}
        If sequential, Y: what the dense layer gives for the dense model's inputs, or what it gives
        for X, as SparseGPT has it.
    bias : bool
        Fit the biases of linear layers and convolutions along with the weights, as the paper's code
        does; not those that other layers share, nor those of attention's packed projections.
    unreached : {"magnitude", "error"}
        Layers that no calibration input comes to, such as rare experts: masked by magnitude, with a
        warning, or an error.
    moments : torch.dtype
        The precision of XᵀX and of solving: float32 products of pieces of samples, summed in
        float64, or float64 throughout. Weights of float64 are always treated in float64.
    weights : function of an item, optional
        Of which rows of the layers' inputs count, as for `nmsolve.torch.scores.activation`. None:
        an item's `attention_mask` keeps padding out of moments, norms and errors.
    offload : path, optional
        A folder, on a disk, with room for the model's planned weights and the activations of all
        items within a block: dense weights are kept there until the model is pruned, and
        activations on the CPU, of 64 kB and more, while items wait for a layer to be pruned.
        Results are the same bit for bit. None: dense weights go where temporary files go, and
        activations stay in memory.
    criterion : {"activation", "magnitude"}, optional
        The rule that scores weights for the masks: |W| times the norms of the inputs that the layer
        is adjusted to (Wanda), or |W|. None: the scores given or, without such, "activation".
    scores : mapping of paths to tensors of the weights' shapes, optional
        Maximised by the masks; from `nmsolve.torch.scores`. None: the plan's scores, if it was made
        with some.
    progress : bool, optional
        A progress bar over layers; None: on a terminal only.

    Returns
    -------
    Reconstruction
        Errors before and after, layer by layer, on the calibration and on held-out inputs. The
        model satisfies the plan, and no layer's error on held-out inputs is above that of masking
        it.

    Raises
    ------
    InputError
        If the plan has nothing to do or is another model's; the calibration is empty or exhausted,
        the model fails on it, an input is not finite, or no layer is reached, naming the layer; the
        update needs inputs of full rank and they are not; there is no room for the dense weights or
        the activations; an option does not exist, or a criterion and scores are both given. The
        model is then as it was.
    PatternError
        For a pattern that does not exist.
    SolverError
        If memory does not suffice, naming the item or the layer. The model is then as it was.

    Warns
    -----
    UserWarning
        If a layer is not reached. `Reconstruction.notes` has that too, and where layers got fewer
        than five samples per input.

    Notes
    -----
    **One pass.** The forwards of all items run side by side, and stop at each planned layer until
    it is pruned: a model runs once per item, and once more for dense targets, whatever its depth.
    Inputs of one layer, and what a block needs behind it, are in memory for all items, or in files
    (`offload`). A model whose forwards cannot be stopped (a weight that is used more than once, or
    past its module; a forward that leaves something of an item in the model) is run as a whole for
    each stage of layers, and `Reconstruction.way` says why.

    **Memory** besides that: XᵀX of the layer at work, in float64 and float32, and some 80 bytes per
    weight of a piece of its rows, of 2²² weights: rows are pruned in such pieces, each with the
    damping and in the way that do best for it; Adam keeps the samples of the layer at work. No copy
    of the model, except where it is run as a whole for each stage: if anything fails, dense weights
    come back from the folder `offload`, and only if the process is killed is a half pruned model
    gone with it.

    Batch norms behind pruned layers get new statistics in the end, the mean over the calibration's
    batches.

    The released code flattens weights into groups across rows.

    References
    ----------
    Hubara et al., Accelerated sparse neural training: a provable and efficient method to find N:M
    transposable masks, NeurIPS 2021, section 5 (AdaPrune). Sun et al., A simple and effective
    pruning approach for large language models, ICLR 2024, equation 1 (Wanda).

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> found = adaprune_(model, "2:4", [torch.randn(200, 8) @ torch.randn(8, 16)])
    >>> all(layer.held_out_after < layer.held_out_before for layer in found)
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
    if isinstance(chosen, LeastSquares) and not chosen.damping and moments == torch.float32:
        moments = torch.float64  # float32 does not tell whether inputs have full rank
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
    if criterion is None and scores is None:
        scores = plan.scores
    if scores is not None:
        check_scores(plan.planned, scores)

    def plain_mask(problem: Problem) -> Tensor:
        if scores is not None:
            given = problem.piece.of(scores_for(problem.entry, scores)).to(problem.weight)
            return problem.best_mask(problem.layout.matrices(given))
        magnitude = problem.weight.abs()
        return problem.best_mask(
            magnitude if criterion == "magnitude" else magnitude * problem.norms()
        )

    def prune(problem: Problem, mask: Tensor, masked: Tensor) -> Solution:
        if isinstance(chosen, Adam):
            return chosen.solve(problem, mask)

        def fit(damping: float, near: Solution | None) -> Solution:
            return chosen.solve(problem, mask, damping, None if near is None else near.weight)

        return with_damping(problem, chosen.damping, fit)

    keep = isinstance(chosen, Adam)
    return prune_layers(
        model, plan, calibration, plain_mask, prune, options, heads, keep_samples=keep
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
