"""Runs on disk: a JSON file a row, written after every run, so that what is stopped goes on where
it was.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import transformers

from benchmarks import machine
from examples.language_model import texts
from examples.language_model.packages import versions
from examples.language_model.rows import Row
from examples.language_model.settings import Settings


class Store:
    """The runs of all rows in a folder, by row and seed.

    Raises
    ------
    SystemExit
        If a file there was made with other settings, texts, versions or processor: its runs cannot
        be compared with new ones.
    """

    def __init__(self, folder: Path, settings: Settings) -> None:
        self.folder = folder
        self._machine = machine.describe()
        self._made_with = _made_with(settings, self._machine)
        for path in result_files(folder):
            found = json.loads(path.read_text())["settings"]
            changed = [key for key, value in self._made_with.items() if found.get(key) != value]
            if changed:
                raise SystemExit(
                    f"{path} was made with other settings ({', '.join(changed)}): remove it, or "
                    "name another --out"
                )

    def has(self, row: Row, seed: int) -> bool:
        """Whether a run is there."""
        path = self.folder / row.path
        return path.exists() and str(seed) in json.loads(path.read_text())["runs"]

    def add(self, row: Row, seed: int, run: Mapping[str, Any]) -> None:
        """Save one more. The file is replaced in one go: a process that is killed leaves a whole
        one.
        """
        path = self.folder / row.path
        content = (
            json.loads(path.read_text())
            if path.exists()
            else {
                "method": row.method,
                "pattern": row.pattern,
                "settings": self._made_with,
                "machine": self._machine,
                "runs": {},
            }
        )
        content["runs"][str(seed)] = dict(run)
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n")
        os.replace(partial, path)


def result_files(folder: Path) -> list[Path]:
    """The files of all rows."""
    return sorted(folder.glob("*.json")) + sorted(folder.glob("*/*.json"))


def _made_with(settings: Settings, here: Mapping[str, Any]) -> dict[str, Any]:
    """All that results depend on beside method, pattern and seed. Times are compared too, so the
    processor is part of it.
    """
    return {
        **asdict(settings),
        "prose": texts.prose().about,
        "other_text": texts.plays().about,
        "cpu": f"{here['cpu']}, {here['cpus']} CPUs, threads: {torch.get_num_threads()}",
        "versions": {
            **{name: here["versions"][name] for name in ("nmsolve", "python", "torch")},
            "transformers": transformers.__version__,
            **versions(),
        },
    }
