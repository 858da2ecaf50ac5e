"""SparseLinear: masks, state dicts, copies, training, checkpointing, compilers, sharding."""

import copy
import io
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

import nmsolve
from nmsolve.torch.dispatch.sparse_linear import SparseLinear
from tests.dispatch.layers import mask_of, packed_layer, reference, sparse_layer


def test_parametrized_layers():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    with pytest.raises(nmsolve.InputError, match="parametrized"):
        SparseLinear.from_linear(layer, torch.eye(8, dtype=torch.bool))
    sparse = nn.utils.parametrizations.weight_norm(
        SparseLinear.from_linear(nn.Linear(8, 8), torch.eye(8, dtype=torch.bool))
    )
    sparse.load_state_dict(sparse.state_dict())


def test_eval_mode_zeroes_what_the_mask_drops():
    layer = SparseLinear.from_linear(nn.Linear(8, 8), torch.eye(8, dtype=torch.bool))
    assert int(layer.weight.count_nonzero()) == 64
    nn.Sequential(layer).eval()
    assert int(layer.weight.count_nonzero()) == 8


def _sharded(rank):
    from torch.distributed.fsdp import fully_shard

    torch.manual_seed(0)
    layer = SparseLinear.from_linear(nn.Linear(8, 12), torch.eye(12, 8, dtype=torch.bool))
    expected = {name: tensor.clone() for name, tensor in layer.state_dict().items()}
    model = fully_shard(nn.Sequential(layer))
    model(torch.ones(2, 8)).sum().backward()
    held = model.state_dict()
    assert torch.equal(held["0.weight"].full_tensor(), expected["weight"])
    assert torch.equal(layer.masked_weight.full_tensor(), expected["weight"])
    model.load_state_dict(held)
    model.eval()
    assert torch.equal(layer.weight.full_tensor(), expected["weight"])
    return True


def test_state_of_sharded_layers(on_two_ranks):
    """FSDP2 on two real gloo ranks: masks are cut as the weights are."""
    assert on_two_ranks(_sharded) == [True, True]


def test_shares_all_of_the_linear():
    linear = nn.Linear(8, 12).eval()
    seen = []
    handle = linear.register_forward_hook(lambda *_: seen.append(1))
    layer = SparseLinear.from_linear(linear, mask_of(12, 8))
    assert layer.weight is linear.weight
    assert layer.bias is linear.bias
    assert not layer.training
    assert "mask" not in dict(linear.named_buffers())
    x = torch.randn(3, 8)
    torch.testing.assert_close(layer(x), reference(x, linear.weight, layer.mask, linear.bias))
    assert seen
    handle.remove()
    layer(x)
    assert len(seen) == 1
    assert "pattern=2:4T, backend=dense" in repr(layer)
    built = SparseLinear(8, 12, dtype=torch.float64, mask=mask_of(12, 8))
    assert built(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    "mask",
    [
        torch.ones(12, 8, dtype=torch.bool),
        torch.zeros(12, 8),
        torch.zeros(8, 12, dtype=torch.bool),
        None,
    ],
)
def test_a_mask_that_is_none_is_refused(mask):
    layer = sparse_layer()
    with pytest.raises(nmsolve.InputError, match="mask"):
        SparseLinear.from_linear(nn.Linear(8, 12), mask)
    before = layer.mask.clone()
    with pytest.raises(nmsolve.InputError, match="mask"):
        layer.mask = mask
    assert torch.equal(layer.mask, before)
    with pytest.raises(nmsolve.InputError, match="'nothing'"):
        SparseLinear.from_linear(nn.Linear(8, 12), before, backend="nothing")


def test_row_wise_is_not_enough_to_train():
    only = torch.tensor([[1, 1, 0, 0]] * 4, dtype=torch.bool)
    with pytest.raises(
        nmsolve.InputError, match=r"2:4T is violated .* from index \[0, 0\], keeps 4"
    ):
        SparseLinear.from_linear(nn.Linear(4, 4), only)


@pytest.mark.parametrize("bias", [True, False])
def test_state_dict_is_that_of_a_linear(bias):
    layer = sparse_layer(bias=bias)
    state = layer.state_dict()
    assert list(state) == (["weight", "bias"] if bias else ["weight"])
    assert torch.equal(state["weight"], layer.weight * layer.mask)
    assert not state["weight"].requires_grad
    assert layer.state_dict(keep_vars=True)["weight"].requires_grad
    plain = nn.Linear(8, 12, bias)
    plain.load_state_dict(state)
    x = torch.randn(2, 8)
    torch.testing.assert_close(plain(x), layer(x))
    other = sparse_layer(seed=1, bias=bias)
    assert not torch.equal(other.mask, layer.mask)
    other.load_state_dict(plain.state_dict())
    assert torch.equal(other.mask, layer.mask)
    torch.testing.assert_close(other(x), layer(x))


@pytest.mark.parametrize("assign", [False, True])
def test_loading_keeps_a_mask_that_covers(assign):
    layer = sparse_layer()
    state = copy.deepcopy(layer.state_dict())
    row, col = layer.mask.nonzero()[0].tolist()
    state["weight"][row, col] = 0
    before = layer.mask.clone()
    layer.load_state_dict(state, assign=assign)
    assert torch.equal(layer.mask, before)
    assert layer.weight[row, col] == 0


@pytest.mark.parametrize("assign", [True, False])
def test_loading_takes_the_mask_of_a_weight_that_its_own_does_not_cover(assign):
    layer = sparse_layer()
    state = copy.deepcopy(layer.state_dict())
    state["weight"] = state["weight"].roll(4, 1)  # whole blocks
    assert (state["weight"] * ~layer.mask).any()
    layer.load_state_dict(state, assign=assign)
    assert torch.equal(layer.mask, state["weight"] != 0)
    assert torch.equal(layer.state_dict()["weight"], state["weight"])


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("make", [sparse_layer, packed_layer])
def test_loading_refuses_what_is_not_2to4(make, strict):
    model = nn.Sequential(make())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(
        RuntimeError,
        match=r"0\.weight cannot be loaded into a .*Linear: 2:4T? is violated .* from index "
        r"\[0, 0\]",
    ):
        model.load_state_dict(
            {"0.weight": torch.ones(12, 8), "0.bias": torch.ones(12)}, strict=strict
        )
    assert torch.equal(model[0].state_dict()["weight"], before["0.weight"])
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        model.load_state_dict(
            {"0.weight": torch.ones(8, 8), "0.bias": torch.ones(12)}, strict=strict
        )


@pytest.mark.parametrize("make", [sparse_layer, packed_layer])
def test_loading_is_strict(make):
    layer = make()
    state = layer.state_dict()
    with pytest.raises(RuntimeError, match=r'Missing key.*"weight"'):
        layer.load_state_dict({"bias": state["bias"]})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"more"'):
        layer.load_state_dict({**state, "more": state["bias"]})
    found = layer.load_state_dict({"bias": state["bias"], "more": state["bias"]}, strict=False)
    assert (found.missing_keys, found.unexpected_keys) == (["weight"], ["more"])


@pytest.mark.parametrize("make", [sparse_layer, packed_layer])
def test_loading_copies_or_assigns(make):
    state = dict(
        make(seed=1).to(torch.float64).state_dict()
    )  # torch notes assign=True in the metadata, which dict() drops
    layer, taker = make(), make()
    layer.load_state_dict(state)
    assert layer.weight.dtype == torch.float32
    assert layer.weight.data_ptr() != state["weight"].data_ptr()
    taker.load_state_dict(state, assign=True)
    assert taker.weight.dtype == torch.float64
    x = torch.randn(2, 8)
    torch.testing.assert_close(layer(x).double(), taker(x.double()), rtol=1e-5, atol=1e-5)
    source = make()
    layer.load_state_dict(dict(source.state_dict()))
    assert layer.weight.data_ptr() != source.weight.data_ptr()
    layer.load_state_dict(dict(state))
    empty = make().to("meta")
    empty.load_state_dict(state, assign=True)
    torch.testing.assert_close(empty(x.double()), taker(x.double()))
    emptied = make().to_empty(device="cpu")
    emptied.load_state_dict(state)
    torch.testing.assert_close(emptied(x), layer(x))


@pytest.mark.parametrize("make", [sparse_layer, packed_layer])
def test_copies(make):
    layer = make()
    x = torch.randn(3, 8)
    file = io.BytesIO()
    torch.save(layer.state_dict(), file)
    file.seek(0)
    fresh = make(seed=1)
    fresh.load_state_dict(torch.load(file, weights_only=True))
    whole = io.BytesIO()
    torch.save(layer, whole)
    whole.seek(0)
    for other in (
        fresh,
        copy.deepcopy(layer),
        pickle.loads(pickle.dumps(layer)),
        torch.load(whole, weights_only=False),
    ):
        assert type(other) is type(layer)
        assert torch.equal(other(x), layer(x))
        assert other.weight.data_ptr() != layer.weight.data_ptr()
    assert layer.half().weight.dtype == torch.float16
    assert layer(x.half()).dtype == torch.float16
    assert layer.to(torch.bfloat16)(x.bfloat16()).dtype == torch.bfloat16
    if make is sparse_layer:
        assert layer.mask.dtype == torch.bool


def test_training_keeps_zeros_and_the_optimizer():
    linear = nn.Linear(8, 12)
    optimizer = torch.optim.AdamW(linear.parameters(), lr=0.1, weight_decay=0.0)
    mask = mask_of(12, 8)
    with torch.no_grad():
        linear.weight.mul_(mask)
    model = nn.Sequential(SparseLinear.from_linear(linear, mask))
    before = linear.weight.detach().clone()
    for _ in range(3):
        optimizer.zero_grad()
        model(torch.randn(4, 8)).square().sum().backward()
        optimizer.step()
    assert not torch.equal(model[0].weight, before)
    assert not model[0].weight[~mask].any()


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_gradient_checkpointing_and_a_layer_used_twice(use_reentrant):
    layer = sparse_layer(8, 8)
    x = torch.randn(4, 8, requires_grad=True)

    def twice(x):
        return layer(layer(x).tanh())

    expected = torch.autograd.grad(twice(x).sum(), (x, layer.weight, layer.bias))
    checkpoint(twice, x, use_reentrant=use_reentrant).sum().backward()
    for ours, theirs in zip((x.grad, layer.weight.grad, layer.bias.grad), expected, strict=True):
        torch.testing.assert_close(ours, theirs)
    a, b = (t.detach().clone().requires_grad_() for t in (x, layer.weight))
    y = reference(reference(a, b, layer.mask, layer.bias).tanh(), b, layer.mask, layer.bias)
    torch.testing.assert_close(torch.autograd.grad(y.sum(), (a, b)), expected[:2])


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("make", [sparse_layer, packed_layer])
def test_modules_compile_without_a_break(make, autocast):
    model = nn.Sequential(make(8, 8), nn.ReLU(), make(8, 8, seed=1))
    x = torch.randn(4, 8, requires_grad=True)

    def run(x):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            return model(x)

    compiled = torch.compile(run, fullgraph=True, backend="aot_eager")
    tolerance = {"rtol": 2e-2, "atol": 2e-2} if autocast else {}
    torch.testing.assert_close(compiled(x), run(x), **tolerance)
    (ours,), (theirs,) = (torch.autograd.grad(f(x).float().sum(), x) for f in (compiled, run))
    torch.testing.assert_close(ours, theirs, **tolerance)
    torch._dynamo.reset()
