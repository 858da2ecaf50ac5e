"""Import layers, read from the source; lean imports; the oracles share nothing with the library."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
#: Lowest first. A module imports from its own layer and from those below, at function level too.
LAYERS = (
    ("errors", "pattern", "elements", "bits", "globs", "table", "data", "starting"),
    ("blocks", "validate"),
    ("solvers",),
    ("result", "certify", "proof", "counting", "lbc"),
    ("api",),
    ("", "__main__", "cli", "demo", "demo_picture", "torch", "checkpoint"),
)
LAYER = {name: number for number, names in enumerate(LAYERS) for name in names}
#: What `import nmsolve` must not load, and no module of the core may import at its top.
HEAVY = {
    "numba",
    "llvmlite",
    "torch",
    "triton",
    "ortools",
    "scipy",
    "matplotlib",
    "networkx",
    "safetensors",
    "sklearn",
    "ml_dtypes",
    "pandas",
}
#: These load numba at the top, and are themselves loaded at the first solve.
LAZY = "solvers"
EAGER_SOLVERS = {"nmsolve.solvers"}


def module_name(path, root):
    parts = path.relative_to(root).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree, package):
    """(module, whether at the top level) of every import in a syntax tree; relative ones are
    resolved within `package`.
    """
    inside = {
        id(node)
        for f in ast.walk(tree)
        if isinstance(f, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
        for node in ast.walk(f)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parent, base] if base else parent)
            names = [f"{base}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in (
            "import_module",
            "importlib.import_module",
            "__import__",
        ):
            first = node.args[0]
            text = (
                first.value
                if isinstance(first, ast.Constant)
                else ast.unparse(first).removeprefix("f").strip("'\"")
            )
            names = [str(text)]
        else:
            continue
        for name in names:
            yield name, id(node) not in inside


def layer_of(module):
    """The layer of nmsolve.<name>…; what is imported from the package itself counts as the top
    layer.
    """
    name = module.split(".")[1] if "." in module else ""
    if (
        name not in LAYER
        and name[:1].isalpha()
        and (name[0].isupper() or not (ROOT / "nmsolve" / f"{name}.py").exists())
    ):
        name = name if (ROOT / "nmsolve" / name).is_dir() else ""
    assert name in LAYER, f"nmsolve.{name} has no layer yet: name it in LAYERS"
    return LAYER[name]


def violations(files, root):
    """What breaks the layers among source files of a package below `root`."""
    found = []
    for path in files:
        module = module_name(path, root)
        package = module if path.name == "__init__.py" else module.rpartition(".")[0]
        own = layer_of(module)
        for name, _ in imports(ast.parse(path.read_text()), package):
            top = name.split(".")[0]
            if top == "nmsolve" and layer_of(name) > own:
                found.append(f"{module} (layer {own}) imports {name} (layer {layer_of(name)})")
            if top in ("reference", "tests", "benchmarks", "docs", "solvers"):
                found.append(f"{module} imports {name}")
    return found


def heavy_at_the_top(files, root):
    found = []
    for path in files:
        module = module_name(path, root)
        if module.startswith(("nmsolve.solvers.", "nmsolve.torch")):
            continue
        for name, top_level in imports(ast.parse(path.read_text()), module):
            if top_level and (name.split(".")[0] in HEAVY or name.startswith("nmsolve.solvers.")):
                lazy = name.removeprefix("nmsolve.solvers.")
                if (
                    name.split(".")[0] in HEAVY
                    or (ROOT / "nmsolve" / "solvers" / f"{lazy.split('.')[0]}.py").exists()
                ):
                    found.append(f"{module} imports {name} at its top")
    return found


def sources(folder):
    return sorted((ROOT / folder).rglob("*.py"))


def test_layers():
    assert len(sources("nmsolve")) > 15
    assert violations(sources("nmsolve"), ROOT) == []


def test_nothing_heavy_at_the_top():
    assert heavy_at_the_top(sources("nmsolve"), ROOT) == []


PLANTED = {
    "from nmsolve.api import solve": "pattern",
    "from nmsolve.result import MaskResult": "solvers/greedy",
    "import nmsolve.cli": "api",
    "import nmsolve": "certify",
    "from nmsolve import solve": "blocks",
    "from nmsolve import certify": "validate",
    "from .result import MaskResult": "blocks",
    "from . import api": "result",
    "from ..certify import verify": "solvers/greedy",
    "def f():\n    from nmsolve.feasibility import verify": "solvers/greedy",
    "def f():\n    import_module('nmsolve.api')": "blocks",
    "import reference.flow": "certify",
    "from reference import loops": "api",
    "import solvers": "api",
}


@pytest.mark.parametrize("line", PLANTED, ids=lambda line: line.replace("\n", ";"))
def test_the_layer_check_can_fail(line, tmp_path):
    path = tmp_path / "nmsolve" / f"{PLANTED[line]}.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"import numpy as np\n{line}\n")
    assert len(violations([path], tmp_path)) == 1


ALLOWED = {
    "def f():\n    from nmsolve.solvers.ascent import solve_range": "certify",
    "from nmsolve.solvers import Run": "solvers/greedy",
    "from nmsolve.validate import Scores": "blocks",
    "import numpy, math, numba": "solvers/greedy",
    "from nmsolve import solve": "cli",
}


@pytest.mark.parametrize("line", ALLOWED, ids=lambda line: line.replace("\n", ";"))
def test_the_layer_check_can_pass(line, tmp_path):
    path = tmp_path / "nmsolve" / f"{ALLOWED[line]}.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    assert violations([path], tmp_path) == []


@pytest.mark.parametrize(
    "line",
    [
        "import numba",
        "from scipy.optimize import linprog",
        "from nmsolve.solvers.ascent import ascend",
    ],
)
def test_the_check_for_heavy_imports_can_fail(line, tmp_path):
    path = tmp_path / "nmsolve" / "api.py"
    path.parent.mkdir(parents=True)
    path.write_text(f"{line}\n")
    assert len(heavy_at_the_top([path], tmp_path)) == 1
    path.write_text(f"def f():\n    {line}\n")
    assert heavy_at_the_top([path], tmp_path) == []


def test_oracles_share_nothing_with_the_library():
    for path in sources("reference"):
        for name, _ in imports(ast.parse(path.read_text()), "reference"):
            top = name.split(".")[0]
            assert top not in ("nmsolve", "solvers", "tests", "benchmarks", "numba", "ortools"), (
                f"{path.name} imports {name}"
            )


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


@pytest.mark.parametrize("module", ["numba", "scipy", "matplotlib"])
def test_the_lean_check_can_fail(module):
    done = import_lean(f"sys.modules[{module!r}] = sys")
    assert done.returncode != 0
    assert done.stderr.strip().endswith(module)


def test_validation_alone_stays_lean():
    """Patterns, methods and plain checks load no compiler."""
    program = (
        "import nmsolve, sys; nmsolve.methods('4:8T'); nmsolve.verify([[True, False]], "
        "'1:2'); sys.exit('numba' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
