"""Mask diversity against counting by hand, by brute force and by known values."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import nmsolve
from nmsolve.mask_diversity import _asymptotic, count_blocks
from reference.brute import blocks

KNOWN = {
    ("4:8T", (8, 8)): 116_963_796_250,
    ("2:8T", (8, 8)): 187_530_840,
    ("2:4T", (4, 4)): 90,
    ("3:6T", (6, 6)): 297_200,
    ("6:12T", (12, 12)): 64_051_375_889_927_380_035_549_804_336,
    ("<=2:4T", (4, 4)): 7343,
}


@pytest.mark.parametrize(("pattern", "shape"), KNOWN)
def test_known_counts(pattern, shape):
    found = nmsolve.diversity(pattern, shape=shape)
    assert found.exact
    assert found.count == KNOWN[pattern, shape]
    assert found.log2 == pytest.approx(math.log2(found.count), rel=1e-15)


@pytest.mark.parametrize("m", [1, 2, 3, 4])
@pytest.mark.parametrize("at_most", [False, True])
def test_blocks_against_brute_force(m, at_most):
    for n in range(1, m + 1):
        assert count_blocks(n, m, at_most) == len(blocks(n, m, at_most)), (n, m)


@pytest.mark.parametrize("m", [5, 6, 8])
def test_symmetries_of_blocks(m):
    assert count_blocks(1, m, False) == math.factorial(m)
    for n in range(1, m):
        assert count_blocks(n, m, False) == count_blocks(m - n, m, False)


@given(m=st.integers(1, 8), data=st.data())
def test_row_wise(m, data):
    n = data.draw(st.integers(1, m))
    groups = data.draw(st.integers(1, 6))
    shape = (groups, m)
    assert nmsolve.diversity(nmsolve.Pattern(n, m), shape).count == math.comb(m, n) ** groups
    expected = sum(math.comb(m, k) for k in range(n + 1)) ** groups
    assert nmsolve.diversity(nmsolve.Pattern(n, m, at_most=True), shape).count == expected


def test_unstructured_and_blocks():
    assert nmsolve.diversity("2:4", (8, 8), unstructured=True).count == math.comb(64, 32)
    assert nmsolve.diversity("<=1:4", (4, 4), unstructured=True).count == sum(
        math.comb(16, k) for k in range(5)
    )
    assert nmsolve.diversity("2:4", (8, 16), block=(4, 2)).count == 6 ** (2 * 2)
    assert nmsolve.diversity("2:4T", (8, 8), block=(2, 2)).count == 90


def test_large_tensors_agree_with_small_ones():
    """log2 is additive over blocks, whichever way it is computed."""
    one = nmsolve.diversity("4:8T", (8, 8))
    many = nmsolve.diversity("4:8T", (8192, 8192))
    assert many.count is None
    assert many.exact
    assert many.log2 == pytest.approx(one.log2 * 1024**2, rel=1e-14)
    assert many.bits_per_weight == pytest.approx(one.bits_per_weight, rel=1e-14)


@pytest.mark.parametrize("pattern", ["1:4", "<=1:4", pytest.param("<=3:4", marks=pytest.mark.long)])
def test_logarithms_agree_with_counts(pattern):
    """Above the size up to which binomials are taken exactly, they come from lgamma."""
    small, large = (
        nmsolve.diversity(pattern, (side, 128), unstructured=True).bits_per_weight
        for side in (104, 112)
    )
    assert small == pytest.approx(large, rel=1e-3)


def test_logarithms_beyond_half():
    """Of three in four entries at most, nearly all masks are allowed."""
    found = nmsolve.diversity("<=3:4", (112, 128), unstructured=True)
    assert found.bits_per_weight == pytest.approx(1.0, rel=1e-3)


def asymptotic_error_covers(n, m, at_most):
    log2, error = _asymptotic(n, m, at_most)
    assert abs(log2 - math.log2(count_blocks(n, m, at_most))) <= error, (n, m)


@pytest.mark.parametrize("at_most", [False, True])
def test_asymptotic_error_covers_exact_counts(at_most):
    for m in range(3, 13):
        for n in range(1 if at_most else 2, m if m <= 7 else 4):
            asymptotic_error_covers(n, m, at_most)


@pytest.mark.long
@pytest.mark.parametrize("at_most", [False, True])
def test_asymptotic_error_covers_more_exact_counts(at_most):
    for n in range(4, 8):
        asymptotic_error_covers(n, 8, at_most)


def test_out_of_reach_is_said():
    far = nmsolve.diversity("16:32T", (32, 32))
    assert not far.exact
    assert far.count is None
    assert 0 < far.log2_error < 0.02
    assert far.log2 < far.paper_log2


def test_papers_ordering_reverses():
    row, block = nmsolve.diversity("2:4", (8, 8)), nmsolve.diversity("4:8T", (8, 8))
    assert row.count > block.count
    assert row.paper_log2 < block.paper_log2
    assert 2**block.paper_log2 == pytest.approx(17_557_585_920_000)
    assert "116963796250" in str(block)
    assert np.isclose(block.bits_per_weight * 64, block.log2)


@pytest.mark.parametrize("shape", [(8,), (8, 6), (6, 8), (0, 8), "88", (8.5, 8), None])
def test_bad_shapes(shape):
    with pytest.raises(nmsolve.InputError, match="4:8T"):
        nmsolve.diversity("4:8T", shape)


def test_shapes_beyond_what_logarithms_resolve():
    """No term of an at-most count is larger than its largest; rounding that said so ended in a bare
    OverflowError.
    """
    for side in (2**30, 2**40, 2**50):
        found = nmsolve.diversity("<=2:4", (side, side), unstructured=True)
        assert abs(found.bits_per_weight - 1.0) < 1e-9
        assert found.count is None
