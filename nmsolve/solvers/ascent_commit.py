"""The end of a block of the dual ascent: written if a level proved it, or finished alone by
augmenting paths.
"""

from __future__ import annotations

from functools import cache

import numpy as np

from nmsolve.solvers import FINE as EXACT
from nmsolve.solvers.apart import closes, finish
from nmsolve.solvers.ascent_group import read_block
from nmsolve.solvers.ascent_lanes import copy_mask_row, write_mask_row
from nmsolve.solvers.compiled import part, structure
from nmsolve.solvers.lanes import LANES


@cache
def account_layout(levels: int) -> np.dtype[np.void]:
    """Return the record of what blocks came to."""
    return structure(
        {
            "objective": ("f8", ()),
            # How far the dual bound is from that.
            "gap": ("f8", ()),
            # Blocks proven at each level; finished alone, and by how many augmenting paths; blocks
            # that stay unproven.
            "proven": ("i8", (levels,)),
            "augmented": ("i8", ()),
            "paths": ("i8", ()),
            "open": ("i8", ()),
        }
    )


@cache
def block_layout(m: int) -> np.dtype[np.void]:
    """Return the record of one block by itself: scores, mask, duals, and scratch of
    `apart.finish`.
    """
    return structure(
        {
            "S": ("f8", (m, m)),
            "kept": ("u1", (m, m)),
            "u": ("f8", (m,)),
            "v": ("f8", (m,)),
            "clipped": ("f8", (m, m)),
            "other": ("u1", (m, m)),
            "integers": ("i8", (4, 2 * m + 1)),
            "floats": ("f8", (2 * m + 1,)),
        }
    )


@part
def write_masks(g, adjacent, mask, m):
    """Masks to their places if the blocks lie side by side, so that vectors are stored, else to
    g.tile.
    """
    for i in range(m):
        if adjacent:
            at = (g.rows[0] + i) * mask.strides[0] + g.columns[0]
            write_mask_row(g.bits, i, mask, at, m)
        else:
            write_mask_row(g.bits, i, g.tile, i * m * LANES, m)


@part
def is_proven(g, lane, tolerance, alone, m):
    """Return whether a lane's feasible mask is proven, for its scores as they are given."""
    # What nothing contradicts needs no closer look, unless scores were clipped.
    return (
        g.gap[lane] == 0.0
        and g.slack[lane] <= 0.25 * EXACT * g.size[lane]
        and g.clip[lane] == np.inf
    ) or _closes(g, lane, tolerance, alone.S, alone.kept, m)


@part
def _closes(g, lane, tolerance, S, kept, m):
    """Return whether the gap is within tolerance, for the scores as they were clipped and, with
    them, for those as given.
    """
    clip, lost = g.clip[lane], g.lost[lane]
    for i in range(m):
        for j in range(m):
            S[i, j] = float(g.S[(i * m + j) * LANES + lane])
            kept[i, j] = (g.bits[i * m + j] >> lane) & 1
    if clip < np.inf or lost > 0.0:
        # What lies apart is to be seen from scores as they are given.
        tolerance = min(tolerance, 0.25 * EXACT)
    closed = closes(S, kept, g.size[lane], g.gap[lane] + g.slack[lane], tolerance, lost)
    if closed and clip < np.inf:
        # A clipped score is as large as the bound, and no other is.
        bound = clip / g.scale[lane]
        for i in range(m):
            for j in range(m):
                closed &= (S[i, j] < bound or kept[i, j] == 1) and (
                    S[i, j] > -bound or kept[i, j] == 0
                )
    return closed


@part
def copy_mask(g, lane, mask, m):
    """A block's mask from g.tile to its place."""
    for i in range(m):
        at = (g.rows[lane] + i) * mask.strides[0] + g.columns[lane]
        copy_mask_row(g.tile, (i * LANES + lane) * m, mask, at, m)


@part
def kept_score(X, absolute, mask, r, c, m):
    """Return what the mask of the block at row r, column c keeps of the scores as given."""
    value = 0.0
    for i in range(m):
        for j in range(m):
            score = float(X[r + i, c + j]) if mask[r + i, c + j] else 0.0
            value += abs(score) if absolute else score
    return value


@part
def take_duals(u, v, scale, lane, alone, m):
    """A lane's duals, for the scores as given."""
    for k in range(m):
        alone.u[k] = float(u[k * LANES + lane]) * scale
        alone.v[k] = float(v[k * LANES + lane]) * scale


@part
def finish_alone(X, absolute, mask, g, lane, tolerance, codes, alone, account, n, m, at_most):
    """Solve a block by itself, from the duals in alone.u, alone.v. Returns its objective and
    gap.
    """
    r, c = g.rows[lane], g.columns[lane]
    read_block(X, r, c, absolute, alone.S)
    value, loose, paths, proven = finish(
        alone.S, g.clip[lane], alone.u, alone.v, n, at_most == 1, tolerance, codes,
        alone.kept, alone.clipped, alone.other, alone.integers, alone.floats,
    )  # fmt: skip
    account.augmented += 1
    account.paths += max(paths, 0)
    account.open += not proven
    for i in range(m):
        for j in range(m):
            mask[r + i, c + j] = alone.kept[i, j]
    return value, loose
