"""LoRA adapters inside a model: put in, found, merged, saved, read.

The model stays a transformers model, with peft's layers in place of some linear ones; it has one adapter,
which is always on. Nothing here or elsewhere switches an adapter off: without it the model would be another
one (design, contract 5).
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import PreTrainedModel

from sdzero.errors import UserError
from sdzero.recipe_lora import LoraSettings

ADAPTER = "default"
"""The name of the one adapter inside a model: the one that peft itself gives."""
ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
"""Stands before every name in an adapter's file: peft's format."""


def is_adapter_folder(folder: str | Path) -> bool:
    """Whether a folder holds an adapter, and not a whole model."""
    return (Path(folder) / ADAPTER_CONFIG).is_file() and not (Path(folder) / "config.json").is_file()


def has_adapter(model: torch.nn.Module) -> bool:
    """Whether there is an adapter in the model."""
    return any(isinstance(module, LoraLayer) for module in model.modules())


def is_adapter_name(name: str) -> bool:
    """Whether a parameter of this name belongs to an adapter."""
    return ".lora_A." in name or ".lora_B." in name


def adapter_parameters(model: torch.nn.Module) -> dict[str, torch.nn.Parameter]:
    """The adapter's parameters by name; empty without an adapter."""
    return {name: p for name, p in model.named_parameters() if is_adapter_name(name)}


def plain_name(name: str) -> str:
    """The name that a parameter has in the model without an adapter."""
    return name.replace(".base_layer.", ".")


def lora_config(settings: LoraSettings) -> LoraConfig:
    """peft's configuration that the settings stand for."""
    return LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,
        lora_dropout=settings.dropout,
        target_modules=settings.target_modules,
        bias="none",
        task_type="CAUSAL_LM",
    )


def attach_adapter(model: PreTrainedModel, config: LoraConfig, seed: int, base: str) -> None:
    """Put a new adapter into the model; B is 0, so it computes what it did. All else is frozen.

    A is random, from `seed` alone; the global random numbers stay as they are. The adapter is float32 where
    the model's own type is shorter. `base` is what the adapter's file will name as its model. Raises
    UserError if the named layers are not there, or are not linear, or are the output head.
    """
    if has_adapter(model):
        raise ValueError("the model has an adapter already: merge it first, or train that one")
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    todo = "name linear layers of the decoder, such as [q_proj, v_proj], or set it to all-linear"
    with torch.random.fork_rng(devices=_gpus()):
        torch.manual_seed(seed)
        try:
            model.add_adapter(config, ADAPTER)
        except ValueError as error:
            raise UserError(
                f"LoRA cannot be put on these layers: {error}", "lora.target_modules", todo
            ) from error
    if model.get_output_embeddings() is not head:  # type: ignore[no-untyped-call]
        raise UserError("LoRA on the output head is not supported", "lora.target_modules", todo)
    strangers = sorted(
        name
        for name, module in model.named_modules()
        if isinstance(module, LoraLayer) and not isinstance(module.get_base_layer(), torch.nn.Linear)
    )
    if strangers:
        raise UserError(f"LoRA on {strangers[0]} is not supported", "lora.target_modules", todo)
    for name, parameter in model.named_parameters():
        own = is_adapter_name(name)
        parameter.requires_grad_(own)
        if own:
            parameter.data = parameter.data.to(torch.promote_types(parameter.dtype, torch.float32))
    model.peft_config[ADAPTER].base_model_name_or_path = base
    model.train(model.training)  # new layers are in training mode, with dropout, whatever the model is in


def refuse_sharding(environment: Mapping[str, str]) -> None:
    """Raise UserError under a launcher that cuts weights up: adapters are not followed there."""
    for variable, name in (("ACCELERATE_USE_FSDP", "FSDP"), ("ACCELERATE_USE_DEEPSPEED", "DeepSpeed")):
        if environment.get(variable, "false").lower() in ("1", "true"):
            raise UserError(
                f"LoRA does not run under {name}",
                "lora",
                "launch plain data parallel processes (each holds the frozen weights, small with"
                " model.quantization), or leave the section `lora` out",
            )


def _gpus() -> list[int]:
    return list(range(torch.cuda.device_count()))


def lora_layers(model: torch.nn.Module) -> Iterator[tuple[str, Any]]:
    """The layers with an adapter, by their names."""
    for name, module in model.named_modules():
        if isinstance(module, LoraLayer):
            yield name, module


def check_targets(model: PreTrainedModel, settings: LoraSettings, where: str) -> None:
    """Raise UserError if the adapter, read from `where`, is on other layers than the settings name."""
    head: Any = model.get_output_embeddings()  # type: ignore[no-untyped-call]
    adapted = {name for name, _ in lora_layers(model)}
    linear = {
        name
        for name, module in model.named_modules()
        if isinstance(module, torch.nn.Linear | LoraLayer)
        and module is not head
        and not any(name.startswith(f"{own}.") for own in adapted)
    }
    named = settings.target_modules
    if named != "all-linear":
        linear = {name for name in linear if any(f".{name}".endswith(f".{target}") for target in named)}
    if linear != adapted:
        one = sorted(linear ^ adapted)[0]
        raise UserError(
            f"the adapter to be trained on is on other layers than the recipe names, such as {one}",
            f"{where}, lora.target_modules",
            "name the layers of the adapter, or set lora.keep=merged for a new adapter",
        )


def merged_weights(model: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every parameter under its plain name, with the adapter's part added: what the model computes with.

    Without an adapter these are the model's own tensors. Raises ValueError for quantized weights.
    """
    layers = dict(lora_layers(model))
    for name, parameter in model.named_parameters():
        if is_adapter_name(name):
            continue
        owner, is_base, _ = name.partition(".base_layer.weight")
        if is_base:
            yield plain_name(name), merged_weight(layers[owner])
        else:
            yield plain_name(name), parameter.detach()


def merged_weight(layer: Any) -> Tensor:
    """W + (alpha / rank) B A of one layer, in the type of W, by a sum in the wider type of the two."""
    weight = layer.get_base_layer().weight.detach()
    if not weight.is_floating_point():
        raise ValueError("quantized weights cannot be merged: their grid is too coarse for an adapter")
    delta = layer.get_delta_weight(ADAPTER).detach()
    merged: Tensor = (weight.to(delta.dtype) + delta).to(weight.dtype)
    return merged


def plain_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The state of the model as one without an adapter has it."""
    if not has_adapter(model):
        return dict(model.state_dict())
    kept = {plain_name(name): t for name, t in model.state_dict().items() if not is_adapter_name(name)}
    merged = dict(merged_weights(model))
    return {name: merged.get(name, tensor) for name, tensor in kept.items()}


def merge_adapter(model: PreTrainedModel) -> None:
    """Add the adapter's part to the weights and take the adapter out; what was frozen is trainable again.

    Whoever shares the weights with this model has other ones afterwards.
    """
    for name, layer in list(lora_layers(model)):
        base = layer.get_base_layer()
        with torch.no_grad():
            base.weight.copy_(merged_weight(layer))
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, base)
    model._hf_peft_config_loaded = False
    model.__dict__.pop("peft_config", None)
    model.requires_grad_(True)


def adapter_state(model: PreTrainedModel) -> dict[str, Tensor]:
    """The adapter's tensors under the names of peft's files."""
    return {
        PREFIX + name.replace(f".{ADAPTER}.", "."): p.detach().to("cpu").contiguous()
        for name, p in adapter_parameters(model).items()
    }


def save_adapter(model: PreTrainedModel, folder: Path) -> None:
    """Write the adapter in peft's format into an existing folder."""
    model.peft_config[ADAPTER].save_pretrained(str(folder))
    save_file(adapter_state(model), folder / ADAPTER_WEIGHTS, metadata={"format": "pt"})


def read_adapter_config(folder: str | Path) -> LoraConfig:
    """The configuration of an adapter's folder. Raises UserError if it is no plain LoRA."""
    file = Path(folder) / ADAPTER_CONFIG
    try:
        config: LoraConfig = LoraConfig.from_pretrained(str(folder))
    except (OSError, ValueError, TypeError) as error:
        raise UserError(f"the adapter's configuration cannot be read: {error}", str(file)) from error
    stored = json.loads(file.read_text())
    others = {
        "peft_type": stored.get("peft_type") != "LORA",
        "use_dora": bool(stored.get("use_dora")),
        "modules_to_save": bool(stored.get("modules_to_save")),
        "bias": stored.get("bias", "none") != "none",
    }
    for key in (key for key, differs in others.items() if differs):
        raise UserError(
            f"only plain LoRA adapters can be used, and this one has {key}: {stored.get(key)!r}",
            str(file),
            "merge it into its model with peft (merge_and_unload), and name the merged folder",
        )
    return config


def load_adapter_weights(model: PreTrainedModel, folder: str | Path) -> None:
    """Copy an adapter's file into the adapter that the model has; the parameters stay the same objects.

    Raises UserError if the file is damaged or belongs to an adapter of other layers or another rank.
    """
    file = Path(folder) / ADAPTER_WEIGHTS
    try:
        stored = load_file(file)
    except (OSError, SafetensorError) as error:
        raise UserError(
            f"the adapter cannot be read: {error}", str(file), "restore it, or train it again"
        ) from error
    own = {
        PREFIX + name.replace(f".{ADAPTER}.", "."): parameter
        for name, parameter in adapter_parameters(model).items()
    }
    differing = sorted(set(own) ^ set(stored)) or sorted(
        name for name, parameter in own.items() if parameter.shape != stored[name].shape
    )
    if differing:
        raise UserError(
            f"the adapter has other layers or another rank than the model's: {differing[0]}",
            str(file),
            "use the adapter with the settings and the model that it was trained with",
        )
    with torch.no_grad():
        for name, parameter in own.items():
            parameter.copy_(stored[name])
