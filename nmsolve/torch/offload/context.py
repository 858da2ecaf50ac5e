"""`offloaded`: a model computed with whose weights are on disk, or on the host beside a GPU."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.torch.offload.held import (
    Held,
    check_in_one_place,
    check_stored,
    held_in,
    some,
)
from nmsolve.torch.offload.homes import CheckpointFiles, HostMemory
from nmsolve.torch.offload.lent_parameter import Lender, bits, is_lent
from nmsolve.torch.offload.shards import Shard, shards_of
from nmsolve.torch.weights.parameters import check_module

#: Blocks of weights that are in memory at a time.
_BLOCKS = 2


@contextmanager
def offloaded(
    model: nn.Module,
    source: str | Path | None = None,
    *,
    out: str | Path | None = None,
    device: torch.device | str | None = None,
) -> Iterator[nn.Module]:
    """Compute with a model that does not fit where it is computed with: inside, its weights are
    fetched when an operator asks for them, and about two blocks of them are there at a time.

    `adaprune_`, `sparsegpt_`, `mask_`, `verify` and forwards without gradients do as ever. What
    they change is written where it came from: into a copy of the checkpoint, or into the model.

    Parameters
    ----------
    model : nn.Module
        With its parameters on the meta device, to be found in `source`; or with values on the
        host, to be computed with on `device`.
    source : path, optional
        A .safetensors file, or a folder of such, with an index if it has several: tensors by the
        model's names for its parameters and buffers. Read, never written. Values are converted to
        the dtypes of the model's parameters.
    out : path, optional
        A place where nothing is yet, for a copy of `source` with everything that was changed inside
        (files in other weight formats are left out). It appears when the block ends without an
        error, whole; until then it is a folder with ".part" behind the name. None: changes are
        refused.
    device : torch.device or str, optional
        Where to compute: None for the host, or where the model's values are.

    Returns
    -------
    context manager
        Of the model itself. When the block ends, its parameters are the same objects as before,
        on the meta device, or with their values.

    Raises
    ------
    InputError
        If the model has parameters or buffers on the meta device and `source` is not given, does
        not have them, has them in other shapes, or in dtypes of quantized weights, naming these;
        without `source`, if there is nothing to be moved; if `out` exists or lies in `source`, if
        another run writes it, or there is no room for the copy. Parametrized and scripted models.
        Inside, and when the block ends, for what would be lost: gradients, other dtypes and
        devices, parameters and modules that were replaced; changes without `out`; a source that
        has changed meanwhile.
    MissingDependencyError
        Without the safetensors package, or with a torch that is too old.

    Notes
    -----
    In memory are weights of at most twice the largest block of a ModuleList or Sequential (of all
    the model where there is none), a single larger weight, those of which somebody holds views (as
    `state_dict()` does), and what the caller computes. Each forward reads every weight that it
    uses once; `adaprune_` and `sparsegpt_` read each a few times, whatever the number of items.

    All or nothing: an error, or Ctrl-C, that leaves the block removes the copy. Killed, a process
    leaves `source` as it was and at most the ".part" folder, which the next run to the same `out`
    replaces. Of a model in memory, what was done before an error stays; `mask_`, `adaprune_` and
    `sparsegpt_` are all or nothing there as ever.

    Every way to change a weight in place is seen: by operators, `.data`, views, arrays, optimizers
    with gradients of their own. Training is not possible inside, nor is a model whose forwards
    cannot be stopped pruned there: `Reconstruction.way`. What was compiled before runs as it was
    before that; and torch's fused attention and encoder layers run as their parts.

    Examples
    --------
    >>> import tempfile, safetensors.torch, torch
    >>> import nmsolve.torch as nmt
    >>> folder = Path(tempfile.mkdtemp())
    >>> model = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> safetensors.torch.save_file(model.state_dict(), folder / "model.safetensors")
    >>> with torch.device("meta"):
    ...     empty = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8))
    >>> with offloaded(empty, folder / "model.safetensors", out=folder / "sparse.safetensors"):
    ...     found = nmt.sparsegpt_(empty, "2:4", [torch.randn(200, 16)])
    >>> pruned = safetensors.torch.load_file(folder / "sparse.safetensors")
    >>> nmt.verify(pruned["0.weight"], "2:4").ok
    True
    """
    check_module(model)
    held = held_in(model)
    path = None if source is None else Path(source).absolute()
    check_in_one_place(model, held, path)
    place = _device(device)
    if path is None:
        if device is None or out is not None:
            raise InputError(
                "the model is in memory: say where to compute (device='cuda'); its weights are "
                "changed in place, and there is no checkpoint to copy (out=…)"
            )
        with _eagerly(), _computed_with(model, held, place):
            yield model
        return
    shards = shards_of(path)
    check_stored(held, shards, path)
    home = CheckpointFiles(path, shards, None if out is None else Path(os.path.abspath(out)))
    try:
        lender = Lender(home, _BLOCKS * _largest_block(model))
        put: list[tuple[Held, Tensor]] = []
        try:
            for one in held:
                put.append((one, _put_in_place(one, lender, shards, home, place)))
            with _eagerly():
                yield model
            _check_same(model, put)
            lender.settle()
            for one, tensor in put:
                _keep_buffer(one, tensor, home if _is_stored(one, shards) else None)
        finally:
            for one, _ in put:
                _set(one, one.tensor)
        home.publish()
    except BaseException:
        home.discard()
        raise


@contextmanager
def _computed_with(model: nn.Module, held: Sequence[Held], device: torch.device) -> Iterator[None]:
    """Compute with a model in memory on another device."""
    parameters = {name: one.tensor for one in held if one.is_parameter for name in one.names}
    home = HostMemory(parameters)
    lender = Lender(home, _BLOCKS * _largest_block(model))
    put: list[tuple[Held, Tensor]] = []
    try:
        for one in held:
            put.append((one, _put_in_place(one, lender, {}, home, device)))
        yield
        _check_same(model, put)
    finally:
        try:
            lender.settle()
            for one, tensor in put:
                _keep_buffer(one, tensor, None)
        finally:
            for one, _ in put:
                _set(one, one.tensor)


@contextmanager
def _eagerly() -> Iterator[None]:
    """Run what is compiled as it was before: compiled code expects weights where they are not."""
    if "torch._dynamo" not in sys.modules:
        yield
        return
    with torch.compiler.set_stance("force_eager"):
        yield


def _device(device: torch.device | str | None) -> torch.device:
    """The device to compute on; InputError if this machine has none such."""
    try:
        return torch.empty(0, device=device or "cpu").device
    except (RuntimeError, AssertionError, TypeError) as error:
        raise InputError(f"device={device!r}: nothing can be computed there: {error}") from error


def _put_in_place(
    one: Held,
    lender: Lender,
    shards: Mapping[str, Shard],
    home: HostMemory | CheckpointFiles,
    device: torch.device,
) -> Tensor:
    """Give a model a parameter that is lent, or its buffer where it is computed with."""
    if one.is_parameter:
        tensor: Tensor = lender.lend(one.tensor, one.names, device)
    elif _is_stored(one, shards):
        tensor = home.read(one.names).to(device, one.tensor.dtype)
    else:
        tensor = one.tensor.detach().to(device, copy=True)
    _set(one, tensor)
    return tensor


def _set(one: Held, tensor: Tensor) -> None:
    for module, name in one.places:
        owner: Any = module
        if parametrize.is_parametrized(module, name):  # since it was put there
            owner, name = owner.parametrizations[name], "original"
        setattr(owner, name, tensor)  # which recurrent modules have to know of


def _is_stored(one: Held, shards: Mapping[str, Shard]) -> bool:
    return one.persistent and any(name in shards for name in one.names)


def _check_same(model: nn.Module, put: Sequence[tuple[Held, Tensor]]) -> None:
    """InputError unless the model's parameters are those that it was given: others go nowhere."""
    now = {name: one.tensor for one in held_in(model) if one.is_parameter for name in one.names}
    given = {name: t for one, t in put if one.is_parameter for name in one.names}
    other = [
        name for name, tensor in now.items() if given.get(name) is not tensor or not is_lent(tensor)
    ]
    other += [name for name in given if name not in now]
    if other:
        raise InputError(
            f"{some(other)} not the offloaded weight any more (a module or parameter was "
            "replaced, or has a mask on it): what was put there would be lost; inside, change "
            "weights in place"
        )


def _keep_buffer(one: Held, tensor: Tensor, home: CheckpointFiles | None) -> None:
    """Keep a buffer that has changed, such as statistics of a batch norm; a new one that a module
    has put in its place, too.
    """
    module, name = one.places[0]
    now = module._buffers.get(name)
    if one.is_parameter or now is None:
        return
    if home is not None and not torch.equal(bits(home.read(one.names).to(now)), bits(now)):
        home.write(one.names, now)
    if one.tensor.is_meta:
        return
    if now is tensor:
        one.tensor.copy_(now)
    else:
        one.tensor = now.to(one.tensor.device)


def _largest_block(model: nn.Module) -> int:
    """Bytes of the parameters of a model's largest block: a member of a list of modules that is no
    more than half of the model; or the model without such.
    """
    whole = _size(model)
    sizes = [
        _size(block)
        for module in model.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for block in module.children()
    ]
    return max((size for size in sizes if size <= whole / 2), default=whole)


def _size(module: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for p in module.parameters())
