"""The architectures that transformers and timm build without memory, and what their modules say of
a checkpoint's tensors.

`python -m tests.checkpoint.architectures transformers 0 2` writes what is found in part 0 of 2 as
JSON. timm stands in a folder of its own (`.venv/timm`), since beside the CPU build of PyTorch its
torchvision lacks its operators, and a broken torchvision on the usual path would break imports of
transformers.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
TIMM = Path(sys.prefix) / "timm"
#: Of a model type's classes, the first that there is; one that has most heads and towers.
TASKS = (
    "PRETRAINING",
    "MULTIMODAL_LM",
    "IMAGE_TEXT_TO_TEXT",
    "CAUSAL_LM",
    "SPEECH_SEQ_2_SEQ",
    "SEQ_TO_SEQ_CAUSAL_LM",
)
PATTERNS = ("2:4", "2:4T")
#: Of timm, beside one of every family: layers that standardise their weights.
MORE = ("resnetv2_50x1_bit", "vit_base_r50_s16_224", "nf_resnet50", "nf_regnet_b0")
#: Model types that transformers 5.23 writes under names that it does not read back.
UNREADABLE = {"shieldgemma2"}


def of_transformers(part: int, parts: int) -> Iterator[tuple[str, Any]]:
    """Model types, and a model of each on the meta device, with its default configuration."""
    import torch
    import transformers
    from transformers.models.auto import modeling_auto as auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    transformers.logging.set_verbosity_error()
    tables = [
        name for name in dir(auto) if name.startswith("MODEL_") and name.endswith("MAPPING_NAMES")
    ]
    tables.sort(
        key=lambda name: next(
            (i for i, task in enumerate(TASKS) if f"FOR_{task}_MAPPING" in name), len(TASKS)
        )
    )
    tables.sort(key=lambda name: name == "MODEL_MAPPING_NAMES")
    classes: dict[str, list[str]] = {}
    for table in tables:
        for kind, named in getattr(auto, table).items():
            classes.setdefault(kind, []).extend(
                named if isinstance(named, (tuple, list)) else [named]
            )
    for kind in sorted(classes)[part::parts]:
        for name in dict.fromkeys(classes[kind]):
            try:
                with torch.device("meta"):
                    model = getattr(transformers, name)._from_config(CONFIG_MAPPING[kind]())
            except Exception:  # a default that does not fit, or a package that is not here
                continue
            yield kind, model
            break


def of_timm(part: int, parts: int) -> Iterator[tuple[str, Any]]:
    """Models of every module of timm, one of every family in it, on the meta device."""
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    found = importlib.util.find_spec("torchvision")
    assert found is not None
    text = (Path(found.submodule_search_locations[0]) / "_meta_registrations.py").read_text()  # type: ignore[index]
    for operator in sorted(
        set(re.findall(r'register_(?:fake|meta)\("(?:torchvision::)?(\w+)"', text))
    ):
        if not hasattr(
            torch.ops.torchvision, operator
        ):  # its compiled part does not load beside the CPU build of PyTorch
            library.define(f"{operator}(Tensor x) -> Tensor")
    import timm

    families = {}
    for module in timm.list_modules():
        for name in timm.list_models(module=module):
            families.setdefault((module, re.split(r"[_\d]", name)[0]), name)
    for name in sorted({*families.values(), *MORE})[part::parts]:
        with torch.device("meta"):
            yield f"timm/{name}", timm.create_model(name, pretrained=False)


def facts(model: Any) -> dict[str, Any]:
    """What a model's modules say: by their own names, and by those that transformers writes a
    checkpoint under.
    """
    import nmsolve.torch as nmt
    from nmsolve.checkpoint.meta_model import _planned, told_by

    state = model.state_dict()
    planned = _planned(model)
    plans = {
        pattern: {
            f"{e.name}.{e.parameter}".lstrip("."): e.axis for e in nmt.plan(model, pattern).planned
        }
        for pattern in PATTERNS
    }
    found = {
        "modules": _of_names({n: tuple(t.shape) for n, t in state.items()}, planned),
        "plans": plans,
    }
    if hasattr(model, "base_model_prefix"):
        from transformers.core_model_loading import revert_weight_conversion

        written = {n: tuple(t.shape) for n, t in revert_weight_conversion(model, state).items()}
        if set(written) != set(state):
            some = _one_of_each(written)
            found["written"] = _of_names(written, told_by(model, {n: written[n] for n in some}))
    return found


def _one_of_each(shapes: dict[str, tuple[int, ...]]) -> list[str]:
    """Names that differ in more than their numbers."""
    return list(
        {(re.sub(r"\d+", "N", name), shape): name for name, shape in shapes.items()}.values()
    )


def _of_names(shapes: dict[str, tuple[int, ...]], told: Any) -> list[Any]:
    """For tensors that differ in more than their numbers: name, shape, what names say for each
    pattern, what the model says.
    """
    from nmsolve.checkpoint.names import Names
    from nmsolve.checkpoint.planning import by_model, by_names
    from nmsolve.geometry import Geometry
    from nmsolve.pattern import Pattern

    names, found = Names(shapes), []
    for name in _one_of_each(shapes):
        shape = shapes[name]
        if len(shape) < 2 or 0 in shape:
            continue
        entry: dict[str, Any] = {"name": name, "shape": shape, "known": name in told}
        for text in PATTERNS:
            pattern = Pattern.of(text)
            absent = "the model does not have it"
            for key, axis in (
                (text, by_names(names, name, shape, pattern)),
                (f"model {text}", by_model(told[name], pattern) if name in told else absent),
            ):
                unfit = (
                    axis if isinstance(axis, str) else Geometry(shape, axis).unfit(pattern, "skip")
                )
                entry[key] = [None if unfit else axis, unfit]
        found.append(entry)
    return found


SOURCES = {"transformers": of_transformers, "timm": of_timm}


def every(source: str) -> dict[str, Any]:
    """The facts of every architecture of a library, found by two processes."""
    path = os.pathsep.join(([str(TIMM)] if source == "timm" else []) + [str(ROOT)])

    def ask(part: int) -> dict[str, Any]:
        command = [
            sys.executable,
            "-W",
            "ignore",
            "-m",
            "tests.checkpoint.architectures",
            source,
            str(part),
            "2",
        ]
        environment = os.environ | {
            "PYTHONPATH": path,
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": "1",
        }
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return dict(json.loads(done.stdout))

    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(ask, range(2))
    return first | second


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    out = sys.stdout
    sys.stdout = sys.stderr
    library, part, parts = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    json.dump({name: facts(model) for name, model in SOURCES[library](part, parts)}, out)
