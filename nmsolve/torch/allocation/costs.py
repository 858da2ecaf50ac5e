"""The costs of candidates under a budget, and whether it can be met."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from nmsolve.errors import InputError
from nmsolve.torch.allocation.budget import Budget, FLOPs, Latency, Params
from nmsolve.torch.allocation.candidates import name_of, number_of, row_of
from nmsolve.torch.allocation.knapsack import reachable
from nmsolve.torch.allocation.layer_losses import LayerLosses

UNITS = {Params: "kept weights", FLOPs: "multiply-adds", Latency: "in the table's unit"}


def costs_of(layer: LayerLosses, budget: Budget) -> list[float]:
    """Return the cost of each option of a layer, in the budget's unit.

    Raises
    ------
    InputError
        If that is not known or negative, naming the layer.
    """
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
    kept = [option.kept for option in layer.options if option.kept is not None]
    if len(kept) < len(layer.options):
        raise InputError(
            f"a mapping of losses has no shapes, so that {type(budget).__name__} has nothing "
            "to count: pass nmt.losses(model, candidates, …).with_values(mapping)"
        )
    if isinstance(budget, Params):
        return [*kept]
    if layer.positions is None:
        raise InputError(
            f"no multiply-adds are known of layer {layer.path}: pass example_inputs that reach it "
            "to nmt.losses(model, …), or to nmt.allocate for a model"
        )
    return [whole(layer.positions * number) for number in kept]


def check_reachable(
    layers: Sequence[LayerLosses], costs: Sequence[Sequence[float]], budget: Budget
) -> None:
    """Raise InputError with the smallest reachable budget, if this one is below it."""
    least = [min(range(len(row)), key=row.__getitem__) for row in costs]
    if reachable(costs, budget.limit):
        return
    floor = total(row[j] for row, j in zip(costs, least, strict=True))
    where: dict[str, list[str]] = {}
    for layer, j in zip(layers, least, strict=True):
        where.setdefault(name_of(layer.options[j].pattern), []).append(layer.path)
    cheapest = "; ".join(
        f"{name} for {', '.join(paths[:3])}"
        + (f" and {len(paths) - 3} more" if len(paths) > 3 else "")
        for name, paths in where.items()
    )
    table_first = "…, " if isinstance(budget, Latency) else ""
    named = f"nmt.{type(budget).__name__}({table_first}{shown(budget.limit)})"
    counted = (
        " of the example inputs (the calibration's first item unless given)"
        if isinstance(budget, FLOPs)
        else ""
    )
    raise InputError(
        f"{named} is below the smallest reachable, {shown(floor)} "
        f"{UNITS[type(budget)]}{counted}, with the cheapest candidate everywhere ({cheapest}). "
        "Raise the budget, or offer sparser candidates"
    )


def total(values: Iterable[float]) -> float:
    """Return an exact sum, rounded once; an int of ints."""
    return whole(math.fsum(values))


def whole(value: float) -> float:
    """Return a number, as an int if it is one."""
    return int(value) if float(value).is_integer() else value


def shown(value: float) -> str:
    """Return a number as messages show it."""
    return repr(whole(value))
