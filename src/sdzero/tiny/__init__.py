"""The embedded base models, one a world: how they were made, and how they are loaded."""

from pathlib import Path

from sdzero.errors import UserError

MODEL_NAME = "tiny"
"""What a recipe's `model.path` says to mean the embedded model of arithmetic."""

MODEL_FOLDERS = {
    "arithmetic": "model",
    "spelling": "models/spelling",
    "walks": "models/walks",
    "edits": "models/edits",
    "starts": "models/starts",
}
"""Where the embedded model of each world is; `tiny:spelling` in a recipe means that of spelling."""


def model_folder(name: str = "arithmetic") -> Path:
    """The folder of a world's model, as `save_pretrained` writes it. Raises KeyError for another name."""
    return Path(__file__).parent / MODEL_FOLDERS[name]


def world_of_model(path: str) -> str | None:
    """The world that a recipe's model path names: of `tiny` arithmetic, of `tiny:walks` walks, else None.

    The name after the colon is not checked.
    """
    name, colon, world = path.partition(":")
    if name != MODEL_NAME:
        return None
    return world if colon else "arithmetic"


def embedded_folder(path: str) -> Path | None:
    """The folder of the embedded model that a recipe's model path names; None if it names none. Raises
    UserError for a world that has no model."""
    world = world_of_model(path)
    if world is None:
        return None
    if world not in MODEL_FOLDERS:
        known = ", ".join(f"`{MODEL_NAME}:{name}`" for name in MODEL_FOLDERS)
        raise UserError(
            f"there is no embedded model `{path}`", "model.path", f"the embedded models are {known}"
        )
    return model_folder(world)
