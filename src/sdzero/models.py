"""Loading and saving the policy: a Hugging Face folder in, a Hugging Face folder out."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from sdzero import ranks, tiny
from sdzero.errors import UserError
from sdzero.packed_attention import PACKED_SDPA
from sdzero.recipe import ModelSettings
from sdzero.sharded import whole_state

# Loading and saving take moments; their bars and notes would drown the run's own lines.
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]

UNREADABLE = (OSError, ValueError, SafetensorError)
"""What transformers raises for files that are missing or damaged."""

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float64": torch.float64}


def pick_device(name: str) -> torch.device:
    """`auto` is the GPU if there is one. Raises UserError if `cuda` is asked for and missing."""
    if name == "cuda" and not torch.cuda.is_available():
        raise UserError(
            "no GPU is available", "model.device", "set model.device=cpu, or install a CUDA build"
        )
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.device(name)


def resolve_path(path: str) -> str:
    """The folder or hub id that a recipe's model path means. Raises UserError if it can be neither."""
    world = tiny.world_of_model(path)
    if world is not None:
        return str(_embedded_model(world))
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file():
            raise UserError(
                "the model folder has no config.json",
                str(folder),
                "name a folder that save_pretrained wrote, or a downloaded snapshot",
            )
        return str(folder)
    looks_like_hub_id = path.count("/") == 1 and not path.startswith((".", "/", "~"))
    if folder.exists() or not looks_like_hub_id:
        raise UserError(
            "there is no model folder here",
            path,
            "check model.path: `tiny`, a folder, or a hub id owner/name",
        )
    return path


def _embedded_model(world: str) -> Path:
    if world not in tiny.MODEL_FOLDERS:
        known = ", ".join(f"`{tiny.MODEL_NAME}:{name}`" for name in tiny.MODEL_FOLDERS)
        raise UserError(
            f"there is no embedded model `{tiny.MODEL_NAME}:{world}`",
            "model.path",
            f"the embedded models are {known}",
        )
    return tiny.model_folder(world)


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer. Raises UserError if it cannot be read."""
    where = resolve_path(path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (*UNREADABLE, KeyError, TypeError) as error:
        raise UserError(
            f"the tokenizer cannot be loaded: {_first_line(error)}", where, _todo(where)
        ) from error
    return tokenizer


def load_model(path: str, settings: ModelSettings) -> PreTrainedModel:
    """Load a causal language model with the recipe's dtype, attention and device."""
    model = read_model(resolve_path(path), DTYPES[settings.dtype], attention_of(settings))
    model.to(pick_device(settings.device))  # type: ignore[arg-type]
    return model


def attention_of(settings: ModelSettings) -> str:
    """The name of the attention that the settings stand for; `sdpa` has a form that reads packed rows."""
    packs = settings.packing == "on" or (
        settings.packing == "auto" and pick_device(settings.device).type == "cuda"
    )
    return PACKED_SDPA if packs and settings.attention == "sdpa" else settings.attention


def read_model(where: str, dtype: torch.dtype, attention: str) -> PreTrainedModel:
    """Load a causal language model from a folder or hub id.

    Raises UserError if it cannot be read, and if a weight is missing or of another shape than the
    configuration says: transformers would start it from random numbers.
    """
    try:
        AutoConfig.from_pretrained(where, trust_remote_code=False)
        found: Any = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            output_loading_info=True,
        )
    except (*UNREADABLE, ImportError, RuntimeError) as error:
        raise UserError(f"the model cannot be loaded: {_first_line(error)}", where, _todo(where)) from error
    model: PreTrainedModel
    model, loaded = found
    absent = sorted([*loaded["missing_keys"], *(str(key[0]) for key in loaded["mismatched_keys"])])
    if absent:
        raise UserError(
            f"{len(absent)} of the model's weights are missing or of another shape, such as {absent[0]}",
            where,
            "use weights and config.json that belong together",
        )
    return model


def save_model(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Save model and tokenizer beside `folder` and rename, so that a folder is whole or absent."""
    weights = whole_state(model)
    with ranks.turn_of_first() as is_mine:
        if is_mine:
            _save_model(model, tokenizer, folder, weights)


def _save_model(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    weights: dict[str, torch.Tensor] | None,
) -> None:
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    model.save_pretrained(partial, state_dict=weights)
    tokenizer.save_pretrained(partial)
    shutil.rmtree(folder, ignore_errors=True)
    os.replace(partial, folder)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _todo(where: str) -> str:
    if Path(where).is_dir():
        return "the folder needs config.json, *.safetensors and the tokenizer's files, all readable"
    return "a hub id needs a network or a local copy: download it elsewhere, and name the folder"
