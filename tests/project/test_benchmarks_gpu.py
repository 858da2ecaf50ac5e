"""`python -m benchmarks.gpu`: whatever a stage or a whole run dies of, what was measured before is
found and the report says so.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from benchmarks.gpu import lines
from benchmarks.gpu.report import markdown
from benchmarks.gpu.run import run
from benchmarks.gpu.stages import STAGES, Stage, limit
from benchmarks.gpu.status import parts

ROOT = Path(__file__).resolve().parents[2]
#: Stages are modules; these are written to files and given to `run` as its own would be.
HEAD = """
import os, signal, sys, time
from functools import partial
from pathlib import Path
from benchmarks.gpu.rows import Figure, Measurement

def figure(what, target=None):
    yield Figure(what=what, value=1.0, unit="x", target=target)

def fails(error):
    yield Figure(what="before it failed", value=1.0, unit="x")
    raise error
"""
PLANTED = {
    "fine": """
def measure(place):
    yield Measurement("one", partial(figure, "one", target=2.0))
    yield Measurement("two", partial(figure, "two"))
""",
    "fine_too": """
def measure(place):
    yield Measurement("three", partial(figure, "three"))
""",
    "fails_once": """
def measure(place):
    yield Measurement("one", partial(figure, "one"))
    yield Measurement("memory", partial(fails, MemoryError("no memory\\nfor you")))
    yield Measurement("three", partial(figure, "three"))
""",
    "fails_between": """
def measure(place):
    yield Measurement("one", partial(figure, "one"))
    raise ValueError("nothing more to measure")
""",
    "does_not_import": "import there_is_no_such_module",
    "dies": """
def measure(place):
    yield Measurement("one", partial(figure, "one"))
    yield Measurement("two", lambda: os.kill(os.getpid(), signal.SIGSEGV))
""",
    "dies_within_a_line": """
def measure(place):
    yield Measurement("one", partial(figure, "one"))
    with (place.folder / "results.jsonl").open("a") as stream:
        stream.write('{"kind": "figure", "what": "half a l')
    os.kill(os.getpid(), signal.SIGKILL)
""",
    "hangs": """
def measure(place):
    yield Measurement("one", partial(figure, "one"))
    yield Measurement("two", lambda: time.sleep(100))
""",
    "hangs_on": """
def measure(place):
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    yield Measurement("one", partial(figure, "one"))
    yield Measurement("two", lambda: time.sleep(100))
""",
    "poisons": """
ERROR = "CUDA error: an illegal memory access was encountered"

class Cuda:
    def is_initialized(self): return True
    def synchronize(self): raise RuntimeError(ERROR)

class Torch:
    cuda = Cuda()

def measure(place):
    sys.modules["torch"] = Torch()
    yield Measurement("one", partial(figure, "one"))
    yield Measurement("kernel", partial(fails, RuntimeError(ERROR)))
    yield Measurement("three", partial(figure, "three"))
""",
    "waits": """
def wait(place):
    (place.folder / "pid").write_text(str(os.getpid()))
    time.sleep(100)
    return ()

def measure(place):
    yield Measurement("one", partial(figure, "one"))
    yield Measurement("two", lambda: wait(place))
""",
}
#: A run of planted stages in a process that can be killed.
DRIVER = """
import os, signal, sys
from pathlib import Path
from benchmarks.gpu.run import run
from benchmarks.gpu.stages import Stage

folder, after = Path(sys.argv[1]), int(sys.argv[2])
calls = 0

def counted(name, call):
    def instead(*args):
        global calls
        calls += 1
        if calls == after:
            if name == "write":
                call(args[0], args[1][:len(args[1]) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        with (folder / "calls").open("a") as stream:
            stream.write(name + " " + str((folder / "results.jsonl").read_bytes().count(b"\\n")) +
            "\\n")
        return call(*args)
    return instead

for name in ("write", "fsync", "replace"):
    setattr(os, name, counted(name, getattr(os, name)))
run([Stage(name, 1, name) for name in sys.argv[3:]], folder, "cpu", 100.0)
"""


@pytest.fixture(scope="module")
def planted(tmp_path_factory):
    """A folder with the modules."""
    folder = tmp_path_factory.mktemp("planted")
    for name, body in PLANTED.items():
        (folder / f"{name}.py").write_text(HEAD + body)
    return folder


@pytest.fixture
def on_path(planted, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(planted), str(ROOT)]))


def by_name(folder):
    return {part.name: part for part in parts(lines.read(folder / lines.NAME))}


def measured(part):
    return [row["what"] for row in part.of("figure")]


def drive(folder, *names, after=0):
    return subprocess.Popen(
        [sys.executable, "-c", DRIVER, str(folder), str(after), *names],
        cwd=ROOT,
        stdout=subprocess.DEVNULL,
    )


def test_a_stage_that_fails_costs_itself_alone(tmp_path, on_path):
    """Whatever it dies of: what it measured before is there, the report says what happened, and the
    next stage runs.
    """
    others = (
        "fine",
        "fails_once",
        "fails_between",
        "does_not_import",
        "dies",
        "dies_within_a_line",
        "poisons",
    )
    # Those that hang take as long as they may: five seconds each.
    stages = [Stage(name, 10.0, name) for name in ("hangs", "hangs_on")]
    stages += [*(Stage(name, 20.0, name) for name in others), Stage("fine again", 50.0, "fine")]
    assert run(stages, tmp_path, "cpu", 120.0) is False
    found = by_name(tmp_path)
    assert {name: (part.outcome, measured(part)) for name, part in found.items()} == {
        "hangs": ("timed out", ["one"]),
        "hangs_on": ("timed out", ["one"]),
        "fine": ("ok", ["one", "two"]),
        "fails_once": ("failed", ["one", "before it failed", "three"]),
        "fails_between": ("failed", ["one"]),
        "does_not_import": ("failed", []),
        "dies": ("crashed", ["one"]),
        "dies_within_a_line": ("crashed", ["one"]),
        "poisons": ("failed", ["one", "before it failed"]),
        "fine again": ("ok", ["one", "two"]),
    }
    assert found["fails_once"].why == "memory: MemoryError: no memory"
    assert found["fails_between"].why == "the stage itself: ValueError: nothing more to measure"
    assert (
        "ModuleNotFoundError: No module named 'there_is_no_such_module'"
        in found["does_not_import"].why
    )
    assert found["dies"].why == "by signal 11 (SIGSEGV), while measuring two"
    assert found["dies_within_a_line"].why == "by signal 9 (SIGKILL), while measuring one"
    assert [row["what"] for row in found["poisons"].of("error")] == ["kernel", "CUDA, from here on"]
    assert "ended by SIGTERM, while measuring two" in found["hangs"].why
    assert "ended by SIGKILL, while measuring two" in found["hangs_on"].why
    report = (tmp_path / "report.md").read_text()
    assert report == markdown(lines.read(tmp_path / lines.NAME))
    for part in found.values():
        assert part.why in report
    assert all(
        row["target"] is None and row["passed"] is None for row in found["fine"].of("figure")
    )  # on a CPU
    log = (tmp_path / "log.txt").read_text()
    assert "Fatal Python error: Segmentation fault" in log
    assert 'hangs.py", line' in log, "where it hung"


def undisturbed(rows):
    """Lines without what differs from run to run."""
    return [
        {k: v for k, v in row.items() if k not in ("t", "date", "seconds", "limit_s")}
        for row in rows
    ]


@pytest.mark.long
def test_a_run_killed_at_any_call_to_the_system_loses_nothing(tmp_path, on_path):
    """SIGKILL before each of the calls by which the run writes: that is at every boundary of
    stages, and within a line.
    """
    assert drive_in(tmp_path / "whole") == 0
    whole = undisturbed(lines.read(tmp_path / "whole" / lines.NAME))
    calls = [
        (name, int(count))
        for name, count in map(str.split, (tmp_path / "whole" / "calls").read_text().splitlines())
    ]
    assert [name for name, _ in calls].count("write") == 5, (
        "a run, and two stages that begin and end"
    )
    for number, (name, before) in enumerate(calls, 1):
        folder = tmp_path / str(number)
        assert drive_in(folder, number) == -signal.SIGKILL
        found = lines.read(folder / lines.NAME)
        assert undisturbed(found) == whole[:before], f"killed at call {number}, {name}"
        text = markdown(found)
        for part in parts(found):
            begun, ended = (
                any(row["kind"] == kind and row["stage"] == part.name for row in found[1:])
                for kind in ("begin", "end")
            )
            assert part.outcome == ("ok" if ended else "cut off" if begun else "not run")
            assert f"| {part.name} | {part.outcome if ended else f'**{part.outcome}**'} |" in text
        if name == "write":
            last, kept = folder, before
    # The same folder once more, where the last line is half a line:
    assert not (last / lines.NAME).read_bytes().endswith(b"\n")
    assert drive_in(last) == 0
    assert undisturbed(lines.read(last / lines.NAME))[:kept] == whole[:kept]
    assert [(part.outcome, part.run["run"]) for part in by_name(last).values()] == [
        ("ok", 2),
        ("ok", 2),
    ]


def drive_in(folder, after=0):
    folder.mkdir(exist_ok=True)
    return drive(folder, "fine", "fine_too", after=after).wait(60)


def test_a_run_killed_within_a_stage(tmp_path, on_path):
    """What was measured is there, the report says what was not, and the stage's process does not
    live on.
    """
    process = drive(tmp_path, "fine", "waits", "fails_once")
    wait_for(lambda: (tmp_path / "pid").exists() and (tmp_path / "pid").read_text())
    pid = int((tmp_path / "pid").read_text())
    process.kill()
    process.wait()
    wait_for(lambda: not alive(pid))
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--report", str(tmp_path)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = by_name(tmp_path)
    assert {name: (part.outcome, measured(part)) for name, part in found.items()} == {
        "fine": ("ok", ["one", "two"]),
        "waits": ("cut off", ["one"]),
        "fails_once": ("not run", []),
    }
    assert found["waits"].why == "while measuring two"
    assert "| waits | **cut off** |" in done.stdout
    assert "| fails_once | **not run** | 0 |  | 1: cpu," in done.stdout
    assert (tmp_path / "report.md").read_text() == done.stdout[:-1]


def test_a_stage_whose_run_is_gone_does_not_begin(tmp_path, planted):
    """It would hold the GPU, and nobody would end it."""
    options = {
        "stage": "fine",
        "module": "fine",
        "device": "cpu",
        "folder": tmp_path,
        "run": 1,
        "parent": 1,
        "until": 1e9,
    }
    options = [f"--{name}={value}" for name, value in options.items()]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(planted), str(ROOT)])}
    program = [sys.executable, "-m", "benchmarks.gpu.process", *options]
    assert subprocess.run(program, cwd=ROOT, env=environment, check=False).returncode == 1
    assert list(tmp_path.iterdir()) == []


def wait_for(happened):
    until = time.monotonic() + 60
    while not happened():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.05)


def alive(pid):
    """Whether a process runs; one that ended and that nobody has asked about does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def command(*options):
    return subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", *map(str, options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_stages_of_its_own(tmp_path):
    """A real stage from the command line, and its report once more from the lines alone."""
    done = command("--device", "cpu", "--stages", "environment", "--minutes", 1, "--out", tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "log.txt",
        "report.md",
        "results.jsonl",
    ]
    found = by_name(tmp_path)["environment"]
    assert found.outcome == "ok", found.why
    facts = {row["what"]: row["value"] for row in found.of("fact")}
    assert facts["torch"] == torch.__version__
    assert {
        "numpy",
        "numba",
        "nmsolve",
        "python",
        "CPUs",
        "commit",
        "backend cusparselt",
        "cuSPARSELt, as loaded",
    } <= set(facts)
    assert measured(found) == ["device copy", "bf16 matmul, 256 × 256 × 256"]
    report = (tmp_path / "report.md").read_text()
    assert "# A smoke run of the GPU benchmarks on a CPU" in report
    (tmp_path / "report.md").unlink()
    assert command("--report", tmp_path).stdout == report + "\n"


def test_two_runs_into_one_folder(tmp_path):
    """At the same time: each has a number of its own, and both end well."""
    call = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--device",
        "cpu",
        "--stages",
        "environment",
        "--out",
        str(tmp_path),
    ]
    runs = [subprocess.Popen(call, cwd=ROOT, stdout=subprocess.DEVNULL) for _ in range(2)]
    assert [run.wait() for run in runs] == [0, 0]
    found = lines.read(tmp_path / lines.NAME)
    assert sorted(line["run"] for line in found if line["kind"] == "run") == [1, 2]
    assert sorted(line["run"] for line in found if line["kind"] == "end") == [1, 2]


def test_a_real_stage_that_is_killed(tmp_path):
    """Killed as soon as a mask has been solved: that mask is in the lines."""
    options = ["--device", "cpu", "--stages", "smoke", "--minutes", "5", "--out", str(tmp_path)]
    process = subprocess.Popen(
        [sys.executable, "-m", "benchmarks.gpu", *options], cwd=ROOT, stdout=subprocess.DEVNULL
    )
    try:
        wait_for(lambda: any(row["kind"] == "solved" for row in lines.read(tmp_path / lines.NAME)))
    finally:
        process.kill()
        process.wait()
    found = by_name(tmp_path)["smoke"]
    assert found.outcome == "cut off"
    assert found.of("solved")[0]["pattern"] == "2:4"
    assert command("--report", tmp_path).stdout.count("| 2:4 | bfloat16 | N(0, 1) |") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu(tmp_path):
    """Said once, and no other stage tries."""
    done = command("--stages", "environment,smoke", "--minutes", 1, "--out", tmp_path)
    assert done.returncode == 1
    found = by_name(tmp_path)
    told = (
        f"the device: torch {torch.__version__} sees no CUDA device here; --device cpu shows "
        "that everything runs"
    )
    assert found["environment"].why == told
    assert (found["smoke"].outcome, found["smoke"].why) == (
        "not run",
        "there is no cuda device",
    )


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (
            ["--stages", "smoke,maks"],
            "no stage is called 'maks'; they are environment, smoke, profile, products, masks",
        ),
        (["--stages", ","], "no stage is named"),
        (["--minutes", "0"], "minutes are a positive number, not 0"),
        (["--report", "/there/is/no/such/folder"], "is no folder with a file results.jsonl"),
    ],
)
def test_mistakes_on_the_command_line(options, told):
    done = command(*options)
    assert done.returncode == 2
    assert told in done.stderr


def test_time_that_a_stage_does_not_need_is_the_others():
    left, taken = 100.0, []
    for k in range(len(STAGES)):
        taken.append(limit(STAGES[k:], left))
        left -= taken[-1]
    assert left == pytest.approx(0.0, abs=1e-9)
    assert [one / taken[0] for one in taken] == pytest.approx(
        [stage.share / STAGES[0].share for stage in STAGES]
    )
    # The first took a second only: each of the others has more.
    assert limit(STAGES[1:], 99.0) == pytest.approx(taken[1] * 99.0 / (100.0 - taken[0]))


def test_no_stage_is_begun_without_time(tmp_path, on_path):
    """And it is no success."""
    assert run([Stage("fine", 1.0, "fine")], tmp_path, "cpu", 5.0) is False
    assert [(part.outcome, part.why) for part in by_name(tmp_path).values()] == [
        ("not run", "no time was left")
    ]


#: Imports everything with the named packages missing.
LEAN = """
import sys
from importlib import import_module
from importlib.abc import MetaPathFinder

class Missing(MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {missing!r}:
            raise ModuleNotFoundError("No module named " + repr(name), name=name)

sys.meta_path.insert(0, Missing())
for name in {modules!r}:
    import_module(name)
"""
MISSING = (
    "ortools", "transformers", "accelerate", "sklearn", "matplotlib", "lightning",
    "pytorch_lightning", "safetensors", "rich",
    "click", "networkx", "ml_dtypes", "scipy", "pandas", "hypothesis", "pytest", "xdist",
)  # fmt: skip


def imported_without(modules):
    program = LEAN.format(missing=MISSING, modules=modules)
    return subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )


def test_a_machine_needs_torch_and_numba_alone():
    folder = ROOT / "benchmarks" / "gpu"
    files = [
        path.relative_to(ROOT).with_suffix("")
        for path in sorted(folder.rglob("*.py"))
        if path.name != "__init__.py"
    ]
    modules = [".".join(path.parts) for path in files]
    assert {stage.module for stage in STAGES} < set(modules)
    done = imported_without(modules)
    assert done.returncode == 0, done.stderr


def test_the_check_of_imports_can_fail():
    assert "No module named 'ortools'" in imported_without(["benchmarks.machine"]).stderr


def test_the_parent_never_loads_torch():
    """A process that holds no CUDA context is not lost with one."""
    program = (
        "import sys, benchmarks.gpu.__main__; sys.exit('torch' in sys.modules or 'numpy' in "
        "sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], cwd=ROOT, check=False).returncode == 0
