"""The planted faults of `python -m tests.faults` fit the code and the tests as they are, and its
engine tells what is caught from what is not. What the tests catch is for the command itself.
"""

import ast
from collections import Counter
from dataclasses import replace
from functools import cache

import pytest

from tests.faults.listed import FAULTS, as_markdown
from tests.faults.planting import ROOT, Fault, copy_to, plant

#: A fault that a doctest sees at once.
REVERSED = Fault(
    name="masks are packed with the first entry in the highest bit",
    file="nmsolve/bits.py",
    old='np.packbits(mask, axis=None, bitorder="little")',
    new='np.packbits(mask, axis=None, bitorder="big")',
    tests=("nmsolve/bits.py",),
)


def is_long(node):
    """Whether a decorator leaves a test out of `make test`."""
    return "pytest.mark.long" in ast.unparse(node).split("(")[0]


def test_there_are_many_and_no_two_alike():
    assert len(FAULTS) >= 40
    for counted in (
        Counter(fault.name for fault in FAULTS),
        Counter((fault.file, fault.old, fault.new) for fault in FAULTS),
    ):
        assert [key for key, count in counted.items() if count > 1] == []


def test_the_readme_lists_them():
    """As `python -m tests.faults --list` prints them."""
    assert as_markdown() in (ROOT / "tests" / "README.md").read_text()


def test_every_package_has_some():
    packages = {
        path.parent.relative_to(ROOT).as_posix()
        for path in (ROOT / "nmsolve").rglob("__init__.py")
        if path.parent.name != "data"
    }
    assert len(packages) > 10
    assert packages - {fault.file.rpartition("/")[0] for fault in FAULTS} == set()


def test_faults_fit_the_code():
    for fault in FAULTS:
        assert fault.old != fault.new, fault.name
        ast.parse(fault.applied((ROOT / fault.file).read_text()))


@cache
def run_by_default(path):
    """The tests of a file that `make test` runs, by name."""
    module = ast.parse((ROOT / path).read_text())
    marks = [node for node in module.body if ast.unparse(node).startswith("pytestmark")]
    if any("long" in ast.unparse(node) for node in marks):
        return frozenset()
    return frozenset(
        node.name
        for node in ast.walk(module)
        if isinstance(node, ast.FunctionDef)
        and node.name.startswith("test_")
        and not any(map(is_long, node.decorator_list))
    )


def test_tests_of_faults_are_there_and_run():
    for fault in FAULTS:
        assert fault.tests, fault.name
        for test in fault.tests:
            path, _, name = test.partition("::")
            assert name in run_by_default(path) if name else run_by_default(path), (
                f"{fault.name}: {test}"
            )


def test_what_is_caught_and_what_is_not(tmp_path):
    copy_to(tmp_path, kernels=False)
    path = tmp_path / REVERSED.file
    before = path.read_text(), path.stat().st_mtime_ns
    assert plant(tmp_path, REVERSED)[0] == "failed"
    assert (path.read_text(), path.stat().st_mtime_ns) == before
    harmless = replace(REVERSED, new=f"{REVERSED.old}  # from the first entry on")
    assert plant(tmp_path, harmless)[0] == "passed"
    unreadable = replace(REVERSED, new="np.packbits(")
    assert plant(tmp_path, unreadable)[0] == "broken"
    nothing = replace(REVERSED, tests=("nmsolve/bits.py::nothing",))
    assert plant(tmp_path, nothing)[0] == "broken"


@pytest.mark.parametrize("old", ["np.packbits(nothing", "import"])
def test_a_fault_that_no_longer_fits_is_an_error(old):
    text = (ROOT / REVERSED.file).read_text()
    with pytest.raises(ValueError, match="times, not once"):
        replace(REVERSED, old=old).applied(text)
