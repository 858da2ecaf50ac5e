"""Faults in what holds the house together: layers, names, documents, renamed arguments."""

from tests.faults.planting import Fault

TESTS = "tests/project"

FAULTS = (
    Fault(
        name="an import goes upwards",
        file="nmsolve/pattern.py",
        old="from nmsolve.errors import PatternError\n",
        new="from nmsolve.errors import PatternError\n\nif False:\n    import nmsolve.api\n",
        tests=(f"{TESTS}/test_layers.py::test_nothing_imports_upwards",),
    ),
    Fault(
        name="import nmsolve loads numba",
        file="nmsolve/threads.py",
        old="from __future__ import annotations\n",
        new="from __future__ import annotations\n\nimport numba\n",
        tests=(f"{TESTS}/test_layers.py::test_nothing_heavy_at_the_top",),
    ),
    Fault(
        name="a public name is missing from __all__",
        file="nmsolve/__init__.py",
        old='    "diversity",\n',
        new="",
        tests=(f"{TESTS}/test_public_names.py::test_what_is_imported_for_users_is_documented",),
    ),
    Fault(
        name="a public name of nmsolve.torch is missing from __all__",
        file="nmsolve/torch/__init__.py",
        old='    "accelerate_",\n',
        new="",
        tests=(f"{TESTS}/test_public_names.py::test_what_is_imported_for_users_is_documented",),
    ),
    Fault(
        name="a former name is taken without a warning",
        file="nmsolve/renamed.py",
        old="    warnings.warn(",
        new="    (lambda *args, **kwargs: None)(",
        tests=("tests/training/test_renamed.py::test_functions_take_the_former_keyword",),
    ),
)
