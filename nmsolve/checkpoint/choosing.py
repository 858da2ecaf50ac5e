"""The files of a folder that its loader takes as weights.

A folder may have models in folders of their own, as pipelines do (`unet/`, `text_encoder/`,
`2_Dense/`). Each folder is read by itself, and a folder's weights are what its loader takes:

* `model.safetensors` before `model.safetensors.index.json`: transformers. What its config.json
  names as `transformers_weights` before both.
* `diffusion_pytorch_model.safetensors.index.json` before `diffusion_pytorch_model.safetensors`:
  diffusers.
* neither's variants (`model.fp16.safetensors`), which are only taken when asked for, unless there
  is nothing else.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nmsolve.checkpoint.folders import CONFIG, INDEX, is_index, is_weights
from nmsolve.disk import read_json
from nmsolve.errors import InputError

#: Names under which loaders look for weights by themselves.
_TRANSFORMERS, _DIFFUSERS = "model", "diffusion_pytorch_model"
_VARIANT = re.compile(
    rf"(?P<stem>{_TRANSFORMERS}|{_DIFFUSERS})(\.(?P<variant>[^.]+))?\.safetensors"
)
_NUMBERED = re.compile(r"(?P<stem>.+)-(?P<number>\d+)-of-(?P<count>\d+)\.safetensors")


@dataclass(frozen=True, slots=True)
class Choice:
    """Files of one folder, as paths within the checkpoint.

    Attributes
    ----------
    weights : tuple of str
        In the order in which they are worked through.
    shards : mapping of str to mapping of str to sequence of str
        Index → shard → tensors that the index says are there.
    passed_by : tuple of str
        Weights that the loader would not take.
    notes : tuple of str
        What should be known about that.
    """

    weights: tuple[str, ...] = ()
    shards: Mapping[str, Mapping[str, Sequence[str]]] = field(default_factory=dict)
    passed_by: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def choose(checkpoint: Path, here: str, names: Sequence[str]) -> Choice:
    """Return the weights of one folder of a checkpoint, given the files that lie in it.

    Raises
    ------
    InputError
        For an index that is damaged or names what is not there; numbered shards of which some are
        missing; files of which loaders take one or the other.
    """
    single = [name for name in names if is_weights(name)]
    indexes = {name: _read_index(checkpoint, name) for name in names if is_index(name)}
    passed_by, notes = list[str](), list[str]()

    def pass_by(what: Sequence[str], why: str) -> None:
        gone = [name for name in what if name in single or name in indexes]
        gone += [shard for index in gone if index in indexes for shard in indexes.pop(index)]
        kept = {shard for shards in indexes.values() for shard in shards}
        gone = [name for name in dict.fromkeys(gone) if name not in kept]
        single[:] = [name for name in single if name not in gone]
        passed_by.extend(name for name in gone if name in names)
        if gone:
            notes.append(
                f"{', '.join(gone[:3])}{', …' if len(gone) > 3 else ''} left behind: {why}"
            )

    named = _named_in_config(checkpoint, here, names)
    if named is not None:
        shards = indexes.get(named, {})
        others = [name for name in (*single, *indexes) if name != named and name not in shards]
        pass_by(others, f"{CONFIG} names {os.path.basename(named)} as the weights")
    for index in list(indexes):
        stem = index.removesuffix(".index.json")
        if stem in single and index in indexes and stem not in indexes[index]:
            base = os.path.basename(index)
            if base.startswith(_DIFFUSERS):
                pass_by([stem], f"diffusers loads {base}, which is there too")
            elif base.startswith(f"{_TRANSFORMERS}."):
                pass_by([index], f"transformers loads {os.path.basename(stem)}, which is there too")
            else:
                raise InputError(
                    f"{checkpoint / stem} and {checkpoint / index} are two checkpoints in one "
                    "folder, and which of them is loaded is not known: move the other away"
                )
    for stem in (_TRANSFORMERS, _DIFFUSERS):
        variants = [name for name in (*single, *indexes) if _variant(name, stem)]
        plain = [name for name in (*single, *indexes) if _variant(name, stem) == ""]
        if plain:
            pass_by(
                variants,
                f"a variant; {os.path.basename(plain[0])} is loaded where none is asked for",
            )
    taken = {shard for shards in indexes.values() for shard in shards}
    if indexes:
        pass_by(
            [name for name in single if name not in taken],
            f"{os.path.basename(min(indexes))} does not name it",
        )
        _check_there(checkpoint, indexes, names)
    else:
        _check_numbers(checkpoint, single)
    weights = tuple(sorted(taken) if indexes else single)
    return Choice(weights, indexes, tuple(passed_by), tuple(notes))


def _variant(name: str, stem: str) -> str | None:
    """Return the variant of a file of weights or an index, "" for none; None if its name does not
    begin as loaders look for it.
    """
    base = os.path.basename(name)
    found = _VARIANT.fullmatch(base) or INDEX.fullmatch(base)
    if found is None:
        return None
    # model.fp16.safetensors.index.json, or model.safetensors.index.fp16.json
    own, _, inner = found["stem"].partition(".")
    return (found["variant"] or inner) if own == stem else None


def _named_in_config(checkpoint: Path, here: str, names: Sequence[str]) -> str | None:
    """Return the file that a config.json says its model's weights are in."""
    config = os.path.join(here, CONFIG)
    if config not in names:
        return None
    try:
        said = read_json(checkpoint / config, "a config")
    except (InputError, OSError):
        return None  # whoever loads it will say so; whether it can be copied is checked elsewhere
    name = said.get("transformers_weights") if isinstance(said, dict) else None
    if not isinstance(name, str) or not (is_weights(name) or is_index(name)):
        return None
    if os.path.join(here, name) not in names:
        raise InputError(
            f"{checkpoint / here / name} is missing: {checkpoint / config} names it as the weights"
        )
    return os.path.join(here, name)


def _read_index(checkpoint: Path, name: str) -> dict[str, list[str]]:
    """Return the shards that an index names, as paths within the checkpoint, and the tensors of
    each.
    """
    path, here = checkpoint / name, os.path.dirname(name)
    index = read_json(path, "an index of shards")
    try:
        weight_map = dict(index["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{path} is not an index of shards, which has a weight_map: {error}"
        ) from error
    shards: dict[str, list[str]] = {}
    for tensor, shard in weight_map.items():
        if (
            not isinstance(shard, str)
            or not shard.lower().endswith(".safetensors")
            or shard != os.path.basename(shard)
            or "\\" in shard
        ):
            raise InputError(
                f"{path}: tensor {tensor!r} is said to be in {shard!r}, which is not the name of a "
                ".safetensors file beside it"
            )
        shards.setdefault(os.path.join(here, shard), []).append(tensor)
    if not shards:
        raise InputError(f"{path} names no tensor")
    return shards


def _check_there(
    checkpoint: Path, indexes: Mapping[str, Mapping[str, Sequence[str]]], names: Sequence[str]
) -> None:
    """Raise InputError if a shard is missing that an index names."""
    for index, shards in indexes.items():
        for shard, tensors in sorted(shards.items()):
            if shard not in names:
                raise InputError(
                    f"{checkpoint / shard} is missing: {checkpoint / index} names it as the file "
                    f"of {min(tensors)!r}"
                )


def _check_numbers(checkpoint: Path, names: Sequence[str]) -> None:
    """Raise InputError if shards are missing: without an index, names say how many there are."""
    there: dict[tuple[str, int], set[int]] = {}
    for name in names:
        found = _NUMBERED.fullmatch(name)
        if found is not None:
            there.setdefault((found["stem"], int(found["count"])), set()).add(int(found["number"]))
    for (stem, count), numbers in there.items():
        if len(numbers) < count:
            raise InputError(
                f"{checkpoint / stem}-…-of-{count}.safetensors: {len(numbers)} of {count} shards "
                "are there, and no index: put the others beside them"
            )
