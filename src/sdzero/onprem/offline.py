"""`sdzero doctor` on the network: what a run of the recipe would ask of other machines. Imports no torch."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from sdzero import tiny
from sdzero.onprem.findings import Finding, Subject, warning
from sdzero.recipe import CODE_SOURCES, Recipe
from sdzero.recipe_rollout import is_loopback

OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
"""Any of them set keeps the hub's clients from the network."""
TRUE = ("1", "true", "yes", "on")


def offline(subject: Subject) -> Iterator[Finding]:
    """What would leave this machine: hub ids in the recipe, a server elsewhere. Nothing else does."""
    if subject.recipe is None:
        return
    asked = goes_online(subject.recipe)
    is_offline = any(os.environ.get(name, "").lower() in TRUE for name in OFFLINE)
    state = "offline mode is on (HF_HUB_OFFLINE)" if is_offline else "offline mode is off"
    if not asked:
        yield Finding("network", True, f"a run asks nothing of other machines; {state}")
        return
    shown = ", ".join(f"{key} ({value})" for key, value in asked.items())
    if is_offline and "rollout.vllm.url" not in asked:
        yield Finding("network", True, f"{state}: only local copies are read of {shown}")
    else:
        yield warning(
            "network",
            f"a run would ask other machines for: {shown}; {state}",
            "to keep it here: copy what is named, set these keys to the folders, and set HF_HUB_OFFLINE=1",
        )


def goes_online(recipe: Recipe) -> Mapping[str, str]:
    """The recipe's keys that lead off this machine, with their values.

    There is no key for wandb, trackio or tensorboard: trainers are given `report_to: []`.
    """
    models = {
        "model.path": recipe.model.path,
        "srt.checkpoint": recipe.srt.checkpoint,
        "distill.teacher": recipe.distill.teacher,
    }
    found = {key: path for key, path in models.items() if path is not None and is_hub_id(path)}
    if recipe.data.source in ("huggingface", *CODE_SOURCES) and is_hub_id(recipe.data.path or ""):
        found["data.path"] = str(recipe.data.path)
    if recipe.suite.name is not None and recipe.suite.data is None:
        found["suite.name"] = recipe.suite.name
    url = recipe.rollout.vllm.url
    if url is not None and not is_loopback(_host(url)):
        found["rollout.vllm.url"] = url
    return found


def is_hub_id(path: str) -> bool:
    """Whether a path in a recipe means something on the hub: `owner/name`, and no such file here."""
    if tiny.world_of_model(path) is not None or Path(path).expanduser().exists():
        return False
    return path.count("/") == 1 and not path.startswith((".", "/", "~")) and not path.endswith("/")


def _host(url: str) -> str:
    from urllib.parse import urlsplit

    return urlsplit(url).hostname or ""
