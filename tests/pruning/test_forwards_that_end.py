"""Forwards that fail, are interrupted, or end in ways of their own while others are under way: a
clear error, the model as it was, and nothing left behind.
"""

import gc
import itertools

import pytest
import torch
from greenlet import GreenletExit
from torch import nn

import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, snapshot
from tests.pruning.deep_models import counted
from tests.pruning.odd_models import (
    ITEMS,
    OPTIONS,
    SIDE_BY_SIDE,
    Plain,
    Threaded,
    equals,
    hooks_of,
    is_pruned_as,
    numbered,
)
from tests.pruning.pruning_models import refuses

pytestmark = pytest.mark.usefixtures("nothing_is_left")


class Failing(Plain):
    """Raises for an item, in front of a layer or behind it."""

    def __init__(self, error, place, at=7.0):
        super().__init__()
        self.error, self.place, self.at = error, place, at

    def raise_at(self, place, x):
        if place == self.place and x[0, 0] == self.at:
            raise self.error

    def forward(self, x):
        self.raise_at(0, x)
        h = self.a(x).tanh()
        self.raise_at(1, x)
        h = self.b(h).tanh()
        self.raise_at(2, x)
        y = self.c(h)
        self.raise_at(3, x)
        return y


@pytest.mark.parametrize("place", [0, 1, 2])
def test_models_that_fail_for_an_item(place):
    for options in OPTIONS:
        model = Failing(RuntimeError("no such thing"), place)
        before, hooks = snapshot(model), hooks_of(model)
        refuses(
            lambda m=model, o=options: nmt.adaprune_(m, "2:4", numbered(9), **o),
            "calibration item 7, called as Failing(float32 tensor (20, 16) on cpu), failed: "
            "RuntimeError: no such thing",
        )
        assert not differing(snapshot(model), before)
        assert hooks_of(model) == hooks


def test_nothing_behind_the_last_layer_is_run():
    for options in OPTIONS:
        model = Failing(RuntimeError("no such thing"), 3)
        assert is_pruned_as(model, numbered(9), given=numbered(9), **options).way == SIDE_BY_SIDE


class Stopped(BaseException):
    """As what a program of the user's interrupts with."""


@pytest.mark.parametrize("error", [KeyboardInterrupt(), GreenletExit(), Stopped(), SystemExit(3)])
def test_interrupts_wherever_a_forward_is(error):
    for options in OPTIONS:
        for item, place in itertools.product((0, 2), range(3)):
            model = Failing(error, place, at=float(item))
            before, hooks, numbers = snapshot(model), hooks_of(model), torch.get_rng_state()
            with pytest.raises(type(error)) as caught:
                nmt.adaprune_(model, "2:4", numbered(3), **options)
            assert caught.value is error
            assert not differing(snapshot(model), before)
            assert hooks_of(model) == hooks
            assert torch.equal(torch.get_rng_state(), numbers)


class Catching(Plain):
    """Catches whatever comes up in a layer: what it makes of it is told by `then`."""

    def __init__(self, then):
        super().__init__()
        self.then, self.caught, self.after = then, [], nn.Linear(16, 16)

    def forward(self, x):
        h = self.a(x).tanh()
        try:
            h = self.b(h).tanh()
        except BaseException as error:
            if self.then == "goes on":
                h = x
            elif self.then == "raises another":
                raise ValueError("wrapped") from error
            else:
                self.c(self.b(h))
                raise
        return self.c(h)


@pytest.mark.parametrize("then", ["goes on", "raises another", "calls layers"])
def test_models_that_catch_their_end(then):
    """Forwards are ended at b, behind which nothing is pruned."""
    for options in OPTIONS:
        model, twin = Catching(then), Plain()
        found = nmt.adaprune_(model, {"a": "2:4", "b": "2:4"}, ITEMS, **options)
        assert found.way == SIDE_BY_SIDE
        nmt.adaprune_(twin, {"a": "2:4", "b": "2:4"}, ITEMS, **options)
        equals(model, twin)


@pytest.mark.parametrize("then", ["goes on", "raises another", "calls layers"])
def test_models_that_catch_their_end_where_another_fails(then):
    class Both(Catching):
        def forward(self, x):
            y = super().forward(x)
            if x[0, 0] == 2:
                raise KeyboardInterrupt
            return y

    model = Both(then)
    before = snapshot(model)
    with pytest.raises(KeyboardInterrupt):
        nmt.adaprune_(model, {"a": "2:4", "b": "2:4", "after": "2:4"}, numbered(4))
    assert not differing(snapshot(model), before)


def test_nothing_of_an_error_is_printed(capfd):
    refuses(lambda: nmt.adaprune_(Failing(RuntimeError("no"), 1), "2:4", numbered(9)), "no")
    for model in (Threaded(None), Catching("raises another")):
        nmt.adaprune_(model, {"a": "2:4", "b": "2:4"}, numbered(9))
    gc.collect()
    assert capfd.readouterr() == ("", "")


def test_what_we_refuse_ourselves_is_refused_at_once():
    """Whole passes would find the same."""
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16)).eval()
    before = snapshot(model)
    with counted([model[0]]) as calls:
        refuses(
            lambda: nmt.adaprune_(model, "2:4", [*ITEMS, ITEMS[0][:1]]),
            "batch norm 1 is given one value a channel by calibration item 3",
        )
    assert calls == [1 + 2 * 4]
    assert not differing(snapshot(model), before)
