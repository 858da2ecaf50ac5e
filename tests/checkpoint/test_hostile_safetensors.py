"""Damaged and hostile .safetensors files, and weights that are no numbers: one line says so, and
nothing is written.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from nmsolve import checkpoint
from tests.checkpoint import hostile
from tests.checkpoint.checkpoint_files import weights
from tests.checkpoint.hostile import PATTERN, Box, ended_after
from tests.checkpoint.hostile_files import (
    DATA,
    DEEP,
    described,
    npy,
    npy_header,
    tensor,
    write_npz,
    write_safetensors,
    write_weights,
)

ended = hostile.ended

NAN = {"nan": np.nan, "infinity": np.inf, "minus infinity": -np.inf}

HEADERS: dict[str, bytes | dict[str, Any]] = {
    "no JSON": b"{ 'w'",
    "no object": b"[]",
    "null": b"null",
    "no text": b'{"\xff\xfe": 1}',
    "half a character": b'{"\\ud800":{"dtype":"F32","shape":[8,8],"data_offsets":[0,256]}}',
    "deep": b"[" * DEEP,
    "deep object": b'{"a":' * DEEP + b"1" + b"}" * DEEP,
    "no tensor": {},
    "metadata alone": {"__metadata__": {"format": "pt"}},
    "metadata of numbers": {"__metadata__": {"format": 1}, "w": tensor([8, 8], 0, 256)},
    "entry null": {"w": None},
    "entry number": {"w": 3},
    "no dtype": {"w": {"shape": [8, 8], "data_offsets": [0, 256]}},
    "no shape": {"w": {"dtype": "F32", "data_offsets": [0, 256]}},
    "no offsets": {"w": {"dtype": "F32", "shape": [8, 8]}},
    "unknown dtype": {"w": tensor([8, 8], 0, 256, "F33")},
    "dtype a number": {"w": tensor([8, 8], 0, 256, 32)},
    "shape too large": {"w": tensor([8, 16], 0, 256)},
    "shape too small": {"w": tensor([8, 4], 0, 256)},
    "shape overflows": {"w": tensor([2**62, 2**62], 0, 256)},
    "shape wraps to 256 bytes": {"w": tensor([2**58 + 1, 64], 0, 256)},
    "shape negative": {"w": tensor([-8, -8], 0, 256)},
    "shape of fractions": {"w": tensor([8.5, 8], 0, 256)},
    "shape beyond 64 bits": {"w": tensor([2**80, 8], 0, 256)},
    "offsets beyond the end": {"w": tensor([8, 16], 0, 512)},
    "offsets beyond 64 bits": {"w": tensor([8, 8], 2**80, 2**80 + 256)},
    "offsets reversed": {"w": tensor([8, 8], 256, 0)},
    "offsets negative": {"w": tensor([8, 8], -256, 0)},
    "three offsets": {"w": {"dtype": "F32", "shape": [8, 8], "data_offsets": [0, 128, 256]}},
    "overlap": {"v": tensor([8, 8], 0, 256), "w": tensor([8, 8], 0, 256)},
    "gap": {"w": tensor([4, 8], 128, 256)},
    "rest": {"w": tensor([4, 8], 0, 128)},
    "name twice": b'{"w":{"dtype":"U8","shape":[8],"data_offsets":[0,8]},'
    b'"w":{"dtype":"U8","shape":[248],"data_offsets":[8,256]}}',
}


@pytest.mark.parametrize("case", HEADERS)
def test_damaged_headers(case: str, box: Box) -> None:
    src = write_safetensors(box / "dense.safetensors", HEADERS[case], DATA)
    for line in box.all_refused(src):
        assert "dense.safetensors" in line


def test_a_name_that_is_twice_among_many_is_found_in_a_moment(box: Box) -> None:
    entries = [json.dumps({f"w{i}": tensor([1], i, i + 1, "U8")})[1:-1] for i in range(40_000)]
    header = "{" + ", ".join([*entries, entries[-1]]) + "}"
    write_safetensors(box / "dense.safetensors", header.encode(), bytes(len(entries)))
    with ended_after(10):
        assert "'w39999'" in box.prune_refused(box / "dense.safetensors")


@pytest.mark.parametrize("axes", [63, 64, 65, 72])
def test_more_axes_than_numpy_has(axes: int, box: Box) -> None:
    """They cannot be pruned, but may be kept dense."""
    shape, ones = [8, 8], [1] * (axes - 2)
    write_safetensors(box / "one.safetensors", {"w.weight": tensor(shape + ones, 0, 256)}, DATA)
    (box / "one.npy").write_bytes(npy_header(described(tuple(ones + shape)), DATA))
    write_npz(box / "one.npz", [("w.npy", (box / "one.npy").read_bytes())])
    both = {"fc1.weight": tensor(shape, 0, 256), "w.weight": tensor(shape + ones, 256, 512)}
    write_safetensors(box / "both.safetensors", both, DATA + DATA)
    for name in ("one.safetensors", "one.npy", "one.npz", "both.safetensors"):
        dst = box / f"from {name}" / name
        dst.parent.mkdir()
        if not box.survives("prune", box / name, dst, *PATTERN, begun=True):
            assert name in box.refused("prune", box / name, dst, *PATTERN, "--resume", begun=True)
        box.survives("verify", box / name, "--pattern", "2:4T")
        box.survives("report", box / name, "--out", box / "page.html")


@pytest.mark.parametrize("length", [0, 1, 7, 8, 9, 100, -1, -256])
def test_truncated_safetensors(length: int, box: Box) -> None:
    src = write_weights(box / "dense.safetensors")
    src.write_bytes(src.read_bytes()[:length])
    for line in box.all_refused(src):
        assert "dense.safetensors" in line


@pytest.mark.parametrize("length", [0, 1, 2**27, 2**31, 2**63, 2**64 - 1, 2**64 - 8])
def test_headers_that_lie_about_their_length(length: int, box: Box) -> None:
    src = write_safetensors(box / "dense.safetensors", {"w": tensor([8, 8], 0, 256)}, DATA, length)
    for line in box.all_refused(src):
        assert "dense.safetensors" in line


PATHS = ["../w", "a/../../w", "/w", "\\\\host\\w", "..\\w", "C:\\w", ".."]
CONTROLS = ["w\n", "\x1b[2Jw", "w\x00", "\x7f", "\x9b2Jw", "w\x85", "w\u2028v", "\u202ew"]


@pytest.mark.parametrize("name", PATHS + CONTROLS, ids=ascii)
def test_names_that_leave_a_folder_or_drive_a_terminal(name: str, box: Box) -> None:
    src = write_safetensors(
        box / "dense.safetensors",
        {"v.weight": tensor([8, 8], 0, 256), name: tensor([8, 8], 256, 512)},
        2 * DATA,
    )
    for line in box.all_refused(src):
        assert "dense.safetensors" in line
        assert repr(name) in line
    if "\0" not in name and name.isascii():
        src = write_npz(
            box / "dense.npz", [("v.npy", npy(weights(8, 8))), (f"{name}.npy", npy(weights(8, 8)))]
        )
        for line in box.all_refused(src):
            assert "dense.npz" in line
            assert repr(name) in line


def test_names_that_are_only_odd_are_names(box: Box) -> None:
    names = [
        "",
        ".",
        "a b",
        "é.權重.weight",
        "a/b/c",
        "x" * 3000,
        "<script>",
        "%s",
        "{0}",
        "~",
        "-w",
        "*",
        "[1]",
        "$HOME",
        "w..v",
    ]
    save_file(
        {name: weights(8, 8, seed=seed) for seed, name in enumerate(names)},
        box / "dense.safetensors",
    )
    named = [f"--include={name}" for name in names]
    code, _, _ = box.run(
        "prune", box / "dense.safetensors", box / "sparse.safetensors", *PATTERN, *named
    )
    assert code == 0
    assert set(checkpoint.open_masks(box / "sparse.safetensors")) == set(names)
    assert box.run("report", box / "sparse.safetensors", "--out", box / "page.html")[0] == 0
    assert (
        "<script>"
        not in (box / "page.html").read_text().partition("<table")[2].partition("</table")[0]
    )


@pytest.mark.parametrize("kind", NAN)
@pytest.mark.parametrize("dtype", ["<f4", "<f2", ">f8"])
def test_weights_that_are_no_numbers_are_named_with_their_place(
    kind: str, dtype: str, box: Box
) -> None:
    wrong = weights(8, 16).astype(dtype)
    wrong[5, 11] = NAN[kind]
    np.savez(box / "dense.npz", first=weights(8, 8), wrong=wrong, last=weights(8, 8))
    line = box.prune_refused(box / "dense.npz", begun=True)
    for part in ("dense.npz", "'wrong'", "[5, 11]", str(NAN[kind]), "(8, 16)"):
        assert part in line
    box.refused(
        "solve", box / "dense.npz", *PATTERN, "--out", box / "masks.safetensors", begun=True
    )


def test_a_weight_that_is_no_number_in_bfloat16_and_a_convolution(box: Box) -> None:
    bits = np.full((8, 4, 3, 3), 0x3F80, "<u2")
    bits[6, 3, 2, 1] = 0x7FC1
    src = write_safetensors(
        box / "dense.safetensors",
        {"conv2d.weight": tensor(bits.shape, 0, bits.nbytes, "BF16")},
        bits.tobytes(),
    )
    line = box.prune_refused(src, begun=True)
    for part in ("dense.safetensors", "'conv2d.weight'", "[6, 3, 2, 1]", "nan", "(8, 4, 3, 3)"):
        assert part in line


def test_no_number_in_what_stays_dense_is_none_of_our_business(box: Box) -> None:
    write_weights(box / "dense.safetensors", scale=np.full(3, np.nan, np.float32))
    assert box.run("prune", box / "dense.safetensors", box / "sparse.safetensors", *PATTERN)[0] == 0
    assert np.isnan(load_file(box / "sparse.safetensors")["scale"]).all()


@pytest.mark.parametrize("value", [1e303, 1e305])
def test_finite_weights_whose_sum_is_not(value: float, box: Box) -> None:
    np.save(box / "dense.npy", np.full((512, 512), value))
    if not box.survives("prune", box / "dense.npy", box / "sparse.npy", *PATTERN, begun=True):
        assert "dense.npy" in box.prune_refused(box / "dense.npy", begun=True)
    else:
        assert "Infinity" not in (box / "sparse.report.json").read_text()
