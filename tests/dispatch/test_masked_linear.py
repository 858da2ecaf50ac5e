"""masked_linear: numbers and gradients against dense autograd, transforms, compilers, bad
operands.
"""

import subprocess
import sys

import pytest
import torch

import nmsolve
from nmsolve.torch.dispatch.availability import SPARSE_BACKENDS, _said
from nmsolve.torch.dispatch.masked_product import (
    masked_linear,
    sparse_linear,
    sparse_linear_grad_input,
)
from tests.dispatch.layers import DEVICES, operands, operators_of, reference


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
    assert {
        name for name, tensor in (("x", x), ("w", w), ("b", b)) if tensor.grad is not None
    } == set(wanted)
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
        return (
            torch.nn.functional.linear(
                x, masked.detach() + w - w.detach() if through else masked, b
            )
            .square()
            .sum()
        )

    tangents = torch.randn_like(x), torch.randn_like(w)
    torch.testing.assert_close(
        torch.func.jvp(ours, (x, w), tangents), torch.func.jvp(dense, (x, w), tangents)
    )
    torch.testing.assert_close(
        torch.func.grad(ours, (0, 1))(x, w), torch.func.grad(dense, (0, 1))(x, w)
    )
    torch.testing.assert_close(torch.func.jacrev(ours)(x, w), torch.func.jacfwd(dense)(x, w))
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangents[0])
        out = [torch.autograd.forward_ad.unpack_dual(f(dual, w)).tangent for f in (ours, dense)]
    torch.testing.assert_close(*out)


def test_odd_strides_and_expanded_gradients():
    x, w, mask, b = operands(6)
    strided = torch.randn(8, 2, 3).permute(1, 2, 0)
    torch.testing.assert_close(masked_linear(strided, w, mask, b), reference(strided, w, mask, b))
    torch.testing.assert_close(
        masked_linear(x[::2], w.t().contiguous().t(), mask, b), reference(x[::2], w, mask, b)
    )
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
    with pytest.warns(
        UserWarning, match=r"masked dense weight where \w+ cannot serve; here: float32 is 1:2"
    ):
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
    torch.library.opcheck(
        sparse_linear_grad_input, (torch.randn(5, 12), w, mask, "dense", straight_through)
    )


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
            torch.autograd.grad(compiled(x, w, b), (x, w, b)),
            torch.autograd.grad(step(x, w, b), (x, w, b)),
            strict=True,
        ):
            torch.testing.assert_close(ours, theirs)
    torch._dynamo.reset()


def test_importing_does_not_load_the_compiler():
    heavy = ("torch._dynamo", "triton", "numba", "scipy", "transformers", "lightning")
    code = f"import sys, nmsolve.torch; print([m for m in sys.modules if m.startswith({heavy})])"
    assert (
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        ).stdout.strip()
        == "[]"
    )
