"""PackedLinear: the masked linear's numbers, gradients of the input, copies."""

import copy

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

import nmsolve
from nmsolve.torch.dispatch.availability import _said
from nmsolve.torch.dispatch.packed_linear import PackedLinear, packed_product_grad_input
from nmsolve.torch.dispatch.packing import pack_unchecked
from tests.dispatch.layers import mask_of, packed_layer, sparse_layer


def test_a_packed_layer_is_a_copy():
    linear = nn.Linear(8, 8)
    with torch.no_grad():
        linear.weight.copy_(torch.eye(8))
    packed = PackedLinear.from_linear(linear, "dense")
    with torch.no_grad():
        linear.weight.fill_(1.0)
    assert int(packed.weight.count_nonzero()) == 8


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


def test_layers_that_earlier_versions_pickled_are_read():
    layer = packed_layer()
    state = layer.__getstate__()
    stored = state.pop("_stored")
    del state["_packed"]
    old = PackedLinear.__new__(PackedLinear)
    old.__setstate__(state | {"_dense": stored, "_values": None})
    x = torch.randn(2, 8)
    assert torch.equal(old(x), layer(x))
    assert set(vars(old)) == set(vars(layer))


def test_packed_layer_stays_dense_on_a_cpu_and_says_so_once(recwarn):
    _said.discard("masked dense")
    with pytest.warns(
        UserWarning, match="keeps 2:4 weights dense where cusparselt cannot serve; here: .*float32"
    ):
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
    torch.library.opcheck(
        packed_product_grad_input,
        (torch.randn(3, 32).half(), packed.packed, packed.meta, 32, 64, "cutlass"),
    )
