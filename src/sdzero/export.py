"""A run's model as a folder for others: Hugging Face files, chat template, generation config, model card."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import GenerationConfig

from sdzero.adapters import (
    ADAPTER_CONFIG,
    ADAPTER_WEIGHTS,
    is_adapter_folder,
    read_adapter_config,
)
from sdzero.errors import UserError, unknown_name
from sdzero.method.roles import Roles
from sdzero.model_card import DESCRIPTIONS, license_of, model_card
from sdzero.models import load_model, load_tokenizer, resolve_path, save_model
from sdzero.offline import kept_in
from sdzero.provenance import OWN
from sdzero.recipe import Recipe
from sdzero.recipe_io import load_recipe
from sdzero.run_dir import MANIFEST_NAME, RECIPE_NAME, RunDir
from sdzero.run_provenance import note_export

LICENCE_FILES = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")


def export_model(run_folder: Path, to: Path, model: str = "sdzero", adapter: bool = False) -> None:
    """Write a model of a finished stage into the new folder `to`, beside first and then renamed.

    It is an ordinary model folder, an adapter merged into its model in the recipe's dtype; with `adapter` it
    is the adapter alone, for the recipe's own base model. Raises UserError if there is no such run or model,
    if `to` has anything in it, and for `adapter` without LoRA.
    """
    if not (run_folder / MANIFEST_NAME).is_file():
        raise UserError("this is no run's folder", str(run_folder), "name the folder of `sdzero run`")
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise UserError("there is something here already", str(to), "name a new folder in --to")
    run = RunDir.unlocked(run_folder)
    recipe = load_recipe(run.path(RECIPE_NAME))
    stage = stage_of(model, recipe)
    if not run.is_done(stage):
        raise UserError(
            f"the run has no finished model `{model}`", str(run.path(stage)), "finish its stage first"
        )
    partial = to.with_name(to.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        partial.mkdir(parents=True)
        partial.rmdir()  # whoever writes the model makes it
    except OSError as error:
        raise UserError(
            f"the folder cannot be written ({error.strerror})", str(partial), "name another one in --to"
        ) from error
    source = run.path(f"{stage}/model")
    if adapter:
        write_adapter(partial, adapters_of(run, stage, recipe))
        load_tokenizer(str(source)).save_pretrained(partial)
    else:
        with kept_in(recipe, needs_models=False):
            write_model(partial, source, recipe)
    describe(partial, run, recipe, model)
    note_export(partial, run, recipe, source)
    if to.is_dir():
        to.rmdir()
    os.replace(partial, to)


def stage_of(model: str, recipe: Recipe) -> str:
    """The stage that trains a model. Raises UserError for an unknown name."""
    if model not in DESCRIPTIONS:
        raise unknown_name("model", model, DESCRIPTIONS)
    return {"sdzero": "distill", "srt": f"srt/round-{recipe.collect.rounds}"}.get(model, model)


def write_model(folder: Path, source: Path, recipe: Recipe) -> None:
    """The whole model: copied, or an adapter merged into the weights of its model as they were published."""
    tokenizer = load_tokenizer(str(source))
    if is_adapter_folder(source):
        whole = recipe.model.model_copy(update={"quantization": None, "device": "cpu"})
        save_model(load_model(str(source), whole), tokenizer, folder)
    else:
        shutil.copytree(source, folder, ignore=shutil.ignore_patterns(*OWN))
    config = json.loads((folder / "config.json").read_text())
    if not config.get("use_cache", True):  # a trainer's setting, which slows others' sampling down
        config["use_cache"] = True
        (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    generation = GenerationConfig.from_pretrained(folder)
    own = generation.eos_token_id
    ends = [own] if isinstance(own, int) else list(own or [])
    end = Roles(tokenizer, recipe.phrases, recipe.chat).end_token_id
    generation.eos_token_id = sorted({*ends, end}) if ends and ends != [end] else end
    generation._from_model_config = False
    generation.save_pretrained(folder)


def adapters_of(run: RunDir, stage: str, recipe: Recipe) -> list[Path]:
    """The adapters that lie between the run's base model and the stage's model, in their order.

    Raises UserError if there are none.
    """
    own = run.path(f"{stage}/model")
    if is_adapter_folder(own):
        return [own]
    last = run.path(f"{stage}/adapter")
    if not is_adapter_folder(last):
        raise UserError(
            "the model was trained without LoRA, so there is no adapter", str(own), "leave out --adapter"
        )
    before = run.path(f"srt/round-{recipe.collect.rounds}/adapter")
    starts_at_srt = stage == "distill" and recipe.srt.checkpoint is None
    return [before, last] if starts_at_srt else [last]


def write_adapter(folder: Path, adapters: list[Path]) -> None:
    """One adapter that adds what all of them add: (alpha / r) B A summed up, side by side in the rank.

    sum_i s_i B_i A_i = [s_1 B_1, s_2 B_2, ...] [A_1; A_2; ...], with a scale of 1.
    """
    folder.mkdir()
    if len(adapters) == 1:
        for name in (ADAPTER_CONFIG, ADAPTER_WEIGHTS):
            shutil.copyfile(adapters[0] / name, folder / name)
        return
    configs = [read_adapter_config(one) for one in adapters]
    stored = [load_file(one / ADAPTER_WEIGHTS) for one in adapters]
    if any(set(one) != set(stored[0]) for one in stored):
        raise UserError("the adapters of the stages are on different layers", str(adapters[-1]))
    joined: dict[str, Tensor] = {}
    for name in stored[0]:
        if ".lora_A." in name:
            joined[name] = torch.cat([one[name] for one in stored], dim=0)
        else:
            scaled = [one[name] * (c.lora_alpha / c.r) for one, c in zip(stored, configs, strict=True)]
            joined[name] = torch.cat(scaled, dim=1).contiguous()
    config: Any = configs[0]
    config.r = config.lora_alpha = sum(one.r for one in configs)
    config.save_pretrained(str(folder))
    save_file(joined, folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def describe(folder: Path, run: RunDir, recipe: Recipe, model: str) -> None:
    """Add the model card, the recipe, the results, and the base model's licence files."""
    base = Path(resolve_path(recipe.model.path))
    (folder / "README.md").write_text(card_of(run, recipe, model, folder), encoding="utf-8")
    shutil.copyfile(run.path(RECIPE_NAME), folder / RECIPE_NAME)
    if run.path("results.json").exists():
        shutil.copyfile(run.path("results.json"), folder / "results.json")
    for file in (file for pattern in LICENCE_FILES for file in base.glob(pattern)):
        shutil.copyfile(file, folder / file.name)


def card_of(run: RunDir, recipe: Recipe, model: str, folder: Path) -> str:
    """The model card of a run's model that lies, or is to lie, in `folder`."""
    results = run.read_json("results.json") if run.path("results.json").exists() else None
    license_id = license_of(Path(resolve_path(recipe.model.path)))
    base = str(read_adapter_config(folder).base_model_name_or_path) if is_adapter_folder(folder) else None
    return model_card(recipe, model, results, run.manifest(), license_id, base)
