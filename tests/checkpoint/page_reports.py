"""Reports that the tests of the page show: mixed ones, the smallest ones, and one whose every text
is an attack.
"""

import numpy as np

from nmsolve.checkpoint.page import page
from nmsolve.checkpoint.summary import PruneReport, TensorReport
from nmsolve.pattern import Pattern

HOSTILE = (
    "</script><img src=x onerror=\"window.owned='img'\">",
    "\"><svg onload='window.owned=1'>",
    "' onmouseover='window.owned=1' autofocus onfocus='window.owned=1",
    "</style></title><script>window.owned=1</script>",
    "<!-- ]]> --!> &lt;b&gt; &amp;#39; {{7*7}} ${7*7} javascript:window.owned=1",
    '<a href="https://example.org/x"><iframe src="//example.org"></iframe><link rel=stylesheet '
    "href=//example.org>",
    "\u202egnp.exe\u2066 \ud800 \x00\x1b[31m \u00a0 日本語 🙂 \x85",
)


def tensor(name, pattern="2:4", shape=(64, 128), share=0.8, gap=0.0, **given):
    weights, parsed = int(np.prod(shape)), pattern and Pattern.parse(pattern)
    fields = {
        "file": "model.safetensors",
        "dtype": "F32",
        "axis": 1 if pattern else None,
        "padding": "error" if pattern else None,
        "reason": None if pattern else "one axis",
        "status": "optimal" if pattern else None,
        "objective": None if share is None or not pattern else share * weights,
        "bound": None if None in (gap, share) or not pattern else share * weights / (1 - gap),
        "gap": gap if pattern else None,
        "total": float(weights) if pattern else None,
        "kept": int(weights * parsed.density) if pattern else None,
        "seconds": 0.25,
    }
    return TensorReport(name=name, shape=shape, pattern=parsed or None, **fields | given)


def report(*tensors, **given):
    return PruneReport(
        **{"source": "net", "settings": {"pattern": "2:4", "method": "auto"}, "tensors": tensors}
        | given
    )


def corner(seed, rows=32, columns=32):
    order = np.random.default_rng(seed).random((rows, columns // 4, 4)).argsort(axis=-1)
    return (order < 2).reshape(rows, columns)


MIXED = (
    tensor(
        "layers.10.q",
        "2:4",
        share=0.81,
        gap=1e-3,
        status="feasible",
        seconds=2.0,
        file="b.safetensors",
    ),
    tensor("layers.2.q", "4:8T", (256, 128), share=0.79, gap=2e-10, seconds=11.5, dtype="BF16"),
    tensor("layers.2.k", "2:4T", (1024, 8), share=0.731, gap=None, seconds=None, status="feasible"),
    tensor(
        "layers.1.a_very_long_name_of_a_projection_that_does_not_fit.weight_without_any_dot" * 2,
        "1:4",
        share=0.525,
        gap=0.0,
    ),
    tensor("norm", None, (128,)),
    tensor(
        "conv",
        "2:4",
        (8, 16, 3, 3),
        share=None,
        gap=None,
        kept=None,
        status=None,
        axis=1,
        dtype="F16",
    ),
    tensor(
        "layers.2.v", "2:4", (9, 128), share=0.809, gap=9e-4, seconds=0.004, file="a.safetensors"
    ),
    tensor("embed", None, (100, 128), reason="an embedding"),
    tensor("nan", "2:4", share=0.7, gap=float("nan"), seconds=float("inf")),
)
CORNERS = {t.name: corner(i) for i, t in enumerate(MIXED) if t.pattern and t.name != "nan"} | {
    "layers.2.k": corner(9, 32, 8)
}
MIXED_REPORT = report(
    *MIXED,
    settings={"pattern": {"*.q": "2:4", "*": "4:8T"}, "method": "auto"},
    left_behind=("other.bin",),
)
HOSTILE_REPORT = report(
    *(tensor(text, file=text, dtype=text, status=text) for text in HOSTILE),
    *(tensor(text + "dense", None, (4,), file=text, reason=text) for text in HOSTILE),
    source=HOSTILE[0],
    settings={
        "pattern": {text: text for text in HOSTILE},
        HOSTILE[1]: HOSTILE[2],
        "include": list(HOSTILE),
        "n": 3,
    },
    left_behind=HOSTILE,
)
SMALL = {
    "nothing": report(),
    "nothing pruned": report(tensor("a", None, (4,)), settings={}),
    "nothing dense": report(tensor("a"), tensor("b")),
    "one": report(tensor("a", seconds=None)),
    "one of zeros": report(
        tensor("a", (), (0, 4)), tensor("b", share=0.0, total=0.0, objective=0.0, bound=0.0)
    ),
    "unknown": report(tensor("a", share=None, gap=None, kept=None, status=None, seconds=None)),
}


def hostile_page():
    corners = {t.name: corner(1) for t in HOSTILE_REPORT.pruned}
    return page(HOSTILE_REPORT, corners, title=HOSTILE[3], notes=HOSTILE)
