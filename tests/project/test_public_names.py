"""The names that users see: `dir` shows the documented ones alone, and no module hides behind the
name of a public function.
"""

import importlib
import inspect
import pkgutil
import subprocess
import sys

import pytest

import nmsolve

PUBLIC = ["nmsolve", "nmsolve.checkpoint", "nmsolve.torch"]
#: Classes of integrations, whose libraries are imported with them.
WITH_LIBRARIES = {"LightningCallback", "TrainerCallback"}


def public(name):
    if name == "nmsolve.torch":
        pytest.importorskip("torch")
    return importlib.import_module(name)


def functions_of(module):
    names = set(module.__all__) - WITH_LIBRARIES
    return {name for name in names if inspect.isroutine(getattr(module, name))}


def named_like_functions(modules, functions):
    return sorted(module for module in modules if module.rpartition(".")[2] in functions)


def is_dunder(name):
    return name.startswith("__") and name.endswith("__")


@pytest.mark.parametrize("name", PUBLIC)
def test_dir_shows_what_is_documented(name):
    module = public(name)
    assert len(module.__all__) == len(set(module.__all__))
    assert [n for n in module.__all__ if is_dunder(n)] == []
    assert set(dir(module)) == set(module.__all__)


@pytest.mark.parametrize("name", PUBLIC)
def test_what_dir_shows_is_there_and_of_this_package(name):
    module = public(name)
    for shown in set(dir(module)) - WITH_LIBRARIES:
        found = getattr(module, shown)
        if inspect.isroutine(found) or inspect.isclass(found):
            assert found.__module__.partition(".")[0] == "nmsolve", shown


def test_no_module_has_the_name_of_a_public_function():
    modules = [found.name for found in pkgutil.walk_packages(nmsolve.__path__, "nmsolve.", str)]
    assert len(modules) > 100
    functions = set().union(*(functions_of(public(name)) for name in PUBLIC))
    assert {"solve", "verify", "plan", "losses", "prune", "report"} <= functions
    assert named_like_functions(modules, functions) == []


def test_a_module_with_the_name_of_a_public_function_is_found():
    planted = ["nmsolve.api", "nmsolve.torch.weights.plan", "nmsolve.verify"]
    assert named_like_functions(planted, {"plan", "verify"}) == planted[1:]


def test_the_names_stay_when_modules_are_loaded():
    """An import of a submodule sets an attribute of its package."""
    code = (
        "import nmsolve, nmsolve.demo, nmsolve.feasibility as f, nmsolve.mask_diversity as d; "
        "nmsolve.checkpoint; import nmsolve.cli.masks; "
        "assert set(dir(nmsolve)) == set(nmsolve.__all__); "
        "assert nmsolve.verify is f.verify and nmsolve.diversity is d.diversity"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_subpackages_are_reachable():
    code = "import nmsolve; print(nmsolve.checkpoint.__name__); import nmsolve.torch.masks"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "nmsolve.checkpoint"


@pytest.mark.parametrize("name", PUBLIC)
def test_what_is_imported_for_users_is_documented(name):
    module = public(name)
    own = {
        shown
        for shown, found in vars(module).items()
        if not shown.startswith("_")
        and not inspect.ismodule(found)
        and str(getattr(found, "__module__", "")).startswith("nmsolve")
    }
    assert len(own) > 5
    assert own - set(module.__all__) == set()
