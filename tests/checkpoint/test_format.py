"""The files that `docs/format.md` specifies, byte for byte."""

from __future__ import annotations

import json
import re
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

import nmsolve
from nmsolve import checkpoint
from tests.checkpoint.checkpoint_files import weights

ROOT = Path(__file__).resolve().parents[2]
#: Two weights: 2 × 8 values whose best 2:4 mask can be seen, and a 4 × 3 one that takes a byte and
#: a half.
TENSORS = {
    "fc.weight": np.array([[9, 8, 1, 1, 1, 8, 1, 9], [1, 1, 8, 9, 8, 1, 9, 1]], np.float32),
    "norm.weight": np.ones(3, np.float32),
    "out.weight": np.array([[1, 0, 3], [1, 2, 0], [1, 1, 1], [5, 5, 6]], np.float32),
}
HEADER = (
    '{"__metadata__":{"format":"nmsolve-masks","version":"1","masks":'
    '"{\\"fc.weight\\":{\\"shape\\":[2,8],\\"pattern\\":\\"2:4\\",\\"axis\\":1,\\"padding\\":\\"error\\"},'
    '\\"out.weight\\":{\\"shape\\":[4,3],\\"pattern\\":\\"1:3\\",\\"axis\\":1,\\"padding\\":\\"error\\"}}"},'
    '"fc.weight":{"dtype":"U8","shape":[2],"data_offsets":[0,2]},"out.weight":{"dtype":"U8","shape":[2],"data_offsets":[2,4]}}'
)
#: Rows of fc: keep 0, 1, 5, 7 and 2, 3, 4, 6. Rows of out: keep 2; 1; 0 (a tie: the lowest); 2.
ROWS = np.array([[1, 1, 0, 0, 0, 1, 0, 1], [0, 0, 1, 1, 1, 0, 1, 0]], bool)
BITS = bytes([0b10100011, 0b01011100, 0b01010100, 0b00001000])


@pytest.fixture
def pruned(tmp_path: Path) -> Path:
    save_file(TENSORS, tmp_path / "dense.safetensors")
    included = list(TENSORS)  # whose names alone do not say what they are
    checkpoint.prune(
        tmp_path / "dense.safetensors",
        tmp_path / "sparse.safetensors",
        {"fc": "2:4", "*": "1:3"},
        include=included,
    )
    return tmp_path / "sparse.safetensors"


def test_masks_byte_for_byte(pruned: Path) -> None:
    header = HEADER.encode()
    header += b" " * (-len(header) % 8)
    expected = len(header).to_bytes(8, "little") + header + BITS
    assert pruned.with_name("sparse.masks.safetensors").read_bytes() == expected


def test_the_specification_shows_these_bytes() -> None:
    text = (ROOT / "docs" / "format.md").read_text()
    (shown,) = re.findall(r"^```json\n(.*?)\n```$", text, re.MULTILINE | re.DOTALL)[:1]
    assert json.loads(shown) == json.loads(HEADER)
    assert " ".join(f"{byte:02x}" for byte in BITS) in text


def test_any_reader_of_safetensors_reads_masks(pruned: Path) -> None:
    """As docs/format.md says to, with nothing of nmsolve's."""
    path = pruned.with_name("sparse.masks.safetensors")
    with safe_open(path, "numpy") as file:
        described = json.loads(file.metadata()["masks"])
        for name, entry in described.items():
            bits = np.unpackbits(
                file.get_tensor(name), bitorder="little", count=int(np.prod(entry["shape"]))
            )
            mask = bits.astype(bool).reshape(entry["shape"])
            assert (mask == nmsolve.solve(TENSORS[name], entry["pattern"]).mask).all()


def test_open_masks(pruned: Path) -> None:
    for path in (pruned, str(pruned), pruned.with_name("sparse.masks.safetensors")):
        masks = checkpoint.open_masks(path)
        assert list(masks) == ["fc.weight", "out.weight"]
        assert len(masks) == 2
        assert masks["fc.weight"].dtype == np.bool_
        assert (masks["out.weight"] == nmsolve.solve(TENSORS["out.weight"], "1:3").mask).all()
        entry = masks.described["fc.weight"]
        assert (str(entry.pattern), entry.axis, entry.padding, entry.shape) == (
            "2:4",
            1,
            "error",
            (2, 8),
        )
        with pytest.raises(KeyError):
            masks["norm.weight"]
    with pytest.raises(nmsolve.InputError, match=r"dense\.safetensors has no masks beside it"):
        checkpoint.open_masks(pruned.with_name("dense.safetensors"))
    with pytest.raises(FileNotFoundError):
        checkpoint.open_masks(pruned.with_name("absent.safetensors"))


def _change(path: Path, **changes: object) -> None:
    """Write a file of masks again with other metadata or bytes."""
    with safe_open(path, "numpy") as file:
        metadata = dict(file.metadata())
    tensors = load_file(path)
    described = json.loads(metadata["masks"])
    for key, value in changes.items():
        if key in ("format", "version"):
            metadata[key] = value  # type: ignore[assignment]
        elif key == "bits":
            tensors["out.weight"] = np.asarray(value, np.uint8)
        else:
            described["out.weight"][key] = value
    metadata["masks"] = json.dumps(described)
    save_file(tensors, path, metadata)


@pytest.mark.parametrize(
    "change",
    [
        {"format": "masks"},
        {"version": "2"},
        {"shape": [4, 2]},
        {"shape": [4, -3]},
        {"shape": [12]},
        {"shape": "4x3"},
        {"pattern": "1:3X"},
        {"pattern": 3},
        {"axis": 2},
        {"axis": None},
        {"padding": "skip"},
        {"bits": [84, 8, 0]},
        {"bits": [84, 24]},
    ],
    ids=str,
)
def test_damaged_masks_are_refused(pruned: Path, change: dict[str, object]) -> None:
    path = pruned.with_name("sparse.masks.safetensors")
    _change(path, **change)
    with pytest.raises(nmsolve.InputError, match=r"sparse\.masks\.safetensors"):
        checkpoint.open_masks(pruned)["out.weight"]


def test_report_and_times(pruned: Path) -> None:
    report = json.loads(pruned.with_name("sparse.report.json").read_text())
    assert (report["format"], report["version"]) == ("nmsolve-report", 2)
    assert list(report) == [
        "format",
        "version",
        "nmsolve",
        "source",
        "settings",
        "weights",
        "density",
        "share",
        "gap",
        "tensors",
        "files",
        "copied",
        "left_behind",
        "notes",
    ]
    assert report["tensors"][0] == {
        "file": "dense.safetensors",
        "name": "fc.weight",
        "dtype": "F32",
        "shape": [2, 8],
        "pattern": "2:4",
        "axis": 1,
        "padding": "error",
        "reason": None,
        "status": "optimal",
        "objective": 68.0,
        "bound": 68.0,
        "gap": 0.0,
        "total": 76.0,
        "kept": 8,
        "digest": sha256(np.where(ROWS, TENSORS["fc.weight"], np.float32(0)).tobytes()).hexdigest(),
        "mask_digest": sha256(BITS[:2]).hexdigest(),
    }
    dense, sparse = pruned.with_name("dense.safetensors").read_bytes(), pruned.read_bytes()
    length = 8 + int.from_bytes(dense[:8], "little")
    assert report["nmsolve"] == nmsolve.__version__
    assert report["files"] == [
        {
            "name": "dense.safetensors",
            "header": sha256(sparse[:length]).hexdigest(),
            "source_size": len(dense),
            "size": len(sparse),
            "masks_size": pruned.with_name("sparse.masks.safetensors").stat().st_size,
        }
    ]
    assert report["copied"] == report["left_behind"] == report["notes"] == []
    assert report["tensors"][1]["reason"] == "fewer than two axes"
    times = json.loads(pruned.with_name("sparse.times.json").read_text())
    assert list(times) == ["format", "version", "report", "seconds", "modified"]
    assert (times["format"], times["version"]) == ("nmsolve-times", 1)
    assert (
        times["report"] == sha256(pruned.with_name("sparse.report.json").read_bytes()).hexdigest()
    )
    assert list(times["seconds"]) == list(TENSORS)
    assert all(seconds >= 0 for seconds in times["seconds"].values())
    assert times["modified"] == {
        "dense.safetensors": pruned.with_name("dense.safetensors").stat().st_mtime_ns
    }


def test_verify_finds_every_violation(pruned: Path) -> None:
    assert checkpoint.verify(pruned).ok
    tensors = load_file(pruned)
    tensors["fc.weight"][1, 0] = 5
    save_file(tensors, pruned)
    found = checkpoint.verify(pruned)
    assert not found
    (wrong,) = [check for check in found if not check.ok]
    assert (wrong.name, wrong.strays) == ("fc.weight", 1)
    assert "fc.weight" in str(found)
    assert "1 of them violated" in str(found)
    found = checkpoint.verify(pruned, "2:4", exclude="out")
    (wrong,) = [check for check in found if not check.ok]
    assert wrong.report is not None
    assert (wrong.report.violations, wrong.report.first) == (1, ((1, 0), 3))
    with pytest.raises(nmsolve.InputError, match="has no masks beside it"):
        checkpoint.verify(pruned.with_name("dense.safetensors"))


def test_nothing_to_verify_is_an_error(pruned: Path) -> None:
    reasons = (
        r"its axis 1 does not consist of groups of 5 \(2 tensors\); fewer than two axes \(1 "
        r"tensors\)"
    )
    with pytest.raises(
        nmsolve.InputError, match=rf"no tensor of .*sparse\.safetensors can be checked: {reasons}"
    ):
        checkpoint.verify(pruned, "2:5", include=list(TENSORS))


def test_verify_counts_masks_themselves(pruned: Path) -> None:
    path = pruned.with_name("sparse.masks.safetensors")
    assert checkpoint.verify(path).ok
    found = checkpoint.verify(path, "1:2")
    assert [(check.ok, check.report is None) for check in found] == [(False, False), (True, True)]
    _change(path, bits=[0b01010101, 0b1000])
    assert not checkpoint.verify(path).ok
    assert not checkpoint.verify(pruned).ok


def test_bfloat16_verifies(tmp_path: Path) -> None:
    import ml_dtypes

    tensor = weights(8, 8, dtype=np.dtype(ml_dtypes.bfloat16))
    save_file(
        {"fc1.weight": tensor, "fc2.weight": np.full((4, 4), -0.0, ml_dtypes.bfloat16)},
        tmp_path / "dense.safetensors",
    )
    checkpoint.prune(tmp_path / "dense.safetensors", tmp_path / "sparse.safetensors", "2:4T")
    assert checkpoint.verify(tmp_path / "sparse.safetensors", "2:4T").ok
    assert not checkpoint.verify(tmp_path / "dense.safetensors", "2:4T").ok
