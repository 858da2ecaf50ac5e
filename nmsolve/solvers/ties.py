"""Equal scores: telling them apart while a block ascends, and then proving its mask for the scores
as given.

Equal scores leave entries with S − u − v = 0 that the ascent cannot separate. Where the first
medians of a block show ties, it runs on S' = S + offset instead, a small fixed number per entry.
The offset depends on the position in the block alone, so the choice among equal masks is
deterministic and does not depend on neighbours.

The mask X that is proven for S' is nearly always optimal for S too, and then potentials exist with

    u_i + v_j ≤ S_ij  where X is 1,      u_i + v_j ≥ S_ij  where X is 0.

With w = −v these are difference constraints, which Bellman–Ford relaxations solve from the duals of
S' in a few sweeps. Duals are rounded to a grid before, so that sums with the scores are exact and
cycles of equal scores close. If X is not optimal for S the constraints cannot be met, the
certificate fails, and the block goes on with a smaller offset.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import NDArray

from nmsolve.solvers.compiled import part
from nmsolve.solvers.ties_lanes import (
    adopt_duals,
    lattice_line,
    perturb_row,
    relax_column,
    relax_row,
    round_duals,
)

LANES = 16
#: Offsets as a share of the block's largest power of two. Quantised scores (ties among the medians
#: of many lines) have a coarse lattice, and large offsets are separated in few rounds; between
#: zeros real differences are finer. A block that is not proven gets an offset anyway, larger where
#: one line had a tie.
LATTICE, ZEROS, HINT, FINE = 2.0**-4, 2.0**-10, 2.0**-6, 2.0**-12
#: A block that is proven for S' but not for S goes on with its offset divided by this.
SHRINK = 16.0
COARSE = 64.0
GRID = 2.0**-12


@cache
def offsets(m: int) -> NDArray[np.float64]:
    """Return one number in (0, 1) per entry of an m × m block: splitmix64 of its index, fixed for
    ever.
    """
    with np.errstate(over="ignore"):
        z = np.arange(1, m * m + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return ((z >> np.uint64(44)).astype(np.float64) + 0.5) / 2.0**20


@part
def flag_ties(S, equal, zero, power, amount, word, m):
    """First offsets: amount[lane] from ties among the medians of 2 m lines; word = the lanes that
    shift every entry.

    The others shift zeros only, if anything. One tie is enough where the first row lies on a coarse
    lattice.
    """
    lattice_line(S, 0, power, word, COARSE, m)
    everywhere = 0
    for lane in range(LANES):
        amount[lane] = 0.0
        if equal[lane] >= max(3, m // 2) or (equal[lane] > 0 and (word[0] >> lane) & 1):
            amount[lane] = power[lane] * LATTICE
            everywhere |= 1 << lane
        elif zero[lane] > 0:
            amount[lane] = power[lane] * ZEROS
    word[0] = everywhere


@part
def shift(S, amount, everywhere, delta, A, m):
    """A = S + offset. Returns whether any lane has one."""
    shifted = False
    for lane in range(LANES):
        shifted |= amount[lane] > 0.0
    if shifted:
        for i in range(m):
            perturb_row(S, i * m * LANES, delta, amount, everywhere, A, m)
    return shifted


@part
def relax(S, bits, row_count, column_count, u, w, z, before, n, m, at_most, sweeps):
    """Bellman–Ford on the residual graphs of the masks in `bits`: rows u, columns w = −v, for at
    most also the node z.

    At most n adds u_i ≥ z ≥ w_j, with equality where a line keeps fewer than n; z stands for the
    dual 0.
    """
    line = m * LANES
    for _ in range(sweeps):
        for k in range(line):
            before[k] = w[k]
            before[line + k] = u[k]
        for lane in range(LANES):
            before[2 * line + lane] = z[lane]
        if at_most:
            for k in range(m):
                for lane in range(LANES):
                    low = min(u[k * LANES + lane], z[lane])
                    if column_count[k * LANES + lane] < n:
                        low = min(w[k * LANES + lane], low)
                    z[lane] = low
            for k in range(m):
                for lane in range(LANES):
                    at = k * LANES + lane
                    w[at] = min(w[at], z[lane])
                    if row_count[at] < n:
                        u[at] = min(u[at], z[lane])
        for i in range(m):
            relax_row(S, i * m * LANES, bits, u, i * LANES, w, m)
        for j in range(m):
            relax_column(S, j, bits, u, w, m)
        # Where no lane moved nothing moves any more, so that stopping changes no lane, whatever its
        # neighbours do.
        moved = False
        for k in range(line):
            moved |= before[k] != w[k]
            moved |= before[line + k] != u[k]
        for lane in range(LANES):
            moved |= before[2 * line + lane] != z[lane]
        if not moved:
            break


@part
def unshift(
    S, bits, row_count, column_count, u, v, amount, power, good, work, n, m, at_most, sweeps
):
    """Replace the duals of feasible shifted lanes by duals for S itself. `work` (4 m + 2, LANES) is
    scratch.
    """
    ru, rw, z = work[:m].reshape(-1), work[m : 2 * m].reshape(-1), work[2 * m]
    before = work[2 * m + 1 :].reshape(-1)
    for k in range(m):
        round_duals(u, v, k * LANES, power, GRID, ru, rw)
    z[:] = 0
    relax(S, bits, row_count, column_count, ru, rw, z, before, n, m, at_most, sweeps)
    for k in range(m):
        adopt_duals(ru, rw, z, k * LANES, amount, good, u, v, at_most)
