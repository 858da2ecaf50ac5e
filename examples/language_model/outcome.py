"""The results of all rows, as tables, sentences and figures ask for them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from examples.language_model.rows import DENSE, Row, rows
from examples.language_model.store import result_files

TextName = Literal["held_out", "other"]


@dataclass(frozen=True)
class Range:
    """Mean, least and greatest over seeds."""

    mean: float
    least: float
    greatest: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Range:
        """Of one value or more."""
        return cls(math.fsum(values) / len(values), min(values), max(values))

    def show(self, digits: int, suffix: str = "") -> str:
        """ "mean (least–greatest)"; the mean alone where they are the same."""
        mean, least, greatest = (
            f"{value:,.{digits}f}" for value in (self.mean, self.least, self.greatest)
        )
        spread = f" ({least}–{greatest})" if least != greatest else ""
        return f"{mean}{suffix}{spread}"


@dataclass(frozen=True)
class Outcome:
    """settings : what all runs were made with. machine : what they were made on. runs : row → seed
    → `Measured` as JSON.
    """

    settings: dict[str, Any]
    machine: dict[str, Any]
    runs: dict[Row, dict[str, dict[str, Any]]]

    @classmethod
    def read(cls, folder: Path) -> Outcome:
        """From a folder of results. SystemExit if it has none of the dense model, which all are
        held against, or files of different settings.
        """
        contents = [json.loads(path.read_text()) for path in result_files(folder)]
        found = {Row(content["method"], content["pattern"]): content for content in contents}
        if DENSE not in found:
            raise SystemExit(f"there is no run of the dense model in {folder}")
        first = found[DENSE]
        for row, content in found.items():
            if content["settings"] != first["settings"]:
                raise SystemExit(f"{folder / row.path} and dense.json are of different settings")
        return cls(
            first["settings"],
            first["machine"],
            {row: found[row]["runs"] for row in rows() if row in found},
        )

    def values(self, row: Row, key: str) -> list[float]:
        """One number of every seed."""
        return [run[key] for run in self.runs[row].values()]

    def rise(self, row: Row, text: TextName) -> Range:
        """Of log-perplexity over the dense model's."""
        return Range.of([self._rise(row, seed, text) for seed in self.runs[row]])

    def rise_ratio(self, row: Row, other: Row, text: TextName) -> Range | None:
        """Rise over that of another row, seed by seed: both have the same tokens. None where that
        was not run.
        """
        return self._ratio(row, other, lambda one, seed: self._rise(one, seed, text))

    def ratio(self, row: Row, other: Row, key: str) -> Range | None:
        """A number over that of another row, likewise."""
        return self._ratio(row, other, lambda one, seed: self._run(one, seed)[key])

    def _ratio(self, row: Row, other: Row, number: Callable[[Row, str], float]) -> Range | None:
        if row not in self.runs or other not in self.runs:
            return None
        seeds = [seed for seed in self.runs[other] if not row.calibrated or seed in self.runs[row]]
        ratios = [number(row, seed) / number(other, seed) for seed in seeds]
        return Range.of(ratios) if ratios else None

    def _rise(self, row: Row, seed: str, text: TextName) -> float:
        return math.log(self._run(row, seed)[text] / self._run(DENSE, seed)[text])

    def _run(self, row: Row, seed: str) -> dict[str, Any]:
        """Rows without calibration are the same for all seeds."""
        return self.runs[row][seed if row.calibrated else "0"]
