"""The sizes of a model, from its `config.json` or from a table of public models. Imports no torch.

What a plan needs of a model is in its configuration; the weights need not be there.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any, Literal

from sdzero import tiny
from sdzero.errors import UserError
from sdzero.offline import cached_file, hub_id

NORMS: dict[str, Literal["head", "all"] | None] = {
    "llama": None,
    "mistral": None,
    "qwen2": None,
    "qwen3": "head",
    "olmo2": "all",
    "olmo3": "all",
}
"""Families that a plan knows (`model_type`), and how they norm queries and keys: each head by itself, all
heads together, or not."""

NORMS_AFTER = ("olmo2", "olmo3")
"""Families whose norms stand behind attention and the gated part, not before."""

SHIPPED = {
    "Qwen/Qwen3-4B-Instruct-2507": "qwen3-4b",
    "allenai/Olmo-3-7B-Instruct": "olmo3-7b",
    "meta-llama/Meta-Llama-3-8B-Instruct": "llama3",
}
"""Models whose configuration ships with the package (`sdzero/architectures`)."""


@dataclass(frozen=True)
class Linear:
    """A linear layer of a decoder layer: the end of its name, and its width in and out."""

    name: str
    inner: int
    outer: int

    @property
    def parameters(self) -> int:
        """Without a bias."""
        return self.inner * self.outer


@dataclass(frozen=True)
class ModelShape:
    """A dense decoder with a gated inner part.

    `windows`: of each layer, how many keys a token sees at most (None: all before it).
    `biases`: numbers in the biases of one layer. `source` says where the sizes are from.
    """

    name: str
    family: str
    width: int
    inner: int
    heads: int
    key_heads: int
    head_width: int
    vocabulary: int
    tied: bool
    windows: tuple[int | None, ...]
    biases: int = 0
    source: str = ""

    @property
    def layers(self) -> int:
        """How many decoder layers."""
        return len(self.windows)

    @property
    def queries(self) -> int:
        """Width of all queries of a token."""
        return self.heads * self.head_width

    @property
    def keys(self) -> int:
        """Width of all keys of a token, and of all values."""
        return self.key_heads * self.head_width

    @property
    def norms(self) -> Literal["head", "all"] | None:
        """How queries and keys are normed."""
        return NORMS[self.family]

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The linear layers of a decoder layer."""
        return (
            Linear("q_proj", self.width, self.queries),
            Linear("k_proj", self.width, self.keys),
            Linear("v_proj", self.width, self.keys),
            Linear("o_proj", self.queries, self.width),
            Linear("gate_proj", self.width, self.inner),
            Linear("up_proj", self.width, self.inner),
            Linear("down_proj", self.inner, self.width),
        )

    @property
    def layer_products(self) -> int:
        """Weights of a layer that are multiplied with."""
        return sum(linear.parameters for linear in self.linears)

    @property
    def layer_parameters(self) -> int:
        """Numbers in a decoder layer."""
        of_norms = {"head": 2 * self.head_width, "all": self.queries + self.keys, None: 0}[self.norms]
        return self.layer_products + 2 * self.width + of_norms + self.biases

    @property
    def head(self) -> int:
        """Numbers in the output head, and in the embeddings."""
        return self.vocabulary * self.width

    @property
    def parameters(self) -> int:
        """Numbers in the model; a tied head counts once."""
        outside = self.head * (1 if self.tied else 2) + self.width
        return self.layers * self.layer_parameters + outside

    def seen_keys(self, length: int) -> float:
        """How many keys a token of a sequence sees, itself included: mean over tokens, sum over layers."""
        return sum(mean_keys(length, window) for window in self.windows)

    def held_keys(self, length: float) -> float:
        """How many keys the next token of a sequence of this length sees, summed over layers."""
        return sum(length if window is None else min(length, window) for window in self.windows)


def mean_keys(length: int, window: int | None) -> float:
    """How many keys a token of a sequence sees on average, itself included."""
    if window is None or window >= length:
        return (length + 1) / 2
    # The first `window` tokens see 1, 2, ..., window keys, the others `window` each.
    return (window * (window + 1) / 2 + (length - window) * window) / length


def _qwen3(name: str, *sizes: int, tied: bool) -> ModelShape:
    width, inner, heads, layers = sizes
    return ModelShape(
        name,
        "qwen3",
        width,
        inner,
        heads,
        key_heads=8,
        head_width=128,
        vocabulary=151_936,
        tied=tied,
        windows=(None,) * layers,
        source=f"config.json of {name}",
    )


PUBLIC = {
    shape.name: shape
    for shape in (
        _qwen3("Qwen/Qwen3-0.6B", 1024, 3072, 16, 28, tied=True),
        _qwen3("Qwen/Qwen3-1.7B", 2048, 6144, 16, 28, tied=True),
        _qwen3("Qwen/Qwen3-4B", 2560, 9728, 32, 36, tied=True),
        _qwen3("Qwen/Qwen3-8B", 4096, 12_288, 32, 36, tied=False),
        _qwen3("Qwen/Qwen3-14B", 5120, 17_408, 40, 40, tied=False),
        _qwen3("Qwen/Qwen3-32B", 5120, 25_600, 64, 64, tied=False),
        ModelShape(
            "meta-llama/Llama-3.1-8B-Instruct",
            "llama",
            4096,
            14_336,
            32,
            8,
            128,
            128_256,
            tied=False,
            windows=(None,) * 32,
            source="config.json of meta-llama/Llama-3.1-8B-Instruct",
        ),
    )
}
"""Public models that are not on the machine yet. The sizes of Qwen3 agree with those in
`pkg/llms_from_scratch/qwen3.py` of rasbt/LLMs-from-scratch, those of Llama with public copies of its
configuration."""


def known_models() -> list[str]:
    """Hub ids whose sizes are known here."""
    return sorted({*SHIPPED, *PUBLIC})


def shape_of(path: str, config: Path | None = None) -> ModelShape:
    """The sizes of a recipe's model (`model.path`), or of the configuration in `config` (a file, or a
    folder).

    Raises UserError for a model that is neither on this machine nor in the table, or is of another kind.
    """
    if config is not None:
        return read_shape(config / "config.json" if config.is_dir() else config)
    embedded = tiny.embedded_folder(path)
    if embedded is not None:
        return read_shape(embedded / "config.json", path)
    if Path(path).is_dir():
        return _of_folder(Path(path))
    if path in SHIPPED:
        folder = Path(str(files("sdzero"))) / "architectures" / SHIPPED[path]
        return read_shape(folder / "config.json", path)
    if path in PUBLIC:
        return PUBLIC[path]
    downloaded = None if hub_id(path) is None else cached_file(path, "config.json")
    if downloaded is not None:
        return read_shape(downloaded, path)
    raise UserError(
        f"the sizes of {path} are not known here",
        "model.path",
        "name its configuration with --model-config FILE, or a model folder; known without one are "
        + ", ".join(known_models()),
    )


def _of_folder(folder: Path) -> ModelShape:
    adapter = folder / "adapter_config.json"
    if adapter.is_file() and not (folder / "config.json").is_file():
        base = _read_json(adapter).get("base_model_name_or_path")
        if not isinstance(base, str) or Path(base) == folder:
            raise UserError(
                "the adapter names no base model", str(adapter), "name its base model in model.path"
            )
        return shape_of(base)
    return read_shape(folder / "config.json")


def _read_json(file: Path) -> dict[str, Any]:
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(
            "there is no such configuration", str(file), "name a config.json, or a folder that has one"
        ) from None
    except (OSError, ValueError) as error:
        raise UserError(f"the configuration cannot be read ({error})", str(file), "copy it again") from None
    if not isinstance(found, dict):
        raise UserError("the configuration is not a JSON object", str(file), "copy it again")
    return found


def read_shape(file: Path, name: str | None = None) -> ModelShape:
    """The sizes in a `config.json`. Raises UserError for a family that a plan does not know."""
    config = _read_json(file)
    family = str(config.get("model_type"))
    if family not in NORMS:
        raise UserError(
            f"a plan does not know models of the type `{family}`",
            str(file),
            f"plan with one of like size; known are dense models of the types {', '.join(NORMS)}",
        )
    try:
        return _shape(config, family, name or str(file.parent), str(file) if name is None else name)
    except KeyError as missing:
        raise UserError(
            f"the configuration has no {missing}", str(file), "name the config.json of a whole model"
        ) from None
    except (ValueError, TypeError, ZeroDivisionError) as error:
        raise UserError(
            f"a size in the configuration is no number that a model has ({error})", str(file), "copy it again"
        ) from None


SIZES = ("hidden_size", "num_attention_heads", "intermediate_size", "vocab_size", "num_hidden_layers")
"""What every configuration has, and none of it is 0."""


def _shape(config: Mapping[str, Any], family: str, name: str, place: str) -> ModelShape:
    least = min(int(config[size]) for size in SIZES)
    if least < 1:
        raise ValueError(f"{least}")
    width, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
    key_heads = int(config.get("num_key_value_heads") or heads)
    head_width = int(config.get("head_dim") or width // heads)
    queries, keys = heads * head_width, key_heads * head_width
    if family == "qwen2":
        biases = queries + 2 * keys
    else:
        biases = queries + 2 * keys + width if config.get("attention_bias") else 0
    return ModelShape(
        name,
        family,
        width,
        int(config["intermediate_size"]),
        heads,
        key_heads,
        head_width,
        int(config["vocab_size"]),
        bool(config.get("tie_word_embeddings", False)),
        _windows(config, family),
        biases,
        f"config.json of {place}",
    )


def _windows(config: Mapping[str, Any], family: str) -> tuple[int | None, ...]:
    layers, window = int(config["num_hidden_layers"]), config.get("sliding_window")
    kinds = config.get("layer_types")
    if kinds is None:
        slides = family == "mistral" and window is not None
        kinds = ["sliding_attention" if slides else "full_attention"] * layers
    return tuple(int(window) if kind == "sliding_attention" and window else None for kind in kinds)
