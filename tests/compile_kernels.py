"""Compile every Triton kernel, as the engine launches it, for NVIDIA GPUs that need not be there: name, target, bytes of code.

A program of its own, run by test_torch_kernels.py: Triton chooses compiler or interpreter when kernels are defined. A driver that
only names a target makes Triton bind and specialise real calls on CPU tensors, compile them to machine code, and stop there.
"""

import torch
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from nmsolve.torch.device import triton as engine

#: (n, m, at most, dtype of X, its shape, compute capability). To the compiler 1 is a constant, and multiples of 16 are special.
CASES = (
    (2, 4, False, torch.bfloat16, (1, 64, 64), 90),
    (2, 4, True, torch.float32, (1, 4, 4), 80),
    (3, 6, False, torch.float64, (2, 12, 18), 90),
    (8, 16, False, torch.float16, (1, 32, 64), 90),
    (8, 32, True, torch.float32, (1, 32, 32), 90),
)


class Target:
    """A driver without a device."""

    def __init__(self, capability):
        self.capability = capability

    def get_current_target(self):
        return GPUTarget("cuda", self.capability, 32)

    def get_current_device(self):
        return self.capability  # Triton keeps compiled kernels by device

    def get_current_stream(self, device):
        return 0


def compile_only(launch):
    def run(self, *arguments, grid, warmup, **options):
        compiled = launch(self, *arguments, grid=grid, warmup=True, **options)
        print(self.fn.__name__, f"sm_{compiled.metadata.target.arch}", len(compiled.asm["cubin"]), flush=True)

    return run


def steps(n, m, at_most, dtype, shape):
    """Every call that solving a matrix makes, whatever it would return."""
    X, mask = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=torch.bool)
    turned, turned_mask = X.transpose(1, 2), torch.zeros((shape[0], shape[2], shape[1]), dtype=torch.bool)
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    engine.keep_groups(X, mask, n, m, at_most, True, compute, False)
    if shape[1] % m == 0:
        engine.keep_groups(turned, turned_mask, n, m, at_most, False, compute, True)
    if m == 4:
        engine.enumerate_blocks(X, mask, n, True, compute, False)
        engine.enumerate_blocks(turned[:, :-1], turned_mask, n, True, compute, True)
    S = engine.stage(X, mask, m, True, compute)
    v, _, _ = engine.start(S, n, m, at_most, compute)
    u = torch.zeros_like(v)
    words, good = engine.ascend(S, u, v, 2, True, 1.25, n, m, at_most)
    engine.relax(S, words, u, v, good, torch.ones_like(v[0]), n, m, at_most, 6)
    engine.certify(S, words, u, v, n, m, at_most, 2.0**-51)
    engine.write_masks(words, mask, m)
    delta = torch.zeros(m * m, dtype=compute)
    engine.climb(S, u, v, u[0], v[0], delta, (2, 3), 6, 1.25, n, m, at_most, 2.0**-51, 2.5e-7, 16.0)


def main():
    engine._lanes = lambda X, most=engine.LANES: most  # as for a tensor on a GPU
    JITFunction.run = compile_only(JITFunction.run)
    for *problem, capability in CASES:
        driver.set_active(Target(capability))
        steps(*problem)


if __name__ == "__main__":
    main()
