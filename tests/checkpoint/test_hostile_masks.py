"""Masks that are damaged, hostile or of other tensors: every command that reads them refuses them
in one line.
"""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import nmsolve
from nmsolve import checkpoint
from tests.checkpoint import hostile
from tests.checkpoint.checkpoint_files import weights
from tests.checkpoint.hostile import Box
from tests.checkpoint.hostile_files import (
    DEEP,
    Edit,
    each,
    edit_masks,
    instead,
    put,
    without,
    write_safetensors,
    write_shards,
    write_weights,
)

ended = hostile.ended


def both_refused(box: Box, sparse: Path) -> list[str]:
    """As `refused`, for the commands that read masks; `open_masks` refuses in the same words."""
    lines = [
        box.refused("verify", sparse),
        box.refused("report", sparse, "--out", box / "page.html"),
        box.refused("verify", sparse.with_name("sparse.masks.safetensors")),
    ]
    with pytest.raises((nmsolve.InputError, OSError)) as found:
        dict(checkpoint.open_masks(sparse))
    return [*lines, str(found.value)]


MASKS: dict[str, Edit] = {
    "a list": lambda entries: [entries],
    "null": instead(None),
    "nothing": instead({}),
    "one less": without("fc1.weight"),
    "one more": lambda entries: entries | {"more": entries["fc1.weight"]},
    "another name": lambda entries: {
        name.replace("f", "\ud800"): entry for name, entry in entries.items()
    },
    "entry a list": put(**{"fc1.weight": []}),
    "entry null": put(**{"fc1.weight": None}),
    "shape infinite": each(shape=[float("inf"), 8]),
    "shape no number": each(shape=[float("nan"), 8]),
    "shape nested": each(shape=[[8], [8]]),
    "shape huge": each(shape=[2**70, 2**70]),
    "shape null": each(shape=None),
    "shape empty": each(shape=[]),
    "shape with none": each(shape=[0, 8]),
    "shape of one axis": each(shape=[64]),
    "axis infinite": each(axis=float("inf")),
    "axis beyond": each(axis=2),
    "axis negative": each(axis=-1),
    "axis huge": each(axis=2**70),
    "axis null": each(axis=None),
    "pattern null": each(pattern=None),
    "pattern a list": each(pattern=["2:4"]),
    "pattern nonsense": each(pattern="\x1b[2J"),
    "pattern that does not divide": each(pattern="2:5T"),
    "pattern huge": each(pattern=f"{2**70}:{2**71}"),
    "padding nonsense": each(padding="\x1b[2J"),
    "padding a list": each(padding=[]),
}


@pytest.mark.parametrize("case", MASKS)
def test_hostile_masks(case: str, box: Box, sparse: Path) -> None:
    path = sparse.with_name("sparse.masks.safetensors")
    edit_masks(path, MASKS[case])
    assert "sparse.masks.safetensors" in box.refused("verify", path)
    assert "sparse.masks.safetensors" in box.refused("verify", sparse)
    assert "sparse" in box.refused("report", sparse, "--out", box / "page.html")
    with pytest.raises(nmsolve.InputError, match=r"sparse\.masks\.safetensors"):
        checkpoint.open_masks(sparse)


@pytest.mark.parametrize("length", [0, 5, 8, 50, -1])
def test_truncated_masks(length: int, box: Box, sparse: Path) -> None:
    path = sparse.with_name("sparse.masks.safetensors")
    path.write_bytes(path.read_bytes()[:length])
    for line in both_refused(box, sparse):
        assert "sparse.masks.safetensors" in line


def test_metadata_of_masks_that_is_no_json_or_missing(box: Box, sparse: Path) -> None:
    path = sparse.with_name("sparse.masks.safetensors")
    whole = path.read_bytes()
    end = 8 + int.from_bytes(whole[:8], "little")
    header = json.loads(whole[8:end])
    metadata = header["__metadata__"]
    for masks in ("", "{", "[" * DEEP, '{"a":' * DEEP, "9" * 5000, None):
        header["__metadata__"] = {
            k: v for k, v in (metadata | {"masks": masks}).items() if v is not None
        }
        write_safetensors(path, header, whole[end:])
        for line in both_refused(box, sparse):
            assert "sparse.masks.safetensors" in line


def test_masks_that_shrink_between(box: Box, sparse: Path) -> None:
    masks = checkpoint.open_masks(sparse)
    os.truncate(sparse.with_name("sparse.masks.safetensors"), 100)
    with pytest.raises(nmsolve.InputError, match=r"sparse\.masks\.safetensors.*'fc2\.weight'"):
        masks["fc2.weight"]
    sparse.with_name("sparse.masks.safetensors").unlink()
    with pytest.raises(OSError, match=r"sparse\.masks\.safetensors"):
        masks["fc2.weight"]


@pytest.mark.parametrize("reported", [True, False])
@pytest.mark.parametrize("case", ["integers", "another shape", "another name"])
def test_masks_of_other_tensors(case: str, reported: bool, box: Box, sparse: Path) -> None:
    tensors = load_file(sparse)
    tensor = tensors.pop("fc1.weight")
    other = {
        "integers": tensor.astype(np.int32),
        "another shape": weights(4, 16),
        "another name": tensor,
    }[case]
    save_file({**tensors, "renamed" if case == "another name" else "fc1.weight": other}, sparse)
    if not reported:
        sparse.with_name("sparse.report.json").unlink()
    for argv in (("verify", sparse), ("report", sparse, "--out", box / "page.html")):
        line = box.refused(*argv)
        assert "'fc1.weight'" in line
        assert "sparse." in line


def test_masks_of_one_tensor_in_two_files(box: Box) -> None:
    checkpoint.prune(write_shards(box / "dense"), box / "sparse", "2:4T", threads=1)
    shutil.copy(
        box / "sparse" / "masks" / "model-1.safetensors",
        box / "sparse" / "masks" / "model-9.safetensors",
    )
    with pytest.raises(nmsolve.InputError, match=r"'fc1\.weight'"):
        checkpoint.open_masks(box / "sparse")
    assert "'fc1.weight'" in box.refused("verify", box / "sparse")


@pytest.mark.parametrize("kind", ["folder", "empty", "text", "broken link", "weights"])
def test_what_else_is_among_masks(kind: str, box: Box) -> None:
    checkpoint.prune(write_shards(box / "dense"), box / "sparse", "2:4T", threads=1)
    path = box / "sparse" / "masks" / "model-3.safetensors"
    if kind == "folder":
        path.mkdir()
    elif kind == "broken link":
        path.symlink_to("nothing")
    elif kind == "weights":
        write_weights(path)
    else:
        path.write_text("" if kind == "empty" else "text")
    for argv in (
        ("verify", box / "sparse"),
        ("report", box / "sparse", "--out", box / "page.html"),
    ):
        assert "model-3.safetensors" in box.refused(*argv)
