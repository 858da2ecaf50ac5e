"""Masks by second order: against the brain surgeon in loops, against the best of all masks, and
against AdaPrune.
"""

import copy
import itertools

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from nmsolve.geometry import Geometry
from nmsolve.torch.calibration.moments import Moments
from nmsolve.torch.pruning.admm import admm_mask
from nmsolve.torch.pruning.obs import obs_mask
from nmsolve.torch.pruning.problem import Problem
from reference.pruning import matching_n, surgeon_row
from tests.training.small_net import Net


def problem_of(rows, cols, pattern, seed, padding="error"):
    """A layer with correlated inputs."""
    torch.manual_seed(seed)
    layer = nn.Linear(cols, rows, bias=False).double()
    x = torch.randn(3 * cols, cols, dtype=torch.double) @ torch.randn(
        cols, cols, dtype=torch.double
    )
    entry = nmt.plan(nn.Sequential(layer), pattern, padding=padding)[0]
    weight = layer.weight.detach()[None]
    gram = (x.T @ x)[None]
    problem = Problem(
        entry=entry,
        layout=Geometry((rows, cols), 1, 1),
        weight=weight,
        moments=Moments.of_dense(gram, weight),
    )
    return problem, gram + problem.damping(1e-2) * torch.eye(cols, dtype=torch.double)


@given(
    cols=st.sampled_from([4, 8, 16, 132]),
    pattern=st.sampled_from(["2:4", "1:4", "3:4"]),
    seed=st.integers(0, 99),
)
@settings(max_examples=10, deadline=None)
def test_row_wise_masks_are_those_of_obs(cols, pattern, seed):
    """Blocks of columns and Cholesky factors change the order of the arithmetic, not what is
    chosen.
    """
    problem, hessian = problem_of(2, cols, pattern, seed)
    found = obs_mask(problem, problem.weight, hessian)[0]
    n = nmsolve.Pattern.parse(pattern).n
    for row in range(2):
        wanted = surgeon_row(problem.weight[0, row].numpy(), hessian[0].numpy(), n, 4)
        assert np.array_equal(found[row].numpy(), wanted)


def error_on(problem, mask, hessian):
    """The least error of a row-wise or transposable mask, row by row by normal equations."""
    total = 0.0
    for row in range(mask.shape[0]):
        weight, dropped = problem.weight[0, row], ~mask[row]
        kept = mask[row]
        inner = torch.linalg.solve(hessian[0][kept][:, kept], hessian[0][kept] @ weight)
        moved = torch.zeros_like(weight)
        moved[kept] = inner
        gap = moved - weight
        assert not bool(moved[dropped].any())
        total += float(gap @ hessian[0] @ gap)
    return total


def all_masks(n, m):
    lines = [
        np.array([j in chosen for j in range(m)]) for chosen in itertools.combinations(range(m), n)
    ]
    for rows in itertools.product(lines, repeat=m):
        if (np.sum(rows, axis=0) == n).all():
            yield torch.from_numpy(np.array(rows))


def test_admm_comes_near_the_best_of_all_masks():
    """On one 4 × 4 block all 90 masks can be tried."""
    ratios, plain = [], []
    for seed in range(12):
        problem, hessian = problem_of(4, 4, "2:4T", seed)
        best = min(error_on(problem, mask, hessian) for mask in all_masks(2, 4))
        found, _ = admm_mask(problem, problem.weight, hessian)
        assert nmt.verify(found[0], "2:4T")
        ratios.append(error_on(problem, found[0], hessian) / best)
        plain.append(error_on(problem, problem.best_mask(problem.weight.abs())[0], hessian) / best)
    assert np.exp(np.mean(np.log(ratios))) < 1.3 < np.exp(np.mean(np.log(plain)))


def test_admm_prunes_by_magnitude_where_inputs_are_uncorrelated():
    """With a diagonal Hessian the projection is the answer."""
    problem, _ = problem_of(8, 8, "4:8T", 0)
    scale = torch.linspace(0.5, 2, 8, dtype=torch.double)
    found, _ = admm_mask(problem, problem.weight, torch.diag(scale.square())[None])
    wanted = problem.best_mask((problem.weight * scale).square())
    assert torch.equal(found, wanted)


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2:4T", "4:8T", "<=2:4T"])
def test_layers_lose_less_than_by_adaprune(pattern):
    torch.manual_seed(0)
    base = Net().eval()
    items = [torch.randn(16, 1, 6, 6) for _ in range(4)]
    first, second = copy.deepcopy(base), copy.deepcopy(base)
    plan = nmt.plan(base, pattern)
    adaprune = nmt.adaprune_(first, plan, items, sequential=False)
    sparsegpt = nmt.sparsegpt_(second, plan, items, sequential=False)
    assert nmt.verify(second, plan)
    assert [layer.before for layer in sparsegpt] == pytest.approx(
        [layer.before for layer in adaprune]
    )
    for one, other in zip(sparsegpt, adaprune, strict=True):
        assert one.after <= other.after * (1 + 1e-6)
    assert sum(layer.after for layer in sparsegpt) < 0.95 * sum(layer.after for layer in adaprune)


@pytest.mark.parametrize("padding", ["pad", "dense"])
@pytest.mark.parametrize(
    "layer",
    [nn.Linear(10, 8), nn.Conv2d(6, 8, 3), nn.Conv2d(12, 8, (2, 1), groups=2)],
    ids=["linear", "conv", "groups"],
)
@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
def test_remainders_follow_the_plan(padding, layer, pattern):
    torch.manual_seed(0)
    model = nn.Sequential(copy.deepcopy(layer))
    plan = nmt.plan(model, pattern, padding=padding)
    x = (
        torch.randn(40, 10)
        if isinstance(layer, nn.Linear)
        else torch.randn(9, layer.in_channels, 5, 5)
    )
    nmt.sparsegpt_(model, plan, [x])
    assert nmt.verify(model, plan)
    other = nmt.solve(layer.weight, pattern, padding=padding).mask
    if pattern == "2:4":
        assert int((model[0].weight != 0).sum()) == int(other.sum())


def test_inputs_that_are_always_zero_do_no_harm():
    torch.manual_seed(0)
    x = torch.randn(40, 8)
    x[:, 3:6] = 0
    for pattern in ("2:4", "2:4T"):
        for inputs in (x, torch.zeros(40, 8)):
            layer = nn.Linear(8, 4)
            found = nmt.sparsegpt_(layer, pattern, [inputs])[0]
            assert nmt.verify(layer, pattern)
            assert bool(torch.isfinite(layer.weight).all())
            assert found.after <= found.before


def test_what_makes_no_sense_is_refused():
    model = nn.Sequential(nn.Linear(8, 4))
    x = torch.randn(9, 8)
    for damping in (0, -1.0, float("nan"), "much", True):
        with pytest.raises(nmsolve.InputError, match="damping must be a positive number"):
            nmt.sparsegpt_(model, "2:4", [x], damping=damping)
    plan = nmt.plan(model, "2:4", scores=nmt.scores.magnitude(model))
    with pytest.raises(nmsolve.InputError, match="plan has scores"):
        nmt.sparsegpt_(model, plan, [x])


@given(
    zeros=st.floats(0, 1),
    m=st.sampled_from([4, 8, 16]),
    confidence=st.sampled_from([0.5, 0.9, 0.95]),
)
@settings(max_examples=40)
def test_matching_patterns_follow_the_binomial_rule(zeros, m, confidence):
    layer = nn.Linear(2 * m, 40)
    count = round(zeros * layer.weight.numel())
    with torch.no_grad():
        layer.weight.fill_(1.0).view(-1)[:count] = 0
    n = matching_n(count / layer.weight.numel(), m, confidence)
    found = nmt.matching_plan(nn.Sequential(layer), m=m, confidence=confidence)
    if n == m:
        assert not found.planned
    else:
        assert found.planned[0].pattern == nmsolve.Pattern(n, m)
        assert (
            nmt.matching_plan(nn.Sequential(layer), m=m, confidence=confidence, transposable=m == 8)
            .planned[0]
            .pattern.n
            == n
        )


def test_layers_inside_others_match_by_their_own_zeros():
    class Outer(nn.Linear):
        def __init__(self):
            super().__init__(16, 16)
            self.inner = nn.Linear(16, 16)

        def forward(self, x):
            return super().forward(x) + self.inner(x)

    torch.manual_seed(0)
    model = nn.Sequential(Outer())
    with torch.no_grad():
        model[0].weight.mul_(torch.rand(16, 16) < 0.1)
    found = nmt.matching_plan(model)
    assert {layer.path: str(layer.pattern) for layer in found} == {"0": "2:8", "0.inner": "None"}
    assert found[1].reason == "stays dense: 0% zeros are too few for groups of 8"


def test_a_matching_plan_keeps_nearly_all_of_an_unstructured_model():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 10), nn.Linear(10, 3))
    with torch.no_grad():
        model[0].weight *= torch.rand(64, 64) < 0.2
        model[1].weight *= torch.rand(64, 64) < 0.5
    plan = nmt.matching_plan(model, m=8, exclude="2")
    patterns = {layer.path: layer.pattern for layer in plan}
    assert patterns["0"].n < patterns["1"].n < 8
    assert patterns["2"] is patterns["3"] is None
    weight = model[0].weight.detach().clone()
    nmt.adaprune_(model, plan, [torch.randn(50, 64)])
    assert int((weight != 0).sum()) * 0.97 < int(((weight != 0) & (model[0].weight != 0)).sum())
    for arguments in ({"confidence": 1.0}, {"confidence": "high"}, {"m": 48, "exclude": ()}):
        with pytest.raises(nmsolve.InputError):
            nmt.matching_plan(model, **arguments)
