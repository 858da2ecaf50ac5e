"""Packed products, forward and backward, on a real GPU."""

import copy
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.checkpoint import checkpoint

from nmsolve.torch.dispatch.algorithms import offered, recall, sorted_out
from nmsolve.torch.dispatch.availability import SPARSE_BACKENDS, _said, machine_at, why_not
from nmsolve.torch.dispatch.masked_product import (
    masked_linear,
    sparse_linear,
    sparse_linear_grad_input,
)
from nmsolve.torch.dispatch.measuring import measure, wrong_result
from nmsolve.torch.dispatch.packed_linear import PackedLinear, packed_product
from nmsolve.torch.dispatch.packing import pack_unchecked, packed_linear
from nmsolve.torch.dispatch.recording import Call
from nmsolve.torch.dispatch.timing import call_times, graph_medians_us
from tests.dispatch.layers import CUDA, operands, operators_of, reference, sparse_layer

if CUDA:

    def close(ours, theirs):
        """Both approximate; relative to the largest entry, as sums of products are."""
        scale = float(theirs.float().abs().max()) if theirs.numel() else 1.0
        torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0.02 * scale)

    def run_apart(code):
        path = str(Path(__file__).parents[2])
        subprocess.run(
            [sys.executable, "-c", code], check=True, env={**os.environ, "PYTHONPATH": path}
        )

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
        tests = (
            "test_schema",
            "test_autograd_registration",
            "test_faketensor",
        )  # results of two runs may differ in the last bit
        torch.library.opcheck(sparse_linear, (x, w, mask, b, backend, False), test_utils=tests)
        torch.library.opcheck(
            sparse_linear_grad_input,
            (torch.randn(7, 128, device="cuda", dtype=torch.bfloat16), w, mask, backend, False),
            test_utils=tests,
        )
        if served(backend):
            packed = pack_unchecked((w * mask).detach(), backend)
            torch.library.opcheck(
                packed_product,
                (x, packed.packed, packed.meta, b, 128, 256, backend),
                test_utils=tests,
            )

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
        for other in (
            copy.deepcopy(layer),
            pickle.loads(pickle.dumps(layer)),
            copy.deepcopy(layer).half().bfloat16(),
        ):
            assert other.packed == layer.packed
            close(other(x), y)
        fresh = PackedLinear.from_linear(
            sparse_layer(128, 256, seed=1).to("cuda", torch.bfloat16), backend
        )
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
                y = (
                    layer(x)
                    if use_reentrant is None
                    else checkpoint(layer, x, use_reentrant=use_reentrant)
                )
            return y.float().square().sum()

        expected = torch.autograd.grad(run(x), (x, layer.weight, layer.bias))
        for got in (
            torch.autograd.grad(run(x, False), (x, layer.weight, layer.bias)),
            torch.autograd.grad(
                torch.compile(run, fullgraph=True, backend="aot_eager")(x),
                (x, layer.weight, layer.bias),
            ),
        ):
            for ours, theirs in zip(got, expected, strict=True):
                close(ours, theirs)
        packed = PackedLinear.from_linear(layer.bfloat16(), backend)
        x = x.detach().bfloat16()
        with torch.no_grad():
            close(torch.compile(packed, fullgraph=True, backend="aot_eager")(x), packed(x))
        torch._dynamo.reset()

    @pytest.mark.gpu
    @pytest.mark.parametrize("tokens", [7, 1024])
    @pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
    def test_algorithms_are_checked_by_value(dtype, tokens):
        if not served("cusparselt", dtype):
            return
        x, w, mask, b = (t.detach() for t in operands(tokens, 128, 256, dtype, "cuda"))
        w = torch.where(mask, w, 0)
        values = pack_unchecked(w, "cusparselt").packed
        count = offered(values, x)
        assert count >= 1
        dense, truth = (
            torch.nn.functional.linear(x, w, b),
            torch.nn.functional.linear(x.float(), w.float(), b.float()),
        )

        def wrong(algorithm):
            y = packed_linear(x, values, None, b, (128, 256), "cusparselt", algorithm=algorithm)
            return wrong_result([y], [dense], [truth])

        right, bad = sorted_out(count, wrong, x.device)
        assert 0 in right, bad
        close(
            packed_linear(x, values, None, b, (128, 256), "cusparselt", algorithm=right[-1]), dense
        )

    REFUSED = """
import copy, pytest, torch
from tests.dispatch.layers import sparse_layer
from nmsolve.torch.dispatch.algorithms import remembered
from nmsolve.torch.dispatch.availability import machine_at
from nmsolve.torch.dispatch.packed_linear import PackedLinear

def close(ours, theirs):
    torch.testing.assert_close(ours.float(), theirs.float(), rtol=0, atol=0.02 *
    float(theirs.float().abs().max()))

def memory(*algorithms):
    return remembered(machine_at(None), torch.bfloat16, 64, *algorithms)

nobody = 10**6
source = sparse_layer(128, 256).to("cuda", torch.bfloat16)
inference = PackedLinear.from_linear(source, "cusparselt", algorithms=memory(nobody))
forward, backward = (
    SparseLinear.from_linear(source, source.mask, backend="cusparselt", algorithms=memory(*both))
    for both in ((nobody, 0), (0, nobody))
)
x, other = (torch.randn(n, 256, device="cuda", dtype=torch.bfloat16, requires_grad=True) for n in
(64, 72))
for layer in (inference, forward):
    with pytest.raises(RuntimeError):
        layer(x)
y = backward(x)
close(y, source(x))
with pytest.raises(RuntimeError):
    y.sum().backward()
for layer in (inference, forward, backward):
    close(layer(other), source(other))
    assert copy.deepcopy(layer).algorithms == layer.algorithms
backward(other).sum().backward()
close(copy.deepcopy(inference).half()(x.half()), source(x))  # remembered for another dtype
torch.cuda.synchronize()
"""

    @pytest.mark.gpu
    def test_a_layer_uses_what_it_remembers_and_nowhere_else():
        """An algorithm that does not exist is refused, which shows that it arrived. In a process of
        its own, in case it is not.
        """
        if served("cusparselt"):
            run_apart(REFUSED)

    @pytest.mark.gpu
    @pytest.mark.parametrize("training", [False, True])
    def test_measuring_remembers_what_it_found(training):
        if not served("cusparselt"):
            return
        weight = sparse_layer(512, 1024).to("cuda", torch.bfloat16).masked_weight
        call = Call(256, torch.bfloat16, weight.device)
        searched = {}
        timing = measure(
            weight, None, {call: 2}, "cusparselt", training=training, searched=searched
        )
        assert timing.failure is None
        shapes = {(product.rows, product.cols) for product in searched}
        assert shapes == ({(512, 1024), (1024, 512)} if training else {(512, 1024)})
        found = [
            recall(
                timing.algorithms, machine_at(weight.device.index), call.dtype, call.tokens, back
            )
            for back in (False, True)
        ]
        assert not set(found) & set(timing.wrong)
        assert len(timing.algorithms) == 6
        assert (timing.algorithms[-1] == -1) != training

    @pytest.mark.gpu
    def test_times_of_the_device_and_the_host():
        x = torch.randn(64, 64, device="cuda")
        quick, waiting = call_times(
            [lambda i: x @ x, lambda i: (x @ x).sum().item()], x.device, rotation=2, repeats=3
        )
        for taken in (quick, waiting):
            assert taken.device_us > 0
            assert taken.in_use_us == max(taken.device_us, taken.host_us)

    GRAPHS = """
import torch
from nmsolve.torch.dispatch.timing import graph_medians_us, medians_us
x = torch.randn(64, 64, device="cuda")
waits = lambda i: (x @ x).sum().item()                        # torch knows that it waits
# torch does not: the capture breaks
hides = lambda i: (x @ x, torch.cuda.current_stream().synchronize())
draws = lambda i: torch.rand_like(x)
multiplies = lambda i: x @ x
times = graph_medians_us([waits, hides, multiplies, draws], x.device, rotation=2, repeats=3)
assert times[0] is None and times[1] is None and times[2] > 0 and times[3] > 0, times
assert len(set(torch.rand(100, device="cuda").tolist())) > 90
assert torch.cuda.current_stream() == torch.cuda.default_stream()
assert medians_us([waits, hides, multiplies, draws], x.device, repeats=3)[0] > 0
again = graph_medians_us([multiplies], x.device, repeats=3)
assert again[0] > 0
torch.cuda.empty_cache()
torch.cuda.synchronize()
"""

    @pytest.mark.gpu
    def test_calls_that_cannot_be_captured_do_no_harm():
        """In a process of its own, in case they do."""
        run_apart(GRAPHS)

    @pytest.mark.gpu
    @pytest.mark.parametrize("backend", SPARSE_BACKENDS)
    def test_products_are_captured(backend):
        if not served(backend):
            return
        x, w, mask, b = (t.detach() for t in operands(64, 128, 256, torch.bfloat16, "cuda"))
        packed = pack_unchecked(torch.where(mask, w, 0), backend)
        (taken,) = graph_medians_us(
            [lambda i: packed_linear(x, packed.packed, packed.meta, b, (128, 256), backend)],
            x.device,
            repeats=3,
        )
        assert taken is None or taken > 0
