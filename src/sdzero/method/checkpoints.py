"""A training's checkpoints: whole, checked by their sums before they are used, the newest few kept.

A process may be killed at any instant, the disk may fill up, a file may be damaged later. So the marker that
a checkpoint is whole is written last, and holds the sums of its files; one that is damaged is set aside, and
training goes on from the one before. Their order is that of their steps, never that of a clock.
"""

import json
import logging
import os
import re
import shutil
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from sdzero import ranks, stopping
from sdzero.checksums import Damage, find_damage, take_sums
from sdzero.disk import writing
from sdzero.errors import UserError

log = logging.getLogger(__name__)

COMPLETE_MARKER = "complete.json"
"""Written into a checkpoint's folder last, so a folder that has it is whole; holds the sums of its files."""

DAMAGED = "damaged-"
"""In front of the name of a checkpoint that is set aside."""

_NAME = re.compile(r"checkpoint-(\d+)")


def last_complete_checkpoint(folder: Path) -> str | None:
    """The newest whole checkpoint under `folder`, or None. Torn ones, left by a kill, are removed.

    One whose files are not what was written is set aside, with a warning that names the file. Raises
    UserError if no other is left.
    """
    return ranks.from_first(lambda: _last_complete(folder))


def _last_complete(folder: Path) -> str | None:
    whole: list[tuple[int, Path]] = []
    for step, path in _checkpoints(folder):
        if (path / COMPLETE_MARKER).is_file():
            whole.append((step, path))
        else:
            shutil.rmtree(path)
    first: Damage | None = None
    for _, path in sorted(whole, reverse=True):
        damage = _damage_of(path)
        if damage is None:
            if first is not None:
                log.warning("training goes on from %s", path)
            return str(path)
        first = first or damage
        aside = path.with_name(DAMAGED + path.name)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        log.warning(
            "%s is damaged: %s; its checkpoint is set aside as %s", damage.file, damage.what, aside.name
        )
    if first is not None or (damaged := sorted(folder.glob(f"{DAMAGED}*"))):
        what = first.what if first is not None else "it was set aside before"
        raise UserError(
            f"no checkpoint of this training is whole: {what}",
            str(first.file if first is not None else damaged[-1]),
            f"restore a checkpoint from a copy, or remove {folder}: the same command then trains from the"
            " beginning of the stage",
        )
    return None


def _checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints in the folder with their steps, oldest first."""
    named = ((_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint-*"))
    return sorted((int(name[1]), path) for name, path in named if name is not None)


def _damage_of(checkpoint: Path) -> Damage | None:
    marker = checkpoint / COMPLETE_MARKER
    try:
        # Markers of earlier versions hold no sums.
        sums = json.loads(marker.read_text()).get("files", {})
    except (ValueError, AttributeError):
        return Damage(marker, "it is no JSON object")
    return find_damage(checkpoint, sums)


def mark_complete(checkpoint: Path, facts: dict[str, Any]) -> None:
    """Write the marker: everything of the checkpoint is there, and on the disk."""
    marker, beside = checkpoint / COMPLETE_MARKER, checkpoint / f"{COMPLETE_MARKER}.partial"
    # A run that goes on from an older checkpoint comes to this step again; others may link to its marker.
    marker.unlink(missing_ok=True)
    text = json.dumps({**facts, "files": take_sums(checkpoint)}, indent=1) + "\n"
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, marker)


class DeterministicCheckpoints(TrainerCallback):
    """Saves after every `checkpoint_every` steps and after the last, marks what was saved as whole, and keeps
    the newest `save_total_limit` and the best.

    The steps at which a run saves depend on nothing else, in particular not on when it was resumed. One that
    is asked to stop saves once more, after the step that it is in, and raises `Stopped`.
    """

    def __init__(self, checkpoint_every: int) -> None:
        self._checkpoint_every = checkpoint_every
        self._stops = False

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """Ask for a checkpoint when one is due."""
        if state.global_step % self._checkpoint_every == 0 or state.global_step >= state.max_steps:
            control.should_save = True
        return self._save_if_asked_to_stop(control)

    def on_evaluate(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        """An evaluation takes its time: it may be then that the run is asked to stop."""
        return self._save_if_asked_to_stop(control)

    def _save_if_asked_to_stop(self, control: TrainerControl) -> TrainerControl:
        self._stops = self._stops or stopping.is_asked()
        if self._stops:
            control.should_save = True
        return control

    def on_save(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Everything of the checkpoint is there now: say so. Raises Stopped if the run was asked to stop."""
        ranks.barrier()  # of every process
        if state.is_world_process_zero:
            assert args.output_dir is not None
            root = Path(args.output_dir)
            newest = root / f"checkpoint-{state.global_step}"
            with writing(newest):
                mark_complete(newest, {"step": state.global_step, "max_steps": state.max_steps})
                _prune(root, args.save_total_limit, state.best_model_checkpoint)
        if self._stops:
            ranks.barrier()  # no process ends before the checkpoint is whole
            stopping.stop()


def _prune(root: Path, limit: int | None, best: str | None) -> None:
    """Remove all but the newest `limit` checkpoints and the best; called when the newest is whole."""
    if limit is None:
        return
    for _, path in _checkpoints(root)[:-limit]:
        if best is None or path.name != Path(best).name:
            shutil.rmtree(path)


class SavesWhole(Trainer):
    """A trainer whose checkpoints are pruned by `DeterministicCheckpoints`, when the new one is whole.

    transformers prunes before that, and by the files' times: with a clock that was set back it would remove
    the newest. A disk that is full or cannot be written is told as such.
    """

    def train(self, *args: Any, **kwargs: Any) -> Any:
        """Train; a wish to stop is heard after a whole step."""
        with stopping.within_training():
            return super().train(*args, **kwargs)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            with writing(Path(self._get_output_dir(trial)) / f"checkpoint-{self.state.global_step}"):
                super()._save_checkpoint(model, trial)
        finally:
            self.args.save_total_limit = limit
