"""Slow and obvious oracles, one a file. Never imported by nmsolve, and sharing nothing with it.

Every oracle takes one block (m, m), or one group (m,), of float64 scores. `n` entries are kept,
never pruned.
"""
