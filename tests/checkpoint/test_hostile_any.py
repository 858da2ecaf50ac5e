"""Any damage: what is read is pruned or shown as it should be, or an error names the file and
nothing is there.
"""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nmsolve import checkpoint
from tests.checkpoint import hostile
from tests.checkpoint.checkpoint_files import weights
from tests.checkpoint.hostile import caught, snapshot
from tests.checkpoint.hostile_files import (
    COMPRESSIONS,
    DATA,
    WHOLE,
    edit_json,
    edit_masks,
    npy,
    tensor,
    write_npz,
    write_safetensors,
    write_shards,
    write_weights,
)

ended = hostile.ended

BYTES = st.sampled_from(
    [
        b"\0",
        b"\xff",
        b"9",
        b"-",
        b'"',
        b"{",
        b"]",
        b",",
        b"\n",
        b"\x80",
        b"PK\1\2",
        b"\xff" * 8,
        bytes(8),
    ]
)
EDITS = st.lists(
    st.tuples(st.sampled_from(["flip", "put", "cut", "insert", "end"]), st.floats(0, 1), BYTES),
    min_size=1,
    max_size=4,
)
NUMBERS = [-1, 0, 1, 3, 2**70, 10**400, float("inf"), float("nan"), 1e308]
TEXTS = ["", "2:4", "1:3T", "é", "\ud800", "../../x", "\x1b[2J", "model-2.safetensors"]
VALUES = st.sampled_from([None, True, [], {}, [[]], [8, 8], {"a": {"b": []}}, *NUMBERS, *TEXTS])
FEW = settings(max_examples=40)


def damaged(data: bytes, edits: list[tuple[str, float, bytes]]) -> bytes:
    """Bytes after edits, each at a place that is a share of their length."""
    for kind, share, new in edits:
        at = int(share * max(0, len(data) - 1))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ (1 << new[0] % 8)]) + data[at + 1 :]
        elif kind == "put":
            data = data[:at] + new + data[at + len(new) :]
        elif kind == "cut":
            data = data[:at] + data[at + len(new) :]
        elif kind == "insert":
            data = data[:at] + new + data[at:]
        elif kind == "end":
            data = data[:at]
    return data


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) of a JSON value."""
    for key in (
        list(value)
        if isinstance(value, dict)
        else range(len(value))
        if isinstance(value, list)
        else ()
    ):
        yield value, key
        yield from places(value[key])


def changed(data: st.DataObject, whole: Any) -> Any:
    """A JSON value with one to three of its parts replaced, or left out."""
    for _ in range(data.draw(st.integers(1, 3))):
        found = list(places(whole))
        if not found:
            return whole
        container, key = found[data.draw(st.integers(0, len(found) - 1))]
        if data.draw(st.booleans()) or isinstance(container, list):
            container[key] = copy.deepcopy(data.draw(VALUES))
        elif data.draw(st.booleans()):
            container[str(data.draw(VALUES))] = container.pop(key)
        else:
            del container[key]
    return whole


def pruned_or_refused(src: Path) -> None:
    """It is pruned, and holds; or an error names the file, and nothing is there. The source is as
    it was.
    """
    dst = src.with_name(f"out{src.suffix}")
    before = snapshot(src.parent)
    error = caught(lambda: checkpoint.prune(src, dst, "2:4T", threads=1))
    if error is None:
        assert checkpoint.verify(dst).ok
    else:
        assert src.name in error
        assert set(snapshot(src.parent, unfinished=False)) <= set(before)
    assert before.items() <= snapshot(src.parent).items()


@FEW
@given(EDITS)
def test_any_damage_to_safetensors(
    tmp_path_factory: pytest.TempPathFactory, edits: list[tuple[str, float, bytes]]
) -> None:
    src = write_weights(tmp_path_factory.mktemp("any") / "dense.safetensors")
    src.write_bytes(damaged(src.read_bytes(), edits))
    pruned_or_refused(src)


@FEW
@given(st.data())
def test_any_header_of_safetensors(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    src = tmp_path_factory.mktemp("any") / "dense.safetensors"
    header = {
        "__metadata__": {"format": "pt"},
        "fc1.weight": tensor([8, 8], 0, 256),
        "fc2.weight": tensor([8, 8], 256, 512),
    }
    write_safetensors(src, changed(data, header), 2 * DATA)
    pruned_or_refused(src)


@FEW
@given(EDITS, st.sampled_from(["<f4", ">f8", "<f2", "|i1"]), st.booleans())
def test_any_damage_to_npy(
    tmp_path_factory: pytest.TempPathFactory,
    edits: list[tuple[str, float, bytes]],
    dtype: str,
    fortran: bool,
) -> None:
    src = tmp_path_factory.mktemp("any") / "dense.npy"
    src.write_bytes(
        damaged(
            npy(np.asarray((20 * weights(8, 8)).astype(dtype), order="F" if fortran else "C")),
            edits,
        )
    )
    pruned_or_refused(src)


@FEW
@given(EDITS, st.sampled_from(COMPRESSIONS))
def test_any_damage_to_npz(
    tmp_path_factory: pytest.TempPathFactory,
    edits: list[tuple[str, float, bytes]],
    compression: int,
) -> None:
    src = tmp_path_factory.mktemp("any") / "dense.npz"
    write_npz(
        src,
        [("a.npy", WHOLE), ("é.npy", npy(weights(4, 4))), ("bias.npy", npy(weights(3)))],
        compression,
    )
    src.write_bytes(damaged(src.read_bytes(), edits))
    pruned_or_refused(src)


@FEW
@given(st.data(), EDITS)
def test_any_index(
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    edits: list[tuple[str, float, bytes]],
) -> None:
    src = write_shards(tmp_path_factory.mktemp("any") / "dense")
    path = src / "model.safetensors.index.json"
    if data.draw(st.booleans()):
        path.write_text(json.dumps(changed(data, json.loads(path.read_text()))))
    else:
        path.write_bytes(damaged(path.read_bytes(), edits))
    pruned_or_refused(src)


def shown_or_refused(sparse: Path) -> None:
    """Everything that reads a pruned checkpoint works, or raises an error that names the file."""
    page = sparse.with_name("page.html")
    before = snapshot(sparse.parent)
    for step in (
        lambda: dict(checkpoint.open_masks(sparse)),
        lambda: checkpoint.verify(sparse),
        lambda: checkpoint.report(sparse, page),
    ):
        error = caught(step)
        assert error is None or "sparse." in error
        assert error is None or not page.exists()
    page.unlink(missing_ok=True)
    assert snapshot(sparse.parent) == before


@pytest.fixture(scope="module")
def pruned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pruned")
    write_weights(folder / "dense.safetensors", **{"fc3.weight": weights(3, 3)})
    checkpoint.prune(
        folder / "dense.safetensors",
        folder / "sparse.safetensors",
        {"fc3": "1:3", "*": "2:4T"},
        threads=1,
    )
    return folder


@FEW
@given(st.data(), EDITS)
def test_any_masks(
    pruned: Path,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    edits: list[tuple[str, float, bytes]],
) -> None:
    folder = shutil.copytree(pruned, tmp_path_factory.mktemp("any") / "copy")
    path = folder / "sparse.masks.safetensors"
    if data.draw(st.booleans()):
        edit_masks(path, lambda entries: changed(data, entries))
    else:
        path.write_bytes(damaged(path.read_bytes(), edits))
    shown_or_refused(folder / "sparse.safetensors")


@FEW
@given(st.data(), EDITS, st.sampled_from(["report", "report", "times"]))
def test_any_report(
    pruned: Path,
    tmp_path_factory: pytest.TempPathFactory,
    data: st.DataObject,
    edits: list[tuple[str, float, bytes]],
    name: str,
) -> None:
    folder = shutil.copytree(pruned, tmp_path_factory.mktemp("any") / "copy")
    path = folder / f"sparse.{name}.json"
    if data.draw(st.booleans()):
        edit_json(path, lambda whole: changed(data, whole))
    else:
        path.write_bytes(damaged(path.read_bytes(), edits))
    shown_or_refused(folder / "sparse.safetensors")
