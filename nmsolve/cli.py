"""The command line: `nmsolve demo | solve | verify | diversity`. Parses, calls, prints.

Exit codes: 0, 1 for a mask that violates its pattern, 2 for input that cannot be worked with.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

import nmsolve
from nmsolve.api import METHODS
from nmsolve.certify import objective
from nmsolve.result import relative_gap
from nmsolve.validate import PADDINGS, read_scores


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return its exit code."""
    arguments = _parser().parse_args(argv)
    try:
        code: int = arguments.run(arguments)
    except (nmsolve.NMSolveError, OSError) as error:
        print("nmsolve: error:", " ".join(str(error).split()), file=sys.stderr)
        return 2
    return code


def _command(commands: Any, name: str, summary: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=summary, description=summary[0].upper() + summary[1:] + ".")
    return command


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="nmsolve", description="The best N:M sparsity mask of a weight matrix, with a proof.")
    parser.add_argument("--version", action="version", version=f"nmsolve {nmsolve.__version__}")
    commands = parser.add_subparsers(required=True, metavar="command")
    pattern: dict[str, Any] = {"metavar": "PATTERN", "help": "2:4 (row-wise), 2:4T (transposable), '<=2:4T' (at most 2)"}
    padding: dict[str, Any] = {
        "choices": PADDINGS,
        "default": "error",
        "help": "for a shape that does not divide (default: %(default)s)",
    }
    at_most: dict[str, Any] = {"action": "store_true", "default": None, "help": "allow fewer than n"}

    command = _command(commands, "demo", "every method on a small trained network: a table, masks and a picture")
    command.add_argument(
        "--out", metavar="DIR", type=Path, default=Path("nmsolve-demo"), help="where masks and picture go; default: ./%(default)s"
    )
    command.set_defaults(run=_demo)

    command = _command(commands, "solve", "find the mask of an array of weights")
    command.add_argument(
        "weights",
        metavar="WEIGHTS.npy",
        type=Path,
        help="(..., rows, cols), as np.save writes it; groups run along the last axis, so a convolution's as (kernel ..., out, in)",
    )
    command.add_argument("pattern", **pattern)
    command.add_argument("--scores", metavar="SCORES.npy", type=Path, help="what to maximise instead of |W|, of the same shape")
    command.add_argument("--method", choices=METHODS, default="auto", help="default: %(default)s, which is exact")
    command.add_argument("--at-most", **at_most)
    command.add_argument("--threads", type=int, help="default: all processors")
    command.add_argument("--padding", **padding)
    command.add_argument("--out", metavar="MASK.npy", type=Path, help="where to write the mask (bool)")
    command.set_defaults(run=_solve)

    command = _command(commands, "verify", "check a mask, or masked weights; exits with 1 if the pattern is violated")
    command.add_argument("mask", metavar="MASK.npy", type=Path, help="bool; numbers are taken as weights, at most n nonzero")
    command.add_argument("pattern", **pattern)
    command.add_argument("--weights", metavar="W.npy", type=Path, help="also compare the kept |W| with the optimum's")
    command.add_argument("--at-most", **at_most)
    command.add_argument("--padding", **padding)
    command.set_defaults(run=_verify)

    command = _command(commands, "diversity", "how many masks a pattern allows")
    command.add_argument("pattern", **pattern)
    command.add_argument("rows", metavar="ROWS", type=int, help="of the matrix")
    command.add_argument("cols", metavar="COLS", type=int, help="of the matrix")
    command.set_defaults(run=_diversity)
    return parser


def _load(path: Path) -> NDArray[Any]:
    with path.open("rb") as file:
        if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
            raise nmsolve.InputError(f"{path} is not a .npy file; write one with np.save(path, array)")
        file.seek(0)
        try:
            array: NDArray[Any] = np.load(file, allow_pickle=False)
        except Exception as error:  # What NumPy raises for a damaged file depends on the bytes.
            raise nmsolve.InputError(f"{path} cannot be read: {error}") from error
    return array


def _demo(arguments: argparse.Namespace) -> int:
    from nmsolve.demo import demo

    demo(arguments.out)
    return 0


def _warm_up(weights: NDArray[Any], pattern: str, options: dict[str, Any]) -> None:
    """Solve the last blocks, so that the time reported for all of them has no kernel to load. Errors are left to the real call."""
    m = nmsolve.Pattern.parse(pattern).m
    if weights.ndim < 2:
        return
    rows, cols = weights.shape[-2:]
    corner: tuple[Any, ...] = (*(0,) * (weights.ndim - 2), slice(-(m + rows % m), None), slice(-(m + cols % m), None))
    scores = options.get("scores")
    if scores is not None and scores.shape == weights.shape:
        options = options | {"scores": scores[corner]}
    with suppress(nmsolve.NMSolveError):
        nmsolve.solve(weights[corner], pattern, **options)


def _solve(arguments: argparse.Namespace) -> int:
    weights = _load(arguments.weights)
    options = {name: getattr(arguments, name) for name in ("method", "at_most", "threads", "padding")}
    if arguments.scores is not None:
        options["scores"] = _load(arguments.scores)
    _warm_up(weights, arguments.pattern, options)
    result = nmsolve.solve(weights, arguments.pattern, **options)
    print(f"pattern    {result.pattern} on {weights.shape}, density {result.mask.mean():.4f}")
    print(f"method     {result.method}")
    print(f"status     {result.status.value}")
    print(f"objective  {result.objective:.12g}")
    print(f"bound      {_number(result.bound, '.12g')}")
    print(f"gap        {_number(result.gap, '.1e')}")
    seconds, speed = result.stats["seconds"], result.stats["weights_per_second"] / 1e6
    print(f"speed      {speed:.3g} Mw/s ({seconds:.3g} s, threads: {result.stats['threads']}, kernels loaded)")
    if arguments.out is not None:
        with arguments.out.open("wb") as file:
            np.save(file, result.mask)
        print(f"mask       {arguments.out}")
    return 0


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def _verify(arguments: argparse.Namespace) -> int:
    mask = _load(arguments.mask)
    report = nmsolve.verify(mask, arguments.pattern, at_most=arguments.at_most, padding=arguments.padding)
    print(report)
    if not report:
        return 1
    if arguments.weights is not None:
        weights = _load(arguments.weights)
        if mask.dtype != np.bool_ or mask.shape != weights.shape:
            raise nmsolve.InputError(
                f"--weights needs a bool mask of their shape {weights.shape}, but {arguments.mask} is {mask.dtype} {mask.shape}"
            )
        best = nmsolve.solve(weights, arguments.pattern, at_most=arguments.at_most, padding=arguments.padding)
        best.verify(weights)
        kept = objective(read_scores(weights, None, best.pattern), mask)
        bound = best.objective if best.bound is None else best.bound
        print(f"kept |W| {kept:.12g}, certified bound {bound:.12g}, gap {relative_gap(kept, bound):.1e}")
    return 0


def _diversity(arguments: argparse.Namespace) -> int:
    print(nmsolve.diversity(arguments.pattern, shape=(arguments.rows, arguments.cols)))
    return 0
