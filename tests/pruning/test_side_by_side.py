"""Forwards of all items side by side, on models of many architectures: how often blocks run, and
that the result is that of whole passes for each stage of layers.
"""

import copy
import warnings

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from tests.checkpoint.snapshots import differing, snapshot
from tests.pruning.deep_models import MODELS, Keeping, counted, made, rows, tokens
from tests.pruning.pruning_models import refuses, same_after

SIDE_BY_SIDE = "every item once through the model, all side by side"
OPTIONS = [{}, {"targets": "own"}, {"sequential": False}]


@pytest.fixture(autouse=True)
def unreached_experts():
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "the calibration never reached")
        yield


def as_double(value):
    if isinstance(value, dict):
        return {key: as_double(x) for key, x in value.items()}
    if isinstance(value, tuple):
        return tuple(map(as_double, value))
    return value.double() if value.is_floating_point() else value


DEPTHS = [4, 8, pytest.param(16, marks=pytest.mark.long)]


@pytest.mark.parametrize("depth", DEPTHS)
@pytest.mark.parametrize("name", MODELS)
def test_blocks_run_twice_an_item_whatever_the_depth(name, depth):
    """Once where targets are a layer's own. The first item runs alone too, and batch norms want a
    pass of all at the end.
    """
    every = [({}, 2 * 2 + 1), ({"targets": "own"}, 2 + 2), ({"sequential": False}, 2 + 1)]
    for options, runs in every[: 3 if depth == 4 else 1]:
        model, blocks, items = made(name, depth)
        with counted(blocks) as calls:
            found = nmt.adaprune_(model, "2:4", items(2), **options)
        assert found.way == SIDE_BY_SIDE
        assert len(calls) >= depth
        assert set(calls) == {runs + 2 * (found.batch_norms > 0)}


def test_nothing_runs_behind_the_last_layer():
    for name, head in (("llama", "lm_head"), ("bert", "cls"), ("gpt2", "lm_head"), ("vit", "")):
        model, blocks, items = made(name, 6)
        head = model.get_submodule(head) if head else model.classifier
        paths = [path for path, module in model.named_modules() if module in blocks[:2]]
        plan = nmt.plan(model, "2:4", include=[f"{path}.*" for path in paths])
        with counted([*blocks, head]) as calls:
            assert nmt.sparsegpt_(model, plan, items(4)).way == SIDE_BY_SIDE
        assert calls == [9, 9, 1, 1, 1, 1, 1]


def twins(name, depth, dtype=torch.float64):
    """A model, and one with the same weights that cannot be suspended."""
    model, _, items = made(name, depth)
    model.to(dtype)
    return model, Keeping(copy.deepcopy(model)), items


def alike(model, found, other, wanted, tolerance):
    """Two ways to the same weights and reports. Whole passes do not know of experts that only the
    pruned model reaches: behind one, nothing is compared.
    """
    assert found.way == SIDE_BY_SIDE
    assert wanted.way.startswith("whole passes")
    compared = 0
    for one in found:
        two = wanted[f"model.{one.path}"]
        if two.reason and not one.reason:
            break
        assert (one.method, one.samples, one.reason) == (two.method, two.samples, two.reason)
        for error in ("before", "after", "held_out_before", "held_out_after"):
            values = getattr(one, error), getattr(two, error)
            assert values == (None, None) or values[0] == pytest.approx(values[1], 1e-3, 1e-9)
        name = one.path.removesuffix(".in_proj_weight")
        first, second = model.get_submodule(name), other.get_submodule(f"model.{name}")
        for a, b in zip(first.parameters(), second.parameters(), strict=True):
            torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)
        compared += 1
    assert compared >= 4


#: Others repeat what these show.
QUICK = ("llama", "t5", "encoder", "resnet", "experts")
APART = [pytest.param(name, marks=() if name in QUICK else pytest.mark.long) for name in MODELS]


@pytest.mark.parametrize("name", APART)
def test_the_result_is_that_of_whole_passes(name):
    for options in OPTIONS:
        model, other, items = twins(name, 2 if name == "t5" else 4)
        given = [as_double(item) for item in items(3)]
        found = nmt.adaprune_(model, "2:4", given, **options)
        wanted = nmt.adaprune_(other, "2:4", given, **options)
        alike(model, found, other, wanted, 1e-6)
        if name != "experts":
            assert [f"model.{entry.path}" for entry in found] == [entry.path for entry in wanted]
            assert not differing(
                {k: v for k, v in snapshot(model).items() if "num_batches" in k},
                {k[6:]: v for k, v in snapshot(other).items() if "num_batches" in k},
            )


@pytest.mark.parametrize(("name", "count"), [("experts", 1), ("experts", 12), ("encoder", 12)])
def test_whatever_the_number_of_items(name, count):
    for options in OPTIONS:
        if name == "experts" and options.get("sequential", True):
            continue  # items that only the pruned model takes to an expert may be held out of it
        model, other, items = twins(name, 2)
        given = [as_double(item) for item in items(count)]
        found = nmt.sparsegpt_(model, "2:4", given, **options)
        wanted = nmt.sparsegpt_(other, "2:4", given, **options)
        alike(model, found, other, wanted, 1e-6)


@pytest.mark.parametrize("name", ["llama", "encoder", "chain"])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-3), (torch.bfloat16, 1e-2)])
def test_in_less_precision(name, dtype, tolerance):
    """Masks by magnitude: sums that differ by rounding may choose others by second order."""
    model, other, items = twins(name, 2, dtype)
    given = [x if isinstance(x, dict) else x.to(dtype) for x in items(3)]
    options = {"criterion": "magnitude", "update": nmt.LeastSquares(tolerance=2e-5)}
    found = nmt.adaprune_(model, "2:4", given, **options)
    wanted = nmt.adaprune_(other, "2:4", given, **options)
    assert found.way == SIDE_BY_SIDE
    assert wanted.way.startswith("whole passes")
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        with torch.no_grad():
            assert float((one - two).float().norm()) <= tolerance * float(two.float().norm())


@pytest.mark.parametrize("name", ["encoder", "experts"])
@pytest.mark.parametrize(
    "options",
    [
        {"bias": False},
        {"moments": torch.float64},
        {"criterion": "magnitude"},
        {"update": nmt.Adam(steps=5)},
    ],
)
def test_with_other_options(name, options):
    model, other, items = twins(name, 2)
    given = [as_double(item) for item in items(3)]
    biases = [layer.bias.clone() for layer in model.modules() if isinstance(layer, nn.Linear)]
    found = nmt.adaprune_(model, "2:4T", given, **options)
    wanted = nmt.adaprune_(other, "2:4T", given, **options)
    alike(model, found, other, wanted, 1e-6)
    if "bias" in options:
        layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear)]
        assert all(torch.equal(a.bias, b) for a, b in zip(layers, biases, strict=True))


def test_experts_are_pruned_one_after_the_other():
    """An item off the first one's way waits for those that will come to the same expert."""
    model, _, items = made("experts", 3)
    found = nmt.adaprune_(model, "2:4", items(12))
    assert found.way == SIDE_BY_SIDE
    reached = [entry.path.split(".") for entry in found if not entry.reason]
    assert reached == sorted(reached, key=lambda path: (path[0], path[1] != "gate", path[2:]))


class Pyramid(nn.Module):
    """Convolutions of one tensor that take it differently, as in DeepLab's pyramid or Inception."""

    def __init__(self, *convolutions):
        super().__init__()
        self.branches = nn.ModuleList(convolutions)

    def forward(self, x):
        return [branch(x) for branch in self.branches]


@pytest.mark.parametrize(
    "settings",
    [
        [{"padding": 1}, {"padding": 2, "dilation": 2}, {"padding": 3, "dilation": 3}],
        [{"padding": 1}, {"padding": 1, "stride": 2}],
        [{"padding": 1}, {"padding": 0}],
        [{"padding": 1}, {"padding": 1, "padding_mode": "circular"}],
        [{"kernel_size": (1, 7), "padding": (0, 3)}, {"kernel_size": (7, 1), "padding": (3, 0)}],
        [{"padding": 1}, {"padding": 1}],
    ],
)
def test_convolutions_that_take_the_same_tensor_differently(settings):
    torch.manual_seed(0)
    layers = [nn.Conv2d(4, 8, **({"kernel_size": 3} | one)) for one in settings]
    items = rows(3, (2, 4, 9, 9))
    together = Pyramid(*copy.deepcopy(layers))
    nmt.adaprune_(together, "2:4", items)
    for layer, branch in zip(layers, together.branches, strict=True):
        nmt.adaprune_(layer, "2:4", items)
        assert torch.equal(layer.weight, branch.weight)
        assert torch.equal(layer.bias, branch.bias)


class Ways(nn.Module):
    """Layers in an order that an item's first number tells."""

    def __init__(self, ways):
        super().__init__()
        torch.manual_seed(0)
        self.ways = ways
        self.layers = nn.ModuleDict({name: nn.Linear(16, 16) for name in "abcd"})

    def forward(self, x):
        for name in self.ways[int(x[0, 0])]:
            x = self.layers[name](x).tanh()
        return x


@pytest.mark.parametrize(
    ("ways", "way"),
    [
        (("abd", "acd", "abd"), SIDE_BY_SIDE),  # another branch
        (("abcd", "acd", "abd", "bcd"), SIDE_BY_SIDE),  # a layer left out
        (("acd", "abcd"), SIDE_BY_SIDE),  # one more
        (("ab", "abcd", "abc"), SIDE_BY_SIDE),  # others end sooner
        (("abcd", "abcd", "acbd"), "item 2 comes to layer layers.b a second time, or after all"),
        (("abcd", "bacd"), "item 1 comes to layer layers.a a second time, or after all"),
        (("ab", "acd", "abcd"), "a second time, or after all"),
    ],
)
def test_items_that_go_other_ways(ways, way):
    items = rows(len(ways), (30, 16))
    for i, x in enumerate(items):
        x[0, 0] = i
    given = [x.double() for x in items]
    for options in OPTIONS:
        model = Ways(ways).double()
        other = Keeping(copy.deepcopy(model))
        found = nmt.adaprune_(model, "2:4", given, **options)
        nmt.adaprune_(other, "2:4", given, **options)
        assert way in found.way
        for one, two in zip(model.parameters(), other.parameters(), strict=True):
            torch.testing.assert_close(one, two, rtol=1e-6, atol=1e-6)


def test_items_of_other_lengths():
    model, other, _ = twins("llama", 3)
    items = [item for length in (5, 9, 2, 16) for item in tokens(1, length, batch=length % 3 + 1)]
    found = nmt.adaprune_(model, "2:4", items)
    wanted = nmt.adaprune_(other, "2:4", items)
    alike(model, found, other, wanted, 1e-6)


class Picking(nn.Module):
    """Experts that some items give nothing."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.some, self.last = (nn.Linear(16, 16) for _ in range(3))

    def forward(self, x):
        h = self.first(x).tanh()
        at = x[:, 0] > 0
        y = h.clone()
        y[at] = self.some(h[at]).tanh()
        return self.last(y)


def test_empty_batches_are_no_use_of_a_layer():
    items = rows(4, (30, 16))
    items[0][:, 0], items[2][:, 0] = -1, 1
    for options in OPTIONS:
        model = Picking()
        found = nmt.adaprune_(model, "2:4", items, **options)
        assert found.way == SIDE_BY_SIDE
        assert [entry.path for entry in found] == ["first", "some", "last"]
        other = Keeping(Picking())
        nmt.adaprune_(other, "2:4", items, **options)
        assert same_after(model, other)


def test_layers_before_the_first_batch_norm_that_fails():
    """One value a channel has no variance: the item is named, nothing is changed."""
    model = nn.Sequential(nn.Linear(16, 16), nn.BatchNorm1d(16), nn.Linear(16, 16)).eval()
    before = snapshot(model)
    items = [*rows(2, (20, 16)), torch.randn(1, 16)]
    refuses(lambda: nmt.adaprune_(model, "2:4", items), "batch norm 1", "calibration item 2")
    assert not differing(snapshot(model), before)
