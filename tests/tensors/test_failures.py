"""Errors of devices, as torch raises them: what is memory, what is a lost context, and what is
neither.
"""

import pytest
import torch

import nmsolve
from nmsolve.torch.device.failures import explain, first_line, is_lost, is_out_of_memory

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
WHAT = "weights of shape (8192, 8192), torch.float32, on cuda:0"


def allocation_error():
    """The host's own, from torch: no machine has as much."""
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**55, dtype=torch.uint8)
    return caught.value


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError(
            "CUDA out of memory. Tried to allocate 2.00 GiB.\nSee the documentation"
        ),
        torch.OutOfMemoryError(""),
        RuntimeError(
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"
        ),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        MemoryError("Unable to allocate 1. TiB for an array"),
        RuntimeError("std::bad_alloc"),
        allocation_error(),
    ],
)
def test_memory_that_ran_out(error):
    assert is_out_of_memory(error)
    found = explain(error, WHAT, GPU)
    assert type(found) is nmsolve.SolverError
    assert isinstance(found, RuntimeError)  # who catches what torch raises catches this
    on_host = isinstance(error, MemoryError) or any(
        part in str(error) for part in ("DefaultCPUAllocator", "bad_alloc")
    )
    assert str(found).startswith(f"out of memory on {'the host' if on_host else 'cuda:0'}")
    assert f"with {WHAT}: free some, or work on less at a time" in str(found)
    assert str(found).endswith(f"({first_line(error)})")
    assert len(str(found).splitlines()) == 1


LOST = [
    RuntimeError(
        "CUDA error: an illegal memory access was encountered\nCUDA kernel errors might be"
    ),
    RuntimeError("CUDA error: unspecified launch failure"),
    RuntimeError("CUDA error: device-side assert triggered"),
    RuntimeError("Triton Error [CUDA]: misaligned address"),
    RuntimeError("HIP error: an illegal memory access was encountered"),
    torch.AcceleratorError("CUDA error: uncorrectable ECC error encountered"),
]


@pytest.mark.parametrize("error", LOST)
def test_a_context_that_is_lost(error):
    assert is_lost(error, GPU)
    assert not is_out_of_memory(error)
    found = explain(error, WHAT, GPU)
    assert type(found) is nmsolve.SolverError
    assert str(found).startswith(
        f"cuda:0 failed with {WHAT}: {first_line(error)}; the CUDA context of this process is lost"
    )
    assert "started again" in str(found)


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("CUDA error: invalid configuration argument"),
        RuntimeError(
            "CUDA error: CUSPARSE_STATUS_NOT_SUPPORTED when calling `cusparseLtMatmul(…)`"
        ),
        RuntimeError("mat1 and mat2 shapes cannot be multiplied"),
        KeyError("out of memory"),
        ValueError("illegal memory access"),
        KeyboardInterrupt(),
        nmsolve.InputError("weights that speak of an illegal memory access"),
        nmsolve.SolverError("out of memory, explained before"),
    ],
)
@pytest.mark.parametrize("device", [CPU, GPU])
def test_errors_that_are_neither(error, device):
    assert not is_out_of_memory(error)
    assert not is_lost(error, device)
    assert explain(error, WHAT, device) is None


def test_first_lines():
    assert first_line(RuntimeError("  one\ntwo")) == "one"
    assert first_line(RuntimeError("")) == "RuntimeError"
    assert first_line(MemoryError()) == "MemoryError"


if torch.cuda.is_available():

    @pytest.mark.gpu
    def test_free_memory_is_told():
        with pytest.raises(torch.OutOfMemoryError) as caught:
            torch.empty(2**50, dtype=torch.uint8, device="cuda")
        assert " GiB free) with" in str(explain(caught.value, WHAT, GPU))

    @pytest.mark.gpu
    def test_a_refused_call_does_not_lose_the_context():
        torch.zeros(1, device="cuda")
        assert not is_lost(RuntimeError("CUDA error: CUSPARSE_STATUS_NOT_SUPPORTED"), GPU)
