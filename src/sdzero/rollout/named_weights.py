"""A model's weights under the names of a checkpoint, one by one or as a folder, for an engine to load."""

import copy
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from sdzero.adapters import merged_weights

HEAD = "lm_head.weight"
"""Under this name a checkpoint holds the output head."""


def named_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every weight by its name, with an adapter's part added. A head that is the embedding comes a second
    time, as a head: vLLM's CPU build keeps a packed copy of it, which goes stale if only the embedding is
    loaded.

    The tensors are the model's own (but for merged ones), without gradient: they are to be copied, not kept.
    """
    yield from merged_weights(model)
    if getattr(model.config.get_text_config(), "tie_word_embeddings", False):
        head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
        yield HEAD, head.weight.detach()


def architecture(model: PreTrainedModel) -> str:
    """What two models have in common if one can take the other's weights."""
    kept: dict[str, Any] = model.config.to_diff_dict()
    for key in ("_name_or_path", "transformers_version", "dtype", "torch_dtype", "use_cache"):
        kept.pop(key, None)
    return json.dumps({"class": type(model).__name__, **kept}, sort_keys=True, default=str)


def write_config(model: PreTrainedModel, folder: Path) -> None:
    """Write the configuration alone: enough to build the model with other weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.save_pretrained(folder)


def write_weights(model: PreTrainedModel, folder: Path, dtype: torch.dtype) -> None:
    """Write the weights, in `dtype`, as `model.safetensors` into `folder`: beside, then renamed."""
    folder.mkdir(parents=True, exist_ok=True)
    # No two tensors of a file may share memory, as a tied head does.
    tensors = {name: tensor.to("cpu", dtype, copy=True).contiguous() for name, tensor in named_weights(model)}
    partial = folder / "model.safetensors.partial"
    save_file(tensors, partial, metadata={"format": "pt"})
    os.replace(partial, folder / "model.safetensors")
