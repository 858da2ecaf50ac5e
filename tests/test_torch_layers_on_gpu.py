"""Packed products, forward and backward, on a real GPU."""

import copy
import pickle

import pytest
import torch
from layers import CUDA, operands, operators_of, reference, sparse_layer
from torch.utils.checkpoint import checkpoint

from nmsolve.torch.dispatch.backends import SPARSE_BACKENDS, _said, why_not
from nmsolve.torch.dispatch.masked_linear import masked_linear, sparse_linear, sparse_linear_grad_input
from nmsolve.torch.dispatch.packed_linear import PackedLinear, packed_product
from nmsolve.torch.dispatch.packing import pack_unchecked

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
