"""`losses`: against loops over groups, blocks one by one, and the layers' own outputs; what fits
where; the model untouched.
"""

import copy
import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nmsolve.torch as nmt
from nmsolve import InputError, Pattern, PatternError
from nmsolve.torch.allocation import mask_losses as module
from nmsolve.torch.allocation.mask_losses import losses
from reference import brute


def seeded(make):
    torch.manual_seed(0)
    return make()


def by_path(found):
    return {layer.path: layer for layer in found}


def loss_of(layer, name):
    return next(option.loss for option in layer.options if str(option.pattern) == name)


class Net(nn.Module):
    """Convolutions, one of them grouped, and linear layers of which two share their weight."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.conv = nn.Conv2d(8, 16, 3, stride=2)
        self.grouped = nn.Conv2d(16, 16, 2, groups=2)
        self.first = nn.Linear(16, 16)
        self.odd = nn.Linear(16, 6)
        self.again = nn.Linear(16, 16)
        self.again.weight = self.first.weight

    def forward(self, x):
        x = self.grouped(self.conv(self.stem(x)).relu()).relu().mean((2, 3))
        return self.odd(self.again(self.first(x).relu()).relu())


def groups(weight):
    """(out, in, kernel …) as groups of one output row and kernel position, input channels in
    order.
    """
    array = np.abs(weight.detach().double().numpy())
    return array.reshape(*array.shape[:2], -1).transpose(0, 2, 1).reshape(-1, array.shape[1])


def lost_by_rows(weight, n, m):
    return math.fsum(
        math.fsum(row[a : a + m]) - brute.select(row[a : a + m], n)[1]
        for row in groups(weight)
        for a in range(0, len(row), m)
    )


def lost_by_blocks(weight, n, m):
    total = 0.0
    matrix = np.abs(weight.detach().double().numpy())
    for r, c in itertools.product(range(0, matrix.shape[0], m), range(0, matrix.shape[1], m)):
        block = matrix[r : r + m, c : c + m]
        total += math.fsum(block.ravel()) - brute.optimum(block, n)[1]
    return total


def test_scores_lost_are_those_of_exact_masks():
    model = seeded(Net)
    found = by_path(losses(model, ["2:4", "1:4", "2:4T", "4:8", "dense"]))
    for path in ("conv", "first", "odd"):
        weight = model.get_submodule(path).weight
        for n, m in ((2, 4), (1, 4), (4, 8)):
            assert loss_of(found[path], f"{n}:{m}") == pytest.approx(
                lost_by_rows(weight, n, m), rel=1e-12
            )
            assert (
                next(o.kept for o in found[path].options if o.pattern == Pattern(n, m))
                == weight.numel() * n // m
            )
        dense = found[path].options[-1]
        assert (dense.pattern, dense.loss, dense.kept) == (None, 0.0, weight.numel())
    assert loss_of(found["first"], "2:4T") == pytest.approx(
        lost_by_blocks(model.first.weight, 2, 4), rel=1e-12
    )
    assert not any(
        option.pattern == Pattern(2, 4, transposable=True) for option in found["odd"].options
    )  # 6 rows
    assert found["stem"].options == ()
    assert found["stem"].entry.reason == "3 input channels do not consist of groups of 4"
    assert (found["again"].options, found["again"].entry.tied_to) == ((), "first")
    assert all(layer.positions is None for layer in found.values())


def test_padding_and_at_most_count_what_is_kept():
    model = seeded(lambda: nn.Sequential(nn.Linear(10, 6), nn.Linear(8, 8)))
    found = losses(model, ["2:4", "<=2:4T"], padding="dense")
    mask = nmt.solve(model[0].weight.detach(), "2:4", padding="dense").mask
    assert found[0].options[0].kept == int(mask.sum()) == 6 * (2 + 2 + 2)
    at_most = nmt.solve(model[1].weight.detach(), "<=2:4T").mask
    assert found[1].options[1].kept == int(at_most.sum())
    assert found[1].options[1].loss == pytest.approx(
        float(model[1].weight.detach()[~at_most].abs().double().sum()), rel=1e-12
    )


def test_given_scores_are_lost_instead():
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)))
    scores = {path: torch.randn(4, width) for path, width in (("0", 8), ("1", 4))}
    found = losses(model, ["1:4", "dense"], scores=scores)
    assert found.scores is scores
    for layer in found:
        given = scores[layer.path].reshape(-1, 4).double()
        assert layer.options[0].loss == pytest.approx(
            float(given.sum() - given.max(1).values.sum()), rel=1e-12
        )
    with pytest.raises(InputError, match="no scores for layer 1"):
        losses(model, ["1:4"], scores={"0": scores["0"]})


def test_calibration_errors_are_those_of_the_layers_outputs():
    model = seeded(Net)
    batches = [torch.randn(2, 3, 9, 9), torch.randn(3, 3, 9, 9)]
    found = by_path(losses(model, ["2:4", "4:8", "dense"], calibration=iter(batches)))
    for path, name in (
        ("conv", "2:4"),
        ("conv", "4:8"),
        ("grouped", "2:4"),
        ("grouped", "4:8"),
        ("first", "2:4"),
        ("odd", "4:8"),
    ):
        total = 0.0
        for used in ("first", "again") if path == "first" else (path,):
            layer = copy.deepcopy(model.get_submodule(used)).double()
            layer.bias = None
            seen = []
            handle = model.get_submodule(used).register_forward_pre_hook(
                lambda _, args, seen=seen: seen.append(args[0])
            )
            with torch.no_grad():
                for batch in batches:
                    model(batch)
                handle.remove()
                dense = [layer(x.double()) for x in seen]
                weight = layer.weight
                weight.mul_(nmt.solve(model.get_submodule(used).weight.detach(), name).mask)
                whole = sum(float(y.square().sum()) for y in dense)
                error = sum(
                    float((layer(x.double()) - y).square().sum())
                    for x, y in zip(seen, dense, strict=True)
                )
                total += error / whole
        assert loss_of(found[path], name) == pytest.approx(total, rel=1e-9)
        assert found[path].options[-1].loss == 0
    # Positions are of the first item: 2 images, from 9 × 9 to 4 × 4 to 3 × 3, and two uses of the
    # shared weight.
    assert [found[path].positions for path in ("conv", "grouped", "first", "odd")] == [
        2 * 16,
        2 * 9,
        2 + 2,
        2,
    ]
    assert found["stem"].positions is found["again"].positions is None


@given(scale=st.floats(1e-3, 1e3), seed=st.integers(0, 100))
def test_calibration_errors_have_no_unit(scale, seed):
    """A ReLU net says the same when one layer grows by what the next shrinks; so do its losses."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(8, 12), nn.ReLU(), nn.Linear(12, 4)).double()
    x = torch.randn(7, 8, dtype=torch.float64)
    before = losses(model, ["1:4", "2:4T"], calibration=[x])
    with torch.no_grad():
        for parameter in model[0].parameters():
            parameter.mul_(scale)
        model[2].weight.div_(scale)
    for old, new in zip(before, losses(model, ["1:4", "2:4T"], calibration=[x]), strict=True):
        assert [option.loss for option in new.options] == pytest.approx(
            [option.loss for option in old.options], rel=1e-9
        )


def test_a_layer_without_output_loses_nothing():
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)))
    with torch.no_grad():
        model[1].weight.zero_()
    found = losses(model, ["2:4"], calibration=[torch.randn(5, 8)])
    assert found[0].options[0].loss > 0
    assert found[1].options[0].loss == 0


def test_gram_matrices_in_parts(monkeypatch):
    model = seeded(Net)
    batches = [torch.randn(2, 3, 9, 9)]
    whole = losses(model, ["2:4", "1:4"], calibration=batches)
    ran = []
    compute = module.gram_matrices
    monkeypatch.setattr(
        module,
        "gram_matrices",
        lambda m, batch, *given: (ran.append([w.path for w in batch]), compute(m, batch, *given))[
            1
        ],
    )
    monkeypatch.setattr(module, "_AT_ONCE", 8 * (2 * 32**2 + 2 * 16**2))
    parts = losses(model, ["2:4", "1:4"], calibration=batches)
    assert parts == whole
    assert ran == [["conv"], ["grouped", "first", "again"], ["odd"]]


def test_attention_and_what_reaches_its_projections():
    model = seeded(lambda: nn.TransformerEncoderLayer(16, 2, 32, dropout=0.5, batch_first=True))
    x = torch.randn(2, 5, 16)
    before = copy.deepcopy(model.state_dict())
    state = torch.get_rng_state()
    found = by_path(losses(model, ["2:4", "2:4T"], calibration=[x], example_inputs=(x[:1],)))
    assert torch.equal(torch.get_rng_state(), state)
    assert model.training
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert not any(m._forward_pre_hooks for m in model.modules())
    weight = model.self_attn.in_proj_weight.detach()
    for name in ("2:4", "2:4T"):
        removed = weight.masked_fill(nmt.solve(weight, name).mask, 0).double()
        rows = x.double().reshape(-1, 16)
        by_hand = float(
            (rows @ removed.T).square().sum() / (rows @ weight.double().T).square().sum()
        )
        assert loss_of(found["self_attn.in_proj_weight"], name) == pytest.approx(by_hand, rel=1e-9)
    assert {path: layer.positions for path, layer in found.items()} == dict.fromkeys(found, 5)
    assert set(found) == {"self_attn.in_proj_weight", "self_attn.out_proj", "linear1", "linear2"}


def test_values_in_place_of_losses():
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 4), nn.Linear(3, 4)))
    found = losses(model, ["2:4", "2:4T", None])
    values = {"0": {"2:4": 3, Pattern(2, 4, transposable=True): 4.5, None: 0}}
    new = found.with_values(values)
    assert [option.loss for option in new[0].options] == [3, 4.5, 0]
    assert [option.kept for option in new[0].options] == [16, 16, 32]
    assert new[1] == found[1]
    assert str(new).splitlines()[1:] == [
        "0      Linear  4×8    2:4 3, 2:4T 4.5, dense 0",
        "1      Linear  4×3    3 input channels do not consist of groups of 4",
    ]
    assert repr(new) == "<Losses: 1 of 2 weights have candidates>"
    for bad, message in (
        ({}, "nothing for layer 0; it has nothing at all"),
        ({"0": {"2:4": 1, "2:4T": 1}}, "nothing for layer 0 with dense; it has 2:4, 2:4T"),
        ({"0": {"2:4": math.nan}}, "has nan for layer 0 with 2:4"),
        ({"0": {"2:4": "low"}}, "has 'low' for layer 0 with 2:4"),
        ({"0": {None: 1, "dense": 1}}, "dense twice for layer 0"),
        ({"0": 3}, "maps layer 0 to 3"),
        ([1], r"maps layer paths to candidates to numbers.*got \[1\]"),
    ):
        with pytest.raises(InputError, match=message):
            found.with_values(bad)


def test_candidates_are_named_each_once():
    model = nn.Sequential(nn.Linear(8, 4))
    assert losses(model, [Pattern(2, 4), "2:4", "dense", None]) == losses(model, ["2:4", None])
    for bad in ("2:4", Pattern(2, 4), None, [], ["dense"], 4):
        with pytest.raises(InputError, match="candidates are an iterable of patterns"):
            losses(model, bad)
    with pytest.raises(PatternError, match="5:4"):
        losses(model, ["5:4"])


def test_errors_name_the_layer():
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 4), nn.Linear(4, 4)))
    with pytest.raises(
        InputError,
        match=r"(?s)no candidate of 4:16, dense fits any layer of this Sequential:.*8 input "
        r"channels",
    ):
        losses(model, ["4:16", "dense"])
    with pytest.raises(InputError, match=r"layer layers\.1 is never reached by"):
        losses(_Half(model), ["2:4"], calibration=[torch.randn(2, 8)])
    with pytest.raises(InputError, match="failed"):
        losses(model, ["2:4"], calibration=[torch.randn(2, 5)])
    with pytest.raises(InputError, match="gave no inputs"):
        losses(model, ["2:4"], calibration=[])
    with pytest.raises(InputError, match="input of layer 0 is inf for calibration item 0"):
        losses(model, ["2:4"], calibration=[torch.full((2, 8), math.inf)])
    with torch.no_grad():
        model[1].weight[2, 3] = math.nan
    with pytest.raises(InputError, match=r"layer 1: .*nan"):
        losses(model, ["2:4"])


class _Half(nn.Module):
    """Uses the first of two layers."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers

    def forward(self, x):
        return self.layers[0](x)
