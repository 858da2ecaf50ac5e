"""The version, for what notes it in files; `nmsolve.__version__` is the same."""

__version__ = "0.1.0"
