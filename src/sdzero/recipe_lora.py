"""The settings of LoRA. Imports no torch."""

from typing import Literal, Self

from pydantic import Field, model_validator

from sdzero.recipe_base import Settings


class LoraSettings(Settings):
    """LoRA (arXiv 2106.09685) in every phase: W x + (alpha / rank) B A x, with W frozen; A and B are trained.

    `target_modules` are the ends of names of linear layers (`q_proj`), or `all-linear`: all but the output
    head. `keep` is what a stage leaves for the next: `merged`, an ordinary model with B A added to W, on
    which the next stage puts a new adapter; or `adapter`, the adapter alone, which the next stage trains on.
    `auto` is `adapter` with `model.quantization`, else `merged`.
    `teacher` is how phase 2 holds the Reviser: `shared`, an adapter of its own on the student's frozen
    weights; or `copy`, a second model.
    """

    rank: int = Field(default=16, ge=1)
    alpha: int = Field(default=32, ge=1)
    dropout: float = Field(default=0.0, ge=0, lt=1)
    target_modules: Literal["all-linear"] | list[str] = "all-linear"
    keep: Literal["auto", "merged", "adapter"] = "auto"
    teacher: Literal["shared", "copy"] = "shared"

    @model_validator(mode="after")
    def _some_modules(self) -> Self:
        if not self.target_modules:
            raise ValueError("target_modules is empty: name linear layers, or `all-linear`")
        return self

    def keeps_adapter(self, quantization: str | None) -> bool:
        """Whether a stage leaves the adapter alone."""
        return self.keep == "adapter" or (self.keep == "auto" and quantization is not None)


def check_quantized(lora: LoraSettings | None, engine: str, teacher: str | None) -> None:
    """Raise ValueError for what cannot go with `model.quantization`."""
    if lora is None:
        raise ValueError(
            "model.quantization holds weights in 4 bits, which cannot be trained themselves: add a section"
            " `lora`, or set model.quantization to null"
        )
    if lora.keep == "merged":
        raise ValueError(
            "lora.keep=merged: the next stage would read the merged weights in 4 bits again, whose steps are"
            " wider than what an adapter adds, so that the Reviser would be the base model: set lora.keep to"
            " auto or adapter"
        )
    if lora.teacher == "copy" or teacher is not None:
        raise ValueError(
            "a teacher of its own in 4 bits could not be made the student at a sync: set lora.teacher to"
            " shared and distill.teacher to null"
        )
    if engine == "vllm":
        raise ValueError(
            "vLLM is sent merged weights, and in 4 bits what an adapter adds is lost in the steps of the"
            " grid: set rollout.engine to transformers, or model.quantization to null"
        )
