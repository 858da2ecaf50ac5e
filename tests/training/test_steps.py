"""Plain loops around torch's own optimizers: accumulation, clipping, loss scaling, autocast,
closures, frozen layers.
"""

import copy

import pytest
import torch
from torch import nn

import nmsolve
import nmsolve.torch as nmt
from tests.training.small_net import ALL, BOTH, METHODS, Net, batch, made, train


@BOTH
@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        *((name, "2:4") for name in METHODS),
        ("lbc", "1:4"),
        *((name, "2:4T") for name in ("fixed", "ste", "srste")),
    ],
)
def test_a_plain_loop_ends_in_a_plain_sparse_model(name, optimizer, pattern):
    model, opt, sparse = made(name, optimizer, pattern)
    kinds = {module_name: type(module).__name__ for module_name, module in Net().named_modules()}
    plan = sparse.plan
    losses = train(model, opt, range(8))
    assert sum(losses[4:]) < sum(losses[:4])
    model.eval()
    x = batch(0)[0]
    before = model(x)
    parameters = {id(p) for p in model.parameters()}
    report = sparse.finalize_()
    assert report.ok
    assert nmt.verify(model, plan).ok
    assert {
        module_name: type(module).__name__ for module_name, module in model.named_modules()
    } == kinds
    assert {id(p) for p in model.parameters()} == parameters
    assert list(model.state_dict()) == list(Net().state_dict())
    assert [name for name, _ in model.named_parameters()] == [
        name for name, _ in Net().named_parameters()
    ]
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    Net().load_state_dict(model.state_dict())
    assert (
        int(model.conv.weight.count_nonzero()) == model.conv.weight.numel() * int(pattern[0]) // 4
    )
    opt.step()  # no hook is left
    assert not opt._optimizer_step_pre_hooks
    assert not opt._optimizer_step_post_hooks
    assert not model._load_state_dict_pre_hooks
    assert not model._load_state_dict_post_hooks
    assert not model.conv._state_dict_hooks


@pytest.mark.parametrize(
    "optimizer",
    [
        torch.optim.AdamW,
        torch.optim.Adagrad,
        torch.optim.RMSprop,
        torch.optim.NAdam,
        torch.optim.SGD,
    ],
)
def test_no_optimizer_revives_what_fixed_dropped(optimizer):
    """A warm optimizer, with momenta for all weights from dense training."""
    torch.manual_seed(0)
    model = Net()
    options = {"momentum": 0.9} if optimizer in (torch.optim.SGD, torch.optim.RMSprop) else {}
    opt = optimizer(model.parameters(), lr=0.01, **options)
    train(model, opt, range(3))
    sparse = nmt.sparsify_(model, "2:4", nmt.Fixed()).attach(opt)
    state = copy.deepcopy(opt.state_dict())
    for round_ in range(2):
        train(model, opt, range(3, 6))
        for layer in sparse.layers:
            assert not layer.weight[~layer.masked.mask].any()
            assert layer.weight[layer.masked.mask].all()
        if round_ == 0:
            for values in state["state"].values():
                for key, value in values.items():
                    values[key] = (
                        torch.ones_like(value) if torch.is_tensor(value) and value.dim() else value
                    )
            opt.load_state_dict(state)  # momenta for dropped weights again
    assert sparse.finalize_().ok


def test_muon_does_not_either():
    """Its updates are dense whatever the gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16, bias=False), nn.Linear(16, 16, bias=False))
    opt = torch.optim.Muon(model.parameters(), lr=0.1)
    sparse = nmt.sparsify_(model, "2:4", nmt.Fixed()).attach(opt)
    for step in range(3):
        opt.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        opt.step()
        for layer in sparse.layers:
            assert not layer.weight[~layer.masked.mask].any(), step


@ALL
def test_accumulation_is_one_step(name):
    """Four quarter batches, accumulated, are a batch: the decay counts once, the mask moves
    once.
    """
    torch.manual_seed(0)
    data = [(torch.randn(8, 16).double(), torch.randn(8, 8).double()) for _ in range(5)]
    results = []
    for parts in (1, 4):
        torch.manual_seed(1)
        model, opt, sparse = made(
            name, "sgd", model=nn.Sequential(nn.Linear(16, 8)).double(), seed=1
        )
        for x, t in data:
            opt.zero_grad()
            for a, b in zip(x.chunk(parts), t.chunk(parts), strict=True):
                ((model(a) - b).square().mean() / parts).backward()
            opt.step()
        results.append(
            (
                sparse.layers[0].weight.clone(),
                sparse.layers[0].masked.mask.clone(),
                sparse.stats().step,
            )
        )
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-9, atol=1e-12)
    assert torch.equal(results[0][1], results[1][1])
    assert results[0][2] == results[1][2] == 5


def test_the_decay_is_not_clipped_away():
    """Clipping sees the loss's gradients alone; the decay is added behind it."""
    deltas = []
    for decay in (0.0, 0.1):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 8, bias=False))
        opt = torch.optim.SGD(model.parameters(), lr=1.0)
        sparse = nmt.sparsify_(model, "2:4", nmt.SRSTE(decay=decay)).attach(opt)
        weight, mask = sparse.layers[0].weight.clone(), sparse.layers[0].masked.mask.clone()
        model(torch.ones(2, 16)).square().sum().backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1e-3)
        gradient = sparse.layers[0].gradient.clone()
        opt.step()
        deltas.append((sparse.layers[0].weight - weight + gradient, weight, mask))
    torch.testing.assert_close(deltas[0][0], torch.zeros(8, 16), rtol=0, atol=1e-6)
    _, weight, mask = deltas[1]
    torch.testing.assert_close(deltas[1][0], -0.1 * weight * ~mask, rtol=0, atol=1e-6)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("optimizer", [torch.optim.SGD, torch.optim.AdamW])
@pytest.mark.parametrize(
    "method", [nmt.SRSTE(decay=0.1, decoupled=False), nmt.LBC(t_i=0, t_f=6), nmt.Fixed()]
)
def test_grad_scaler(optimizer, fused, method):
    """Steps under a scaler are those without, also where a fused optimizer unscales; skipped steps
    are no steps.
    """
    torch.manual_seed(0)
    data = [torch.randn(4, 16) for _ in range(6)]
    weights = []
    for scaled in (False, True):
        torch.manual_seed(1)
        model = nn.Sequential(nn.Linear(16, 8, bias=False))
        opt = optimizer(model.parameters(), lr=0.05, fused=fused)
        sparse = nmt.sparsify_(model, "2:4", method).attach(opt)
        scaler = torch.amp.GradScaler("cpu", init_scale=1024.0, enabled=scaled)
        for step, x in enumerate(data):
            if scaled and step == 3:  # an overflow on the way
                opt.zero_grad()
                scaler.scale(model(x).square().mean() * float("inf")).backward()
                scaler.step(opt)
                scaler.update()
            opt.zero_grad()
            scaler.scale(model(x).square().mean()).backward()
            scaler.step(opt)
            scaler.update()
        weights.append(
            (
                sparse.layers[0].weight.clone(),
                sparse.layers[0].masked.mask.clone(),
                sparse.stats().step,
            )
        )
    torch.testing.assert_close(weights[0][0], weights[1][0], rtol=1e-5, atol=1e-7)
    assert torch.equal(weights[0][1], weights[1][1])
    assert weights[0][2] == weights[1][2] == 6


@ALL
def test_autocast_and_bfloat16(name):
    model, opt, sparse = made(name)
    losses = train(model, opt, range(8), autocast=True)
    assert sum(losses[4:]) < sum(losses[:4])
    assert sparse.finalize_().ok

    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 8)).to(torch.bfloat16)
    model, opt, sparse = made(name, model=model)
    for _ in range(6):
        opt.zero_grad()
        y = model(torch.ones(2, 16, dtype=torch.bfloat16))
        assert y.dtype == torch.bfloat16
        y.float().square().sum().backward()
        opt.step()
    sparse.layers[0].module.to(torch.float32)  # cast afterwards: masks do not mind
    model.float()
    opt.zero_grad()
    assert model(torch.ones(2, 16)).dtype == torch.float32
    assert sparse.finalize_().ok


def test_closures_are_seen():
    """LBFGS evaluates the loss inside the step; the decay is added each time."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 8, bias=False))
    sgd = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = nmt.sparsify_(model, "2:4", nmt.SRSTE(decay=0.1)).attach(sgd)
    twin = copy.deepcopy(model)
    twin_sgd = torch.optim.SGD(twin.parameters(), lr=0.1)
    x = torch.randn(4, 16)

    def closure():
        sgd.zero_grad()
        loss = model(x).square().mean()
        loss.backward()
        return loss

    weight, mask = sparse.layers[0].weight.clone(), sparse.layers[0].masked.mask.clone()
    assert sgd.step(closure) is not None
    twin(x).square().mean().backward()
    twin_sgd.step()
    expected = twin[0].parametrizations.weight.original.detach() - 0.1 * 0.1 * weight * ~mask
    torch.testing.assert_close(sparse.layers[0].weight, expected)
    lbfgs = torch.optim.LBFGS(model.parameters(), max_iter=3)
    sparse.attach(lbfgs)
    for _ in range(2):
        lbfgs.step(lambda: _loss(model, lbfgs, x))
    assert sparse.stats().step == 3
    assert sparse.finalize_().ok


def _loss(model, optimizer, x):
    optimizer.zero_grad()
    loss = (model(x) - 1).square().mean()
    loss.backward()
    return loss


def test_maximize():
    torch.manual_seed(0)
    results = []
    for maximize in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 8))
        opt = torch.optim.SGD(model.parameters(), lr=0.1, maximize=maximize)
        for method in (nmt.SRSTE(decay=0.1), nmt.LBC(t_i=0, t_f=4)):
            sparse = nmt.sparsify_(model, "2:4", method).attach(opt)
            for step in range(4):
                opt.zero_grad()
                loss = model(torch.full((2, 16), float(step + 1))).square().mean()
                (-loss if maximize else loss).backward()
                opt.step()
            results.append((maximize, sparse.layers[0].weight.clone()))
            sparse.finalize_()
    torch.testing.assert_close(results[0][1], results[2][1])
    torch.testing.assert_close(results[1][1], results[3][1])


def test_frozen_layers_keep_their_mask():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    model[0].requires_grad_(False)
    opt = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    sparse = nmt.sparsify_(model, "2:4", nmt.STE()).attach(opt)
    model(torch.randn(2, 8)).square().sum().backward()
    opt.step()
    assert [layer.step for layer in sparse.stats().layers.values()] == [0, 1]
    assert sparse.finalize_().ok


@ALL
def test_a_frozen_backbone(name):
    """Every planned layer is frozen, an optimizer trains the dense head: steps are steps."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    model[0].requires_grad_(False)
    opt = torch.optim.SGD(model[1].parameters(), lr=0.1)
    sparse = nmt.sparsify_(model, nmt.plan(model, "2:4", exclude="1"), METHODS[name]())
    if name == "lbc":
        with pytest.raises(nmsolve.InputError, match="SGD does not hold the weight of 0"):
            sparse.attach(opt)
        return
    sparse.attach(opt)
    before, masked = model[1].weight.detach().clone(), model[0].weight.detach().clone()
    for _ in range(2):
        opt.zero_grad()
        model(torch.randn(4, 8)).square().sum().backward()
        opt.step()
    assert not torch.equal(model[1].weight, before)
    assert torch.equal(model[0].weight, masked)
    assert sparse.finalize_().ok


@pytest.mark.parametrize("method", [nmt.SRSTE(), nmt.LBC(t_i=0, t_f=4)])
def test_an_optimizer_without_a_learning_rate(method):
    from transformers.optimization import Adafactor

    model = nn.Sequential(nn.Linear(8, 8))
    opt = Adafactor(model.parameters())  # makes its own rate
    nmt.sparsify_(model, "2:4", method).attach(opt)
    model(torch.randn(4, 8)).square().sum().backward()
    with pytest.raises(
        nmsolve.InputError,
        match=r"layer 0: its optimizer has no learning rate \(lr=None\).*relative_step=False",
    ):
        opt.step()
