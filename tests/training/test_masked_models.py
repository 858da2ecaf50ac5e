"""Modules with masks on them: compiled, fused, tied, convolutional, accelerated; and what
prints.
"""

import copy
import itertools

import pytest
import torch
from torch import nn

import nmsolve.torch as nmt
from nmsolve.torch.training.packed_products import use
from tests.checkpoint.snapshots import differing, snapshot
from tests.training.small_net import ALL, Net, batch, made, masks_of, train


@ALL
@pytest.mark.filterwarnings(
    "ignore:.*should not be instantiated:DeprecationWarning"
)  # Dynamo's own, at any autograd.Function
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
    """nn.TransformerEncoderLayer's fast path and MultiheadAttention's projections go past every
    forward of ours.
    """
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
    assert masks_of(twin)[0] is twin[2].parametrizations.weight[0]
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


def test_accelerate_without_a_gpu_changes_no_number(warned_already):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here; see tests/dispatch/test_on_gpu.py")
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
    assert differing(*results) == []


@pytest.mark.parametrize("name", ["fixed", "srste"])
@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")
def test_accelerated_layers_multiply_by_the_same_weight(name):
    """The forward that packs, with the dense backend instead of a GPU's: products, gradients,
    copies, compiling, finalizing.
    """
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
            model(
                torch.linspace(-1, 1, 64, dtype=torch.float64).view(4, 16)
            ).square().sum().backward()
            opt.step()
        results.append(snapshot(model))
        x = torch.ones(3, 16, dtype=torch.float64)
        expected = model(x)
        torch.testing.assert_close(copy.deepcopy(model)(x), expected)
        torch.testing.assert_close(
            torch.compile(model, fullgraph=True, backend="aot_eager")(x), expected
        )
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
    assert stats["head"] is stats.layers["head"] is stats[-1]
    assert [layer.path for layer in stats.layers.values()] == list(stats.layers)
    with pytest.raises(KeyError, match="no planned layer 'tail'"):
        stats["tail"]
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
