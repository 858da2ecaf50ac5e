"""What this machine can run, and why not: the GPU solver, and 2:4 matmuls through cuSPARSELt or CUTLASS.

Every decision is a pure function of a `Machine`, so it can be asked about machines that are not at hand.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch

from nmsolve.errors import InputError

#: Rows and columns of a 2:4 weight are multiples of these, for float16 and bfloat16 (torch.sparse.semi_structured).
TILES: Mapping[str, tuple[int, int]] = {"cusparselt": (16, 16), "cutlass": (32, 64)}
#: Backends of a 2:4 matmul, the preferred one first.
SPARSE_BACKENDS = tuple(TILES)
#: The oldest cuSPARSELt that serves an architecture: (compute capability, version).
_CUSPARSELT_SINCE = (((10, 0), 700), ((9, 0), 602), ((8, 0), 400))
_TITLES = {
    "triton": "masks solved on the GPU",
    "cusparselt": "2:4 matmul",
    "cutlass": "2:4 matmul",
    "dense": "masked dense matmul",
}
_said: set[str] = set()


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """What backends are decided from.

    cuda : whether torch sees a GPU. capability : its compute capability. hip : torch's ROCm version. cusparselt : version as
    torch gives it, 602 for 0.6.2; None if torch was built without. triton : None if it can be imported, else the error.
    """

    cuda: bool
    capability: tuple[int, int] | None
    hip: str | None
    cusparselt: int | None
    triton: str | None

    @classmethod
    def here(cls, device: int | None = None) -> Machine:
        """The machine this runs on, seen from one of its GPUs (the current one by default)."""
        cuda = torch.cuda.is_available()
        known = torch.backends.cusparselt
        try:
            import triton  # noqa: F401

            triton_error = None
        except Exception as error:  # a broken installation raises anything
            triton_error = f"{type(error).__name__}: {error}"
        return cls(
            cuda=cuda,
            capability=torch.cuda.get_device_capability(device) if cuda else None,
            hip=torch.version.hip,
            cusparselt=known.version() if cuda and known.is_available() else None,
            triton=triton_error,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Backend:
    """One entry of `backends`: what it is for, whether this machine can run it, and by what or why not."""

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
        rows = [("backend", "for", "", "reason")]
        rows += [(b.name, b.purpose, "yes" if b.available else "no", b.reason) for b in self.values()]
        widths = [max(len(row[i]) for row in rows) for i in range(3)]
        return "\n".join(
            "  ".join([*(cell.ljust(w) for cell, w in zip(row, widths, strict=False)), row[3]]).rstrip() for row in rows
        )

    __repr__ = __str__


def backends(machine: Machine | None = None) -> Backends:
    """What a machine can run, and why not.

    Parameters
    ----------
    machine : Machine, optional
        The one this runs on by default.

    Returns
    -------
    Backends
        A mapping from "triton", "cusparselt", "cutlass" and "dense" to `Backend`. Prints as a table.

    Examples
    --------
    >>> old = Machine(cuda=True, capability=(7, 5), hip=None, cusparselt=602, triton=None)
    >>> print(backends(old)["cusparselt"].reason)
    2:4 needs compute capability 8.0 or newer, this GPU has 7.5
    """
    machine = machine or Machine.here()
    entries = {}
    for name, title in _TITLES.items():
        reason = _missing(name, machine)
        entries[name] = Backend(
            name=name, available=reason is None, purpose=title, reason=_served_by(name, machine) if reason is None else reason
        )
    return Backends(entries)


def why_not(
    backend: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device | str,
    machine: Machine | None = None,
) -> str | None:
    """Why a 2:4 backend cannot multiply by a weight; None if it can.

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
        raise InputError(f"a 2:4 backend is one of {', '.join(map(repr, SPARSE_BACKENDS))}, got {backend!r}")
    if len(shape) != 2:
        return f"a weight is (out_features, in_features), got shape {tuple(shape)}"
    unsuitable = _unsuitable_dtype(dtype)
    if unsuitable:
        return unsuitable
    rows, cols = TILES[backend]
    if shape[0] % rows or shape[1] % cols or 0 in shape:
        return f"{backend} needs multiples of {rows} × {cols}, the weight is {shape[0]} × {shape[1]}"
    device = torch.device(device)
    if device.type != "cuda":
        return f"2:4 matmuls run on a GPU, the weight is on {device}"
    return _missing(backend, machine or _machine_at(device.index))


def _unsuitable_dtype(dtype: torch.dtype) -> str | None:
    if dtype in (torch.float16, torch.bfloat16):
        return None
    name = str(dtype).removeprefix("torch.")
    if dtype == torch.float32:
        return "float32 is 1:2 on sparse tensor cores, not 2:4; use bfloat16 or float16 (or autocast, in training)"
    if dtype in (torch.int8, torch.float8_e4m3fn):
        return f"{name} needs scales, which are not served here; use bfloat16 or float16"
    return f"sparse tensor cores have no {name}; use bfloat16 or float16"


@functools.cache
def _machine_at(index: int | None) -> Machine:
    return Machine.here(index)


def _missing(name: str, machine: Machine) -> str | None:
    """Why a machine cannot run a backend."""
    if name == "dense":
        return None
    if not machine.cuda or machine.capability is None:
        return "no GPU: torch.cuda.is_available() is False"
    if name == "triton":
        return None if machine.triton is None else f"triton cannot be imported ({machine.triton})"
    if machine.hip is not None:
        return f"2:4 is served on NVIDIA GPUs only, this torch is for ROCm {machine.hip}"
    at = "{}.{}".format(*machine.capability)
    if machine.capability < (8, 0):
        return f"2:4 needs compute capability 8.0 or newer, this GPU has {at}"
    if name == "cutlass":
        return None if machine.capability < (9, 0) else f"torch's CUTLASS 2:4 is for compute capability 8.x, this GPU has {at}"
    if machine.cusparselt is None:
        return "this torch was built without cuSPARSELt"
    oldest = next(version for since, version in _CUSPARSELT_SINCE if machine.capability >= since)
    if machine.cusparselt < oldest:
        return (
            f"compute capability {at} needs cuSPARSELt {_version(oldest)} or newer, this torch has {_version(machine.cusparselt)}"
        )
    return None


def _served_by(name: str, machine: Machine) -> str:
    if name == "dense":
        return "always: any device and dtype"
    at = "compute capability {}.{}".format(*(machine.capability or (0, 0)))
    if name == "cusparselt":
        return f"cuSPARSELt {_version(machine.cusparselt or 0)}, {at}"
    return at


def _version(number: int) -> str:
    """0.6.2 from 602: 1000 × major + 100 × minor + patch."""
    return f"{number // 1000}.{number // 100 % 10}.{number % 100}"


def warn_once(topic: str, message: str) -> None:
    """A UserWarning the first time a topic comes up in this process: not once a layer, nor once a step."""
    if topic not in _said:
        _said.add(topic)
        warnings.warn(message, UserWarning, stacklevel=3)
