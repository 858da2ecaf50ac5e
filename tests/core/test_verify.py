"""`nmsolve.verify` against counts by plain loops."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import nmsolve
from tests.core.families import parse

PATTERNS = ("2:4", "<=2:4", "1:4", "3:4", "2:4T", "<=2:4T", "1:2T", "<=1:2T", "3:3T", "1:1")


def count(mask, pattern, exactly):
    """Violated groups, groups, and the first violated one (rows before columns), of one matrix that
    blocks tile.
    """
    rows, cols = mask.shape
    violations, groups, first = 0, 0, None
    for i in range(rows):
        for start in range(0, cols, pattern.m):
            kept = sum(bool(mask[i, j]) for j in range(start, start + pattern.m))
            groups += 1
            if kept > pattern.n or (exactly and kept < pattern.n):
                violations += 1
                first = first or ((i, start), kept)
    if pattern.transposable:
        for start in range(0, rows, pattern.m):
            for j in range(cols):
                kept = sum(bool(mask[i, j]) for i in range(start, start + pattern.m))
                groups += 1
                if kept > pattern.n or (exactly and kept < pattern.n):
                    violations += 1
                    first = first or ((start, j), kept)
    return violations, groups, first


@pytest.mark.parametrize("text", PATTERNS)
@settings(max_examples=30)
@given(data=st.data())
def test_masks(text, data):
    pattern = parse(text)
    mask = data.draw(arrays(bool, (2 * pattern.rows, 2 * pattern.m)))
    violations, groups, first = count(mask, pattern, not pattern.at_most)
    report = nmsolve.verify(mask, text)
    assert (report.violations, report.groups, report.first) == (violations, groups, first)
    assert report.ok == (violations == 0) == bool(report)
    assert report.density == mask.mean()
    assert report.shape == mask.shape
    assert str(report.pattern) == text
    assert text in str(report)


@pytest.mark.parametrize("text", PATTERNS)
@settings(max_examples=20)
@given(data=st.data())
def test_weights_have_at_most_n_nonzeros(text, data):
    pattern = parse(text)
    W = data.draw(
        arrays(
            np.int8, (2 * pattern.rows, 2 * pattern.m), elements=st.sampled_from([0, 0, 1, -128])
        )
    )
    violations, groups, first = count(W != 0, pattern, False)
    bits = W.astype(ml_dtypes.bfloat16).view(np.uint16).view(nmsolve.bfloat16)
    for weights in (
        W,
        W.astype(np.float32),
        W.astype(np.float16),
        W.astype(ml_dtypes.bfloat16),
        bits,
        W * -0.0 + W,
    ):
        report = nmsolve.verify(weights, text)
        assert (report.violations, report.groups, report.first) == (violations, groups, first)


def test_every_2_4T_block_in_turn():
    """All 65,536 masks of a 4 × 4 block at once, against the number that is known: 90 hold exactly,
    7343 at most.
    """
    masks = (np.arange(65536)[:, None] >> np.arange(16) & 1).astype(bool).reshape(-1, 4, 4)
    lines = np.concatenate([masks.sum(1), masks.sum(2)], axis=1)
    exactly, fewer = (lines == 2).all(1), (lines <= 2).all(1)
    assert (exactly.sum(), fewer.sum()) == (90, 7343)
    for mask, ok in list(zip(masks, exactly, strict=True))[::13]:
        assert nmsolve.verify(mask, "2:4T").ok == ok
    for mask in masks[exactly]:
        assert nmsolve.verify(mask, "2:4T").ok
    for mask, ok in list(zip(masks, fewer, strict=True))[::17]:
        assert nmsolve.verify(mask, "2:4T", at_most=True).ok == ok
        assert nmsolve.verify(mask.astype(np.float32), "2:4T").ok == ok


def test_a_mask_that_keeps_less_is_not_exact_but_its_weights_are_fine():
    mask = np.zeros((4, 4), bool)
    assert not nmsolve.verify(mask, "2:4T").ok
    assert not nmsolve.verify(mask, "2:4").ok
    assert nmsolve.verify(mask, "2:4", at_most=True).ok
    assert nmsolve.verify(mask.astype(np.float32), "2:4").ok


def test_rows_alone_are_not_transposable():
    mask = np.tile([True, True, False, False], (4, 1))
    assert nmsolve.verify(mask, "2:4").ok
    report = nmsolve.verify(mask, "2:4T")
    assert report.violations == 4
    assert report.first == ((0, 0), 4)


def test_a_block_is_a_tile_and_not_a_run_of_one_row():
    """16 consecutive entries of a row that would hold as a reshaped 4 × 4 block."""
    run = np.array([[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]], bool)
    mask = np.tile(run.reshape(1, 16), (4, 1))
    assert nmsolve.verify(run, "2:4T").ok
    assert not nmsolve.verify(mask, "2:4T").ok


def test_batches():
    masks = nmsolve.solve(np.random.default_rng(0).standard_normal((2, 3, 8, 16)), "4:8T").mask
    report = nmsolve.verify(masks, "4:8T")
    assert report.ok
    assert report.groups == 6 * (16 + 16)
    masks[1, 2, 5, 9] = not masks[1, 2, 5, 9]
    report = nmsolve.verify(masks, "4:8T")
    assert report.violations == 2
    assert report.first[0] == (1, 2, 5, 8)
    assert "[1, 2, 5, 8]" in str(report)


def test_strides():
    mask = nmsolve.solve(np.random.default_rng(0).standard_normal((16, 32)), "4:8T").mask
    for view in (
        mask.T,
        mask[::-1],
        mask[:, ::-1],
        np.asfortranarray(mask),
        np.broadcast_to(mask, (3, 16, 32)),
    ):
        assert nmsolve.verify(view, "4:8T").ok


def test_padding():
    mask = np.ones((5, 6), bool)
    assert not nmsolve.verify(mask, "2:4T", padding="dense").ok
    mask[:4, :4] = [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    assert nmsolve.verify(mask, "2:4T", padding="dense").ok
    assert not nmsolve.verify(mask, "2:4T", padding="pad").ok
    mask[4, 0] = False
    assert not nmsolve.verify(mask, "2:4T", padding="dense").ok
    edge = np.zeros((5, 6), bool)
    edge[:4, :4] = mask[:4, :4]
    assert nmsolve.verify(edge, "2:4T", padding="pad").ok
    edge[4, :3] = True
    assert not nmsolve.verify(edge, "2:4T", padding="pad").ok


@pytest.mark.parametrize("padding", ["pad", "dense"])
def test_weights_with_padding(padding):
    W = np.random.default_rng(0).standard_normal((10, 13)).astype(np.float32)
    for text in ("2:4", "2:4T", "4:8T"):
        result = nmsolve.solve(W, text, padding=padding)
        assert nmsolve.verify(W * result.mask, text, padding=padding).ok


def test_nan_counts_as_kept():
    W = np.array([[np.nan, np.inf, 1.0, 0.0]])
    assert not nmsolve.verify(W, "2:4").ok
    assert nmsolve.verify(W, "3:4").ok
