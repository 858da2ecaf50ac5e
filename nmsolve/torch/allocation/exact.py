"""`allocate`: the pattern of every layer that loses least under a budget, proven."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.result import Status
from nmsolve.table import shortened, table
from nmsolve.torch.allocation.budget import Budget, FLOPs, Latency, Params
from nmsolve.torch.allocation.candidates import (
    Candidate,
    Named,
    Table,
    candidates_of,
    name_of,
    number_of,
    row_of,
)
from nmsolve.torch.allocation.knapsack import choose, reachable
from nmsolve.torch.allocation.layer_losses import LayerLosses, Losses, Option, losses
from nmsolve.torch.calibration.inputs import Item
from nmsolve.torch.weights.planning import LayerPlan, Plan

_UNITS = {Params: "kept weights", FLOPs: "multiply-adds", Latency: "in the table's unit"}


class Allocation(Plan):
    """A plan that loses least under a budget, to be used like any other. Equal to one with the same
    layers; prints as a table.

    objective : what the planned layers lose. bound : no plan of these candidates within the budget
    loses less. gap : (objective − bound) / |objective|. status : OPTIMAL if that is at most 1e-9.
    budget : as given. cost : of the plan, in the budget's unit. seconds : how long the search took,
    without the losses. layer_losses, layer_costs : by path, of every weight that was allocated.
    """

    def __init__(
        self,
        layers: Iterable[LayerPlan],
        scores: Mapping[str, Tensor] | None = None,
        *,
        objective: float,
        bound: float,
        status: Status,
        budget: Budget,
        seconds: float,
        layer_losses: Mapping[str, float],
        layer_costs: Mapping[str, float],
    ) -> None:
        super().__init__(layers, scores)
        self.objective = objective
        self.bound = bound
        self.status = status
        self.budget = budget
        self.seconds = seconds
        self.layer_losses = dict(layer_losses)
        self.layer_costs = dict(layer_costs)

    @property
    def gap(self) -> float:
        """What is not proven, as a share of the loss."""
        return (
            (self.objective - self.bound) / abs(self.objective)
            if self.objective
            else 0.0 - self.bound
        )

    @property
    def cost(self) -> float:
        """What the plan costs, in the budget's unit; the limit where only the rounding of the sum
        is above it.
        """
        return min(_total(self.layer_costs.values()), self.budget.limit)

    def __str__(self) -> str:
        rows = []
        for layer in self.layers:
            found = [
                f"{values[layer.path]:.6g}" if layer.path in values else ""
                for values in (self.layer_losses, self.layer_costs)
            ]
            shape, pattern = (
                "×".join(map(str, layer.shape)),
                "-" if layer.pattern is None else str(layer.pattern),
            )
            why = layer.reason or (
                f"shares weight and mask with {layer.tied_to}" if layer.tied_to else ""
            )
            rows.append((shortened(layer.path), layer.kind, shape, pattern, *found, why))
        head = ("layer", "kind", "shape", "pattern", "loss", "cost", "reason")
        return f"{table(head, rows, {4, 5})}\n{self._summary()}"

    def __repr__(self) -> str:
        return (
            f"<Allocation: {len(self.planned)} of {len(self)} weights have a pattern, "
            f"{self._summary()}>"
        )

    def _summary(self) -> str:
        cost, limit = _number(self.cost), _number(self.budget.limit)
        return (
            f"{self.status.value}: loss {self.objective:.8g}, gap {self.gap:.1e}; cost {cost} of "
            f"at most {limit} {_UNITS[type(self.budget)]}"
        )


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
        What the planned layers may cost: kept weights, multiply-adds, or times by a table.
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
    _check_budget(budget)
    assert budget is not None
    _check_time(time_limit)
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
            calibration,
            example_inputs,
            include,
            exclude,
            padding,
            scores,
        )
    else:
        unused = [name for name, value in for_model.items() if value is not None]
        if unused:
            raise InputError(
                f"{unused[0]} is for a model; losses are there already: pass it to "
                "nmt.losses(model, …)"
            )
        offered = _offered(model_or_losses, candidates, budget)
    layers = [layer for layer in offered if layer.options]
    costs = [_costs(layer, budget) for layer in layers]
    _check_reachable(layers, costs, budget)
    started = time.perf_counter()
    found = choose(
        [[option.loss for option in layer.options] for layer in layers],
        costs,
        budget.limit,
        time_limit,
    )
    chosen = {layer.path: layer.options[j] for layer, j in zip(layers, found.choices, strict=True)}
    return Allocation(
        (_planned(layer.entry, chosen.get(layer.entry.owner)) for layer in offered),
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


def _check_budget(budget: object) -> None:
    if not isinstance(budget, Params | FLOPs | Latency):
        k = budget if isinstance(budget, int | float) and not isinstance(budget, bool) else "…"
        raise InputError(
            f"budget says what it limits: nmt.Params({k}) kept weights, nmt.FLOPs({k}) "
            f"multiply-adds, or nmt.Latency(table, {k}); got {budget!r}"
        )


def _check_time(time_limit: object) -> None:
    if (
        isinstance(time_limit, bool)
        or not isinstance(time_limit, int | float)
        or not 0 < time_limit < math.inf
    ):
        raise InputError(f"time_limit takes a positive number of seconds, got {time_limit!r}")


def _offered(given: Losses | Table, candidates: Iterable[Named] | None, budget: Budget) -> Losses:
    """Losses that were computed or measured before, with all candidates or some of them."""
    if not isinstance(given, Losses):
        if not isinstance(given, Mapping):
            raise InputError(
                "allocate takes a model, nmt.losses(model, …), or a mapping of losses; got a "
                f"{type(given).__name__}"
            )
        if not isinstance(budget, Latency):
            raise InputError(
                f"a mapping of losses has no shapes, so that {type(budget).__name__} has nothing "
                "to count: pass nmt.losses(model, candidates, …).with_values(mapping)"
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
    return Losses((_with_some(layer, wanted) for layer in given), given.scores)


def _without_model(values: Table) -> Losses:
    """Losses of layers of which no more is known than their paths."""
    layers = []
    for path in values:
        row = row_of(values, path, "the mapping of losses")
        entry = LayerPlan(
            name=path, parameter="weight", kind="", shape=(), pattern=None, axis=None,
            padding="error", reason=None
        )  # fmt: skip
        options = tuple(
            Option(pattern=candidate, loss=loss, kept=None) for candidate, loss in row.items()
        )
        if not options:
            raise InputError(f"the mapping of losses has no candidate for layer {path}")
        layers.append(LayerLosses(entry=entry, options=options))
    return Losses(layers)


def _with_some(layer: LayerLosses, wanted: tuple[Candidate, ...]) -> LayerLosses:
    options = tuple(option for option in layer.options if option.pattern in wanted)
    if not layer.options or any(option.pattern for option in options):
        return replace(layer, options=options)
    reason = f"none of {', '.join(map(name_of, wanted))} fits it"
    return replace(layer, entry=replace(layer.entry, reason=reason), options=())


def _costs(layer: LayerLosses, budget: Budget) -> list[float]:
    """What each option of a layer costs."""
    if isinstance(budget, Latency):
        row = row_of(budget.table, layer.path, "the latency table")
        times = [
            number_of(row, layer.path, option.pattern, "the latency table")
            for option in layer.options
        ]
        for option, seconds in zip(layer.options, times, strict=True):
            if seconds < 0:
                named = name_of(option.pattern)
                raise InputError(
                    f"the latency table has {seconds!r} for layer {layer.path} with {named}: times "
                    "are not negative"
                )
        return times
    kept = [option.kept for option in layer.options]
    assert None not in kept  # only mappings do not know it, and those go with latencies
    if isinstance(budget, Params):
        return kept  # type: ignore[return-value]
    if layer.positions is None:
        raise InputError(
            f"no multiply-adds are known of layer {layer.path}: pass example_inputs that reach it "
            "to nmt.losses(model, …), or to nmt.allocate for a model"
        )
    return [_whole(layer.positions * number) for number in kept if number is not None]


def _check_reachable(
    layers: Sequence[LayerLosses], costs: Sequence[Sequence[float]], budget: Budget
) -> None:
    """InputError with the smallest reachable budget, if this one is below it."""
    least = [min(range(len(row)), key=row.__getitem__) for row in costs]
    if reachable(costs, budget.limit):
        return
    floor = _total(row[j] for row, j in zip(costs, least, strict=True))
    where: dict[str, list[str]] = {}
    for layer, j in zip(layers, least, strict=True):
        where.setdefault(name_of(layer.options[j].pattern), []).append(layer.path)
    cheapest = "; ".join(
        f"{name} for {', '.join(paths[:3])}"
        + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        for name, paths in where.items()
    )
    table_first = "…, " if isinstance(budget, Latency) else ""
    named = f"nmt.{type(budget).__name__}({table_first}{_number(budget.limit)})"
    counted = (
        " of the example inputs (the calibration's first item unless given)"
        if isinstance(budget, FLOPs)
        else ""
    )
    raise InputError(
        f"{named} is below the smallest reachable, {_number(floor)} "
        f"{_UNITS[type(budget)]}{counted}, with the cheapest candidate everywhere ({cheapest}). "
        "Raise the budget, or offer sparser candidates"
    )


def _planned(entry: LayerPlan, option: Option | None) -> LayerPlan:
    if option is None:
        return entry
    return replace(
        entry,
        pattern=option.pattern,
        reason=None if option.pattern else "left dense by the allocation",
    )


def _total(values: Iterable[float]) -> float:
    """An exact sum, rounded once; an int of ints."""
    return _whole(math.fsum(values))


def _whole(value: float) -> float:
    return int(value) if float(value).is_integer() else value


def _number(value: float) -> str:
    return repr(_whole(value))
