"""The meaning of a device's errors: memory that ran out, which less work avoids, or a context that
is lost for good.
"""

from __future__ import annotations

import contextlib
import errno
from collections.abc import Iterator

import torch

from nmsolve.errors import NMSolveError, SolverError

#: Parts of the messages of allocators of the host that found no memory.
_ON_THE_HOST = ("can't allocate memory", "Cannot allocate memory", "std::bad_alloc")
#: Parts of the messages of allocators and libraries that found no memory. Not all of them raise
#: torch.OutOfMemoryError.
_NO_MEMORY = ("out of memory", "STATUS_ALLOC_FAILED", *_ON_THE_HOST)
_REMEDY = "free some, or work on less at a time"
#: Parts of the messages of errors after which every later call of the process on the device fails
#: (cudaGetErrorString).
_LOST = (
    "illegal memory access",
    "illegal instruction",
    "misaligned address",
    "operation not supported on global/shared address space",
    "invalid program counter",
    "hardware stack error",
    "unspecified launch failure",
    "device-side assert",
    "the launch timed out",
    "context is destroyed",
    "uncorrectable ECC error",
    "uncorrectable NVLink error",
)


def explain(
    error: BaseException, what: str, device: torch.device, remedy: str = _REMEDY
) -> NMSolveError | None:
    """The library's own error for a device that ran out of memory or was lost; None for every other
    error.

    Parameters
    ----------
    error : BaseException
        As it was caught. Errors of the library itself are explained already: None.
    what : str
        What was worked on: "weights of shape (8192, 8192), torch.float32, on cuda:0".
    device : torch.device
        Where.
    remedy : str
        What takes less memory.

    Returns
    -------
    SolverError or None
        To be raised `from error`. It is a RuntimeError, as the errors it stands for are.

    Notes
    -----
    A caller that has other ways to go on may take them after memory ran out, but not after a
    context was lost: see `is_lost`.

    Examples
    --------
    >>> error = torch.OutOfMemoryError("CUDA out of memory.")
    >>> explain(error, "weights of shape (8, 8)", torch.device("cpu")).args[0][:49]
    'out of memory on cpu with weights of shape (8, 8)'
    >>> explain(KeyError("x"), "weights of shape (8, 8)", torch.device("cpu")) is None
    True
    """
    if is_out_of_memory(error):
        where = (
            "the host"
            if isinstance(error, MemoryError | OSError)
            or any(part in str(error) for part in _ON_THE_HOST)
            else f"{device}{_memory(device)}"
        )
        return SolverError(f"out of memory on {where} with {what}: {remedy} ({first_line(error)})")
    if is_lost(error, device):
        return SolverError(
            f"{device} failed with {what}: {first_line(error)}; the CUDA context of this process "
            "is lost, and nothing runs on that GPU until the process is started again"
        )
    return None


@contextlib.contextmanager
def explained(what: str, device: torch.device, remedy: str = _REMEDY) -> Iterator[None]:
    """Raise errors of devices as the library's own (`explain`), which say what was at work."""
    try:
        yield
    except (RuntimeError, MemoryError, OSError) as error:
        own = explain(error, what, device, remedy)
        if own is None:
            raise
        raise own from error


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that an allocation failed, on a device or on the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    if isinstance(error, OSError):
        return error.errno == errno.ENOMEM
    return _is_foreign(error) and any(part in str(error) for part in _NO_MEMORY)


def is_lost(error: BaseException, device: torch.device) -> bool:
    """Return whether after an error nothing runs on a device any more, in this process.

    Known by the message or, where a library reports a failure of its own, by asking the device: a
    lost context fails every call.
    """
    if not _is_foreign(error):
        return False
    if any(part in str(error) for part in _LOST):
        return True
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize(device)
    except RuntimeError:
        return True
    return False


def first_line(error: BaseException) -> str:
    """Return the text of an error, on one line; its type if it says nothing."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _is_foreign(error: BaseException) -> bool:
    """Errors of devices are RuntimeErrors in torch and Triton; those of the library are too, and
    say already what they mean.
    """
    return isinstance(error, RuntimeError) and not isinstance(error, NMSolveError)


def _memory(device: torch.device) -> str:
    """Return how much is free, where the device tells."""
    if device.type != "cuda" or not torch.cuda.is_initialized():
        return ""
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # the error at hand may have taken the context with it
        return ""
    return f" ({free / 2**30:,.1f} of {total / 2**30:,.1f} GiB free)"
