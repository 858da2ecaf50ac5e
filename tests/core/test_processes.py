"""Forks after threads, and several Python threads at once."""

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import nmsolve

FORK = """
import multiprocessing, os, sys
import numpy as np, nmsolve

W = np.random.default_rng(0).integers(-4, 4, (512, 1024)).astype(np.float32)

def solve(text):
    result = nmsolve.solve(W, text, threads=4)
    return result.mask.tobytes(), result.objective

texts = ("2:4T", "4:8T", "2:4", "<=4:8T")
before = [solve(text) for text in texts]
child = os.fork()
if child == 0:
    try:
        os._exit(0 if [solve(text) for text in texts] == before else 3)
    finally:
        os._exit(4)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
with multiprocessing.get_context("fork").Pool(3) as pool:
    assert pool.map_async(solve, texts).get(timeout=100) == before
assert [solve(text) for text in texts] == before
print("same")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="fork")
def test_fork_after_threads():
    done = subprocess.run(
        [sys.executable, "-c", FORK], capture_output=True, text=True, timeout=200, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "same\n"


def test_several_python_threads_at_once():
    W = np.random.default_rng(1).integers(-4, 4, (1024, 512)).astype(np.float32)
    texts = ("2:4T", "4:8T", "2:4", "<=4:8T", "<=2:4T", "1:4T")
    alone = {text: nmsolve.solve(W, text, threads=1) for text in texts}

    def solve(text):
        return text, nmsolve.solve(W, text, threads=3)

    with ThreadPoolExecutor(8) as pool:
        results = list(pool.map(solve, texts * 8))
    for text, result in results:
        assert np.array_equal(result.mask, alone[text].mask)
        assert result.objective == alone[text].objective


COLD = """
from concurrent.futures import ThreadPoolExecutor
import numpy as np, nmsolve
W = np.random.default_rng(1).standard_normal((32, 32)).astype(np.float32)
with ThreadPoolExecutor(6) as pool:
    results = list(pool.map(lambda text: nmsolve.solve(W, text), ["2:4T", "4:8T", "2:4"] * 4))
assert all(r.verify(W).ok for r in results)
print("ok")
"""


def test_first_solve_in_several_threads_at_once():
    """Imports and compilation too are reached by several threads at the same time."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", COLD],
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "ok\n"
