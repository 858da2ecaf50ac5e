"""Compile every Triton kernel for NVIDIA GPUs that need not be there, and print one line a kernel: name, target, bytes of code.

A program of its own, run by test_torch_kernels.py: Triton chooses compiler or interpreter when kernels are defined.
"""

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nmsolve.solvers.enumeration import row_patterns
from nmsolve.torch.device import kernels
from nmsolve.torch.device import triton as engine

#: (n, m, at most, how scores are stored, compute capability)
CASES = (
    (2, 4, False, "bf16", 90),
    (4, 8, False, "bf16", 90),
    (4, 8, True, "fp32", 80),
    (3, 6, False, "fp64", 90),
    (8, 16, False, "fp16", 90),
    (8, 32, True, "fp32", 90),
)
ELEMENTS = {"fp16": tl.float16, "bf16": tl.bfloat16}
GEOMETRY = ("total", "a_row", "rows_a_batch", "blocks_a_batch", "rows", "cols", "batch_stride", "row_stride", "col_stride", "units")
NUMBERS = {"rounds": "i32", "sweeps": "i32", "first_step": "fp32", "omega": "fp32", "grain": "fp32", "rounding": "fp32"}


def types(stored, computed, word, packed):
    """The type of every argument that is no constant."""
    return {
        **dict.fromkeys(GEOMETRY, "i64"),
        **NUMBERS,
        **dict.fromkeys(("X", "S", "A"), f"*{stored}"),
        **dict.fromkeys(("u", "v", "ru", "rw", "power", "thresholds"), f"*{computed}"),
        **dict.fromkeys(("objective", "size", "gap", "slack", "sums"), "*fp64"),
        **dict.fromkeys(("few", "chosen", "good"), "*i8"),
        **dict.fromkeys(("equal", "zero"), "*i32"),
        "words": word,
        "mask": "*i32" if packed else "*i8",
    }


def build(name, arguments, constants, capability):
    kernel = getattr(kernels, name)
    assert isinstance(kernel, triton.JITFunction)
    constants = {key: value for key, value in constants.items() if key in kernel.arg_names}
    signature = {key: "constexpr" if key in constants else arguments[key] for key in kernel.arg_names}
    target = GPUTarget("cuda", capability, 32)
    compiled = triton.compile(ASTSource(kernel, signature, constants), target=target, options={"num_warps": 4})
    print(name, f"sm_{capability}", len(compiled.asm["cubin"]), flush=True)


def main():
    for n, m, at_most, stored, capability in CASES:
        wide = stored == "fp64"
        dtype = torch.float64 if wide else torch.float32
        middle = engine._middle(n, m)
        arguments = types(stored, "fp64" if wide else "fp32", "*i64" if m > 31 else "*i32", m % 4 == 0)
        pairs, first = engine._pairs(2)
        constants = {
            "N": n, "M": m, "AT_MOST": at_most, "ABSOLUTE": True, "COMPUTE": engine._compute(dtype), "BLOCK": engine.LANES,
            "WORD": tl.int64 if m > 31 else tl.int32, "WIDTH": 4 if m % 4 == 0 else 1, "FLAT": n == 2, "WORDS": m % 4 == 0,
            "COLLECT": True, **middle, "PATTERNS": row_patterns(2), "PAIRS": pairs, "FIRST": first, "EDGES": True, "SCALED": True,
            "INFINITE": engine.INFINITE[dtype], "HUGE": engine.HUGE[dtype], "ELEMENT": ELEMENTS.get(stored), "TILES": engine.TILES,
        }  # fmt: skip
        for name in ("stage", "start", "ascend", "relax", "certify", "write_masks"):
            build(name, arguments, constants, capability)
        build("keep_groups", arguments, constants | {"NETWORK": engine._network(m, (n - 1,))}, capability)
        if m == 4:
            build("enumerate_blocks", arguments, constants, capability)
            words = arguments | {"X": "*i64"}
            build("enumerate_blocks", words, constants | {"EDGES": False, "SCALED": False}, capability)
            build("keep_groups", words, constants | {"NETWORK": engine._network(m, (n - 1,))}, capability)


if __name__ == "__main__":
    main()
