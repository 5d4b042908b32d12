"""The teacher of phase 2 as a model of its own, where `distill.teacher_placement` says."""

from typing import Literal

import torch

from sdzero.method.sharded_teacher import ShardedTeacher, check_sharding
from sdzero.method.streamed_teacher import StreamedTeacher
from sdzero.method.teacher import Teacher
from sdzero.method.training import own_share_of
from sdzero.models import pick_device
from sdzero.recipe import Recipe
from sdzero.run_context import RunContext

Placement = Literal["device", "cpu", "sharded"]


def load_teacher(context: RunContext, folder: str, placement: Placement = "device") -> Teacher:
    """Load the teacher from a model folder. One that is not to be whole on the device is read into the host's
    memory.

    Raises UserError for `sharded` without FSDP.
    """
    if placement == "device":
        return Teacher(context.load(folder), folder)
    if placement == "sharded":
        check_sharding()  # before anything is read
    model = context.load(folder, torch.device("cpu"))
    if placement == "sharded":
        return ShardedTeacher(model, folder)
    return StreamedTeacher(model, folder, pick_device(context.recipe.model.device))


def check_started(recipe: Recipe) -> None:
    """Raise UserError, before anything is sampled, if the processes were not started so that the teacher can
    be where the recipe says, or if a stage's batch cannot be shared out among them."""
    stages = {"srt": recipe.srt, "distill": recipe.distill, "rft": recipe.rft}
    skipped = {"srt": recipe.srt.checkpoint is not None, "rft": not recipe.rft.enabled}
    for name, settings in stages.items():
        if not skipped.get(name):
            own_share_of(settings.batch_size, f"{name}.batch_size")
    if recipe.distill.teacher_placement == "sharded":
        check_sharding()
