"""Where weights are while nothing is computed with them: in a checkpoint's files, or in the host's
memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import torch
from torch import Tensor

from nmsolve.disk import sync_file, sync_folder
from nmsolve.errors import InputError
from nmsolve.torch.offload.shards import Shard

#: Weights in other formats, which a loader might take for those of the copy.
_OTHER_WEIGHTS = (
    *(".bin", ".pt", ".pth", ".ckpt", ".pkl", ".h5", ".msgpack", ".gguf", ".onnx", ".ot"),
    ".bin.index.json",
)
#: In a folder that a run has not finished.
_MARK = ".nmsolve-unfinished"


class HostMemory:
    """A model's own tensors.

    Parameters
    ----------
    tensors : mapping of str to Tensor
        By their names in the model.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def read(self, names: Sequence[str]) -> Tensor:
        """Return a copy of the values."""
        return self._tensors[names[0]].detach().clone()

    def write(self, names: Sequence[str], values: Tensor) -> None:
        """Replace the values."""
        with torch.no_grad():
            self._tensors[names[0]].copy_(values)

    def has_dense(self, names: Sequence[str]) -> bool:
        """Return False: what is replaced is gone."""
        return False

    def restore(self, names: Sequence[str]) -> None:
        """Not called."""
        raise NotImplementedError


class CheckpointFiles:
    """A checkpoint's files, which stay as they are, and a copy that gets what is changed.

    The copy is made beside its place, under another name, and gets its own when all is done.

    Parameters
    ----------
    source : Path
        A folder or file.
    shards : mapping of str to Shard
        Its tensors.
    out : Path or None
        The place of the copy; None: nothing can be changed.
    """

    def __init__(self, source: Path, shards: Mapping[str, Shard], out: Path | None) -> None:
        self._source, self._shards, self._out = source, shards, out
        self._changed: set[str] = set()
        if out is None:
            return
        self._part = out.with_name(f"{out.name}.part")
        if out.exists() or out.is_symlink():
            raise InputError(f"{out} exists: name a place that is free (out=…), or remove it")
        if self._part.exists():
            if not (self._part / _MARK).is_file():
                raise InputError(
                    f"{self._part} exists, where the copy is to be made, and no unfinished run has "
                    "left it: move it away"
                )
            shutil.rmtree(self._part)
        try:
            self._copy()
        except OSError as error:
            shutil.rmtree(self._part, ignore_errors=True)
            raise InputError(
                f"the checkpoint is copied to {self._part}, and that failed: {error}; make room "
                "there, or name another place (out=…)"
            ) from error
        except BaseException:
            shutil.rmtree(self._part, ignore_errors=True)
            raise

    def _copy(self) -> None:
        self._part.mkdir(parents=True)
        (self._part / _MARK).touch()
        if self._source.is_file():
            shutil.copyfile(self._source, self._part / self._source.name)
            return
        files = {shard.file for shard in self._shards.values()}
        for path in sorted(self._source.iterdir()):
            weights = path.name.lower().endswith((*_OTHER_WEIGHTS, ".safetensors"))
            if path.is_file() and (path.name in files or not weights):
                shutil.copyfile(path, self._part / path.name)

    def _stored(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self._shards]

    def read(self, names: Sequence[str]) -> Tensor:
        """Return the values, as they are now."""
        name = self._stored(names)[0]
        return self._shards[name].read(self._part if name in self._changed else self._folder)

    @property
    def _folder(self) -> Path:
        return self._source.parent if self._source.is_file() else self._source

    def write(self, names: Sequence[str], values: Tensor) -> None:
        """Replace the values in the copy."""
        if self._out is None:
            raise InputError(
                f"{names[0]} was changed, and there is no place for it: its values are those of "
                f"{self._source}, which stays as it is; name a place for a copy (out=…)"
            )
        for name in self._stored(names):
            self._changed.add(name)
            self._shards[name].write(self._part, values)

    def has_dense(self, names: Sequence[str]) -> bool:
        """Return whether the values are still those of the source."""
        return not self._changed.intersection(names)

    def restore(self, names: Sequence[str]) -> None:
        """Bring back the source's values."""
        for name in self._changed.intersection(self._stored(names)):
            self._shards[name].write(self._part, self._shards[name].read(self._folder))
            self._changed.discard(name)

    def publish(self) -> None:
        """Bring the copy to the disk and to its place."""
        if self._out is None:
            return
        (self._part / _MARK).unlink()
        try:
            for path in self._part.iterdir():
                sync_file(path)
            sync_folder(self._part)
            if self._source.is_file():
                os.replace(self._part / self._source.name, self._out)
                self._part.rmdir()
            else:
                os.rename(self._part, self._out)
            sync_folder(self._out.parent)
        except BaseException:
            with suppress(OSError):
                (self._part / _MARK).touch()
            raise

    def discard(self) -> None:
        """Remove the copy."""
        if self._out is not None:
            shutil.rmtree(self._part, ignore_errors=True)
