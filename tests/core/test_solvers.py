"""The descriptions of the solvers, and what is read off them."""

import dataclasses
import subprocess
import sys
from pathlib import Path

import pytest

import nmsolve
from nmsolve import solvers
from nmsolve.pattern import Pattern

FIELDS = [field.name for field in dataclasses.fields(solvers.Solver)]


@pytest.mark.parametrize("forgotten", FIELDS)
def test_a_forgotten_field_is_an_error(forgotten):
    fields = {name: getattr(solvers.ASCENT, name) for name in FIELDS}
    assert solvers.Solver(**fields) == solvers.ASCENT
    del fields[forgotten]
    with pytest.raises(TypeError, match=forgotten):
        solvers.Solver(**fields)


def test_every_file_that_makes_runs_is_described():
    folder = Path(solvers.__file__).parent
    makers = {path.stem for path in folder.glob("*.py") if "\ndef make(" in path.read_text()}
    assert {solver.module for solver in solvers.SOLVERS} == makers


@pytest.mark.parametrize(
    "text", ["2:4", "4:4", "<=3:8", "2:4T", "<=2:4T", "4:8T", "4:4T", "<=4:4T"]
)
def test_methods_are_those_that_solvers_serve(text):
    """Every method that is listed has a solver for scores of both signs too."""
    pattern = Pattern.parse(text)
    listed = nmsolve.methods(pattern)
    assert set(listed) == {"auto", "exact", "greedy", "cover"} | (
        {"min_cost_flow"} if pattern.transposable else set()
    )
    for method in listed:
        for absolute in (True, False):
            solver = solvers.solver_for(method, pattern, absolute=absolute)
            assert method in solver.methods
            assert absolute or solver.signed


@pytest.mark.parametrize(("text", "method", "absolute", "expected"), [
    ("2:4", "auto", True, solvers.ROWWISE),
    ("<=3:8", "cover", False, solvers.ROWWISE),
    ("4:4T", "greedy", True, solvers.ROWWISE),
    ("4:4T", "min_cost_flow", True, solvers.MIN_COST_FLOW),
    ("2:4T", "exact", True, solvers.ENUMERATION),
    ("2:4T", "exact", False, solvers.ASCENT),
    ("<=2:4T", "auto", True, solvers.ASCENT),
    ("4:8T", "auto", True, solvers.ASCENT),
    ("4:8T", "greedy", True, solvers.GREEDY),
    ("<=4:8T", "cover", False, solvers.COVER),
    ("4:8T", "min_cost_flow", False, solvers.MIN_COST_FLOW),
])  # fmt: skip
def test_which_solver_serves(text, method, absolute, expected):
    assert solvers.solver_for(method, Pattern.parse(text), absolute=absolute) is expected


def test_guarantees():
    assert nmsolve.methods("2:4T") == {
        "auto": "the optimum, with a certificate",
        "exact": "the optimum, with a certificate",
        "greedy": "at least 1/2 of the optimum's kept score, for scores >= 0",
        "cover": "less than 2 x the optimum's pruned score, for scores >= 0",
        "min_cost_flow": "the optimum, with a certificate; scores rounded to integers first "
        "(needs nmsolve[ortools])",
    }


@pytest.mark.parametrize("kind", ["f4", "f8", "f16", "bf16", "i4", "i8", "float8_e4m3fn"])
@pytest.mark.parametrize("absolute", [True, False])
@pytest.mark.parametrize("solver", solvers.SOLVERS, ids=lambda solver: solver.module)
def test_scores_are_read_in_place_only_at_the_width_of_the_computation(solver, kind, absolute):
    wide = solver.computes_in(kind, absolute)
    assert wide in solver.reads
    assert wide == "f8" or kind not in ("f8", "i8")
    if solver.reads_in_place(kind, absolute):
        assert kind in solver.reads
        assert (wide == "f8") == (kind == "f8")


def test_asking_for_methods_loads_no_solver():
    code = (
        "import sys, nmsolve; nmsolve.methods('2:4T'); nmsolve.methods('2:4'); "
        "print([m for m in sys.modules if m == 'numba' or m.startswith('nmsolve.solvers.')])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
