"""The embedded base model: how it was made, and how it is loaded."""

from pathlib import Path

MODEL_NAME = "tiny"
"""What a recipe's `model.path` says to mean the embedded model."""


def model_folder() -> Path:
    """The folder of the embedded model, as `save_pretrained` writes it."""
    return Path(__file__).parent / "model"
