"""How much is calibrated with, pruned and measured."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Settings:
    """items : calibration windows of `window` tokens. blocks : how many are pruned, from the first
    on. held_out, other : windows of `window` tokens that perplexity is measured on, of the text
    that calibration is from and of the other one.
    """

    items: int = 32
    window: int = 512
    blocks: int = 30
    held_out: int = 20
    other: int = 10


FULL = Settings()
#: Shows that it runs.
TINY = Settings(items=4, window=96, blocks=4, held_out=3, other=2)
