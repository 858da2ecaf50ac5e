"""DominoSearch in models of all kinds, which it leaves as they were."""

import copy
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from nmsolve.torch.allocation.budget import FLOPs, Params
from nmsolve.torch.allocation.domino import domino_search
from tests.allocation.domino_nets import QUICK, loss_of, problem, stepper
from tests.dispatch.layers import same, state_of


class Mixed(nn.Module):
    """Attention with its projections, a grouped and a depthwise convolution, a norm, dropout, and a
    tied layer.
    """

    def __init__(self):
        super().__init__()
        self.grouped = nn.Conv2d(16, 16, 3, padding=1, groups=2)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.BatchNorm2d(16)
        self.attention = nn.MultiheadAttention(16, 2, dropout=0.1, batch_first=True)
        self.one, self.two = nn.Linear(16, 16), nn.Linear(16, 16)
        self.two.weight = self.one.weight

    def forward(self, x):
        x = self.norm(self.depthwise(self.grouped(x))).flatten(2).transpose(1, 2)
        x = x + self.attention(x, x, x)[0]
        return self.two(self.one(x).relu())


def mixed():
    torch.manual_seed(0)
    return Mixed(), torch.randn(2, 16, 3, 3)


@pytest.mark.parametrize("unit", [Params, FLOPs])
def test_attention_grouped_convolutions_and_tied_weights(unit):
    model, x = mixed()
    kept_of = []

    def train_step(model):
        weights = [
            model.grouped.weight.movedim(1, -1),
            model.attention.in_proj_weight,
            model.one.weight,
        ]
        kept_of.append(
            [
                (weight.detach().unflatten(-1, (-1, 8)) != 0).sum(-1).unique().tolist()
                for weight in weights
            ]
        )
        assert model.one.weight is model.two.weight
        return model(x).square().mean()

    sizes = {
        "grouped": 16 * 8 * 9,
        "attention.in_proj_weight": 48 * 16,
        "attention.out_proj": 256,
        "one": 256,
    }
    positions = {"grouped": 18, "attention.in_proj_weight": 18, "attention.out_proj": 18, "one": 36}
    prices = (
        sizes if unit is Params else {path: size * positions[path] for path, size in sizes.items()}
    )
    found = domino_search(model, train_step, unit(0.5 * sum(prices.values())), m=8, **QUICK)
    by_path = {layer.path: layer for layer in found}
    assert found.cost == sum(
        price * (8 if (p := by_path[path].pattern) is None else p.n) / 8
        for path, price in prices.items()
    )
    assert found.history[-1].cost == found.cost
    assert by_path["one"].pattern == by_path["two"].pattern
    assert by_path["two"].tied_to == "one"
    assert by_path["depthwise"].reason.startswith("depthwise")
    assert all(len(counts) == 1 for at in kept_of for counts in at)
    assert kept_of[0] == [[8]] * 3
    assert min(kept_of[-1]) < [8]
    assert {drop.path for drop in found.history} <= set(sizes)
    assert nmt.sparsify_(model, found, nmt.Fixed()).finalize_().ok


def test_weights_of_inputs_by_outputs():
    """Hugging Face's Conv1D is nn.Linear with its weight transposed, and is searched like it."""
    conv1d = pytest.importorskip("transformers.pytorch_utils").Conv1D
    torch.manual_seed(0)
    linear = nn.Sequential(nn.Linear(16, 24), nn.Tanh(), nn.Linear(24, 8)).double()
    other = nn.Sequential(conv1d(24, 16), nn.Tanh(), conv1d(8, 24)).double()
    for i in (0, 2):
        other[i].weight.data.copy_(linear[i].weight.data.T)
        other[i].bias.data.copy_(linear[i].bias.data)
    x = torch.randn(8, 16, dtype=torch.float64)
    found, again = (
        domino_search(model, lambda model: loss_of(model(x)), Params(200), m=8, **QUICK)
        for model in (linear, other)
    )
    assert again.history == found.history
    assert again.multiply_adds == found.multiply_adds
    assert [layer.axis for layer in again] == [0, 0]
    assert nmt.sparsify_(other, again, nmt.Fixed()).finalize_().ok


def test_the_model_is_as_before():
    model, x = mixed()
    model.eval()
    model.norm.train()
    model.one.bias.requires_grad_(False)
    model.one.bias.grad = None
    model.grouped.weight.grad = torch.ones_like(model.grouped.weight)
    before = state_of(model)
    gradients = [p.grad for p in model.parameters()]
    orders = [list(module._parameters) for module in model.modules()]
    attributes = [list(module.__dict__) for module in model.modules()]
    seen = []

    def train_step(model):
        seen.append(
            (model.training, model.norm.training, model.one.bias.clone(), model.norm.bias.clone())
        )
        model.train(False)  # what a validation in between may leave behind
        model.requires_grad_(True)
        model.one.bias.requires_grad_(False)
        return model(x).square().mean()

    found = domino_search(model, train_step, Params(1000), m=8, **QUICK)
    assert found.reached
    assert same(before, state_of(model))
    assert all(
        p.grad is gradient for p, gradient in zip(model.parameters(), gradients, strict=True)
    )
    assert torch.equal(model.grouped.weight.grad, torch.ones_like(model.grouped.weight))
    assert [list(module._parameters) for module in model.modules()] == orders
    assert [list(module.__dict__) for module in model.modules()] == attributes
    assert seen[0][:2] == (False, True)
    assert torch.equal(seen[0][2], seen[-1][2])  # frozen
    assert not torch.equal(seen[0][3], seen[-1][3])  # trained, though not searched


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("when", [0, 1, 7])
def test_the_model_is_as_before_when_train_step_fails(error, when):
    model, x = mixed()
    before = state_of(model)
    count = iter(range(100))

    def train_step(model):
        loss = model(x).square().mean()
        if next(count) == when:
            raise error("enough")
        return loss

    with pytest.raises(error, match="enough"):
        domino_search(model, train_step, FLOPs(30_000), m=8, **QUICK)
    assert same(before, state_of(model))
    assert all(p.grad is None for p in model.parameters())
    assert torch.backends.mha.get_fastpath_enabled()


def _mean_square(x, model):
    return model(x).square().mean()


def test_two_runs_are_the_same():
    runs = []
    for _ in range(2):
        model, x = mixed()
        torch.manual_seed(1)
        step = partial(_mean_square, x)
        found = domino_search(model, step, Params(1000), m=8, **QUICK)
        runs.append((found, found.history, torch.randn(1)))
    assert runs[0] == runs[1]


def test_frozen_weights_shrink_and_other_frozen_parameters_stay():
    model, _, inputs, _ = problem("mlp")
    model[0].weight.requires_grad_(False)
    model[0].bias.requires_grad_(False)
    seen = []
    options = {**QUICK, "penalty_every": 1, "layerwise": False}
    found = domino_search(model, stepper(inputs, seen, ["0"]), Params(250), m=8, **options)
    factor = 1 - 0.01 * 4.0
    kept = seen[1][0] != 0  # at the first check the mask comes down by one
    np.testing.assert_allclose(seen[1][0][kept], seen[0][0][kept] * factor)
    assert kept.mean() == 7 / 8
    assert found.reached
    assert not model[0].weight.requires_grad


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_the_penalty_is_not_lost_to_rounding(dtype):
    """1 − lr λ η is 1 in sixteen bits; the search goes on in float32, with its usual numbers."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False, dtype=dtype))
    x = torch.zeros(1, 16, dtype=dtype)  # nothing but the penalty moves it
    seen = []

    def train_step(model):
        seen.append(model[0].weight.detach().clone())
        return model(x).sum()

    with pytest.warns(UserWarning, match="is not met"):
        domino_search(
            model, train_step, Params(64), m=8, penalty_every=1, check_every=1000, max_steps=100
        )
    assert seen[0].dtype == dtype
    kept = seen[-1] != 0  # at the first check the mask comes down by one
    assert kept.float().mean() == 7 / 8
    shrunk = seen[-1][kept].float() / seen[0][kept].float()  # a few had been dropped for a while
    assert shrunk.median().item() == pytest.approx((1 - 0.001) ** 99, rel=1e-2)


def test_zeros_and_ties():
    """A weight of zeros falls at once, and of equal weights the first are kept."""
    model = nn.Sequential(nn.Linear(8, 4, bias=False), nn.Linear(4, 4))
    nn.init.zeros_(model[0].weight)
    x = torch.zeros(1, 8)
    found = domino_search(
        model, lambda model: model(x).sum(), Params(8), m=8, check_every=1, max_steps=10
    )
    assert [drop.n for drop in found.history] == [4, 2]
    assert found.steps == 6  # 8, 7, 6, 5, 4, 3: the mask's n goes through all numbers
    model = nn.Sequential(nn.Linear(8, 4, bias=False))
    nn.init.ones_(model[0].weight)
    seen = []

    def train_step(model):
        seen.append(model[0].weight.detach().clone())
        return model(x).sum()

    domino_search(model, train_step, Params(8), m=8, check_every=1, penalty_every=1, decay=0.01)
    kept = seen[-1] != 0
    assert kept.sum(1).tolist() == [3] * 4
    assert len(kept.unique(dim=0)) == 1


def test_a_copy_or_a_checkpoint_made_meanwhile():
    model, x = mixed()
    kept = []

    def train_step(model):
        kept.append((model.state_dict().keys(), copy.deepcopy(model)))
        return model(x).square().mean()

    domino_search(model, train_step, Params(1000), m=8, **QUICK)
    names, last = kept[-1]
    assert names == model.state_dict().keys()
    assert last(x).shape == model(x).shape
    assert type(last.one) is nn.Linear


def test_under_no_grad_and_in_a_compiled_forward():
    model, _, inputs, _ = problem("mlp")
    expected = domino_search(model, stepper(inputs), Params(250), m=8, **QUICK)
    with torch.no_grad():
        assert (
            domino_search(model, stepper(inputs), Params(250), m=8, **QUICK).history
            == expected.history
        )
    forward = torch.compile(model, backend="eager")
    count = iter(range(1000))
    again = domino_search(
        model,
        lambda _: loss_of(forward(inputs[next(count) % 7])),
        Params(250),
        m=8,
        example_inputs=inputs[0],
        **QUICK,
    )
    assert again.history == expected.history


def test_progress(capsys):
    model, _, inputs, _ = problem("mlp")
    domino_search(model, stepper(inputs), Params(250), m=8, progress=True, **QUICK)
    assert "domino search" in capsys.readouterr().err
    domino_search(model, stepper(inputs), Params(250), m=8, **QUICK)
    assert not capsys.readouterr().err
