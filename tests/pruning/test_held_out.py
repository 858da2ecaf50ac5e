"""The tenth of the calibration that nothing is fitted to: no layer is worse there than masked, what
is reported of it is true, and none of it gets into the weights.
"""

import copy

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from torch import nn

import nmsolve.torch as nmt
from tests.pruning.deep_models import Keeping, rows

PATTERNS = ["2:4", "1:4", "4:8", "2:4T", "4:8T", "<=2:4", "<=2:4T"]


def inputs(kind, count, shape, seed):
    """Items of one kind or another, of which some say little about others."""
    generator = torch.Generator().manual_seed(seed)
    x = [torch.randn(shape, generator=generator) for _ in range(count)]
    if kind == "correlated":
        return rows(count, shape, seed)
    if kind == "heavy tails":
        return [item.pow(5) for item in x]
    if kind == "low rank":
        mix = torch.randn(2, shape[-1], generator=generator)
        return [item[..., :2] @ mix for item in x]
    if kind == "shifting":  # the last items are like none before
        return [item * (1 + i) + i for i, item in enumerate(x)]
    if kind == "outlier":
        x[0][0] *= 1e7  # which the means of what weights are fitted to follow
        return x
    if kind == "dead inputs":
        return [item.relu() * (torch.arange(shape[-1]) % 3 == 0) for item in x]
    return x


@given(
    kind=st.sampled_from(
        ["independent", "correlated", "heavy tails", "low rank", "shifting", "dead inputs"]
    ),
    pattern=st.sampled_from(PATTERNS),
    count=st.sampled_from([1, 3, 12]),
    length=st.sampled_from([3, 14, 60]),
    prune=st.sampled_from([nmt.adaprune_, nmt.sparsegpt_]),
    bias=st.booleans(),
    sequential=st.booleans(),
    targets=st.sampled_from(["dense", "own"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=40)
def test_no_layer_is_worse_than_masked(
    kind, pattern, count, length, prune, bias, sequential, targets, seed
):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(16, 24, bias=bias), nn.Tanh(), nn.Linear(24, 8))
    items = inputs(kind, count, (length, 16), seed)
    found = prune(model, pattern, items, bias=bias, sequential=sequential, targets=targets)
    assert nmt.verify(model, pattern)
    for layer in found:
        if layer.held_out_before is None:
            assert count * length < 10 or count * (length // 10) == 0
            assert layer.after <= layer.before
        else:
            assert layer.held_out_after <= layer.held_out_before
        if layer.method == "masking":
            assert layer.after == layer.before


@given(
    kind=st.sampled_from(["independent", "correlated", "heavy tails", "shifting", "outlier"]),
    count=st.sampled_from([1, 4, 23]),
    bias=st.booleans(),
    criterion=st.sampled_from(["magnitude", "activation"]),
    dtype=st.sampled_from([torch.float64, torch.float32, torch.bfloat16, torch.float16]),
    level=st.sampled_from([0.0, 300.0]),
    seed=st.integers(0, 99),
)
@example("independent", 1, True, "activation", torch.bfloat16, 300.0, 0)
@example("outlier", 23, True, "activation", torch.float32, 0.0, 0)
@settings(max_examples=30)
def test_errors_are_those_of_the_layer_itself(kind, count, bias, criterion, dtype, level, seed):
    """‖Y − X Wᵀ‖² / ‖Y‖², without biases in Y, on inputs that are split by hand; of the bias that
    the layer's dtype holds, too.
    """
    assume(kind != "outlier" or dtype != torch.float16)  # which does not hold it
    torch.manual_seed(seed)
    was, precise = nn.Linear(16, 8, bias=bias).to(dtype), dtype == torch.float64
    if bias:
        was.bias.data += level
    items = [x.to(was.weight.dtype) for x in inputs(kind, count, (40, 16), seed)]
    layer = copy.deepcopy(was)
    found = nmt.adaprune_(layer, "2:4", items, criterion=criterion)[0]
    fitted, others = split(items)
    was.double()
    layer.double()
    with torch.no_grad():
        for x, before, after in (
            (fitted, found.before, found.after),
            (others, found.held_out_before, found.held_out_after),
        ):
            wanted = was(x.double())
            energy = (x.double() @ was.weight.T).square().sum()
            mask = nmt.solve(was.weight, "2:4", scores(was.weight, fitted, criterion)).mask
            masked = x.double() @ (was.weight * mask).T + (was.bias if bias else 0)
            close = {"rel": 1e-9 if precise else 1e-3, "abs": 1e-12 if precise else 1e-6}
            assert before == pytest.approx(
                float((masked - wanted).square().sum() / energy), **close
            )
            error = float((layer(x.double()) - wanted).square().sum() / energy)
            assert after == pytest.approx(error, **close)
        assert found.held_out_after <= found.held_out_before


def scores(weight, x, criterion):
    return weight.abs() * (1 if criterion == "magnitude" else x.double().norm(dim=0))


def split(items):
    """Every tenth item, or the last tenth of each."""
    if len(items) >= 10:
        out = [i % 10 == 9 for i in range(len(items))]
        kept = [x for x, held in zip(items, out, strict=True) if not held]
        return torch.cat(kept), torch.cat([x for x, held in zip(items, out, strict=True) if held])
    first = [len(x) - len(x) // 10 for x in items]
    return (
        torch.cat([x[:n] for x, n in zip(items, first, strict=True)]),
        torch.cat([x[n:] for x, n in zip(items, first, strict=True)]),
    )


class Images(nn.Module):
    """With channels last, which are correlated."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 8, 3, padding=1), nn.Conv2d(8, 4, 3, stride=2)

    def forward(self, x):
        return self.second(self.first(x.movedim(-1, 1)).tanh())


class Tokens(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(16, 16), nn.Linear(16, 8)

    def forward(self, x):
        return self.second(self.first(x).tanh())


#: A model, the shape of its items, their number, and what of each is held out.
CASES = [
    (Tokens, (60, 16), 40, None),
    (Tokens, (900, 16), 1, slice(810, None)),
    (Tokens, (200, 16), 9, slice(180, None)),
    (Tokens, (300, 5, 16), 2, slice(270, None)),
    (Images, (4, 6, 6, 4), 40, None),
    (Images, (60, 6, 6, 4), 2, slice(54, None)),
]


def changed(items, out, apart=False):
    """Held-out inputs in place of which others of the same kind are; apart: the others too."""
    other = [x.clone() for x in items]
    fresh = rows(2 * len(items), items[0].shape)[len(items) :]
    for i, x in enumerate(other):
        if out is None:
            place = slice(None) if (i % 10 == 9) != apart else slice(0)
        else:
            place = slice(0, 1) if apart else out
        x[place] = fresh[i][place]
    return other


@pytest.mark.parametrize("prune", [nmt.adaprune_, nmt.sparsegpt_])
@pytest.mark.parametrize(("kind", "shape", "count", "out"), CASES)
def test_nothing_that_is_held_out_gets_into_weights(kind, shape, count, out, prune):
    torch.manual_seed(0)
    base = kind()
    items = rows(count, shape)
    same = 0
    for options in ({}, {"sequential": False}, {"targets": "own"}, {"bias": False}):
        models, reports = [], []
        for calibration in (items, changed(items, out), changed(items, out, apart=True)):
            models.append(copy.deepcopy(base))
            reports.append(prune(models[-1], "2:4", calibration, **options))
        for first, second in zip(reports[0], reports[1], strict=True):
            if (first.method, first.damping) != (second.method, second.damping):
                break
            same += 1
            names = (f"{first.path}.weight", f"{first.path}.bias")
            for name in names:
                one, two = (model.state_dict()[name] for model in models[:2])
                assert torch.equal(one, two)
            assert first.held_out_after != second.held_out_after
            assert (first.before, first.after) == (second.before, second.after)
            if first.method != "masking":
                other = models[2].state_dict()[names[0]]
                assert not torch.equal(models[0].state_dict()[names[0]], other)
    assert same >= 4


def test_the_held_out_error_chooses_the_damping():
    """More where there are fewer samples than inputs, and fitting them says nothing of others."""
    torch.manual_seed(0)
    base = nn.Linear(64, 16)
    shares = []
    for many in (20, 800):
        items = rows(many, (2, 64))
        found = nmt.adaprune_(copy.deepcopy(base), "2:4", items)[0]
        fitted = torch.cat([x for i, x in enumerate(items) if i % 10 < 9])
        centred = fitted - fitted.mean(0)
        shares.append(found.damping / float(centred.square().sum() / 64))
    assert shares[0] >= 0.099
    assert shares[1] == pytest.approx(0.01, rel=1e-3)


class Rarely(nn.Module):
    """A layer that few items come to."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.first, self.rare = nn.Linear(16, 16), nn.Linear(16, 16)

    def forward(self, x):
        h = self.first(x)
        return self.rare(h.tanh()) if x[0, 0] > 50 else h


@pytest.mark.parametrize("around", [False, True])
def test_layers_that_only_every_tenth_item_comes_to_are_fitted_to_these(around):
    model = Keeping(Rarely()) if around else Rarely()
    items = rows(20, (60, 16))
    for i, x in enumerate(items):
        x[0, 0] = 99 if i % 10 == 9 else 0
    found = nmt.adaprune_(model, "2:4", items)
    rare = found["model.rare" if around else "rare"]
    assert rare.samples == 2 * 54  # a tenth of each is held out
    assert rare.held_out_after < 0.9 * rare.held_out_before
    assert found[0].samples == 18 * 60
