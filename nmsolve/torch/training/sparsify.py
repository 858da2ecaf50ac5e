"""`sparsify_`: check a plan against a model, solve the first masks, and put them on."""

from __future__ import annotations

import uuid
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.selection import Patterns
from nmsolve.torch.offload.lent_parameter import check_not_lent
from nmsolve.torch.tensors import check_weight
from nmsolve.torch.training.found import first_of
from nmsolve.torch.training.method import Method
from nmsolve.torch.training.mounting import put_on
from nmsolve.torch.training.solved_methods import SRSTE
from nmsolve.torch.training.sparse_model import SparseModel
from nmsolve.torch.training.state_dict import PARTS, hook_model
from nmsolve.torch.weights.given_scores import scores_for
from nmsolve.torch.weights.layer_kinds import reduction_axis
from nmsolve.torch.weights.layer_plan import Plan, PlannedWeight
from nmsolve.torch.weights.masked import Masked, masked_parameters
from nmsolve.torch.weights.parameters import check_module, parameters_of
from nmsolve.torch.weights.planned import check_ties, planned_modules
from nmsolve.torch.weights.planning import plan_for
from nmsolve.torch.weights.sharding import is_sharded


def sparsify_(
    model: nn.Module,
    plan: Plan | Patterns,
    method: Method | None = None,
    *,
    accelerate: bool = False,
    scores: Mapping[str, Tensor] | None = None,
) -> SparseModel:
    """Put a mask on every planned weight of a model, in place, to be trained by a method.

    Parameters
    ----------
    model : nn.Module
        Before it is wrapped: first sparsify_, then DistributedDataParallel, fully_shard or
        torch.compile. Its parameters stay the same objects, so an optimizer that holds them goes
        on.
    plan : Plan, or pattern
        From `nmsolve.torch.plan`; a pattern, or a mapping of globs to patterns, means the default
        plan for it.
    method : Fixed, STE, SRSTE or LBC
        SRSTE() unless given.
    accelerate : bool
        Multiply nn.Linear layers under 2:4T masks by packed sparse tensors, forward and backward,
        where the GPU can; elsewhere the numbers are those of the masked dense weight. Which layers,
        and why not others, is in the result's `acceleration`.
    scores : mapping of layer paths to tensors of the weights' shapes, optional
        What `Fixed` masks maximise instead of |W|, from `nmsolve.torch.scores`; None: the plan's,
        if it was made with some. The other methods choose masks again while they train, by their
        own `score`.

    Returns
    -------
    SparseModel
        On which `attach(optimizer)` is called before training and `finalize_()` after it.

    Raises
    ------
    InputError, PatternError
        If the plan has nothing to do or is another model's, the model has masks already, a weight
        is not finite, or the method cannot serve a pattern. The model is then as it was.

    Notes
    -----
    Masks are parametrizations (torch.nn.utils.parametrize): module.weight is the masked weight,
    computed from the dense parameter at every use. Assigning module.weight sets the dense one, and
    so does writing into what module.weight returned, in the entries that were written:
    initialisations and adapters that are merged reach the dense weight (`written.py`). State dicts
    hold the dense weight under its plain name, the mask in bits and the counters, so that a resumed
    run continues bit for bit (`nmsolve/torch/training/state_dict.py` gives the format).

    Examples
    --------
    >>> import torch
    >>> _ = torch.manual_seed(0)
    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    >>> sparse = sparsify_(model, "2:4T", SRSTE(decay=2e-4)).attach(optimizer)
    >>> for _ in range(3):
    ...     loss = model(torch.randn(4, 16)).square().mean()
    ...     optimizer.zero_grad()
    ...     loss.backward()
    ...     optimizer.step()
    >>> sparse.stats().density
    0.5
    >>> sparse.finalize_().ok, type(model[0]).__name__, int(model[0].weight.count_nonzero())
    (True, 'Linear', 256)
    """
    check_module(model)
    check_not_lent(model, "a mask to be trained with")
    method = SRSTE() if method is None else method
    if not isinstance(method, Method):
        raise InputError(
            "method must be one of nmt.Fixed(), nmt.STE(), nmt.SRSTE() and nmt.LBC(…), got "
            f"{method!r}"
        )
    already = [name for name, module in model.named_modules() if masked_parameters(module)]
    if already:
        raise InputError(
            "the model is sparsified already "
            f"({first_of(already)}): finalize_ it first, "
            "train on with the SparseModel that sparsify_ returned, or take the masks off with "
            "nmt.remove_masks_(model)"
        )
    plan = plan_for(model, plan)
    scores = plan.scores if scores is None else scores
    modules = planned_modules(model, plan)
    weights = [_checked(entry, module) for entry, module in zip(plan.planned, modules, strict=True)]
    check_ties(model, plan)
    method.check(plan.planned, weights)
    if scores is not None:
        method.check_scores(plan.planned, scores)
    run = uuid.uuid4().hex
    masks: dict[int, Masked] = {}
    puts = []
    for entry, module, weight in zip(plan.planned, modules, weights, strict=True):
        key = id(parameters_of(module)[entry.parameter])
        if key not in masks:
            given = None if scores is None else scores_for(entry, scores).to(weight.device)
            masks[key] = Masked(
                method.initial(entry, weight, given),
                entry.pattern,
                entry.axis,
                entry.padding,
                method.straight_through,
                entry.path,
                run,
            )
        puts.append((module, entry.parameter, masks[key]))
    # All masks are solved: from here on nothing can fail halfway. The model's hook goes first: it
    # reads what the modules' take out.
    hook_model(model)
    for module, parameter, masked in puts:
        put_on(module, parameter, masked)
    return SparseModel(
        model, plan, method, run=run, scored=scores is not None, accelerate=accelerate
    )


def _checked(entry: PlannedWeight, module: nn.Module) -> Tensor:
    """Return a planned weight; raise InputError if no mask can be put on it."""
    weight = parameters_of(module)[entry.parameter]
    if is_sharded(weight):
        raise InputError(
            f"layer {entry.path} is sharded already: sparsify_ the model first, then fully_shard it"
        )
    if reduction_axis(module, entry.parameter) != entry.axis or parametrize.is_parametrized(module):
        raise InputError(
            f"layer {entry.path} is a {type(module).__name__}, planned was a {entry.kind}: make a "
            "new plan"
        )
    for part in PARTS:
        if hasattr(module, f"{entry.parameter}_{part}"):
            raise InputError(
                f"layer {entry.path} has an attribute {entry.parameter}_{part} of its own, which "
                "is what a part of the mask is called in checkpoints: rename it, or leave the "
                "layer out of the plan"
            )
    return check_weight(weight, f"the weight of layer {entry.path}", f"pattern {entry.pattern}")
