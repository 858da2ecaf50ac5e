"""`Attachment`: a method at work in an optimizer's steps, by hooks that find the layers, call the
method and count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmsolve.errors import InputError
from nmsolve.torch.training.attached_layers import AttachedLayers, Step
from nmsolve.torch.training.masked_layer import MaskedLayer
from nmsolve.torch.training.method import Method
from nmsolve.torch.weights.sharding import first_axis


class Attachment(AttachedLayers):
    """A method at work in the steps of one optimizer.

    In pre-step hooks gradients are unscaled, clipped, accumulated and reduced, which in backward
    they are not. Where the step is given a closure, gradients exist only once it has run, so the
    work is done at its end.

    Attributes
    ----------
    method : Method
    waiting : list of MaskedLayer
        Frozen layers that no optimizer held when this was attached; the attachments of a model
        share the list, and the one whose optimizer is given such a weight takes the layer.
    optimizer, layers
        As of `AttachedLayers`.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        layers: Sequence[MaskedLayer],
        waiting: list[MaskedLayer],
        method: Method,
    ) -> None:
        super().__init__(optimizer)
        self.waiting = waiting
        self.method = method
        self._skipped = False
        self._to_forget = False
        self._take(layers)
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            optimizer.register_step_post_hook(self._after),
            optimizer.register_load_state_dict_post_hook(self._loaded),
        ]

    def _take(self, layers: Sequence[MaskedLayer]) -> None:
        """Begin with layers that the optimizer holds."""
        for layer in layers:
            _check_shard(layer)
            self._check_state(layer)
        self.method.begin(layers, self)
        self.layers += layers
        # At the first step: the model may be yet to load the masks of this state.
        self._to_forget = self.method.forgets

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def _held(self) -> list[tuple[MaskedLayer, dict[str, Any]]]:
        """Return the layers with their groups, found at every step: loading makes new groups, FSDP
        and load_state_dict(assign=True) new parameters.
        """
        groups = {
            id(parameter): group
            for group in self.optimizer.param_groups
            for parameter in group["params"]
        }
        self.layers = [layer for layer in self.layers if layer.has_mask]
        self.waiting[:] = [layer for layer in self.waiting if layer.has_mask]
        thawed = [layer for layer in self.waiting if id(layer.parameter) in groups]
        if thawed:  # frozen when the optimizer was attached, and added to it since
            self.waiting[:] = [layer for layer in self.waiting if layer not in thawed]
            self._take(thawed)
        held, lost = [], []
        for layer in self.layers:
            group = groups.get(id(layer.parameter))
            if group is None:
                lost.append(layer.path)
            else:
                held.append((layer, group))
        if lost:
            raise InputError(
                f"the weight of {', '.join(lost)} is no longer the tensor that the "
                f"{type(self.optimizer).__name__} holds, so it would not be trained: it was "
                "replaced after attach (load_state_dict(assign=True), a new nn.Parameter, "
                "fully_shard). Make the optimizer from the model's parameters again, and attach it"
            )
        return held

    def _before(
        self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Any, Any] | None:
        held = self._held()  # may take layers
        self._skipped = False
        if self._to_forget:
            self._to_forget = False
            with torch.no_grad():
                for layer in self.layers:
                    self.forget(layer)
        if not self.method.uses_gradients:
            return None
        args = tuple(args)
        closure: Callable[[], Any] | None = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._prepare(held, first=True)
            return None
        evaluations = 0

        def then_prepare() -> Any:
            nonlocal evaluations
            loss = closure()
            evaluations += 1
            self._prepare(held, first=evaluations == 1)
            return loss

        if len(args) > 1:
            return (args[0], then_prepare, *args[2:]), kwargs
        return args, {**kwargs, "closure": then_prepare}

    def _prepare(self, held: list[tuple[MaskedLayer, dict[str, Any]]], first: bool) -> None:
        found_inf = getattr(self.optimizer, "found_inf", None)
        if found_inf is not None and float(found_inf) != 0.0:
            self._skipped = True
            return
        scale = getattr(self.optimizer, "grad_scale", None)
        layers, gradients = [], []
        for layer, group in held:
            gradient = layer.gradient
            if gradient is not None:
                layers.append((layer, group))
                gradients.append(gradient)
        step = Step(self, layers, gradients, 1.0 if scale is None else float(scale), first)
        with torch.no_grad():
            self.method.before_step(step)

    def _loaded(self, optimizer: Optimizer) -> None:
        for layer in self.layers:
            self._check_state(layer)
        self._to_forget = self.method.forgets

    def _check_state(self, layer: MaskedLayer) -> None:
        """Raise InputError if what the optimizer holds for a layer is another's."""
        state, shape = self.optimizer.state.get(layer.parameter, {}), layer.parameter.shape
        for name in ("momentum_buffer", "exp_avg", "square_avg", "sum", "acc_delta"):
            if isinstance(state.get(name), Tensor) and state[name].shape != shape:
                raise InputError(
                    f"the optimizer's state for layer {layer.path} {tuple(shape)} has shape "
                    f"{tuple(state[name].shape)}: it was saved with parameters in another order. "
                    "Masks change that order, so make the optimizer before sparsify_ or after it "
                    "as in the run that was saved"
                )

    def _after(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        found_inf = getattr(self.optimizer, "found_inf", None)
        if self._skipped or (found_inf is not None and float(found_inf) != 0.0):
            return
        # Of the masks that the step was taken with.
        densities = [self.method.density(layer) for layer in self.layers]
        with torch.no_grad():
            self.method.after_step(self)
        for layer, density in zip(self.layers, densities, strict=True):
            layer.masked.progress.step += 1
            layer.masked.progress.density_sum += density


def _check_shard(layer: MaskedLayer) -> None:
    """Raise InputError if this rank's part of a weight cuts groups or blocks."""
    entry, parameter = layer.entry, layer.parameter
    try:
        rows = first_axis(parameter)
    except InputError as error:
        raise InputError(f"layer {layer.path} of shape {entry.shape}: {error}") from None
    m = entry.pattern.m
    whole = (rows.start, rows.stop) == (0, entry.shape[0])
    if whole or (entry.axis == 1 and not entry.pattern.transposable):
        return
    if rows.start % m or rows.stop % m:
        raise InputError(
            f"layer {layer.path} of shape {entry.shape}: this rank's shard has rows {rows.start} "
            f"to {rows.stop - 1}, which cuts "
            f"{'blocks' if entry.pattern.transposable else 'groups'} of pattern {entry.pattern}. "
            f"Shard over a number of ranks that leaves each a multiple of {m} rows, choose a "
            "row-wise pattern for the layer, or leave it out of the plan"
        )
