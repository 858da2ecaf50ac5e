"""Erdős–Rényi-kernel densities: by hand, by what they have to satisfy, and against bisection."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nmsolve.torch.allocation.erk import erk_densities
from reference import domino as oracle

SHAPES = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 300), st.integers(1, 300)),
        st.tuples(st.integers(1, 64), st.integers(1, 64), st.integers(1, 7), st.integers(1, 7)),
    ),
    min_size=1,
    max_size=8,
)


def test_by_hand():
    # 8·16 + 32·32 weights, a quarter of them is 288; the dimensions sum up to 24 and 64: ε = 288 /
    # 88.
    assert erk_densities([(8, 16), (32, 32)], 0.25) == pytest.approx(
        [288 / 88 * 24 / 128, 288 / 88 * 64 / 1024]
    )
    # The kernel counts with the channels: (4 + 4 + 3 + 3) / 144.
    assert erk_densities([(4, 4, 3, 3), (12, 12)], 0.5) == pytest.approx(
        [144 / 38 * 14 / 144, 144 / 38 * 24 / 144]
    )


def test_small_layers_are_dense():
    # ε = 145 / 36 would keep 4 · 4 / 4 of the first: it is dense, and the second keeps what is left
    # of half of all.
    assert erk_densities([(2, 2), (16, 16)], 0.5) == pytest.approx([1.0, (130 - 4) / 256])


def test_a_layer_that_is_dense_only_because_others_are():
    shapes = [(2, 2)] * 10 + [(10, 10), (30, 30)]
    # With all of them ε = 520 / 120, of which (10, 10) keeps 13 / 15; without the dense ones 480 /
    # 80, and it would keep 6 / 5.
    assert erk_densities(shapes, 0.5) == pytest.approx([1.0] * 11 + [(520 - 40 - 100) / 900])


@pytest.mark.parametrize("density", [1e-3, 0.2, 0.9, 1.0])
def test_equal_layers_are_equal(density):
    assert erk_densities([(8, 8)] * 3, density) == pytest.approx([density] * 3)


@given(SHAPES, st.floats(1e-3, 1.0))
def test_all_densities(shapes, density):
    found = erk_densities(shapes, density)
    sizes = [math.prod(shape) for shape in shapes]
    assert all(0 < d <= 1 for d in found)
    assert sum(d * size for d, size in zip(found, sizes, strict=True)) == pytest.approx(
        density * sum(sizes), rel=1e-9
    )
    assert found == pytest.approx(oracle.erk(shapes, density), rel=1e-6)
    partial = [
        d * size / sum(shape) for d, size, shape in zip(found, sizes, shapes, strict=True) if d < 1
    ]
    assert partial == pytest.approx(
        [partial[0]] * len(partial) if partial else []
    )  # one ε for all that are not dense
