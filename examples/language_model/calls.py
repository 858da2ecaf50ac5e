"""How often a method runs the blocks of a model."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import nn


class Calls:
    """Counts the runs of each block, by those of its first layer: where only the inputs of a block
    are looked at, and it is stopped, it does not run.
    """

    def __init__(self, blocks: Sequence[nn.Module]) -> None:
        self.runs = [0] * len(blocks)
        self._handles = [
            block.input_layernorm.register_forward_pre_hook(self._counting(index))
            for index, block in enumerate(blocks)
        ]

    def _counting(self, index: int) -> Callable[..., None]:
        runs = self.runs

        def count(*_: object) -> None:
            runs[index] += 1

        return count

    def remove(self) -> None:
        """The hooks."""
        for handle in self._handles:
            handle.remove()
