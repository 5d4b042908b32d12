"""What a benchmark leaves: one entry for each figure, and how two lists of entries are compared.

Every figure is a ratio of two things measured side by side, so that it means the same on another machine.
"""

import json
import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

WORSE_BY = 0.15
"""A ratio that is worse than the committed one by more than this share is a regression."""


@dataclass(frozen=True)
class Entry:
    """One figure. `target` is None where nothing was promised; `runs` are the turns that medians are of."""

    name: str
    ratio: float
    target: float | None
    better: Literal["higher", "lower"]
    runs: int
    machine: Mapping[str, Any] = field(default_factory=dict)

    @property
    def reached(self) -> bool | None:
        """Whether the target is met; None if there is none."""
        if self.target is None:
            return None
        return self.ratio >= self.target if self.better == "higher" else self.ratio <= self.target

    def to_json(self) -> dict[str, Any]:
        """As it is stored."""
        return asdict(self) | {"machine": dict(self.machine)}


@dataclass
class Found:
    """What a part of the benchmark found: its entries, and seconds and other numbers for the page."""

    entries: list[Entry] = field(default_factory=list)
    details: dict[str, Any] = field(default_factory=dict)


def this_machine() -> dict[str, Any]:
    """What figures depend on: processor, cores, versions."""
    versions = {name: version(name) for name in ("torch", "transformers", "trl")}
    cores = len(os.sched_getaffinity(0))
    return {"processor": _processor(), "cores": cores, "python": platform.python_version()} | versions


def _processor() -> str:
    with open("/proc/cpuinfo", encoding="utf-8") as lines:
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def regressions(committed: Sequence[Entry], measured: Sequence[Entry]) -> list[str]:
    """One line for each committed ratio that is worse now by over 15%, or that was not measured."""
    now = {entry.name: entry for entry in measured}
    found = []
    for before in committed:
        after = now.get(before.name)
        if after is None:
            found.append(f"{before.name}: not measured")
            continue
        change = after.ratio / before.ratio - 1.0
        worse = -change if before.better == "higher" else change
        if worse > WORSE_BY:
            found.append(
                f"{before.name}: {after.ratio:.3g}, was {before.ratio:.3g} ({before.better} is better;"
                f" worse by {100 * worse:.0f}%)"
            )
    return found


def read_entries(file: Path) -> list[Entry]:
    """The entries of a file of results."""
    return [Entry(**row) for row in json.loads(file.read_text(encoding="utf-8"))]
