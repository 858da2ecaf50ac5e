"""What DominoSearch refuses, in which words, and that it leaves the model as it was."""

import math

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from nmsolve.errors import InputError, PatternError
from nmsolve.torch.allocation.budget import FLOPs, Latency, Params
from nmsolve.torch.allocation.domino import domino_search
from tests.allocation.domino_nets import QUICK, loss_of, problem, stepper
from tests.dispatch.layers import same, state_of


def fail(match, budget=None, m=8, model=None, train_step=None, **options):
    """The search fails with this message, and the model is as before."""
    made, _, inputs, _ = problem("mlp")
    model = made if model is None else model
    before = state_of(model) if isinstance(model, nn.Module) else None
    with pytest.raises(InputError, match=match):
        domino_search(
            model, train_step or stepper(inputs), budget or Params(250), m=m, **{**QUICK, **options}
        )
    if before:
        assert same(before, state_of(model))
        assert all(p.grad is None for p in model.parameters())


def untrained(model):
    raise AssertionError("nothing may be trained")


def test_budgets_that_make_no_sense():
    fail(
        r"Params\(limit=100\) cannot be met: the smallest that can be reached is 102 kept weights, "
        r"with 1:8 in all 3 layers; "
        "the dense model has 816",
        Params(100),
        train_step=untrained,
    )
    fail("is 204 kept weights, with 2:8", Params(110), train_step=untrained, candidates=[2, 4])
    fail(
        r"the dense model meets Params\(limit=816\) already: it has 816 kept weights",
        Params(816),
        train_step=untrained,
    )
    fail("the smallest that can be reached is 1224 multiply-adds, with 1:8", FLOPs(1223))
    fail("the dense model meets .* it has 9792 multiply-adds", FLOPs(9792))
    _, _, inputs, _ = problem("mlp")
    fail(
        "smallest that can be reached is 102 multi",
        FLOPs(100),
        train_step=untrained,
        example_inputs=inputs[0][:1],
    )
    fail("nmt.allocate", Latency({}, 1.0), train_step=untrained)
    fail(r"budget must be nmt.Params\(…\) or nmt.FLOPs\(…\), got 2000", 2000, train_step=untrained)


def test_options_that_do_not_exist():
    for match, options in {
        "m must be an integer ≥ 2, got 1": {"m": 1},
        "m must be an integer ≥ 2, got '8'": {"m": "8"},
        "policy must be one of 'fixed_m', 'fixed_n', got 'fixed'": {"policy": "fixed"},
        "candidates are numbers kept of every 8, some of them smaller than 8, got \\[9\\]": {
            "candidates": [9]
        },
        "candidates are numbers kept of every 8.*got \\[8\\]": {"candidates": [8]},
        "candidates are numbers kept of every 8.*got \\[\\]": {"candidates": []},
        "candidates must be an integer ≥ 1, got 0": {"candidates": [0, 2]},
        "candidates takes several integers": {"candidates": 4},
        "policy='fixed_n' turns n:8 into 1:\\(8/n\\), and 3 does not divide 8": {
            "policy": "fixed_n",
            "candidates": [1, 3],
        },
        "betas are two numbers": {"betas": 0.5},
        "betas are not negative and not both zero, got \\(0, 0\\)": {"betas": (0, 0)},
        "betas are not negative": {"betas": (1, -1)},
        "decay must be a positive number, got 0": {"decay": 0},
        "lr must be a positive number, got nan": {"lr": math.nan},
        "penalty_every must be an integer ≥ 1, got 0": {"penalty_every": 0},
        "check_every must be an integer ≥ 1, got 1.5": {"check_every": 1.5},
        "max_steps must be an integer ≥ 1, got True": {"max_steps": True},
        "doubling takes several integers ≥ 0, got 3": {"doubling": 3},
        "doubling must be an integer ≥ 0, got -1": {"doubling": [5, -1]},
        "vote is a share of the groups, at most 1, got 75": {"vote": 75},
        "include='head' matches no layer": {"include": "head"},
        "no weight has groups of 7": {"m": 7},
        "no weight has groups of 8, so there is nothing to search": {"exclude": ["0", "2", "4"]},
    }.items():
        fail(match, train_step=untrained, **options)
    fail("train_step must be a function", train_step=3)
    with pytest.raises(PatternError, match="solvers go up to m = 64"):
        domino_search(problem("mlp")[0], untrained, Params(250), m=128)


def test_models_that_cannot_be_searched():
    fail("model must be an nn.Module, got dict", model={}, train_step=untrained)
    lazy = nn.Sequential(nn.Linear(8, 8), nn.LazyLinear(4))
    with pytest.raises(InputError, match="lazy modules"):
        domino_search(lazy, untrained, Params(20), m=8)
    with pytest.raises(InputError, match="meta device"):
        domino_search(nn.Sequential(nn.Linear(8, 8, device="meta")), untrained, Params(20), m=8)
    model = nn.Sequential(nn.Linear(8, 8))
    nn.init.constant_(model[0].weight, math.inf)
    fail("the weight of layer 0 is not finite", Params(20), model=model, train_step=untrained)
    nn.init.ones_(model[0].weight)
    nmt.sparsify_(model, "2:4")
    with pytest.raises(InputError, match=r"sparsified already \(layer 0\): finalize_ it first"):
        domino_search(model, untrained, Params(20), m=8)
    unused = nn.ModuleDict({"used": nn.Linear(8, 8), "unused": nn.Linear(8, 8)})
    x = torch.randn(2, 8)
    fail(
        "layer unused is never reached",
        Params(20),
        model=unused,
        train_step=lambda model: model["used"](x).sum(),
    )


def test_train_steps_that_do_not_return_a_loss():
    _, _, inputs, _ = problem("mlp")

    def stepping(model):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        loss = loss_of(model(inputs[0]))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        return loss

    def backward(model):
        loss = loss_of(model(inputs[0]))
        loss.backward()
        return loss

    def forgetful(model):
        loss_of(model(inputs[0]))

    def frozen(model):
        model.requires_grad_(False)
        return loss_of(model(inputs[0]))

    refused = {
        "at iteration 0 it returned None": forgetful,
        "at iteration 0 it returned a float": lambda model: loss_of(model(inputs[0])).item(),
        r"at iteration 0 it returned one of shape \(12, 3\): take its mean": lambda model: model(
            inputs[0]
        ),
        "requires no gradient: it was detached": lambda model: loss_of(model(inputs[0])).detach(),
        "all parameters are frozen": frozen,
        "it has given layer 0 a gradient or another weight": backward,
        "leaves backward.. and the optimizer's step to domino_search; at iteration 0": stepping,
    }
    for match, train_step in refused.items():
        fail(match, train_step=train_step)


def test_training_that_diverges():
    _, _, inputs, _ = problem("mlp")
    count = iter(range(100))

    def train_step(model):
        return loss_of(model(inputs[0])) * (math.nan if next(count) == 5 else 1)

    fail(
        "the loss is nan at iteration 5: training diverged; a smaller lr or decay helps. The model "
        "is as it was",
        train_step=train_step,
    )

    def without_showing(model):
        loss = loss_of(model(inputs[0]))
        return (
            loss + model[0].weight.sum() * 0
            if next(count) < 9
            else loss + (model[0].weight * math.inf).sum().nan_to_num(0, 0, 0)
        )

    fail(
        "the weight of layer 0 is not finite any more after iteration 3", train_step=without_showing
    )


def test_models_that_are_sparse_already():
    model = nn.Sequential(nn.Linear(16, 8), nn.Linear(8, 8))
    nmt.adaprune_(model, {"1": "2:8"}, [torch.randn(20, 16)])
    fail("layer 1 is sparse already", model=model, train_step=untrained)


def test_loaders_that_end_are_told():
    step, left = stepper(problem("mlp")[2]), iter(range(3))
    fail(
        r"ran out of batches in iteration 3: .*itertools\.cycle",
        train_step=lambda model: (next(left), step(model))[1],
    )


def test_steps_that_run_another_model_are_told():
    other, _, inputs, _ = problem("mlp")
    step = stepper(inputs)
    fail(
        r"never reached by the first call of train_step\(model\), which has to run the model",
        train_step=lambda _: step(other),
    )
