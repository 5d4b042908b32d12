"""A long run's memory, open files and checkpoints: does anything grow with the steps?

    python benchmarks/endurance.py --steps 2000

Trains phase 2 on the embedded model with short responses, by the same code as `sdzero distill`, and after
each step reads from /proc the process's resident memory and its open files. After a warm-up, the slope of
memory over steps is fitted by least squares to the medians of blocks of steps, and printed with its 95%
interval. Ends with status 1 if the slope may be above `LARGEST_GROWTH`, if the number of open files changes
after the warm-up, or if more checkpoints stand there than are kept.
"""

import argparse
import json
import math
import os
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")

from sdzero import tiny
from sdzero.evaluate.stats import t_quantile
from sdzero.pipeline import open_run
from sdzero.recipe import Recipe

KIBIBYTE = 1024
BLOCKS = 20
"""Memory of neighbouring steps is alike, so the fit is to the medians of so many blocks."""

KEPT = 3
"""Checkpoints that the recipe keeps."""

LARGEST_GROWTH = KIBIBYTE
"""Bytes a step. What stays of a step in memory: two keys of the ledger with their counts, and the numbers
that the alarms look back at. At the limit a run of 100,000 steps takes 98 MiB more."""


@dataclass
class Watch:
    """What was seen after each step: resident bytes, open files, checkpoints in the folder."""

    checkpoints: Path
    resident: list[int] = field(default_factory=list)
    open_files: list[int] = field(default_factory=list)
    kept: list[int] = field(default_factory=list)

    def __call__(self, part: str, done: int, total: int) -> None:
        """Look, if this is a step of phase 2; takes the place of the run's progress lines."""
        if part != "distill/steps":
            return
        self.resident.append(resident_bytes())
        self.open_files.append(len(os.listdir("/proc/self/fd")))
        self.kept.append(len(list(self.checkpoints.glob("checkpoint-*"))))
        if done % 200 == 0:
            print(f"  {done} of {total}: {self.resident[-1] / KIBIBYTE**2:.1f} MiB", flush=True)


@dataclass(frozen=True)
class Endurance:
    """Memory's slope in bytes a step with its 95% interval, and the extremes after the warm-up."""

    steps: int
    warm_up: int
    slope: float
    low: float
    high: float
    resident_mebibytes: tuple[float, float]
    open_files: tuple[int, int]
    most_checkpoints: int

    def faults(self) -> list[str]:
        """What a long run would suffer from."""
        found = []
        if self.high > LARGEST_GROWTH:
            found.append(f"memory may grow by {self.high:.0f} bytes a step, more than {LARGEST_GROWTH}")
        if len(set(self.open_files)) > 1:
            found.append(f"open files went from {self.open_files[0]} to {self.open_files[1]}")
        if self.most_checkpoints > KEPT:
            found.append(f"{self.most_checkpoints} checkpoints, and {KEPT} are kept")
        return found


def resident_bytes() -> int:
    """This process's resident memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def slope_with_interval(values: Sequence[float]) -> tuple[float, float, float]:
    """The least-squares slope of `values` over their places, fitted to medians of blocks: slope, low, high.

    The interval is the 95% one. Values that fill no whole block are left out, at the front.
    """
    size = len(values) // BLOCKS
    if size < 1:
        raise ValueError(f"{len(values)} values do not make {BLOCKS} blocks")
    kept = values[len(values) - size * BLOCKS :]
    heights = [statistics.median(kept[start : start + size]) for start in range(0, len(kept), size)]
    places = [size * (number + 0.5) for number in range(BLOCKS)]
    slope, start = statistics.linear_regression(places, heights)
    residuals = [height - start - slope * place for place, height in zip(places, heights, strict=True)]
    middle = statistics.fmean(places)
    spread = math.sqrt(sum((place - middle) ** 2 for place in places))
    error = math.sqrt(sum(residual**2 for residual in residuals) / (BLOCKS - 2)) / spread
    half = t_quantile(0.95, BLOCKS - 2) * error
    return slope, slope - half, slope + half


def recipe_of(steps: int) -> Recipe:
    """Phase 2 on the embedded model: two questions a step, responses of at most 12 tokens."""
    questions = 500
    settings: dict[str, Any] = {
        "name": "endurance",
        "model": {"path": "tiny", "device": "cpu"},
        "data": {"source": "arithmetic", "n1": 1, "n2": questions, "tuning": 1, "test": 1},
        "verifier": {"name": "math", "workers": 1},
        "collect": {"max_new_tokens": 12},
        "srt": {"checkpoint": str(tiny.model_folder("arithmetic")), "learning_rate": 1e-6},
        "distill": {
            "learning_rate": 1e-7,
            "schedule": "constant",
            "batch_size": 2,
            "micro_batch_size": 2,
            "max_new_tokens": 12,
            "epochs": math.ceil(2 * steps / questions),
            "checkpoint_every": 50,
            "checkpoints_kept": KEPT,
            "sync": "steps",
            "sync_every": 100,
        },
        "rft": {"enabled": False, "learning_rate": 1e-6},
        "evaluate": {"max_new_tokens": 12},
        "alarms": {"enabled": False},
    }
    return Recipe.model_validate(settings)


def measure(steps: int, warm_up: int, folder: Path) -> tuple[Endurance, Watch]:
    """Train, and look after each step."""
    watch = Watch(folder / "run/distill/checkpoints")
    with open_run(recipe_of(steps), folder / "run", lambda text: None, watch) as stages:
        stages.distill()
    slope, low, high = slope_with_interval(watch.resident[warm_up:])
    memory, files = watch.resident[warm_up:], watch.open_files[warm_up:]
    mebibyte = KIBIBYTE**2
    found = Endurance(
        steps=len(watch.resident),
        warm_up=warm_up,
        slope=slope,
        low=low,
        high=high,
        resident_mebibytes=(round(min(memory) / mebibyte, 1), round(max(memory) / mebibyte, 1)),
        open_files=(min(files), max(files)),
        most_checkpoints=max(watch.kept),
    )
    return found, watch


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=2000)
    parser.add_argument("--warm-up", type=int, default=500, help="steps that the fit leaves out")
    parser.add_argument("--series", type=Path, help="write what was seen after each step here, as JSON")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        found, watch = measure(given.steps, given.warm_up, Path(place))
    if given.series:
        given.series.write_text(json.dumps({**asdict(watch), "checkpoints": None}))
    print(json.dumps(asdict(found), indent=2))
    for fault in found.faults():
        print(f"not held: {fault}")
    print(f"memory: {found.slope:+.0f} bytes a step, 95% [{found.low:+.0f}, {found.high:+.0f}]")
    return 1 if found.faults() else 0


if __name__ == "__main__":
    sys.exit(main())
