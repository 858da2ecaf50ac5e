"""Docstrings of public names: sections that name every parameter and field; plain openers."""

import dataclasses
import inspect
import re

import pytest

import nmsolve
import nmsolve.checkpoint
import nmsolve.torch
from tests.project.imports import sources

PUBLIC = {
    f"{package.__name__}.{name}": getattr(package, name)
    for package in (nmsolve, nmsolve.checkpoint, nmsolve.torch)
    for name in package.__all__
}
SCORES = nmsolve.torch.scores
PUBLIC |= {f"nmsolve.torch.scores.{name}": getattr(SCORES, name) for name in SCORES.__all__}
CLASSES = {
    name: value
    for name, value in PUBLIC.items()
    if inspect.isclass(value) and not issubclass(value, Exception)
}
FUNCTIONS = {name: value for name, value in PUBLIC.items() if inspect.isfunction(value)}
METHODS = {
    f"{name}.{method}": value
    for name, kind in CLASSES.items()
    for method, value in vars(kind).items()
    if inspect.isfunction(value) and not method.startswith("_") and value.__doc__
}


def sections(text):
    """Return {heading: body} of a numpydoc docstring; the summary is under ""."""
    parts = re.split(r"^(\w[\w ]*)\n-+\n", inspect.cleandoc(text), flags=re.M)
    return {"": parts[0]} | dict(zip(parts[1::2], parts[2::2], strict=True))


def named(body):
    """Return the names that a section describes: "a, b : int"."""
    heads = re.findall(r"^([*\w, ]+?)(?: :.*)?$", body, flags=re.M)
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


def parameters(function):
    found = [p for p in inspect.signature(function).parameters if p not in ("self", "cls")]
    return {name for name in found if not name.startswith("_")}


def lacks(function):
    """Return what the docstring of a public function lacks."""
    text = sections(function.__doc__ or "")
    missing = parameters(function) - named(text.get("Parameters", ""))
    found = [f"parameter {name}" for name in sorted(missing)]
    if (
        inspect.signature(function).return_annotation not in (None, "None")
        and "Returns" not in text
    ):
        found.append("Returns")
    return found + [part for part in ("Raises",) if part not in text and parameters(function)]


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions_say_what_they_take_give_and_raise(name):
    assert lacks(FUNCTIONS[name]) == []


@pytest.mark.parametrize("name", CLASSES)
def test_classes_list_their_attributes(name):
    kind = CLASSES[name]
    text = sections(kind.__doc__ or "")
    listed = named(text.get("Attributes", "")) | named(text.get("Parameters", ""))
    fields = {f.name for f in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set()
    assert "Attributes" in text or "Parameters" in text
    assert {field for field in fields if not field.startswith("_")} - listed == set()


OPENERS = re.compile(r'"""(What|Whether|How|Which|Why)\b')


def test_openers_are_plain():
    """Docstrings open with an imperative or a noun phrase."""
    found = [
        f"{path.name}: {line.strip()}"
        for path in sources("nmsolve")
        for line in path.read_text().splitlines()
        if OPENERS.search(line)
    ]
    assert found == []


def test_the_checks_can_fail():
    def undocumented(weights, *, threads):
        """Solve.

        Parameters
        ----------
        weights : array
        """

    assert lacks(undocumented) == ["parameter threads", "Returns", "Raises"]
    assert OPENERS.search('    """Whether it is.')
