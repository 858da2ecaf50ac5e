"""The Triton kernels compile for real GPUs, to machine code, on a machine without one; and need no
more there than they did.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

#: By the Triton of constraints.txt at most so many registers a lane, instructions and spills; and
#: instructions and spills of the longest loop, in the first level the rounds. 168 registers are
#: three warps a scheduler, 255 two. Only `ascend_rest`, which has few blocks, may spill a little.
BOUNDS = {
    ("2:4T", "keep_groups"): (96, 1100, 0, None),
    ("2:4T", "enumerate_blocks"): (92, 920, 0, (710, 0)),
    ("4:8T", "ascend_first"): (240, 2900, 0, (636, 0)),
    ("4:8T", "ascend_rest"): (255, 8100, 60, None),
    ("8:16T", "ascend_first"): (164, 2450, 0, (500, 0)),
    ("8:16T", "ascend_rest"): (255, 8700, 50, None),
    ("16:32T", "ascend_first"): (168, 2550, 0, (712, 0)),
    ("16:32T", "ascend_rest"): (224, 6900, 0, None),
    ("<=7:18T", "ascend_first"): (96, 1900, 0, (344, 0)),
    ("<=7:18T", "ascend_rest"): (216, 5000, 0, None),
}


@pytest.fixture(scope="module", params=["few", pytest.param("all", marks=pytest.mark.long)])
def compiled(request, tmp_path_factory):
    if sys.platform != "linux":
        pytest.fail("Triton compiles on Linux only")
    environment = {**os.environ, "TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton"))}
    environment.pop("TRITON_INTERPRET", None)
    script = Path(__file__).with_name("compile_kernels.py")
    done = subprocess.run(
        [sys.executable, str(script), *(["all"] if request.param == "all" else [])],
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.fixture(scope="module")
def built(compiled):
    return [row for row in compiled if "case" in row]


def test_kernels_are_compiled_once_for_all_numbers_of_blocks(compiled):
    """How many blocks the first level leaves is new in every solve, and no solve but the first may
    wait for a compiler.
    """
    assert {row["kernel"]: row["variants"] for row in compiled if "variants" in row} == {
        "ascend_first": 1,
        "ascend_rest": 1,
    }


def test_kernels_compile_for_gpus(built):
    assert {row["kernel"] for row in built} == {
        "keep_groups",
        "enumerate_blocks",
        "ascend_first",
        "ascend_rest",
    }
    assert {row["target"] for row in built} >= {"sm_90"}
    assert all(row["instructions"] > 300 for row in built)


def test_kernels_need_no_more_than_they_did(built):
    """Time is instructions where scores are in registers, and memory traffic where they are not."""
    seen = set()
    for row in built:
        key = row["case"], row["kernel"]
        if key not in BOUNDS:
            continue
        seen.add(key)
        registers, instructions, spills, loop = BOUNDS[key]
        assert row["registers"] <= registers, row
        assert row["instructions"] <= instructions, row
        assert row["spills"] <= spills, row
        if loop is not None:
            assert row["loops"][0][0] <= loop[0], row
            assert row["loops"][0][1] <= loop[1], row
        if row["kernel"].startswith("ascend"):  # lanes that share a block talk by shuffles
            assert row["shared"] == 0, row
    assert seen == {key for key in BOUNDS if key[0] in {row["case"] for row in built}}
    assert seen
