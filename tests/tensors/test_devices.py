"""The device solvers against the oracles, the core and each other: on a CPU through torch
operations and Triton's interpreter.
"""

import inspect
import math
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.overrides import TorchFunctionMode

import nmsolve
import nmsolve.torch as nmt
from nmsolve.pattern import Pattern
from nmsolve.solvers.ascent_schedule import schedule
from nmsolve.torch.device import ascent, problem
from nmsolve.torch.device import torch_engine as plain
from nmsolve.torch.device.engines import engine_named
from nmsolve.torch.device.problem import Engine, Problem
from tests.core.families import (
    FAMILIES,
    HALF_FAMILIES,
    NARROW,
    assert_optimal,
    draw,
    feasible,
    magnitude,
    matrix,
    parse,
    rare,
    split,
    tolerance,
)
from tests.kernels import MIDDLE, SMALL
from tests.tensors.engines import TRITON, engine_of, on_every_place, solve, tensor

ROWS = ("1:1", "1:2", "2:3", "1:4", "2:4", "3:4", "<=2:4", "4:4", "3:5", "<=4:8", "8:16", "16:32")
BLOCKS = (*SMALL, "4:4T", "<=4:4T", *rare("1:2T", "2:3T", "3:6T"))
#: Of which several lanes share a block: with lines left over (5:11T), and not.
DEEP = (*MIDDLE, *rare("5:11T", "16:32T", "<=8:16T"))
#: Not float32, so each in a matrix of its own.
OTHERS = (
    "normal64",
    "int8",
    "int32",
    "uint8",
    "int64_ties",
    "large64",
    "small64",
    "nearly_equal64",
    "denormal64",
)


def mixed(pattern, seed, each=3):
    """Blocks of every float32 family in one matrix, in an order that puts unlike blocks side by
    side.
    """
    blocks = np.concatenate(
        [draw(name, seed + k, (each, pattern.rows, pattern.m)) for k, name in enumerate(NARROW)]
    )
    order = np.random.default_rng(seed).permutation(len(blocks))
    return matrix(blocks[order], len(NARROW))


def as_numpy(result):
    """The core's view of a result, for the families' checks."""

    class View:
        mask = result.mask.cpu().numpy()
        objective = result.objective

    return View


def check(place, W, text, relative):
    result = solve(place, tensor(W), text)
    assert result.status is nmsolve.Status.OPTIMAL
    assert result.mask.device.type == place[0]
    assert_optimal(as_numpy(result), magnitude(W), parse(text), relative)
    assert result.verify(tensor(W))
    return result


@on_every_place
@pytest.mark.parametrize("text", BLOCKS)
def test_blocks_are_optimal(place, text):
    check(place, mixed(parse(text), 1), text, 1e-6)


@on_every_place
@pytest.mark.parametrize("text", ROWS)
def test_groups_are_optimal_and_the_core_keeps_the_same(place, text):
    W = mixed(parse(text), 2)
    result = check(place, W, text, 1e-12)
    assert np.array_equal(result.mask.cpu().numpy(), nmsolve.solve(W, text).mask)


@on_every_place
@pytest.mark.parametrize("text", DEEP)
def test_large_blocks_are_optimal(place, text):
    check(place, mixed(parse(text), 3, 1), text, 1e-6)


@on_every_place
@pytest.mark.parametrize("text", ["2:4", "2:4T", "2:5T"])
@pytest.mark.parametrize("name", [*OTHERS, *HALF_FAMILIES])
def test_dtypes(place, text, name):
    pattern = parse(text)
    W = matrix(draw(name, 4, (8, pattern.rows, pattern.m)), 4)
    result = check(place, W, text, tolerance(W))
    if not pattern.transposable:
        assert np.array_equal(result.mask.cpu().numpy(), nmsolve.solve(W, text).mask)


@on_every_place
@pytest.mark.parametrize("text", ["2:4", "<=2:4", "2:4T", "<=2:4T", "2:5T", "3:3T", "<=3:3T"])
def test_signed_scores(place, text):
    pattern = parse(text)
    S = matrix(draw("signed_integers", 5, (12, pattern.rows, pattern.m)), 4) + matrix(
        draw("normal64", 6, (12, pattern.rows, pattern.m)), 4
    )
    result = solve(place, torch.zeros(S.shape), text, scores=tensor(S))
    assert result.scored == "scores"
    assert_optimal(as_numpy(result), S, pattern, 1e-12)
    assert result.verify(torch.zeros(S.shape), tensor(S))


@on_every_place
@pytest.mark.parametrize("text", ["2:4", "<=2:4", "2:4T", "2:5T"])
@pytest.mark.parametrize(
    "dtype",
    [torch.float16, torch.bfloat16, torch.int8, torch.uint8, torch.uint16, torch.uint64],
    ids=str,
)
def test_scores_of_every_dtype(place, text, dtype):
    pattern = parse(text)
    S = torch.from_numpy(matrix(draw("normal64", 16, (8, pattern.rows, pattern.m)), 4) * 30)
    S = S.to(dtype) if dtype.is_signed else S.abs().to(dtype)
    values = S.double().numpy()
    result = solve(place, torch.zeros(S.shape), text, scores=S)
    assert_optimal(as_numpy(result), values, pattern, 1e-6)
    assert result.verify(torch.zeros(S.shape), S)
    if not pattern.transposable:
        assert np.array_equal(
            result.mask.cpu().numpy(), nmsolve.solve(values, text, scores=values).mask
        )


@on_every_place
@pytest.mark.parametrize("text", ["2:4", "<=2:4", "2:4T", "1:4T", "<=4:8T", "3:3T", "<=3:3T"])
@pytest.mark.parametrize("padding", ["pad", "dense"])
def test_padding_and_duals(place, text, padding):
    rng = np.random.default_rng(7)
    W = rng.standard_normal((2, 9, 14)).astype(np.float32)
    result = solve(place, tensor(W), text, padding=padding, duals=True)
    expected = nmsolve.solve(W, text, padding=padding, duals=True)
    assert result.mask.shape == W.shape
    assert abs(result.objective - expected.objective) <= 1e-6 * expected.objective
    assert result.duals.rows.shape == expected.duals.rows.shape
    assert (result.duals.columns is None) == (expected.duals.columns is None)
    if result.duals.columns is not None:
        assert result.duals.columns.shape == expected.duals.columns.shape
    assert result.verify(tensor(W))


@on_every_place
def test_nothing_but_a_remainder(place):
    W = torch.arange(1.0, 7.0).view(2, 3)
    result = solve(place, W, "2:4T", padding="dense", duals=True)
    assert result.mask.all()
    assert result.objective == 21.0
    assert result.verify(W)


@on_every_place
@pytest.mark.parametrize("text", ["2:4", "2:4T", "2:5T"])
def test_any_strides(place, text):
    pattern = parse(text)
    base = torch.from_numpy(draw("normal32", 8, (2, 4 * pattern.m, 6 * pattern.m))).to(place[0])
    views = [
        base.transpose(1, 2),
        base[:, ::2, ::3],
        base[:, :, pattern.m :],
        base[:1].expand(2, -1, -1),
        base[0].flip(0),
        base.movedim(0, 2)[..., 0],
    ]
    for view in views:
        assert torch.equal(
            solve(place, view, text).mask,
            solve(place, view.clone(memory_format=torch.contiguous_format), text).mask,
        )


@on_every_place
@pytest.mark.parametrize("text", ["2:4", "2:4T", "4:8T", "<=2:4T"])
def test_a_block_does_not_see_its_neighbours(place, text):
    pattern = parse(text)
    W = mixed(pattern, 9, 2)
    together = split(solve(place, tensor(W), text).mask.cpu(), pattern.rows, pattern.m)
    blocks = split(W, pattern.rows, pattern.m)
    for k in range(0, len(blocks), 9):
        alone = solve(place, tensor(blocks[k]), text).mask.cpu().numpy()
        assert np.array_equal(together[k], alone)


@on_every_place
@pytest.mark.parametrize("text", ["2:4", "2:4T", "4:8T"])
@pytest.mark.parametrize("shape", [(3, 16, 16), (1, 48, 8)])
def test_pieces_make_no_difference(place, text, shape, monkeypatch):
    W = torch.from_numpy(draw("integers", 10, shape))
    whole = solve(place, W, text, duals=True)
    monkeypatch.setattr(engine_of(place), "PIECE", 300)
    pieces = solve(place, W, text, duals=True)
    assert torch.equal(whole.mask, pieces.mask)
    assert torch.equal(whole.duals.rows, pieces.duals.rows)
    assert abs(whole.objective - pieces.objective) <= 1e-12 * whole.objective


@on_every_place
@pytest.mark.parametrize("text", ["2:4", "2:4T", "4:8T"])
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_what_is_not_finite_is_named(place, text, bad):
    W = torch.ones(2, 16, 16)
    W[1, 9, 3] = bad
    with pytest.raises(nmsolve.InputError, match=r"weights\[1, 9, 3\] is -?(nan|inf)"):
        solve(place, W, text)
    with pytest.raises(nmsolve.InputError, match=r"weights\[1, 9, 3\] is -?(nan|inf)"):
        solve(place, W[:, :10, :6], text, padding="dense")


@on_every_place
@pytest.mark.parametrize("text", ["4:8T", "<=4:8T"])
def test_the_last_resort_is_the_host(place, text, monkeypatch):
    """With one round a level most blocks are left to the core, which must find its way back into
    masks, sums and duals.
    """
    monkeypatch.setattr(problem, "schedule", lambda m: schedule(m)._replace(rounds=(1, 1, 0, 0)))
    monkeypatch.setattr(problem, "LAST", ())
    W = tensor(mixed(parse(text), 11, 2))
    result = solve(place, W, text, duals=True)
    assert 10 < result.stats["solved_on_host"] < W.numel() // 64
    assert_optimal(as_numpy(result), magnitude(W.numpy()), parse(text), 1e-6)
    assert result.verify(W)


def test_what_the_host_leaves_open_is_not_called_optimal(monkeypatch):
    """Sums agree all the same: it is the count of blocks that says so."""
    core = ascent.api.solve

    def unproven(*args, **kwargs):
        return replace(core(*args, **kwargs), status=nmsolve.Status.FEASIBLE)

    monkeypatch.setattr(problem, "schedule", lambda m: schedule(m)._replace(rounds=(1, 1, 0, 0)))
    monkeypatch.setattr(problem, "LAST", ())
    monkeypatch.setattr(ascent.api, "solve", unproven)
    result = solve(("cpu", "torch"), tensor(mixed(parse("4:8T"), 11, 2)), "4:8T")
    assert result.stats["solved_on_host"] > 0
    assert result.status is nmsolve.Status.FEASIBLE


class Waits(TorchFunctionMode):
    """Counts what a host has to wait for the device for: numbers that come back, and lists of what
    is not zero.
    """

    NAMES = (
        "tolist",
        "item",
        "nonzero",
        "is_nonzero",
        "__bool__",
        "__int__",
        "__float__",
        "__index__",
        "cpu",
    )

    def __init__(self):
        super().__init__()
        self.count = 0

    def __torch_function__(self, function, types, arguments=(), named=None):
        inside = sys._getframe(1)  # Triton's interpreter copies its operands
        while inside is not None and "triton/runtime" not in inside.f_code.co_filename:
            inside = inside.f_back
        self.count += inside is None and function.__name__ in self.NAMES
        return function(*arguments, **(named or {}))


@pytest.mark.parametrize("place", [TRITON])
@pytest.mark.parametrize("text", ["2:4", "2:4T", "4:8T"])
@pytest.mark.parametrize("family", ["normal32", "bf16_rounded"])
def test_ordinary_weights_are_waited_for_at_most_three_times(place, text, family):
    m = parse(text).m
    W = tensor(matrix(draw(family, 21, (300, parse(text).rows, m)), 20))
    with Waits() as waits:
        result = solve(place, W, text)
    assert result.stats.get("solved_on_host", 0) == 0
    assert 1 <= waits.count <= 3
    if text == "4:8T":  # the blocks that the first level leaves are what the second wait is for
        assert waits.count == 2


@on_every_place
def test_few_tied_blocks_are_no_burden_to_the_others(place):
    """Only they, and what the first level leaves anyway, are looked at again."""
    blocks = draw("normal32", 23, (200, 8, 8))
    asked = Problem(parse("4:8T"), True, torch.float32, 2.5e-7)

    def left(blocks):
        X = tensor(matrix(blocks, 20), place[0])[None]
        known, _ = engine_of(place).ascend_first(
            X, torch.empty(X.shape, dtype=torch.bool, device=place[0]), asked, False
        )
        return set(known.open.nonzero().squeeze(1).tolist())

    before = left(blocks)
    blocks[50:53] = 1.0
    after = left(blocks)
    assert after - before <= {50, 51, 52} <= after
    assert len(after) < 20


@on_every_place
def test_most_blocks_stay_on_the_device(place):
    blocks = draw("normal32", 12, (200, 8, 8))
    result = solve(place, tensor(matrix(blocks, 20)), "4:8T")
    assert result.stats.get("solved_on_host", 0) == 0
    assert result.stats["proven_at_level_0"] > 180


def test_no_block_of_the_usual_families_visits_the_host():
    for text in ("4:8T", "8:16T"):
        m = parse(text).m
        for name in ("normal32", "bf16_rounded", "integers", "zeros60", "column_scaled"):
            result = solve(("cpu", "torch"), tensor(matrix(draw(name, 13, (400, m, m)), 20)), text)
            assert result.stats.get("solved_on_host", 0) <= 2, (text, name, result.stats)


@pytest.mark.parametrize("place", [TRITON])
@pytest.mark.parametrize(
    ("text", "dtype", "collect"),
    [
        ("2:3T", torch.float32, False),
        ("2:3T", torch.float32, True),
        ("4:8T", torch.bfloat16, False),
        ("<=4:8T", torch.float64, True),
        ("5:11T", torch.float64, False),
        ("<=8:16T", torch.float16, True),
        ("7:32T", torch.bfloat16, False),
        ("<=7:18T", torch.float32, True),
        *(
            pytest.param(*case, marks=pytest.mark.long)
            for case in (
                ("4:8T", torch.bfloat16, True),
                ("<=4:8T", torch.float64, False),
                ("5:11T", torch.float64, True),
                ("<=8:16T", torch.float16, False),
                ("7:32T", torch.bfloat16, True),
                ("<=7:18T", torch.float32, False),
            )
        ),
    ],
    ids=str,
)
def test_kernels_do_what_plain_torch_does(place, text, dtype, collect, monkeypatch):
    """Both calls of the engines, block by block, with so few rounds that some blocks stay open
    after each.
    """
    monkeypatch.setattr(problem, "schedule", lambda m: schedule(m)._replace(rounds=(6, 4, 0, 0)))
    monkeypatch.setattr(problem, "LAST", (8,))
    pattern = parse(text)
    m, compute = pattern.m, torch.float64 if dtype == torch.float64 else torch.float32
    X = (
        tensor(mixed(pattern, 14, 2))[: 2 * m + 1].to(dtype).nan_to_num(posinf=1.0).to(place[0])
    )  # ends inside a block
    asked = Problem(Pattern.of(pattern), True, compute, 2.5e-7)
    found = []
    for engine in (plain, engine_of(place)):
        mask = torch.empty((1, 3 * m, X.shape[1]), dtype=torch.bool, device=place[0])
        blocks, first = engine.ascend_first(X[None], mask, asked, collect)
        opened, count = blocks.open.clone() != 0, blocks.open.numel()
        unproven = count - int(first[3])
        assert int(opened.sum()) == unproven
        where, rest = engine.ascend_rest(X[None], mask, asked, blocks, unproven, collect)
        assert torch.equal(where, opened.nonzero().squeeze(1))
        left = blocks.open != 0
        assert unproven > int(left.sum()) == unproven - int(rest[2:].sum())
        masks = mask.view(3, m, -1, m).transpose(1, 2).reshape(count, m * m)[~left]
        found.append(
            (
                first,
                opened,
                rest,
                left,
                masks,
                *((blocks.u, blocks.v, blocks.scale) if collect else ()),
            )
        )
    (
        (first, opened, rest, left, masks, *duals),
        (our_first, our_opened, our_rest, our_left, our_masks, *our_duals),
    ) = found
    assert torch.equal(our_opened, opened)
    assert torch.equal(our_left, left)
    assert torch.equal(our_masks, masks)
    assert torch.allclose(our_first, first, rtol=1e-12)
    assert torch.allclose(our_rest, rest, rtol=1e-9, atol=1e-9 * float(first[0]))
    for ours, theirs in zip(our_duals, duals, strict=True):
        assert torch.allclose(ours[..., ~left], theirs[..., ~left], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("place", [TRITON])
@pytest.mark.parametrize("text", ["1:4T", "2:4T", *rare("3:4T")])
@pytest.mark.parametrize(
    "dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64], ids=str
)
def test_objectives_of_enumerated_blocks_are_exact(place, text, dtype):
    """The kernel adds up in its scores' own width, and what that rounds away beside: together the
    exact sum.
    """
    W = tensor(matrix(draw("normal64", 22, (60, 4, 4)), 10)).to(dtype)
    W[:20] = (W[:20].double() * torch.logspace(-3, 3, W.shape[1], dtype=torch.float64)).to(dtype)
    result = solve(place, W, text)
    kept = W.abs()[result.mask.cpu()].double().tolist()
    exact = math.fsum(kept)
    assert abs(result.objective - exact) <= 2.0**-46 * exact


@on_every_place
@pytest.mark.parametrize("small", [1e-20, 1e-30 / 3])
def test_scores_too_far_apart_to_be_scaled_are_not_called_optimal(place, small):
    """A penalty beside which the others vanish in float64: what scaling takes from them must not be
    missing from the proof.
    """
    S = small * np.array([[1.0, 5, 3], [4, 2, 6], [9, 8, 7]])
    S[0, 0] = -1.7e308
    best = (5 + 6 + 9) * small
    device = solve(place, torch.zeros(3, 3, dtype=torch.float64), "<=1:3T", scores=tensor(S))
    core = nmsolve.solve(np.zeros((3, 3)), "<=1:3T", scores=S)
    for result in (device, core):
        assert result.bound >= best
        assert result.status is not nmsolve.Status.OPTIMAL or result.objective >= best * (1 - 1e-6)
    assert device.verify(torch.zeros(3, 3, dtype=torch.float64), tensor(S))
    assert core.verify(np.zeros((3, 3)), S)


@pytest.mark.parametrize("place", [TRITON])
@pytest.mark.parametrize(
    ("text", "shape"),
    [("2:4", (16, 4)), ("2:4T", (4, 16)), ("<=2:4T", (16, 4)), ("8:16T", (16, 16))],
)
def test_strides_of_which_a_few_are_beyond_32_bits(place, text, shape, tmp_path):
    """A view far apart in a file that is mostly a hole; the wrong place would be in it too."""
    if place[0] != "cpu":
        pytest.skip("the file is on the host")
    far = 2**30 - 1 if max(shape) * min(shape) < 256 else 2**28 - 1
    size = 2**31 + max(shape) * far
    hole = torch.from_file(str(tmp_path / "hole"), shared=True, size=size, dtype=torch.float16)
    strides = (far, 1) if shape[0] <= shape[1] else (1, far)
    W = hole.as_strided(shape, strides, 2**31)
    W.copy_(torch.from_numpy(draw("normal32", 24, (1, *shape))[0]).half())
    assert torch.equal(solve(place, W, text).mask, solve(place, W.contiguous(), text).mask)


@on_every_place
@pytest.mark.parametrize("text", ["2:4", "2:4T", "4:8T"])
def test_memory_that_others_aligned(place, text):
    """A tensor whose storage begins anywhere, as a foreign library may hand it over."""
    W = torch.from_numpy(draw("normal32", 25, (1, 8, 16))[0]).half()
    bytes_ = np.zeros(300, np.uint8)
    view = torch.from_numpy(bytes_[2:].view(np.float16))[3:131].view(8, 16)
    view.copy_(W)
    assert torch.equal(solve(place, view, text).mask, solve(place, W, text).mask)


def test_masks_from_a_device_satisfy_loops():
    W = tensor(draw("zeros60", 15, (1, 16, 16))[0])
    for block in split(solve(("cpu", "torch"), W, "4:8T").mask, 8, 8):
        assert feasible(block, parse("4:8T"))


def test_families_are_all_here():
    assert set(NARROW) | set(OTHERS) >= set(FAMILIES) - {"signed_integers"}
    assert nmt.solve(tensor(mixed(parse("2:4T"), 0)), "2:4T").status is nmsolve.Status.OPTIMAL


@pytest.mark.parametrize("name", ["torch", "triton"])
def test_an_engine_offers_what_the_driver_asks_for(name):
    """mypy checks the modules too; this sees also whether all arguments have the same names."""
    offered = engine_named(name)
    assert isinstance(offered.PIECE, int)
    asked = {key: value for key, value in vars(Engine).items() if inspect.isfunction(value)}
    asked = {key: value for key, value in asked.items() if not key.startswith("_")}
    assert len(asked) == 4
    for key, function in asked.items():
        parameters = list(inspect.signature(function).parameters.values())[1:]
        found = inspect.signature(getattr(offered, key))
        assert [p.name for p in parameters] == list(found.parameters), key
        assert [p.annotation for p in parameters] == [
            p.annotation for p in found.parameters.values()
        ]
        assert found.return_annotation == inspect.signature(function).return_annotation, key
