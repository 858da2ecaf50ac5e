"""A run of DominoSearch: all layers are trained and shrunk, and n decreases, layer by layer, until
the budget is met.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from nmsolve.errors import InputError
from nmsolve.torch.allocation.budget import FLOPs, Params
from nmsolve.torch.allocation.domino_options import Options
from nmsolve.torch.allocation.erk import erk_densities
from nmsolve.torch.allocation.multiply_adds import positions_of
from nmsolve.torch.allocation.search import Drop
from nmsolve.torch.allocation.searched_weight import SearchedWeight, penalty_factors
from nmsolve.torch.calibration.inputs import Item, run
from nmsolve.torch.progress import progress_bar
from nmsolve.torch.running import undisturbed

_DIVERGED = "training diverged; a smaller lr or decay helps. The model is as it was"


class DominoRun:
    """All layers of a search, and how far they have come.

    Attributes
    ----------
    layers : list of SearchedWeight
    budget : Params or FLOPs
    options : Options
    unit : str
        Of the budget, for messages.
    history : list of Drop
        In the order in which layers came down to a smaller n.
    """

    def __init__(
        self, layers: list[SearchedWeight], budget: Params | FLOPs, options: Options
    ) -> None:
        self.layers = layers
        self.budget = budget
        self.options = options
        self.unit = "kept weights" if isinstance(budget, Params) else "multiply-adds"
        self.history: list[Drop] = []
        self._targets: list[float] = []

    @property
    def cost(self) -> float:
        """The cost of the plan as it is, in the budget's unit."""
        by_params = isinstance(self.budget, Params)
        return math.fsum(
            layer.kept_weights if by_params else layer.multiply_adds for layer in self.layers
        )

    def check_budget(self) -> None:
        """Raise InputError if no plan can meet the budget, or the dense model does; while all
        layers are dense.
        """
        n, m, dense = self.options.candidates[0], self.options.m, self.cost
        lowest = dense * n / m
        if self.budget.limit < lowest:
            raise InputError(
                f"{self.budget!r} cannot be met: the smallest that can be reached is {lowest:.0f} "
                f"{self.unit}, with {n}:{m} in all {len(self.layers)} layers; the dense model has "
                f"{dense:.0f}"
            )
        if self.budget.limit >= dense:
            raise InputError(
                f"the dense model meets {self.budget!r} already: it has {dense:.0f} {self.unit} in "
                "the layers that count"
            )

    def count(self, positions: dict[str, float]) -> None:
        """Take how often weights are multiplied, by path; set each layer's target sparsity and its
        share of the penalty.
        """
        for layer in self.layers:
            layer.positions = math.fsum(positions[entry.path] for entry in layer.entries)
        self.check_budget()
        densities = erk_densities(
            [tuple(layer.weight.shape) for layer in self.layers], self.budget.limit / self.cost
        )
        self._targets = [1 - density for density in densities]
        self._set_penalties()

    def decrease_n(self, step: int) -> bool:
        """Decrease n where the groups of a layer vote for it; return whether the budget is met, at
        which the other layers are not asked any more.
        """
        options = self.options
        for layer in self.layers:
            if not layer.finite:
                raise InputError(
                    f"the weight of layer {layer.path} is not finite any more after iteration "
                    f"{step}: {_DIVERGED}"
                )
            if layer.walk == options.candidates[0] or layer.below < options.vote:
                continue
            layer.walk -= 1
            if layer.walk in options.candidates:
                layer.n = layer.walk
                self.history.append(Drop(step, layer.path, layer.n, self.cost))
                if self.cost <= self.budget.limit:
                    return True
                self._set_penalties()
        return False

    def _set_penalties(self) -> None:
        """Set each layer's share of the penalty."""
        if not self.options.layerwise:
            return
        dense = [layer.weight.numel() * layer.positions for layer in self.layers]
        n = [layer.n for layer in self.layers]
        factors = penalty_factors(dense, n, self.options.m, self._targets, self.options.betas)
        for layer, eta in zip(self.layers, factors, strict=True):
            layer.eta = eta


def train(
    model: nn.Module,
    train_step: Callable[[nn.Module], Tensor],
    search: DominoRun,
    example_inputs: Item | None,
    progress: bool | None,
) -> int:
    """Train and shrink until the budget is met or max_steps have been done; return the number of
    iterations.

    Raises
    ------
    InputError
        If the budget, once multiply-adds are known, cannot be met; if train_step returns no loss;
        if numbers are not finite any more.
    """
    layers, options = search.layers, search.options
    entries = [entry for layer in layers for entry in layer.entries]
    if example_inputs is not None:
        with undisturbed(model, training=False):
            search.count(positions_of(model, entries, lambda: run(model, example_inputs)))
    searched = {id(layer.weight) for layer in layers}
    others = [p for p in model.parameters() if id(p) not in searched]
    optimizer = torch.optim.SGD(others, lr=options.lr) if others else None
    with progress_bar(about="domino search", total=options.max_steps, progress=progress) as bar:
        for step in range(options.max_steps):
            with torch.no_grad():
                for layer in layers:
                    layer.mask_()
            # under the caller's autocast it holds weights as they were
            torch.clear_autocast_cache()
            if step == 0 and example_inputs is None:
                first: list[Tensor] = []
                by = (
                    "the first call of train_step(model), which has to run the model that it is "
                    "given (or pass example_inputs=)"
                )
                call = partial(_append_taken, first, train_step, model)
                search.count(positions_of(model, entries, call, by))
                loss = first[0]
            else:
                loss = _taken(train_step, model, step)
            _check_loss(loss, step, layers)
            try:
                loss.backward()
            except RuntimeError as error:
                raise InputError(
                    f"backward from the loss of iteration {step} failed: {error}"
                ) from error
            with torch.no_grad():
                for layer in layers:
                    layer.update(options.lr, options.penalty(step))
            if optimizer is not None:
                optimizer.step()
            model.zero_grad()
            bar.update()
            if step % options.check_every == 0:
                with torch.no_grad():
                    met = search.decrease_n(step)
                bar.set_postfix_str(f"{search.cost:.0f} of {search.budget!r}", refresh=False)
                if met:
                    return step + 1
    return options.max_steps


def _taken(train_step: Callable[[nn.Module], Tensor], model: nn.Module, step: int) -> Tensor:
    try:
        return train_step(model)
    except StopIteration as error:
        raise InputError(
            f"train_step ran out of batches in iteration {step}: a search takes many, so begin the "
            "loader anew (itertools.cycle)"
        ) from error


def _append_taken(
    losses: list[Tensor], train_step: Callable[[nn.Module], Tensor], model: nn.Module
) -> None:
    losses.append(_taken(train_step, model, 0))


def _check_loss(loss: object, step: int, layers: list[SearchedWeight]) -> None:
    """InputError unless backward can start from a loss, and has not been called yet."""
    asked = "train_step returns the loss of a batch, a scalar tensor with its graph"
    if not isinstance(loss, Tensor):
        raise InputError(
            f"{asked}; at iteration {step} it returned "
            f"{'None' if loss is None else f'a {type(loss).__name__}'}"
        )
    if loss.numel() != 1:
        raise InputError(
            f"{asked}; at iteration {step} it returned one of shape {tuple(loss.shape)}: take its "
            "mean()"
        )
    if loss.is_complex():
        raise InputError(
            f"{asked}; at iteration {step} it returned a complex one: take its real part"
        )
    if not loss.requires_grad:
        raise InputError(
            f"{asked}; at iteration {step} it returned one that requires no gradient: it was "
            "detached, computed under torch.no_grad(), or all parameters are frozen"
        )
    touched = [layer.path for layer in layers if layer.touched()]
    if touched:
        raise InputError(
            f"{asked}, and leaves backward() and the optimizer's step to domino_search; at "
            f"iteration {step} it has given layer {touched[0]} a gradient or another weight"
        )
    if not bool(torch.isfinite(loss)):
        raise InputError(f"the loss is {loss.item()} at iteration {step}: {_DIVERGED}")
