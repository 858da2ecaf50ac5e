"""What accelerate_ decides from: recorded shapes, times of real calls, the check of results, the rule, the table."""

import time
from collections import Counter

import pytest
import torch
from layers import masked_, same, state_of
from torch import nn

from nmsolve.torch.dispatch.acceleration import MARGIN, Acceleration, LayerDecision, Timing, choose
from nmsolve.torch.dispatch.measuring import measure, wrong_result
from nmsolve.torch.dispatch.recording import Call, record
from nmsolve.torch.dispatch.timing import medians_us, rotation_beyond_cache
from nmsolve.torch.running import undisturbed

pytestmark = pytest.mark.usefixtures("warned_already")


def test_recorded_calls():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    calls = record(model, (torch.randn(2, 3, 8),), {}, False)
    assert calls["0"] == calls["1"] == Counter({Call(6, torch.float32, torch.device("cpu")): 1})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        calls = record(model, (), {"input": torch.randn(8)}, True)
    assert calls["1"] == Counter({Call(1, torch.bfloat16, torch.device("cpu")): 1})


def test_a_run_leaves_no_trace():
    model = nn.Sequential(nn.BatchNorm1d(4), nn.Dropout())
    model[1].eval()
    before, random = state_of(model), torch.get_rng_state()
    with undisturbed(model, training=True):
        assert model[0].training
        model(torch.randn(3, 4))
        model[0].running_var = torch.zeros(4)
        assert not same(before, state_of(model))
    assert same(before, state_of(model))
    assert torch.equal(torch.get_rng_state(), random)


def timing(dense, sparse, failure=None):
    return Timing(dense_us=dense, sparse_us=sparse, failure=failure)


@pytest.mark.parametrize(
    ("timings", "only", "expected"),
    [
        ({"a": timing(10, 5)}, True, ("a", "a", "2.00 × the speed of dense")),
        ({"a": timing(10, 5), "b": timing(10, 4)}, True, ("b", "b", "2.50 × the speed of dense")),
        ({"a": timing(10, 20)}, True, (None, "a", "slower: 0.50 × the speed of dense")),
        ({"a": timing(10, 20)}, False, ("a", "a", "slower, but asked for: 0.50 × the speed of dense")),
        ({"a": timing(10, 10 * (1 - MARGIN / 2))}, True, (None, "a", "not faster: 1.01 × the speed of dense")),
        ({"a": timing(None, None, "wrong result: y")}, False, (None, "a", "a: wrong result: y")),
        (
            {"a": timing(None, None, "wrong"), "b": timing(10, 20)},
            False,
            ("b", "b", "slower, but asked for: 0.50 × the speed of dense"),
        ),
        ({"a": timing(None, None, "no"), "b": timing(None, None, "nor")}, True, (None, "a", "a: no; b: nor")),
        ({}, True, (None, None, "no backend")),
    ],
)
def test_choice(timings, only, expected):
    assert choose(timings, only) == expected


def test_the_table_fits():
    rows = [  # the longest cells there are
        LayerDecision(name="model.decoder.layers.31.mlp.down_proj", shape=(4096, 16384), tokens=131072, backend="cusparselt",
                      dense_us=123456.7, sparse_us=98765.4, decision="masked dense", reason="a long reason " * 12),
        LayerDecision(name="0", shape=(8, 8), tokens=0, backend=None,
                      dense_us=None, sparse_us=None, decision="dense", reason="short"),
    ]  # fmt: skip
    table = Acceleration(rows)
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].split("  ")[-1] == "reason"
    start = lines[0].index("reason")
    assert lines[1].startswith("….layers.31.mlp.down_proj  4096×16384  131072  cusparselt  123456.7")
    assert lines[1][start:].startswith("a long")
    assert all(line[:start].isspace() and line[start] != " " for line in lines[2:-1])
    assert lines[-1].endswith("short")
    assert table[0] is rows[0]
    assert table[:1] == (rows[0],)
    assert list(table) == rows


def test_medians_of_real_calls():
    taken = []

    def slow(i):
        taken.append(i)
        time.sleep(0.01)

    quick_us, slow_us = medians_us([lambda i: None, slow], torch.device("cpu"), rotation=3, repeats=3, warm_up=1)
    assert 10_000 <= slow_us < 29_000
    assert quick_us < 2000
    assert taken == [0, 1, 2] * 4


def test_rotation():
    cpu = torch.device("cpu")
    assert rotation_beyond_cache(2**40, cpu) == 1
    assert rotation_beyond_cache(0, cpu) == 8
    assert rotation_beyond_cache(2**24, cpu) == 4


@pytest.mark.parametrize("bias", [True, False])
def test_measuring_the_training_step(bias):
    """On a CPU the sparse step is the masked dense one, but everything around it is real."""
    torch.manual_seed(0)
    layer = masked_(nn.Linear(16, 16, bias))
    calls = Counter({Call(5, torch.float32, torch.device("cpu")): 2, Call(0, torch.float32, torch.device("cpu")): 1})
    found = measure(layer.weight, layer.bias, calls, "cusparselt", training=True)
    assert found.failure is None
    assert found.dense_us > 0
    assert found.sparse_us > 0
    assert layer.weight.grad is None
    narrow = Counter({Call(5, torch.bfloat16, torch.device("cpu")): 1})
    assert measure(layer.weight, layer.bias, narrow, "cusparselt", training=True).failure is None


def test_a_backend_that_fails_is_a_reason():
    calls = Counter({Call(5, torch.bfloat16, torch.device("cpu")): 1})
    weight = masked_(nn.Linear(16, 16)).weight.detach()
    refused = measure(weight.bfloat16(), None, calls, "cutlass", training=False)
    assert refused.dense_us is None
    assert refused.failure.startswith("failed with cannot pack a torch.bfloat16 weight of shape (16, 16) for cutlass")
    raised = measure(weight.bfloat16(), torch.zeros(4, dtype=torch.bfloat16), calls, "cutlass", training=True)
    assert raised.failure.startswith("failed with bias must be (16,)")


def test_wrong_results_are_found():
    truth = (torch.randn(8, 8), torch.randn(8, 8), torch.randn(8, 8))
    kept = torch.rand(8, 8) > 0.5
    dense = tuple(t.bfloat16() for t in truth)
    right = (*dense[:2], dense[2] * kept)
    assert wrong_result(right, dense, truth, kept) is None
    for i, name in enumerate(("y", "dx", "dW")):
        for bad in (right[i] + 1, right[i] * float("nan"), right[i].t().contiguous()):
            found = wrong_result([*right[:i], bad, *right[i + 1 :]], dense, truth, kept)
            assert found.startswith(f"{name} is off by")
    assert wrong_result(dense, dense, truth, kept).startswith("dW is off by")
