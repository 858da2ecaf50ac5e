"""Pruning along the forwards of all calibration items, which run side by side: each goes through
the model once, and stops at every planned layer until that is pruned.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import TensorWeakRef

from nmsolve.errors import InputError
from nmsolve.torch.calibration.activations import Use, watched
from nmsolve.torch.calibration.convolutions import Convolution
from nmsolve.torch.calibration.inputs import Calibration, Item, check_finite, run
from nmsolve.torch.calibration.padding import Counted
from nmsolve.torch.calibration.parked import Parking
from nmsolve.torch.calibration.suspended import (
    Forward,
    Inseparable,
    Stop,
    at_a_stop,
    current_forward,
    start_random,
    suspend,
)
from nmsolve.torch.calibration.traces import Traces
from nmsolve.torch.pruning.batch_norm import BatchNorm, check_normed
from nmsolve.torch.pruning.first_run import FirstRun, first_run, signature
from nmsolve.torch.pruning.gathered import Gathered, Gathering
from nmsolve.torch.pruning.order import Order
from nmsolve.torch.pruning.pruned_layer import PrunedLayer

#: Prunes a layer with what has been gathered of it, and what that took until now in seconds.
Step = Callable[[PrunedLayer, Gathered, float], None]


def prune_side_by_side(
    model: nn.Module,
    layers: Sequence[PrunedLayer],
    items: Calibration,
    step: Step,
    gathering: Gathering,
    offload: Path | None = None,
) -> list[BatchNorm]:
    """Call step(layer, gathered, seconds) for every layer that the calibration reaches, in the
    order in which it does; return the batch norms that may come after any of them.

    Parameters
    ----------
    model, layers, items
        The layers' weights may be changed by `step` alone.
    step : callable
    gathering : Gathering
    offload : path, optional
        A folder for activations of forwards that stand still; None: they stay in memory.

    Raises
    ------
    Inseparable
        If forwards of the model cannot run side by side. Layers that were pruned stay so.
    InputError
        If inputs of a layer are not finite, naming both; there is no room in `offload`.
    """
    given = iter(items)
    item = next(given)
    seed = int(torch.randint(2**62, (), device="cpu"))
    gpus = sorted({layer.own.device.index for layer in layers if layer.own.device.type == "cuda"})
    start_random(seed, gpus)
    first = first_run(model, layers, item)
    traces = Traces(model)
    parking = None if offload is None else Parking(offload)
    walk = _Walk(model, layers, gathering, first, traces, seed, gpus, parking)
    entries = [entry for layer in layers for entry in layer.entries]
    with parking or nullcontext(), watched(model, entries, walk.seen), walk.norms_watched():
        try:
            walk.begin(chain([item], given))
            while (layer := walk.next_layer()) is not None:
                began = time.perf_counter()
                walk.catch_up(layer)
                with layer.at_work():
                    gathered = walk.gather(layer)
                last = all(other.pruned for other in layers if other is not layer)
                if not last:
                    walk.leave_dense(layer)
                with layer.at_work():
                    step(layer, gathered, time.perf_counter() - began)
                walk.leave(layer, last=last)
                if last:
                    break
        finally:
            walk.end()
            traces.remove()
    return walk.first.norms


@dataclass(eq=False)
class _Walk:
    """Forwards on their way through the model."""

    model: nn.Module
    layers: Sequence[PrunedLayer]
    how: Gathering
    first: FirstRun
    traces: Traces
    #: Of random numbers: each item draws others, in the dense model the same.
    seed: int
    gpus: list[int]
    parking: Parking | None = None
    leading: list[Forward] = field(default_factory=list)
    #: Of the dense model, by item; where it is None, a layer's own outputs are its targets.
    dense: list[Forward | None] = field(default_factory=list)
    #: All that were ever begun, in that order.
    begun: list[Forward] = field(default_factory=list)
    #: Uses by owner that forwards of the dense model did not stop at.
    ahead: dict[Forward, dict[str, Stop]] = field(default_factory=dict)
    #: The first sign that forwards cannot run side by side, whatever the model makes of it.
    inseparable: Inseparable | None = None
    #: Of each item, the rows that count.
    counted: list[Counted] = field(default_factory=list)
    #: Number of layers that all have left, and of those that each has been at.
    done: int = 0
    visits: Counter[Forward] = field(default_factory=Counter)
    #: Of the layer before, with its inputs, their versions, and what else their matrices depend on.
    shared: Gathered | None = None
    inputs: list[tuple[TensorWeakRef, int, tuple[object, ...]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.by_owner = {layer.entry.owner: layer for layer in self.layers}
        self.owner_of = {e.path: e.owner for layer in self.layers for e in layer.entries}
        self.order = Order(self.first.order, list(self.by_owner))

    def seen(self, path: str, use: Use) -> None:
        """Called by the hooks of layers."""
        try:
            forward = at_a_stop(path, use)
            if not all(x.numel() for x in use.inputs):
                return
            owner = self.owner_of[path]
            if self.by_owner[owner].pruned and forward not in self.leading:
                self.dense = [None if other is forward else other for other in self.dense]
                raise _Overtaken
            last, call = forward.last or (None, None)
            again = last is not None and self.owner_of[last] == owner
            if again or self.by_owner[owner].pruned or owner in self.ahead.get(forward, ()):
                raise Inseparable(
                    f"calibration item {forward.index} comes to layer {path} a second time, or "
                    "after all others have left it"
                )
        except Inseparable as reason:
            self.inseparable = self.inseparable or reason
            raise
        dense = forward not in self.leading or not self.how.sequential
        if dense and use.call is call:
            # Attention multiplies by all of its weights when the hooks of all have been called: the
            # dense one has to do so before the first is pruned.
            self.ahead.setdefault(forward, {})[owner] = Stop(path, use)
            return
        suspend(forward, path, use)

    @contextmanager
    def norms_watched(self) -> Iterator[None]:
        """Check what batch norms are given whose statistics will be estimated anew."""
        names = {module: name for name, module in self.model.named_modules()}
        with ExitStack() as hooks:
            for norm in self.first.norms:

                def check(norm: BatchNorm, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
                    forward = current_forward()
                    if forward is not None and forward.last is not None:
                        x = args[0] if args else kwargs["input"]
                        check_normed(x, names[norm], forward.index)

                hooks.callback(norm.register_forward_pre_hook(check, with_kwargs=True).remove)
            yield

    def begin(self, items: Iterable[Item]) -> None:
        """Take every item to its first layer."""
        for index, item in enumerate(items):
            self.counted.append(self.how.padding.of(item, index))
            # The first item's tells whether all goes as it did alone, whatever targets are.
            targets = self.how.targets == "dense" or index == 0
            if self.how.sequential and targets:
                self.dense.append(self._forward(item, index))
                self._advance(self.begun[-1])
            else:
                self.dense.append(None)
            self.leading.append(self._forward(item, index))
            self._advance(self.begun[-1])

    def _forward(self, item: Item, index: int) -> Forward:
        body = partial(run, self.model, item, index)
        self.begun.append(Forward(body, index, self.seed + index, self.gpus))
        return self.begun[-1]

    def _advance(self, forward: Forward) -> None:
        """Run on to the next stop; a failure may be due to the others that are under way."""
        try:
            forward.advance()
        except _Overtaken:
            pass
        except InputError as error:
            if self.inseparable is None and error.__cause__ is None:
                raise  # what we check ourselves: it is no failure of the model
            raise self.inseparable or Inseparable(
                f"a forward failed beside others: {error}"
            ) from error
        if self.inseparable is not None:
            raise self.inseparable
        self._park(forward)
        # Looking at all modules takes a while: after every item at first, then after one a layer.
        if not self.done or forward.index == self.done % len(self.leading):
            kept = self.traces.first()
            if kept is not None:
                raise Inseparable(f"a forward changes {kept}, where it may be another one's")
        alone = forward is self.dense[0] or not self.how.sequential
        if forward.index == 0 and alone and forward.at is not None:
            self._compare(forward.at)

    def _park(self, *forwards: Forward | None) -> None:
        """Take from memory what forwards that stand still have made."""
        for forward in forwards:
            if self.parking is not None and forward is not None:
                self.parking.park(forward)

    def _compare(self, at: Stop) -> None:
        """Inseparable unless the dense model's first item is at the layer with the inputs that it
        had when it ran alone.
        """
        alone = self.first.signatures.get(self.owner_of[at.path])
        if alone is None or not signature(at.use).matches(alone):
            raise Inseparable(
                f"layer {at.path} is given other inputs when several items are under way: "
                "the model keeps something of an item outside of its forward"
            )

    def next_layer(self) -> PrunedLayer | None:
        """The layer to be pruned next, in the order of the first item."""
        stops = [forward.at for forward in self.leading if forward.at is not None]
        stops += [stop for f in self.leading for stop in self.ahead.get(f, {}).values()]
        if not stops:
            return None
        waiting = dict.fromkeys(self.owner_of[stop.path] for stop in stops)
        return self.by_owner[min(waiting, key=self.order.place)]

    def _stands(self, forward: Forward | None, layer: PrunedLayer) -> bool:
        """Return whether a forward has stopped at a layer."""
        at = None if forward is None else forward.at
        return at is not None and self.owner_of[at.path] == layer.entry.owner

    def _stop(self, forward: Forward | None, layer: PrunedLayer) -> Stop | None:
        """The use that a forward which has come to a layer makes of it."""
        if forward is None:
            return None
        if self._stands(forward, layer):
            return forward.at
        return self.ahead.get(forward, {}).get(layer.entry.owner)

    def gather(self, layer: PrunedLayer) -> Gathered:
        """Sums over the items that have come to a layer."""
        uses: list[tuple[Use, Use | None]] = []
        came: list[tuple[Forward, Forward | None]] = []
        for leading, dense in zip(self.leading, self.dense, strict=True):
            at, other = self._stop(leading, layer), self._stop(dense, layer)
            if at is None:
                continue
            self.visits[leading] += 1
            if self.how.targets == "own":
                other = None
            for x in at.use.inputs:
                if not _fits(at.use, x, layer):
                    raise Inseparable(f"an item gives layer {at.path} inputs of another width")
                check_finite(x, f"the input of layer {at.path}", leading.index)
            self._park(leading)
            came.append((leading, dense))
            counted = self.counted[leading.index]
            uses.append(
                (
                    at.use.without_padding(at.path, counted),
                    None if other is None else other.use.without_padding(other.path, counted),
                )
            )
        inputs = [
            # Of inference tensors no version is known.
            (TensorWeakRef(x), -1 if x.is_inference() else x._version, use.taken)
            for both in uses
            for use in both
            if use is not None
            for x in use.inputs
        ]
        shared = self.shared if self._shares(layer, inputs) else None
        own = all(other is None for _, other in uses)
        gathered = shared or Gathered.nothing(
            layer, self.how, own=own, shared=self.first.others_given(layer.entry.owner)
        )
        gathered.samples.clear()
        if shared is None or self.how.keep_samples:
            for index, (use, of_dense) in enumerate(uses):
                gathered.add(
                    use,
                    None if of_dense is None else list(of_dense.matrices()),
                    index=index,
                    items=len(uses),
                    keep_for=layer.weight if self.how.keep_samples else None,
                    again=shared is not None,
                )
                self._park(*came[index])
        self.shared, self.inputs = gathered, inputs
        gathered.finish()
        if self.parking is not None:
            self.parking.trim()
        return gathered

    def catch_up(self, layer: PrunedLayer) -> None:
        """Take the dense model's forwards past layers that no item of the pruned one will come to,
        such as experts that get other tokens then.
        """
        place = self.order.place(layer.entry.owner)
        for forward in self.dense:
            while (
                forward is not None
                and forward.at is not None
                and self.order.place(self.owner_of[forward.at.path]) < place
            ):
                self._advance(forward)

    def _shares(
        self, layer: PrunedLayer, inputs: list[tuple[TensorWeakRef, int, tuple[object, ...]]]
    ) -> bool:
        """Return whether the layer before was given the very same inputs, and has sums of them that
        are not its own alone.
        """
        if self.shared is None or len(inputs) != len(self.inputs):
            return False
        if self.shared.fitted.by_outputs:
            return False
        parts, _, cols = layer.layout.matrices(layer.own).shape
        return self.shared.fitted.gram.shape[:2] == (parts, cols) and all(
            a() is b() is not None and version == other >= 0 and taken == before
            for (a, version, taken), (b, other, before) in zip(inputs, self.inputs, strict=True)
        )

    def leave_dense(self, layer: PrunedLayer) -> None:
        """Take the dense model's forwards past a layer, while its weight is still there."""
        of_dense = self.dense if self.how.sequential else self.leading
        for forward in of_dense:
            if forward is not None and self._stands(forward, layer):
                self._advance(forward)

    def leave(self, layer: PrunedLayer, *, last: bool) -> None:
        """Take all others past it. Behind the last layer nothing runs but items that have not been
        at all layers, and might come to one late.
        """
        self.done += 1
        for stops in self.ahead.values():
            stops.pop(layer.entry.owner, None)
        for forward in self.leading:
            if self._stands(forward, layer) and not (last and self.visits[forward] == self.done):
                self._advance(forward)
        if self.parking is not None:
            self.parking.trim()

    def end(self) -> None:
        """End all forwards where they stand, the last one first."""
        try:
            while self.begun:
                self.begun[-1].end()
                self.begun.pop()
        finally:
            if self.begun:  # after another interrupt: what has not ended would stay for ever
                self.end()


def _fits(use: Use, x: Tensor, layer: PrunedLayer) -> bool:
    """Return whether inputs are as wide as a layer is; if not, its product will fail."""
    if isinstance(use.module, Convolution):
        return True
    return x.shape[-1] == layer.layout.columns


class _Overtaken(BaseException):
    """A forward of the dense model has come to a layer that is pruned already."""
