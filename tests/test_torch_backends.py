"""What a machine can run is a function of its description, so every branch is asked here."""

import warnings

import pytest
import torch

import nmsolve
from nmsolve.torch.dispatch.backends import Machine, _said, backends, warn_once, why_not

HOPPER = Machine(cuda=True, capability=(9, 0), hip=None, cusparselt=602, triton=None)


def machine(**changes):
    return Machine(**{**{name: getattr(HOPPER, name) for name in HOPPER.__slots__}, **changes})


@pytest.mark.parametrize(
    ("changes", "able", "said"),
    [
        ({}, {"triton", "cusparselt", "dense"}, ("cusparselt", "cuSPARSELt 0.6.2")),
        ({}, {"triton", "cusparselt", "dense"}, ("cutlass", "for compute capability 8.x, this GPU has 9.0")),
        ({"cusparselt": 502}, {"triton", "dense"}, ("cusparselt", "needs cuSPARSELt 0.6.2 or newer, this torch has 0.5.2")),
        ({"cusparselt": None}, {"triton", "dense"}, ("cusparselt", "without cuSPARSELt")),
        ({"capability": (8, 0), "cusparselt": 400}, {"triton", "cusparselt", "cutlass", "dense"}, ("cutlass", "8.0")),
        ({"capability": (8, 9)}, {"triton", "cusparselt", "cutlass", "dense"}, ("cusparselt", "8.9")),
        ({"capability": (10, 0)}, {"triton", "dense"}, ("cusparselt", "needs cuSPARSELt 0.7.0")),
        ({"capability": (12, 0), "cusparselt": 801}, {"triton", "cusparselt", "dense"}, ("cusparselt", "0.8.1")),
        ({"capability": (7, 5)}, {"triton", "dense"}, ("cutlass", "8.0 or newer, this GPU has 7.5")),
        ({"hip": "6.4"}, {"triton", "dense"}, ("cutlass", "ROCm 6.4")),
        ({"triton": "ImportError: no"}, {"cusparselt", "dense"}, ("triton", "ImportError: no")),
        ({"cuda": False, "capability": None}, {"dense"}, ("triton", "torch.cuda.is_available() is False")),
    ],
)
def test_what_a_machine_can_run(changes, able, said):
    found = backends(machine(**changes))
    assert {name for name in found if found[name]} == able
    assert list(found) == ["triton", "cusparselt", "cutlass", "dense"]
    assert len(found) == 4
    assert said[1] in found[said[0]].reason
    lines = str(found).splitlines()
    assert len(lines) == 5
    assert all(found[name].reason in line for name, line in zip(found, lines[1:], strict=True))


def test_this_machine():
    found = backends()
    assert found["dense"].available
    assert found["cusparselt"].available <= torch.cuda.is_available()
    assert found == backends()
    assert repr(found) == str(found)


@pytest.mark.parametrize(
    ("backend", "shape", "dtype", "device", "said"),
    [
        ("cusparselt", (16, 16), torch.bfloat16, "cuda", None),
        ("cusparselt", (16, 16), torch.float16, "cuda:0", None),
        ("cusparselt", (24, 16), torch.float16, "cuda", "multiples of 16 × 16, the weight is 24 × 16"),
        ("cusparselt", (0, 16), torch.float16, "cuda", "multiples of 16 × 16"),
        ("cusparselt", (16, 16), torch.float32, "cuda", "float32 is 1:2"),
        ("cusparselt", (64, 64), torch.int8, "cuda", "int8 needs scales"),
        ("cusparselt", (64, 64), torch.float64, "cuda", "no float64"),
        ("cusparselt", (64, 64), torch.float16, "cpu", "the weight is on cpu"),
        ("cusparselt", (64,), torch.float16, "cuda", "(out_features, in_features)"),
        ("cutlass", (32, 64), torch.float16, "cuda", "8.x, this GPU has 9.0"),
        ("cutlass", (32, 32), torch.float16, "cuda", "multiples of 32 × 64, the weight is 32 × 32"),
    ],
)
def test_why_not(backend, shape, dtype, device, said):
    reason = why_not(backend, shape, dtype, device, HOPPER)
    assert (reason is None) if said is None else said in reason


def test_cutlass_serves_ampere():
    assert why_not("cutlass", (32, 64), torch.bfloat16, "cuda", machine(capability=(8, 6))) is None


def test_an_unknown_backend_is_named():
    with pytest.raises(nmsolve.InputError, match="'cusparselt', 'cutlass', got 'dense'"):
        why_not("dense", (64, 64), torch.bfloat16, "cuda")


def test_a_topic_is_said_once():
    _said.discard("a test")
    with pytest.warns(UserWarning, match="first"):
        warn_once("a test", "first")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_once("a test", "second")
    _said.discard("a test")
