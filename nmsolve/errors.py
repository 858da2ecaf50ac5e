"""Every error that nmsolve raises on purpose. All derive from `NMSolveError`."""

from __future__ import annotations


class NMSolveError(Exception):
    """Root of the library's errors."""


class PatternError(NMSolveError, ValueError):
    """A pattern that does not exist, or that the chosen method cannot serve."""


class InputError(NMSolveError, ValueError):
    """Weights, scores, masks or options that cannot be worked with; the message names them and the
    remedy.
    """


class MissingDependencyError(NMSolveError, ImportError):
    """An optional package is not installed; the message names the extra that brings it."""


class SolverError(NMSolveError, RuntimeError):
    """Something went wrong inside: a solver failed, or a result does not stand up to
    verification.
    """


class ElsewhereError(SolverError):
    """Another process of the same run failed; its own message says why, so that this one need
    not.
    """
