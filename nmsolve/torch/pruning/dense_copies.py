"""Dense weights of layers that have been pruned, on disk until the model is done: what puts them
back if anything fails.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

import torch
from torch import Tensor

from nmsolve.errors import InputError
from nmsolve.torch.offload.lent_parameter import LentParameter


class DenseCopies:
    """A temporary file of tensors, in the order in which they were kept. It has no name: whatever
    ends the process, the system takes the file away.

    Parameters
    ----------
    folder : path, optional
        Where it lies; None: where temporary files lie.
    """

    def __init__(self, folder: Path | None) -> None:
        self._folder = folder
        #: Each with its place in the file; None where its lender keeps it.
        self._kept: list[tuple[Tensor, int | None]] = []

    def __enter__(self) -> DenseCopies:
        try:
            self._folder = self._folder or Path(tempfile.gettempdir())
            # Without a buffer, which would want to be written after a failure too.
            self._file = tempfile.TemporaryFile(dir=self._folder, buffering=0)
        except OSError as error:
            raise InputError(self._failed(error)) from error
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._file.close()

    def keep(self, tensors: Sequence[Tensor]) -> None:
        """Write tensors that are about to change in place.

        Raises
        ------
        InputError
            If there is no room, naming the folder; nothing of these is then kept.
        """
        start = self._file.seek(0, 2)
        places: list[tuple[Tensor, int | None]] = []
        try:
            for tensor in tensors:
                if isinstance(tensor, LentParameter) and tensor.lender.keeps(tensor):
                    places.append((tensor, None))
                    continue
                places.append((tensor, self._file.tell()))
                left = memoryview(_bytes(tensor))
                while left:  # the system may take a part
                    left = left[self._file.write(left) :]
        except OSError as error:
            self._file.truncate(start)
            raise InputError(self._failed(error)) from error
        self._kept += places

    def put_back(self) -> None:
        """Give all tensors the values that they had."""
        with torch.no_grad():
            for tensor, place in reversed(self._kept):
                if place is None:
                    assert isinstance(tensor, LentParameter)
                    tensor.lender.restore(tensor)
                    continue
                self._file.seek(place)
                raw = bytearray(tensor.numel() * tensor.element_size())
                left = memoryview(raw)
                while left:
                    left = left[self._file.readinto(left) :]
                flat = torch.frombuffer(raw, dtype=tensor.dtype) if raw else tensor.new_empty(0)
                tensor.copy_(flat.reshape(tensor.shape))
        self._kept.clear()

    def _failed(self, error: OSError) -> str:
        return (
            f"dense weights are kept in {self._folder or 'a temporary file'} until the model is "
            f"pruned, and that failed: {error}; make room there, or name another folder (offload=…)"
        )


def _bytes(tensor: Tensor) -> bytes | memoryview:
    flat = tensor.detach().to("cpu").contiguous().flatten()
    return flat.view(torch.uint8).numpy().data if flat.numel() else b""
