"""Means, spreads and differences over seeds."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from scipy import stats

#: Differences with a smaller p-value, corrected, are called differences.
LEVEL = 0.05


@dataclass(frozen=True)
class Spread:
    """Mean and sample standard deviation (0 for a single value)."""

    mean: float
    deviation: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        """Of values over seeds."""
        return cls(
            float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else 0.0
        )

    def show(self, digits: int, factor: float = 1.0, sign: bool = False) -> str:
        """ "mean ± deviation", in units of 1 / factor."""
        return (
            f"{self.mean * factor:{'+' if sign else ''}.{digits}f} ± "
            f"{self.deviation * factor:.{digits}f}"
        )


@dataclass(frozen=True)
class Difference:
    """first − second, seed by seed. p : of a paired t-test, two-sided; 1 if nothing differs, NaN
    from a single seed.
    """

    spread: Spread
    p: float

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Difference:
        """Of values at the same seeds."""
        deltas = np.subtract(first, second)
        if not deltas.any():
            p = 1.0
        elif len(deltas) < 2:
            p = float("nan")
        else:
            with (
                warnings.catch_warnings()
            ):  # equal differences make the test's variance 0: p is then 0, and a warning
                warnings.simplefilter("ignore", RuntimeWarning)
                p = float(stats.ttest_1samp(deltas, 0.0).pvalue)
        return cls(Spread.of(deltas.tolist()), p)


def found(differences: Mapping[str, Difference]) -> dict[str, bool]:
    """Which of several differences are beyond the noise of seeds, after Holm's correction for their
    number.

    The smallest p-value is held against LEVEL / count, the next against LEVEL / (count − 1), up to
    the first that fails.
    """
    passed = dict.fromkeys(differences, False)
    for rank, name in enumerate(sorted(differences, key=lambda name: differences[name].p)):
        if not differences[name].p < LEVEL / (len(differences) - rank):
            break
        passed[name] = True
    return passed


@dataclass(frozen=True)
class Rank:
    """Spearman's rank correlation over `count` pairs, and SciPy's two-sided p-value; NaN where it
    is not defined.
    """

    rho: float
    p: float
    count: int

    @classmethod
    def of(cls, first: Sequence[float], second: Sequence[float]) -> Rank:
        """Of pairs."""
        if len(first) < 3 or len(set(first)) < 2 or len(set(second)) < 2:
            return cls(float("nan"), float("nan"), len(first))
        found = stats.spearmanr(first, second)
        return cls(float(found.statistic), float(found.pvalue), len(first))
