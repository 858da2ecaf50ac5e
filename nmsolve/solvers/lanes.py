"""Sixteen blocks side by side: the vector values that kernels are written in.

A kernel of this library works on 16 blocks (or groups) at once, one per vector lane, so that a
branch-free algorithm costs one instruction for 16 blocks. LLVM's loop vectoriser does not do this
reliably for a selection network, so the straight-line parts ("lane programs") are emitted as LLVM
vectors of 16 elements through numba's `@intrinsic`, and numba code loops over them. LLVM splits a
vector into whatever registers the machine has, so the same source serves AVX-512, AVX2 and NEON.

`Vec` overloads the arithmetic, so a lane program reads like NumPy; the arithmetic core of each
program also runs on NumPy arrays, which is how the tests check it without a compiler.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core.registry import cpu_target
from numba.extending import intrinsic

LANES = 16

_I1 = ir.IntType(1)
_I8 = ir.IntType(8)
_I16 = ir.IntType(16)
_I32 = ir.IntType(32)
_I64 = ir.IntType(64)
ELEMENT = {
    "f4": ir.FloatType(),
    "f8": ir.DoubleType(),
    "i1": _I8,
    "i2": _I16,
    "i4": _I32,
    "i8": _I64,
}


class Vec:
    """A vector of LANES values inside a function under construction."""

    __slots__ = ("builder", "value")
    __array_ufunc__ = None

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder = builder
        self.value = value

    @property
    def element(self) -> Any:
        return self.value.type.element

    @property
    def _floating(self) -> bool:
        return isinstance(self.element, (ir.FloatType, ir.DoubleType))

    def _of(self, other: Any) -> Any:
        return (
            other.value
            if isinstance(other, Vec)
            else constant(self.builder, other, self.element).value
        )

    def _new(self, value: Any) -> Vec:
        return Vec(self.builder, value)

    def __add__(self, other: Any) -> Vec:
        op = self.builder.fadd if self._floating else self.builder.add
        return self._new(op(self.value, self._of(other)))

    def __sub__(self, other: Any) -> Vec:
        op = self.builder.fsub if self._floating else self.builder.sub
        return self._new(op(self.value, self._of(other)))

    def __mul__(self, other: Any) -> Vec:
        op = self.builder.fmul if self._floating else self.builder.mul
        return self._new(op(self.value, self._of(other)))

    def __and__(self, other: Any) -> Vec:
        return self._new(self.builder.and_(self.value, self._of(other)))

    def __or__(self, other: Any) -> Vec:
        return self._new(self.builder.or_(self.value, self._of(other)))

    def __invert__(self) -> Vec:
        return self._new(self.builder.not_(self.value))

    def _compare(self, op: str, other: Any) -> Vec:
        if self._floating:
            return self._new(self.builder.fcmp_ordered(op, self.value, self._of(other)))
        return self._new(self.builder.icmp_signed(op, self.value, self._of(other)))

    def __gt__(self, other: Any) -> Vec:
        return self._compare(">", other)

    def __lt__(self, other: Any) -> Vec:
        return self._compare("<", other)

    def equals(self, other: Any) -> Vec:
        return self._compare("==", other)

    def shift_left(self, bits: int) -> Vec:
        return self._new(self.builder.shl(self.value, self._of(bits)))

    def bitcast(self, element: Any) -> Vec:
        return self._new(self.builder.bitcast(self.value, ir.VectorType(element, LANES)))

    def widen(self, element: Any) -> Vec:
        """To a wider type: floats exactly, integers with zeros above."""
        target = ir.VectorType(element, LANES)
        if self.value.type == target:
            return self
        if isinstance(element, (ir.FloatType, ir.DoubleType)):
            return self._new(self.builder.fpext(self.value, target))
        return self._new(self.builder.zext(self.value, target))


def constant(builder: Any, number: Any, element: Any) -> Vec:
    """The same number in every lane."""
    return Vec(builder, ir.Constant(ir.VectorType(element, LANES), [number] * LANES))


def select(condition: Vec, yes: Vec, no: Vec) -> Vec:
    return Vec(yes.builder, yes.builder.select(condition.value, yes.value, no.value))


def maximum(a: Vec, b: Vec) -> Vec:
    """The larger, lane by lane; b where they are equal (no NaN comes here)."""
    return select(a > b, a, b)


def minimum(a: Vec, b: Vec) -> Vec:
    """The smaller, lane by lane; b where they are equal (no NaN comes here)."""
    return select(a < b, a, b)


def splat(builder: Any, scalar: Any) -> Vec:
    """A run-time scalar in every lane."""
    vector = ir.VectorType(scalar.type, LANES)
    first = builder.insert_element(ir.Constant(vector, ir.Undefined), scalar, ir.Constant(_I32, 0))
    zeros = ir.Constant(ir.VectorType(_I32, LANES), [0] * LANES)
    return Vec(builder, builder.shuffle_vector(first, ir.Constant(vector, ir.Undefined), zeros))


def _pointer(builder: Any, array: Any, offset: Any, kind: Any) -> Any:
    return builder.bitcast(builder.gep(array, [offset]), kind.as_pointer())


def _align(element: Any) -> int:
    return (
        8
        if element in (ir.DoubleType(), _I64)
        else 4
        if element in (ir.FloatType(), _I32)
        else element.width // 8
    )


def load(builder: Any, array: Any, offset: Any) -> Vec:
    """LANES consecutive elements from a data pointer, `offset` elements in."""
    element = array.type.pointee
    value = builder.load(_pointer(builder, array, offset, ir.VectorType(element, LANES)))
    value.align = _align(element)
    return Vec(builder, value)


def store(builder: Any, vec: Vec, array: Any, offset: Any) -> None:
    instruction = builder.store(vec.value, _pointer(builder, array, offset, vec.value.type))
    instruction.align = 1


def load_bits(builder: Any, array: Any, offset: Any) -> Vec:
    """One boolean per lane, kept as the 16 bits of a uint16."""
    word = builder.load(builder.gep(array, [offset]))
    return Vec(builder, builder.bitcast(word, ir.VectorType(_I1, LANES)))


def store_bits(builder: Any, vec: Vec, array: Any, offset: Any) -> None:
    builder.store(builder.bitcast(vec.value, _I16), builder.gep(array, [offset]))


def unzip(vectors: list[Vec]) -> list[Vec]:
    """From LANES * k consecutive elements, as k vectors, to k vectors of stride k (k a power of
    two).
    """
    k = len(vectors)
    if k == 1:
        return vectors
    even = [
        _shuffle(a, b, range(0, 2 * LANES, 2))
        for a, b in zip(vectors[::2], vectors[1::2], strict=True)
    ]
    odd = [
        _shuffle(a, b, range(1, 2 * LANES, 2))
        for a, b in zip(vectors[::2], vectors[1::2], strict=True)
    ]
    halves = unzip(even), unzip(odd)
    return [halves[j % 2][j // 2] for j in range(k)]


def interleave(vectors: list[Vec]) -> list[Vec]:
    """The inverse of `unzip`: element j of lane l becomes consecutive element l * k + j."""
    k = len(vectors)
    if k == 1:
        return vectors
    even, odd = interleave(vectors[::2]), interleave(vectors[1::2])
    low = [x for i in range(LANES // 2) for x in (i, LANES + i)]
    high = [x + LANES // 2 for x in low]
    return [_shuffle(a, b, order) for a, b in zip(even, odd, strict=True) for order in (low, high)]


def _shuffle(a: Vec, b: Vec, order: Any) -> Vec:
    mask = ir.Constant(ir.VectorType(_I32, LANES), list(order))
    return Vec(a.builder, a.builder.shuffle_vector(a.value, b.value, mask))


def lane_offsets(builder: Any, stride: Any) -> Vec:
    """0, stride, 2 stride, … as 64-bit lanes."""
    return splat(builder, stride) * Vec(
        builder, ir.Constant(ir.VectorType(_I64, LANES), list(range(LANES)))
    )


def gather(builder: Any, array: Any, offsets: Vec) -> Vec:
    """Elements at one 64-bit offset per lane, counted in elements from the data pointer."""
    element = array.type.pointee
    vector = ir.VectorType(element, LANES)
    result = ir.Constant(vector, ir.Undefined)
    # LLVM has a gather instruction, but plain loads are as fast and exist everywhere.
    for lane in range(LANES):
        index = ir.Constant(_I32, lane)
        item = builder.load(builder.gep(array, [builder.extract_element(offsets.value, index)]))
        result = builder.insert_element(result, item, index)
    return Vec(builder, result)


def _features() -> str:
    """Return what this machine can do, as numba tells LLVM (NUMBA_CPU_FEATURES included)."""
    return str(cpu_target.target_context.codegen()._tm_features)


def to_scores(raw: Vec, kind: str, absolute: Any) -> Vec:
    """Bits as stored to scores: the exact float32 (float64 for "f8") value, its sign cleared if
    `absolute`.

    `absolute` is a run-time 64-bit integer, 0 or 1. "bf16" and "f16" come as 16-bit integers. A
    float16 is widened by arithmetic that is exact for subnormals too and needs nothing of the
    machine.
    """
    builder = raw.builder
    if kind == "f16" and "+f16c" in _features():
        bits = Vec(
            builder,
            builder.fpext(raw.bitcast(ir.HalfType()).value, ir.VectorType(ELEMENT["f4"], LANES)),
        ).bitcast(_I32)
    elif kind == "f16":
        magnitude = (raw & 0x7FFF).widen(_I32).shift_left(13).bitcast(ELEMENT["f4"]) * 2.0**112
        sign = (raw & -0x8000).widen(_I32).shift_left(16)
        bits = magnitude.bitcast(_I32) | sign
    elif kind == "bf16":
        bits = raw.widen(_I32).shift_left(16)
    else:
        bits = raw.bitcast(_I64 if kind == "f8" else _I32)
    width = bits.element.width
    one = ir.Constant(bits.element, 1)
    flag = builder.trunc(absolute, bits.element) if width < 64 else absolute
    sign_bit = builder.shl(flag, ir.Constant(bits.element, width - 1))
    keep = builder.sub(builder.sub(ir.Constant(bits.element, 0), one), sign_bit)
    return (bits & splat(builder, keep)).bitcast(ELEMENT["f8" if kind == "f8" else "f4"])


def data(context: Any, builder: Any, array_type: Any, array: Any) -> Any:
    """The data pointer of a numba array."""
    return context.make_array(array_type)(context, builder, array).data


def store_mask(builder: Any, kept: list[Vec], mask: Any, at: Any) -> None:
    """Bytes 0 and 1 to mask from `at` on: entry j of lane l at l * len(kept) + j.

    Four booleans per lane make a 32-bit word, and words of a lane are interleaved, where their
    number is a power of two.
    """
    size = len(kept)
    if size % 4 == 0 and size & (size - 1) == 0:
        words = []
        for q in range(0, size, 4):
            word = constant(builder, 0, _I32)
            for byte in range(4):
                one = constant(builder, 1 << (8 * byte), _I32)
                word = word | select(kept[q + byte], one, constant(builder, 0, _I32))
            words.append(word)
        for q, word in enumerate(interleave(words)):
            store(builder, word, mask, builder.add(at, ir.Constant(at.type, 4 * LANES * q)))
        return
    for j, one in enumerate(kept):
        as_bytes = one.widen(_I8).value
        for lane in range(LANES):
            byte = builder.extract_element(as_bytes, ir.Constant(_I32, lane))
            builder.store(
                byte, builder.gep(mask, [builder.add(at, ir.Constant(at.type, lane * size + j))])
            )


def number(literal: Any) -> int:
    """The value of a numba integer literal type."""
    return int(literal.literal_value)


def load_line(builder: Any, array: Any, start: Any, stride: Any, m: int) -> list[Vec]:
    """The m vectors of a line."""
    offsets = [
        builder.add(start, builder.mul(stride, ir.Constant(stride.type, k))) for k in range(m)
    ]
    return [load(builder, array, offset) for offset in offsets]


def load_first(builder: Any, array: Any, m: int) -> list[Vec]:
    """The first m vectors of an array, one after the other."""
    return [load(builder, array, ir.Constant(ir.IntType(64), k * LANES)) for k in range(m)]


def pointers(context: Any, builder: Any, sig: Any, args: Any) -> list[Any]:
    """Arguments with arrays replaced by their data pointers."""
    return [
        data(context, builder, kind, value) if isinstance(kind, types.Array) else value
        for kind, value in zip(sig.args, args, strict=True)
    ]


def in_lanes(builder: Any, scalar: Any, vec: Vec) -> Vec:
    """A float64 scalar in every lane, in the vector's type."""
    return splat(
        builder, scalar if vec.element == scalar.type else builder.fptrunc(scalar, vec.element)
    )


__all__ = [
    "ELEMENT",
    "LANES",
    "Vec",
    "constant",
    "data",
    "gather",
    "in_lanes",
    "interleave",
    "intrinsic",
    "ir",
    "lane_offsets",
    "load",
    "load_bits",
    "load_first",
    "load_line",
    "maximum",
    "minimum",
    "number",
    "pointers",
    "select",
    "splat",
    "store",
    "store_bits",
    "store_mask",
    "to_scores",
    "types",
    "unzip",
]
