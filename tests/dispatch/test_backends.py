"""What a machine can run is a function of its description, so every branch is asked here."""

import shutil
import subprocess
import sys
import warnings

import pytest
import torch

import nmsolve
from nmsolve.torch.dispatch.availability import (
    Machine,
    _said,
    backends,
    loaded_cusparselt,
    machine_at,
    warn_once,
    why_not,
)

HOPPER = Machine(no_gpu=None, capability=(9, 0), hip=None, cusparselt=602, triton=None)


def machine(**changes):
    return Machine(**{**{name: getattr(HOPPER, name) for name in HOPPER.__slots__}, **changes})


@pytest.mark.parametrize(
    ("changes", "able", "said"),
    [
        ({}, {"triton", "cusparselt", "dense"}, ("cusparselt", "cuSPARSELt 0.6.2")),
        (
            {},
            {"triton", "cusparselt", "dense"},
            ("cutlass", "for compute capability 8.x, this GPU has 9.0"),
        ),
        (
            {"cusparselt": 502},
            {"triton", "dense"},
            ("cusparselt", "needs cuSPARSELt 0.6.2 or newer, this torch has 0.5.2"),
        ),
        ({"cusparselt": None}, {"triton", "dense"}, ("cusparselt", "without cuSPARSELt")),
        (
            {"capability": (8, 0), "cusparselt": 400},
            {"triton", "cusparselt", "cutlass", "dense"},
            ("cutlass", "8.0"),
        ),
        (
            {"capability": (8, 9)},
            {"triton", "cusparselt", "cutlass", "dense"},
            ("cusparselt", "8.9"),
        ),
        (
            {"capability": (12, 0), "cusparselt": 801},
            {"triton", "cusparselt", "dense"},
            ("cusparselt", "0.8.1"),
        ),
        (
            {"cusparselt": 800},
            {"triton", "cusparselt", "dense"},
            ("cusparselt", "0.8.0, compute capability 9.0; 0.8.1 mends"),
        ),
        (
            {"capability": (7, 5)},
            {"triton", "dense"},
            ("cutlass", "8.0 or newer, this GPU has 7.5"),
        ),
        (
            {"hip": "6.4"},
            {"triton", "dense"},
            ("cutlass", "ROCm 6.4, whose hipSPARSELt can multiply 2:4 on gfx942 and gfx950"),
        ),
        (
            {"hip": "7.0", "cusparselt": 205},
            {"triton", "dense"},
            ("cusparselt", "but nmsolve does not use it"),
        ),
        ({"triton": "ImportError: no"}, {"cusparselt", "dense"}, ("triton", "ImportError: no")),
        (
            {"no_gpu": "this torch is a CPU build", "capability": None},
            {"dense"},
            ("triton", "no GPU: this torch is a CPU build"),
        ),
        (
            {"no_gpu": "The NVIDIA driver on your system is too old", "capability": None},
            {"dense"},
            ("cutlass", "is too old"),
        ),
    ],
)
def test_what_a_machine_can_run(changes, able, said):
    found = backends(machine(**changes))
    assert {name for name in found if found[name]} == able
    assert list(found) == ["triton", "cusparselt", "cutlass", "dense"]
    assert len(found) == 4
    assert said[1] in found[said[0]].reason
    head, *lines = str(found).splitlines()
    assert head.split() == ["backend", "for", "reason"]
    assert [line.split()[0] for line in lines if not line.startswith(" ")] == list(found)
    words = " ".join(lines).split()
    assert all(" ".join(found[name].reason.split()) in " ".join(words) for name in found)


def test_a_machine_is_a_machine():
    with pytest.raises(nmsolve.InputError, match="machine must be a Machine"):
        backends("H100")


@pytest.mark.parametrize(
    ("capability", "oldest", "shown"),
    [
        ((8, 0), 400, "0.4.0"),
        ((8, 6), 400, "0.4.0"),
        ((8, 9), 400, "0.4.0"),
        ((9, 0), 602, "0.6.2"),
        ((10, 0), 701, "0.7.1"),
        ((10, 1), 800, "0.8.0"),
        ((10, 3), 800, "0.8.0"),
        ((11, 0), 800, "0.8.0"),
        ((12, 0), 701, "0.7.1"),
        ((12, 1), 800, "0.8.0"),
        ((13, 0), 800, "0.8.0"),
    ],
)
def test_the_oldest_cusparselt_for_an_architecture(capability, oldest, shown):
    assert backends(machine(capability=capability, cusparselt=oldest))["cusparselt"]
    older = backends(machine(capability=capability, cusparselt=oldest - 1))["cusparselt"]
    assert not older
    assert f"needs cuSPARSELt {shown} or newer" in older.reason


@pytest.mark.parametrize(
    ("number", "shown"),
    [
        (602, "0.6.2"),
        (701, "0.7.1"),
        (800, "0.8.0"),
        (801, "0.8.1"),
        (1000, "0.10.0"),
        (1101, "0.11.1"),
    ],
)
def test_versions_as_they_are_written(number, shown):
    assert backends(machine(cusparselt=number))["cusparselt"].reason.startswith(
        f"cuSPARSELt {shown}, compute capability 9.0"
    )


@pytest.mark.parametrize(
    ("capability", "version", "slow"),
    [
        ((9, 0), 800, True),
        ((8, 9), 800, True),
        ((9, 0), 801, False),
        ((9, 0), 701, False),
        ((10, 0), 800, False),
    ],
)
def test_the_version_with_regressions_is_named(capability, version, slow):
    reason = backends(machine(capability=capability, cusparselt=version))["cusparselt"].reason
    assert reason.endswith("0.8.1 mends regressions on it") == slow


LIBRARY = """
int cusparseLtGetProperty(int part, int *value) {
    int parts[] = {0, 10, 2};
    if (part < 0 || part > 2) return 3;
    *value = parts[part];
    return 0;
}
"""


@pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("cc"), reason="compiles a small shared library"
)
def test_the_version_of_a_loaded_library(tmp_path):
    """In a process of its own: a library of that name, by another path, is found once it is loaded,
    and not before.
    """
    path = tmp_path / "elsewhere.so"
    source = tmp_path / "library.c"
    source.write_text(LIBRARY)
    subprocess.run(
        ["cc", "-shared", "-fPIC", "-Wl,-soname,libcusparseLt.so.0", "-o", path, source], check=True
    )
    code = (
        "import ctypes; from nmsolve.torch.dispatch.availability import loaded_cusparselt as "
        "loaded\n"
        f"before = loaded(); ctypes.CDLL({str(path)!r}); print(before, loaded())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    before, after = done.stdout.split()
    assert (before == "None") == (loaded_cusparselt() is None)
    assert after == ("0.10.2" if before == "None" else before)


def test_this_machine():
    if not torch.cuda.is_available():
        assert loaded_cusparselt() is None
        assert backends()["triton"].reason.startswith("no GPU: ")
    if torch.version.cuda is None and torch.version.hip is None:
        assert backends()["cutlass"].reason == "no GPU: this torch is a CPU build"
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
        (
            "cusparselt",
            (24, 16),
            torch.float16,
            "cuda",
            "multiples of 16 × 16, the weight is 24 × 16",
        ),
        ("cusparselt", (0, 16), torch.float16, "cuda", "multiples of 16 × 16"),
        ("cusparselt", (16, 16), torch.float32, "cuda", "float32 is 1:2"),
        (
            "cusparselt",
            (64, 64),
            torch.int8,
            "cuda",
            "int8 needs scales, which nmsolve does not manage",
        ),
        (
            "cusparselt",
            (64, 64),
            torch.float8_e4m3fn,
            "cuda",
            "float8_e4m3fn needs scales, which nmsolve does not manage, though",
        ),
        (
            "cusparselt",
            (64, 64),
            torch.float8_e5m2,
            "cuda",
            "torch has no 2:4 product of float8_e5m2",
        ),
        ("cusparselt", (64, 64), torch.float64, "cuda", "torch has no 2:4 product of float64"),
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


def test_a_driver_that_is_too_old_is_the_reason(monkeypatch):
    """As torch says it, built for CUDA: a warning from is_available, an error from init."""
    said = (
        "The NVIDIA driver on your system is too old (found version 11040). Please update your "
        "GPU driver"
    )

    def is_available():
        warnings.warn(f"CUDA initialization: {said}", UserWarning, stacklevel=2)
        return False

    def init():
        raise RuntimeError(f"{said}\nand more lines about it")

    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", is_available)
    monkeypatch.setattr(torch.cuda, "init", init)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nobody asked for a GPU, so the warning is not an error
        found = backends()
    assert {found[name].reason for name in ("triton", "cusparselt", "cutlass")} == {
        f"no GPU: {said}"
    }
    assert found["dense"]


def test_what_torch_says_of_a_missing_gpu_is_the_reason(monkeypatch):
    """A build for CUDA without CUDA: here it is what torch says of that, elsewhere what it says of
    the driver.
    """
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    here = Machine.here()
    if torch.cuda.is_available():
        assert here.no_gpu is None
        assert here.capability is not None
    else:
        assert here.capability is None
        with pytest.raises((RuntimeError, AssertionError)) as caught:
            torch.cuda.init()
        assert here.no_gpu == str(caught.value).splitlines()[0]
        assert backends(here)["cusparselt"].reason == f"no GPU: {here.no_gpu}"


if torch.cuda.is_available():

    @pytest.mark.gpu
    def test_the_loaded_library_is_that_of_this_machine():
        if not torch.backends.cusparselt.is_available():
            assert loaded_cusparselt() is None
            return
        loaded = loaded_cusparselt()
        assert loaded is not None  # torch's own builds link it dynamically
        assert f"cuSPARSELt {loaded}, " in backends()["cusparselt"].reason
        assert machine_at(None) == Machine.here()

    @pytest.mark.gpu
    def test_a_forked_process_says_why_it_has_no_gpu():
        code = (
            "import os, torch; from nmsolve.torch.dispatch.availability import backends\n"
            "torch.zeros(1, device='cuda')\n"
            "if os.fork() == 0:\n    print(backends()['triton'].reason, flush=True)\n    "
            "os._exit(0)\nos.wait()"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True
        )
        assert "forked subprocess" in done.stdout
