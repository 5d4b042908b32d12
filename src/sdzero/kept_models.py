"""The models that finished stages keep in the run folder: saved with the sums of their files, and looked at
before they are used."""

from pathlib import Path

from sdzero import ranks
from sdzero.checksums import Sums, find_damage, take_sums
from sdzero.errors import UserError
from sdzero.run_dir import RunDir

MODEL = "model"


def sums_of_model(run: RunDir, stage: str) -> Sums:
    """The sums of the files of the model that a stage has saved, for its marker."""
    return ranks.from_first(lambda: take_sums(run.path(stage, MODEL)))


def check_kept_model(run: RunDir, folder: str | Path) -> None:
    """Raise UserError if the folder is a model that a stage of this run kept, and a file of it has changed.

    Nothing is known of other folders.
    """
    place = Path(folder)
    if place.name != MODEL or not place.is_relative_to(run.root):
        return
    stage = str(place.parent.relative_to(run.root))
    found = ranks.from_first(lambda: _fault(run, stage))
    if found is not None:
        what, where = found
        raise UserError(
            f"a model of the run is damaged: {what}",
            where,
            f"restore the file from a copy; or remove {place} and {run.path('stages', stage)}.json: the same"
            " command then trains the stage again",
        )


def _fault(run: RunDir, stage: str) -> tuple[str, str] | None:
    sums = run.model_sums(stage) if run.is_done(stage) else None
    damage = None if sums is None else find_damage(run.path(stage, MODEL), sums)
    return None if damage is None else (damage.what, str(damage.file))
