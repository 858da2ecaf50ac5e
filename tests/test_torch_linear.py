"""masked_linear, SparseLinear and PackedLinear: numbers and gradients against dense autograd, checkpoints, copies, compilers."""

import copy
import io
import os
import pickle
import socket
import subprocess
import sys
import warnings

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.utils.checkpoint import checkpoint

import nmsolve
from nmsolve.torch.dispatch.backends import SPARSE_BACKENDS, _said, why_not
from nmsolve.torch.dispatch.masked_linear import masked_linear, sparse_linear, sparse_linear_grad_input
from nmsolve.torch.dispatch.packed_linear import PackedLinear, packed_product, packed_product_grad_input
from nmsolve.torch.dispatch.packing import pack_unchecked
from nmsolve.torch.dispatch.sparse_linear import SparseLinear

CUDA = torch.cuda.is_available()
DEVICES = ["cpu", *([pytest.param("cuda", marks=pytest.mark.gpu)] if CUDA else [])]


def mask_of(rows, cols, seed=0, pattern="2:4T"):
    weight = torch.randn(rows, cols, generator=torch.Generator().manual_seed(seed))
    return torch.from_numpy(nmsolve.solve(weight.numpy(), pattern).mask)


def operands(tokens=5, rows=12, cols=8, dtype=torch.float32, device="cpu", seed=0):
    g = torch.Generator().manual_seed(seed)
    shape = tokens if isinstance(tokens, tuple) else (tokens,)
    x, w, b = (torch.randn(s, generator=g).to(device, dtype).requires_grad_() for s in ((*shape, cols), (rows, cols), (rows,)))
    return x, w, mask_of(rows, cols, seed).to(device), b


def reference(x, w, mask, b, straight_through=False):
    """Dense autograd: the product with the mask as a constant, or a straight-through estimator of it."""
    wm = w * mask
    if straight_through:
        wm = w + (wm - w).detach()
    return F.linear(x, wm, b)


def sparse_layer(rows=12, cols=8, seed=0, bias=True, backend="dense"):
    torch.manual_seed(seed)
    return SparseLinear.from_linear(nn.Linear(cols, rows, bias), mask_of(rows, cols, seed), backend)


def packed_layer(rows=12, cols=8, seed=0, bias=True, backend="dense"):
    return PackedLinear.from_linear(sparse_layer(rows, cols, seed, bias), backend)


def operators_of(call):
    """Names of all operators that a call runs, those inside others too."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # some versions of the profiler warn about themselves
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
            call()
        return {event.name for event in profile.events()}


# masked_linear


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("straight_through", [False, True])
@pytest.mark.parametrize("tokens", [(), 0, 1, 5, 16, (2, 3), (2, 0, 3)])
def test_gradients_are_those_of_dense_autograd(tokens, straight_through, device):
    ours = operands(tokens if tokens != 0 else (0,), dtype=torch.float64, device=device)
    theirs = [t.detach().clone().requires_grad_(t.is_floating_point()) for t in ours]
    y = masked_linear(*ours, straight_through=straight_through)
    expected = reference(*theirs, straight_through)
    assert y.shape == expected.shape
    torch.testing.assert_close(y, expected)
    dy = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=y.dtype).to(device)
    y.backward(dy)
    expected.backward(dy)
    for a, b in zip(ours, theirs, strict=True):
        if a.requires_grad:
            torch.testing.assert_close(a.grad, b.grad)
    if not straight_through:
        assert not ours[1].grad[~ours[2]].any()


def test_gradcheck_twice():
    x, w, mask, b = operands(3, dtype=torch.float64)
    assert torch.autograd.gradcheck(lambda x, w, b: masked_linear(x, w, mask, b), (x, w, b))
    assert torch.autograd.gradgradcheck(lambda x, w, b: masked_linear(x, w, mask, b), (x, w, b))
    assert torch.autograd.gradcheck(lambda x, w: masked_linear(x, w, mask), (x, w))


def test_straight_through_differs_where_it_should():
    x, w, mask, _ = operands(3)
    (through,) = torch.autograd.grad(masked_linear(x, w, mask, straight_through=True).sum(), w)
    assert through[~mask].all()


@pytest.mark.parametrize("wanted", [("x",), ("w",), ("b",), ("x", "b")])
def test_only_what_is_asked_is_computed(wanted):
    x, w, mask, b = operands(4)
    for name, tensor in (("x", x), ("w", w), ("b", b)):
        tensor.requires_grad_(name in wanted)
    seen = []

    def saved(tensor):
        seen.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(saved, lambda t: t):
        y = masked_linear(x, w, mask, b)
    shapes = {tuple(t.shape) for t in seen if t.is_floating_point()}
    assert ((4, 8) in shapes) == ("w" in wanted)
    assert ((12, 8) in shapes) == ("x" in wanted)
    y.sum().backward()
    assert {name for name, tensor in (("x", x), ("w", w), ("b", b)) if tensor.grad is not None} == set(wanted)
    names = operators_of(lambda: masked_linear(x, w, mask, b).sum().backward())
    assert ("nmsolve::sparse_linear_grad_input" in names) == ("x" in wanted)


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated")  # torch's own use of it
@pytest.mark.parametrize("through", [False, True])
def test_transforms_of_torch_func(through):
    x, w, mask, b = operands(5, dtype=torch.float64)
    x, w, b = x.detach(), w.detach(), b.detach()

    def ours(x, w):
        return masked_linear(x, w, mask, b, straight_through=through).square().sum()

    def dense(x, w):
        masked = torch.where(mask, w, 0)
        return torch.nn.functional.linear(x, masked.detach() + w - w.detach() if through else masked, b).square().sum()

    tangents = torch.randn_like(x), torch.randn_like(w)
    torch.testing.assert_close(torch.func.jvp(ours, (x, w), tangents), torch.func.jvp(dense, (x, w), tangents))
    torch.testing.assert_close(torch.func.grad(ours, (0, 1))(x, w), torch.func.grad(dense, (0, 1))(x, w))
    torch.testing.assert_close(torch.func.jacrev(ours)(x, w), torch.func.jacfwd(dense)(x, w))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangents[0])
        out = [torch.autograd.forward_ad.unpack_dual(f(dual, w)).tangent for f in (ours, dense)]
    torch.testing.assert_close(*out)


def test_parametrized_layers():
    layer = nn.utils.parametrizations.weight_norm(nn.Linear(8, 8))
    with pytest.raises(nmsolve.InputError, match="parametrized"):
        SparseLinear.from_linear(layer, torch.eye(8, dtype=torch.bool))
    sparse = nn.utils.parametrizations.weight_norm(SparseLinear.from_linear(nn.Linear(8, 8), torch.eye(8, dtype=torch.bool)))
    sparse.load_state_dict(sparse.state_dict())


def test_a_packed_layer_is_a_copy():
    linear = nn.Linear(8, 8)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(8))
    packed = PackedLinear.from_linear(linear, "dense")
    with torch.no_grad():
        linear.weight.fill_(1.0)
    assert int(packed.weight.count_nonzero()) == 8


def test_eval_mode_zeroes_what_the_mask_drops():
    layer = SparseLinear.from_linear(nn.Linear(8, 8), torch.eye(8, dtype=torch.bool))
    assert int(layer.weight.count_nonzero()) == 64
    nn.Sequential(layer).eval()
    assert int(layer.weight.count_nonzero()) == 8


def _sharded(rank, port):
    from torch.distributed.fsdp import fully_shard

    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    torch.distributed.init_process_group("gloo", rank=rank, world_size=2)
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
    torch.distributed.destroy_process_group()


def test_state_of_sharded_layers():
    """FSDP2 on two real gloo ranks: masks are cut as the weights are."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.spawn(_sharded, (port,), nprocs=2)


def test_odd_strides_and_expanded_gradients():
    x, w, mask, b = operands(6)
    strided = torch.randn(8, 2, 3).permute(1, 2, 0)
    torch.testing.assert_close(masked_linear(strided, w, mask, b), reference(strided, w, mask, b))
    torch.testing.assert_close(masked_linear(x[::2], w.t().contiguous().t(), mask, b), reference(x[::2], w, mask, b))
    masked_linear(x, w, mask, b).sum().backward()  # dy is one expanded number
    torch.testing.assert_close(x.grad, (w * mask).sum(0).expand(6, 8))


def test_what_is_dropped_may_be_anything():
    x, w, mask, b = operands(3)
    with torch.no_grad():
        expected = masked_linear(x, w, mask, b)
        w[~mask] = float("nan")
    y = masked_linear(x, w, mask, b)
    assert torch.equal(y, expected)
    y.sum().backward()
    assert torch.isfinite(x.grad).all()
    assert torch.isfinite(w.grad).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast(dtype):
    x, w, mask, b = operands(4)
    x2, w2, b2 = (t.detach().clone().requires_grad_() for t in (x, w, b))
    with torch.autocast("cpu", dtype=dtype):
        y, expected = masked_linear(x, w, mask, b), reference(x2, w2, mask, b2)
    assert y.dtype == expected.dtype == dtype
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    expected.sum().backward()
    for ours, theirs in ((x, x2), (w, w2), (b, b2)):
        assert ours.grad.dtype == torch.float32
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-2, atol=1e-2)
    wide = operands(4, dtype=torch.float64)
    with torch.autocast("cpu", dtype=dtype):
        assert masked_linear(*wide).dtype == torch.float64


def test_bad_operands_are_named():
    x, w, mask, b = operands(3)
    for args, said in (
        ((x[:, :4], w, mask, b), r"x must be \(..., 8\)"),
        ((x.reshape(6, 4), w, mask, b), r"x must be \(..., 8\)"),
        ((x[0, 0], w, mask, b), r"x must be \(..., 8\)"),
        ((x, w, mask.float(), b), "mask bool of the same shape"),
        ((x, w, mask[:4], b), "mask bool of the same shape"),
        ((x, w, mask, b[:4]), r"bias must be \(12,\)"),
        ((x.half(), w, mask, b), "x must have the weight's torch.float32, got torch.float16"),
        ((x, w, mask.to("meta"), b), "mask must be on the weight's device cpu, is on meta"),
    ):
        with pytest.raises(nmsolve.InputError, match=said):
            masked_linear(*args)
    with pytest.raises(nmsolve.InputError, match="got 'nothing'"):
        masked_linear(x, w, mask, b, backend="nothing")


@pytest.mark.parametrize("backend", SPARSE_BACKENDS)
def test_what_cannot_be_served_is_dense_and_said_once(backend, recwarn):
    x, w, mask, b = operands(3)
    _said.discard("masked dense")
    with pytest.warns(UserWarning, match=r"masked dense weight where \w+ cannot serve; here: float32 is 1:2"):
        y = masked_linear(x, w, mask, b, backend=backend)
    recwarn.clear()
    masked_linear(x, w, mask, b, backend=backend).sum().backward()
    assert not recwarn.list
    assert torch.equal(y, masked_linear(x, w, mask, b))


@pytest.mark.parametrize("straight_through", [False, True])
def test_operators_obey_torch(straight_through):
    x, w, mask, b = operands(5)
    torch.library.opcheck(sparse_linear, (x, w, mask, b, "dense", straight_through))
    torch.library.opcheck(sparse_linear, (x.detach(), w, mask, None, "dense", straight_through))
    torch.library.opcheck(sparse_linear_grad_input, (torch.randn(5, 12), w, mask, "dense", straight_through))


def test_compiles_without_a_break():
    x, w, mask, b = operands((2, 5))

    def step(x, w, b):
        return masked_linear(x, w, mask, b, straight_through=True).relu().sum()

    explanation = torch._dynamo.explain(step)(x, w, b)
    assert (explanation.graph_break_count, explanation.graph_count) == (0, 1)
    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, backend="aot_eager", dynamic=True)
    for tokens in (5, 7):
        x, w, mask, b = operands((2, tokens))
        for ours, theirs in zip(
            torch.autograd.grad(compiled(x, w, b), (x, w, b)), torch.autograd.grad(step(x, w, b), (x, w, b)), strict=True
        ):
            torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()


def test_importing_does_not_load_the_compiler():
    code = "import sys, nmsolve.torch; print([m for m in sys.modules if m.startswith(('torch._dynamo', 'triton'))])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"


# SparseLinear


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
    "mask", [torch.ones(12, 8, dtype=torch.bool), torch.zeros(12, 8), torch.zeros(8, 12, dtype=torch.bool), None]
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
        SparseLinear.from_linear(nn.Linear(8, 12), before, "nothing")


def test_row_wise_is_not_enough_to_train():
    only = torch.tensor([[1, 1, 0, 0]] * 4, dtype=torch.bool)
    with pytest.raises(nmsolve.InputError, match=r"2:4T is violated .* from index \[0, 0\], keeps 4"):
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


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("make", [sparse_layer, packed_layer])
def test_loading_refuses_what_is_not_2to4(make, strict):
    model = nn.Sequential(make())
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(RuntimeError, match=r"0\.weight cannot be loaded into a .*Linear: 2:4T? is violated .* from index \[0, 0\]"):
        model.load_state_dict({"0.weight": torch.ones(12, 8), "0.bias": torch.ones(12)}, strict=strict)
    assert torch.equal(model[0].state_dict()["weight"], before["0.weight"])
    with pytest.raises(RuntimeError, match=r"size mismatch for 0\.weight"):
        model.load_state_dict({"0.weight": torch.ones(8, 8), "0.bias": torch.ones(12)}, strict=strict)


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
    state = dict(make(seed=1).to(torch.float64).state_dict())  # torch notes assign=True in the metadata, which dict() drops
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
    for other in (fresh, copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), torch.load(whole, weights_only=False)):
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


# PackedLinear


def test_packed_layer_is_the_masked_linear():
    source = sparse_layer()
    layer = PackedLinear.from_linear(source, "dense")
    x = torch.randn(2, 3, 8, requires_grad=True)
    torch.testing.assert_close(layer(x), source(x))
    layer(x).sum().backward()
    torch.testing.assert_close(x.grad, source.masked_weight.sum(0).expand(2, 3, 8))
    assert not any(p.requires_grad for p in layer.parameters())
    assert list(layer.state_dict()) == ["weight", "bias"]
    plain = nn.Linear(8, 12)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(plain(x), layer(x))
    assert "in_features=8, out_features=12, bias=True, pattern=2:4, backend=dense" in repr(layer)
    assert not layer.packed
    with pytest.raises(RuntimeError):
        layer(torch.zeros(2, 4))
    with pytest.raises(nmsolve.InputError, match="only a 2:4 weight"):
        PackedLinear.from_linear(nn.Linear(8, 12), "cutlass")
    with pytest.raises(nmsolve.InputError, match="'nothing'"):
        PackedLinear.from_linear(source, "nothing")


def test_packed_layer_stays_dense_on_a_cpu_and_says_so_once(recwarn):
    _said.discard("masked dense")
    with pytest.warns(UserWarning, match="keeps 2:4 weights dense where cusparselt cannot serve; here: .*float32"):
        layer = packed_layer(backend="cusparselt")
    recwarn.clear()
    assert not layer.packed
    copy.deepcopy(layer).half()
    assert not recwarn.list


@given(st.integers(0, 9), st.integers(0, 99))
def test_gradient_of_a_packed_product(tokens, seed):
    """Through the CUTLASS layout, which unpacks on any device."""
    torch.manual_seed(seed)
    weight = torch.randn(32, 64).half() * mask_of(32, 64, seed)
    packed = pack_unchecked(weight, "cutlass")
    dy = torch.randn(tokens, 32).half()
    dx = packed_product_grad_input(dy, packed.packed, packed.meta, 32, 64, "cutlass")
    torch.testing.assert_close(dx, dy @ weight)


def test_packed_operators_obey_torch():
    packed = pack_unchecked(torch.randn(32, 64).half() * mask_of(32, 64), "cutlass")
    torch.library.opcheck(packed_product_grad_input, (torch.randn(3, 32).half(), packed.packed, packed.meta, 32, 64, "cutlass"))


if CUDA:

    def close(ours, theirs):
        """Both approximate; relative to the largest entry, as sums of products are."""
        scale = float(theirs.float().abs().max()) if theirs.numel() else 1.0
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0.02 * scale)

    def served(backend, dtype=torch.bfloat16):
        return why_not(backend, (128, 256), dtype, "cuda") is None

    @pytest.mark.gpu
    @pytest.mark.parametrize("backend", SPARSE_BACKENDS)
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    @pytest.mark.parametrize("tokens", [(), (0,), (1,), (7,), (64,), (3, 5)])
    def test_training_on_a_gpu(tokens, dtype, backend):
        _said.add("masked dense")
        x, w, mask, b = operands(tokens, 128, 256, dtype, "cuda")
        x2, w2, b2 = (t.detach().clone().requires_grad_() for t in (x, w, b))
        y, expected = masked_linear(x, w, mask, b, backend=backend), reference(x2, w2, mask, b2)
        dy = torch.randn_like(y)
        y.backward(dy)
        expected.backward(dy)
        assert y.shape == expected.shape
        close(y, expected)
        for ours, theirs in ((x, x2), (w, w2), (b, b2)):
            close(ours.grad, theirs.grad)
        assert not w.grad[~mask].any()
        names = operators_of(lambda: masked_linear(x, w, mask, b, backend=backend))
        ran = any("_cslt_sparse_mm" in name or "_sparse_semi_structured" in name for name in names)
        assert ran == (served(backend, dtype) and y.numel() > 0)

    @pytest.mark.gpu
    @pytest.mark.parametrize("backend", SPARSE_BACKENDS)
    def test_operators_obey_torch_on_a_gpu(backend):
        _said.add("masked dense")
        x, w, mask, b = operands(7, 128, 256, torch.bfloat16, "cuda")
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")  # results of two runs may differ in the last bit
        torch.library.opcheck(sparse_linear, (x, w, mask, b, backend, False), test_utils=tests)
        torch.library.opcheck(
            sparse_linear_grad_input,
            (torch.randn(7, 128, device="cuda", dtype=torch.bfloat16), w, mask, backend, False),
            test_utils=tests,
        )
        if served(backend):
            packed = pack_unchecked((w * mask).detach(), backend)
            torch.library.opcheck(packed_product, (x, packed.packed, packed.meta, b, 128, 256, backend), test_utils=tests)

    @pytest.mark.gpu
    @pytest.mark.parametrize("backend", SPARSE_BACKENDS)
    def test_layers_on_a_gpu(backend):
        _said.add("masked dense")
        source = sparse_layer(128, 256).to("cuda", torch.bfloat16)
        layer = PackedLinear.from_linear(source, backend)
        assert layer.packed == served(backend)
        x = torch.randn(2, 7, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True)
        close(layer(x), source(x))
        (dx,) = torch.autograd.grad(layer(x).sum(), x)
        close(dx, torch.autograd.grad(source(x).sum(), x)[0])
        assert torch.equal(layer.weight, source.masked_weight)
        assert torch.equal(layer.state_dict()["weight"], source.state_dict()["weight"])
        y = layer(x)
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer)), copy.deepcopy(layer).half().bfloat16()):
            assert other.packed == layer.packed
            close(other(x), y)
        fresh = PackedLinear.from_linear(sparse_layer(128, 256, seed=1).to("cuda", torch.bfloat16), backend)
        fresh.load_state_dict(layer.state_dict())
        close(fresh(x), y)
        with torch.autocast("cuda", dtype=torch.bfloat16):
            close(layer(x.float()), y)
        with torch.autocast("cuda", dtype=torch.float16):
            close(layer(x), y)
        assert not layer.float().packed
        assert not copy.deepcopy(layer).cpu().packed
        assert layer.bfloat16().packed == served(backend)
        with pytest.raises(RuntimeError):
            layer(x[..., :128])

    @pytest.mark.gpu
    @pytest.mark.parametrize("backend", SPARSE_BACKENDS)
    def test_compiled_and_checkpointed_on_a_gpu(backend):
        _said.add("masked dense")
        layer = sparse_layer(256, 256, backend=backend).cuda()
        x = torch.randn(64, 256, device="cuda", requires_grad=True)

        def run(x, use_reentrant=None):
            with torch.autocast("cuda", dtype=torch.bfloat16):
                y = layer(x) if use_reentrant is None else checkpoint(layer, x, use_reentrant=use_reentrant)
            return y.float().square().sum()

        expected = torch.autograd.grad(run(x), (x, layer.weight, layer.bias))
        for got in (
            torch.autograd.grad(run(x, False), (x, layer.weight, layer.bias)),
            torch.autograd.grad(torch.compile(run, fullgraph=True, backend="aot_eager")(x), (x, layer.weight, layer.bias)),
        ):
            for ours, theirs in zip(got, expected, strict=True):
                close(ours, theirs)
        packed = PackedLinear.from_linear(layer.bfloat16(), backend)
        x = x.detach().bfloat16()
        with torch.no_grad():
            close(torch.compile(packed, fullgraph=True, backend="aot_eager")(x), packed(x))
        torch._dynamo.reset()
