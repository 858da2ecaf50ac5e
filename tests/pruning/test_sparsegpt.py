"""Masks by second order: against the best of all masks, the brain surgeon in loops, and
AdaPrune.
"""

import copy
import itertools
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from nmsolve.geometry import Geometry
from nmsolve.pattern import Pattern
from nmsolve.torch.calibration.second_moments import SecondMoments
from nmsolve.torch.pruning import admm, objective
from nmsolve.torch.pruning.layer_inputs import LayerInputs
from nmsolve.torch.pruning.problem import Problem
from nmsolve.torch.pruning.row_pieces import row_pieces
from reference.pruning import matching_n, surgeon_row
from tests.training.small_net import Net

DAMPING = 1e-2


class Layer:
    """A layer as a problem, and what it asks for: least ⟨V − Ŵ, (V − Ŵ) H⟩ over V on a mask.

    Inputs are correlated by so much; the dense model's differ from them where it is given a noise.
    """

    def __init__(self, rows, cols, pattern, seed, correlation=3.0, noise=0.0, padding="error"):
        torch.manual_seed(seed)
        layer = nn.Linear(cols, rows, bias=False).double()
        mix = torch.eye(cols) + correlation * torch.randn(cols, cols) / cols**0.5
        x = torch.randn(3 * cols, cols, dtype=torch.double) @ mix.double()
        wanted = x + noise * torch.randn_like(x) if noise else x
        sums, nothing = (
            SecondMoments.empty(
                1, cols, torch.device("cpu"), own=not noise, centred=False, precise=True
            )
            for _ in range(2)
        )
        sums.add(0, x, wanted)
        sums.finish()
        self.weight = layer.weight.detach()
        self.problem = Problem(
            entry=nmt.plan(nn.Sequential(layer), pattern, padding=padding)[0],
            piece=next(row_pieces(Geometry((rows, cols), 1, 1), Pattern.parse(pattern))),
            weight=self.weight[None],
            inputs=LayerInputs(sums=sums, held_out_sums=nothing, about=None, kind=torch.float64),
        )
        delta = DAMPING * float(x.square().sum() / cols) * torch.eye(cols, dtype=torch.double)
        self.hessian = x.T @ x + delta
        self.goal = self.weight @ (wanted.T @ x + delta) @ torch.linalg.inv(self.hessian)

    def found(self):
        """ADMM's mask and weights, (rows, cols)."""
        hessian = self.problem.hessian(DAMPING)
        side = self.problem.right_hand_side(hessian)
        mask, weight, _ = admm.admm_mask(self.problem, hessian, side)
        return mask[0], weight[0]

    def loss(self, weight):
        gap = weight - self.goal
        return float((gap @ self.hessian * gap).sum())

    def least(self, mask):
        """The loss of the best weights on a mask (rows, cols), row by row by normal equations."""
        best = torch.zeros_like(self.goal)
        for row, kept in enumerate(mask):
            side = self.hessian[kept] @ self.goal[row]
            best[row, kept] = torch.linalg.solve(self.hessian[kept][:, kept], side)
        return self.loss(best)

    def least_of_all(self, n):
        """Over all masks that there are, of rows of few groups of 4 or of one 4 × 4 block."""
        groups = [[j in chosen for j in range(4)] for chosen in itertools.combinations(range(4), n)]
        if self.problem.entry.pattern.transposable:
            blocks = (np.array(block) for block in itertools.product(groups, repeat=4))
            return min(
                self.least(torch.from_numpy(block)) for block in blocks if (block.sum(0) == n).all()
            )
        rows = [
            torch.tensor(list(itertools.chain(*chosen)))
            for chosen in itertools.product(groups, repeat=self.goal.shape[1] // 4)
        ]
        return sum(min(self._of_row(row, mask) for mask in rows) for row in range(len(self.goal)))

    def _of_row(self, row, kept):
        side = self.hessian[kept] @ self.goal[row]
        gap = -self.goal[row].clone()
        gap[kept] += torch.linalg.solve(self.hessian[kept][:, kept], side)
        return float(gap @ self.hessian @ gap)


def mean_ratio(losses, least):
    return float(np.exp(np.mean(np.log(np.array(losses) / np.array(least)))))


@pytest.mark.parametrize("noise", [0.0, 0.3])
@pytest.mark.parametrize(
    ("pattern", "cols", "correlation", "near"),
    [
        ("2:4", 8, 0.5, 1.22),
        ("1:4", 8, 0.5, 1.12),
        ("3:4", 8, 0.5, 1.15),
        ("2:4T", 4, 0.5, 1.25),
        ("2:4", 8, 3.0, 1.35),
        ("1:4", 8, 3.0, 1.22),
        ("3:4", 8, 3.0, 1.6),
        ("2:4T", 4, 3.0, 1.25),
    ],
)
def test_admm_comes_near_the_best_of_all_masks(pattern, cols, correlation, near, noise):
    """Of a few groups, or of one block, all masks can be tried."""
    n, losses, least, plain, surgeon = int(pattern[0]), [], [], [], []
    for seed in range(16):
        layer = Layer(4, cols, pattern, seed, correlation, noise)
        mask, weight = layer.found()
        assert nmt.verify(mask, pattern)
        assert not bool(weight[~mask].any())
        losses.append(layer.least(mask))
        least.append(layer.least_of_all(n))
        assert losses[-1] >= least[-1] * (1 - 1e-9)
        assert losses[-1] <= layer.loss(weight) * (1 + 1e-9)
        plain.append(layer.least(layer.problem.best_mask(layer.problem.weight.abs())[0]))
        if pattern in ("2:4", "1:4"):
            rows = [surgeon_row(w.numpy(), layer.hessian.numpy(), n, 4) for w in layer.goal]
            surgeon.append(layer.least(torch.from_numpy(np.array(rows))))
    assert mean_ratio(losses, least) < near
    assert mean_ratio(losses, least) < mean_ratio(plain, least) * 0.95
    if surgeon:
        assert mean_ratio(losses, least) < mean_ratio(surgeon, least)


@pytest.mark.parametrize("pattern", ["4:8T", "2:4", "1:4"])
def test_admm_prunes_by_magnitude_where_inputs_are_uncorrelated(pattern):
    """With a diagonal Hessian the projection is the answer."""
    layer = Layer(8, 8, pattern, 0)
    scale = torch.linspace(0.5, 2, 8, dtype=torch.double)
    layer.problem.inputs.sums.gram.copy_(torch.diag(scale.square())[None])
    once = admm.TRANSPOSABLE._replace(first=1.0)  # with less, a dropped weight may come back
    with patch.object(admm, "ROW_WISE", once), patch.object(admm, "TRANSPOSABLE", once):
        found, _ = layer.found()
    delta = DAMPING * scale.square().mean()
    wanted = layer.problem.best_mask((layer.weight.square() * (scale.square() + delta))[None])
    assert torch.equal(found, wanted[0])


@pytest.mark.parametrize("pattern", ["2:4", "1:4", "2:4T", "4:8T", "<=2:4T"])
def test_layers_lose_less_than_by_adaprune(pattern):
    torch.manual_seed(0)
    base = Net().eval()
    items = [torch.randn(16, 1, 6, 6) for _ in range(4)]
    plan, model = nmt.plan(base, pattern), copy.deepcopy(base)
    found = nmt.sparsegpt_(model, plan, items, sequential=False)
    assert nmt.verify(model, plan)
    assert all(layer.method.startswith("second order") for layer in found)
    for criterion in ("magnitude", "activation"):
        other = nmt.adaprune_(
            copy.deepcopy(base), plan, items, sequential=False, criterion=criterion
        )
        if criterion == "magnitude":
            assert [layer.before for layer in found] == pytest.approx(
                [layer.before for layer in other]
            )
        for error in ("after", "held_out_after"):
            ours, theirs = (
                [getattr(layer, error) for layer in report] for report in (found, other)
            )
            assert all(one <= two for one, two in zip(ours, theirs, strict=True))
            assert sum(ours) < 0.82 * sum(theirs)


def test_a_mask_of_second_order_that_is_worse_on_held_out_inputs_is_not_taken():
    """Where held-out inputs are correlated in another way, it may be worse than the plain mask:
    weights are then fitted on that one, or it is taken alone.
    """
    methods = []
    for seed in range(40):
        torch.manual_seed(seed)
        layer, x = nn.Linear(8, 2, bias=False), torch.randn(100, 8)
        x = torch.cat([x[:90] @ torch.randn(8, 8), x[90:] @ torch.randn(8, 8)])
        mask = nmt.solve(layer.weight, "2:4").mask
        masked = layer.weight.detach() * mask
        (found,) = nmt.sparsegpt_(layer, "2:4", [x])
        methods.append(found.method)
        assert found.held_out_after <= found.held_out_before
        if found.method != "second order":
            assert torch.equal(layer.weight != 0, mask)
            assert torch.equal(layer.weight, masked) == (found.method == "masking")
            assert (found.held_out_after < found.held_out_before) == (found.method != "masking")
    assert set(methods) == {"second order", "least squares", "masking"}


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


@pytest.mark.parametrize("kept", [0, 2 * 8 * 8 * 8, 2**20])
def test_inverses_are_those_of_their_rho(monkeypatch, kept):
    """Whether all, two or only the last are kept, in whatever order they are asked for."""
    monkeypatch.setattr(objective, "_KEPT", kept)
    hessian = Layer(4, 8, "2:4", 0).problem.hessian(DAMPING)
    for rho in (0.3, 0.3, 0.54, 0.3, 0.97, 0.97, 0.54, 0.3):
        raised = hessian.matrix[0] + rho * torch.eye(8, dtype=torch.double)
        torch.testing.assert_close(hessian.inverse(rho)[0], torch.linalg.inv(raised))
