"""A closed world of names: weights of products that are known by how their modules are called, and
what is known to be none.

The names are those under which transformers and timm have their nn.Linear and convolutions, in all
their architectures, and nothing else. `tests/checkpoint/test_architectures.py` compares what they
say with the modules. A name that is not here is not guessed at: its tensor stays dense, and the
reason says how it is included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

from nmsolve.checkpoint.known_names import KNOWN
from nmsolve.selection import ADAPTER

#: Modules that look up rows.
_TABLE = re.compile(r"embed|^(wte|wpe|shared|relative_attention_bias|w)$", re.IGNORECASE)
#: Names that some architectures give to nn.Linear and others to routers of their own making, which
#: nothing else tells apart.
_ROUTERS = re.compile(r"router|(^|_)gate$", re.IGNORECASE)
#: A head that may stand for the embedding that it is tied to, where that is not beside it.
_HEADS = ("lm_head", "embed_out")
#: Layers that Hugging Face builds as Conv1D, with weights (in, out), in some models (GPT-2), and as
#: nn.Linear in others.
_CONV1D_LAYERS = ("c_attn", "c_proj", "c_fc", "q_attn")
#: Of nn.MultiheadAttention; its other projections have names of modules.
_ATTENTION = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
#: Of heads that are one part of a product's weight, transposed.
_READ_FROM_ABOVE = ("predictions.dense",)
#: What represents a weight in another form: names of parameters, with the names beside them that
#: show it, and what it is.
_FORMS = (
    (
        r"(^|\.)parametrizations\.",
        "parametrized: a weight is computed from it, and is not in the checkpoint",
    ),
    (
        r"(^|\.)weight_[gv]$",
        "of a weight norm: a weight is computed from it, and is not in the checkpoint",
    ),
    (
        ADAPTER,
        "of an adapter, which is added to a weight; merge it, and prune what that gives",
    ),
    (
        r"(^|[._])compressed$|(^|\.)bitmask$|[._]row_offsets$",
        "compressed: it is sparse already; decompress it first",
    ),
    (r"(^|\.)weight_(packed|shape|g_idx|zero_point)$", "of a packed weight; decompress it first"),
    (
        r"(^|\.)(qweight|qzeros|g_idx|SCB|weight_format|qweight_type)$",
        "of a quantized weight; dequantise it first",
    ),
    (r"(^|\.)(scales|(weight|input|output)_scale\w*)$", "the scales of a quantized weight"),
    (
        r"\.(absmax|quant_map|nested_absmax|nested_quant_map|quant_state\.[^.]+)$",
        "of a quantized weight; dequantise it first",
    ),
)
#: What stands beside a weight that is stored in another form, and then is not a matrix of weights
#: itself.
_BESIDE = (
    "{}.absmax",
    "{}.quant_map",
    "{}_packed",
    "{}_g_idx",
    "{}.compressed",
    "{}.bitmask",
    "{stem}SCB",
    "{stem}qweight",
)
#: A weight that is standardised before it multiplies.
_STANDARDISED = "{stem}gain"
#: What every reason says where names decide nothing.
UNKNOWN = "is not known as the name of"
_INCLUDE = (
    "if it is (out, in, …), give it a pattern by its full name, or include that beside '*' "
    "for the others"
)


class Names:
    """The tensors of one checkpoint, as far as names and shapes tell."""

    def __init__(self, shapes: Mapping[str, tuple[int, ...]]) -> None:
        self._shapes = shapes

    def form(self, name: str) -> str | None:
        """Return why a tensor is no matrix of weights, whatever its name and whoever says so."""
        for pattern, reason in _FORMS:
            if re.search(pattern, name):
                return reason
        if f"{name}_mask" in self._shapes and f"{name}_progress" in self._shapes:
            return (
                "it has a mask of its own, of a model that is being trained under masks: "
                "finalize_ that, and prune what it saves"
            )
        stem = name.removesuffix("weight")
        if name.endswith("weight") and _STANDARDISED.format(stem=stem) in self._shapes:
            return (
                "standardised: what multiplies is computed from it, and zeros would not stay zeros"
            )
        if any(mark.format(name, stem=stem) in self._shapes for mark in _BESIDE):
            return (
                "packed or quantized: its entries are not those of the weight; dequantise it first"
            )
        return None

    def axis(self, name: str) -> int | str:
        """Return the axis that products reduce over; or why none is known."""
        shape = self._shapes[name]
        module, _, last = name.rpartition(".")
        if last != "weight" or not module:
            return self._parameter(module, last, shape)
        own, above = _own_and_above(module)
        word = own.partition(".")[0]
        fits = self.fits_bias(name)
        if above in _READ_FROM_ABOVE:
            return "the module above it multiplies by it, transposed, in MobileBERT"
        if len(shape) == 2 and word in _CONV1D_LAYERS and "N" not in own:
            return self._conv1d(name, fits)
        known = KNOWN.get(len(shape), frozenset())
        if own not in known and above not in known:
            if (
                len(shape) == 2
                and fits == 0
                and not _TABLE.search(word)
                and not _ROUTERS.search(word)
            ):
                return 1  # a bias that belongs to its first axis: nothing but a product has one
            return _unknown(module, word, shape)
        if fits == 1:
            if len(shape) == 2:
                return "its bias belongs to its second axis, so it is not (out, in)"
            return (
                "its bias belongs to its second axis: a transposed convolution, which no sparse "
                "kernel serves"
            )
        if word in _HEADS and fits is None and not self._has_table(shape):
            return (
                "a head without an embedding beside it, which it may stand for; include it by its "
                "full name if it is none"
            )
        return 1

    def named_axis(self, name: str, transposable: bool) -> int | str:
        """Return the axis of a tensor that the user names, and so is a weight of a product; or why
        it is not to be known.
        """
        shape = self._shapes[name]
        axis = self.axis(name)
        if isinstance(axis, int):
            return axis
        module = name.rpartition(".")[0]
        own, above = _own_and_above(module) if module else ("", "")
        if (
            len(shape) == 2
            and not transposable
            and (own.partition(".")[0] in _CONV1D_LAYERS or above in _READ_FROM_ABOVE)
        ):
            return axis  # a transposable mask is one for both orientations
        if len(shape) == 2:
            return 0 if self.fits_bias(name) == 1 else 1
        if self.fits_bias(name) == 1:
            return (
                "its bias belongs to its second axis: a transposed convolution, which no sparse "
                "kernel serves"
            )
        if len(shape) in (4, 5) and name.endswith(".weight"):
            return 1
        if len(shape) == 3 and transposable and not name.endswith(".weight"):
            return (
                2  # matrices one behind the other; a transposable mask is one for both orientations
            )
        return "which of its axes products reduce over is not known"

    def fits_bias(self, name: str) -> int | None:
        """Return the one axis of a weight, 0 or 1, whose size is that of its bias; None if that is
        both, or neither.
        """
        bias = self._shapes.get(f"{name.rpartition('.')[0]}.bias".lstrip("."))
        shape = self._shapes[name]
        if bias is None or len(bias) != 1:
            return None
        fitting = [axis for axis in (0, 1) if shape[axis] == bias[0]]
        return fitting[0] if len(fitting) == 1 else None

    def _parameter(self, module: str, last: str, shape: tuple[int, ...]) -> int | str:
        """Of a parameter that is no module's "weight": known are those of nn.MultiheadAttention,
        which has an out_proj.
        """
        out = self._shapes.get(f"{module}.out_proj.weight".lstrip("."))
        if last in _ATTENTION and len(shape) == 2 and out is not None and len(out) == 2:
            rows = 3 * out[0] if last == "in_proj_weight" else out[0]
            if shape[0] == rows and (last != "in_proj_weight" or shape[1] == out[0]):
                return 1
        return f"{last} is not known as a weight of a product; {_INCLUDE}"

    def _conv1d(self, name: str, fits: int | None) -> int | str:
        """Of a layer that is Conv1D in some models: its bias tells, or the biases of all such
        layers.
        """
        if self._conv1d_axes not in ({0}, {1}) or fits not in (None, *self._conv1d_axes):
            return (
                "whether it is (out, in), or (in, out) as Conv1D has it, is not to be seen from "
                "biases"
            )
        return 1 if self._conv1d_axes == {0} else 0

    @cached_property
    def _conv1d_axes(self) -> set[int]:
        """The axes that biases fit of layers that may be Conv1D."""
        layers = [
            name
            for name, shape in self._shapes.items()
            if len(shape) == 2 and name.split(".")[-2:-1] != []
        ]
        fits = {
            self.fits_bias(name)
            for name in layers
            if name.endswith(".weight") and name.split(".")[-2] in _CONV1D_LAYERS
        }
        return {axis for axis in fits if axis is not None}

    def _has_table(self, shape: tuple[int, ...]) -> bool:
        """Return whether there is an embedding with as many columns."""
        return any(len(table) == 2 and table[1] == shape[1] for table in self._tables)

    @cached_property
    def _tables(self) -> list[tuple[int, ...]]:
        return [
            shape
            for name, shape in self._shapes.items()
            if name.endswith(".weight")
            and _TABLE.search(_own_and_above(name.removesuffix(".weight"))[0])
        ]


def _own_and_above(module: str) -> tuple[str, str]:
    """A module's own name, down to the numbers behind it, and the same with the name above it.

    Examples
    --------
    >>> _own_and_above("model.layers.0.mlp.fc1"), _own_and_above("layer1.0.conv2")
    (('fc1', 'mlp.fc1'), ('conv2', 'layerN.N.conv2'))
    >>> _own_and_above("head.0.1")
    ('head.N.N', 'head.N.N')
    """
    parts = ["N" if part.isdigit() else part for part in module.split(".")]
    start = _before(parts, len(parts) - 1)
    own, above = ".".join(parts[start:]), _before(parts, start - 1)
    if start == 0:
        return own, own
    return own, ".".join([re.sub(r"\d+", "N", parts[above]), *parts[above + 1 :]])


def _before(parts: list[str], at: int) -> int:
    """The place of the last name, rather than number, up to `at`."""
    while at > 0 and parts[at] == "N":
        at -= 1
    return at


def _unknown(module: str, word: str, shape: tuple[int, ...]) -> str:
    shown = module.rpartition(".")[2] if word == "N" else word
    if _TABLE.search(word):
        return f"by its name, {word}, a table of embeddings, which reduces over nothing; {_INCLUDE}"
    if _ROUTERS.search(word):
        return f"by its name, {word}, a router, or a gate of another kind; {_INCLUDE}"
    if len(shape) == 2:
        return f"{shown} {UNKNOWN} a linear layer; {_INCLUDE}"
    if len(shape) == 3:
        return f"{shown} {UNKNOWN} a convolution, and which axis is reduced over is not to be seen"
    return f"{shown} {UNKNOWN} a convolution, rather than a transposed one; {_INCLUDE}"
