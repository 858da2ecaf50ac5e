"""Kept weights on a given mask: least squares against a dense oracle in every dtype and scale, and
Adam against torch's.
"""

import copy

import numpy as np
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from torch import nn

import nmsolve.torch as nmt
from nmsolve.geometry import Geometry
from nmsolve.pattern import Pattern
from nmsolve.torch.calibration.second_moments import SecondMoments
from nmsolve.torch.pruning.layer_inputs import LayerInputs
from nmsolve.torch.pruning.problem import Problem
from nmsolve.torch.pruning.row_pieces import row_pieces
from reference.pruning import convolution_inputs, least_squares_row
from tests.pruning.pruning_models import is_adjusted, mixed


@given(
    shape=st.sampled_from([(4, 8), (8, 8), (8, 12), (12, 4)]),
    pattern=st.sampled_from(["2:4", "1:4", "3:4", "2:4T", "<=2:4T"]),
    samples=st.sampled_from([3, 9, 40]),
    damping=st.sampled_from([1e-4, 1e-2, 1.0]),
    spread=st.sampled_from([0.0, 3.0]),
    rank=st.sampled_from([1, 3, 12]),
    bias=st.booleans(),
    seed=st.integers(0, 999),
)
@settings(max_examples=80)
def test_least_squares_matches_the_dense_oracle_and_never_loses_to_masking(
    shape, pattern, samples, damping, spread, rank, bias, seed
):
    torch.manual_seed(seed)
    layer = nn.Linear(shape[1], shape[0], bias=bias).double()
    x = torch.randn(samples, rank, dtype=torch.double) @ torch.randn(
        rank, shape[1], dtype=torch.double
    )
    x = x * torch.exp(spread * torch.randn(shape[1], dtype=torch.double))
    dense, sizes = copy.deepcopy(layer), [len(item) for item in x.split(2)]
    found = nmt.adaprune_(
        layer,
        pattern,
        x.split(2),
        update=nmt.LeastSquares(damping=damping, tolerance=1e-12),
        criterion="magnitude",
    )[0]
    assert nmt.verify(layer, nmt.plan(layer, pattern))
    assert found.residual <= 1e-9
    mask = nmt.solve(dense.weight, pattern).mask
    is_adjusted(layer, dense, found, mask, x, x, sizes, damping, precision=1e-5)
    judged = [
        (found.before, found.after)
        if found.held_out_before is None
        else (found.held_out_before, found.held_out_after)
    ]
    assert all(after <= before * (1 + 1e-9) + 1e-12 for before, after in judged)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("damping", [10.0, 100.0, 1e4])
def test_rounding_never_makes_a_layer_worse_than_masking(dtype, damping):
    """Where hardly anything can be gained, what rounding takes away may be more."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 64, bias=False).to(dtype)
    x = torch.randn(5, 16).to(dtype)
    dense = layer.weight.detach().double()
    plain = dense * nmt.solve(layer.weight, "2:4").mask
    update = nmt.LeastSquares(damping=damping, tolerance=1e-9)
    nmt.adaprune_(layer, "2:4", [x], update=update, criterion="magnitude")
    errors = [
        ((w - dense) @ x.double().T).square().sum(1)
        for w in (plain, layer.weight.detach().double())
    ]
    assert bool((errors[1] <= errors[0] * (1 + 1e-12)).all())
    assert layer.weight.dtype == dtype


@pytest.mark.parametrize("criterion", ["magnitude", "activation"])
def test_rows_that_an_update_makes_worse_are_masked_alone(criterion):
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8, bias=False), torch.randn(20, 16)
    scores = layer.weight.detach().abs()
    if criterion == "activation":
        scores = scores * x[:18].norm(dim=0)  # two of twenty rows are held out
    masked = layer.weight.detach() * nmt.solve(layer.weight, "2:4", scores).mask
    update = nmt.Adam(steps=3, lr=10.0)
    (found,) = nmt.adaprune_(layer, "2:4", [x], update=update, criterion=criterion)
    assert torch.equal(layer.weight, masked)
    assert found.after == found.before
    assert found.held_out_after == found.held_out_before


def test_a_row_that_an_update_makes_worse_is_masked_alone():
    """Steps of Adam that are right for weights of size 1 are too long for others."""
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8, bias=False), mixed(60, 16).float()
    with torch.no_grad():
        layer.weight[4:] *= 1e-4
    masked = layer.weight.detach() * nmt.solve(layer.weight, "2:4").mask
    update = nmt.Adam(steps=20, lr=1e-2)
    (found,) = nmt.adaprune_(layer, "2:4", [x], update=update, criterion="magnitude")
    assert found.method == "Adam"
    assert found.held_out_after < found.held_out_before
    assert torch.equal(layer.weight[4:], masked[4:])
    assert bool((layer.weight[:4] != masked[:4]).any(1).all())


@pytest.mark.parametrize("update", ["least_squares", nmt.Adam(steps=50, lr=1e-2)])
def test_a_layer_that_is_worse_on_held_out_inputs_is_masked_alone(update):
    """Where inputs of dropped weights have the other sign, what makes up for them is wrong."""
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 1, bias=False), torch.randn(40, 1).repeat(1, 8)
    mask = nmt.solve(layer.weight, "2:4").mask
    masked = layer.weight.detach() * mask
    x[36:, ~mask[0]] *= -1
    found = nmt.adaprune_(layer, "2:4", [x], update=update, criterion="magnitude")[0]
    assert found.method == "masking"
    assert found.after == found.before > 0.01
    assert found.held_out_after == found.held_out_before > 0.01
    assert torch.equal(layer.weight, masked)


def test_convolutions_match_the_dense_oracle():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 6, 3, (2, 1), (1, 0), (1, 2), groups=2, bias=False).double()
    x = torch.randn(75, 8, 7, 8, dtype=torch.double).cumsum(-1)
    dense = copy.deepcopy(conv)
    update = nmt.LeastSquares(tolerance=1e-12)
    found = nmt.adaprune_(conv, "2:4", [x[:4], x[4:]], update=update, criterion="magnitude")[0]
    assert nmt.verify(conv, "2:4")
    assert found.method == "least squares"
    mask = nmt.solve(dense.weight, "2:4").mask
    met = convolution_inputs(x.numpy(), (3, 3), (2, 1), (1, 0), (1, 2))
    positions, deltas = len(met) // 75, []
    # Of fewer than ten images, a tenth of the pixels of all; of more, a tenth of the images.
    fitted = np.ones(len(met), dtype=bool)
    fitted[4 * positions - 4 * positions // 10 : 4 * positions] = False
    fitted[68 * positions :] = False
    for group in range(2):
        inputs = met[fitted, 4 * group : 4 * group + 4].reshape(fitted.sum(), -1)
        delta = 1e-2 * (inputs**2).sum() / inputs.shape[1]
        deltas.append(delta)
        for row in range(3 * group, 3 * group + 3):
            weight = dense.weight[row].detach().flatten().numpy()
            oracle = least_squares_row(
                inputs, inputs @ weight, weight, mask[row].flatten().numpy(), delta
            )
            torch.testing.assert_close(
                conv.weight[row].detach().flatten(), torch.from_numpy(oracle), rtol=1e-5, atol=1e-7
            )
    assert found.damping == pytest.approx(max(deltas))
    assert found.samples == fitted.sum()


@pytest.mark.parametrize("bias", [True, False])
def test_without_damping_it_is_plain_least_squares(bias):
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 4, bias=bias).double(), mixed(30, 8)
    dense = copy.deepcopy(layer)
    update = nmt.LeastSquares(damping=0, tolerance=1e-12)
    found = nmt.adaprune_(layer, "2:4", [x], update=update)[0]
    assert found.method == "least squares"
    inputs, wanted = x[:27], dense(x[:27]).detach()
    for row in range(4):
        kept = layer.weight[row] != 0
        given = inputs[:, kept]
        if bias:
            given = torch.cat([given, torch.ones(27, 1, dtype=torch.double)], 1)
        oracle = torch.linalg.lstsq(given, wanted[:, row : row + 1]).solution[:, 0]
        torch.testing.assert_close(
            layer.weight[row, kept].detach(), oracle[:4], rtol=1e-6, atol=1e-9
        )
        if bias:
            torch.testing.assert_close(layer.bias[row].detach(), oracle[4], rtol=1e-6, atol=1e-9)
    assert found.damping == 0


@pytest.mark.parametrize("bias", [True, False])
def test_adam_is_torchs_adam_on_the_kept_weights(bias):
    """Of inputs and outputs about their means, where a bias takes these up."""
    torch.manual_seed(0)
    # Fewer samples than a batch: every step sees them all, but the last of ten.
    layer, x = nn.Linear(8, 4), mixed(30, 8).float()
    dense, given = copy.deepcopy(layer), x[torch.arange(30) % 10 != 9]
    if bias:
        given = given - given.mean(0)
    mask = nmt.solve(layer.weight, "2:4").mask
    weight = (layer.weight * mask).detach().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.mse_loss(given @ weight.T, given @ dense.weight.detach().T).backward()
        weight.grad *= mask
        optimizer.step()
    update = nmt.Adam(steps=25, lr=3e-3)
    nmt.adaprune_(layer, "2:4", x.split(10), update=update, criterion="magnitude", bias=bias)
    torch.testing.assert_close(layer.weight, nn.Parameter(weight.detach()), rtol=1e-4, atol=1e-6)


@given(
    seed=st.integers(0, 99),
    shape=st.sampled_from([(6, 4), (6, 4, 3), (8, 4, 2, 3), (6, 2, 1, 2, 3)]),
    parts=st.sampled_from([1, 2, 3]),
)
@settings(max_examples=30)
def test_laying_out_weights_is_undone(seed, shape, parts):
    if shape[0] % parts:
        return
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    layout = Geometry(shape, 1, parts)
    assert torch.equal(layout.weight(layout.matrices(weight)), weight)
    turned = Geometry(shape[:2], 0, 1)
    assert torch.equal(
        turned.weight(turned.matrices(weight.reshape(*shape[:2], -1)[..., 0])),
        weight.reshape(*shape[:2], -1)[..., 0],
    )


def problem_of(layer, x):
    """A layer that is to be what it is for its own inputs, in its dtype."""
    cols = layer.in_features
    sums, nothing = (
        SecondMoments.empty(
            1, cols, x.device, own=True, centred=False, precise=x.dtype == torch.float64
        )
        for _ in range(2)
    )
    sums.add(0, x, x)
    sums.finish()
    return Problem(
        entry=nmt.plan(nn.Sequential(layer), "2:4")[0],
        piece=next(row_pieces(Geometry(tuple(layer.weight.shape), 1, 1), Pattern.parse("2:4"))),
        weight=layer.weight.detach()[None],
        inputs=LayerInputs(sums=sums, held_out_sums=nothing, about=None, kind=x.dtype),
    )


@given(
    rows=st.sampled_from([3, 16]),
    cols=st.sampled_from([8, 48]),
    samples=st.sampled_from([5, 200]),
    outlier=st.sampled_from([1.0, 1e3]),
    scale=st.sampled_from([1e-15, 1.0, 1e15]),
    damping=st.sampled_from([1e-6, 1e-2]),
    tolerance=st.sampled_from([3e-2, 3e-5]),
    seed=st.integers(0, 999),
)
@example(16, 48, 200, 1e3, 1.0, 1e-2, 1e-4, 45)  # where masking is as good to within rounding
@settings(max_examples=40)
def test_iterating_in_float32_ends_where_float64_does(
    rows, cols, samples, outlier, scale, damping, tolerance, seed
):
    torch.manual_seed(seed)
    layer = nn.Linear(cols, rows, bias=False)
    x = torch.randn(samples, cols) * scale
    x[:, 1] *= outlier
    wide = copy.deepcopy(layer).double()
    solver = nmt.LeastSquares(damping=damping, tolerance=tolerance)
    # Else damping alone says where in the inputs' null space weights are, and residuals hardly
    # depend on it.
    if samples > cols:
        mask = nmt.solve(layer.weight.detach(), "2:4").mask[None]
        ends = []
        for one, given in ((layer, x), (wide, x.double())):
            solution = solver.solve(problem_of(one, given), mask, damping)
            assert solution.residual <= tolerance
            ends.append(solution.weight.double())
        largest = float(ends[1].abs().max())
        torch.testing.assert_close(*ends, rtol=1e-4, atol=1e-5 * largest)
    # Of weights that are worth the same on held-out inputs, either may be chosen.
    found = nmt.adaprune_(layer, "2:4", [x], update=solver)[0]
    wanted = nmt.adaprune_(wide, "2:4", [x.double()], update=solver)[0]
    assert found.residual <= solver.tolerance
    rounding = 1e-9 if tolerance > 1e-3 else 1e-7
    judged, expected = (
        one.after if one.held_out_after is None else one.held_out_after for one in (found, wanted)
    )
    assert judged == pytest.approx(expected, rel=1e-3, abs=rounding)
