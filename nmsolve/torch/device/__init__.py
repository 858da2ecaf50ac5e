"""Masks for matrices on a device: the core's algorithms on tensors, one block or group per lane.

Two engines offer the same functions (`problem.Engine`): `torch_engine` runs wherever torch does,
`triton_engine` launches the kernels of `kernels` and of `ascent_kernels`. `driver` cuts matrices
into pieces and drives either; `ascent` is its part for transposable blocks. Nothing here checks
user input.
"""
