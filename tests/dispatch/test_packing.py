"""2:4 checks against the core's verify; round trips through torch's own converters; nothing that is
not 2:4 is packed.
"""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.sparse._semi_structured_conversions import sparse_semi_structured_to_dense_cutlass

import nmsolve
from nmsolve.torch.dispatch import packing
from nmsolve.torch.dispatch.availability import SPARSE_BACKENDS, why_not
from nmsolve.torch.dispatch.packing import (
    aligned,
    check_round_trip,
    column_slices,
    columns_by_products,
    is_2to4,
    pack,
    pack_unchecked,
    packed_linear,
    unpack,
    wrap,
)

DTYPES = (torch.float16, torch.bfloat16)


def weights_2to4(rows, cols, dtype, seed, spare=0.0, ties=False):
    """Random 2:4 weights: two of four at random, of which a share `spare` is zero (−0 among
    them).
    """
    g = torch.Generator().manual_seed(seed)
    kept = torch.rand(rows, cols // 4, 4, generator=g).argsort(-1).argsort(-1) < 2
    kept &= torch.rand(kept.shape, generator=g) >= spare
    values = (
        torch.randint(1, 3, kept.shape, generator=g)
        if ties
        else torch.randn(kept.shape, generator=g)
    )
    return (values.to(dtype) * kept).reshape(rows, cols)  # negative × False is −0


@given(
    st.integers(1, 3),
    st.integers(1, 3),
    st.sampled_from(DTYPES),
    st.integers(0, 999),
    st.sampled_from([0, 0.3, 1]),
    st.booleans(),
)
def test_round_trip_of_the_cutlass_layout(rows, cols, dtype, seed, spare, ties):
    weight = weights_2to4(32 * rows, 64 * cols, dtype, seed, spare, ties)
    assert is_2to4(weight)
    packed = pack_unchecked(weight, "cutlass")
    check_round_trip(packed, weight)
    torch.testing.assert_close(unpack(packed), weight, rtol=0, atol=0)
    torch.testing.assert_close(
        sparse_semi_structured_to_dense_cutlass(packed.packed, packed.meta), weight, rtol=0, atol=0
    )
    again = unpack(wrap(tuple(weight.shape), packed.packed, packed.meta, "cutlass"))
    torch.testing.assert_close(again, weight, rtol=0, atol=0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("pattern", ["2:4", "2:4T"])
def test_round_trip_of_solved_masks(pattern, dtype):
    weight = torch.randn(64, 128, generator=torch.Generator().manual_seed(0)).to(dtype)
    mask = torch.from_numpy(nmsolve.solve(weight.float().numpy(), pattern).mask)
    sparse = torch.where(mask, weight, 0)
    sides = [sparse, sparse.t().contiguous()] if pattern == "2:4T" else [sparse]
    for side in sides:
        torch.testing.assert_close(unpack(pack_unchecked(side, "cutlass")), side, rtol=0, atol=0)


@given(st.integers(1, 40_000), st.integers(1, 40_000))
def test_slices_are_every_column_once_and_bounded(rows, cols):
    rows, cols = 16 * rows, 16 * cols
    slices = column_slices(rows, cols)
    assert [column for start, stop in slices for column in (start, stop)] == [
        0, *(bound for _, stop in slices[:-1] for bound in (stop, stop)), cols
    ]  # fmt: skip
    widths = {stop - start for start, stop in slices}
    assert all(width % 16 == 0 for width in widths)
    assert max(widths) * (rows + cols) <= 2**26 or widths == {16}
    assert (
        len(slices) == 1 or (max(widths) + 16) * (rows + cols) > 2**26
    )  # no more slices than it takes


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("limit", [1, 2**13, 2**26])
def test_a_matrix_by_its_products(dtype, limit, monkeypatch):
    """Bit for bit, in one slice as in many; the last one narrower."""
    monkeypatch.setattr(packing, "_UNPACKED_AT_ONCE", limit)
    weight = weights_2to4(32, 80, dtype, 0, 0.3).abs()
    widths = []

    def multiply(identity):
        widths.append(identity.shape[1])
        assert identity.shape[0] == 80
        assert identity.dtype == dtype
        return (weight.float() @ identity.float()).to(dtype)

    dense = columns_by_products(multiply, 32, 80, dtype, torch.device("cpu"))
    assert torch.equal(dense.view(torch.int16), weight.view(torch.int16))
    assert widths == {1: [16] * 5, 2**13: [64, 16], 2**26: [80]}[limit]


def test_a_round_trip_that_fails_is_found():
    weight = weights_2to4(32, 64, torch.float16, 0)
    packed = pack_unchecked(weight, "cutlass")
    dense = torch.ones(32, 64, dtype=torch.float16)
    with pytest.raises(nmsolve.SolverError, match="does not survive packing"):
        check_round_trip(packed, dense)
    with pytest.raises(nmsolve.SolverError, match="does not survive packing"):
        check_round_trip(pack_unchecked(dense, "cutlass"), dense)


@given(st.integers(1, 4), st.integers(1, 4), st.integers(0, 999), st.floats(0, 1), st.booleans())
def test_the_check_agrees_with_the_core(rows, cols, seed, share, transposable):
    weight = torch.from_numpy(
        (np.random.default_rng(seed).random((4 * rows, 4 * cols)) < share).astype(np.float32)
    )
    report = is_2to4(weight, transposable=transposable)
    expected = nmsolve.verify(weight.numpy(), "2:4T" if transposable else "2:4")
    assert report == expected
    mask = is_2to4(weight != 0, transposable=transposable)
    assert (mask.violations, mask.first) == (expected.violations, expected.first)


@pytest.mark.parametrize("shape", [(4, 6), (0, 4), (4,), (1, 4, 4)])
def test_the_check_refuses_shapes(shape):
    with pytest.raises(nmsolve.InputError, match="multiple of 4, got shape"):
        is_2to4(torch.zeros(shape))
    with pytest.raises(nmsolve.InputError, match="multiples of 4"):
        is_2to4(torch.zeros(6, 4), transposable=True)


def test_pack_says_why_not():
    with pytest.raises(nmsolve.InputError, match=r"for cutlass: .* on cpu"):
        pack(weights_2to4(32, 64, torch.float16, 0), "cutlass")
    with pytest.raises(nmsolve.InputError, match="float32 is 1:2"):
        pack(torch.zeros(32, 64), "cusparselt")


def test_operands_are_aligned():
    flat = torch.arange(100, dtype=torch.float16)
    base = flat.data_ptr() % 16 // 2
    off = flat[8 - base + 1 :][:16].view(4, 4)
    assert off.data_ptr() % 16
    assert aligned(off).data_ptr() % 16 == 0
    assert torch.equal(aligned(off), off)
    assert torch.equal(aligned(off.t()), off.t())
    assert aligned(off.t()).is_contiguous()


if torch.cuda.is_available():

    @pytest.mark.parametrize("shape", [(128, 32768), (16384, 4096), (32, 64)])
    @pytest.mark.parametrize("backend", SPARSE_BACKENDS)
    @pytest.mark.gpu
    def test_unpacking_is_bounded_and_exact(backend, shape):
        weight = weights_2to4(*shape, torch.bfloat16, 0, 0.1).to("cuda")
        if why_not(backend, shape, torch.bfloat16, "cuda") is not None:
            return
        packed = pack_unchecked(weight, backend)
        torch.cuda.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        dense = unpack(packed)
        peak = torch.cuda.max_memory_allocated() - before
        torch.testing.assert_close(dense, weight, rtol=0, atol=0)
        if (
            backend == "cusparselt"
        ):  # the weight itself, one slice, and as much again for what the kernels ask for
            assert peak <= 2 * weight.numel() * 3 + 2 * 2 * 2**26

    @pytest.mark.parametrize("backend", SPARSE_BACKENDS)
    @pytest.mark.parametrize("dtype", DTYPES)
    @pytest.mark.gpu
    def test_packed_products(dtype, backend):
        device = "cuda"
        reason = why_not(backend, (128, 192), dtype, device)
        weight = weights_2to4(128, 192, dtype, 0, 0.1).to(device)
        if reason is not None:
            with pytest.raises(nmsolve.InputError, match="cannot pack"):
                pack(weight, backend)
            return
        with pytest.raises(nmsolve.InputError, match="only a 2:4 weight can be packed"):
            pack(torch.ones_like(weight), backend)
        infinite = weight.clone()
        infinite[3] = torch.zeros(192)
        infinite[3, 5] = float("inf")
        with pytest.raises(nmsolve.InputError, match=r"index \[3, 5\]"):
            pack(infinite, backend)
        packed = pack(weight, backend)
        torch.testing.assert_close(unpack(packed), weight, rtol=0, atol=0)
        g = torch.Generator(device).manual_seed(0)
        bias = torch.randn(128, generator=g, device=device).to(dtype)
        for tokens in (0, 1, 7, 8, 33):
            x = torch.randn(192, tokens, generator=g, device=device).to(dtype).t()
            for b in (bias, None):
                y = packed_linear(x, packed.packed, packed.meta, b, (128, 192), backend)
                assert y.is_contiguous()
                torch.testing.assert_close(
                    y, torch.nn.functional.linear(x, weight, b), rtol=2e-2, atol=5e-2
                )


def test_what_is_not_packed_is_refused():
    with pytest.raises(nmsolve.InputError, match="got a Tensor"):
        unpack(torch.zeros(4, 4))
