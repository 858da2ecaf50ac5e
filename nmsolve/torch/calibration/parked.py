"""Activations of forwards that stand still, in files instead of memory.

A file is mapped where the activation was: whoever reads or changes it finds it there, and the
system fetches the pages that are touched.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeGuard

import torch
from torch import Tensor, UntypedStorage
from torch.overrides import TorchFunctionMode
from torch.utils.weak import TensorWeakRef

from nmsolve.disk import write_at
from nmsolve.errors import InputError
from nmsolve.torch.calibration.inputs import LESS_MEMORY
from nmsolve.torch.calibration.suspended import Forward, current_forward
from nmsolve.torch.device.failures import explain

#: Bytes of an activation that is worth a file.
_LEAST = 2**16
#: Names of open files, which have no other.
_OPEN = "/dev/fd/"
#: Not in Python's module on all systems.
_DONTNEED = 4


class Parking(TorchFunctionMode):
    """While it lasts, `park` takes what a forward has made out of memory.

    Known are the results of torch's operations in Python, on the CPU. What others may hold in ways
    that are not known stays in memory: memory that arrays share, or tensors of unknown origin.

    Parameters
    ----------
    folder : path
        Where the files lie. They have no names: whatever ends the process, the system takes them
        away; and each is gone with the activation that lies in it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._made: dict[Forward, list[TensorWeakRef]] = {}
        system = ctypes.CDLL(None)
        self._advise = getattr(system, "madvise", None)
        self._trim = getattr(system, "malloc_trim", None)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Of every operation of torch."""
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        forward = current_forward()
        if forward is not None:
            for x in made if isinstance(made, tuple | list) else (made,):
                # What it was given may be the model's, or the caller's.
                if _may_move(x) and not any(x is y for y in (*args, *kwargs.values())):
                    self._made.setdefault(forward, []).append(TensorWeakRef(x))
        return made

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        """Bring what the model has kept back into memory."""
        super().__exit__(kind, error, traceback)  # type: ignore[no-untyped-call]
        for forward in list(self._made):
            for storage, tensors in self._alive(forward):
                if _is_parked(storage) and _is_all(tensors, storage):
                    _put(tensors, storage.clone())

    def park(self, forward: Forward) -> None:
        """Take from memory what a forward has made, if it has stopped; and, if that was done
        before, what has been read since.

        Raises
        ------
        InputError
            If there is no room, naming the folder.
        """
        if forward.at is None:
            return
        with torch._C.DisableTorchFunction():
            for storage, tensors in self._alive(forward):
                # Arrays that share memory fix its size; and gradients may be asked for since.
                sole = storage.resizable() and _is_all(tensors, storage)
                if sole and all(map(_may_move, tensors)):
                    _put(tensors, self._in_a_file(storage))
                elif _is_parked(storage) and self._advise is not None:
                    # The file has what was changed.
                    place, size = storage.data_ptr(), storage.nbytes()
                    self._advise(ctypes.c_void_p(place), ctypes.c_size_t(size), _DONTNEED)

    def trim(self) -> None:
        """Give memory that is free to the system, where the C library can be asked to."""
        if self._trim is not None:
            self._trim(ctypes.c_size_t(0))

    def _alive(self, forward: Forward) -> list[tuple[UntypedStorage, list[Tensor]]]:
        """Results of a forward that are still there, by the memory that they share."""
        alive = {id(x): x for ref in self._made.get(forward, ()) if (x := ref()) is not None}
        self._made[forward] = [TensorWeakRef(x) for x in alive.values()]
        found: dict[int, tuple[UntypedStorage, list[Tensor]]] = {}
        for x in alive.values():
            storage = x.untyped_storage()
            found.setdefault(storage._cdata, (storage, []))[1].append(x)
        return list(found.values())

    def _in_a_file(self, storage: UntypedStorage) -> UntypedStorage:
        """The same bytes in a file, none of them in memory."""
        raw = torch.empty(0, dtype=torch.uint8).set_(storage)
        try:
            with tempfile.TemporaryFile(dir=self._folder, buffering=0) as file:
                # Written, not changed by its pages: then a full disk would end the process.
                write_at(file.fileno(), raw.numpy().data, None)
                name = f"{_OPEN}{file.fileno()}"
                mapped = UntypedStorage.from_file(name, shared=True, nbytes=storage.nbytes())
                assert isinstance(mapped, UntypedStorage)
                return mapped
        except (OSError, RuntimeError) as error:
            what = "activations on their way to files"
            raise explain(error, what, torch.device("cpu"), LESS_MEMORY) or InputError(
                f"activations of the calibration items are kept in {self._folder} until the layers "
                f"are pruned, and that failed at {self._size() + storage.nbytes():,} bytes: "
                f"{error}; make room there, name another folder (offload=…), or give fewer or "
                "shorter items"
            ) from error

    def _size(self) -> int:
        """Bytes that are in files."""
        stored = [storage for forward in list(self._made) for storage, _ in self._alive(forward)]
        return sum(storage.nbytes() for storage in stored if _is_parked(storage))


def _may_move(x: Any) -> TypeGuard[Tensor]:
    """Return whether something is a tensor with memory of its own, none of torch's special ones."""
    return (
        type(x) is Tensor
        and not torch._C._functorch.is_functorch_wrapped_tensor(x)
        and x.layout is torch.strided
        and x.is_cpu
        and not (x.requires_grad or x.is_inference() or x.is_quantized or x.is_nested)
        and not (x.is_conj() or x.is_neg())
        and x.untyped_storage().nbytes() >= _LEAST
    )


def _is_all(tensors: list[Tensor], storage: UntypedStorage) -> bool:
    """Return whether no other tensors share their memory."""
    holders: int = torch._C._storage_Use_Count(storage._cdata)
    return holders == len(tensors) + 1  # the storage that is looked at


def _is_parked(storage: UntypedStorage) -> bool:
    return str(storage.filename).startswith(_OPEN)


def _put(tensors: list[Tensor], storage: UntypedStorage) -> None:
    """Give tensors that share all of their memory another with the same bytes."""
    for x in tensors:
        x.data = torch.empty(0, dtype=x.dtype).set_(
            storage, x.storage_offset(), x.size(), x.stride()
        )
