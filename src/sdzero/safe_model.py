"""Model folders that can do no harm when they are read: safetensors only, and no code of their own.

Pickled weights (PyTorch's .bin, .pt, .pth, .ckpt) can run anything when they are loaded; `auto_map` in a
configuration names Python files of the folder that `trust_remote_code` would run. Neither is ever loaded
here; a folder that has them is refused, so that nobody is left to wonder which of its files were read.
Imports no torch.
"""

import json
from pathlib import Path
from typing import Any

from sdzero.errors import UserError

PICKLED = ("pytorch_model*.bin", "adapter_model*.bin", "*.ckpt", "*.pt", "*.pth")
TRAINERS_STATE = "trainer_state.json"
TRAINERS_OWN = ("optimizer.pt", "scheduler.pt", "scaler.pt", "rng_state*.pth", "pytorch_model_fsdp*.bin")
"""What transformers' Trainer leaves beside the safetensors of a checkpoint, and nobody reads as a model."""
CONFIGURATIONS = ("config.json", "tokenizer_config.json", "processor_config.json", "generation_config.json")

CONVERT = (
    "convert it once on a machine that may run what is in it: load it there with"
    " AutoModelForCausalLM.from_pretrained(FOLDER) and write it with save_pretrained(NEW FOLDER), which"
    " makes safetensors; then remove the pickled files"
)
OWN_CLASSES = (
    "if transformers has the architecture itself (config.json's `model_type`), take `auto_map` and the .py"
    " files out of a copy of the folder; if not, convert the model to an architecture that it has"
)


def check_safe(folder: Path) -> None:
    """Raise UserError if a model's folder has pickled weights, or names code of its own."""
    pickled = pickled_weights(folder)
    if pickled:
        raise UserError(
            f"the model has pickled weights ({pickled[0].name}), which can run code when they are loaded",
            str(pickled[0]),
            "remove the file: the safetensors beside it are the weights"
            if any(folder.glob("*.safetensors"))
            else CONVERT,
        )
    for name in CONFIGURATIONS:
        if _json(folder / name).get("auto_map"):
            raise remote_code(str(folder / name))


def remote_code(where: str) -> UserError:
    """The error for a model that brings code of its own."""
    return UserError(
        "the model brings code of its own (`auto_map`), which is never run here", where, OWN_CLASSES
    )


def pickled_weights(folder: Path) -> list[Path]:
    """The files of pickled weights in the folder."""
    found = {file for pattern in PICKLED for file in folder.glob(pattern)}
    if (folder / TRAINERS_STATE).is_file():
        found -= {file for pattern in TRAINERS_OWN for file in folder.glob(pattern)}
    return sorted(found)


def _json(file: Path) -> dict[str, Any]:
    """A configuration; empty if there is none, or if it is damaged, which its reader will tell."""
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return values if isinstance(values, dict) else {}
