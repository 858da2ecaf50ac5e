"""Heads of language models, which give a logit for every token of the vocabulary: what pruning by
calibration leaves dense unless they are named.
"""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from nmsolve.selection import Patterns
from nmsolve.torch.weights.layer_plan import LayerPlan, Plan, PlannedWeight
from nmsolve.torch.weights.parameters import parameters_of
from nmsolve.torch.weights.planning import plan_for


def plan_without_heads(model: nn.Module, given: Plan | Patterns) -> tuple[Plan, tuple[str, ...]]:
    """Return a plan as it is, or the default one for patterns without the heads that transformers'
    models name (`get_output_embeddings`); and the paths of these.

    A layer that a mapping of patterns names by its whole path stays in.

    Raises
    ------
    InputError
        If the plan has nothing to do.
    """
    plan = plan_for(model, given)
    if isinstance(given, Plan):
        return plan, ()
    named = set(given) if isinstance(given, Mapping) else set()
    heads: set[int] = set()
    for module in model.modules():
        find = getattr(module, "get_output_embeddings", None)
        try:
            head = find() if callable(find) else None
        except NotImplementedError:  # models without one
            head = None
        if isinstance(head, nn.Module):
            heads.update(id(tensor) for tensor in parameters_of(head).values())
    by_name = dict(model.named_modules())
    reason = "the head of a language model, left dense unless the patterns name it by its path"
    layers: list[LayerPlan] = []
    left = []
    for entry in plan.layers:
        owner = by_name.get(entry.name)
        tensor = None if owner is None else parameters_of(owner).get(entry.parameter)
        if isinstance(entry, PlannedWeight) and id(tensor) in heads and entry.path not in named:
            left.append(entry.path)
            layers.append(entry.skipped(reason))
        else:
            layers.append(entry)
    return (plan_for(model, Plan(layers, plan.scores)), tuple(left)) if left else (plan, ())
