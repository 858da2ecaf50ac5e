"""Layers that the calibration does not come to: masked by magnitude with a warning, or an error."""

import copy
import warnings

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, snapshot
from tests.pruning.pruning_models import mixed, refuses

FUNCTIONS = [nmt.adaprune_, nmt.sparsegpt_]


class Rare(nn.Module):
    """A layer that only inputs with a positive first entry come to. `twice` uses another one
    twice, so that whole passes are run.
    """

    def __init__(self, twice):
        super().__init__()
        self.first, self.norm = nn.Linear(8, 8), nn.BatchNorm1d(8)
        self.usual, self.rare, self.twice = nn.Linear(8, 4), nn.Linear(8, 4), twice

    def forward(self, x):
        h = self.norm(self.first(x))
        if self.twice:
            h = self.norm(self.first(h))
        return self.rare(h) if x[0, 0] > 0 else self.usual(h)


def made(twice):
    torch.manual_seed(0)
    items = mixed(60, 8).float().split(20)
    for x in items:
        x[0, 0] = -1
    return Rare(twice), items


@pytest.mark.parametrize("prune", FUNCTIONS)
@pytest.mark.parametrize("twice", [False, True])
def test_they_are_masked_by_magnitude_and_that_is_said(prune, twice):
    model, items = made(twice)
    dense = copy.deepcopy(model)
    with pytest.warns(UserWarning, match="never reached layer rare: masked by magnitude") as caught:
        found = prune(model, "2:4", items)
    assert [warning.filename for warning in caught] == [__file__]
    assert [str(warning.message) for warning in caught] == list(found.notes[:1])
    assert found.way.startswith("whole passes" if twice else "every item once")
    assert nmt.verify(model, "2:4")
    entry = found["rare"]
    assert (entry.method, entry.reason) == ("magnitude", "never reached by the calibration")
    assert entry.before is entry.after is entry.held_out_before is entry.held_out_after is None
    assert entry.samples == 0
    assert "magnitude: never reached by the calibration" in str(found)
    mask = nmt.solve(dense.rare.weight, "2:4").mask
    assert torch.equal(model.rare.weight, dense.rare.weight * mask)
    assert torch.equal(model.rare.bias, dense.rare.bias)
    assert {layer.path for layer in found if layer.reason is None} == {"first", "usual"}
    assert found.batch_norms == 1


@pytest.mark.parametrize("prune", FUNCTIONS)
@pytest.mark.parametrize("twice", [False, True])
def test_they_are_an_error_where_that_is_asked_for(prune, twice):
    model, items = made(twice)
    before = snapshot(model)
    refuses(
        lambda: prune(model, "2:4", items, unreached="error"),
        "layer rare is never reached by the calibration",
        "exclude",
    )
    assert not differing(snapshot(model), before)
    assert model.training


@pytest.mark.parametrize("unreached", ["magnitude", "error"])
@pytest.mark.parametrize("twice", [False, True])
def test_a_calibration_that_reaches_nothing_is_refused(unreached, twice):
    model, items = made(twice)
    before = snapshot(model)
    plan = nmt.plan(model, {"rare": "2:4"})
    refuses(
        lambda: nmt.adaprune_(model, plan, items, unreached=unreached),
        "layer rare is never reached by the calibration",
    )
    assert not differing(snapshot(model), before)


@pytest.mark.parametrize("prune", FUNCTIONS)
def test_warnings_that_are_errors_leave_the_model_as_it_was(prune):
    model, items = made(False)
    before = snapshot(model)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserWarning, match="never reached layer rare"):
            prune(model, "2:4", items)
    assert not differing(snapshot(model), before)
    assert model.training


def test_layers_that_share_their_weight_are_reached_by_one():
    model, items = made(False)
    model.rare.weight = model.usual.weight
    found = nmt.adaprune_(model, "2:4", items, unreached="error")
    assert [layer.reason for layer in found] == [None, None]
