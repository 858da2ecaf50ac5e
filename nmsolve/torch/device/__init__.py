"""Masks for matrices that live on a device: the core's algorithms on tensors, a block or a group a
lane.

Two engines offer the same functions: `plain` runs wherever torch does, `triton` launches the
kernels of `kernels` and of `ascent_kernels`. `ascent` and `pieces` drive either. Nothing here
checks user input.
"""
