"""The least-squares problem of each layer: inputs, wanted outputs, held-out rows, bias and mask,
against the oracle.
"""

import contextlib
import copy
import warnings

import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

import nmsolve.torch as nmt
from tests.pruning.pruning_models import is_adjusted, mask_by_norms, mixed, same_after

EXACT = nmt.LeastSquares(tolerance=1e-12)


@pytest.mark.parametrize("sizes", [(7, 53), (6,) * 20])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("targets", ["dense", "own"])
def test_the_problem_of_a_sequential_layer_has_pruned_inputs_and_dense_outputs(
    sizes, bias, targets
):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 4, bias=bias)).double()
    x = mixed(sum(sizes), 8) / 4
    dense = copy.deepcopy(model)
    found = nmt.adaprune_(model, "2:4", x.split(sizes), update=EXACT, targets=targets, bias=bias)
    with torch.no_grad():
        given, of_dense = model[:2](x), dense[:2](x)
    if targets == "own":
        of_dense = given
    for index, inputs, others in ((0, x, x), (2, given, of_dense)):
        layer, was = model[index], dense[index]
        if not bias and was.bias is not None:
            assert torch.equal(layer.bias, was.bias)
            layer, was = bare(layer), bare(was)
        mask = mask_by_norms(was.weight, inputs, sizes, "2:4")
        assert is_adjusted(layer, was, found[str(index)], mask, inputs, others, sizes) == (
            "least squares"
        )


def bare(layer):
    """The same layer without its bias."""
    other = nn.Linear(layer.in_features, layer.out_features, bias=False).double()
    other.load_state_dict({"weight": layer.weight})
    return other


def test_shared_weights_are_pruned_once_for_all_their_inputs():
    torch.manual_seed(0)
    first, second = nn.Linear(8, 8, bias=False).double(), nn.Linear(8, 8, bias=False).double()
    second.weight = first.weight
    model, dense = nn.Sequential(first, nn.Tanh(), second), copy.deepcopy(first)
    x = mixed(40, 8) / 4
    found = nmt.adaprune_(model, "2:4", [x], update=EXACT, sequential=False)
    assert len(found) == 1
    assert second.weight is first.weight
    with torch.no_grad():
        inputs = torch.cat([x, dense(x).tanh()])
    mask = mask_by_norms(dense.weight, inputs, (40, 40), "2:4")
    is_adjusted(first, dense, found[0], mask, inputs, inputs, (40, 40))
    assert found[0].method == "least squares"
    assert found[0].samples == 72


class Changing(nn.Module):
    """x += layer(x) between two layers: the second is given what the pruned first one makes of
    it.
    """

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x):
        x = x.clone()
        x += self.first(x)
        return self.second(x)


def test_a_tensor_that_a_layer_changes_is_another_input():
    torch.manual_seed(0)
    model, x = Changing().double(), mixed(60, 8)
    dense = copy.deepcopy(model)
    found = nmt.adaprune_(model, "2:4", [x], update=EXACT)
    with torch.no_grad():
        given, of_dense = x + model.first(x), x + dense.first(x)
    mask = mask_by_norms(dense.second.weight, given, (60,), "2:4")
    is_adjusted(model.second, dense.second, found["second"], mask, given, of_dense, (60,))
    assert found["second"].method == "least squares"


class Rare(nn.Module):
    """A layer that only inputs with a positive first entry come to, and one that others do."""

    def __init__(self, context):
        super().__init__()
        self.rare, self.usual, self.context = nn.Linear(8, 4), nn.Linear(8, 4), context

    def forward(self, x):
        with self.context():
            return (self.rare if x[0, 0] > 0 else self.usual)(x)


@pytest.mark.parametrize(
    ("context", "way"),
    [(contextlib.nullcontext, "every item once"), (warnings.catch_warnings, "whole passes")],
)
@pytest.mark.parametrize("rare", [(1, 3, 5, 7, 9, 11, 13, 15, 17, 19, 21), (9, 19)])
def test_a_tenth_is_held_out_of_what_comes_to_a_layer(context, way, rare):
    """Whichever items that are: the ninth and the nineteenth too."""
    torch.manual_seed(0)
    model, size = Rare(context).double(), 12
    dense, items = copy.deepcopy(model), list(mixed(24 * size, 8).split(size))
    for index, x in enumerate(items):
        x[0, 0] = 1 if index in rare else -1
    for update in (EXACT, nmt.Adam(steps=3)):
        model.load_state_dict(dense.state_dict())
        found = nmt.adaprune_(model, "2:4", items, update=update)
        assert found.way.startswith(way)
        assert all(layer.held_out_after <= layer.held_out_before for layer in found)
        assert found["rare"].samples == (120 if len(rare) > 2 else 22)
        if update is not EXACT:
            continue
        for path in ("rare", "usual"):
            x = torch.cat([x for at, x in enumerate(items) if (at in rare) == (path == "rare")])
            layer, was = getattr(model, path), getattr(dense, path)
            sizes = (size,) * (len(x) // size)
            mask = mask_by_norms(was.weight, x, sizes, "2:4")
            is_adjusted(layer, was, found[path], mask, x, x, sizes)


class Routed(nn.Module):
    """Two layers one after the other, in an order that depends on what the first one gives."""

    def __init__(self):
        super().__init__()
        self.stem, self.one, self.two, self.tail = (nn.Linear(8, 8) for _ in range(4))
        self.limit = 0.0

    def between(self, x):
        h = self.stem(x)
        in_order = (self.one, self.two) if h[0, 0] < self.limit else (self.two, self.one)
        for layer in in_order:
            h = h + 0.3 * layer(h).tanh()
        return h

    def forward(self, x):
        return self.tail(self.between(x))


def test_a_dense_forward_that_is_overtaken_tells_nothing_more():
    """It comes to a layer that all others have left: what it would give has pruned weights in it,
    and its item's targets are what the dense layer gives for the pruned model's inputs.
    """
    torch.manual_seed(0)
    dense, items = Routed().double(), list(mixed(80, 8).split(40))
    stem = copy.deepcopy(dense)
    nmt.adaprune_(stem, {"stem": "2:4"}, items, update=EXACT)
    with torch.no_grad():
        values = [[float(net.stem(x)[0, 0]) for net in (dense, stem)] for x in items]
        # The first item goes the same way in both, the second another one in the dense model.
        items[1] = items[1] * (1 if values[1][0] > values[1][1] else -1)
        values = [[float(net.stem(x)[0, 0]) for net in (dense, stem)] for x in items]
    model = copy.deepcopy(dense)
    model.limit = dense.limit = sum(values[1]) / 2
    assert values[1][1] < model.limit < values[1][0]
    assert max(values[0]) < model.limit
    found = nmt.adaprune_(model, "2:4", items, update=EXACT)
    assert found.way == "every item once through the model, all side by side"
    assert [layer.path for layer in found] == ["stem", "one", "two", "tail"]
    with torch.no_grad():
        given = [model.between(x) for x in items]
        of_dense = torch.cat([dense.between(items[0]), given[1]])
    given = torch.cat(given)
    mask = mask_by_norms(dense.tail.weight, given, (40, 40), "2:4")
    is_adjusted(model.tail, dense.tail, found["tail"], mask, given, of_dense, (40, 40))


class Past(nn.Module):
    """Multiplies by a weight past its module, which has a bias that is added or not."""

    def __init__(self, added):
        super().__init__()
        self.layer, self.added = nn.Linear(8, 4), added

    def forward(self, x):
        return nn.functional.linear(x, self.layer.weight, self.layer.bias if self.added else None)


@pytest.mark.parametrize("added", [True, False])
def test_a_bias_that_is_not_added_is_not_fitted(added):
    torch.manual_seed(0)
    model, x = Past(added).double(), mixed(60, 8)
    dense = copy.deepcopy(model.layer)
    found = nmt.adaprune_(model, "2:4", [x], update=EXACT)
    mask = mask_by_norms(dense.weight, x, (60,), "2:4")
    assert torch.equal(model.layer.bias, dense.bias) == (not added)
    layer, was = (model.layer, dense) if added else (bare(model.layer), bare(dense))
    assert is_adjusted(layer, was, found[0], mask, x, x, (60,)) == "least squares"


class Parallel(nn.Module):
    """Query and key, which are given the same tensor or a copy of it; one has a bias."""

    def __init__(self, apart):
        super().__init__()
        self.apart, self.out = apart, nn.Linear(8, 4)
        self.q, self.k = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)

    def forward(self, x):
        return self.out(self.q(x).tanh() * self.k(x.clone() if self.apart else x).tanh())


@pytest.mark.parametrize("update", [EXACT, nmt.Adam(steps=5)])
def test_layers_that_are_given_the_same_tensor_share_its_moments_and_nothing_else(update):
    models, x = [], mixed(60, 8)
    for apart in (False, True):
        torch.manual_seed(0)
        models.append(Parallel(apart).double())
        found = nmt.adaprune_(models[-1], "2:4", x.split(20), update=update)
        assert any(layer.method != "masking" for layer in found)
    assert same_after(*models)


LAYERS = {
    "linear": (lambda: nn.Linear(16, 8), (16,)),
    "tokens": (lambda: nn.Linear(16, 8), (5, 16)),
    "no bias": (lambda: nn.Linear(16, 8, bias=False), (16,)),
    "conv1d": (lambda: nn.Conv1d(8, 8, 3, stride=2, padding=1), (8, 9)),
    "conv2d": (lambda: nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"), (8, 5, 6)),
    "groups": (lambda: nn.Conv2d(16, 8, (3, 1), groups=2, dilation=(2, 1)), (16, 7, 4)),
    "conv3d": (lambda: nn.Conv3d(4, 8, 3, padding="same"), (4, 3, 3, 3)),
    "gpt2": (lambda: Conv1D(8, 16), (5, 16)),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_errors_are_those_of_the_outputs(name, prune, dtype):
    """Of every kind of layer, with the bias that it gets; the tenth of ten items is held out."""
    torch.manual_seed(0)
    make, shape = LAYERS[name]
    model = nn.Sequential(make()).to(dtype)
    with torch.no_grad():  # as large as what layers give
        model[0].weight.copy_(torch.randn_like(model[0].weight))
    items = [(torch.randn(8, *shape).cumsum(1).cumsum(-1) / 4 + 1).to(dtype) for _ in range(10)]
    dense = copy.deepcopy(model).double()
    bare = copy.deepcopy(dense)
    if bare[0].bias is not None:
        bare[0].bias.data.zero_()
    (found,) = prune(model, "2:4", items)
    assert found.method in ("least squares", "second order")
    assert nmt.verify(model, "2:4")
    model.double()
    for which, error in ((items[:9], found.after), (items[9:], found.held_out_after)):
        x = torch.cat(which).double()
        with torch.no_grad():
            lost = (model(x) - dense(x)).square().sum() / bare(x).square().sum()
        assert float(lost) == pytest.approx(error, rel=2e-2 if dtype == torch.bfloat16 else 1e-4)
