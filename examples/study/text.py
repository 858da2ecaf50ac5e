"""English that ships with Python: the language reference of `pydoc_data.topics`, character by
character.
"""

from __future__ import annotations

import hashlib
import platform
from functools import cache
from pydoc_data.topics import topics

import torch
from torch import Tensor

from examples.study.data import Data, Part

CONTEXT = 64
#: Windows measured at a time.
WINDOWS = 128


@cache
def corpus() -> str:
    """All topics in sorted order. Other Python versions have other texts, so results name
    theirs.
    """
    return "\n".join(topics[name] for name in sorted(topics))


@cache
def vocabulary() -> list[str]:
    """The characters that occur, sorted."""
    return sorted(set(corpus()))


@cache
def text() -> Data:
    """Windows of 64 characters and, as targets, the characters that follow each: (N, 64) and (N,
    64).

    The first 80 % are trained on, the next 10 % are to choose settings by, the last 10 % are held
    out.
    """
    number = {character: i for i, character in enumerate(vocabulary())}
    characters = torch.tensor([number[character] for character in corpus()])
    first, second = int(0.8 * len(characters)), int(0.9 * len(characters))
    train = characters[:first]
    offsets = torch.arange(CONTEXT)

    def sample(size: int, order: torch.Generator) -> tuple[Tensor, Tensor]:
        starts = torch.randint(len(train) - CONTEXT, (size, 1), generator=order)
        return train[starts + offsets], train[starts + offsets + 1]

    def windows(part: Tensor) -> list[tuple[Tensor, Tensor]]:
        whole = (len(part) - 1) // CONTEXT * CONTEXT
        inputs, targets = part[:whole].view(-1, CONTEXT), part[1 : whole + 1].view(-1, CONTEXT)
        return list(zip(inputs.split(WINDOWS), targets.split(WINDOWS), strict=True))

    parts: dict[Part, list[tuple[Tensor, Tensor]]] = {
        "validation": windows(characters[first:second]),
        "test": windows(characters[second:]),
    }
    checksum = hashlib.sha256(corpus().encode()).hexdigest()[:12]
    about = (
        f"`pydoc_data.topics` of Python {platform.python_version()}, {len(characters):,} "
        f"characters of {len(number)} kinds (SHA-256 {checksum}…): 80 % to train on, 10 % for "
        "settings, the last 10 % held out"
    )
    return Data(sample, parts, about)
