"""Compile every Triton kernel, as the engine launches it, for NVIDIA GPUs that need not be there,
and count what it needs.

A program of its own, run by test_kernels.py: Triton chooses compiler or interpreter when
kernels are defined. A driver that only names a target makes Triton bind and specialise real calls
on CPU tensors, compile them to machine code, and stop there.

Prints a line of JSON a kernel. shares: how many lanes share a block; solves: how many groups a lane
solves side by side; spills: loads from and stores to local memory in the machine code; loops:
instructions and spills of every loop's body, the longest first; pipes: how many instructions go to
each unit of a multiprocessor, in all and in the longest loop without a loop inside. Last, a line
for each kernel of the ascent: how often it is compiled for all numbers of blocks. FEW without an
argument, all cases for `all`; `python tests/tensors/compile_kernels.py 4:8T/float32 …` compiles
cases of one's own for sm_90.
"""

import json
import re
import subprocess
import sys
import tempfile
from collections import Counter

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.runtime import driver
from triton.runtime.jit import JITFunction

from nmsolve.pattern import Pattern
from nmsolve.torch.device import triton_engine as engine
from nmsolve.torch.device.problem import Problem

#: (pattern, dtype of X, its shape, compute capability). To the compiler 1 is a constant, and
#: multiples of 16 are special.
CASES = (
    ("2:4T", torch.bfloat16, (1, 64, 4096), 90),
    ("<=7:18T", torch.float16, (1, 36, 35), 90),
    ("<=2:4T", torch.float32, (1, 4, 4), 80),
    ("3:6T", torch.float64, (2, 12, 18), 90),
    ("4:8T", torch.float32, (1, 64, 64), 90),
    ("8:16T", torch.float32, (1, 64, 64), 90),
    ("16:32T", torch.float32, (1, 64, 64), 90),
)
#: Every kernel, with a lane for each block and with several lanes that share one.
FEW = CASES[:2]


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


def disassembled(cubin):
    """Registers a lane, shared memory, and the machine code: instructions, and by label which of
    them it stands before.
    """
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        tools = triton.knobs.nvidia
        usage, code = (
            subprocess.run(
                [tool.path, flag, file.name], capture_output=True, text=True, check=True
            ).stdout
            for tool, flag in ((tools.cuobjdump, "-res-usage"), (tools.nvdisasm, "-c"))
        )
    registers, shared = map(int, re.search(r"REG:(\d+) .*?SHARED:(\d+)", usage).groups())
    instructions, labels = [], {}
    for line in code.splitlines():
        if label := re.match(r"\s*(\.L_x_\d+):", line):
            labels[label[1]] = len(instructions)
        elif found := re.match(r"\s+/\*[0-9a-f]{4,}\*/\s+(.*?);", line):
            instructions.append(found[1])
    return registers, shared, instructions, labels


def spills(instructions):
    return sum(bool(re.match(r"(@!?U?P\d+ )?(STL|LDL)", text)) for text in instructions)


#: Which unit executes an opcode; the integer unit, which also compares and selects, all that are
#: not named.
PIPES = {
    **dict.fromkeys(("FADD", "FMUL", "FFMA", "IMAD"), "fma"),
    **dict.fromkeys(("DADD", "DMUL", "DFMA", "DSETP"), "fp64"),
    **dict.fromkeys(("F2F", "I2F", "F2I", "MUFU", "POPC", "FRND"), "conversion"),
    **dict.fromkeys(("LDG", "STG", "LDS", "STS", "LDL", "STL", "SHFL"), "memory"),
    **dict.fromkeys(
        (
            "BRA",
            "BSSY",
            "BSYNC",
            "EXIT",
            "NOP",
            "CALL",
            "RET",
            "WARPSYNC",
            "BREAK",
            "LDC",
            "S2R",
            "BAR",
        ),
        "control",
    ),
}


def pipes(instructions):
    """How many instructions go to each unit. Uniform ones have a data path of their own."""
    opcodes = (re.sub(r"^@!?U?P\d+ ", "", text).split()[0].split(".")[0] for text in instructions)
    return dict(
        Counter(
            "control" if code.startswith("U") else PIPES.get(code, "integer") for code in opcodes
        )
    )


def innermost(instructions, labels):
    """The longest loop that has no other inside."""
    bodies = [
        body for body in loops(instructions, labels) if sum("BRA" in text for text in body) == 1
    ]
    return max(bodies, key=len, default=[])


def loops(instructions, labels):
    """The bodies of all loops: from a label to a branch back to it."""
    for place, text in enumerate(instructions):
        target = re.search(r"BRA.*`\((\.L_x_\d+)\)", text)
        if target and labels.get(target[1], place + 1) < place:
            yield instructions[labels[target[1]] : place + 1]


def compile_only(launch, case):
    def run(self, *arguments, grid, warmup, **options):
        compiled = launch(self, *arguments, grid=grid, warmup=True, **options)
        registers, shared, instructions, labels = disassembled(compiled.asm["cubin"])
        bodies = sorted(loops(instructions, labels), key=len, reverse=True)
        row = {
            "case": case[0],
            "kernel": self.fn.__name__,
            "shares": options.get("SPLIT", 1),
            "solves": max(1, options.get("BLOCK", 0) // 128),
            "target": f"sm_{compiled.metadata.target.arch}",
            "registers": registers,
            "shared": shared,
            "instructions": len(instructions),
            "spills": spills(instructions),
            "loops": [[len(body), spills(body)] for body in bodies],
            "pipes": [pipes(instructions), pipes(innermost(instructions, labels))],
        }
        print(json.dumps(row), flush=True)

    return run


def steps(text, dtype, shape):
    """Every call that solving a matrix makes, whatever it would return."""
    pattern = Pattern.parse(text)
    n, m = pattern.n, pattern.m
    X = torch.zeros(shape, dtype=dtype)
    mask = torch.zeros((shape[0], -(-shape[1] // m) * m, -(-shape[2] // m) * m), dtype=torch.bool)
    turned, turned_mask = (
        X.transpose(1, 2),
        torch.zeros((shape[0], mask.shape[2], mask.shape[1]), dtype=torch.bool),
    )
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    if m <= 8:
        engine.keep_groups(X, mask, n, m, pattern.at_most, True, compute, False)
        engine.keep_groups(turned, turned_mask, n, m, pattern.at_most, False, compute, True)
    if m == 4:
        engine.enumerate_blocks(X, mask, n, True, compute, False)
        engine.enumerate_blocks(turned[:, :-1], turned_mask, n, True, compute, True)
    problem = Problem(pattern, True, compute, 2.5e-7)
    for collect in (False, True) if m <= 4 else (False,):
        blocks, _ = engine.ascend_first(X, mask, problem, collect)
        blocks.open.fill_(1)
        engine.ascend_rest(X, mask, problem, blocks, blocks.open.numel(), collect)


def variants(launch):
    """How many times Triton compiles the ascent's kernels for numbers of blocks of all kinds: a
    line of JSON a kernel.
    """
    found = {}

    def run(self, *arguments, **options):
        compiled = launch(self, *arguments, **(options | {"warmup": True}))
        found.setdefault(self.fn.__name__, set()).add(compiled.hash)

    JITFunction.run = run
    problem = Problem(Pattern.parse("2:4T"), True, torch.float32, 2.5e-7)
    for rows in (4, 8, 12, 64, 68):
        X = torch.zeros((1, rows, 64))
        blocks, _ = engine.ascend_first(X, X != 0, problem, False)
        for count in (1, 2, 15, 16):
            blocks.open.zero_()[:count] = 1
            engine.ascend_rest(X, X != 0, problem, blocks, count, False)
    for kernel, hashes in found.items():
        print(json.dumps({"kernel": kernel, "variants": len(hashes)}), flush=True)


def main():
    engine._lanes = lambda X, most=engine.LANES: most  # as for a tensor on a GPU
    launch = JITFunction.run
    own = [
        (text, getattr(torch, dtype), (1, 64, 4096), 90)
        for text, dtype in (case.split("/") for case in sys.argv[1:] if case != "all")
    ]
    for case in own or (CASES if "all" in sys.argv else FEW):
        driver.set_active(Target(case[-1]))
        JITFunction.run = compile_only(launch, case)
        steps(*case[:-1])
    if not own:
        variants(launch)


if __name__ == "__main__":
    main()
