"""The engines that this machine can run, and why not the others: the GPU solver, and 2:4 matmuls
through cuSPARSELt or CUTLASS.

Every decision is a pure function of a `Machine`, so it can be asked about machines that are not at
hand.
"""

from __future__ import annotations

import ctypes
import functools
import os
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from nmsolve.errors import InputError
from nmsolve.table import table
from nmsolve.torch.device.failures import first_line

#: Rows and columns of a 2:4 weight are multiples of these, for float16 and bfloat16
#: (torch.sparse.semi_structured).
TILES: Mapping[str, tuple[int, int]] = {"cusparselt": (16, 16), "cutlass": (32, 64)}
#: Backends of a 2:4 matmul, the preferred one first.
SPARSE_BACKENDS = tuple(TILES)
#: The oldest cuSPARSELt that serves a compute capability, by NVIDIA's release notes; of 8.x the
#: oldest that torch was built with.
_CUSPARSELT_SINCE = {
    (9, 0): 602,
    (10, 0): 701,
    (12, 0): 701,
    (10, 1): 800,
    (11, 0): 800,
    (12, 1): 800,
}
_CUSPARSELT_SINCE_AMPERE = 400
#: From this version on, cuSPARSELt serves capabilities that are newer than itself.
_FORWARD_COMPATIBLE = 800
#: Where cuSPARSELt 0.8.0 is slower than 0.7.1 was: NVIDIA names H100 and L4, and 0.8.1 mends it.
_SLOW_AT_0_8_0 = ((9, 0), (8, 9))
_TITLES = {
    "triton": "masks solved on the GPU",
    "cusparselt": "2:4 matmul",
    "cutlass": "2:4 matmul",
    "dense": "masked dense matmul",
}
_said: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The facts that backends are decided from.

    Attributes
    ----------
    no_gpu : str or None
        None if torch sees a GPU, else why it does not.
    capability : (int, int) or None
        The GPU's compute capability.
    hip : str or None
        torch's ROCm version.
    cusparselt : int or None
        The version that is loaded or, where that cannot be told, that torch was built with: 602 for
        0.6.2. None if torch was built without.
    triton : str or None
        None if it can be imported, else the error.
    """

    no_gpu: str | None
    capability: tuple[int, int] | None
    hip: str | None
    cusparselt: int | None
    triton: str | None

    @classmethod
    def here(cls, device: int | None = None) -> Machine:
        """Return the machine this runs on, seen from a GPU of it (by default the current one)."""
        no_gpu = _why_no_gpu()
        capability = None
        if no_gpu is None:
            try:
                capability = torch.cuda.get_device_capability(device)
            # In a process that was forked after its parent had used CUDA.
            except RuntimeError as error:
                no_gpu = first_line(error)
        known = torch.backends.cusparselt
        try:
            import triton  # noqa: F401

            triton_error = None
        except Exception as error:  # a broken installation raises anything
            triton_error = f"{type(error).__name__}: {error}"
        return cls(
            no_gpu=no_gpu,
            capability=capability,
            hip=torch.version.hip,
            cusparselt=(_loaded_number() or known.version())
            if no_gpu is None and known.is_available()
            else None,
            triton=triton_error,
        )


def _why_no_gpu() -> str | None:
    """Return why torch sees no GPU, on one line; None if it sees one."""
    if torch.version.cuda is None and torch.version.hip is None:
        return "this torch is a CPU build"
    with warnings.catch_warnings():
        # torch warns of a driver that it cannot use, where nobody may have asked for a GPU.
        warnings.simplefilter("ignore")
        if torch.cuda.is_available():
            return None
    try:
        torch.cuda.init()
    except (RuntimeError, AssertionError) as error:  # raised before anything was initialised
        return first_line(error)
    return "torch.cuda.is_available() is False"


def loaded_cusparselt() -> str | None:
    """Return the version of the cuSPARSELt library that this process has loaded, "0.8.1"; None
    where that cannot be told.

    It may be newer than the one that torch was compiled with, which is what
    `torch.backends.cusparselt.version()` gives.
    """
    number = _loaded_number()
    return None if number is None else _version(number)


def _loaded_number() -> int | None:
    """Return the version of the loaded cuSPARSELt as torch numbers versions: the library tells
    without a handle or a GPU.
    """
    try:
        # RTLD_NOLOAD finds what is loaded and never loads anything. All versions so far share this
        # name.
        library = ctypes.CDLL("libcusparseLt.so.0", mode=os.RTLD_NOLOAD | os.RTLD_NOW)
        parts = []
        for part in range(3):  # libraryPropertyType: MAJOR_VERSION, MINOR_VERSION, PATCH_LEVEL
            value = ctypes.c_int(-1)
            if library.cusparseLtGetProperty(part, ctypes.byref(value)) != 0:
                return None
            parts.append(value.value)
    except (OSError, AttributeError):  # not loaded; not Linux, or linked into torch itself
        return None
    major, minor, patch = parts
    return 1000 * major + 100 * minor + patch


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One entry of `backends`. True in a condition if it is available.

    Attributes
    ----------
    name : {"triton", "cusparselt", "cutlass", "dense"}
    available : bool
        Whether this machine can run it.
    purpose : str
        What it is for.
    reason : str
        What serves it, or why nothing does.
    """

    name: str
    available: bool
    purpose: str
    reason: str

    def __bool__(self) -> bool:
        return self.available


class Backends(Mapping[str, Backend]):
    """Backends by name. Prints as a table."""

    def __init__(self, entries: Mapping[str, Backend]) -> None:
        self._entries = dict(entries)

    def __getitem__(self, name: str) -> Backend:
        return self._entries[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __str__(self) -> str:
        rows = [
            (b.name, b.purpose, "yes" if b.available else "no", b.reason) for b in self.values()
        ]
        return table(("backend", "for", "", "reason"), rows)

    __repr__ = __str__


def backends(machine: Machine | None = None) -> Backends:
    """Return what a machine can run, and why not the rest.

    Parameters
    ----------
    machine : Machine, optional
        The one this runs on by default.

    Returns
    -------
    Backends
        A mapping from "triton", "cusparselt", "cutlass" and "dense" to `Backend`. Prints as a
        table.

    Raises
    ------
    InputError
        If `machine` is none.

    Examples
    --------
    >>> old = Machine(no_gpu=None, capability=(7, 5), hip=None, cusparselt=602, triton=None)
    >>> print(backends(old)["cusparselt"].reason)
    2:4 needs compute capability 8.0 or newer, this GPU has 7.5
    """
    if machine is None:
        machine = Machine.here()
    elif not isinstance(machine, Machine):
        raise InputError(
            f"machine must be a Machine, or None for this one, got {type(machine).__name__}"
        )
    entries = {}
    for name, title in _TITLES.items():
        reason = _missing(name, machine)
        entries[name] = Backend(
            name=name,
            available=reason is None,
            purpose=title,
            reason=_served_by(name, machine) if reason is None else reason,
        )
    return Backends(entries)


def check_backend(backend: object) -> None:
    """Raise InputError unless a layer can have a backend of this name."""
    if backend != "dense" and backend not in SPARSE_BACKENDS:
        raise InputError(
            f"backend must be one of 'dense', {', '.join(map(repr, SPARSE_BACKENDS))}; got "
            f"{backend!r}"
        )


def why_not(
    backend: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str,
    machine: Machine | None = None,
) -> str | None:
    """Return why a 2:4 backend cannot multiply by a weight; None if it can.

    Parameters
    ----------
    backend : {"cusparselt", "cutlass"}
    shape, dtype, device
        Of the weight (out_features, in_features).
    machine : Machine, optional
        The one this runs on, seen from `device`, by default.

    Returns
    -------
    str or None

    Notes
    -----
    Says nothing about the values: whether they are 2:4 is `is_2to4`'s question.

    Examples
    --------
    >>> why_not("cutlass", (64, 64), torch.bfloat16, "cpu")
    '2:4 matmuls run on a GPU, the weight is on cpu'
    """
    if backend not in TILES:
        raise InputError(
            f"a 2:4 backend is one of {', '.join(map(repr, SPARSE_BACKENDS))}, got {backend!r}"
        )
    if len(shape) != 2:
        return f"a weight is (out_features, in_features), got shape {tuple(shape)}"
    unsuitable = _unsuitable_dtype(dtype)
    if unsuitable:
        return unsuitable
    rows, cols = TILES[backend]
    if shape[0] % rows or shape[1] % cols or 0 in shape:
        return (
            f"{backend} needs multiples of {rows} × {cols}, the weight is {shape[0]} × {shape[1]}"
        )
    device = torch.device(device)
    if device.type != "cuda":
        return f"2:4 matmuls run on a GPU, the weight is on {device}"
    return _missing(backend, machine or machine_at(device.index))


def _unsuitable_dtype(dtype: torch.dtype) -> str | None:
    if dtype in (torch.float16, torch.bfloat16):
        return None
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float32:
        return (
            "float32 is 1:2 on sparse tensor cores, not 2:4; use bfloat16 or float16 (or "
            "autocast, in training)"
        )
    if dtype in (torch.int8, torch.float8_e4m3fn):
        # torch's cuSPARSELt gives int8 as int8, int32 or 16 bits, e4m3 (since 0.6.2) as e4m3, 16
        # bits or float32.
        return (
            f"{name} needs scales, which nmsolve does not manage, though torch's cuSPARSELt "
            "takes it; use bfloat16 or float16"
        )
    return f"torch has no 2:4 product of {name}; use bfloat16 or float16"


@functools.cache
def machine_at(index: int | None) -> Machine:
    """Return the machine this runs on, seen from a GPU: asked once, because layers ask at every
    call.
    """
    return Machine.here(index)


def _missing(name: str, machine: Machine) -> str | None:
    """Return why a machine cannot run a backend; None if it can."""
    if name == "dense":
        return None
    if machine.capability is None:
        return f"no GPU: {machine.no_gpu}"
    if name == "triton":
        return None if machine.triton is None else f"triton cannot be imported ({machine.triton})"
    if machine.hip is not None:
        return (
            f"nmsolve serves 2:4 on NVIDIA GPUs only: this torch is for ROCm {machine.hip}, whose "
            "hipSPARSELt can multiply 2:4 on gfx942 and gfx950, but nmsolve does not use it"
        )
    at = "{}.{}".format(*machine.capability)
    if machine.capability < (8, 0):
        return f"2:4 needs compute capability 8.0 or newer, this GPU has {at}"
    if name == "cutlass":
        return (
            None
            if machine.capability < (9, 0)
            else f"torch's CUTLASS 2:4 is for compute capability 8.x, this GPU has {at}"
        )
    if machine.cusparselt is None:
        return (
            "this torch was built without cuSPARSELt: install one of PyTorch's own CUDA builds "
            "for Linux, which have it"
        )
    oldest = _oldest_cusparselt(machine.capability)
    if machine.cusparselt < oldest:
        return (
            f"compute capability {at} needs cuSPARSELt {_version(oldest)} or newer, this torch "
            f"has {_version(machine.cusparselt)}"
        )
    return None


def _oldest_cusparselt(capability: tuple[int, int]) -> int:
    if capability < (9, 0):
        return _CUSPARSELT_SINCE_AMPERE
    return _CUSPARSELT_SINCE.get(capability, _FORWARD_COMPATIBLE)


def _served_by(name: str, machine: Machine) -> str:
    if name == "dense":
        return "always: any device and dtype"
    at = "compute capability {}.{}".format(*(machine.capability or (0, 0)))
    if name == "cusparselt":
        slow = machine.cusparselt == 800 and machine.capability in _SLOW_AT_0_8_0
        return (
            f"cuSPARSELt {_version(machine.cusparselt or 0)}, {at}"
            + "; 0.8.1 mends regressions on it" * slow
        )
    return at


def _version(number: int) -> str:
    """Return "0.6.2" for 602, which is 1000 × major + 100 × minor + patch.

    From minor 10 on that is ambiguous. There is a 0.10.0 and no 1.0.0, so 1000 is the former.
    """
    return f"0.{number // 100}.{number % 100}"


def warn_once(topic: str, message: str) -> None:
    """Give a UserWarning the first time a topic comes up in this process: not once per layer, nor
    once per step.
    """
    if topic not in _said:
        _said.add(topic)
        warnings.warn(message, UserWarning, stacklevel=3)
