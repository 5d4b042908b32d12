"""A recipe on some hardware: what every part of a plan depends on."""

from dataclasses import dataclass, replace
from typing import Literal

from sdzero.onprem.hardware import Hardware
from sdzero.onprem.model_shape import ModelShape
from sdzero.onprem.plan_activations import Adapters
from sdzero.onprem.plan_tokens import PROMPT_TOKENS
from sdzero.recipe import Recipe

Parallel = Literal["ddp", "fsdp2"]

SIZES = {"float32": 4, "bfloat16": 2, "float64": 8}
"""Bytes of a number."""

FOUR_BITS = 0.5 + 1 / 64 + 4 / (64 * 256)
"""Bytes of a weight in NF4 with double quantization: half a byte, a byte for 64 of them, and a float32 for
256 of those (QLoRA, arXiv 2305.14314, section 3)."""


@dataclass(frozen=True)
class Setting:
    """A recipe, its model, the devices, and how several of them share the work. `prompt`: mean tokens."""

    recipe: Recipe
    shape: ModelShape
    hardware: Hardware
    parallel: Parallel = "ddp"
    prompt: float = PROMPT_TOKENS

    @property
    def size(self) -> int:
        """Bytes of a weight."""
        return SIZES[self.recipe.model.dtype]

    @property
    def kind(self) -> Literal["cuda", "cpu"]:
        """Of device."""
        return self.hardware.device.kind

    @property
    def devices(self) -> int:
        """Processes, one a device."""
        return self.hardware.count

    @property
    def shards(self) -> int:
        """In how many parts student, gradients and optimizer states are cut."""
        return self.devices if self.parallel == "fsdp2" else 1

    @property
    def adapters(self) -> Adapters | None:
        """The recipe's LoRA."""
        own = self.recipe.lora
        if own is None:
            return None
        return Adapters(own.rank, None if own.target_modules == "all-linear" else tuple(own.target_modules))

    @property
    def packed(self) -> bool:
        """Whether training packs sequences into rows with `sdpa`, which copies what attention puts out."""
        own = self.recipe.model
        on = own.packing == "on" or (own.packing == "auto" and self.kind == "cuda")
        return own.attention == "sdpa" and on

    @property
    def weights(self) -> float:
        """Bytes of the whole model's weights, without adapters."""
        shape = self.shape
        if self.recipe.model.quantization is None:
            return float(self.size * shape.parameters)
        inside = shape.layers * shape.layer_products
        return FOUR_BITS * inside + self.size * (shape.parameters - inside)

    @property
    def teacher_placement(self) -> str:
        """Where phase 2 holds the teacher: `device`, `cpu` or `sharded`."""
        return self.recipe.distill.teacher_placement

    def with_recipe(self, recipe: Recipe) -> "Setting":
        """The same with another recipe."""
        return replace(self, recipe=recipe)
