"""Reports and times that are damaged, hostile or only odd, and reports against another
checkpoint.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from tests.checkpoint import hostile
from tests.checkpoint.checkpoint_files import weights
from tests.checkpoint.hostile import Box
from tests.checkpoint.hostile_files import (
    DEEP,
    Edit,
    each_tensor,
    edit_json,
    put,
    without,
    write_weights,
)

ended = hostile.ended

REPORTS: dict[str, Edit] = {
    "a list": lambda report: [report],
    "no format": without("format"),
    "format null": put(format=None),
    "another version": put(version=99),
    "tensors null": put(tensors=None),
    "tensors text": put(tensors="abc"),
    "tensors numbers": put(tensors=[1, 2]),
    "tensors empty": put(tensors=[]),
    "a tensor less": lambda report: report | {"tensors": report["tensors"][1:]},
    "a tensor more": lambda report: (
        report | {"tensors": [*report["tensors"], report["tensors"][0] | {"name": "more\x1b[2J"}]}
    ),
    "a tensor twice": lambda report: (
        report | {"tensors": [*report["tensors"], report["tensors"][0]]}
    ),
    "a field less": lambda report: (
        report | {"tensors": [without("kept")(entry) for entry in report["tensors"]]}
    ),
    "a field more": each_tensor(**{"\x1b[2J": 1}),
    "settings null": put(settings=None),
    "left behind null": put(left_behind=None),
    "shape infinite": each_tensor(shape=[float("inf"), 8]),
    "shape text": each_tensor(shape="88888"),
    "shape null": each_tensor(shape=None),
    "shape huge": each_tensor(shape=[2**70, 2**70]),
    "axis infinite": each_tensor(axis=float("inf")),
    "axis beyond": each_tensor(axis=7),
    "axis far below": each_tensor(axis=-7),
    "axis another": each_tensor(axis=0),
    "axis null": each_tensor(axis=None),
    "axis text": each_tensor(axis="one"),
    "kept infinite": each_tensor(kept=float("inf")),
    "objective huge": each_tensor(objective=10**400),
    "objective text": each_tensor(objective="much"),
    "objective a list": each_tensor(objective=[1]),
    "pattern nonsense": each_tensor(pattern="2:4X\x1b[2J"),
    "pattern a number": each_tensor(pattern=24),
    "pattern another": each_tensor(pattern="1:2T"),
}


@pytest.mark.parametrize("case", REPORTS)
def test_hostile_reports(case: str, box: Box, sparse: Path) -> None:
    edit_json(sparse.with_name("sparse.report.json"), REPORTS[case])
    assert "sparse.report.json" in box.refused("report", sparse, "--out", box / "page.html")
    assert box.run("verify", sparse)[0] == 0  # which trusts none


@pytest.mark.parametrize(
    "text",
    [b"", b"{", b"\xff\xfe", b"null", b"[" * DEEP, b'{"a":' * DEEP, b"9" * 5000],
    ids=lambda text: repr(text[:10]),
)
@pytest.mark.parametrize("name", ["report", "times"])
def test_files_that_are_no_report(name: str, text: bytes, box: Box, sparse: Path) -> None:
    path = sparse.with_name(f"sparse.{name}.json")
    path.write_bytes(text)
    assert path.name in box.refused("report", sparse, "--out", box / "page.html")


ODD: dict[str, Edit] = {
    "numbers at their largest": each_tensor(objective=1.7e308, bound=1.7e308, total=1.7e308),
    "an objective that no total explains": each_tensor(objective=1e308),
    "one objective that no total explains": lambda report: (
        report | {"tensors": [report["tensors"][0] | {"objective": 1e308}, *report["tensors"][1:]]}
    ),
    "a total that explains no objective": each_tensor(total=5e-324),
    "infinite numbers": each_tensor(
        objective=float("inf"), bound=float("-inf"), total=float("inf")
    ),
    "infinity of both signs": lambda report: (
        report
        | {
            "tensors": [
                entry | {"total": float("-inf" if "fc1" in entry["name"] else "inf"), "bound": 0}
                for entry in report["tensors"]
            ]
        }
    ),
    "no numbers": each_tensor(objective=float("nan"), bound=float("nan"), gap=float("nan")),
    "negative numbers": each_tensor(objective=-1, bound=-2, gap=-3, total=-4, kept=-5),
    "unknown numbers": each_tensor(
        objective=None, bound=None, gap=None, total=None, kept=None, status=None
    ),
    "half characters": each_tensor(status="\ud800", reason="\ud800", file="\udfff"),
    "half a character for a source": put(source="\ud800"),
    "half characters in settings": put(settings={"\ud800": "\ud800"}, left_behind=["\ud800"]),
    "settings of other kinds": put(
        settings={"pattern": [1, {"a": None}], "include": 3, "exclude": {}}
    ),
    "a deep setting": put(settings=json.loads('{"pattern":' + "[" * 300 + "]" * 300 + "}")),
    "markup": each_tensor(status="<script>alert(1)</script>", reason="<script>alert(1)</script>"),
    "escapes": each_tensor(status="\x1b[2J", dtype="\x1b[2J", file="\x1b[2J", reason="\x9b"),
}


@pytest.mark.parametrize("against", [False, True])
@pytest.mark.parametrize("case", ODD)
def test_reports_that_only_say_odd_things(case: str, against: bool, box: Box, sparse: Path) -> None:
    edit_json(sparse.with_name("sparse.report.json"), ODD[case])
    options = ("--against", box / "dense.safetensors") if against else ()
    if box.survives("report", sparse, *options, "--out", box / "page.html"):
        page = (box / "page.html").read_text()
        assert "<script>alert" not in page
        assert "\x1b" not in page
    else:
        line = box.refused("report", sparse, *options, "--out", box / "page.html")
        assert "sparse.report.json" in line or (against and "dense.safetensors" in line)


TIMES = {
    "infinite": {"fc1.weight": float("inf")},
    "no number": {"fc1.weight": float("nan")},
    "of both signs": {"fc1.weight": -1e308, "fc2.weight": 1e308},
    "at their largest": {"fc1.weight": 1.7e308, "fc2.weight": 1.7e308},
    "huge": {"fc1.weight": 10**400},
    "null": {"fc1.weight": None},
    "text": {"fc1.weight": "1e999"},
    "lists": {"fc1.weight": [1]},
    "half a character": {"\ud800": 1},
    "a list": [],
    "a number": 7,
}


@pytest.mark.parametrize("case", TIMES)
def test_hostile_times(case: str, box: Box, sparse: Path) -> None:
    sparse.with_name("sparse.times.json").write_text(json.dumps(TIMES[case]))
    if not box.survives("report", sparse, "--out", box / "page.html"):
        assert "sparse.times.json" in box.refused("report", sparse, "--out", box / "page.html")


def test_a_report_against_another_checkpoint(box: Box, sparse: Path) -> None:
    write_weights(box / "other.safetensors", **{"fc3.weight": weights(3, 6)})
    nan = weights(3, 3)
    nan[1, 1] = np.nan
    write_weights(box / "nan.safetensors", **{"fc3.weight": nan})
    save_file({"x": weights(8, 8)}, box / "foreign.safetensors")
    (box / "empty.safetensors").write_bytes(b"")
    for name in ("other", "nan", "foreign", "empty", "absent"):
        line = box.refused(
            "report", sparse, "--against", box / f"{name}.safetensors", "--out", box / "page.html"
        )
        assert f"{name}.safetensors" in line
    assert "'fc3.weight'" in box.refused(
        "report", sparse, "--against", box / "nan.safetensors", "--out", box / "page.html"
    )
