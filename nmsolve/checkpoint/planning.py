"""Which tensors of a checkpoint get which pattern, and why the others get none.

A checkpoint knows names and shapes, not modules. What a model's code would tell is read from those, by the rules of this file,
which `docs/checkpoints.md` lists; where they cannot tell, the tensor stays dense and the reason says so.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from nmsolve.checkpoint.stored import Stored, WeightFile
from nmsolve.errors import InputError
from nmsolve.globs import Patterns, check_used, matches, to_globs, to_patterns, unchosen
from nmsolve.pattern import Pattern

PADDINGS = ("skip", "error", "pad", "dense")
#: That NumPy has, less one: solving needs a view with one more.
MOST_AXES = 63
#: Modules that look up rows. GPT-NeoX calls its last linear layer embed_out.
_TABLES = re.compile(r"embed(?!_out)|^(wte|wpe|shared|relative_attention_bias)$", re.IGNORECASE)
#: Parameters, other than a module's "weight", that no product reduces over.
_OTHERS = re.compile(r"bias|norm|scale|token|position|zero|_log$", re.IGNORECASE)
_BY_NAME = "if it is a weight, include it by its full name"
#: Layers that Hugging Face builds as Conv1D, with weights (in, out), in some models (GPT-2), and as nn.Linear in others.
_CONV1D = re.compile(r"(^|\.)(c_attn|c_proj|c_fc|q_attn)\.weight$")


@dataclass(frozen=True, slots=True, kw_only=True)
class TensorPlan:
    """What is planned for a tensor: a pattern with groups along an axis, or None and the reason."""

    file: str
    tensor: Stored
    pattern: Pattern | None
    axis: int | None
    padding: str | None
    reason: str | None


def plan_tensors(
    files: Sequence[WeightFile], pattern: Patterns, include: str | Iterable[str] | None, exclude: str | Iterable[str], padding: str
) -> tuple[TensorPlan, ...]:
    """One entry a tensor, in the order of the files and of the tensors in them.

    Raises
    ------
    PatternError, InputError
        For a pattern or option that does not exist, a glob that matches nothing, with padding="error" a shape that does not divide.
    """
    if padding not in PADDINGS:
        raise InputError(f"padding must be one of {', '.join(map(repr, PADDINGS))}, got {padding!r}")
    patterns = to_patterns(pattern)
    included, excluded = None if include is None else to_globs(include, "include"), to_globs(exclude, "exclude")
    names = [tensor.name for file in files for tensor in file.tensors]
    used = {"include": included or (), "exclude": excluded, "pattern": pattern if isinstance(pattern, Mapping) else ()}
    for argument, globs in used.items():
        check_used(globs, names, argument, "checkpoint")
    shapes = {tensor.name: tensor.shape for file in files for tensor in file.tensors}
    transposed = _has_conv1d(shapes)
    plans = []
    for file in files:
        for tensor in file.tensors:
            glob = next((glob for glob in patterns if matches(tensor.name, glob)), None)
            chosen = None if glob is None else patterns[glob]
            reason = unchosen(tensor.name, included, excluded)
            axis: int | None = None
            if reason is None and chosen is None:
                reason = "no pattern is given for it" if glob is None else f"kept dense by the pattern of {glob!r}"
            if reason is None:
                assert chosen is not None
                by_name = included is not None and tensor.name in included
                axis, reason = _axis(tensor, file.arrays, by_name, shapes, transposed, chosen)
            if reason is None:
                assert chosen is not None
                assert axis is not None
                reason = indivisible(tensor.shape, axis, chosen, padding)
                if reason is not None and padding == "error":
                    raise InputError(
                        f"{file.path}: tensor {tensor.name!r} of shape {tensor.shape}, pattern {chosen}: {reason}; exclude it, "
                        f"or choose another padding"
                    )
            plans.append(
                TensorPlan(
                    file=file.name,
                    tensor=tensor,
                    pattern=None if reason else chosen,
                    axis=None if reason else axis,
                    padding=None if reason else ("error" if padding == "skip" else padding),
                    reason=reason,
                )
            )
    return tuple(plans)


def other_axis(axis: int) -> int:
    """The axis that, with the one that groups lie along, spans a weight's matrices."""
    return axis - 1 if axis else 1


def _axis(
    tensor: Stored, array: bool, by_name: bool, shapes: Mapping[str, tuple[int, ...]], transposed: bool, pattern: Pattern
) -> tuple[int | None, str | None]:
    """The axis that groups lie along; or None, and why a tensor cannot have a pattern.

    by_name : whether the user named this very tensor, so that what its name suggests does not count.
    """
    shape, name = tensor.shape, tensor.name
    if len(shape) < 2:
        return None, "fewer than two axes"
    if 0 in shape:
        return None, "it has no element"
    if len(shape) > MOST_AXES:
        return None, f"more than {MOST_AXES} axes"
    if tensor.element is None:
        lost = "; bfloat16 that np.save stored loses its name" if tensor.dtype in ("|V2", "<V2") else ""
        return None, f"dtype {tensor.dtype} is not solved{lost}"
    if array:
        return len(shape) - 1, None
    module, _, last = name.rpartition(".")
    if "parametrizations" in module.split("."):
        return None, "parametrized: a weight is computed from it, and is not in the checkpoint"
    own = module.rpartition(".")[2] if last == "weight" and module else last
    if not by_name and len(shape) <= 3 and _TABLES.search(own):
        return None, f"by its name an embedding, which reduces over nothing; {_BY_NAME}"
    if not by_name and own == last and _OTHERS.search(own):
        return None, f"by its name no weight that products reduce over; {_BY_NAME}"
    if len(shape) == 2:
        flipped = transposed if _CONV1D.search(name) else _fits_bias(name, shapes) == 1
        return (0 if flipped else 1), None
    if last == "weight" and len(shape) <= 5 and "experts" not in name:
        if _fits_bias(name, shapes) == 1:
            return None, "its bias belongs to its second axis: a transposed convolution, which no sparse kernel serves"
        return 1, None
    if len(shape) == 3 and (by_name or (pattern.transposable and "experts" in name)):
        return 2, None  # matrices one behind the other; a transposable mask is one for both orientations
    return None, "three axes or more, and not named as a convolution: which axis is reduced over is not known"


def _fits_bias(name: str, shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    """The one axis of a weight, 0 or 1, whose size is that of its bias; None if that is both, or neither."""
    bias = shapes.get(f"{name.removesuffix('weight')}bias") if name.endswith("weight") else None
    shape = shapes[name]
    if bias is None or len(bias) != 1:
        return None
    fitting = [axis for axis in (0, 1) if shape[axis] == bias[0]]
    return fitting[0] if len(fitting) == 1 else None


def _has_conv1d(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether a checkpoint's layers that may be Conv1D are: their biases fit the second axis, and never only the first."""
    fits = {_fits_bias(name, shapes) for name, shape in shapes.items() if _CONV1D.search(name) and len(shape) == 2}
    return 1 in fits and 0 not in fits


def indivisible(shape: tuple[int, ...], axis: int, pattern: Pattern, padding: str) -> str | None:
    """Why a shape does not hold a pattern."""
    m, columns, rows = pattern.m, shape[axis], shape[other_axis(axis)]
    unit = "block" if pattern.transposable else "group"
    if padding in ("pad", "dense"):
        if padding == "dense" and (columns < m or rows < pattern.rows):
            return f"smaller than one {unit} of {m}"
        return None
    if columns % m:
        return f"its axis {axis} does not consist of {unit}s of {m}"
    if rows % pattern.rows:
        return f"its axis {other_axis(axis)} does not consist of {unit}s of {m}"
    return None
