"""Where weights are while nothing is computed with them: in a checkpoint's files, or in the host's
memory.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from nmsolve.disk import naming, sync_file, sync_folder
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

    The copy is made beside its place, in a folder that other runs keep away from, and is moved to
    its place when all is done.

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
        self._copied = self._part / out.name
        if _is_taken(out):
            raise InputError(f"{out} exists: name a place that is free (out=…), or remove it")
        if out.resolve().is_relative_to(source.resolve()):
            raise InputError(f"{out} lies in {source}, which stays as it is: name another place")
        try:
            self._hold()
            try:
                self._copy()
            except BaseException:
                self.discard()
                raise
        except OSError as error:
            raise InputError(
                f"the checkpoint is copied to {self._part}, and that failed: {error}; make room "
                "there, or name another place (out=…)"
            ) from error

    def _hold(self) -> None:
        """Have the folder, empty but for a mark that other runs see."""
        import fcntl  # which not all systems have

        if _is_taken(self._part) and not (
            (self._part / _MARK).is_file() and not self._part.is_symlink()
        ):
            raise InputError(
                f"{self._part} exists, where the copy is to be made, and no unfinished run has "
                "left it: move it away"
            )
        self._part.mkdir(parents=True, exist_ok=True)
        self._lock = open(self._part / _MARK, "ab")  # noqa: SIM115 — held open on purpose
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self._lock.close()
            raise InputError(
                f"another run is writing {self._part}: wait for it, or name another place (out=…)"
            ) from None
        if self._copied.is_dir():
            shutil.rmtree(self._copied)
        else:
            self._copied.unlink(missing_ok=True)

    def _copy(self) -> None:
        if self._source.is_file():
            shutil.copyfile(self._source, self._copied)
        else:
            self._copied.mkdir()
            self._copy_folder()
        for shard in {shard.file: shard for shard in self._shards.values()}.values():
            place = _file(self._source, shard)
            shard.check(place, place.stat())

    def _copy_folder(self) -> None:
        """All but weights in other files than the model's, and hidden files."""
        own = {shard.file for shard in self._shards.values()}
        for folder, folders, files in os.walk(self._source):
            folders[:] = [name for name in folders if not name.startswith(".")]
            here = Path(folder).relative_to(self._source)
            (self._copied / here).mkdir(exist_ok=True)
            for name in files:
                path = Path(folder, name)
                weights = name.lower().endswith((*_OTHER_WEIGHTS, ".safetensors"))
                if name.startswith(".") or not path.is_file():
                    continue
                if not weights or (here == Path() and name in own):
                    shutil.copyfile(path, self._copied / here / name)

    def _stored(self, names: Sequence[str]) -> list[str]:
        return [name for name in names if name in self._shards]

    def read(self, names: Sequence[str]) -> Tensor:
        """Return the values, as they are now."""
        name = self._stored(names)[0]
        shard = self._shards[name]
        if name in self._changed:
            return shard.read(_file(self._copied, shard), unchanged=False)
        return shard.read(_file(self._source, shard))

    def write(self, names: Sequence[str], values: Tensor) -> None:
        """Replace the values in the copy."""
        self._check_place(names)
        for name in self._stored(names):
            shard = self._shards[name]
            self._changed.add(name)
            shard.write(_file(self._copied, shard), values)

    def has_dense(self, names: Sequence[str]) -> bool:
        """Return whether the values are still those of the source."""
        self._check_place(names)
        return not self._changed.intersection(names)

    def _check_place(self, names: Sequence[str]) -> None:
        if self._out is None:
            raise InputError(
                f"{names[0]} is changed, and there is no place for it: its values are those of "
                f"{self._source}, which stays as it is; name a place for a copy (out=…)"
            )

    def restore(self, names: Sequence[str]) -> None:
        """Bring back the source's values."""
        for name in self._changed.intersection(self._stored(names)):
            shard = self._shards[name]
            shard.write(_file(self._copied, shard), shard.read(_file(self._source, shard)))
            self._changed.discard(name)

    def publish(self) -> None:
        """Move the copy to its place.

        Raises
        ------
        InputError
            If that fails; the copy is then whole where it was made, and stays there.
        """
        if self._out is None:
            return
        with naming(f"bringing {self._copied} to the disk"):
            for folder, _, files in os.walk(self._copied):
                for name in files:
                    sync_file(Path(folder, name))
                sync_folder(Path(folder))
            if self._copied.is_file():
                sync_file(self._copied)
        try:
            if _is_taken(self._out):
                raise FileExistsError(17, "File exists", str(self._out))
            os.rename(self._copied, self._out)
        except OSError as error:
            self._lock.close()
            (self._part / _MARK).unlink()  # which lets the next run empty the folder
            self._out = None
            raise InputError(
                f"{self._copied} is whole, with all that was changed, and cannot be moved to its "
                f"place: {error}; move it"
            ) from error
        self.discard()
        sync_folder(self._out.parent)

    def discard(self) -> None:
        """Remove the copy."""
        if self._out is not None:
            shutil.rmtree(self._part, ignore_errors=True)
            self._lock.close()


def _file(place: Path, shard: Shard) -> Path:
    """The file of a tensor in a checkpoint: itself, or in its folder."""
    return place / shard.file if place.is_dir() else place


def _is_taken(path: Path) -> bool:
    return path.exists() or path.is_symlink()
