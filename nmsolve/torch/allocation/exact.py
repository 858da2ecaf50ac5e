"""`allocate`: the pattern of every layer that loses least under a budget, proven."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping
from dataclasses import replace

from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.torch.allocation.allocated import Allocation
from nmsolve.torch.allocation.budget import Budget, FLOPs, Latency, Params
from nmsolve.torch.allocation.candidates import (
    Candidate,
    Named,
    Table,
    candidates_of,
    name_of,
    row_of,
)
from nmsolve.torch.allocation.costs import check_reachable, costs_of
from nmsolve.torch.allocation.knapsack import choose
from nmsolve.torch.allocation.layer_losses import LayerLosses, Losses, Option
from nmsolve.torch.allocation.mask_losses import losses
from nmsolve.torch.calibration.inputs import Item
from nmsolve.torch.options import is_number
from nmsolve.torch.weights.layer_plan import LayerPlan, OpenWeight


def allocate(
    model_or_losses: nn.Module | Losses | Table,
    candidates: Iterable[Named] | None = None,
    budget: Budget | None = None,
    *,
    calibration: Iterable[Item] | None = None,
    example_inputs: Item | None = None,
    include: str | Iterable[str] | None = None,
    exclude: str | Iterable[str] = (),
    padding: str = "skip",
    scores: Mapping[str, Tensor] | None = None,
    time_limit: float = 60.0,
) -> Allocation:
    r"""Choose a pattern for every layer so that the model loses least under a budget, and prove
    that it is the least.

    .. math:: \min_p \sum_i l_i(p_i) \quad \text{such that} \quad \sum_i c_i(p_i) \le b

    where l are the losses (`nmsolve.torch.losses`) and c the costs of candidates p: a
    multiple-choice knapsack problem.

    Parameters
    ----------
    model_or_losses : nn.Module, Losses, or mapping
        A model; its losses, which serve many budgets; or layer path → candidate → loss, for
        `Latency` budgets.
    candidates : iterable of Pattern, str or None
        "2:4", "4:8T", …, each offered to the layers whose shape it divides; None or "dense" leaves
        a layer as it is. Needed for a model; for losses, those of them to choose from, or None for
        all.
    budget : Params, FLOPs or Latency
        The limit on the costs of the planned layers: kept weights, multiply-adds, or times by a
        table.
    calibration, example_inputs, include, exclude, padding, scores
        For a model: as for `nmsolve.torch.losses`.
    time_limit : float
        Seconds of the search after which the best plan so far is returned, FEASIBLE, with its
        bound.

    Returns
    -------
    Allocation
        A `Plan`. Layers that no candidate pattern fits stay dense, say why, and count neither in
        loss nor in cost. All others do, also those that the allocation leaves dense.

    Raises
    ------
    InputError
        If the budget is below the smallest reachable cost, giving that; if a table lacks a layer or
        a candidate; as `nmsolve.torch.losses`.
    PatternError
        For a candidate that is no pattern.
    MissingDependencyError
        If the search is left to OR-tools (rarely: see `nmsolve.torch.allocation.knapsack`) and it
        is not there.

    Notes
    -----
    Exact, and deterministic unless the time limit is reached. Weights that several layers share are
    chosen and counted once; in a latency table under the first layer's path. A plan from a mapping
    knows no shapes: `nmt.plan(model, allocation.patterns)` does.

    References
    ----------
    Sinha & Zoltners, The multiple-choice knapsack problem, Operations Research 27(3), 1979,
    503-515. Kellerer, Pferschy & Pisinger, Knapsack Problems, 2004, chapter 11.

    Examples
    --------
    >>> import nmsolve.torch as nmt
    >>> model = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 8))
    >>> plan = allocate(model, ["1:4", "2:4", "3:4", "dense"], Params(800))
    >>> plan.status.value, plan.cost <= 800, plan.bound <= plan.objective
    ('optimal', True, True)
    >>> nmt.sparsify_(model, plan).finalize_().ok
    True
    """
    if isinstance(candidates, Params | FLOPs | Latency):
        raise InputError(
            f"candidates are patterns, such as ['2:4', '4:8T', 'dense'], got {candidates!r}: pass "
            f"budget={candidates!r}"
        )
    budget = _checked(budget)
    if not (is_number(time_limit) and time_limit > 0):
        raise InputError(f"time_limit takes a positive number of seconds, got {time_limit!r}")
    for_model = {
        "calibration": calibration, "example_inputs": example_inputs, "include": include,
        "exclude": exclude or None,
        "padding": None if padding == "skip" else padding, "scores": scores,
    }  # fmt: skip
    if isinstance(model_or_losses, nn.Module):
        if candidates is None:
            raise InputError(
                "a model needs candidates to choose from, such as ['2:4', '4:8T', 'dense']"
            )
        if isinstance(budget, FLOPs) and calibration is None and example_inputs is None:
            raise InputError(
                "multiply-adds are counted for a run of the model: pass example_inputs, one item "
                "that it is called with"
            )
        offered = losses(
            model_or_losses,
            candidates,
            calibration=calibration,
            example_inputs=example_inputs,
            include=include,
            exclude=exclude,
            padding=padding,
            scores=scores,
        )
    else:
        unused = [name for name, value in for_model.items() if value is not None]
        if unused:
            raise InputError(
                f"{unused[0]} is for a model; losses are there already: pass it to "
                "nmt.losses(model, …)"
            )
        offered = _offered(model_or_losses, candidates)
    layers = [layer for layer in offered if layer.options]
    costs = [costs_of(layer, budget) for layer in layers]
    check_reachable(layers, costs, budget)
    started = time.perf_counter()
    found = choose(
        [[option.loss for option in layer.options] for layer in layers],
        costs,
        budget.limit,
        time_limit=time_limit,
    )
    chosen = {layer.path: layer.options[j] for layer, j in zip(layers, found.choices, strict=True)}
    return Allocation(
        (_settled(layer.entry, chosen.get(layer.entry.owner)) for layer in offered),
        offered.scores,
        objective=found.objective,
        bound=found.bound,
        status=found.status,
        budget=budget,
        seconds=time.perf_counter() - started,
        layer_losses={path: option.loss for path, option in chosen.items()},
        layer_costs={
            layer.path: row[j] for layer, row, j in zip(layers, costs, found.choices, strict=True)
        },
    )


def _checked(budget: object) -> Budget:
    """The budget; InputError if it is none."""
    if isinstance(budget, Params | FLOPs | Latency):
        return budget
    k = budget if is_number(budget) else "…"
    raise InputError(
        f"budget says what it limits: nmt.Params({k}) kept weights, nmt.FLOPs({k}) "
        f"multiply-adds, or nmt.Latency(table, {k}); got {budget!r}"
    )


def _offered(given: Losses | Table, candidates: Iterable[Named] | None) -> Losses:
    """Losses that were computed or measured before, with all candidates or some of them."""
    if not isinstance(given, Losses):
        if not isinstance(given, Mapping):
            raise InputError(
                "allocate takes a model, nmt.losses(model, …), or a mapping of losses; got a "
                f"{type(given).__name__}"
            )
        given = _without_model(given)
    if not any(layer.options for layer in given):
        raise InputError(f"there is nothing to allocate, no layer has candidates:\n{given}")
    if candidates is None:
        return given
    wanted = candidates_of(candidates)
    there = dict.fromkeys(option.pattern for layer in given for option in layer.options)
    for candidate in wanted:
        if candidate not in there:
            raise InputError(
                f"there are no losses for {name_of(candidate)}; there are some for "
                f"{', '.join(map(name_of, there))}"
            )
    return _restricted(given, wanted)


def _without_model(values: Table) -> Losses:
    """Losses of layers of which no more is known than their paths."""
    layers = []
    for path in values:
        row = row_of(values, path, "the mapping of losses")
        entry = OpenWeight(
            name=path, parameter="weight", kind="", shape=(), axis=-1, padding="error"
        )
        options = tuple(
            Option(pattern=candidate, loss=loss, kept=None) for candidate, loss in row.items()
        )
        if not options:
            raise InputError(f"the mapping of losses has no candidate for layer {path}")
        layers.append(LayerLosses(entry=entry, options=options))
    return Losses(layers)


def _restricted(given: Losses, wanted: tuple[Candidate, ...]) -> Losses:
    """The losses with some of their candidates; weights that none of these fits are skipped."""
    unfit = f"none of {', '.join(map(name_of, wanted))} fits it"
    skipped: set[str] = set()  # owners, which come before the layers that share their weights
    layers = []
    for layer in given:
        options = tuple(option for option in layer.options if option.pattern in wanted)
        if layer.options and not any(option.pattern for option in options):
            skipped.add(layer.path)
        if layer.entry.owner in skipped:
            layers.append(replace(layer, entry=layer.entry.skipped(unfit), options=()))
        else:
            layers.append(replace(layer, options=options))
    return Losses(layers, given.scores)


def _settled(entry: LayerPlan, option: Option | None) -> LayerPlan:
    """The weight with the option that was chosen for it; as it is where there was none."""
    if not isinstance(entry, OpenWeight) or option is None:
        return entry
    if option.pattern is None:
        return entry.skipped("left dense by the allocation")
    return entry.with_pattern(option.pattern)
