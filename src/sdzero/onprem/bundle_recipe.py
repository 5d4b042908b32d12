"""What a recipe needs that is not in it: models, data, code, packages; and the recipe within a bundle."""

import os
import sys
from dataclasses import dataclass
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, Literal

from sdzero.errors import UserError
from sdzero.offline import hub_id, named_models
from sdzero.recipe import Recipe
from sdzero.tiny import world_of_model

Kind = Literal["model", "dataset", "code"]

FOLDERS: dict[Kind, str] = {"model": "models", "dataset": "data", "code": "code"}

OWN_VERIFIERS = ("math", "puzzle", "code")
MOST_OF_A_NAME = 100


@dataclass(frozen=True)
class Need:
    """Something that comes along. `source` is a path, or a hub id if `is_on_hub`; `place` is its path in the
    bundle."""

    key: str
    source: str
    kind: Kind
    place: str
    is_on_hub: bool = False


def needs_of(recipe: Recipe) -> list[Need]:
    """Every model, file and folder that the recipe names, and the code of a verifier of the user's.

    Raises UserError for what is not there, and for benchmarks that would come from the hub.
    """
    if recipe.suite.name is not None and recipe.suite.data is None:
        raise UserError(
            "the recipe scores a suite whose benchmarks come from the hub",
            "suite.data",
            "copy them (docs/benchmarks.md says how) and set suite.data to their folder, or suite.name=null",
        )
    data_may_be_on_hub = recipe.data.source != "jsonl"
    named: list[tuple[str, str | None, Kind, bool]] = [
        *((key, path, "model", True) for key, path in named_models(recipe).items()),
        ("data.path", recipe.data.path, "dataset", data_may_be_on_hub),
        ("distill.rehearsal_traces", recipe.distill.rehearsal_traces, "dataset", False),
        ("suite.data", recipe.suite.data, "dataset", False),
        ("verifier.sandbox.packages", recipe.verifier.sandbox.packages, "dataset", False),
        ("suite.sandbox.packages", recipe.suite.sandbox.packages, "dataset", False),
    ]
    needs: list[Need] = []
    for key, path, kind, may_be_on_hub in named:
        if path is None or (kind == "model" and world_of_model(path) is not None):
            continue
        is_on_hub = may_be_on_hub and hub_id(path) is not None
        source = path if is_on_hub else str(Path(path).expanduser())
        if not is_on_hub and not Path(source).exists():
            raise UserError(
                "there is no such file or folder", f"{key}: {path}", "mend the path in the recipe"
            )
        needs.append(Need(key, source, kind, _place(source, kind, is_on_hub, needs), is_on_hub))
    if recipe.verifier.name not in OWN_VERIFIERS:
        code = _code_of(recipe.verifier.name.partition(":")[0].partition(".")[0])
        needs.append(Need("verifier.name", str(code), "code", f"{FOLDERS['code']}/{code.name}"))
    return needs


def _place(source: str, kind: Kind, is_on_hub: bool, taken: list[Need]) -> str:
    """Where it is in the bundle: named as it is here, with a number if another thing has that name."""
    for other in taken:
        if other.source == source and other.kind == kind:
            return other.place
    name = source.replace("/", "--") if is_on_hub else Path(source).resolve().name
    places = {other.place for other in taken}
    numbered = (f"{number}-{name}" for number in range(2, MOST_OF_A_NAME))
    return next(place for one in (name, *numbered) if (place := f"{FOLDERS[kind]}/{one}") not in places)


def _code_of(module: str) -> Path:
    """The file or folder with a module of the user's."""
    found = PathFinder.find_spec(module, [*sys.path, os.getcwd()])
    if found is None or found.origin is None:
        raise UserError(
            f"there is no module `{module}` with the verifier's code",
            "verifier.name",
            "run this command from the folder in which it lies",
        )
    origin = Path(found.origin)
    if "site-packages" in origin.parts:
        raise UserError(
            f"the verifier's module `{module}` is of an installed package, which would be missing there",
            "verifier.name",
            "put the code into a module of your own beside the recipe",
        )
    return origin.parent if found.submodule_search_locations else origin


def within_bundle(recipe: Recipe, needs: list[Need]) -> Recipe:
    """The recipe with its paths in the bundle, offline. Paths are relative: runs start in its folder."""
    values: dict[str, Any] = recipe.model_dump()
    values["online"] = False
    for need in needs:
        if need.kind == "code":
            continue
        *sections, key = need.key.split(".")
        section = values
        for name in sections:
            section = section[name]
        section[key] = need.place
    return Recipe.model_validate(values)


def extras_of(recipe: Recipe) -> list[str]:
    """The extras of sdzero (pyproject.toml) whose packages the recipe needs."""
    optimizers = [recipe.srt, recipe.distill, recipe.rft, recipe.sft, recipe.grpo, recipe.sdft]
    uses_8bit = any(one is not None and one.optimizer == "adamw_8bit" for one in optimizers)
    wanted = {
        "bitsandbytes": recipe.model.quantization is not None or uses_8bit,
        "humaneval": recipe.data.source == "humaneval" and recipe.data.path is None,
        "vllm": recipe.rollout.engine == "vllm" and recipe.rollout.vllm.url is None,
    }
    return [extra for extra, is_wanted in wanted.items() if is_wanted]
