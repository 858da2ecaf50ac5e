"""The choice of weights by name, which the planner of models and that of checkpoints share."""

import numpy as np
import pytest
from safetensors.numpy import save_file
from torch import nn

import nmsolve.torch as nmt
from nmsolve import InputError, Pattern, PatternError
from nmsolve.checkpoint.planning import plan_tensors
from nmsolve.checkpoint.source import read_source
from nmsolve.selection import Selection

PATHS = ["body.0", "body.1", "header", "head.0"]


def choices(*arguments, **options):
    selection = Selection.of(*arguments, **options)
    selection.check_used(PATHS, "model")
    return [str(selection.choose(path)) for path in PATHS]


def test_patterns_and_reasons():
    assert choices("2:4") == ["2:4"] * 4
    assert choices("2:4", include="body", exclude=["*.1"]) == [
        "2:4",
        "excluded",
        "not included",
        "not included",
    ]
    assert choices({"body.0": "2:4T", "body": "1:4", "head": None}) == [
        "2:4T",
        "1:4",
        "no pattern is given for it",
        "kept dense by the pattern of 'head'",
    ]


def test_named_by_the_whole_path():
    assert Selection.of("2:4", include=["body.0"]).names("body.0")
    assert Selection.of({"body.0": "2:4", "*": "1:4"}).names("body.0")
    assert not Selection.of("2:4", include=["body"]).names("body.0")
    assert not Selection.of("2:4").names("*")


def test_globs_that_match_nothing():
    for options, argument in (
        ({"include": "boddy"}, "include='boddy'"),
        ({"exclude": "boddy"}, "exclude='boddy'"),
    ):
        with pytest.raises(InputError, match=f"{argument} matches no layer of the model"):
            choices("2:4", **options)
    with pytest.raises(InputError, match="pattern='tail' matches no layer"):
        choices({"tail": "2:4", "*": "1:4"})


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (("2:4", None, (), "perhaps"), InputError, "padding must be one of 'skip', 'error', 'pad'"),
        (("5:4",), PatternError, "5:4"),
        (("2:4", 3), InputError, "include takes module paths"),
        (("2:4", None, [3]), InputError, "exclude takes module paths"),
        (({3: "2:4"},), InputError, "pattern takes module paths"),
    ],
)
def test_bad_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        Selection.of(*arguments)


def test_padding():
    pattern = Pattern(2, 4)
    for padding in ("skip", "pad", "dense"):
        Selection.of("2:4", padding=padding).refuse("fc", (3, 3), pattern, "too small")
    with pytest.raises(InputError, match=r"fc of shape \(3, 3\), pattern 2:4: too small; exclude"):
        Selection.of("2:4", padding="error").refuse("fc", (3, 3), pattern, "too small")
    assert Selection.of("2:4").solver_padding == "error"
    assert Selection.of("2:4", padding="pad").solver_padding == "pad"


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"include": "encoder"},
        {"exclude": ["encoder.fc1", "out*"]},
        {"pattern": {"encoder.q_proj.weight": "2:4T", "encoder": "1:4", "out_proj": None}},
        {"pattern": {"encoder": "2:4"}, "padding": "pad"},
        {"pattern": "4:8T", "padding": "dense"},
    ],
)
def test_a_model_and_its_checkpoint_are_planned_alike(options, tmp_path):
    model = nn.Sequential()
    sizes = {"q_proj": (16, 16), "fc1": (16, 6), "fc2": (6, 16)}
    model.encoder = nn.ModuleDict({name: nn.Linear(*size) for name, size in sizes.items()})
    model.out_proj = nn.Linear(16, 8)
    save_file(
        {name: np.asarray(p.detach()) for name, p in model.named_parameters()},
        tmp_path / "model.safetensors",
    )
    pattern = options.get("pattern", "2:4T")
    rest = {name: value for name, value in options.items() if name != "pattern"}
    by_file = {
        plan.tensor.name.removesuffix(".weight"): plan
        for plan in plan_tensors(read_source(tmp_path).files, Selection.of(pattern, **rest))
    }
    if isinstance(pattern, dict):  # a tensor is named by its whole name
        pattern = {glob.removesuffix(".weight"): one for glob, one in pattern.items()}
    for layer in nmt.plan(model, pattern, **rest):
        beside = by_file[layer.path]
        assert (layer.pattern, layer.reason is None) == (beside.pattern, beside.reason is None)
        if layer.pattern is not None:
            assert (layer.axis, layer.padding) == (beside.axis, beside.padding)
        elif "consist" not in str(layer.reason):  # of channels there, of axes here
            assert layer.reason == beside.reason
