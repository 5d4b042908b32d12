"""Nothing leaves this machine while a recipe is worked on, unless it says `online: true`. Imports no torch.

Three layers, each of which would do alone for what it covers:

1. Switches of libraries, set before they are imported: the hub's clients work from their cache, telemetry and
   trackers (wandb, trackio) are off, no proxy is used.
2. Hub ids of models that are not in the local cache are refused at once, with what to do.
3. A guard in the process (`sdzero.network_guard`), which refuses whatever Python code tries all the same.

For what no guard in the process sees there are network namespaces: docs/threat-model.md.
"""

import os
import socket
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from sdzero import TELEMETRY_OFF, recipe_io
from sdzero.errors import UserError
from sdzero.network_guard import guarded
from sdzero.recipe import Recipe
from sdzero.tiny import world_of_model

OFFLINE = TELEMETRY_OFF | {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_UPDATE_CHECK": "1",
    "WANDB_MODE": "disabled",
    # A proxy on the loopback would carry requests out past the guard.
    "NO_PROXY": "*",
    "no_proxy": "*",
}
"""Switches of libraries while a recipe is offline."""

SENDS_ELSEWHERE = ("TRACKIO_SPACE_ID", "TRACKIO_SERVER_URL", "TRACKIO_DATASET_ID")
"""Variables that make a tracker write to another machine; removed while a recipe is offline."""


def load_recipe(path: Path | str, overrides: Sequence[str] = ()) -> Recipe:
    """`recipe_io.load_recipe`; if the recipe is offline, the switches of libraries are set for the rest of
    this process, so that whatever is imported later finds them."""
    recipe = recipe_io.load_recipe(path, overrides)
    if not recipe.online:
        _set_switches()
    return recipe


@contextmanager
def kept_in(recipe: Recipe, needs_models: bool = True) -> Iterator[None]:
    """For what the block does, let nothing out, if the recipe is offline.

    Allowed besides this machine are the hosts that the user named: `rollout.vllm.url` with `allow_remote`,
    and the first process of a run of several (`MASTER_ADDR`).

    Raises UserError for a model that the recipe names by its hub id and that is not in the local cache,
    unless the block needs none of them.
    """
    if recipe.online:
        yield
        return
    before = dict(os.environ)
    _set_switches()
    patched = _patch_imported()
    try:
        if needs_models:
            _refuse_absent_models(recipe)
        with guarded(_named_hosts(recipe)):
            yield
    finally:
        for owner, name, value in patched:
            setattr(owner, name, value)
        for name in (*OFFLINE, *SENDS_ELSEWHERE):
            os.environ.pop(name, None)
            if name in before:
                os.environ[name] = before[name]


def hub_id(path: str) -> str | None:
    """The path, if it can only be a hub id (`owner/name`); None for a folder, a file, an embedded model."""
    if world_of_model(path) is not None or Path(path).expanduser().exists():
        return None
    is_one = path.count("/") == 1 and not path.startswith((".", "/", "~")) and not path.endswith("/")
    return path if is_one else None


def _set_switches() -> None:
    os.environ.update(OFFLINE)
    for name in SENDS_ELSEWHERE:
        os.environ.pop(name, None)


def _patch_imported() -> list[tuple[Any, str, Any]]:
    """Libraries that were imported before have read their switches already; what they had, to be put back."""
    patched = []
    for module, names in (
        ("huggingface_hub.constants", ("HF_HUB_OFFLINE", "HF_HUB_DISABLE_TELEMETRY")),
        ("datasets.config", ("HF_HUB_OFFLINE", "HF_DATASETS_OFFLINE")),
    ):
        owner = sys.modules.get(module)
        for name in names:
            if hasattr(owner, name):
                patched.append((owner, name, getattr(owner, name)))
                setattr(owner, name, True)
    return patched


def named_models(recipe: Recipe) -> dict[str, str]:
    """The models that a recipe names, by its keys: folders, hub ids, embedded ones."""
    named = {
        "model.path": recipe.model.path,
        "srt.checkpoint": recipe.srt.checkpoint,
        "distill.teacher": recipe.distill.teacher,
    }
    return {key: path for key, path in named.items() if path is not None}


def hub_models(recipe: Recipe) -> dict[str, str]:
    """The hub ids of models that a recipe names, by its keys."""
    return {key: path for key, path in named_models(recipe).items() if hub_id(path) is not None}


def _refuse_absent_models(recipe: Recipe) -> None:
    for key, path in hub_models(recipe).items():
        if not any(cached_file(path, file) for file in ("config.json", "adapter_config.json")):
            raise UserError(
                f"the model {path} is not on this machine, and the recipe is offline",
                key,
                f"set online=true to let this run download it; or, where there is a network, `hf download"
                f" {path} --local-dir FOLDER`, bring FOLDER here and set {key} to it; or bring everything at"
                " once: docs/air-gap.md",
            )


def cached_file(model: str, file: str) -> Path | None:
    """Where the hub's client keeps a file of a model, by its hub id; None if it was never downloaded."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(model, file)
    return Path(found) if isinstance(found, str) else None


def _named_hosts(recipe: Recipe) -> set[str]:
    """The hosts off this machine that the user named, with their addresses as far as they are known now."""
    names = set()
    vllm = recipe.rollout.vllm
    if vllm.allow_remote and vllm.url is not None:
        names.add(str(urlsplit(vllm.url).hostname))
    if int(os.environ.get("WORLD_SIZE", "1")) > 1 and "MASTER_ADDR" in os.environ:
        names.add(os.environ["MASTER_ADDR"])
    found = set(names)
    for name in names:
        with suppress(OSError):  # whoever connects to it will say so
            found |= {str(row[4][0]) for row in socket.getaddrinfo(name, None)}
    return found
