"""What `make bench` runs: every figure of the README, measured in one process, verified outside the
timer.

Rates are of one thread unless a row says otherwise, and that holds for the rivals too: BLAS is
limited here, before anything imports NumPy.
"""

import os

for _variable in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")
