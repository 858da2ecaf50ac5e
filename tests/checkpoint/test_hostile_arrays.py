"""Damaged and hostile .npy and .npz files: one line says so, and nothing is written, unpacked or
run.
"""

from __future__ import annotations

import tracemalloc
import warnings
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from tests.checkpoint import hostile
from tests.checkpoint.checkpoint_files import weights
from tests.checkpoint.hostile import PATTERN, Box, limited
from tests.checkpoint.hostile_files import (
    COMPRESSIONS,
    DATA,
    WHOLE,
    described,
    npy,
    npy_header,
    write_npz,
)

ended = hostile.ended

# Arrays.

NPYS = {
    "empty": b"",
    "no magic": b"1, 2\n3, 4\n" * 40,
    "half a magic": b"\x93NUM",
    "magic alone": b"\x93NUMPY\x01\x00",
    "unknown version": npy_header(described((8, 8)), DATA, (9, 9)),
    "header longer than the file": npy_header(described((8, 8)), DATA, length=60000),
    "header of 4 GB": npy_header(described((8, 8)), DATA, (2, 0), length=2**32 - 1),
    "header longer than NumPy allows": npy_header(described((8, 8)) + " " * 20000, DATA),
    "no dict": npy_header("[1, 2]\n", DATA),
    "no literal": npy_header("__import__('os').abort()\n", DATA),
    "no header": npy_header("", DATA),
    "null in it": npy_header(b"{\0}", DATA),
    "deep": npy_header("(" * 9000, DATA),
    "no shape": npy_header("{'descr': '<f4', 'fortran_order': False}\n", DATA),
    "more keys": npy_header(
        "{'descr': '<f4', 'fortran_order': False, 'shape': (8, 8), 'more': 1}\n", DATA
    ),
    "order no bool": npy_header(described((8, 8), fortran="no"), DATA),
    "shape no tuple": npy_header(described("[8, 8]"), DATA),
    "shape of fractions": npy_header(described((8.0, 8)), DATA),
    "shape negative": npy_header(described((-8, -8)), DATA),
    "shape half negative": npy_header(described((-8, 8)), DATA),
    "shape huge": npy_header(described((2**40, 2**40)), DATA),
    "shape beyond 64 bits": npy_header(described((2**80, 8)), DATA),
    "shape wraps to 256 bytes": npy_header(described((2**58 + 1, 64)), DATA),
    "dtype nonsense": npy_header(described((8, 8), "<q9"), DATA),
    "dtype a number": npy_header(described((8, 8), 7), DATA),
    "dtype deep": npy_header(described((8, 8), [("a", [("b", "<f4")])] * 2), DATA),
    "dtype none": npy_header(described((8, 8), None), DATA),
    "objects": npy_header(described((8, 8), "|O"), DATA),
    "objects in a record": npy_header(described((4, 8), [("a", "<f4"), ("b", "|O")]), DATA),
    "a record": npy_header(described((4, 8), [("a", "<f4"), ("b\x1b[2J", "<f4")]), DATA),
    "text": npy_header(described((4, 8), "<U2"), DATA),
    "elements of no size": npy_header(described((2**40, 8), "|V0"), b""),
    "dates": npy_header(described((4, 8), "<M8[s]"), DATA),
    "complex": npy_header(described((4, 8), "<c8"), DATA),
    "truncated": npy(weights(8, 8))[:-1],
    "longer": npy(weights(8, 8)) + b"\0",
    "vector": npy(weights(64)),
    "scalar": npy(np.asarray(np.float32(1))),
    "nothing": npy(np.zeros((0, 8), np.float32)),
}


@pytest.mark.parametrize("case", NPYS)
def test_damaged_npy(case: str, box: Box) -> None:
    src = box / "dense.npy"
    src.write_bytes(NPYS[case])
    assert "dense.npy" in box.prune_refused(src)
    assert "dense.npy" in box.refused("solve", src, "2:4T", "--out", box / "m.safetensors")


@pytest.mark.parametrize(
    "case", [case for case in NPYS if case not in ("nothing", "vector", "scalar", "longer")]
)
def test_damaged_npy_in_an_archive(case: str, box: Box) -> None:
    src = write_npz(box / "dense.npz", [("some.npy", NPYS[case])])
    assert "dense.npz" in box.prune_refused(src)
    assert "dense.npz" in box.refused("verify", src, "--pattern", "2:4T")


def test_what_python_2_wrote_warns_of_nothing(box: Box) -> None:
    (box / "dense.npy").write_bytes(
        npy_header("{'descr': '<f4', 'fortran_order': False, 'shape': (8L, 8L), }\n", DATA)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        box.survives("prune", box / "dense.npy", box / "sparse.npy", *PATTERN)
    assert not caught


def test_a_header_that_makes_python_warn_does_not(box: Box) -> None:
    (box / "dense.npy").write_bytes(
        npy_header("{'descr': '\\d', 'fortran_order': False, 'shape': (8, 8), }\n", DATA)
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        assert "dense.npy" in box.prune_refused(box / "dense.npy")
    assert not caught


# Archives.


def flagged(path: Path, bits: int) -> None:
    """Set flags of all members, in both of their headers."""
    data = bytearray(path.read_bytes())
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        at = data.find(mark)
        while at >= 0:
            data[at + offset] |= bits & 255
            data[at + offset + 1] |= bits >> 8
            at = data.find(mark, at + 4)
    path.write_bytes(data)


def replaced(path: Path, old: bytes, new: bytes) -> None:
    data = path.read_bytes()
    assert old in data
    path.write_bytes(data.replace(old, new))


def _with_crc_of_another(path: Path) -> None:
    write_npz(path, [("some.npy", WHOLE)])
    replaced(path, zlib.crc32(WHOLE).to_bytes(4, "little"), b"abcd")


def _encrypted(path: Path) -> None:
    write_npz(path, [("some.npy", WHOLE)])
    flagged(path, 1)


def _of_unknown_compression(path: Path) -> None:
    write_npz(path, [("some.npy", WHOLE)])
    data = bytearray(path.read_bytes())
    data[8] = data[data.index(b"PK\1\2") + 10] = 98
    path.write_bytes(data)


def _with_a_name_that_is_no_text(path: Path) -> None:
    write_npz(path, [("some.npy", WHOLE)])
    replaced(path, b"some.npy", b"so\xff\xfe.npy")
    flagged(path, 0x800)


def _with_another_name_before_the_data(path: Path) -> None:
    write_npz(path, [("some.npy", WHOLE)])
    path.write_bytes(path.read_bytes().replace(b"some.npy", b"sane.npy", 1))


def _with_a_size_that_lies(path: Path) -> None:
    write_npz(path, [("some.npy", npy_header(described((2**20, 2**20))))], zipfile.ZIP_DEFLATED)
    size = len(npy_header(described((2**20, 2**20))))
    replaced(path, size.to_bytes(4, "little"), (2**31 - 1).to_bytes(4, "little"))


ARCHIVES: dict[str, Callable[[Path], object]] = {
    "empty file": lambda path: path.write_bytes(b""),
    "no archive": lambda path: path.write_bytes(b"text" * 100),
    "truncated": lambda path: (
        write_npz(path, [("some.npy", WHOLE)]) and path.write_bytes(path.read_bytes()[:-30])
    ),
    "front cut off": lambda path: (
        write_npz(path, [("some.npy", WHOLE)]) and path.write_bytes(path.read_bytes()[50:])
    ),
    "name twice": lambda path: write_npz(path, [("some.npy", WHOLE), ("some.npy", WHOLE)]),
    "text": lambda path: write_npz(path, [("w.npy", WHOLE), ("some.txt", b"text")]),
    "folder": lambda path: write_npz(path, [("w.npy", WHOLE), ("some/", b"")]),
    "folder like an array": lambda path: write_npz(path, [("w.npy", WHOLE), ("some.npy/", b"")]),
    "no name": lambda path: write_npz(path, [("w.npy", WHOLE), ("some", WHOLE)]),
    "longer member": lambda path: write_npz(path, [("some.npy", WHOLE + b"1")]),
    "shorter member": lambda path: write_npz(path, [("some.npy", WHOLE[:-1])]),
    "encrypted": _encrypted,
    "unknown compression": _of_unknown_compression,
    "name no text": _with_a_name_that_is_no_text,
    "two names": _with_another_name_before_the_data,
    "size that lies": _with_a_size_that_lies,
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_damaged_npz(case: str, box: Box) -> None:
    ARCHIVES[case](box / "dense.npz")
    for line in box.all_refused(box / "dense.npz"):
        assert "dense.npz" in line


def test_an_archive_of_nothing(box: Box) -> None:
    assert "dense.npz" in box.prune_refused(write_npz(box / "dense.npz", []))


@pytest.mark.parametrize("compression", COMPRESSIONS)
@pytest.mark.parametrize("dense", [False, True])
def test_data_that_is_damaged_in_an_archive(compression: int, dense: bool, box: Box) -> None:
    """Found only when it is read, be it to be pruned or to be copied."""
    src = box / "dense.npz"
    array = np.random.default_rng(0).integers(0, 255, (400, 400), np.uint8)
    write_npz(
        src,
        [("first.npy", WHOLE), ("some.npy", npy(array.reshape(-1) if dense else array))],
        compression,
    )
    data = bytearray(src.read_bytes())
    data[len(data) // 2 : len(data) // 2 + 30] = bytes(30)
    src.write_bytes(data)
    line = box.prune_refused(src, begun=True)
    assert "dense.npz" in line
    assert "some" in line
    if not dense:
        for argv in (
            ("verify", src, "--pattern", "2:4T"),
            ("report", src, "--out", box / "page.html"),
        ):
            line = box.refused(*argv)
            assert "dense.npz" in line
            assert "some" in line


def test_a_checksum_that_is_wrong(box: Box) -> None:
    _with_crc_of_another(box / "dense.npz")
    line = box.prune_refused(box / "dense.npz", begun=True)
    assert "dense.npz" in line
    assert "'some'" in line


def test_a_header_that_unpacks_to_a_lot_of_memory_does_not(box: Box) -> None:
    bomb = npy_header(b" " * 2**26, b"", (2, 0))
    src = write_npz(box / "dense.npz", [("some.npy", bomb)], zipfile.ZIP_DEFLATED)
    assert src.stat().st_size < 2**18
    tracemalloc.start()
    try:
        assert "dense.npz" in box.prune_refused(src)
        assert tracemalloc.get_traced_memory()[1] < 2**24
    finally:
        tracemalloc.stop()


def test_an_array_that_unpacks_to_a_lot_of_disk_is_refused_before_it_does(box: Box) -> None:
    """Its size is known beforehand, and room is made for it at once."""
    src = write_npz(
        box / "dense.npz",
        [("a.npy", WHOLE), ("some.npy", npy(np.zeros(2**25, np.int8)))],
        zipfile.ZIP_DEFLATED,
    )
    assert src.stat().st_size < 2**17
    (found,) = limited([["prune", src, box / "out.npz", *PATTERN]], file_size=2**24)
    assert "File too large" in found.line
    assert f"{2**25 // 10**6}," in found.line
    assert not (box / "out.npz").exists()
