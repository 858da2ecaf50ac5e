"""Floats and integers of a byte or less, and bfloat16 of any byte order: what they are worth, and
their masks.
"""

from __future__ import annotations

import tracemalloc

import ml_dtypes
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import nmsolve
from nmsolve import elements
from tests.core.small_types import SMALL_FLOATS, SMALL_INTEGERS, SMALL_TYPES, small

PATTERNS = ["2:4", "<=4:8", "2:4T", "<=2:4T", "4:8T"]


def marked(W: np.ndarray) -> np.ndarray:
    """The same bytes under the name of their type alone, as they come without ml_dtypes."""
    return W.view(np.uint8).view(elements.as_type(W.dtype.name))


@pytest.mark.parametrize("name", SMALL_TYPES)
def test_every_code_is_worth_what_ml_dtypes_says(name: str) -> None:
    found, codes = elements.values(name), np.arange(256, dtype=np.uint8)
    known = codes.view(getattr(ml_dtypes, name)).astype(np.float32)
    numbers = ~np.isnan(known)
    assert np.array_equal(np.isnan(found), ~numbers)
    assert np.array_equal(found.view(np.uint32)[numbers], known.view(np.uint32)[numbers])
    if hasattr(torch, name) and name.startswith("float8"):
        theirs = torch.from_numpy(codes).view(getattr(torch, name)).float().numpy()
        assert np.array_equal(found, theirs, equal_nan=True)


def test_nothing_of_a_byte_in_ml_dtypes_is_forgotten() -> None:
    types = [getattr(ml_dtypes, name) for name in dir(ml_dtypes)]
    names = [
        np.dtype(t).name
        for t in types
        if isinstance(t, type) and issubclass(t, np.generic) and np.dtype(t).itemsize == 1
    ]
    assert sorted(names) == sorted(SMALL_TYPES)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("name", SMALL_FLOATS)
@settings(max_examples=4)
@given(seed=st.integers(0, 99), signed=st.booleans())
def test_small_floats_are_solved_as_their_float32(
    name: str, text: str, seed: int, signed: bool
) -> None:
    W = small(name, (16, 32), seed)
    wide = W.astype(np.float32)
    scored = {"scores": W} if signed else {}
    result = nmsolve.solve(W, text, duals=True, **scored)
    same = nmsolve.solve(wide, text, duals=True, **({"scores": wide} if signed else {}))
    assert np.array_equal(result.mask, same.mask)
    assert (result.objective, result.bound, result.status) == (
        same.objective,
        same.bound,
        same.status,
    )
    assert np.array_equal(result.duals.rows, same.duals.rows)
    assert result.verify(W, *scored.values()).ok
    assert same.verify(marked(W), *(marked(array) for array in scored.values())).ok
    assert np.array_equal(nmsolve.solve(marked(W), text).mask, nmsolve.solve(wide, text).mask)


@pytest.mark.parametrize("text", PATTERNS)
@pytest.mark.parametrize("name", SMALL_INTEGERS)
def test_small_integers_are_solved_as_wider_ones(name: str, text: str) -> None:
    W = small(name, (16, 32), 1)
    for scored in (False, True):
        found, same, wide = (
            nmsolve.solve(A, text, **({"scores": A} if scored else {}))
            for A in (W, W.astype(np.int8), W.astype(np.float32))
        )
        assert np.array_equal(found.mask, same.mask)
        assert (found.objective, found.bound, found.status) == (
            same.objective,
            same.bound,
            same.status,
        )
        assert np.array_equal(found.mask, wide.mask)
        assert found.objective == wide.objective


@pytest.mark.parametrize("method", ["greedy", "cover", "min_cost_flow"])
@pytest.mark.parametrize("name", ["float8_e4m3fn", "float8_e5m2", "int4"])
def test_every_method_takes_them(name: str, method: str) -> None:
    W = small(name, (8, 24), 2)
    found, same = (
        nmsolve.solve(W, "2:4T", method=method),
        nmsolve.solve(W.astype(np.float32), "2:4T", method=method),
    )
    assert found.objective == same.objective
    assert np.array_equal(found.mask, same.mask)


@pytest.mark.parametrize("padding", ["pad", "dense"])
def test_edges_views_and_batches(padding: str) -> None:
    W = small("float8_e5m2", (3, 13, 21), 3)
    for view in (W, W[:, ::-1, ::2], np.moveaxis(W, 0, 1), np.asfortranarray(W[0])):
        found, same = (
            nmsolve.solve(A, "4:8T", padding=padding) for A in (view, view.astype(np.float32))
        )
        assert np.array_equal(found.mask, same.mask)
        assert found.objective == same.objective
        assert found.verify(view).ok


#: A code that is no number, by type, and how it reads.
WRONG = {
    "float8_e3m4": [(0x70, "inf"), (0xF1, "nan")],
    "float8_e4m3": [(0x78, "inf"), (0x7F, "nan")],
    "float8_e5m2": [(0x7C, "inf"), (0xFC, "-inf"), (0x7E, "nan")],
    "float8_e4m3fn": [(0x7F, "nan"), (0xFF, "nan")],
    "float8_e4m3fnuz": [(0x80, "nan")],
    "float8_e4m3b11fnuz": [(0x80, "nan")],
    "float8_e5m2fnuz": [(0x80, "nan")],
    "float8_e8m0fnu": [(0xFF, "nan")],
}


@pytest.mark.parametrize("text", ["2:4", "2:4T", "4:8T"])
@pytest.mark.parametrize("name", WRONG)
def test_what_is_no_number_is_named_with_its_place(name: str, text: str) -> None:
    for code, value in WRONG[name]:
        W = small(name, (16, 24), 4)
        W.view(np.uint8)[5, 11] = W.view(np.uint8)[9, 2] = code
        for array in (W, marked(W)):
            with pytest.raises(
                nmsolve.InputError, match=rf"weights\[5, 11\] is {value}: pattern {text}"
            ):
                nmsolve.solve(array, text)
            with pytest.raises(nmsolve.InputError, match=rf"scores\[5, 11\] is {value}"):
                nmsolve.solve(np.ones((16, 24)), text, scores=array)
        with pytest.raises(nmsolve.InputError, match=r"\[5, 11\]"):
            nmsolve.solve(W[:, :21], text, padding="dense")


@pytest.mark.parametrize("name", SMALL_TYPES)
def test_verify_counts_what_is_not_zero(name: str) -> None:
    codes = np.arange(256, dtype=np.uint8).reshape(16, 16)
    W = codes.view(getattr(ml_dtypes, name))
    dense = W.astype(np.float32) != 0  # NaN is not zero
    for array in (W, marked(W), W[::-1, ::-1][::-1, ::-1]):
        report = nmsolve.verify(array, "1:4")
        assert report.density == dense.mean()
        assert report.violations == int((dense.reshape(16, 4, 4).sum(2) > 1).sum())
        assert np.array_equal(elements.nonzero(array), dense)


def test_a_minus_zero_is_a_zero_and_a_zero_that_does_not_exist_is_none() -> None:
    codes = np.full((4, 4), 0x80, np.uint8)
    assert nmsolve.verify(np.full((4, 4), -0.0, ml_dtypes.bfloat16), "1:4").density == 0
    assert nmsolve.verify(codes.view(ml_dtypes.float8_e4m3fn), "1:4").density == 0
    assert nmsolve.verify(codes.view(ml_dtypes.float8_e4m3fnuz), "1:4").density == 1  # NaN
    assert nmsolve.verify((codes - 128).view(ml_dtypes.float8_e8m0fnu), "1:4").density == 1  # 2⁻¹²⁷


@pytest.mark.parametrize("kind", [ml_dtypes.bfloat16, nmsolve.bfloat16], ids=["ml_dtypes", "bits"])
def test_bfloat16_of_the_other_byte_order(kind: object) -> None:
    W = np.random.default_rng(5).standard_normal((16, 24)).astype(ml_dtypes.bfloat16)
    W[:, ::3] = -0.0
    swapped = W.byteswap().view(np.dtype(kind).newbyteorder())
    for text in ("2:4", "4:8T"):
        found, same = nmsolve.solve(swapped, text), nmsolve.solve(W, text)
        assert np.array_equal(found.mask, same.mask)
        assert found.objective == same.objective
        assert found.verify(swapped).ok
    assert nmsolve.verify(swapped, "2:4") == nmsolve.verify(W, "2:4")
    W[3, 4] = np.nan
    with pytest.raises(nmsolve.InputError, match=r"weights\[3, 4\] is nan"):
        nmsolve.solve(W.byteswap().view(np.dtype(kind).newbyteorder()), "2:4")


@pytest.mark.parametrize("text", ["2:4", "2:4T"])
def test_no_buffer_is_larger_than_a_task(text: str) -> None:
    W = small("float8_e4m3fn", (4096, 2048), 6)
    nmsolve.solve(W[:64], text)
    tracemalloc.start()
    try:
        result = nmsolve.solve(W, text, threads=1)
        solved = tracemalloc.get_traced_memory()[1]
        tracemalloc.reset_peak()
        before = tracemalloc.get_traced_memory()[0]
        found = elements.nonzero(W)
        looked = tracemalloc.get_traced_memory()[1] - before
    finally:
        tracemalloc.stop()
    assert solved < result.mask.nbytes + 2**22  # a task in float32 is 1 MB
    assert looked < found.nbytes + 2**20


@pytest.mark.parametrize("name", [*SMALL_FLOATS, "bfloat16", "float16"])
def test_candidates_scored_in_any_float(name: str) -> None:
    dtype = getattr(ml_dtypes, name, name)
    scores = (
        small(name, (5, 6), 7)
        if name in SMALL_TYPES
        else np.random.default_rng(7).standard_normal((5, 6)).astype(dtype)
    )
    found, same = (
        nmsolve.remove_lowest(A, np.ones((5, 6), bool), 4)
        for A in (scores, scores.astype(np.float32))
    )
    assert np.array_equal(found, same)
    assert (found.sum(1) == 2).all()


def test_candidates_scored_by_what_is_no_float() -> None:
    scores = np.full((2, 6), 0x7F, np.uint8).view(ml_dtypes.float8_e4m3fn)
    with pytest.raises(nmsolve.InputError, match=r"scores\[0, 0\] is nan"):
        nmsolve.remove_lowest(scores, np.ones((2, 6), bool), 1)
    for wrong in (
        small("int4", (2, 6), 0),
        np.ones((2, 6), np.longdouble),
        np.ones((2, 6), "V1"),
        np.ones((2, 6), bool),
    ):
        with pytest.raises(nmsolve.InputError, match="float"):
            nmsolve.remove_lowest(wrong, np.ones((2, 6), bool), 1)
