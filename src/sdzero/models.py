"""Loading and saving the policy: a Hugging Face folder in, a Hugging Face folder out."""

import importlib.util
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig
from safetensors import SafetensorError
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.utils import logging as transformers_logging

from sdzero import ranks, tiny
from sdzero.adapters import (
    attach_adapter,
    check_targets,
    has_adapter,
    is_adapter_folder,
    load_adapter_weights,
    merge_adapter,
    read_adapter_config,
    save_adapter,
)
from sdzero.disk import writing
from sdzero.errors import UserError
from sdzero.offline import cached_file, hub_id
from sdzero.packed_attention import PACKED_SDPA
from sdzero.recipe import ModelSettings
from sdzero.recipe_lora import LoraSettings
from sdzero.safe_model import check_safe, remote_code
from sdzero.sharded import whole_state

# Loading and saving take moments; their bars and notes would drown the run's own lines.
transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]

UNREADABLE = (OSError, ValueError, SafetensorError)
"""What transformers raises for files that are missing or damaged."""

PACKS_ON_CPU = "support_avx512bf16_for_cpu"
"""bitsandbytes: on CPUs that can, a 4-bit layer in evaluation turns its weights, for good, into a form that
computes in bfloat16 and has no gradient. A model that samples and is trained must not."""

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
    """The folder or hub id that a recipe's model path means.

    Raises UserError if it can be neither, and for a folder with pickled weights or code of its own.
    """
    embedded = tiny.embedded_folder(path)
    if embedded is not None:
        return str(embedded)
    folder = Path(path)
    if folder.is_dir():
        if not (folder / "config.json").is_file() and not is_adapter_folder(folder):
            raise UserError(
                "the model folder has no config.json",
                str(folder),
                "name a folder that save_pretrained wrote, or a downloaded snapshot",
            )
        check_safe(folder)
        return str(folder)
    if hub_id(path) is None:
        raise UserError(
            "there is no model folder here",
            path,
            "check model.path: `tiny`, a folder, or a hub id owner/name",
        )
    return path


def local_folder(path: str) -> Path | None:
    """Where the files of a recipe's model are on this machine: of a hub id in the hub's cache, and None if it
    was never downloaded. Raises UserError as `resolve_path` does."""
    where = resolve_path(path)
    if Path(where).is_dir():
        return Path(where)
    config = cached_file(where, "config.json")
    return None if config is None else config.parent


def load_tokenizer(path: str) -> PreTrainedTokenizerBase:
    """Load a tokenizer. Raises UserError if it cannot be read."""
    where = resolve_path(path)
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(where, trust_remote_code=False)
    except (*UNREADABLE, KeyError, TypeError) as error:
        raise UserError(
            f"the tokenizer cannot be loaded: {_first_line(error)}", where, _todo(where)
        ) from error
    if tokenizer.init_kwargs.get("auto_map"):  # of a hub id: a folder was looked at
        raise remote_code(where)
    return tokenizer


def load_model(path: str, settings: ModelSettings, device: torch.device | None = None) -> PreTrainedModel:
    """Load a causal language model with the recipe's dtype, attention and device (or onto `device`).

    A folder with an adapter is read as the adapter's model with the adapter merged; with quantized weights,
    which cannot be merged, with the adapter in it, frozen.
    """
    where = resolve_path(path)
    if is_adapter_folder(where):
        model = _read_with_adapter(where, settings, read_adapter_config(where), device)
        if settings.quantization is None:
            merge_adapter(model)
        else:
            model.requires_grad_(False)
        return model
    return _read_as_settings_say(where, settings, device)


def load_to_train_on(path: str, settings: ModelSettings, lora: LoraSettings) -> PreTrainedModel:
    """Load an adapter's folder so that the adapter is trained further. Raises UserError if it is another
    kind of adapter than `lora` says."""
    where = resolve_path(path)
    config = read_adapter_config(where)
    for key, own, wanted in (("rank", config.r, lora.rank), ("alpha", config.lora_alpha, lora.alpha)):
        if own != wanted:
            raise UserError(
                f"the adapter to be trained on has {key} {own}, the recipe has {wanted}",
                f"{where}, lora.{key}",
                f"set lora.{key}={own}, or lora.keep=merged for a new adapter",
            )
    config.lora_dropout = lora.dropout
    config.inference_mode = False
    model = _read_with_adapter(where, settings, config)
    check_targets(model, lora, where)
    return model


def _read_with_adapter(
    where: str, settings: ModelSettings, config: LoraConfig, device: torch.device | None = None
) -> PreTrainedModel:
    base = str(config.base_model_name_or_path or "")
    model = _read_as_settings_say(resolve_path(base), settings, device)
    attach_adapter(model, config, seed=0, base=base)
    load_adapter_weights(model, where)
    return model


def _read_as_settings_say(
    where: str, settings: ModelSettings, device: torch.device | None = None
) -> PreTrainedModel:
    if settings.quantization is not None:
        return read_quantized(where, settings)
    model = read_model(where, DTYPES[settings.dtype], attention_of(settings))
    model.to(device or pick_device(settings.device))  # type: ignore[arg-type]
    return model


def read_quantized(where: str, settings: ModelSettings) -> PreTrainedModel:
    """Load a model with its linear layers in 4 bits (NF4, QLoRA, arXiv 2305.14314), by bitsandbytes.

    What is not quantized, and the products, are in the recipe's dtype. Raises UserError without bitsandbytes.
    """
    require_bitsandbytes("model.quantization", "set it to null")
    dtype = DTYPES[settings.dtype]
    quantization = BitsAndBytesConfig(  # type: ignore[no-untyped-call]
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    device = pick_device(settings.device)
    model = read_model(
        where,
        dtype,
        attention_of(settings),
        quantization_config=quantization,
        device_map={"": device},
    )
    for module in model.modules():
        if hasattr(module, PACKS_ON_CPU):
            setattr(module, PACKS_ON_CPU, False)
    return model


def require_bitsandbytes(key: str, instead: str) -> None:
    """Raise UserError if bitsandbytes is not installed."""
    if importlib.util.find_spec("bitsandbytes") is None:
        raise UserError(
            "bitsandbytes is not installed", key, f"pip install 'sdzero[bitsandbytes]', or {instead}"
        )


def absolute_path(path: str) -> str:
    """What `resolve_path` gives, a folder by its absolute path: a name that holds in other places too."""
    where = resolve_path(path)
    return str(Path(where).resolve()) if Path(where).is_dir() else where


def attention_of(settings: ModelSettings) -> str:
    """The name of the attention that the settings stand for; `sdpa` has a form that reads packed rows."""
    packs = settings.packing == "on" or (
        settings.packing == "auto" and pick_device(settings.device).type == "cuda"
    )
    return PACKED_SDPA if packs and settings.attention == "sdpa" else settings.attention


def read_model(where: str, dtype: torch.dtype, attention: str, **keywords: Any) -> PreTrainedModel:
    """Load a causal language model from a folder or hub id.

    Raises UserError if it cannot be read, if it has pickled weights or code of its own, and if a weight is
    missing or of another shape than the configuration says: transformers would start it from random numbers.
    """
    if Path(where).is_dir():
        check_safe(Path(where))
    try:
        own = AutoConfig.from_pretrained(where, trust_remote_code=False)
        if getattr(own, "auto_map", None):
            raise remote_code(where)
        found: Any = AutoModelForCausalLM.from_pretrained(
            where,
            dtype=dtype,
            attn_implementation=attention,
            trust_remote_code=False,
            use_safetensors=True,
            output_loading_info=True,
            **keywords,
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
    """Save model and tokenizer beside `folder` and rename, so that a folder is whole or absent.

    Raises UserError if they cannot be written.

    Of a model with an adapter the adapter is saved alone.
    """
    weights = None if has_adapter(model) else whole_state(model)
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
    with writing(folder):
        if has_adapter(model):
            partial.mkdir(parents=True)
            save_adapter(model, partial)
        else:
            model.save_pretrained(partial, state_dict=weights)
        tokenizer.save_pretrained(partial)
        shutil.rmtree(folder, ignore_errors=True)
        os.replace(partial, folder)


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__


def _todo(where: str) -> str:
    if Path(where).is_dir():
        return "the folder needs config.json, *.safetensors and the tokenizer's files, all readable"
    return (
        "a hub id needs a local copy, or a network and online=true: check both, or download it elsewhere and"
        " name its folder"
    )
