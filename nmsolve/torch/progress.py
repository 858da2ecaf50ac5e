"""Progress bars of calls that take long."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from tqdm import tqdm


def progress_bar(
    items: Iterable[Any] | None = None,
    *,
    about: str,
    total: int | None,
    progress: bool | None,
    unit: str = "it",
) -> Any:
    """Return tqdm's bar over items, or one to be updated by hand.

    Parameters
    ----------
    items : iterable, optional
    about : str
        Before the bar.
    total : int or None
        Number of items, where it is known.
    progress : bool or None
        Whether to show it; None: on a terminal only.
    unit : str
        Of the items.
    """
    disable = None if progress is None else not progress
    return tqdm(items, about, total, unit=unit, leave=False, disable=disable)
