"""What happens at an optimizer's steps: one `Attachment` an optimizer, whose hooks find the layers,
call the method and count.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from nmsolve.errors import InputError
from nmsolve.torch.training.masked_layer import MaskedLayer
from nmsolve.torch.training.method import Method
from nmsolve.torch.weights.sharding import first_axis, local


@dataclass(slots=True)
class Step:
    """A step that is about to be taken, as methods see it: layers with the optimizer's group that
    each is in.

    scale : what gradients are multiplied by, where a gradient scaler leaves unscaling to a fused
    optimizer; 1 otherwise. first : False when a closure is evaluated again within the step.
    """

    attachment: Attachment
    layers: list[tuple[MaskedLayer, dict[str, Any]]]
    scale: float
    first: bool


class Attachment:
    """A method at work in the steps of one optimizer.

    In pre-step hooks gradients are unscaled, clipped, accumulated and reduced, which in backward
    they are not. Where the step is given a closure, gradients exist only once it has run, so the
    work is done at its end.
    """

    def __init__(
        self,
        optimizer: Optimizer,
        layers: Sequence[MaskedLayer],
        waiting: list[MaskedLayer],
        method: Method,
    ) -> None:
        self.optimizer = optimizer
        self.layers: list[MaskedLayer] = []
        self.waiting = waiting
        self.method = method
        self._factors: dict[int, tuple[tuple[int, int], Tensor]] = {}
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
        self._to_forget = (
            self.method.forgets
        )  # at the first step: the model may be yet to load the masks of this state

    def detach(self) -> None:
        """Take the hooks off."""
        for handle in self._handles:
            handle.remove()

    def factor(self, layer: MaskedLayer, kept: bool) -> Tensor:
        """This rank's mask as 1 where kept (or where dropped) and 0 elsewhere, in the weight's
        dtype: faster than bools.
        """
        weight = layer.weight
        version = layer.masked.version
        found = self._factors.get(id(layer))
        if (
            found is not None
            and found[0] == version
            and found[1].dtype == weight.dtype
            and found[1].device == weight.device
        ):
            return found[1]
        mask = layer.masked.mask[first_axis(layer.parameter)]
        factor = (
            found[1]
            if found is not None and found[1].dtype == weight.dtype
            else torch.empty_like(weight)
        )
        factor = factor.to(weight.device)
        factor.copy_(mask) if kept else torch.logical_not(mask, out=factor)
        self._factors[id(layer)] = version, factor
        return factor

    def forget(self, layer: MaskedLayer) -> None:
        """Zero what a layer's mask drops: in the weight, and in the momenta that would move it or
        fade to subnormals.
        """
        mask = layer.masked.mask[first_axis(layer.parameter)]
        layer.weight.mul_(mask)
        for tensor in self.optimizer.state.get(layer.parameter, {}).values():
            if (
                isinstance(tensor, Tensor)
                and tensor.shape == layer.parameter.shape
                and tensor.is_floating_point()
            ):
                local(tensor).mul_(mask)

    def _held(self) -> list[tuple[MaskedLayer, dict[str, Any]]]:
        """Layers with their groups, found anew: loading makes new groups, FSDP and
        load_state_dict(assign=True) new parameters.
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
        held = [(layer, groups.get(id(layer.parameter))) for layer in self.layers]
        lost = [layer.path for layer, group in held if group is None]
        if lost:
            raise InputError(
                f"the weight of {', '.join(lost)} is no longer the tensor that the "
                f"{type(self.optimizer).__name__} holds, so it would not be trained: it was "
                "replaced after attach (load_state_dict(assign=True), a new nn.Parameter, "
                "fully_shard). Make the optimizer from the model's parameters again, and attach it"
            )
        return held  # type: ignore[return-value]

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
        ready = [(layer, group) for layer, group in held if layer.parameter.grad is not None]
        with torch.no_grad():
            self.method.before_step(
                Step(self, ready, 1.0 if scale is None else float(scale), first)
            )

    def _loaded(self, optimizer: Optimizer) -> None:
        for layer in self.layers:
            self._check_state(layer)
        self._to_forget = self.method.forgets

    def _check_state(self, layer: MaskedLayer) -> None:
        """InputError if what the optimizer holds for a layer is another's."""
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
        densities = [
            self.method.density(layer) for layer in self.layers
        ]  # of the masks that the step was taken with
        with torch.no_grad():
            self.method.after_step(self)
        for layer, density in zip(self.layers, densities, strict=True):
            layer.masked.progress.step += 1
            layer.masked.progress.density_sum += density


def _check_shard(layer: MaskedLayer) -> None:
    """InputError if this rank's part of a weight cuts groups or blocks."""
    entry, parameter = layer.entry, layer.parameter
    assert entry.pattern is not None
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
