"""Models with masks on them: real modules, copies, checkpoints, compilers, optimizers' extras, and what finalize_ leaves."""

import copy
import io
import itertools
import pickle

import pytest
import torch
from torch import nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import nmsolve
import nmsolve.torch as nmt
from nmsolve.torch.training.acceleration import use
from nmsolve.torch.training.parametrization import Masked

METHODS = {
    "fixed": lambda: nmt.Fixed(),
    "ste": lambda: nmt.STE(update_every=2),
    "srste": lambda: nmt.SRSTE(decay=0.05),
    "lbc": lambda: nmt.LBC(t_i=0, t_f=5),
}
BOTH = pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
ALL = pytest.mark.parametrize("name", METHODS)


class Net(nn.Module):
    """Convolution (one grouped), attention, linear layers; the stem and the norm stay dense."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(1, 16, 3, padding=1)
        self.conv = nn.Conv2d(16, 32, 3, padding=1, groups=2)
        self.norm = nn.BatchNorm2d(32)
        self.block = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.1, batch_first=True)
        self.head = nn.Linear(32, 16)

    def forward(self, x):
        x = self.norm(self.conv(self.stem(x).relu())).flatten(2).transpose(1, 2)
        return self.head(self.block(x)).mean(1)


def made(name, optimizer="adamw", pattern="2:4", seed=0, model=None):
    torch.manual_seed(seed)
    model = model or Net()
    if optimizer == "sgd":
        opt = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9, weight_decay=1e-3)
    else:
        opt = torch.optim.AdamW(model.parameters(), lr=0.01, weight_decay=0.1)
    return model, opt, nmt.sparsify_(model, pattern, METHODS[name]()).attach(opt)


def batch(step):
    g = torch.Generator().manual_seed(100 + step % 2)
    return torch.randn(4, 1, 4, 4, generator=g), torch.randint(0, 16, (4,), generator=g)


def train(model, optimizer, steps, autocast=False):
    losses = []
    for step in steps:
        torch.manual_seed(step)  # dropout
        x, t = batch(step)
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            loss = nn.functional.cross_entropy(model(x), t)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def snapshot(model, optimizer=None):
    tensors = {key: value.clone() for key, value in model.state_dict().items()}
    if optimizer is not None:
        for i, state in enumerate(optimizer.state_dict()["state"].values()):
            tensors |= {f"optimizer.{i}.{key}": torch.as_tensor(value).clone() for key, value in state.items() if value is not None}
    return tensors


def assert_equal(left, right):
    assert set(left) == set(right)
    for key, value in left.items():
        assert torch.equal(value, right[key]), key


@BOTH
@pytest.mark.parametrize(
    ("name", "pattern"),
    [*((name, "2:4") for name in METHODS), ("lbc", "1:4"), *((name, "2:4T") for name in ("fixed", "ste", "srste"))],
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
    assert {module_name: type(module).__name__ for module_name, module in model.named_modules()} == kinds
    assert {id(p) for p in model.parameters()} == parameters
    assert list(model.state_dict()) == list(Net().state_dict())
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in Net().named_parameters()]
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-6)
    Net().load_state_dict(model.state_dict())
    assert int(model.conv.weight.count_nonzero()) == model.conv.weight.numel() * int(pattern[0]) // 4
    opt.step()  # no hook is left
    assert not opt._optimizer_step_pre_hooks
    assert not opt._optimizer_step_post_hooks
    assert not model._load_state_dict_pre_hooks
    assert not model.conv._state_dict_hooks


@pytest.mark.parametrize(
    "optimizer", [torch.optim.AdamW, torch.optim.Adagrad, torch.optim.RMSprop, torch.optim.NAdam, torch.optim.SGD]
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
                    values[key] = torch.ones_like(value) if torch.is_tensor(value) and value.dim() else value
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
    """Four quarter batches, accumulated, are a batch: the decay counts once, the mask moves once."""
    torch.manual_seed(0)
    data = [(torch.randn(8, 16).double(), torch.randn(8, 8).double()) for _ in range(5)]
    results = []
    for parts in (1, 4):
        torch.manual_seed(1)
        model, opt, sparse = made(name, "sgd", model=nn.Sequential(nn.Linear(16, 8)).double(), seed=1)
        for x, t in data:
            opt.zero_grad()
            for a, b in zip(x.chunk(parts), t.chunk(parts), strict=True):
                ((model(a) - b).square().mean() / parts).backward()
            opt.step()
        results.append((sparse.layers[0].weight.clone(), sparse.layers[0].masked.mask.clone(), sparse.stats().step))
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
@pytest.mark.parametrize("method", [nmt.SRSTE(decay=0.1, decoupled=False), nmt.LBC(t_i=0, t_f=6), nmt.Fixed()])
def test_grad_scaler(optimizer, fused, method):
    """Steps under a scaler are those without, also where a fused optimizer unscales; skipped steps are no steps."""
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
        weights.append((sparse.layers[0].weight.clone(), sparse.layers[0].masked.mask.clone(), sparse.stats().step))
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


@ALL
@BOTH
def test_resumes_bit_for_bit(name, optimizer, tmp_path):
    model, opt, sparse = made(name, optimizer, "1:4")
    train(model, opt, range(3))
    torch.save({"model": model.state_dict(), "optimizer": opt.state_dict()}, tmp_path / "checkpoint.pt")
    train(model, opt, range(3, 7))
    again, other, resumed = made(name, optimizer, "1:4", seed=7)
    held = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    again.load_state_dict(held["model"])
    other.load_state_dict(held["optimizer"])
    train(again, other, range(3, 7))
    assert_equal(snapshot(model, opt), snapshot(again, other))
    assert str(sparse.stats()) == str(resumed.stats())
    assert sparse.finalize_().ok
    assert resumed.finalize_().ok
    assert_equal(snapshot(model), snapshot(again))


def test_loading_before_attaching_resumes_too():
    model, opt, _ = made("lbc")
    train(model, opt, range(3))
    state, opt_state = copy.deepcopy(model.state_dict()), copy.deepcopy(opt.state_dict())
    train(model, opt, range(3, 6))
    torch.manual_seed(9)
    again = Net()
    other = torch.optim.AdamW(again.parameters(), lr=0.01, weight_decay=0.1)
    sparse = nmt.sparsify_(again, "2:4", METHODS["lbc"]())
    again.load_state_dict(state)
    other.load_state_dict(opt_state)
    sparse.attach(other)
    train(again, other, range(3, 6))
    assert_equal(snapshot(model, opt), snapshot(again, other))
    late = torch.optim.AdamW(again.parameters(), lr=0.01)
    sparse.attach(late)
    with pytest.raises(nmsolve.InputError, match=r"conv.*in another order.*before sparsify_ or after"):
        late.load_state_dict(opt_state)


def test_state_dict_format():
    """Plain names; the mask in bits, the first entry in the highest bit; numbers as documented."""
    model = nn.Sequential(nn.Linear(8, 2))
    sparse = nmt.sparsify_(model, "2:4", nmt.STE())
    mask = sparse.layers[0].masked.mask
    state = model.state_dict()
    assert list(state) == ["0.bias", "0.weight", "0.weight_mask", "0.weight_progress"]
    assert torch.equal(state["0.weight"], sparse.layers[0].weight)
    bits = [sum(int(mask[row, col]) << (7 - col) for col in range(8)) for row in range(2)]
    assert state["0.weight_mask"].tolist() == bits
    assert state["0.weight_progress"].tolist() == [2, 4, 0, 0, 0, 0, 0, 0, 0]
    assert state["0.weight"].data_ptr() == sparse.layers[0].weight.data_ptr()
    assert torch.equal(model[0].weight_mask, state["0.weight_mask"])
    plain = nn.Sequential(nn.Linear(8, 2))
    missing, unexpected = plain.load_state_dict(state, strict=False)
    assert (missing, unexpected) == ([], ["0.weight_mask", "0.weight_progress"])
    with pytest.raises(RuntimeError, match=r"Missing key.*0.weight_mask"):
        model.load_state_dict(plain.state_dict())
    assert "0.weight_mask" in model.load_state_dict(plain.state_dict(), strict=False).missing_keys


@ALL
def test_copies(name):
    """A deep copy has masks of its own, trains on its own, is finalized on its own; the original does not notice."""
    model, opt, sparse = made(name)
    train(model, opt, range(3))
    twin = copy.deepcopy(model)
    for ours, theirs in zip(_masks(model), _masks(twin), strict=True):
        assert ours is not theirs
        assert torch.equal(ours.mask, theirs.mask)
        assert ours.mask.data_ptr() != theirs.mask.data_ptr()
    held = snapshot(twin)
    train(model, opt, range(3, 6))
    assert_equal(snapshot(twin), held)
    twin.load_state_dict(model.state_dict())
    assert_equal(snapshot(twin), snapshot(model))
    model.eval(), twin.eval()
    before = snapshot(model)
    assert sparse.finalize_(twin).ok
    assert not _masks(twin)
    assert_equal(snapshot(model), before)
    x = batch(0)[0]
    torch.testing.assert_close(model(x), twin(x))
    model.train()
    train(model, opt, range(6, 7))
    assert sparse.finalize_().ok
    third = copy.deepcopy(model)
    assert type(third.head) is nn.Linear


def _masks(model):
    return [module for module in model.modules() if isinstance(module, Masked)]


@ALL
@pytest.mark.parametrize("averaging", ["swa", "ema"])
def test_averages(name, averaging):
    """AveragedModel averages the dense weights and copies the masks as they are now."""
    model, opt, sparse = made(name)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5) if averaging == "ema" else None)
    for step in range(6):
        train(model, opt, [step])
        average.update_parameters(model)
    for ours, theirs in zip(_masks(model), _masks(average), strict=True):
        assert torch.equal(ours.mask, theirs.mask)
    assert nmt.verify(average.module, sparse.plan).ok
    average.eval()
    x = batch(0)[0]
    before = average(x)
    assert sparse.finalize_(average.module).ok
    torch.testing.assert_close(average(x), before, rtol=1e-5, atol=1e-6)
    assert sparse.finalize_().ok


@pytest.mark.parametrize("name", ["ste", "fixed", "lbc"])
def test_refreshing_masks_by_hand(name):
    """For weights that came from elsewhere, and masks that an average has mixed."""
    model, opt, sparse = made(name)
    average = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(0.5), use_buffers=True)
    for step in range(6):
        train(model, opt, [step])
        average.update_parameters(model)
    if name != "fixed":
        assert not nmt.verify(average.module, sparse.plan)
        with pytest.raises(nmsolve.SolverError, match=r"use_buffers(.|\n)*refresh_\(\)"):
            sparse.finalize_(average.module)
    masks = [masked.mask.clone() for masked in _masks(model)]
    assert sparse.refresh_(average.module).finalize_(average.module).ok
    assert all(torch.equal(mask, masked.mask) for mask, masked in zip(masks, _masks(model), strict=True))
    model.load_state_dict(Net().state_dict(), strict=False)  # a dense checkpoint
    sparse.refresh_()
    for layer in sparse.layers:
        if name != "lbc" and layer.path == "head":
            assert torch.equal(layer.masked.mask, nmt.solve(layer.weight, "2:4").mask)
    train(model, opt, range(2))
    assert sparse.finalize_().ok
    with pytest.raises(nmsolve.InputError, match="finalized"):
        sparse.refresh_()


@ALL
def test_whole_models_are_saved(name, tmp_path):
    model, opt, sparse = made(name)
    train(model, opt, range(2))
    torch.save(model, tmp_path / "model.pt")
    again = torch.load(tmp_path / "model.pt", weights_only=False)
    assert_equal(snapshot(model), snapshot(again))
    assert type(again.head).__name__ == "ParametrizedLinear"
    model.eval(), again.eval()
    assert torch.equal(model(batch(0)[0]), again(batch(0)[0]))
    once_more = pickle.loads(pickle.dumps(copy.deepcopy(again)))
    assert_equal(snapshot(model), snapshot(once_more))
    again.load_state_dict(model.state_dict())
    buffer = io.BytesIO()
    torch.save(again, buffer)
    if name != "lbc":  # whose masks are not 2:4 yet
        sparse.finalize_(again)
        assert [key for key, _ in again.named_parameters()] == [key for key, _ in Net().named_parameters()]


@ALL
def test_a_sparse_model_is_copied_and_pickled_with_its_model(name):
    """As launchers that spawn processes do; the copy is attached to nothing."""
    model, opt, sparse = made(name)
    train(model, opt, range(3))
    for twin in (pickle.loads(pickle.dumps(sparse)), copy.deepcopy(sparse)):
        other = torch.optim.AdamW(twin.model.parameters(), lr=0.01)
        train(twin.model, other, range(1))
        assert twin.stats().step == 3
        twin.attach(other)
        train(twin.model, other, range(3, 6))
        assert twin.stats().step == 6
        assert twin.finalize_().ok
        assert twin.model is not model
    assert sparse.stats().step == 3


@ALL
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # Dynamo's own, at any autograd.Function
def test_compiled_without_a_graph_break(name):
    model, opt, sparse = made(name)
    eager, eager_opt, _ = made(name)
    for module in itertools.chain(model.modules(), eager.modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if isinstance(module, nn.MultiheadAttention):
            module.dropout = 0.0
    from torch._dynamo.testing import CompileCounterWithBackend

    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(model, fullgraph=True, backend=counter)
    losses = train(compiled, opt, range(6))
    assert losses == pytest.approx(train(eager, eager_opt, range(6)), rel=1e-4)
    assert counter.frame_count == 1  # masks change in place: no graph is compiled anew
    assert sparse.finalize_().ok
    compiled(batch(0)[0])


def test_fused_attention_reads_the_masked_weights():
    """nn.TransformerEncoderLayer's fast path and MultiheadAttention's projections go past every forward of ours."""
    torch.manual_seed(0)
    layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True).eval()
    sparse = nmt.sparsify_(layer, "2:4", nmt.STE())
    plain = copy.deepcopy(layer)
    sparse.finalize_(plain)
    x = torch.randn(2, 5, 32)
    with torch.no_grad():
        fast = layer(x)
    torch.testing.assert_close(fast, plain(x), rtol=1e-4, atol=1e-5)
    assert {entry.path for entry in sparse.plan.planned} == {
        "self_attn.in_proj_weight",
        "self_attn.out_proj",
        "linear1",
        "linear2",
    }


@ALL
def test_tied_weights_have_one_mask(name):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 16))
    model[2].weight = model[0].weight
    model, opt, sparse = made(name, model=model)
    assert len(sparse.layers) == 1
    for _ in range(6):
        opt.zero_grad()
        model(torch.randn(4, 16)).square().sum().backward()
        opt.step()
    assert sparse.stats().step == 6
    twin = copy.deepcopy(model)
    assert _masks(twin)[0] is twin[2].parametrizations.weight[0]
    state = model.state_dict()
    assert torch.equal(state["0.weight_mask"], state["2.weight_mask"])
    twin.load_state_dict(state)
    assert sparse.finalize_().ok
    assert model[0].weight is model[2].weight
    assert int(model[0].weight.count_nonzero()) == 128


@pytest.mark.parametrize("dims", [1, 2, 3])
def test_convolutions_have_groups_along_input_channels(dims):
    torch.manual_seed(0)
    conv = [nn.Conv1d, nn.Conv2d, nn.Conv3d][dims - 1]
    model = nn.Sequential(conv(8, 8, 3, padding=1), conv(8, 16, 2, groups=2))
    plan = nmt.plan(model, "2:4T")
    assert len(plan.planned) == 2
    opt = torch.optim.SGD(model.parameters(), lr=0.1)
    sparse = nmt.sparsify_(model, plan, nmt.STE()).attach(opt)
    model(torch.randn(2, 8, *[4] * dims)).square().sum().backward()
    opt.step()
    assert sparse.finalize_().ok
    for layer in model:
        kept = (layer.weight != 0).flatten(2)  # (out, in, positions)
        assert (kept.unflatten(1, (-1, 4)).sum(2) == 2).all()
        assert (kept.unflatten(0, (-1, 4)).sum(1) == 2).all()


def test_assigning_a_weight_sets_the_dense_one():
    model, _, sparse = made("ste", model=nn.Sequential(nn.Linear(8, 8)))
    parameter = sparse.layers[0].parameter
    model[0].weight = torch.ones(8, 8)
    assert sparse.layers[0].parameter is parameter
    assert torch.equal(parameter.detach(), torch.ones(8, 8))
    assert torch.equal(model[0].weight.detach(), sparse.layers[0].masked.mask.float())


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


def test_accelerate_without_a_gpu_changes_no_number(warned_already):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here; see test_torch_layers_on_gpu.py")
    results = []
    for accelerate in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 8))
        opt = torch.optim.AdamW(model.parameters(), lr=0.1)
        sparse = nmt.sparsify_(model, "2:4T", nmt.SRSTE(), accelerate=accelerate).attach(opt)
        for _ in range(3):
            opt.zero_grad()
            model(torch.ones(2, 16)).square().sum().backward()
            opt.step()
        results.append(snapshot(model))
    assert set(sparse.acceleration) == {"0", "2"}
    assert_equal(*results)


@pytest.mark.parametrize("name", ["fixed", "srste"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_accelerated_layers_multiply_by_the_same_weight(name):
    """The forward that packs, with the dense backend instead of a GPU's: products, gradients, copies, compiling, finalizing."""
    results = []
    for accelerated in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(16, 16), nn.GELU(), nn.Linear(16, 8)).double()
        model, opt, sparse = made(name, "adamw", "2:4T", model=model)
        if accelerated:
            for layer in sparse.layers:
                use(layer, "dense")
            assert type(model[0]).forward is not nn.Linear.forward
        for _ in range(4):
            opt.zero_grad()
            model(torch.linspace(-1, 1, 64, dtype=torch.float64).view(4, 16)).square().sum().backward()
            opt.step()
        results.append(snapshot(model))
        x = torch.ones(3, 16, dtype=torch.float64)
        expected = model(x)
        torch.testing.assert_close(copy.deepcopy(model)(x), expected)
        torch.testing.assert_close(torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected)
        torch._dynamo.reset()
        assert sparse.finalize_().ok
        assert type(model[0]) is nn.Linear
        assert model[0].forward.__func__ is nn.Linear.forward
        torch.testing.assert_close(model(x), expected)
    for key, value in results[0].items():
        torch.testing.assert_close(results[1][key], value, rtol=1e-9, atol=1e-12)


def test_stats_and_reports_print():
    model, opt, sparse = made("ste")
    train(model, opt, range(4))
    stats = sparse.stats()
    assert stats.sad == sum(layer.sad for layer in stats.layers.values()) > 0
    assert stats.sad_share == stats.sad / stats.weights
    assert "block.self_attn.in_proj_weight" in str(stats)
    assert "total" in str(stats)
    report = nmt.verify(model, sparse.plan)
    assert report["head"].ok
    assert (report.violations, report.density) == (0, 0.5)
    dense = nmt.verify(Net(), sparse.plan)
    assert not dense
    assert dense.violations > 0
    assert "keeps 4" in str(dense)
    with pytest.raises(KeyError, match="no planned layer 'tail'"):
        report["tail"]
    assert repr(sparse).startswith("<SparseModel: 6 layers, STE(")
