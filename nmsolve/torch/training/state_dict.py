"""State dicts of masked modules: the dense weight under its plain name, its mask in bits, and the
numbers that resuming needs.

For a parameter `weight` with a mask, a module's state dict holds

    weight           the dense weight, dropped entries too: training goes on with them
    weight_mask      uint8, ceil(size / 8): the mask in bits, as `nmsolve.bits` packs it
    weight_progress  float64, 9: n, -m, transposable, at most, step, refreshes, sad, flips,
                     density_sum
    weight_alive, weight_scores, weight_momentum, weight_saliency
                     LBC's, once it is attached, as far as its criterion needs them

Where m is positive, an earlier version wrote the mask, with the first entry in the highest bit of a
byte. A sign says that, because torch.distributed.checkpoint loads into tensors of the sizes that
were saved; and those versions refuse a negative m.

The way of a mask from `sparsify_` to a file and back:

1. sparsify.py has the method choose it (`Method.initial`) and makes a `Masked` with it
   (weights/masked.py). There the mask is a bool buffer that is not persistent: what is saved is
   made here.
2. mounting.py (`put_on`) registers the `Masked` as the weight's parametrization, and with
   `hook_module` the hooks `save_masks` and `load_masks` on the module; `hook_model` puts those that
   see all of a model on it.
3. In an optimizer's steps (stepping.py) the method exchanges it in place (refreshing.py:
   `exchange`, `Masked.put`), and `Masked.progress` counts. Candidates are LBC's way to a mask
   (weights/candidates.py).
4. model.state_dict(), by whoever saves (torch.save, safetensors, a Trainer, a LightningModule),
   calls `save_masks`, which first brings what was written into module.weight to the dense weight
   (weights/written.py), then names and packs. torch.distributed.checkpoint reads the same tensors
   as attributes, `module.weight_mask` (`saved_part`). torch.save(model) and copies go another way:
   they hold the `Masked` itself (mounting.py: `_reduce`).
5. model.load_state_dict() calls `check_masks` before anything is loaded, `load_masks` in each
   module, and `name_plainly` at the end. It asks for a model that was sparsified with the same
   plan.
6. `SparseModel.finalize_` writes the zeros into the weight, takes the `Masked` off (removal.py),
   and with `unhook` all of this: from then on state dicts are a plain model's, and the mask is the
   weight's zeros. That is what `nmsolve.checkpoint` verifies; a state dict that was saved before,
   in training, `nmsolve prune` leaves dense (checkpoint/names.py).
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import astuple
from typing import Any

import torch
from torch import Tensor, nn

from nmsolve.bits import Order, has_loose_bits, pack, packed_size, unpack
from nmsolve.errors import InputError
from nmsolve.torch.weights.candidates import Candidates
from nmsolve.torch.weights.masked import Masked, Progress, masked_parameters, original
from nmsolve.torch.weights.sharding import cut, placed, whole

PARTS = ("mask", "progress", *Candidates.PARTS)


def save_masks(
    module: nn.Module, state_dict: dict[str, Any], prefix: str, local_metadata: Any
) -> None:
    """Save plain names, and masks in bits: a state-dict hook."""
    for name in masked_parameters(module):
        # Brings what was written into module.weight to the tensor that the state dict holds.
        original(module, name)
        dense = state_dict.pop(f"{prefix}parametrizations.{name}.original", None)
        if dense is not None:
            state_dict[prefix + name] = dense
        for part in PARTS:
            if hasattr(module, f"{name}_{part}"):
                state_dict[f"{prefix}{name}_{part}"] = getattr(module, f"{name}_{part}")


def saved_part(module: nn.Module, parameter: str, part: str) -> Tensor:
    """Return what a state dict holds of a mask beside the weight, by the key's ending. It is an
    attribute too: module.weight_mask, in bits.
    """
    masked = masked_parameters(module)[parameter]
    if part == "mask":
        return packed(masked.mask)
    pattern = masked.pattern
    if part == "progress":
        row = (
            pattern.n,
            -pattern.m,
            pattern.transposable,
            pattern.at_most,
            *astuple(masked.progress),
        )
        return torch.tensor(row, dtype=torch.float64)
    tensor = None if masked.candidates is None else getattr(masked.candidates, part)
    if tensor is None:
        raise AttributeError(f"{type(module).__name__} has no {parameter}_{part}")
    weight = original(module, parameter)
    grouped = part == "alive" and masked.axis == 0  # then the first axis counts groups
    return placed(tensor, weight, weight.shape[0] // (pattern.m if grouped else 1))


def load_masks(
    module: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    local_metadata: Any,
    strict: bool,
    missing_keys: list[str],
    unexpected_keys: list[str],
    error_msgs: list[str],
) -> None:
    """Load what `save_masks` saved: a load hook. A mask that fits neither its weight nor its plan
    is an error, and not taken.
    """
    for name, masked in masked_parameters(module).items():
        original(module, name)  # settles what was written before
        key = prefix + name
        dense = state_dict.get(key)
        if key in state_dict:
            state_dict[f"{prefix}parametrizations.{name}.original"] = state_dict.pop(key)
        bits, row = state_dict.pop(f"{key}_mask", None), state_dict.pop(f"{key}_progress", None)
        parts = {
            part: state_dict.pop(f"{key}_{part}")
            for part in Candidates.PARTS
            if f"{key}_{part}" in state_dict
        }
        if bits is None or row is None:
            missing_keys += [
                f"{key}_{part}"
                for part, found in (("mask", bits), ("progress", row))
                if found is None
            ]
            continue
        problem = _misfit(masked, dense, bits, row)
        if problem:
            error_msgs.append(f"{key}: {problem}")
            continue
        numbers = whole(row).tolist()
        step, refreshes, sad, flips, density_sum = numbers[4:]
        mask = unpacked(whole(bits), masked.mask.shape, _order(numbers))
        if masked.mask.is_meta:  # the weight, too, is assigned
            masked.mask = mask.to(bits.device)
        else:
            masked.mask.copy_(mask)
        masked.progress = Progress(int(step), int(refreshes), int(sad), int(flips), density_sum)
        if "alive" in parts:
            masked.candidates = Candidates.loaded(
                {part: cut(t, original(module, name)) for part, t in parts.items()}
            )


def check_masks(
    model: nn.Module,
    state_dict: dict[str, Any],
    prefix: str,
    *_: Any,
) -> None:
    """Refuse masks that do not fit before anything is loaded: a load hook of the whole model.

    Candidates that the checkpoint does not have are dropped here, where all names of tied weights
    are seen: they may be under one.
    """
    problems = []
    without: dict[int, Masked] = {}
    having: set[int] = set()
    for start, parameter, masked in _masked_in(model):
        key = prefix + start + parameter
        bits, row = state_dict.get(f"{key}_mask"), state_dict.get(f"{key}_progress")
        problem = (
            None if bits is None or row is None else _misfit(masked, state_dict.get(key), bits, row)
        )
        if problem:
            problems.append(f"{key}: {problem}")
        if f"{key}_alive" in state_dict:
            having.add(id(masked))
        elif bits is not None:
            without[id(masked)] = masked
    if problems:
        raise InputError("nothing was loaded into the sparsified model: " + "; ".join(problems))
    for number, masked in without.items():
        if number not in having:
            masked.candidates = None


def name_plainly(model: nn.Module, incompatible: Any) -> None:
    """Name what is missing as state dicts do: a load hook of the whole model, at the end."""
    missing = incompatible.missing_keys
    for start, parameter, _ in _masked_in(model):
        inner = f"{start}parametrizations.{parameter}.original"
        missing[:] = [
            key.removesuffix(inner) + start + parameter if f".{key}".endswith(f".{inner}") else key
            for key in missing
        ]


def _masked_in(model: nn.Module) -> Iterator[tuple[str, str, Masked]]:
    """Yield all masks of a model: what a state dict's keys of the module begin with, the
    parameter's name there, the mask.
    """
    for name, module in model.named_modules():
        for parameter, masked in masked_parameters(module).items():
            yield (f"{name}." if name else ""), parameter, masked


def hook_module(module: nn.Module) -> None:
    """Let state dicts of a module hold the masks on its parameters."""
    if save_masks not in module._state_dict_hooks.values():
        module.register_state_dict_post_hook(save_masks)
        module.register_load_state_dict_pre_hook(load_masks)


def hook_model(model: nn.Module) -> None:
    """Let loading check all masks of a model first, and name what is missing as state dicts do."""
    model.register_load_state_dict_pre_hook(check_masks)
    model.register_load_state_dict_post_hook(name_plainly)


def unhook(module: nn.Module) -> None:
    """Take off what `hook_module` and `hook_model` put on."""
    for hooks in (
        module._state_dict_hooks,
        module._load_state_dict_pre_hooks,
        module._load_state_dict_post_hooks,
    ):
        for key, hook in list(hooks.items()):
            if getattr(hook, "hook", hook) in (save_masks, load_masks, check_masks, name_plainly):
                del hooks[key]


def _misfit(masked: Masked, dense: Tensor | None, bits: Tensor, row: Tensor) -> str | None:
    """Return why a saved mask, with the weight that was saved, does not belong to a weight."""
    if dense is not None and dense.shape != masked.mask.shape:
        return (
            f"the checkpoint's weight has shape {tuple(dense.shape)}, this one "
            f"{tuple(masked.mask.shape)}"
        )
    if (
        bits.dtype != torch.uint8
        or row.dtype != torch.float64
        or row.numel() != 9
        or bits.is_meta
        or row.is_meta
    ):
        return (
            f"the checkpoint's mask is {bits.dtype} and its progress {row.dtype} of {row.numel()} "
            "numbers, not uint8 and float64 of 9 with values: it was cast or cut when it was saved"
        )
    numbers = whole(row).tolist()
    if not all(math.isfinite(number) for number in numbers):
        return "the checkpoint's progress is not finite"
    n, m, transposable, at_most = (int(number) for number in numbers[:4])
    text = f"{'<=' if at_most else ''}{n}:{abs(m)}{'T' if transposable else ''}"
    if text != str(masked.pattern):
        return (
            f"the checkpoint's mask has pattern {text}, the plan {masked.pattern}; sparsify the "
            f"model with {text}"
        )
    entries = masked.mask.numel()
    if bits.numel() != packed_size(entries):
        return (
            f"the checkpoint's mask has {bits.numel()} bytes, which is not that of a weight of "
            f"shape {tuple(masked.mask.shape)}"
        )
    if has_loose_bits(whole(bits).cpu().numpy(), entries, _order(numbers)):
        return "the checkpoint's mask has bits after its last entry: it is damaged"
    return None


def _order(numbers: Sequence[float]) -> Order:
    """Return the order of a mask's bits, given its progress."""
    return "little" if numbers[1] < 0 else "big"


def packed(mask: Tensor) -> Tensor:
    """Return a bool tensor in bits: uint8, the first entry in the lowest bit of the first byte."""
    if mask.is_meta:
        return torch.empty(packed_size(mask.numel()), dtype=torch.uint8, device="meta")
    return torch.from_numpy(pack(mask.cpu().numpy())).to(mask.device)


def unpacked(bits: Tensor, shape: torch.Size, order: Order) -> Tensor:
    """Return the inverse of `packed`, or of what earlier versions wrote ("big")."""
    return torch.from_numpy(unpack(bits.cpu().numpy(), tuple(shape), order))
