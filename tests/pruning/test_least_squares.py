"""Kept weights on a given mask: least squares against a dense oracle in every dtype and scale, and
Adam against torch's.
"""

import copy
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nmsolve.torch as nmt
from nmsolve.geometry import Geometry
from nmsolve.torch.pruning import least_squares
from reference.pruning import convolution_inputs, least_squares_row


def masked(layer, pattern):
    """A copy of a linear layer, masked by magnitude and otherwise as it is."""
    plain = copy.deepcopy(layer)
    with torch.no_grad():
        plain.weight *= nmt.solve(layer.weight, pattern).mask
    return plain


@given(
    shape=st.sampled_from([(4, 8), (8, 8), (8, 12), (12, 4)]),
    pattern=st.sampled_from(["2:4", "1:4", "3:4", "2:4T", "<=2:4T"]),
    samples=st.sampled_from([3, 9, 40]),
    damping=st.sampled_from([1e-4, 1e-2, 1.0]),
    spread=st.sampled_from([0.0, 3.0]),
    rank=st.sampled_from([1, 3, 12]),
    at_once=st.sampled_from([2**21, 12]),
    seed=st.integers(0, 999),
)
@settings(max_examples=60)
def test_least_squares_matches_the_dense_oracle_and_never_loses_to_masking(
    shape, pattern, samples, damping, spread, rank, at_once, seed
):
    torch.manual_seed(seed)
    layer = nn.Linear(shape[1], shape[0]).double()
    x = torch.randn(samples, rank, dtype=torch.double) @ torch.randn(
        rank, shape[1], dtype=torch.double
    )
    x = x * torch.exp(spread * torch.randn(shape[1], dtype=torch.double))
    dense, plain = copy.deepcopy(layer), masked(layer, pattern)
    with patch.object(least_squares, "_AT_ONCE", at_once):  # one row at a time, or all
        found = nmt.adaprune_(
            layer,
            pattern,
            list(x.split(2)),
            update=nmt.LeastSquares(damping=damping, tolerance=1e-12),
        )[0]

    assert nmt.verify(layer, nmt.plan(layer, pattern))
    assert torch.equal(layer.bias, dense.bias)
    assert found.residual <= 1e-9
    wanted = (dense(x) - dense.bias).detach()
    delta = damping * float(x.square().sum() / shape[1])
    assert found.damping == pytest.approx(delta)
    mask = nmt.solve(dense.weight, pattern).mask
    for row in range(shape[0]):
        oracle = least_squares_row(
            x.numpy(),
            wanted[:, row].numpy(),
            dense.weight[row].detach().numpy(),
            mask[row].numpy(),
            delta,
        )
        torch.testing.assert_close(
            layer.weight[row].detach(), torch.from_numpy(oracle), rtol=1e-5, atol=1e-6
        )

    squares = float(wanted.square().sum())
    before, after = (
        float((model(x) - dense(x)).detach().square().sum()) for model in (plain, layer)
    )
    assert after <= before * (1 + 1e-9) + 1e-12 * squares
    assert found.before == pytest.approx(before / squares, rel=1e-6, abs=1e-12)
    assert found.after == pytest.approx(after / squares, rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_rounding_never_makes_a_layer_worse_than_masking(dtype):
    """Where hardly anything can be gained, what rounding takes away may be more."""
    torch.manual_seed(0)
    layer = nn.Linear(16, 64, bias=False).to(dtype)
    x = torch.randn(5, 16).to(dtype)
    dense = layer.weight.detach().double()
    plain = dense * nmt.solve(layer.weight, "2:4").mask
    nmt.adaprune_(layer, "2:4", [x], update=nmt.LeastSquares(damping=1e4))
    errors = [
        ((w - dense) @ x.double().T).square().sum(1)
        for w in (plain, layer.weight.detach().double())
    ]
    assert bool((errors[1] <= errors[0] * (1 + 1e-12)).all())
    assert layer.weight.dtype == dtype


def test_rows_that_an_update_makes_worse_are_masked_alone():
    torch.manual_seed(0)
    layer, x = nn.Linear(16, 8, bias=False), torch.randn(20, 16)
    masked = layer.weight.detach() * nmt.solve(layer.weight, "2:4").mask
    (found,) = nmt.adaprune_(layer, "2:4", [x], update=nmt.Adam(steps=3, lr=10.0))
    assert torch.equal(layer.weight, masked)
    assert found.after == found.before


def test_convolutions_match_the_dense_oracle():
    torch.manual_seed(0)
    conv = nn.Conv2d(8, 6, 3, (2, 1), (1, 0), (1, 2), groups=2, bias=False).double()
    x = torch.randn(9, 8, 7, 8, dtype=torch.double)
    dense = copy.deepcopy(conv)
    found = nmt.adaprune_(conv, "2:4", [x[:4], x[4:]])[0]
    assert nmt.verify(conv, "2:4")
    mask = nmt.solve(dense.weight, "2:4").mask
    met = convolution_inputs(x.numpy(), (3, 3), (2, 1), (1, 0), (1, 2))
    deltas = []
    for group in range(2):
        inputs = met[:, 4 * group : 4 * group + 4].reshape(len(met), -1)
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


def test_without_damping_it_is_plain_least_squares():
    torch.manual_seed(0)
    layer, x = nn.Linear(8, 4).double(), torch.randn(30, 8, dtype=torch.double)
    dense = copy.deepcopy(layer)
    found = nmt.adaprune_(layer, "2:4", [x], update=nmt.LeastSquares(damping=0))[0]
    wanted = (dense(x) - dense.bias).detach()
    for row in range(4):
        kept = layer.weight[row] != 0
        oracle = torch.linalg.lstsq(x[:, kept], wanted[:, row : row + 1]).solution[:, 0]
        torch.testing.assert_close(layer.weight[row, kept].detach(), oracle, rtol=1e-6, atol=1e-9)
    assert found.damping == 0


def test_adam_is_torchs_adam_on_the_kept_weights():
    torch.manual_seed(0)
    layer, x = (
        nn.Linear(8, 4),
        torch.randn(30, 8),
    )  # fewer samples than a batch: every step sees them all
    dense = copy.deepcopy(layer)
    mask = nmt.solve(layer.weight, "2:4").mask
    weight = (layer.weight * mask).detach().requires_grad_()
    optimizer = torch.optim.Adam([weight], lr=3e-3)
    for _ in range(25):
        optimizer.zero_grad()
        nn.functional.mse_loss(x @ weight.T, x @ dense.weight.detach().T).backward()
        weight.grad *= mask
        optimizer.step()
    nmt.adaprune_(layer, "2:4", [x[:10], x[10:]], update=nmt.Adam(steps=25, lr=3e-3))
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


@given(
    rows=st.sampled_from([3, 16]),
    cols=st.sampled_from([8, 48]),
    samples=st.sampled_from([5, 200]),
    outlier=st.sampled_from([1.0, 1e3]),
    scale=st.sampled_from([1e-15, 1.0, 1e15]),
    damping=st.sampled_from([1e-6, 1e-2]),
    seed=st.integers(0, 999),
)
@settings(max_examples=40)
def test_iterating_in_float32_ends_where_float64_does(
    rows, cols, samples, outlier, scale, damping, seed
):
    torch.manual_seed(seed)
    layer = nn.Linear(cols, rows, bias=False)
    x = torch.randn(samples, cols) * scale
    x[:, 1] *= outlier
    wide = copy.deepcopy(layer).double()
    solver = nmt.LeastSquares(damping=damping)
    found = nmt.adaprune_(layer, "2:4", [x], update=solver)[0]
    wanted = nmt.adaprune_(wide, "2:4", [x.double()], update=solver)[0]
    assert found.residual <= solver.tolerance
    # Else damping alone says where in the inputs' null space weights are, and residuals hardly
    # depend on it.
    if samples > cols:
        torch.testing.assert_close(
            layer.weight.double(),
            wide.weight,
            rtol=1e-4,
            atol=1e-5 * float(wide.weight.detach().abs().max()),
        )
    assert found.after == pytest.approx(wanted.after, rel=1e-3, abs=1e-9)
