"""Training methods against their equations written out in NumPy loops: weights and masks after
every step.
"""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from reference import training as oracle

ROWS, COLS, BATCH, STEPS = 6, 16, 5, 12
PATTERNS = [(2, 4), (1, 4), (3, 4), (2, 8)]
OPTIMIZERS = {
    "sgd": (
        lambda p: torch.optim.SGD(p, lr=0.3, momentum=0.9, weight_decay=0.01),
        lambda: oracle.SGD(0.3, 0.9, 0.01),
    ),
    "adamw": (
        lambda p: torch.optim.AdamW(p, lr=0.1, weight_decay=0.05),
        lambda: oracle.AdamW(0.1, weight_decay=0.05),
    ),
}


def problem(seed):
    rng = np.random.default_rng(seed)
    batches = [
        (rng.standard_normal((BATCH, COLS)), rng.standard_normal((BATCH, ROWS)))
        for _ in range(STEPS)
    ]
    return rng.standard_normal((ROWS, COLS)), batches


def train(W, batches, pattern, method, optimizer, layer=None):
    """Our training of nn.Linear in float64: the dense weight, the mask after every step, and the
    SparseModel.
    """
    model = nn.Sequential(nn.Linear(COLS, ROWS, bias=False, dtype=torch.float64))
    model[0].weight.data.copy_(torch.from_numpy(W))
    made = optimizer(model.parameters())
    sparse = nmt.sparsify_(model, pattern, method).attach(made)
    masked = sparse.layers[0].masked
    masks = [masked.mask.numpy().copy()]
    for x, t in batches:
        y = model(torch.from_numpy(x))
        loss = (y - torch.from_numpy(t)).square().sum() / (2 * len(x))
        made.zero_grad()
        loss.backward()
        made.step()
        masks.append(masked.mask.numpy().copy())
    return sparse.layers[0].weight.numpy().copy(), masks, sparse


def assert_same(ours, theirs):
    (weight, masks), (expected, expected_masks) = ours[:2], theirs
    for step, (mask, reference) in enumerate(zip(masks, expected_masks, strict=True)):
        assert np.array_equal(mask, reference), f"masks differ after step {step}"
    np.testing.assert_allclose(weight, expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize("seed", range(3))
def test_fixed(n, m, optimizer, seed):
    W, batches = problem(seed)
    ours, theirs = OPTIMIZERS[optimizer]
    result = train(W, batches, f"{n}:{m}", nmt.Fixed(), ours)
    assert_same(result, oracle.train_fixed(W, batches, n, m, theirs()))
    assert not result[0][~result[1][0]].any()


@pytest.mark.parametrize(
    ("method", "reached"), [(nmt.Fixed(), False), (nmt.STE(), True), (nmt.SRSTE(), True)]
)
def test_gradients_of_dropped_weights(method, reached):
    """They count where gradients are clipped by their norm."""
    W, batches = problem(0)
    model = nn.Sequential(nn.Linear(COLS, ROWS, bias=False, dtype=torch.float64))
    model[0].weight.data.copy_(torch.from_numpy(W))
    (layer,) = nmt.sparsify_(model, "2:4", method).layers
    model(torch.from_numpy(batches[0][0])).square().sum().backward()
    gradient = layer.gradient
    assert bool(gradient[~layer.masked.mask].any()) == reached
    assert gradient[layer.masked.mask].all()


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(("n", "m"), PATTERNS)
@pytest.mark.parametrize(
    "options",
    [{}, {"update_every": 3}, {"freeze_after": 5}, {"update_every": 2, "freeze_after": 7}],
)
def test_ste(n, m, optimizer, options):
    W, batches = problem(n + m)
    ours, theirs = OPTIMIZERS[optimizer]
    result = train(W, batches, f"{n}:{m}", nmt.STE(**options), ours)
    expected = oracle.train_ste(W, batches, n, m, theirs(), **options)
    assert_same(result, expected)
    masks = expected[1]
    stats = result[2].stats()
    changes = [int((a != b).sum()) for a, b in itertools.pairwise(masks)]
    every, last = options.get("update_every", 1), options.get("freeze_after", STEPS)
    refreshed = [step for step in range(1, STEPS + 1) if step % every == 0 and step <= last]
    assert (stats.flips, stats.sad) == (sum(changes), changes[refreshed[-1] - 1])
    assert stats.layers["0"].refreshes == len(refreshed)
    assert stats.flips > 0  # else nothing above is tested


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("decoupled", [None, True, False])
@pytest.mark.parametrize(("n", "m"), PATTERNS)
def test_srste(n, m, decoupled, optimizer):
    W, batches = problem(10 * n + m)
    ours, theirs = OPTIMIZERS[optimizer]
    result = train(W, batches, f"{n}:{m}", nmt.SRSTE(decay=0.05, decoupled=decoupled), ours)
    beside = optimizer == "adamw" if decoupled is None else decoupled
    assert_same(result, oracle.train_ste(W, batches, n, m, theirs(), decay=0.05, decoupled=beside))
    without = oracle.train_ste(W, batches, n, m, theirs())[0]
    assert np.abs(result[0] - without).max() > 1e-4  # the decay is felt


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("criterion", ["learned", "inverse", "magnitude", "gradient"])
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (3, 4), (1, 8)])
def test_lbc(n, m, criterion, optimizer):
    W, batches = problem(20 * n + m)
    ours, theirs = OPTIMIZERS[optimizer]
    result = train(W, batches, f"{n}:{m}", nmt.LBC(t_i=1, t_f=9, criterion=criterion), ours)
    expected = oracle.train_lbc(W, batches, n, m, theirs(), 1, 9, criterion)
    assert_same(result, expected)
    assert nmt.verify(result[2].model, f"{n}:{m}").ok


@pytest.mark.parametrize("criterion", ["learned", "magnitude", "gradient", "inverse"])
def test_lbc_where_there_is_no_gradient(criterion):
    """Groups whose inputs are always zero, and layers that are frozen or not used, keep what is
    largest.
    """
    W, batches = problem(7)
    batches = [(np.where(np.arange(COLS) < 8, 0.0, x), t) for x, t in batches]
    ours, theirs = OPTIMIZERS["sgd"]
    assert_same(
        train(W, batches, "2:4", nmt.LBC(t_i=1, t_f=9, criterion=criterion), ours),
        oracle.train_lbc(W, batches, 2, 4, theirs(), 1, 9, criterion),
    )
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 8))
    model[0].weight.requires_grad_(False)
    optimizer = torch.optim.AdamW(model.parameters())
    best = nmt.solve(model[0].weight, "2:4").mask
    sparse = nmt.sparsify_(model, "2:4", nmt.LBC(t_i=0, t_f=4, criterion=criterion)).attach(
        optimizer
    )
    for _ in range(4):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
    assert torch.equal(sparse.layers[0].masked.mask, best)
    assert sparse.finalize_().ok


@pytest.mark.parametrize(("m", "update_every"), [(4, 2), (8, 5)])
def test_lbc_removes_when_it_is_due(m, update_every):
    """Of 2:8's candidates there are some left for t_f, when no removal is due."""
    W, batches = problem(1)
    ours, theirs = OPTIMIZERS["sgd"]
    result = train(W, batches, f"2:{m}", nmt.LBC(t_i=0, t_f=9, update_every=update_every), ours)
    expected = oracle.train_lbc(W, batches, 2, m, theirs(), 0, 9, update_every=update_every)
    assert_same(result, expected)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_lbc_learns_with_the_momentum_that_it_is_given(momentum):
    W, batches = problem(3)
    result = train(
        W, batches, "2:4", nmt.LBC(t_i=0, t_f=9, momentum=momentum), OPTIMIZERS["sgd"][0]
    )
    assert_same(
        result,
        oracle.train_lbc(W, batches, 2, 4, oracle.SGD(0.3, 0.9, 0.01), 0, 9, momentum=momentum),
    )


def test_the_criteria_of_lbc_differ():
    W, batches = problem(2)
    finals = [
        oracle.train_lbc(W, batches, 2, 4, oracle.SGD(0.3, 0.9), 0, 9, criterion)[1][-1].tobytes()
        for criterion in ("learned", "inverse", "magnitude", "gradient")
    ]
    assert len(set(finals)) == 4


@pytest.mark.parametrize("method", [nmt.STE(update_every=2), nmt.SRSTE(decay=1e-2, update_every=2)])
@pytest.mark.parametrize("pattern", ["2:4T", "4:8T"])
def test_transposable_masks_are_the_best_at_every_refresh(pattern, method):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    sparse = nmt.sparsify_(model, pattern, method).attach(optimizer)
    for step in range(1, 7):
        optimizer.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        optimizer.step()
        if step % 2 == 0:
            for layer in sparse.layers:
                best = nmt.solve(layer.weight, pattern)
                kept = layer.weight.abs()[layer.masked.mask].double().sum().item()
                assert kept == pytest.approx(best.objective, rel=1e-6)
    assert nmt.verify(model, pattern).ok
    assert sparse.stats().flips > 0


@pytest.mark.parametrize("mask_method", ["greedy", "cover", "min_cost_flow"])
def test_other_mask_methods(mask_method):
    model = nn.Sequential(nn.Linear(16, 16))
    nmt.sparsify_(model, "2:4T", nmt.STE(mask_method=mask_method))
    expected = nmt.solve(model[0].parametrizations.weight.original, "2:4T", method=mask_method)
    assert torch.equal(model[0].parametrizations.weight[0].mask, expected.mask)


def test_scores_of_ones_own():
    """A score of (weight, gradient): here what a first-order expansion of the loss says."""
    seen = []

    def taylor(weight, gradient):
        seen.append(gradient is None)
        return weight.abs() if gradient is None else (weight * gradient).abs()

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = nmt.sparsify_(model, "2:4", nmt.STE(score=taylor)).attach(optimizer)
    model(torch.randn(4, 16)).square().sum().backward()
    optimizer.step()
    layer = sparse.layers[0]
    assert seen == [True, False]
    assert torch.equal(
        layer.masked.mask,
        nmt.solve(layer.weight, "2:4", (layer.weight * layer.gradient).abs()).mask,
    )


def test_training_flops_are_those_of_the_papers_table():
    """Relative training FLOPs: 0.83 and 0.75 for SR-STE at 2:4 and 1:4 (Table 1 of LBC has 0.83 and
    0.74).
    """

    def flops(pattern, method, steps=8):
        model = nn.Sequential(nn.Linear(16, 16))
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        sparse = nmt.sparsify_(model, pattern, method).attach(optimizer)
        for _ in range(steps):
            optimizer.zero_grad()
            model(torch.randn(2, 16)).square().sum().backward()
            optimizer.step()
        return sparse.stats().training_flops, sparse.stats().mean_density

    assert flops("2:4", nmt.SRSTE())[0] == pytest.approx((0.5 + 1 + 1) / 3)
    assert flops("1:4", nmt.STE())[0] == pytest.approx((0.25 + 1 + 1) / 3)
    assert flops("2:4T", nmt.STE())[0] == pytest.approx((0.5 + 0.5 + 1) / 3)
    assert flops("2:4T", nmt.Fixed())[0] == pytest.approx(0.5)
    share, density = flops("2:4", nmt.LBC(t_i=0, t_f=4))
    assert 0.5 < density < 1
    assert share == pytest.approx((2 * density + 1) / 3)


@pytest.mark.parametrize(
    "method", [nmt.Fixed(), nmt.STE(), nmt.SRSTE(decay=0.1), nmt.LBC(t_i=0, t_f=5)], ids=repr
)
def test_mixed_patterns(method):
    """Each layer is trained under the pattern that the plan gives it, to the end."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(4, 8, 1), nn.Flatten(), nn.Linear(32, 16), nn.Tanh(), nn.Linear(16, 8)
    )
    patterns = (
        {"0": "1:4", "2": "2:8", "4": "1:2"}
        if isinstance(method, nmt.LBC)
        else {"0": "1:4", "2": "2:4T", "4": "2:8"}
    )
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = nmt.sparsify_(model, patterns, method).attach(optimizer)
    for _ in range(6):
        optimizer.zero_grad()
        model(torch.randn(8, 4, 2, 2)).square().sum().backward()
        optimizer.step()
        for layer in sparse.layers:
            if isinstance(method, nmt.STE):
                best = nmt.solve(layer.weight, patterns[layer.path])
                assert torch.equal(layer.masked.mask, best.mask)
    assert {path: str(layer.pattern) for path, layer in sparse.stats().layers.items()} == patterns
    assert sparse.finalize_().ok
    for path, pattern in patterns.items():
        n, m = (int(number) for number in pattern.rstrip("T").split(":"))
        groups = model.get_submodule(path).weight.flatten(1).unflatten(1, (-1, m))
        assert (groups.count_nonzero(2) == n).all()


@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
def test_several_models_in_one_optimizer_and_one_model_in_several(pattern):
    torch.manual_seed(0)
    a, b = nn.Sequential(nn.Linear(8, 8)), nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    both = torch.optim.SGD([*a.parameters(), *b.parameters()], lr=0.1)
    sparse_a, sparse_b = (
        nmt.sparsify_(a, pattern, nmt.Fixed()).attach(both),
        nmt.sparsify_(b, "1:4", nmt.STE()).attach(both),
    )
    for _ in range(3):
        both.zero_grad()
        b(a(torch.randn(4, 8))).square().sum().backward()
        both.step()
    assert (sparse_a.stats().step, sparse_b.stats().step) == (3, 3)
    assert sparse_a.finalize_().ok
    assert sparse_b.finalize_().ok

    c = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    one, two = (
        torch.optim.SGD(c[0].parameters(), lr=0.1),
        torch.optim.AdamW(c[1].parameters(), lr=0.1),
    )
    sparse = nmt.sparsify_(c, pattern, nmt.SRSTE()).attach(one, two)
    for step in range(4):
        c.zero_grad()
        c(torch.randn(4, 8)).square().sum().backward()
        one.step()
        if step % 2:
            two.step()
    stats = sparse.stats()
    assert (stats.layers["0"].step, stats.layers["1"].step) == (4, 2)
