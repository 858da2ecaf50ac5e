"""What accelerate_ decides from: recorded shapes, times of real calls, the check of results, the
rule, the table.
"""

import time
from collections import Counter

import pytest
import torch
from torch import nn

from nmsolve.torch.dispatch.algorithms import recall
from nmsolve.torch.dispatch.availability import machine_at
from nmsolve.torch.dispatch.decisions import MARGIN, Acceleration, LayerDecision, Timing, choose
from nmsolve.torch.dispatch.measuring import Product, Searched, _fastest, measure, wrong_result
from nmsolve.torch.dispatch.recording import Call, record
from nmsolve.torch.dispatch.timing import (
    CallTime,
    call_times,
    graph_medians_us,
    medians_us,
    rotation_beyond_cache,
)
from nmsolve.torch.running import undisturbed
from tests.dispatch.layers import masked_, same, state_of

pytestmark = pytest.mark.usefixtures("warned_already")


def test_recorded_calls():
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4))
    calls = record(model, (torch.randn(2, 3, 8),), {}, training=False)
    assert calls["0"] == calls["1"] == Counter({Call(6, torch.float32, torch.device("cpu")): 1})
    with torch.autocast("cpu", dtype=torch.bfloat16):
        calls = record(model, (), {"input": torch.randn(8)}, training=True)
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


def timing(dense, sparse, failure=None, wrong=()):
    return Timing(dense_us=dense, sparse_us=sparse, failure=failure, wrong=wrong)


@pytest.mark.parametrize(
    ("timings", "only", "expected"),
    [
        ({"a": timing(10, 5)}, True, ("a", "a", "2.00 × the speed of dense")),
        ({"a": timing(10, 5), "b": timing(10, 4)}, True, ("b", "b", "2.50 × the speed of dense")),
        ({"a": timing(10, 20)}, True, (None, "a", "slower: 0.50 × the speed of dense")),
        (
            {"a": timing(10, 20)},
            False,
            ("a", "a", "slower, but asked for: 0.50 × the speed of dense"),
        ),
        (
            {"a": timing(10, 10 * (1 - MARGIN / 2))},
            True,
            (None, "a", "not faster: 1.01 × the speed of dense"),
        ),
        ({"a": timing(None, None, "wrong result: y")}, False, (None, "a", "a: wrong result: y")),
        (
            {"a": timing(None, None, "wrong"), "b": timing(10, 20)},
            False,
            ("b", "b", "slower, but asked for: 0.50 × the speed of dense"),
        ),
        (
            {"a": timing(None, None, "no"), "b": timing(None, None, "nor")},
            True,
            (None, "a", "a: no; b: nor"),
        ),
        ({}, True, (None, None, "no backend")),
        (
            {"a": timing(10, 5, wrong=(3,))},
            True,
            ("a", "a", "2.00 × the speed of dense; wrong results by algorithm 3, not used"),
        ),
        (
            {"a": timing(10, 20, wrong=(3, 12))},
            True,
            (
                None,
                "a",
                "slower: 0.50 × the speed of dense; wrong results by algorithms 3, 12, not used",
            ),
        ),
    ],
)
def test_choice(timings, only, expected):
    assert choose(timings, only_if_faster=only) == expected


def test_the_table_fits():
    rows = [  # the longest cells there are
        LayerDecision(path="model.decoder.layers.31.mlp.down_proj", shape=(4096, 16384),
                      tokens=131072, backend="cusparselt", dense_us=123456.7, sparse_us=98765.4,
                      decision="masked dense", reason="a long reason " * 12,
                      algorithms=(90, 801, 1, 131072, 12, 34)),
        LayerDecision(path="0", shape=(8, 8), tokens=0, backend=None,
                      dense_us=None, sparse_us=None, decision="dense", reason="short"),
    ]  # fmt: skip
    table = Acceleration(rows)
    lines = str(table).splitlines()
    assert max(map(len, lines)) <= 120
    assert lines[0].split("  ")[-1] == "reason"
    start = lines[0].index("reason")
    assert lines[1].startswith(
        "….layers.31.mlp.down_proj  4096×16384  131072  cusparselt/12,34  123456.7"
    )
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

    quick_us, slow_us = medians_us(
        [lambda i: None, slow], torch.device("cpu"), rotation=3, repeats=3, warm_up=1
    )
    assert 10_000 <= slow_us < 29_000
    assert quick_us < 2000
    assert taken == [0, 1, 2] * 4


def test_a_loop_waits_for_the_slower_of_the_two():
    assert CallTime(device_us=10.0, host_us=30.0).in_use_us == 30.0
    assert CallTime(device_us=10.0, host_us=3.0).in_use_us == 10.0
    (taken,) = call_times([lambda i: None], torch.device("cpu"), repeats=1, warm_up=0)
    assert taken.device_us == taken.host_us  # a CPU is both


def test_nothing_is_captured_on_a_cpu():
    called = []
    assert graph_medians_us([called.append, called.append], torch.device("cpu"), rotation=2) == [
        None,
        None,
    ]
    assert not called


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
    calls = Counter(
        {
            Call(5, torch.float32, torch.device("cpu")): 2,
            Call(0, torch.float32, torch.device("cpu")): 1,
        }
    )
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
    assert refused.failure.startswith(
        "failed with cannot pack a torch.bfloat16 weight of shape (16, 16) for cutlass"
    )
    raised = measure(
        weight.bfloat16(), torch.zeros(4, dtype=torch.bfloat16), calls, "cutlass", training=True
    )
    assert raised.failure.startswith("failed with bias must be (16,)")


@pytest.mark.parametrize("training", [False, True])
def test_products_of_one_shape_are_searched_once(training):
    """What was found for other layers is taken, forward and backward each by its own shape."""
    cpu = torch.device("cpu")
    weight, bias = torch.zeros(32, 64), torch.zeros(32)
    searched = {
        Product(32, 64, 16, torch.bfloat16, True, cpu): Searched(3, {5: "y is off"}),
        Product(64, 32, 16, torch.bfloat16, False, cpu): Searched(4, {6: "y is off as well"}),
        Product(32, 64, 24, torch.bfloat16, True, cpu): Searched(7, {}),
    }
    wrong = {}
    memory = _fastest(weight, bias, Call(13, torch.bfloat16, cpu), training, searched, wrong)
    assert [
        recall(memory, machine_at(None), torch.bfloat16, 13, backward) for backward in (False, True)
    ] == [3, 4 * training]
    assert set(wrong) == ({5, 6} if training else {5})
    assert len(searched) == 3


def test_memory_that_runs_out_is_a_reason():
    """A real allocation that no machine can serve."""
    calls = Counter({Call(2**46, torch.float32, torch.device("cpu")): 1})
    found = measure(masked_(nn.Linear(16, 16)).weight, None, calls, "cusparselt", training=True)
    assert found.dense_us is None
    assert found.failure.startswith(
        "failed with out of memory on the host with 70368744177664 tokens for a weight of shape "
        "(16, 16)"
    )


class Broken(torch.Tensor):
    """A weight on a device that fails as soon as it multiplies."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):
        if function is nn.functional.linear:
            raise torch.AcceleratorError(
                "CUDA error: an illegal memory access was encountered\nmore about it"
            )
        return super().__torch_function__(function, types, args, kwargs or {})


def test_a_device_that_is_lost_is_no_reason_but_an_error():
    calls = Counter({Call(5, torch.float32, torch.device("cpu")): 1})
    weight = masked_(nn.Linear(16, 16)).weight.detach().as_subclass(Broken)
    with pytest.raises(RuntimeError, match="illegal memory access"):
        measure(weight, None, calls, "cusparselt", training=True)


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
