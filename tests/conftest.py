"""The Hypothesis profile, how tests share two cores, and fixtures of several folders."""

import gc
import os

import pytest
import torch
from hypothesis import HealthCheck, settings

from tests.ranks import Ranks

# Models this small spend their time on waking threads, of which each of two workers would have as
# many as there are cores; and so do the processes that tests start.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")

# Read when kernels are defined: without a GPU Triton's interpreter runs them.
if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

# The first example of a pattern compiles its kernel, so examples have no deadline.
settings.register_profile(
    "nmsolve",
    deadline=None,
    max_examples=15,
    derandomize=bool(os.environ.get("CI")),
    print_blob=True,
    suppress_health_check=[
        HealthCheck.too_slow,
        HealthCheck.data_too_large,
        HealthCheck.filter_too_much,
    ],
)
settings.load_profile("nmsolve")


@pytest.fixture
def warned_already():
    """For tests about other things than the warning that there is no GPU, which comes once a
    process.
    """
    from nmsolve.torch.dispatch.availability import _said

    _said.update({"no sparse GPU", "masked dense"})


@pytest.fixture(scope="session")
def on_two_ranks():
    ranks = Ranks()
    yield ranks
    ranks.close()


def pytest_collection_finish():
    """What is imported by now stays: trainers and Hypothesis, which collect garbage again and
    again, need not look through it.
    """
    gc.collect()
    gc.freeze()
