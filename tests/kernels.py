"""`python -m tests.kernels [PATTERN …]`: compile kernels on all cores, once.

Of the patterns named, or those that take long and that many tests use. Two workers that come to one
at the same time would both compile it. A pattern that is missing here costs time only: it is
compiled by the test that needs it first.
"""

import multiprocessing
import sys
from concurrent.futures import ProcessPoolExecutor

import numpy as np

import nmsolve

#: A transposable pattern costs two kernels, compiled in seconds, so tests share this small set:
#: what is enumerated, n that is not m − n, m that is no power of two, at most.
SMALL = ("1:4T", "2:4T", "<=2:4T", "2:5T", "4:8T", "<=4:8T")
#: Lines in words of 16 bits.
MIDDLE = ("8:16T",)
#: Solved in float32 alone: lines in words of 64 bits.
LARGE = ("31:64T",)


def solve(case):
    """Solve one block. Duals come from the ascent's kernel, also where blocks are enumerated."""
    text, dtype, method = case
    m = nmsolve.Pattern.parse(text).m
    nmsolve.solve(np.ones((m, m), dtype), text, method=method, duals=method == "exact")


def main(only):
    narrow = [(text, "float32", "exact") for text in (*LARGE, *MIDDLE, *SMALL)]
    wide = [(text, "float64", "exact") for text in (*MIDDLE, *SMALL)]
    rules = [("2:4T", "float64", method) for method in ("greedy", "cover")]
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(mp_context=spawn) as pool:
        list(pool.map(solve, [c for c in narrow + wide + rules if not only or c[0] in only]))


if __name__ == "__main__":
    main(sys.argv[1:])
