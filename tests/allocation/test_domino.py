"""DominoSearch against the method written out in loops, and what it finds."""

import math

import numpy as np
import pytest
import torch
from torch import nn
from torch.func import functional_call

import nmsolve.torch as nmt
from nmsolve.errors import InputError
from nmsolve.torch.allocation import domino_run
from nmsolve.torch.allocation.budget import FLOPs, Params
from nmsolve.torch.allocation.domino import domino_search
from reference import domino as oracle
from tests.allocation.domino_nets import NETS, QUICK, loss_of, problem, stepper
from tests.dispatch.layers import same, state_of


def written_out(model, paths, inputs, positions, limit, m, **options):
    """The reference's run on the same model and batches."""
    names = [f"{path}.weight" for path in paths]
    parameters = {name: p.detach().numpy() for name, p in model.named_parameters()}
    rest = [name for name in parameters if name not in names]

    def gradients(step, weights, others):
        given = dict(zip([*names, *rest], [*weights, *others], strict=True))
        leaves = {name: torch.tensor(value, requires_grad=True) for name, value in given.items()}
        loss_of(functional_call(model, leaves, (inputs[step % len(inputs)],))).backward()
        found = {name: leaf.grad.numpy() for name, leaf in leaves.items()}
        return [found[name] for name in names], [found[name] for name in rest]

    macs = [positions[path] * model.get_submodule(path).weight.numel() for path in paths]
    weights, others = [parameters[name] for name in names], [parameters[name] for name in rest]
    return oracle.search(weights, others, gradients, macs, limit, m, **options)


CASES = {
    "defaults": {},
    "without eta": {"layerwise": False},
    "multiply-adds alone": {"beta": (1.0, 0.0)},
    "redundancy alone": {"beta": (0.0, 1.0)},
    "doubling": {"doubling": (5, 30), "decay": 1.0},
    "every step": {"penalty_every": 1, "check_every": 1},
    "rare penalty": {"penalty_every": 7},
    "candidates": {"candidates": [2, 5, 6]},
    "few votes": {"vote": 0.4},
    "all votes": {"vote": 1.0, "decay": 8.0},
    "stopped early": {"max_steps": 60},
    "learning rate": {"lr": 0.05, "decay": 1.0},
}


@pytest.mark.parametrize("unit", [Params, FLOPs])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("name", NETS)
@pytest.mark.filterwarnings("ignore:after .* iterations the plan costs:UserWarning")
def test_agreement(name, case, unit, monkeypatch):
    """The same weights at every iteration, the same η, the same drops, both budgets."""
    model, paths, inputs, positions = problem(name)
    options = {**QUICK, **CASES[case]}
    sizes = [model.get_submodule(path).weight.numel() for path in paths]
    prices = (
        sizes
        if unit is Params
        else [size * positions[path] for size, path in zip(sizes, paths, strict=True)]
    )
    limit = 0.36 * sum(prices)
    expected = written_out(
        model, paths, inputs, positions, limit, 8, by_macs=unit is FLOPs, **options
    )

    etas = []
    monkeypatch.setattr(
        domino_run, "penalty_factors", lambda *args: etas.append(PENALTY_FACTORS(*args)) or etas[-1]
    )
    ours = {"betas": options.pop("beta", None), **options}
    seen = []
    found = domino_search(model, stepper(inputs, seen, paths), unit(limit), m=8, **ours)

    assert [tuple(drop) for drop in found.history] == [
        (step, paths[i], n, pytest.approx(cost)) for step, i, n, cost in expected.history
    ]
    assert len(found.history) > (0 if case == "stopped early" else 2)  # else nothing is tested
    assert (found.steps, found.cost <= limit) == (expected.steps, case != "stopped early")
    assert len(seen) == len(expected.seen)
    for ours_at, theirs_at in zip(seen, expected.seen, strict=True):
        for a, b in zip(ours_at, theirs_at, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-8, atol=1e-12)
    distinct = [
        now
        for now, before in zip(expected.etas, [None, *expected.etas[:-1]], strict=True)
        if now != before
    ]
    if options.get("layerwise", True):
        known = [pytest.approx(factors) for factors in etas]
        assert all(any(factors == other for other in known) for factors in distinct)
    else:
        assert not etas
    patterns = {layer.path: layer.pattern for layer in found}
    assert [8 if patterns[path] is None else patterns[path].n for path in paths] == expected.n


PENALTY_FACTORS = domino_run.penalty_factors


@pytest.mark.parametrize("betas", [(0.5, 0.5), (0.8, 0.2), (0.0, 1.0), (1.0, 0.0)])
@pytest.mark.parametrize(
    ("n", "targets"),
    [
        ([16, 16, 16], [0.9, 0.5, 0.0]),
        ([8, 2, 16], [0.9, 0.5, 0.0]),
        (
            [8, 8, 1],
            [0.505, 0.45, 0.2],
        ),  # none is further than 0.01 above its target: redundancy says nothing
        ([8, 8, 1], [0.515, 0.45, 0.2]),
        ([1, 1, 1], [0.5, 0.5, 0.5]),
    ],
)
def test_penalty_factors(n, targets, betas):
    macs = [3e6, 1e5, 7e6]
    assert PENALTY_FACTORS(macs, n, 16, targets, betas) == pytest.approx(
        oracle.etas_of(macs, n, 16, targets, *betas)
    )


@pytest.mark.parametrize("name", NETS)
def test_float32_decides_the_same(name):
    model, paths, inputs, positions = problem(name, seed=1)
    limit = 0.4 * sum(model.get_submodule(path).weight.numel() for path in paths)
    expected = written_out(model, paths, inputs, positions, limit, 8, **QUICK)
    found = domino_search(
        model.float(), stepper([x.float() for x in inputs]), Params(limit), m=8, **QUICK
    )
    assert [(drop.step, drop.path, drop.n) for drop in found.history] == [
        (s, paths[i], n) for s, i, n, _ in expected.history
    ]


def test_groups_and_masks_of_the_reference():
    """The reference itself, by hand."""
    W = np.array([[3.0, -1.0, 1.0, 2.0], [0.0, 0.0, 0.0, 0.0]])
    assert oracle.mask_of(W, 2, 4).tolist() == [
        [True, False, False, True],
        [True, True, False, False],
    ]
    assert oracle.mask_of(W, 3, 4)[0].tolist() == [
        True,
        True,
        False,
        True,
    ]  # among equals the first
    assert oracle.thresholds_of(W, 4) == [1.0, 0.0]
    assert oracle.thresholds_of(np.array([[4.0, 1.0, 2.0]]), 3) == [1.0]
    assert oracle.share_below(W, [1.0, 0.0], 2, 4) == 0.5
    assert oracle.etas_of([100.0, 50.0], [8, 16], 16, [0.75, 0.5], 0.5, 0.5) == [0.75, 1.0]
    assert oracle.etas_of([100.0, 50.0], [8, 8], 16, [0.505, 0.25], 0.5, 0.5) == [
        0.5,
        0.25,
    ]  # near the targets
    assert oracle.etas_of([100.0, 50.0], [4, 16], 16, [0.25, 0.5], 0.0, 1.0) == [
        -1.0,
        1.0,
    ]  # further than its target: it grows


def test_conv_groups_lie_along_input_channels():
    """At every iteration the weights that a batch sees have n of every 8 input channels, at each
    kernel position.
    """
    model, paths, inputs, _ = problem("conv")
    seen = []
    found = domino_search(model, stepper(inputs, seen, paths), Params(500), m=8, **QUICK)
    kept = [(np.moveaxis(at[0], 1, -1) != 0).sum(-1) for at in seen]
    assert all((counts == counts[0, 0, 0]).all() for counts in kept)
    assert kept[0][0, 0, 0] == 8
    assert kept[-1][0, 0, 0] < 8
    assert found.reached


def test_what_a_search_says():
    model, paths, inputs, positions = problem("conv")
    found = domino_search(model, stepper(inputs), Params(600), m=8, **QUICK)
    assert isinstance(found, nmt.Plan)
    patterns = {layer.path: layer.pattern for layer in found}
    n = {path: 8 if patterns[path] is None else patterns[path].n for path in paths}
    sizes = {path: model.get_submodule(path).weight.numel() for path in paths}
    assert (
        found.kept_weights == found.cost == sum(sizes[path] * n[path] // 8 for path in paths) <= 600
    )
    assert found.multiply_adds == sum(sizes[path] * positions[path] * n[path] / 8 for path in paths)
    assert found.budget == Params(600)
    assert found.reached
    assert found.seconds > 0
    assert found.history[-1].cost == found.cost
    assert found.steps == found.history[-1].step + 1
    assert all(
        before.cost > after.cost
        for before, after in zip(found.history, found.history[1:], strict=False)
    )
    assert found.history[-2].cost > 600  # it has ended as soon as it could
    assert "3 input channels do not consist of groups of 8" in str(found)
    assert f"{found.kept_weights} kept weights" in str(found)
    assert "meets Params(limit=600)" in repr(found)
    sparse = nmt.sparsify_(model, found, nmt.Fixed())
    assert nmt.verify(model, found).ok
    sparse.finalize_()
    assert nmt.verify(model, found).ok
    total = sum(int(model.get_submodule(path).weight.count_nonzero()) for path in paths)
    assert total == found.kept_weights


def test_flops_are_those_of_the_first_batch_or_of_example_inputs():
    model, paths, inputs, positions = problem("conv")
    dense = sum(model.get_submodule(path).weight.numel() * positions[path] for path in paths)
    found = domino_search(model, stepper(inputs), FLOPs(0.4 * dense), m=8, **QUICK)
    assert found.cost == found.multiply_adds <= 0.4 * dense
    one = inputs[0][:1]
    for example in (one, [one], {"input": one}):
        again = domino_search(
            model, stepper(inputs), FLOPs(0.2 * dense), m=8, example_inputs=example, **QUICK
        )
        assert again == found
        assert again.multiply_adds == found.multiply_adds / 2
    with pytest.raises(InputError, match="cannot be met"):
        domino_search(model, stepper(inputs), FLOPs(0.1 * dense), m=8, **QUICK)


def test_fixed_n_keeps_as_much():
    model, _, inputs, _ = problem("mlp")
    fixed_m = domino_search(model, stepper(inputs), Params(250), m=8, **QUICK)
    fixed_n = domino_search(model, stepper(inputs), Params(250), m=8, policy="fixed_n", **QUICK)
    assert fixed_n.history == fixed_m.history
    assert fixed_n.kept_weights == fixed_m.kept_weights
    assert len(fixed_n.planned) == len(fixed_m.planned)
    for one, other in zip(fixed_m.planned, fixed_n.planned, strict=True):
        assert (other.pattern.n, other.pattern.m) == (1, 8 // one.pattern.n)
    nmt.sparsify_(model, fixed_n, nmt.Fixed()).finalize_()
    assert nmt.verify(model, fixed_n).ok


def test_every_power_of_two_has_its_fixed_n():
    """8:16 → 1:2, 4:16 → 1:4, 2:16 → 1:8, 1:16 → 1:16, as in the supplement."""
    for n, m in ((8, 2), (4, 4), (2, 8), (1, 16)):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16))
        x = torch.randn(8, 16)
        found = domino_search(
            model,
            lambda model, x=x: model(x).square().mean(),
            Params(16 * n),
            m=16,
            policy="fixed_n",
            decay=20.0,
            check_every=1,
        )
        assert str(found[0].pattern) == f"1:{m}"
        assert found.kept_weights == 16 * n


def test_layers_that_the_search_does_not_reach_stay_dense():
    model, _, inputs, _ = problem("mlp")
    rest = {"betas": (0.0, 1.0), **QUICK}
    found = domino_search(model, stepper(inputs), Params(700), m=8, **rest)
    dense = [layer for layer in found if layer.pattern is None]
    assert [layer.reason for layer in dense] == ["left dense by the search"] * len(dense)
    assert dense
    assert found.planned
    assert found.kept_weights == sum(
        math.prod(e.shape) * (1 if e.pattern is None else e.pattern.density) for e in found
    )


def test_time_that_is_up():
    model, _, inputs, _ = problem("mlp")
    before = state_of(model)
    with pytest.warns(
        UserWarning,
        match=r"after 25 iterations the plan costs \d+ kept weights, and Params\(limit=110\) is "
        r"not met",
    ) as said:
        found = domino_search(
            model, stepper(inputs), Params(110), m=8, **{**QUICK, "max_steps": 25}
        )
    assert "max_steps" in str(said[0].message)
    assert "decay" in str(said[0].message)
    assert said[0].filename == __file__
    assert not found.reached
    assert found.cost > 110
    assert found.steps == 25
    assert "misses" in repr(found)
    assert same(before, state_of(model))


def test_budgets_at_the_edge():
    model, _, inputs, _ = problem("mlp")
    found = domino_search(
        model, stepper(inputs), Params(102), m=8, **{**QUICK, "layerwise": False, "max_steps": 2000}
    )
    assert {str(layer.pattern) for layer in found} == {"1:8"}
    found = domino_search(model, stepper(inputs), Params(815), m=8, **QUICK)
    assert len(found.history) == 1
