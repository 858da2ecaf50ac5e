"""Import layers and circles, read from the source; lean imports; oracles that share nothing."""

import ast
import subprocess
import sys

import pytest

from tests.project.imports import (
    ARCHITECTURE,
    ROOT,
    circles,
    edges,
    imports,
    layers,
    module_name,
    outside,
    sources,
    upward,
)

FILES = sources("nmsolve")
#: What `import nmsolve` must not load, and no module of the core may import at its top.
HEAVY = {
    "numba",
    "llvmlite",
    "torch",
    "triton",
    "ortools",
    "scipy",
    "matplotlib",
    "PIL",
    "networkx",
    "safetensors",
    "sklearn",
    "ml_dtypes",
    "pandas",
}


@pytest.fixture(scope="module")
def drawn():
    return layers(ARCHITECTURE.read_text())


@pytest.fixture(scope="module")
def graph():
    return edges(FILES)


def heavy_at_the_top(files, root):
    found = []
    for path in files:
        module = module_name(path, root)
        if module.startswith(("nmsolve.solvers.", "nmsolve.torch")):
            continue
        for name, top_level in imports(
            ast.parse(path.read_text()), module, path.stem == "__init__"
        ):
            if not top_level:
                continue
            lazy = name.removeprefix("nmsolve.solvers.").split(".")[0]
            numba = lazy != name and (ROOT / "nmsolve" / "solvers" / f"{lazy}.py").exists()
            if name.split(".")[0] in HEAVY or numba:
                found.append(f"{module} imports {name} at its top")
    return found


def test_nothing_imports_upwards(graph, drawn):
    assert len(graph) > 150
    assert upward(graph, drawn) == []


def test_every_layer_is_there(graph, drawn):
    """What architecture.md draws exists."""
    packages = {module.rpartition(".")[0] for module in graph}
    for package, children in drawn.items():
        for child in children:
            name = package if child == "__init__" else f"{package}.{child}"
            assert name in graph or name in packages, name


def test_no_module_imports_itself_by_way_of_others(graph):
    assert circles(graph) == []


def test_nothing_that_is_not_shipped_is_imported():
    assert outside(FILES) == []


def foreign(files):
    """Return the top-level packages that files import, but for the standard library and our own."""
    names = {
        name.split(".")[0]
        for path in files
        for name, _ in imports(ast.parse(path.read_text()), module_name(path))
    }
    return {n for n in names if n.isidentifier()} - set(sys.stdlib_module_names) - {"nmsolve"}


def test_solvers_import_arrays_and_compilers_alone():
    assert foreign(sources("nmsolve/solvers")) == {"numpy", "numba", "llvmlite", "ortools"}


def test_nothing_heavy_at_the_top():
    assert heavy_at_the_top(FILES, ROOT) == []


#: An import that must be found, by the module that it is planted in.
PLANTED = {
    "from nmsolve.api import solve": "nmsolve.pattern",
    "from nmsolve.result import MaskResult": "nmsolve.solvers.greedy",
    "import nmsolve.cli": "nmsolve.api",
    "import nmsolve": "nmsolve.feasibility",
    "from nmsolve import solve": "nmsolve.blocks",
    "from nmsolve import feasibility": "nmsolve.validate",
    "from .result import MaskResult": "nmsolve.blocks",
    "from . import api": "nmsolve.result",
    "from ..feasibility import verify": "nmsolve.solvers.greedy",
    "def f():\n    from nmsolve.validate import read_scores": "nmsolve.solvers.rowwise",
    "def f():\n    import_module('nmsolve.api')": "nmsolve.validate",
    "from nmsolve.torch.training.sparsify import sparsify_": "nmsolve.torch.weights.planning",
    "from nmsolve.torch.pruning import adaprune": "nmsolve.torch.calibration.moments",
    "from nmsolve.torch.allocation.budget import Params": "nmsolve.torch.pruning.problem",
    "from nmsolve.torch.weights.planning import Plan": "nmsolve.torch.weights.sharding",
    "def f():\n    from nmsolve.torch import solve": "nmsolve.torch.dispatch.packing",
    "from nmsolve.checkpoint.pruning import prune": "nmsolve.checkpoint.stored",
    "from nmsolve.checkpoint import verify": "nmsolve.checkpoint.masks",
    "from nmsolve.cli.masks import solve": "nmsolve.cli.printing",
    "from nmsolve.cli import main": "nmsolve.cli.progress",
}


@pytest.mark.parametrize("line", PLANTED, ids=lambda line: line.replace("\n", ";"))
def test_an_upward_import_is_found(line, tmp_path, graph, drawn):
    module = PLANTED[line]
    assert module in graph
    path = tmp_path / (module.replace(".", "/") + ".py")
    path.parent.mkdir(parents=True)
    path.write_text(f"import numpy as np\n{line}\n")
    planted = edges([path], tmp_path, known=set(graph))
    assert len(upward(graph | planted, drawn)) == 1


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("nmsolve.solvers.greedy", "from nmsolve.solvers import Run"),
        ("nmsolve.blocks", "from nmsolve.validate import Scores"),
        ("nmsolve.solvers.greedy", "import numpy, math, numba"),
        ("nmsolve.cli.arrays", "from nmsolve.checkpoint import verify"),
        ("nmsolve.torch.pruning.problem", "from nmsolve.torch.weights.planning import Plan"),
    ],
)
def test_a_downward_import_is_none(module, line, tmp_path, graph, drawn):
    path = tmp_path / (module.replace(".", "/") + ".py")
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    assert upward(graph | edges([path], tmp_path, known=set(graph)), drawn) == []


def test_a_circle_is_found(graph):
    a, b, c = "nmsolve.validate", "nmsolve.blocks", "nmsolve.pattern"
    planted = graph | {c: {b}}
    assert any({a, b, c} & set(circle) for circle in circles(planted))


def test_a_module_without_a_layer_is_found(graph, drawn):
    planted = graph | {"nmsolve.torch.weights.utils": set()}
    assert upward(planted, drawn) == [
        "nmsolve.torch.weights.utils is in no layer of docs/architecture.md"
    ]


@pytest.mark.parametrize(
    "line", ["import reference.flow", "from reference import x", "import solvers"]
)
def test_an_import_of_what_is_not_shipped_is_found(line, tmp_path):
    path = tmp_path / "nmsolve" / "api.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    assert len(outside([path], tmp_path)) == 1


@pytest.mark.parametrize(
    "line",
    [
        "import numba",
        "from scipy.optimize import linprog",
        "from nmsolve.solvers.ascent import ascend",
    ],
)
def test_a_heavy_import_is_found(line, tmp_path):
    path = tmp_path / "nmsolve" / "api.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    assert len(heavy_at_the_top([path], tmp_path)) == 1
    path.write_text(f"def f():\n    {line}\n")
    assert heavy_at_the_top([path], tmp_path) == []


def test_oracles_share_nothing_with_the_library():
    shared = ("nmsolve", "solvers", "tests", "benchmarks", "numba", "ortools")
    for path in sources("reference"):
        for name, _ in imports(ast.parse(path.read_text()), "reference"):
            assert name.split(".")[0] not in shared, f"{path.name} imports {name}"


LEAN = """
import sys
{extra}
import nmsolve
loaded = sorted({heavy!r} & set(sys.modules))
if loaded:
    raise SystemExit("loaded: " + ", ".join(loaded))
"""


def import_lean(extra=""):
    program = LEAN.format(extra=extra, heavy=HEAVY)
    return subprocess.run(
        [sys.executable, "-W", "error", "-c", program], capture_output=True, text=True, check=False
    )


def test_import_is_lean():
    done = import_lean()
    assert done.returncode == 0, done.stderr


def test_the_lean_check_can_fail():
    done = import_lean("sys.modules['numba'] = sys.modules['scipy'] = sys")
    assert done.returncode != 0
    assert done.stderr.strip().endswith("numba, scipy")


def test_validation_alone_stays_lean():
    """Patterns, methods and plain checks load no compiler."""
    program = (
        "import nmsolve, sys; nmsolve.methods('4:8T'); "
        "nmsolve.verify([[True, False]], '1:2'); sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
