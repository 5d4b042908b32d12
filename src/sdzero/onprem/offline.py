"""`sdzero doctor` on the network: what a run of the recipe would ask of other machines. Imports no torch."""

import os
from collections.abc import Iterator, Mapping
from urllib.parse import urlsplit

from sdzero.offline import hub_id, hub_models
from sdzero.onprem.findings import Finding, Subject, warning
from sdzero.recipe import CODE_SOURCES, Recipe
from sdzero.recipe_rollout import is_loopback

SERVER = "rollout.vllm.url"


def offline(subject: Subject) -> Iterator[Finding]:
    """What would leave this machine: hub ids in an online recipe, a server elsewhere. Nothing else does."""
    if subject.recipe is None:
        return
    recipe, named = subject.recipe, goes_online(subject.recipe)
    if os.environ.get("HF_HUB_OFFLINE", "").lower() in ("1", "true", "yes", "on"):
        hub = "the hub's client is offline (HF_HUB_OFFLINE)"
    else:
        hub = "the hub's client is online"
    state = f"online: {str(recipe.online).lower()}; {hub}"
    if not named:
        yield Finding("network", True, f"a run asks nothing of other machines ({state})")
        return
    shown = ", ".join(f"{key} ({value})" for key, value in named.items())
    if not recipe.online and SERVER not in named:
        yield Finding("network", True, f"only local copies are read of {shown} ({state})")
    else:
        yield warning(
            "network",
            f"a run may ask other machines for: {shown} ({state})",
            "to keep it here, set online: false, copy what is named, and set these keys to the folders",
        )


def goes_online(recipe: Recipe) -> Mapping[str, str]:
    """The recipe's keys that name something off this machine, with their values.

    Trackers (`report_to`) keep what they are given on this machine; wandb sends it if the recipe is online.
    """
    found = hub_models(recipe)
    path = recipe.data.path
    if recipe.data.source in ("huggingface", *CODE_SOURCES) and path is not None and hub_id(path) is not None:
        found["data.path"] = path
    if recipe.suite.name is not None and recipe.suite.data is None:
        found["suite.name"] = recipe.suite.name
    url = recipe.rollout.vllm.url
    if url is not None and not is_loopback(str(urlsplit(url).hostname)):
        found[SERVER] = url
    if recipe.online and "wandb" in recipe.report_to:
        found["report_to"] = "wandb"
    return found
