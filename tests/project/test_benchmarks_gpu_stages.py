"""The stages of `python -m benchmarks.gpu`, at the sizes of a CPU: every measurement runs, and none
accepts what is wrong.
"""

import json
import sys
import time
from functools import partial
from importlib import import_module

import pytest
import torch
import torch.nn.functional as F

import nmsolve.torch as nmt
from benchmarks.gpu import weights
from benchmarks.gpu.report import markdown
from benchmarks.gpu.rows import Place
from benchmarks.gpu.stages import STAGES, layers, masks, products, rivals, smoke
from benchmarks.gpu.weights import BF16, INTEGERS, ROUNDED, TRUE, ZEROS, normal, scores
from benchmarks.timing import WrongResult

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "stage", [stage for stage in STAGES if stage.name != "tests"], ids=lambda stage: stage.name
)
@pytest.mark.usefixtures("warned_already")
def test_every_measurement(stage, tmp_path, capsys):
    """Each gives rows that can be saved and shown; of a GPU's sizes only the code is the same."""
    found = [
        {"t": 0.0, "run": 1, "kind": "run", "stages": [stage.name], "device": "cpu", "date": ""}
    ]
    found.append({"t": 0.0, "run": 1, "stage": stage.name, "kind": "begin", "limit_s": 1.0})
    names = []
    for measurement in import_module(stage.module).measure(
        Place("cpu", time.monotonic() + 1000, tmp_path)
    ):
        rows = [row.line() for row in measurement.rows()]
        found += [
            {"t": 0.0, "run": 1, "stage": stage.name, **json.loads(json.dumps(row))} for row in rows
        ]
        names.append(measurement.what)
    assert len(set(names)) == len(names) > 2
    assert len(found) > len(names)
    assert f"## {stage.name.capitalize()}\n" in markdown(found)


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.name)
def test_measurements_of_a_gpu(stage, tmp_path):
    """What would be measured there can be listed anywhere, each under a name of its own."""
    names = [
        measurement.what
        for measurement in import_module(stage.module).measure(Place("cuda", 0.0, tmp_path))
    ]
    assert len(set(names)) == len(names) > 0


def test_masks_that_are_not_optimal_are_refused(monkeypatch):
    drawn = normal(64, 64, torch.bfloat16, CPU)
    monkeypatch.setattr(nmt, "solve", partial(nmt.solve, method="greedy"))
    with pytest.raises(WrongResult, match="not proven optimal"):
        weights.checked(drawn, "2:4T")
    with pytest.raises(WrongResult, match="not proven optimal"):
        list(smoke.solved("2:4T", drawn, "N(0, 1)"))
    with pytest.raises(WrongResult, match="not proven optimal"):
        list(masks.solved("2:4T", TRUE, 64, CPU))


def test_masks_that_change_are_refused(monkeypatch):
    drawn, solve = normal(64, 64, torch.float32, CPU), nmt.solve
    moved = iter([0.0, 1.0])
    monkeypatch.setattr(
        nmt, "solve", lambda tensor, pattern: solve(tensor.roll(int(next(moved)), 1), pattern)
    )
    with pytest.raises(WrongResult, match="two runs returned different masks"):
        weights.checked(drawn, "2:4T")


def test_a_kernel_that_disagrees_is_refused():
    drawn = [scores(BF16, 64, CPU)]
    assert masks.kernel_us(drawn, "2:4T", nmt.solve(drawn[0], "2:4T").mask) > 0
    with pytest.raises(WrongResult, match="disagree"):
        masks.kernel_us(drawn, "2:4T", ~nmt.solve(drawn[0], "2:4T").mask)


def test_products_that_are_wrong_are_refused(monkeypatch):
    """The default algorithm must be right; another that is wrong is named and not timed."""
    multiply = [lambda x, w: F.linear(x, w), lambda x, w: 1.5 * F.linear(x, w)]
    monkeypatch.setattr(
        products, "by_backend", lambda weight, x, backend: (lambda k: multiply[k](x, weight), 2)
    )
    (row,) = products.product(64, 64, 32, "some backend", CPU)
    assert list(row.algorithm_us) == [0]
    assert row.wrong[1].startswith("y is off by")
    multiply.reverse()
    with pytest.raises(WrongResult, match="y is off by"):
        list(products.product(64, 64, 32, "some backend", CPU))


@pytest.mark.parametrize("training", [False, True])
def test_layers_that_are_wrong_are_refused(monkeypatch, training):
    monkeypatch.setattr(
        layers, "masked_linear", lambda x, weight, mask, backend="dense": 1.5 * F.linear(x, weight)
    )
    with pytest.raises(WrongResult, match="y is off by"):
        list(layers.layer(64, 64, 32, "dense", training, CPU))


def test_an_accelerated_model_that_is_wrong_is_refused(monkeypatch):
    def break_(model, x, training):
        with torch.no_grad():
            model[0].weight *= 1.5
        return []

    monkeypatch.setattr(nmt, "accelerate_", break_)
    with pytest.raises(WrongResult, match="MLP, accelerated: y is off by"):
        list(layers.accelerated("MLP", partial(layers.mlp, 64), 32, False, CPU))


class Tiles:
    """What torch's kernel returns, as far as `wrong_tiles` looks at it."""

    def __init__(self, dense, product=1.0):
        self.dense, self.product = dense, product

    def to_dense(self):
        return self.dense

    def t(self):
        return Tiles(self.dense.t(), self.product)

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        assert function is F.linear
        return args[1].product * F.linear(args[0], args[1].dense)


def test_tiles_that_are_wrong_are_told(monkeypatch):
    """The ways in which a kernel fails that does not suit a GPU."""
    drawn = normal(64, 64, torch.bfloat16, CPU)
    right = torch.where(nmt.solve(drawn, "2:4T").mask, drawn, 0)
    for dense, product, told in (
        (right, 1.0, None),
        (drawn, 1.0, "is not 2:4T"),
        (2 * right, 1.0, "not the weight's values"),
        (torch.zeros_like(drawn), 1.0, "it keeps 0.0 %"),
        (right, 1.5, "y is off by"),
    ):
        monkeypatch.setattr(
            rivals.rivals,
            "tile_pack",
            lambda weights, dense=dense, product=product: Tiles(dense, product),
        )
        wrong = rivals.wrong_tiles(drawn)
        assert wrong is None if told is None else told in wrong


def test_kinds_of_scores():
    """Each is what its name says."""
    drawn = {kind: scores(kind, 64, CPU) for kind in (BF16, TRUE, ROUNDED, INTEGERS, ZEROS)}
    assert drawn[BF16].dtype == torch.bfloat16
    assert all(drawn[kind].dtype == torch.float32 for kind in (TRUE, ROUNDED, INTEGERS, ZEROS))
    assert torch.equal(drawn[ROUNDED], drawn[BF16].float())
    assert not torch.equal(drawn[TRUE], drawn[ROUNDED])
    assert set(drawn[INTEGERS].unique().tolist()) <= set(range(8))
    assert 0.57 < float((drawn[ZEROS] == 0).float().mean()) < 0.63
    assert normal(8, 8, torch.int8, CPU).dtype == torch.int8


@pytest.mark.skipif(sys.platform != "linux", reason="/proc")
def test_resident_memory_grows_with_what_is_held():
    before = products.resident_bytes()
    held = bytearray(b"x") * 2**26
    assert products.resident_bytes() - before > len(held) / 2
