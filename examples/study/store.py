"""Runs on disk: a JSON file a task, written after every run, so that a study that is stopped goes
on where it was.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import sklearn

from benchmarks import machine
from examples.study.tasks import Task


class Store:
    """The runs of a task in `folder`/<task>.json, by configuration and seed.

    Raises
    ------
    SystemExit
        If the file holds runs that were made with other settings or versions: they cannot be
        compared with new ones.
    """

    def __init__(self, folder: Path, task: Task) -> None:
        self.path = folder / f"{task.name}.json"
        here = machine.describe()
        here["versions"]["scikit-learn"] = sklearn.__version__
        versions = {name: here["versions"][name] for name in ("python", "torch")}
        settings = json.loads(json.dumps({**task.settings(), "versions": versions}))
        self.content: dict[str, Any] = {
            "task": task.title,
            "settings": settings,
            "machine": here,
            "runs": {},
        }
        if self.path.exists():
            found = json.loads(self.path.read_text())
            if found["settings"] != settings:
                changed = [key for key in settings if found["settings"].get(key) != settings[key]]
                raise SystemExit(
                    f"{self.path} was made with other settings ({', '.join(changed)}): remove it, "
                    "or name another --out"
                )
            self.content["runs"] = found["runs"]
            self.content["machine"] = found["machine"] if found["runs"] else here

    def has(self, configuration: str, seed: int) -> bool:
        """Whether a run is there."""
        return str(seed) in self.runs.get(configuration, {})

    def add(self, configuration: str, seed: int, run: Any) -> None:
        """Save one more, which has `as_json`. The file is replaced in one go: a process that is
        killed leaves a whole one.
        """
        self.runs.setdefault(configuration, {})[str(seed)] = run.as_json()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        partial = self.path.with_suffix(".partial")
        partial.write_text(self._text())
        os.replace(partial, self.path)

    @property
    def runs(self) -> dict[str, dict[str, dict[str, Any]]]:
        """Configuration → seed → run."""
        return self.content["runs"]

    def _text(self) -> str:
        """JSON with a run a line."""
        head = json.dumps(
            {key: value for key, value in self.content.items() if key != "runs"},
            indent=1,
            ensure_ascii=False,
        )
        rows = [
            f"  {json.dumps(name, ensure_ascii=False)}: {{\n"
            + ",\n".join(
                f"   {json.dumps(seed)}: {json.dumps(run)}"
                for seed, run in sorted(seeds.items(), key=lambda item: int(item[0]))
            )
            + "\n  }"
            for name, seeds in sorted(self.runs.items())
        ]
        return head.removesuffix("\n}") + ',\n "runs": {\n' + ",\n".join(rows) + "\n }\n}\n"
