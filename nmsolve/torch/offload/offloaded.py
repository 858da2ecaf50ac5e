"""`offloaded`: a model computed with whose weights are on disk, or on the host beside a GPU."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from nmsolve.errors import InputError
from nmsolve.torch.offload.homes import CheckpointFiles, HostMemory
from nmsolve.torch.offload.lent_parameter import Lender, is_lent
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

    Yields
    ------
    nn.Module
        The model; when the block ends, its parameters are the same objects as before, on the meta
        device, or with their values.

    Raises
    ------
    InputError
        If the model has parameters or buffers on the meta device and `source` is not given, does
        not have them or has them in other shapes, naming these; without `source`, if there is
        nothing to be moved; if `out` exists, or there is no room for the copy. Parametrized models.
    MissingDependencyError
        Without the safetensors package.

    Notes
    -----
    In memory are weights of at most twice the largest block of a ModuleList or Sequential, a single
    larger weight, and what the caller computes. Each forward reads every weight that it uses once,
    and those of `adaprune_` and `sparsegpt_` read them once for all items together.

    Killed, a process leaves `source` as it was and at most the ".part" folder, which the next run
    to the same `out` replaces. Values that are changed with a host's model are changed in the
    model; pruning is all or nothing as ever.

    Training is not possible inside, nor is a model whose forwards cannot be stopped pruned there:
    `Reconstruction.way`.

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
    held = _held_in(model)
    path = None if source is None else Path(source)
    _check(model, held, path)
    if path is None:
        if device is None or out is not None:
            raise InputError(
                "the model is in memory: say where to compute (device='cuda'); its weights are "
                "changed in place, and there is no checkpoint to copy (out=…)"
            )
        home: HostMemory | CheckpointFiles = HostMemory(
            {name: one.tensor for one in held if one.is_parameter for name in one.names}
        )
        shards: Mapping[str, Shard] = {}
    else:
        shards = shards_of(path)
        _check_stored(held, shards, path)
        home = CheckpointFiles(path, shards, None if out is None else Path(out))
    lender = Lender(home, _BLOCKS * _largest_block(model))
    put: list[tuple[_Held, Tensor]] = []
    try:
        for one in held:
            put.append(
                (one, _put_in_place(one, lender, shards, home, torch.device(device or "cpu")))
            )
        yield model
        lender.settle()
        _keep_buffers(put, shards, home)
        if isinstance(home, CheckpointFiles):
            home.publish()
    except BaseException:
        if isinstance(home, CheckpointFiles):
            home.discard()
        raise
    finally:
        if not isinstance(home, CheckpointFiles):
            lender.settle()
        for one, _ in put:
            _set(one, one.tensor)


def _put_in_place(
    one: _Held,
    lender: Lender,
    shards: Mapping[str, Shard],
    home: HostMemory | CheckpointFiles,
    device: torch.device,
) -> Tensor:
    """Give a model a parameter that is lent, or its buffer where it is computed with."""
    if one.is_parameter:
        tensor: Tensor = lender.lend(one.tensor, one.names, device)
    elif one.persistent and any(name in shards for name in one.names):
        tensor = home.read(one.names).to(device, one.tensor.dtype)
    else:
        tensor = one.tensor.detach().to(device, copy=True)
    _set(one, tensor)
    return tensor


def _set(one: _Held, tensor: Tensor) -> None:
    for module, name in one.places:
        setattr(module, name, tensor)  # which recurrent modules have to know of


def _keep_buffers(
    put: Sequence[tuple[_Held, Tensor]],
    shards: Mapping[str, Shard],
    home: HostMemory | CheckpointFiles,
) -> None:
    """Write home the buffers that have changed, such as statistics of batch norms."""
    for one, tensor in put:
        if one.is_parameter:
            continue
        if not one.tensor.is_meta:
            one.tensor.copy_(tensor)
        stored = one.persistent and any(name in shards for name in one.names)
        if stored and not torch.equal(home.read(one.names).to(tensor), tensor):
            home.write(one.names, tensor)


class _Held:
    """A parameter or buffer of a model, and everywhere it is.

    Attributes
    ----------
    tensor : Tensor
    names : list of str
    places : list of (nn.Module, str)
    persistent : bool
        Whether it belongs in a checkpoint.
    """

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self.names: list[str] = []
        self.places: list[tuple[nn.Module, str]] = []
        self.persistent = False

    @property
    def is_parameter(self) -> bool:
        return isinstance(self.tensor, nn.Parameter)


def _held_in(model: nn.Module) -> list[_Held]:
    """The tensors of a model, each once."""
    found: dict[int, _Held] = {}
    for path, module in model.named_modules():
        for name, tensor in (*module._parameters.items(), *module._buffers.items()):
            if tensor is None:
                continue
            held = found.setdefault(id(tensor), _Held(tensor))
            held.names.append(f"{path}.{name}" if path else name)
            held.places.append((module, name))
            held.persistent |= name not in module._non_persistent_buffers_set
    return list(found.values())


def _check(model: nn.Module, held: Sequence[_Held], source: Path | None) -> None:
    """InputError unless all values are in one place."""
    if any(map(parametrize.is_parametrized, model.modules())):
        raise InputError(
            "the model has masks or other parametrizations on it: finalize_() the SparseModel first"
        )
    parameters = [one for one in held if one.is_parameter]
    for one in parameters:
        if is_lent(one.tensor):
            raise InputError("the model is inside of offloaded already")
        if (
            is_lazy(one.tensor)
            or type(one.tensor).__torch_dispatch__ is not Tensor.__torch_dispatch__
        ):
            raise InputError(
                f"{one.names[0]} is a {type(one.tensor).__name__}, and not a plain parameter"
            )
    meta = [one.names[0] for one in parameters if one.tensor.is_meta]
    with_values = [one.names[0] for one in parameters if not one.tensor.is_meta]
    if source is None and meta:
        raise InputError(
            f"{_some(meta)} on the meta device, without values: say where these are (source=…)"
        )
    if source is not None and with_values:
        raise InputError(
            f"{_some(with_values)} in memory already: make the model with its parameters on the "
            "meta device (with torch.device('meta'): …), or leave source out and say where to "
            "compute (device=…)"
        )
    lost = [one.names[0] for one in held if one.tensor.is_meta and not one.persistent]
    if lost:
        raise InputError(
            f"{_some(lost)} on the meta device and in no checkpoint: make the model so that only "
            "parameters are there, with accelerate.init_empty_weights(include_buffers=False)"
        )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return f"{', '.join(names[:3])}{more} {'is' if len(names) == 1 else 'are'}"


def _check_stored(held: Sequence[_Held], shards: Mapping[str, Shard], source: Path) -> None:
    """InputError unless a checkpoint has what is not in memory, in the same shapes."""
    missing = [
        one.names[0]
        for one in held
        if one.tensor.is_meta and not any(name in shards for name in one.names)
    ]
    if missing:
        raise InputError(
            f"{_some(missing)} not in {source}, which has {', '.join(list(shards)[:3])}, …: give "
            "the checkpoint of this model, by the model's names, and call tie_weights() where "
            "weights are shared"
        )
    for one in held:
        for name in one.names:
            if name in shards and one.persistent and shards[name].shape != tuple(one.tensor.shape):
                raise InputError(
                    f"{name} has shape {tuple(one.tensor.shape)} in the model and "
                    f"{shards[name].shape} in {source}: give the checkpoint of this model"
                )


def _largest_block(model: nn.Module) -> int:
    """Bytes of the parameters of a model's largest block: a member of a list of modules, or the
    model without such.
    """
    blocks = [
        block
        for module in model.modules()
        if isinstance(module, nn.ModuleList | nn.Sequential)
        for block in module.children()
    ]
    return max(
        sum(p.numel() * p.element_size() for p in block.parameters()) for block in blocks or [model]
    )
