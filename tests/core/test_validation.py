"""Bad input: the error of the contract, with shape, pattern, first bad index and remedy. Nothing
else may come out.
"""

import subprocess
import sys

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import nmsolve
from nmsolve import (
    InputError,
    MissingDependencyError,
    NMSolveError,
    Pattern,
    PatternError,
    SolverError,
)

GOOD = np.random.default_rng(0).standard_normal((16, 24)).astype(np.float32)
PATTERNS = ("2:4T", "<=2:4T", "4:8T", "<=4:8T", "2:4", "<=4:8")
DTYPES = {
    "float16": np.float16,
    "bfloat16": ml_dtypes.bfloat16,
    "bits": nmsolve.bfloat16,
    "float32": np.float32,
    "float64": np.float64,
    "big_endian": ">f4",
}


def message(error_type, *arguments, **options):
    with pytest.raises(error_type) as caught:
        nmsolve.solve(*arguments, **options)
    assert isinstance(caught.value, NMSolveError)
    assert not isinstance(caught.value, AssertionError)
    return str(caught.value)


def test_error_types():
    assert issubclass(PatternError, ValueError)
    assert issubclass(InputError, ValueError)
    assert issubclass(MissingDependencyError, ImportError)
    for error in (PatternError, InputError, MissingDependencyError, SolverError):
        assert issubclass(error, NMSolveError)


BAD_TEXTS = [
    "", " ", "2", ":", "2:", ":4", "2:4X", "2:4TT", "T2:4", "2:4 T x", "-1:4", "2:-4", "2.0:4",
    "2:4.0", "a:b", "2/4", "2:4:8",
    "<2:4", "<=", "=2:4", "0x2:4", "2:4T\x00", "²:4", "٢:٤", "nan:4", "1e0:4", "2:4t",
    "9" * 400 + ":4", "2:" + "9" * 5000,
]  # fmt: skip


@pytest.mark.parametrize("text", BAD_TEXTS, ids=lambda t: ascii(t[:12]))
def test_texts_that_are_no_pattern(text):
    for call in (
        Pattern.parse,
        nmsolve.methods,
        lambda t: nmsolve.solve(GOOD, t),
        lambda t: nmsolve.verify(GOOD, t),
    ):
        with pytest.raises(PatternError):
            call(text)


@settings(max_examples=200)
@given(text=st.text(alphabet="0123456789:T<=≤ x.-", max_size=9))
def test_any_text_is_a_pattern_or_an_error(text):
    try:
        pattern = Pattern.parse(text)
    except PatternError:
        return
    assert Pattern.parse(str(pattern)) == pattern
    assert 1 <= pattern.n <= pattern.m <= 64


@pytest.mark.parametrize(
    "thing", [None, 4, 2.4, (2, 4), [2, 4], b"2:4", Ellipsis, np.array([2, 4]), {"n": 2}], ids=repr
)
def test_things_that_are_no_pattern(thing):
    for call in (
        Pattern.parse,
        nmsolve.methods,
        lambda t: nmsolve.solve(GOOD, t),
        lambda t: nmsolve.verify(GOOD, t),
    ):
        with pytest.raises(PatternError):
            call(thing)


@pytest.mark.parametrize(
    "text", ["0:4", "5:4", "0:0", "1:0", "65:65", "2:65", "1:100000", "0:4T", "5:4T", "<=5:4T"]
)
def test_numbers_that_are_no_pattern(text):
    found = message(PatternError, GOOD, text)
    assert text.removeprefix("<=").removesuffix("T") in found
    n, m = text.removeprefix("<=").removesuffix("T").split(":")
    with pytest.raises(PatternError):
        Pattern(int(n), int(m))


@pytest.mark.parametrize(
    "numbers",
    [
        (2.0, 4),
        ("2", "4"),
        (None, 4),
        (True, 4),
        (2, 4.5),
        (np.nan, 4),
        (-1, 4),
        (2, -4),
        (2, None),
    ],
)
def test_numbers_of_another_kind(numbers):
    with pytest.raises(PatternError):
        Pattern(*numbers)


def test_flags_of_another_kind():
    for flags in ({"transposable": 1}, {"at_most": "yes"}, {"transposable": None}):
        with pytest.raises(PatternError):
            Pattern(2, 4, **flags)
    assert "at_most" in message(PatternError, GOOD, "2:4", at_most="yes")
    assert "at_most" in message(PatternError, GOOD, "2:4", at_most=1)


def test_patterns():
    assert Pattern(2, 4, transposable=True, at_most=False) == Pattern.parse("2:4T")
    assert str(Pattern.parse("2:4T")) == "2:4T"
    assert str(Pattern.parse(" <= 2:4T ")) == "<=2:4T"
    assert Pattern.parse("≤2:4") == Pattern(2, 4, at_most=True)
    assert Pattern(np.int64(2), np.int8(4)) == Pattern(2, 4)
    assert str(Pattern(np.int64(2), np.int8(4))) == "2:4"
    assert hash(Pattern(2, 4)) == hash(Pattern.parse("2:4"))
    for n in range(1, 65):
        for m in range(n, 65):
            for transposable in (False, True):
                for at_most in (False, True):
                    pattern = Pattern(n, m, transposable=transposable, at_most=at_most)
                    assert Pattern.parse(str(pattern)) == pattern


def with_bad(dtype, shape, places, bad):
    """Zeros and ones of a dtype with `bad` at the places."""
    W = np.random.default_rng(0).integers(0, 2, shape).astype(np.float32)
    for place in places:
        W[place] = bad
    if dtype is nmsolve.bfloat16:
        return W.astype(ml_dtypes.bfloat16).view(np.uint16).view(nmsolve.bfloat16)
    return W.astype(dtype)


@pytest.mark.parametrize(
    ("text", "kind", "method"),
    [(text, kind, "exact") for text in PATTERNS for kind in DTYPES]
    + [
        (text, kind, method)
        for text in PATTERNS
        for kind in ("float32", "bits")
        for method in nmsolve.methods(text)
        if method != "auto"
    ],
)
@settings(max_examples=6)
@given(data=st.data())
def test_not_finite(text, kind, method, data):
    shape = data.draw(st.sampled_from([(16, 24), (8, 160), (2, 3, 8, 16), (3, 24, 8), (1, 8, 8)]))
    places = data.draw(
        st.lists(st.tuples(*(st.integers(0, size - 1) for size in shape)), min_size=1, max_size=3)
    )
    bad = data.draw(st.sampled_from([np.nan, np.inf, -np.inf]))
    W = with_bad(DTYPES[kind], shape, places, bad)
    first = ", ".join(map(str, min(places)))
    found = message(InputError, W, text, method=method)
    assert f"weights[{first}]" in found
    assert str(bad) in found
    assert text in found
    assert str(shape) in found
    assert "nan_to_num" in found
    ones = np.ones(shape)
    assert f"scores[{first}]" in message(InputError, ones, text, scores=W, method=method)
    for view in (
        np.moveaxis(np.ascontiguousarray(np.moveaxis(W, -1, 0)), 0, -1),
        W[..., ::-1, ::-1],
    ):
        assert "finite" in message(InputError, view, text, method=method)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("padding", ["pad", "dense"])
@pytest.mark.parametrize("text", PATTERNS)
@settings(max_examples=10)
@given(data=st.data())
def test_not_finite_with_padding(text, padding, bad, data):
    shape = data.draw(st.sampled_from([(13, 19), (2, 9, 11), (3, 5), (1, 1)]))
    place = data.draw(st.tuples(*(st.integers(0, size - 1) for size in shape)))
    W = with_bad(np.float32, shape, [place], bad)
    assert f"weights[{', '.join(map(str, place))}]" in message(InputError, W, text, padding=padding)


def test_not_finite_among_many():
    W = np.ones((2048, 1024), np.float32)
    W[1999, 77] = np.nan
    W[2000, 3] = np.inf
    for text in ("2:4T", "4:8T", "2:4"):
        for threads in (1, 2):
            assert "weights[1999, 77] is nan" in message(InputError, W, text, threads=threads)


@pytest.mark.parametrize("kind", ["float32", "float64"])
@pytest.mark.parametrize("text", ["2:4", "<=2:4"])
def test_a_nan_that_no_group_would_keep(text, kind):
    """It is larger than nothing, and the sums of what is kept are finite."""
    W = np.ones((8, 64), kind)
    W[3, 5] = np.nan
    assert "weights[3, 5] is nan" in message(InputError, W, text)


def test_not_finite_with_duals():
    W = GOOD.copy()
    W[3, 4] = np.nan
    assert "weights[3, 4]" in message(InputError, W, "4:8T", duals=True)


def test_verify_of_a_result_with_weights_that_are_not_finite():
    result = nmsolve.solve(GOOD, "4:8T")
    W = GOOD.copy()
    W[3, 4] = np.nan
    with pytest.raises(NMSolveError):
        result.verify(W)
    with pytest.raises(NMSolveError):
        result.verify(GOOD[:8])


@pytest.mark.parametrize("method", ["exact", "greedy", "cover"])
@pytest.mark.parametrize("text", ["2:4T", "<=2:4T", "4:8T", "2:4"])
def test_a_sum_that_overflows_is_an_error_or_a_number(text, method):
    """Finite float64 scores whose sum is not: refused, never inf or nan."""
    W = np.full((64, 64), 1.7e308)
    assert "float64" in message(InputError, W, text, method=method)


WRONG_SHAPES = [(), (4,), (0,), (0, 4), (4, 0), (0, 0), (2, 0, 4), (0, 4, 4), (4, 4, 0)]


@pytest.mark.parametrize("shape", WRONG_SHAPES, ids=str)
@pytest.mark.parametrize("text", ["2:4T", "2:4"])
def test_shapes(text, shape):
    for padding in ("error", "pad", "dense"):
        found = message(InputError, np.zeros(shape, np.float32), text, padding=padding)
        assert str(shape) in found
        assert text in found
        with pytest.raises(InputError):
            nmsolve.verify(np.zeros(shape, bool), text, padding=padding)


WRONG_THINGS = {
    "ragged": [[1, 2, 3, 4], [1, 2]],
    "object": np.full((4, 4), None),
    "object of numbers": np.full((4, 4), 1.5, object),
    "complex": np.ones((4, 4), complex),
    "bool": np.ones((4, 4), bool),
    "text": "2:4",
    "texts": np.full((4, 4), "1.0"),
    "bytes": np.full((4, 4), b"1"),
    "none": None,
    "dict": {"weights": 1},
    "number": 3.5,
    "dates": np.zeros((4, 4), "M8[s]"),
    "spans": np.zeros((4, 4), "m8[s]"),
    "record": np.zeros((4, 4), [("a", np.float32), ("b", np.float32)]),
    "other record": np.zeros((4, 4), [("bits", np.float16)]),
    "void": np.zeros((4, 4), "V4"),
    "byte without a name": np.zeros((4, 4), "V1"),
    "record of two float8": np.zeros(
        (4, 4), [("float8_e4m3fn", np.uint8), ("float8_e5m2", np.uint8)]
    ),
    "record of a wide float8": np.zeros((4, 4), [("float8_e4m3fn", np.uint16)]),
    "record of a signed float8": np.zeros((4, 4), [("float8_e4m3fn", np.int8)]),
    "record of an array": np.zeros((4, 4), [("int4", np.uint8, (1,))]),
    "record with a gap": np.zeros(
        (4, 4), {"names": ["int4"], "formats": [np.uint8], "itemsize": 2}
    ),
    "record named bfloat16": np.zeros((4, 4), [("bfloat16", np.float16)]),
    "strings": np.full((4, 4), "1.0", np.dtypes.StringDType()),
    "longdouble": np.ones((4, 4), np.longdouble),
    "complex longdouble": np.ones((4, 4), np.clongdouble),
    "complex32": np.zeros((4, 4), "V4").view(ml_dtypes.complex32),
    "function": len,
}


@pytest.mark.parametrize("what", WRONG_THINGS)
@pytest.mark.parametrize("text", ["2:4T", "2:4"])
def test_weights_of_another_kind(text, what):
    if what == "longdouble" and np.dtype(np.longdouble).itemsize == 8:
        pytest.skip("long double is double here")
    thing = WRONG_THINGS[what]
    found = message(InputError, thing, text)
    assert text in found
    if isinstance(thing, np.ndarray):
        assert str(thing.shape) in found
        assert "dtype" in found
    found = (
        message(InputError, np.ones((4, 4)), text, scores=thing) if thing is not None else "scores"
    )
    assert "scores" in found


def test_remedies():
    assert "astype" in message(InputError, np.ones((4, 4), bool), "2:4")
    assert "float8_e4m3fn" in message(InputError, np.zeros((4, 4), "V1"), "2:4")
    assert "None, :" in message(InputError, np.ones(4), "2:4")
    assert "equal length" in message(InputError, np.full((4, 4), None), "2:4")


@pytest.mark.parametrize(
    ("shape", "text", "index"),
    [
        ((4, 6), "2:4", 4),
        ((6, 8), "2:4T", 4),
        ((8, 9), "4:8T", 8),
        ((2, 3, 12, 16), "4:8T", 8),
        ((1, 1), "2:4", 0),
        ((4, 5), "<=2:4", 4),
    ],
)
def test_not_divisible(shape, text, index):
    found = message(InputError, np.ones(shape, np.float32), text)
    assert str(shape) in found
    assert text in found
    assert f"index {index}" in found
    assert "padding='pad'" in found
    assert "padding='dense'" in found
    with pytest.raises(InputError):
        nmsolve.verify(np.ones(shape, bool), text)


@pytest.mark.parametrize("shape", [(16, 23), (24, 16), (16,), (1, 16, 24), ()], ids=str)
def test_scores_of_another_shape(shape):
    found = message(InputError, GOOD, "2:4T", scores=np.ones(shape))
    assert str(shape) in found
    assert "scores" in found


@pytest.mark.parametrize(
    "method",
    ["", "Exact", "best", None, 3, "networkx", ["exact"], {}, np.array(["exact", "auto"])],
    ids=repr,
)
def test_unknown_method(method):
    found = message(InputError, GOOD, "2:4T", method=method)
    assert "'exact'" in found
    assert "'min_cost_flow'" in found


@pytest.mark.parametrize("text", ["2:4", "<=2:4"])
def test_a_method_that_cannot_serve_the_pattern(text):
    found = message(PatternError, GOOD, text, method="min_cost_flow")
    assert "min_cost_flow" in found
    assert text in found
    assert "'exact'" in found


@pytest.mark.parametrize(
    "padding", ["", "zero", None, 0, True, ["pad"], "Pad", np.array(["pad", "pad"])], ids=repr
)
def test_unknown_padding(padding):
    found = message(InputError, GOOD, "2:4T", padding=padding)
    assert "'dense'" in found
    with pytest.raises(InputError):
        nmsolve.verify(GOOD, "2:4T", padding=padding)


@pytest.mark.parametrize("threads", [0, -1, 1.5, "2", True, [1], float("nan"), 2.0], ids=repr)
def test_threads(threads):
    assert "threads" in message(InputError, GOOD, "2:4T", threads=threads)


def test_threads_of_numpy():
    assert nmsolve.solve(GOOD, "2:4T", threads=np.int64(2)).stats["threads"] == 2
    assert nmsolve.solve(GOOD, "2:4T", threads=1000).mask.any()


def test_masks_of_another_kind():
    for thing in (
        np.full((4, 4), None),
        np.full((4, 4), "a"),
        np.ones((4, 4), complex),
        None,
        "mask",
        [[True], [True, False]],
    ):
        with pytest.raises(InputError):
            nmsolve.verify(thing, "2:4")


WITHOUT_ORTOOLS = """
import sys
sys.modules["ortools"] = None
import numpy as np, nmsolve
W = np.ones((4, 4), np.float32)
try:
    nmsolve.solve(W, "2:4T", method="min_cost_flow")
except nmsolve.MissingDependencyError as error:
    assert isinstance(error, ImportError)
    print(error)
assert nmsolve.solve(W, "2:4T").objective == 8
assert "min_cost_flow" in nmsolve.methods("2:4T")
"""


def test_missing_ortools():
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", WITHOUT_ORTOOLS],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "nmsolve[ortools]" in done.stdout
    assert "min_cost_flow" in done.stdout
    assert "exact" in done.stdout


def test_bad_input_without_asserts():
    """Under python -O nothing changes: no user input is checked by an assert."""
    program = """
import numpy as np, nmsolve
for weights, pattern in ((np.full((4, 4), np.nan), "2:4T"), (np.ones((4, 5)), "2:4"), (np.ones(4),
"2:4")):
    try:
        nmsolve.solve(weights, pattern)
    except nmsolve.NMSolveError:
        continue
    raise SystemExit(f"{pattern} passed")
"""
    done = subprocess.run(
        [sys.executable, "-O", "-c", program], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_input_is_not_changed():
    W = GOOD.copy()
    for text in PATTERNS:
        for method in nmsolve.methods(text):
            result = nmsolve.solve(W, text, method=method, scores=W, duals=True)
            assert not np.shares_memory(result.mask, W)
            result.verify(W, W)
    assert np.array_equal(W, GOOD)


def test_sums_of_opposite_infinities_are_reported():
    S = np.zeros((4, 9))
    S[:, :2], S[:, 8] = 1.7e308, -1.7e308
    with pytest.raises(nmsolve.InputError, match="too large"):
        nmsolve.solve(S, "2:4", scores=S, padding="dense")
