"""What names say of a checkpoint's tensors against what the modules of every architecture say that
is installed (`make check`).

Names may leave a weight dense that `nmsolve.torch.plan` would prune: `dense_by_name.txt` has every
such name and the architectures that have it, by reason. They never prune one that it does not, nor
along another axis. After a change that is meant, `python -m tests.checkpoint.test_architectures`
writes the table anew.
"""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tests.checkpoint.architectures import PATTERNS, SOURCES, UNREADABLE, every

TABLE = Path(__file__).with_name("dense_by_name.txt")
pytestmark = pytest.mark.long


@cache
def found(source: str) -> dict[str, Any]:
    return every(source)


def entries(source: str):
    """Architecture, pattern, and what was found of a tensor, of every tensor."""
    for architecture, facts in found(source).items():
        for part in ("modules", "written"):
            for entry in facts.get(part, ()):
                for pattern in PATTERNS:
                    yield architecture, part, pattern, entry


def word(name: str) -> str:
    """A tensor's module, without numbers; a parameter that is no "weight" by itself."""
    parts = [part for part in name.split(".") if not part.isdigit()]
    return parts[-2] if parts[-1] == "weight" and len(parts) > 1 else f"={parts[-1]}"


def differences() -> dict[tuple[str, int, str], set[str]]:
    """(reason, axes, name) of what names leave dense and modules do not → architectures."""
    different = defaultdict(set)
    for source in SOURCES:
        for architecture, _, pattern, entry in entries(source):
            (axis, reason), (there, _) = entry[pattern], entry[f"model {pattern}"]
            if axis is None and there is not None:
                own = word(entry["name"])
                why = re.sub(rf"\b{re.escape(own.lstrip('='))}\b", "NAME", reason, count=1)
                different[why, len(entry["shape"]), own].add(architecture)
    return different


def as_text(different: dict[tuple[str, int, str], set[str]]) -> str:
    lines, last = [], None
    for (reason, axes, own), architectures in sorted(different.items()):
        if reason != last:
            lines += [f"# {reason}"]
        last = reason
        lines.append(f"{axes} {own}: {' '.join(sorted(architectures))}")
    return "\n".join(lines) + "\n"


def is_tied(facts: dict[str, Any], why: object) -> bool:
    """Whether a weight is tied to one that names leave dense: a checkpoint has it once, or twice
    with equal bytes, dense then.
    """
    other = re.match(r"its weight is tied to (\S+), ", str(why))
    beside = [
        e
        for part in ("modules", "written")
        for e in facts.get(part, ())
        if other and other[1] in e["name"]
    ]
    return other is not None and all(
        entry[pattern][0] is None for entry in beside for pattern in PATTERNS
    )


def has_other_layout(architecture: str, part: str, name: str, why: object) -> bool:
    """Whether a tensor's rows have another order in the model, or the model does not read it by the
    name that it is written under.

    The experts of LongCat Flash are written one by one, and its modules do not say which way round
    they multiply by them: by their code as (out, in).
    """
    if part == "modules":
        return False
    unread = why == "the model does not have it" and (
        architecture in UNREADABLE or "experts" in name
    )
    return unread or why == "its rows are rearranged on loading, and blocks with them"


@pytest.mark.parametrize("source", SOURCES)
def test_names_prune_nothing_that_modules_do_not(source: str) -> None:
    wrong = []
    for architecture, part, pattern, entry in entries(source):
        (axis, _), (there, why), name = entry[pattern], entry[f"model {pattern}"], entry["name"]
        excused = is_tied(found(source)[architecture], why) or has_other_layout(
            architecture, part, name, why
        )
        if axis is not None and axis != there and not excused:
            wrong.append(
                f"{architecture}: {name} {entry['shape']} {pattern} along {axis}; the model: "
                f"{there} {why}"
            )
    assert wrong == []


@pytest.mark.parametrize("source", SOURCES)
def test_asking_a_model_is_planning_it(source: str) -> None:
    """What `plan_tensors` is told by a model is what `nmsolve.torch.plan` plans, tensor by
    tensor.
    """
    wrong = []
    for architecture, facts in found(source).items():
        for pattern in PATTERNS:
            planned = facts["plans"][pattern]
            for entry in facts["modules"]:
                axis = entry[f"model {pattern}"][0]
                if axis != planned.get(entry["name"]):
                    wrong.append(
                        f"{architecture}: {entry['name']} {pattern}: {axis}, planned "
                        f"{planned.get(entry['name'])}"
                    )
    assert wrong == []


def test_every_difference_is_listed() -> None:
    now, then = as_text(differences()).splitlines(), TABLE.read_text().splitlines()
    assert sorted(set(now) - set(then)) == [], "not listed"
    assert sorted(set(then) - set(now)) == [], "listed, and no longer a difference"


def test_there_are_as_many_as_there_were() -> None:
    """A library that no longer imports would make the others pass on nothing."""
    assert len(found("transformers")) >= 590
    assert len(found("timm")) >= 180


if __name__ == "__main__":
    TABLE.write_text(as_text(differences()))
