"""`nmsolve solve` and `verify` for one array in a .npy file."""

from __future__ import annotations

import io
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy
from numpy.lib.format import MAGIC_PREFIX
from numpy.typing import NDArray

import nmsolve
from nmsolve.certificates import objective
from nmsolve.cli.printing import show, show_aside, stands
from nmsolve.disk import open_file
from nmsolve.output import Output
from nmsolve.pattern import Pattern
from nmsolve.result import relative_gap
from nmsolve.validate import read_scores

#: Names under which another kind of file than a .npy is expected.
OTHER_KINDS = (
    *(".npz", ".pt", ".pth", ".bin", ".ckpt", ".pkl", ".h5", ".gguf"),
    *(".json", ".csv", ".txt", ".html"),
)


def is_array(path: Path) -> bool:
    """Return whether a file is, or by its name should be, a .npy."""
    if path.suffix.lower() == ".npy":
        return True
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return file.read(len(MAGIC_PREFIX)) == MAGIC_PREFIX


def _load(path: Path) -> NDArray[Any]:
    with open_file(path) as file:
        if file.read(len(MAGIC_PREFIX)) != MAGIC_PREFIX:
            raise nmsolve.InputError(
                f"{path} is not a .npy file; write one with np.save(path, array)"
            )
        file.seek(0)
        try:
            array: NDArray[Any] = np.load(file, allow_pickle=False)
        except Exception as error:  # What NumPy raises for a damaged file depends on the bytes.
            raise nmsolve.InputError(f"{path} cannot be read: {error}") from error
    return array


def _warm_up(weights: NDArray[Any], pattern: Pattern, options: dict[str, Any]) -> None:
    """Solve the last blocks, so that the time reported for all of them has no kernel to load.
    Errors are left to the call that counts.
    """
    m = pattern.m
    if weights.ndim < 2:
        return
    rows, cols = weights.shape[-2:]
    corner: tuple[Any, ...] = (
        *(0,) * (weights.ndim - 2),
        slice(-(m + rows % m), None),
        slice(-(m + cols % m), None),
    )
    scores = options.get("scores")
    if scores is not None and scores.shape == weights.shape:
        options = options | {"scores": scores[corner]}
    with suppress(nmsolve.NMSolveError):
        nmsolve.solve(weights[corner], pattern, **options)


def solve_array(
    path: Path,
    pattern: Pattern,
    scores: Path | None,
    *,
    options: dict[str, Any],
    out: Path | None,
    force: bool,
) -> int:
    """Solve an array, print the result, and write the mask if there is a place for it. Return the
    exit code.

    options : of `nmsolve.solve`.
    """
    inputs = [path] if scores is None else [path, scores]
    with nullcontext() if out is None else Output(out, inputs=inputs, force=force) as output:
        if output is not None and output.is_file and output.path.suffix.lower() in OTHER_KINDS:
            raise nmsolve.InputError(
                f"a mask is written as .npy, or bit-packed as .safetensors, and {out} would be "
                "taken for neither"
            )
        weights = _load(path)
        if scores is not None:
            options = options | {"scores": _load(scores)}
        _warm_up(weights, pattern, options)
        result = nmsolve.solve(weights, pattern, **options)
        tell = show_aside if output is not None and output.stdout else show
        tell(f"pattern    {result.pattern} on {weights.shape}, density {result.mask.mean():.4f}")
        tell(f"method     {result.method}")
        tell(f"status     {result.status.value}")
        tell(f"objective  {result.objective:.12g}")
        tell(f"bound      {_number(result.bound, '.12g')}")
        tell(f"gap        {_number(result.gap, '.1e')}")
        seconds, speed = result.stats["seconds"], result.stats["weights_per_second"] / 1e6
        tell(
            f"speed      {speed:.3g} Mw/s ({seconds:.3g} s, threads: {result.stats['threads']}, "
            "kernels loaded)"
        )
        if output is not None:
            output.write(*_as_npy(result.mask))
            stands()
            tell(f"mask       {out}")
    return 0


def _as_npy(mask: NDArray[np.bool_]) -> tuple[bytes, memoryview]:
    """Return what np.save writes: a header, and the mask, which is not copied."""
    whole, header = np.ascontiguousarray(mask), io.BytesIO()
    npy.write_array_header_1_0(header, npy.header_data_from_array_1_0(whole))
    return header.getvalue(), whole.reshape(-1).view(np.uint8).data


def _number(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)


def verify_array(path: Path, pattern: Pattern, *, padding: str, compared: Path | None) -> int:
    """Check an array, print what was found, and compare a mask with the optimum of the weights if
    they are given. Return the exit code.
    """
    mask = _load(path)
    report = nmsolve.verify(mask, pattern, padding=padding)
    stands()
    show(report)
    if not report:
        return 1
    if compared is not None:
        weights = _load(compared)
        if mask.dtype != np.bool_ or mask.shape != weights.shape:
            raise nmsolve.InputError(
                f"--weights needs a bool mask of their shape {weights.shape}, but {path} is "
                f"{mask.dtype} {mask.shape}"
            )
        best = nmsolve.solve(weights, pattern, padding=padding)
        best.verify(weights)
        kept = objective(read_scores(weights, None, best.pattern), mask)
        bound = best.objective if best.bound is None else best.bound
        show(
            f"kept |W| {kept:.12g}, certified bound {bound:.12g}, gap "
            f"{relative_gap(kept, bound):.1e}"
        )
    return 0
