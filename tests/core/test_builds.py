"""Compiled kernels on disk are known by the sources that they were compiled from."""

import importlib.util
import shutil
from pathlib import Path

from nmsolve.solvers import compiled


def test_a_change_of_any_source_is_another_build(tmp_path):
    sources = Path(compiled.__file__).parent

    def build():
        spec = importlib.util.spec_from_file_location("compiled", tmp_path / "compiled.py")
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module.BUILD

    for path in sources.glob("*.py"):
        shutil.copy(path, tmp_path)
    assert build() == compiled.BUILD
    for path in sorted(sources.glob("*.py")):
        with open(tmp_path / path.name, "a") as file:
            file.write("# another\n")
        assert build() != compiled.BUILD, path.name
        shutil.copy(path, tmp_path)
