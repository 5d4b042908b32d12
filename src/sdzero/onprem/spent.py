"""What a run has spent, read from its folder without changing anything in it: the run may still be going
on."""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sdzero.errors import UserError
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe

COUNTS = ("responses", "sampled_tokens", "trained_tokens", "teacher_tokens", "seconds")
"""Of a line of the ledger, what is added up."""
TRAINED_IN = {"srt": "srt/round-*/log.jsonl", "distill": "distill/log.jsonl", "rft": "rft/log.jsonl"}
"""Where the log of a stage's training stands."""


@dataclass
class Spent:
    """Of one run: its recipe, and the counts of each unit of work, by stage and key."""

    folder: Path
    recipe: Recipe
    units: dict[tuple[str, str], dict[str, float]] = field(default_factory=dict)

    def of(self, stage: str, chosen: Callable[[str], bool] = lambda key: True) -> dict[str, float]:
        """The sums over a stage's units whose key is chosen."""
        own = [unit for (name, key), unit in self.units.items() if name == stage and chosen(key)]
        return {count: sum(unit[count] for unit in own) for count in COUNTS}

    @property
    def stages(self) -> list[str]:
        """The stages, in the order in which they were first recorded."""
        return list(dict.fromkeys(stage for stage, _ in self.units))

    def mean_tokens(self, stage: str, part: str = "") -> float | None:
        """Mean length of the responses of a stage's units whose key has this part; None if there are none."""
        own = self.of(stage, lambda key: part in key)
        return own["sampled_tokens"] / own["responses"] if own["responses"] else None

    def peak_memory(self, stage: str) -> int | None:
        """Bytes: the peak that the log of the stage's training has; None if it has none."""
        found = [
            int(row["peak_memory_bytes"])
            for file in self.folder.glob(TRAINED_IN.get(stage, f"{stage}/log.jsonl"))
            for row in _rows(file)
            if row.get("peak_memory_bytes") is not None
        ]
        return max(found, default=None)

    def statistics(self) -> list[dict[str, int]]:
        """Of each round of collection, how many revisions there were and how many were `verified`. Raises
        UserError for a `statistics.json` that is damaged."""
        files = sorted(self.folder.glob("collect/round-*/statistics.json"))
        return [_statistics(file) for file in files]


def read_run(folder: Path) -> Spent:
    """Raises UserError for a folder that is no run, and for a ledger that cannot be read."""
    recipe, ledger = folder / "recipe.yaml", folder / "ledger.jsonl"
    if not recipe.is_file() or not ledger.is_file():
        raise UserError(
            "there is no run here that has begun",
            str(folder),
            "name the folder of a run (of several seeds: one of its seed-N)",
        )
    found = Spent(folder, load_recipe(recipe))
    for row in _rows(ledger):
        try:
            counts = {count: float(row.get(count) or 0.0) for count in COUNTS}
            found.units[str(row["stage"]), str(row["key"])] = counts
        except (KeyError, TypeError, ValueError):
            raise UserError(
                "the ledger is damaged: a line has no stage, key and counts",
                str(ledger),
                "restore it from a copy",
            ) from None
    return found


def _statistics(file: Path) -> dict[str, int]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
        return {name: int(found[name]) for name in ("revised", "verified")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"the statistics of a collection are damaged ({error})", str(file), "restore it from a copy"
        ) from None


def _rows(file: Path) -> Iterator[dict[str, Any]]:
    """The whole lines of a JSONL file; what stands behind the last line end is still being written."""
    for number, line in enumerate(file.read_text(encoding="utf-8").split("\n")[:-1], 1):
        try:
            row = json.loads(line)
        except ValueError:
            row = None
        if not isinstance(row, dict):
            raise UserError("this line is no JSON object", f"{file}: line {number}", "restore it from a copy")
        yield row
