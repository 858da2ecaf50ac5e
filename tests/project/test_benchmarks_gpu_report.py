"""Lines of a GPU run as Markdown, and what the stages make of profiles and of pytest's output."""

import itertools
import json
import time

import pytest

from benchmarks.gpu import lines
from benchmarks.gpu.report import markdown
from benchmarks.gpu.rows import (
    Decision,
    Fact,
    Figure,
    Layer,
    Outcome,
    Place,
    Product,
    Profile,
    Skipped,
    Solved,
)
from benchmarks.gpu.stages.profile import Event, busy_us, longest
from benchmarks.gpu.stages.tests import NotAllPassed, parsed, run_tests, selected_by
from benchmarks.gpu.status import parts

DATE = "2026-12-01 09:00 UTC"


def recorded(device="cuda", number=1, **stages):
    """Lines as a run writes them; of each stage its rows, and the outcome, detail and seconds that
    it ended with, or None.
    """
    clock = itertools.count(1000)
    found = [
        {
            "t": next(clock),
            "run": number,
            "kind": "run",
            "stages": list(stages),
            "device": device,
            "date": DATE,
        }
    ]
    for name, (rows, end) in stages.items():
        where = {"run": number, "stage": name}
        if end != ("not run", "no time was left", 0.0):
            found.append({"t": next(clock), **where, "kind": "begin", "limit_s": 60.0})
        for row in rows:
            found.append(
                {"t": next(clock), **where, **(row if isinstance(row, dict) else row.line())}
            )
        if end is not None:
            outcome, detail, seconds = end
            found.append(
                {
                    "t": next(clock),
                    **where,
                    "kind": "end",
                    "outcome": outcome,
                    "detail": detail,
                    "seconds": seconds,
                }
            )
    return found


OK = ("ok", "", 12.3)
MEASURING = {"kind": "measuring", "what": "16:32T true float32"}
ERROR = {
    "kind": "error",
    "what": "2:4T bfloat16",
    "error": "WrongResult: not optimal",
    "where": "Traceback\n  here\n",
}
FIGURES = [
    Figure(
        what="2:4T bfloat16, kernel",
        us=120.0,
        value=0.4512,
        unit="× copy",
        target=0.45,
        note="a kernel",
    ),
    Figure(
        what="8:16T true float32, time", us=4500.0, value=4.5, unit="ms", target=4.0, at_least=False
    ),
    Figure(what="device copy", value=3021.7, unit="GB/s"),
    Figure(what="2:4T, argmax", us=9000.0, value=7.5, unit="Gw/s", loss=0.0123),
]


def test_the_head_of_a_report():
    facts = [
        Fact(what="device", value="NVIDIA H200"),
        Fact(what="torch", value="2.11.0+cu130"),
        Fact(what="commit", value="abc1234"),
    ]
    text = markdown(
        recorded(
            environment=(facts, OK),
            smoke=([MEASURING, ERROR], ("failed", "exit status 1", 5.0)),
            profile=([MEASURING], ("timed out", "after 60 s", 60.0)),
            products=([], ("crashed", "by signal 11 (SIGSEGV)", 3.0)),
            masks=(FIGURES, OK),
            rivals=([], ("not run", "no time was left", 0.0)),
            layers=([MEASURING], None),
            tests=([MEASURING, Skipped(what="tests", why="no test is marked gpu here")], OK),
        )
    )
    assert text.startswith("""# GPU benchmarks

NVIDIA H200, commit abc1234, torch 2.11.0+cu130.

CUDA events behind a filled queue, or the host's clock where that is longer; medians of interleaved repetitions.

## Stages

| stage | outcome | seconds | limit | run | why |
| --- | --- | ---: | ---: | --- | --- |
| environment | ok | 12 | 60 | 1: cuda, 2026-12-01 09:00 UTC |  |
| smoke | **failed** | 5 | 60 | 1: cuda, 2026-12-01 09:00 UTC | 2:4T bfloat16: WrongResult: not optimal |
| profile | **timed out** | 60 | 60 | 1: cuda, 2026-12-01 09:00 UTC | after 60 s, while measuring 16:32T true float32 |
| products | **crashed** | 3 | 60 | 1: cuda, 2026-12-01 09:00 UTC | by signal 11 (SIGSEGV), before its first measurement |
| masks | ok | 12 | 60 | 1: cuda, 2026-12-01 09:00 UTC |  |
| rivals | **not run** | 0 |  | 1: cuda, 2026-12-01 09:00 UTC | no time was left |
| layers | **cut off** | 1 | 60 | 1: cuda, 2026-12-01 09:00 UTC | while measuring 16:32T true float32 |
| tests | nothing to do | 12 | 60 | 1: cuda, 2026-12-01 09:00 UTC | no test is marked gpu here |

## Targets

| what | measured | target |  | note |
| --- | ---: | ---: | --- | --- |
| 2:4T bfloat16, kernel | 0.451 × copy | ≥ 0.45 × copy | pass | a kernel |
| 8:16T true float32, time | 4.5 ms | ≤ 4 ms | **miss** |  |
""")
    assert "| device copy |  | 3,022 GB/s |  |  |  |\n" in text
    assert "| 2:4T, argmax | 9,000 | 7.5 Gw/s |  |  | 1.2 % below the optimum |\n" in text
    assert text.endswith(
        "## What failed\n\nsmoke, 2:4T bfloat16: WrongResult: not optimal\n\n```\nTraceback\n  "
        "here\n```\n"
    )


TABLES = [
    (
        Solved(
            pattern="4:8T", dtype="bfloat16", scores="N(0, 1)", side=512, first_s=3.456,
            stats={"proven_at_level_0": 4096.0},
        ),
        "| 4:8T | bfloat16 | N(0, 1) | 512² | 3.46 | proven_at_level_0 4,096 |",
    ),
    (
        Profile(
            what="4:8T true float32", wall_ms=2.5, busy_ms=2.0, launches=40,
            waits={"cudaStreamSynchronize": 3}, peak_mb=1250.4,
            stats={"solved_on_host": 2.0, "seconds": 1.0}, top=[("ascend", 7, 1900.4)],
        ),
        "| 4:8T true float32 | 2.50 | 2.00 | 0.50 | 40 | 3 × cudaStreamSynchronize | 1250 |",
    ),
    (
        Profile(
            what="a|b", wall_ms=1, busy_ms=None, launches=None, waits=None, peak_mb=None, stats={},
            top=[("sort", 2, 1.0)],
        ),
        "| a\\|b | 1.00 |  |  |  |  |  |",
    ),
    (
        Product(
            rows=4096, cols=8192, tokens=8192, backend="cusparselt", dense_us=100.0,
            algorithm_us={0: 80.0, 3: 50.0},
            wrong={2: "y is off by 1"}, pack_us=21.0,
        ),
        "| 4096 × 8192 | 8,192 | cusparselt | 100 | 80 (1.25 ×) | 50 (2.00 ×), 3 | 2 | **2**: y is "
        "off by 1 | 21 |",
    ),
    (
        Layer(
            rows=64, cols=32, tokens=16384, backend="cusparselt", training=True, dense_us=30.0,
            sparse_us=20.0,
            dense_graph_us=None, sparse_graph_us=19.0, products_ratio=1.7,
        ),
        "| 64 × 32 | 16,384 | cusparselt | forward + backward | 30 / 20 | 1.50 × |  |  | 1.70 × |",
    ),
    (
        Decision(
            model="MLP", layer="0", shape="4 × 8", tokens=5, backend=None, dense_us=None,
            sparse_us=None, decision="dense",
            reason="no",
        ),
        "| MLP | 0 | 4 × 8 |  |  | dense | no |",
    ),
    (Outcome(name="tests/a.py::test_b", outcome="failed", message="1 == 2"), "| tests/a.py::test_b "
                                                                             "| failed | 1 == 2 |"),
    (Skipped(what="2:4 backends", why="no GPU"), "Not measured: 2:4 backends: no GPU."),
    (Fact(what="L2", value="50.0 MiB"), "| L2 | 50.0 MiB |"),
]  # fmt: skip


@pytest.mark.parametrize(("row", "told"), TABLES, ids=lambda case: getattr(case, "kind", ""))
def test_every_kind_of_row_is_shown(row, told):
    text = markdown(recorded(masks=([row], OK)))
    assert f"\n{told}\n" in text


def test_tests_are_counted_once():
    rows = [Outcome(name=f"tests/a.py::test_{name}", outcome="passed") for name in "abc"]
    rows += [
        Outcome(name="tests/a.py::test_b", outcome="error"),
        Outcome(name="tests/a.py::test_b", outcome="error", message="oh"),
    ]
    rows += [Outcome(name="tests/a.py::test_d", outcome="running")]
    text = markdown(recorded(tests=(rows, OK)))
    assert "\n2 passed, 1 error, 1 running.\n" in text
    assert "| tests/a.py::test_b | error | oh |\n| tests/a.py::test_d | running |  |\n" in text


def test_a_smoke_run_says_so():
    text = markdown(recorded("cpu", masks=([FIGURES[2]], OK)))
    assert text.startswith("# A smoke run of the GPU benchmarks on a CPU\n")
    assert "## Targets" not in text


def test_the_report_shows_the_last_time_that_a_stage_ran():
    """A later run of some stages replaces these alone, and one that had no time for a stage does
    not hide what there is of it.
    """
    first = recorded(masks=([FIGURES[0]], OK), layers=([FIGURES[1]], OK), smoke=([], None))
    second = recorded(
        "cpu", 2, layers=([FIGURES[3]], OK), masks=([], ("not run", "no time was left", 0.0))
    )
    stages = parts(first + second)
    assert [(part.name, part.run["run"], part.outcome) for part in stages] == [
        ("smoke", 1, "cut off"),
        ("masks", 1, "ok"),
        ("layers", 2, "ok"),
    ]
    assert [row["what"] for part in stages for row in part.of("figure")] == [
        FIGURES[0].what,
        FIGURES[3].what,
    ]
    assert "**Stages of different devices**" in markdown(first + second)


def test_half_a_line(tmp_path):
    path = tmp_path / lines.NAME
    assert lines.read(path) == []
    lines.append(path, {"kind": "one", "t": 1.0})
    with path.open("a") as stream:
        stream.write('{"kind": "tw')
    assert lines.read(path) == [{"kind": "one", "t": 1.0}]
    lines.append(path, {"kind": "three", "t": 3.0, "what": "4 × 4"})
    assert lines.read(path) == [
        {"kind": "one", "t": 1.0},
        {"kind": "three", "t": 3.0, "what": "4 × 4"},
    ]
    assert [
        json.loads(line)["kind"] for line in path.read_text().splitlines() if line.endswith("}")
    ] == ["one", "three"]


def test_targets_have_verdicts():
    assert [figure.passed for figure in FIGURES] == [True, False, None, None]
    assert all(
        Figure(what="", value=4.0, unit="ms", target=4.0, at_least=at_least).passed
        for at_least in (True, False)
    )


def test_device_time_is_the_union_of_its_events():
    """Kernels that overlap count once, and what the host does not at all."""
    spans = [
        (True, 0.0, 10.0),
        (True, 5.0, 12.0),
        (True, 6.0, 7.0),
        (True, 20.0, 21.0),
        (False, 0.0, 100.0),
    ]
    events = [
        Event("k" if on_device else "host", on_device, start, end, end - start)
        for on_device, start, end in spans
    ]
    assert busy_us(events) == 13.0
    assert busy_us([]) == 0.0
    assert longest(events, True) == [("k", 4, 19.0)]
    assert longest(events, False) == [("host", 1, 100.0)]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (
            "tests/test_a.py::test_b[2:4T - x] PASSED          [  1%]\n",
            ("tests/test_a.py::test_b[2:4T - x]", "passed"),
        ),
        (
            "tests/test_a.py::test_b SKIPPED (no GPU)          [ 10%]\n",
            ("tests/test_a.py::test_b", "skipped"),
        ),
        (
            "[gw11] [  3%] FAILED tests/test_a.py::test_b[cuda] \n",
            ("tests/test_a.py::test_b[cuda]", "failed"),
        ),
        ("[gw0] [100%] ERROR tests/test_a.py::test_b\n", ("tests/test_a.py::test_b", "error")),
        (
            "tests/test_a.py::test_b[cuda-plain] \n",
            ("tests/test_a.py::test_b[cuda-plain]", "running"),
        ),
        ("tests/test_a.py::test_b ", ("tests/test_a.py::test_b", "running")),
        ("FAILED tests/test_a.py::test_b - assert 1 == 2\n", None),
        ("tests/test_a.py:12: AssertionError\n", None),
        ("12.30s call     tests/test_a.py::test_b\n", None),
        ("collected 12 items\n", None),
    ],
)
def test_lines_of_pytest(line, expected):
    assert [(test.name, test.outcome) for test in parsed(line)] == (
        [] if expected is None else [expected]
    )


@pytest.mark.parametrize(
    ("line", "count"),
    [
        ("collecting ... collected 1245 items / 1245 deselected / 0 selected\n", 0),
        ("collected 12 items / 3 deselected / 9 selected\n", 9),
        ("collected 1 item\n", 1),
        ("2 workers [41 items]\n", 41),
        ("1 worker [1 item]\n", 1),
        ("tests/test_a.py::test_b PASSED\n", None),
    ],
)
def test_how_many_tests_there_are(line, count):
    assert selected_by(line) == count


GPU_TESTS = """
import time
import pytest

@pytest.fixture
def broken():
    raise OSError("no such thing")

@pytest.mark.gpu
def test_good(): pass

@pytest.mark.gpu
@pytest.mark.parametrize("side", [1, 2])
def test_bad(side): assert side == 1, "not one"

@pytest.mark.gpu
def test_broken(broken): pass

def test_of_something_else(): assert False
"""
HANGING_TEST = """

@pytest.mark.gpu
def test_hangs(): time.sleep(100)
"""


def ran(tmp_path, source, device, seconds, **others):
    """Rows by name and outcome, and what the stage says in the end."""
    paths = []
    for name, text in {"test_planted": source, **others}.items():
        paths.append(tmp_path / f"{name}.py")
        paths[-1].write_text(text)
    rows, said = [], None
    try:
        for row in run_tests(paths, Place(device, time.monotonic() + seconds, tmp_path)):
            rows.append(row)
    except NotAllPassed as error:
        said = str(error)
    return rows, said


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.long)])
def test_failing_tests_are_named(tmp_path, device):
    """By one process, and by several as where there is a GPU."""
    rows, said = ran(tmp_path, GPU_TESTS, device, 120.0)
    seen = {(row.name.rpartition("::")[2], row.outcome, row.message) for row in rows}
    assert {
        ("test_good", "passed", ""),
        ("test_bad[1]", "passed", ""),
        ("test_bad[2]", "failed", ""),
    } < seen
    assert ("test_bad[2]", "failed", "AssertionError: not one") in seen
    assert ("test_broken", "error", 'failed on setup with "OSError: no such thing"') in seen
    assert not any("something_else" in name for name, _, _ in seen)
    assert said == "1 error, 1 failed, 2 passed, of 4; pytest ended with status 1"
    assert (tmp_path / "tests.xml").is_file()


def test_a_test_that_hangs_is_named(tmp_path):
    rows, said = ran(tmp_path, GPU_TESTS + HANGING_TEST, "cpu", 15.0)
    outcomes = {row.name.rpartition("::")[2]: row.outcome for row in rows}
    assert outcomes == {
        "test_good": "passed",
        "test_bad[1]": "passed",
        "test_bad[2]": "failed",
        "test_broken": "error",
        "test_hangs": "running",
    }
    assert (
        said == "1 error, 1 failed, 2 passed, 1 running, of 5; pytest was killed: its time was up"
    )


def test_no_tests_are_no_success_on_a_gpu(tmp_path):
    source = "def test_of_something_else(): pass"
    rows, said = ran(tmp_path, source, "cpu", 60.0)
    assert [row.why for row in rows] == ["no test is marked gpu here: there is no GPU"]
    assert said is None
    rows, said = ran(tmp_path, source, "cuda", 60.0)
    assert rows == []
    assert said == "no test ended, of 0; pytest ended with status 5"


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.long)])
def test_a_file_that_lacks_a_package_costs_its_own_tests_alone(tmp_path, device):
    whole = "import pytest\n@pytest.mark.gpu\ndef test_good(): pass\n"
    rows, said = ran(tmp_path, whole, device, 120.0, test_bare="import no_such_package")
    assert said is not None
    assert {(row.name.rpartition("::")[2], row.outcome) for row in rows} >= {
        ("test_good", "passed")
    }
    assert any(
        row.outcome == "error" and "No module named 'no_such_package'" in row.message
        for row in rows
    )


def test_reports_of_odd_lines(tmp_path):
    """Lines that nobody wrote, and stages without the one that describes the machine."""
    odd = [
        {"kind": "run"},
        {"kind": "begin"},
        {"t": 1.0},
        {"run": 7, "stage": "smoke", "kind": "end"},
    ]
    assert "The machine is not known: the stage `environment` has not run." in markdown(odd)
