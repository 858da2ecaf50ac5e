"""Options of pruning by calibration, checked."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from nmsolve.errors import InputError
from nmsolve.torch.calibration.padding import Weights

_TARGETS = ("dense", "own")
_UNREACHED = ("magnitude", "error")
_MOMENTS = (torch.float32, torch.float64)


@dataclass(frozen=True, slots=True, kw_only=True)
class PruningOptions:
    """Options that `adaprune_` and `sparsegpt_` share, and document.

    Attributes
    ----------
    sequential : bool
    targets : {"dense", "own"}
    bias : bool
    unreached : {"magnitude", "error"}
    moments : torch.dtype
    weights : function of an item, or None
    offload : path or None
    progress : bool or None

    Raises
    ------
    InputError
        For values that do not exist.
    """

    sequential: bool
    targets: str
    bias: bool
    unreached: str
    moments: torch.dtype
    weights: Weights | None
    offload: Path | None
    progress: bool | None

    @classmethod
    def checked(cls, **options: Any) -> PruningOptions:
        """Return the options, checked."""
        for name, values in (
            ("targets", _TARGETS),
            ("unreached", _UNREACHED),
            ("moments", _MOMENTS),
        ):
            if options[name] not in values:
                raise InputError(
                    f"{name} must be {' or '.join(map(repr, values))}, got {options[name]!r}"
                )
        offload = options.pop("offload")
        folder = None if offload is None else Path(offload)
        if folder is not None and not folder.is_dir():
            raise InputError(f"offload must be an existing folder, got {str(offload)!r}")
        return cls(offload=folder, **options)
