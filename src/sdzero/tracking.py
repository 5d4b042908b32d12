"""Experiment trackers, where a recipe asks for them: TensorBoard, trackio, Weights & Biases.

They are given what the step logs of the run get, row by row; no trainer reports anything by itself. Nothing
leaves the machine: TensorBoard writes into the run's folder, trackio into its own local store, and wandb is
offline (into the run's folder) unless the recipe says `online: true`. What would send them elsewhere all the
same, variables of the environment, is taken away by `sdzero.offline`, in which a run opens them. Imports no
torch until a tracker is opened.
"""

import importlib.util
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from sdzero import ranks
from sdzero.errors import UserError
from sdzero.recipe import Recipe

FOLDER = "tracking"
"""In the run's folder: what TensorBoard and wandb write."""
NO_MEASURE = ("part", "step", "max_steps")


class Tracker(Protocol):
    """Keeps the numbers of steps. A step that comes again (after a resume) takes the place of the first."""

    def log(self, stage: str, part: int, step: int, values: Mapping[str, float]) -> None:
        """Take the numbers of one step of a stage; `part` is which training of the stage it is of."""
        ...

    def close(self) -> None:
        """Write what is left."""
        ...


def _series(stage: str, part: int) -> str:
    """What the numbers of one training of a stage are kept under."""
    return stage if part == 0 else f"{stage}-part-{part}"


class TensorBoard:
    """One event file a stage and part in `tracking/tensorboard`, with the reward under `reward` and so on."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._writers: dict[tuple[str, int], Any] = {}

    def log(self, stage: str, part: int, step: int, values: Mapping[str, float]) -> None:
        """The first row that a process writes of a stage drops those from its step on, as in the step log."""
        writer = self._writers.get((stage, part))
        if writer is None:
            from torch.utils.tensorboard import SummaryWriter

            writer = SummaryWriter(str(self._folder / _series(stage, part)), purge_step=step)
            self._writers[stage, part] = writer
        for key, value in values.items():
            writer.add_scalar(key, value, step)

    def close(self) -> None:
        """Write what is left."""
        for writer in self._writers.values():
            writer.close()


class Wandb:
    """One wandb run for a run folder; metrics are named `STAGE/MEASURE`, over `STAGE/step`."""

    def __init__(self, folder: Path, recipe: Recipe, name: str) -> None:
        import wandb

        folder.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project="sdzero",
            name=name,
            dir=str(folder),
            config=recipe.model_dump(mode="json"),
            mode="online" if recipe.online else "offline",
            reinit="finish_previous",
        )
        self._defined: set[str] = set()

    def log(self, stage: str, part: int, step: int, values: Mapping[str, float]) -> None:
        """wandb keeps every row; a step that comes again is shown at its place by `STAGE/step`."""
        own = _series(stage, part)
        if own not in self._defined:
            self._run.define_metric(f"{own}/step")
            self._run.define_metric(f"{own}/*", step_metric=f"{own}/step")
            self._defined.add(own)
        self._run.log({f"{own}/step": step, **{f"{own}/{key}": value for key, value in values.items()}})

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


class Trackio:
    """One trackio run for a run folder, in trackio's local store (`trackio show --project sdzero`)."""

    def __init__(self, recipe: Recipe, name: str) -> None:
        import trackio

        self._run = trackio.init(
            project="sdzero", name=name, config=recipe.model_dump(mode="json"), resume="allow", embed=False
        )

    def log(self, stage: str, part: int, step: int, values: Mapping[str, float]) -> None:
        """trackio counts rows over all stages by itself; the step of the stage stands beside them."""
        own = _series(stage, part)
        self._run.log({f"{own}/step": step, **{f"{own}/{key}": value for key, value in values.items()}})

    def close(self) -> None:
        """Write what is left."""
        self._run.finish()


PACKAGES = {"tensorboard": "tensorboard", "trackio": "trackio", "wandb": "wandb"}
"""What has to be installed for each tracker."""


def check_installed(names: Sequence[str]) -> None:
    """Raise UserError for a tracker whose package is not installed."""
    for name in names:
        if importlib.util.find_spec(PACKAGES[name]) is None:
            raise UserError(
                f"`{name}` is not installed, and the recipe reports to it",
                "report_to",
                f"pip install 'sdzero[{name}]', or take `{name}` out of report_to",
            )


def _opened(name: str, recipe: Recipe, root: Path) -> Tracker:
    label = "-".join(root.resolve().parts[-2:])  # the folder above tells the seeds of two comparisons apart
    if name == "tensorboard":
        return TensorBoard(root / FOLDER / "tensorboard")
    if name == "wandb":
        return Wandb(root / FOLDER / "wandb", recipe, label)
    return Trackio(recipe, label)


class Trackers:
    """All trackers of a run; without any it does nothing."""

    def __init__(self, trackers: Sequence[Tracker] = ()) -> None:
        self._trackers = list(trackers)

    def log(self, stage: str, part: int, values: Mapping[str, Any]) -> None:
        """Hand on a row of a step log: its numbers, without what only says where it stands."""
        if not self._trackers or not ranks.is_first():
            return
        numbers = {
            key: float(value)
            for key, value in values.items()
            if key not in NO_MEASURE and isinstance(value, int | float) and not isinstance(value, bool)
        }
        for tracker in self._trackers:
            tracker.log(stage, part, int(values.get("step", 0)), numbers)

    def wrapped(
        self, stage: str, part: int, log: Callable[[dict[str, Any]], None]
    ) -> Callable[[dict[str, Any]], None]:
        """A function that keeps a row in the step log first, and then hands it on."""

        def both(values: dict[str, Any]) -> None:
            log(values)
            self.log(stage, part, values)

        return both

    def close(self) -> None:
        """Close all."""
        for tracker in self._trackers:
            tracker.close()


@contextmanager
def open_trackers(recipe: Recipe, root: Path) -> Iterator[Trackers]:
    """The recipe's trackers for the run in the folder `root`, of the first process.

    Raises UserError if one is not installed, before anything is done.
    """
    check_installed(recipe.report_to)
    if not ranks.is_first():
        yield Trackers()
        return
    trackers = Trackers([_opened(name, recipe, root) for name in recipe.report_to])
    try:
        yield trackers
    finally:
        trackers.close()
