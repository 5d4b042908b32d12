"""What settings have in common: strictness, the optimizer, sampling. Imports no torch."""

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of all settings: unknown keys are errors, values do not change after loading."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class OptimizerSettings(Settings):
    """AdamW and its schedule; `adamw_8bit` keeps its state in 8 bits (bitsandbytes).

    Sizes are in sequences per optimizer step and per micro-batch.
    With `micro_batch_tokens` a micro-batch goes through the model in parts of at most so many tokens,
    sequences of like length together. What is trained is the same to rounding, whatever the sizes.
    The newest `checkpoints_kept` checkpoints stay while a stage trains: one may be damaged.
    """

    learning_rate: float = Field(gt=0)
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    schedule: Literal["cosine", "linear", "constant", "constant_with_warmup"] = "cosine"
    warmup_steps: int = Field(default=0, ge=0)
    warmup_ratio: float = Field(default=0.0, ge=0, lt=1)
    weight_decay: float = Field(default=0.0, ge=0)
    betas: tuple[float, float] = (0.9, 0.999)
    max_grad_norm: float = Field(default=1.0, gt=0)
    batch_size: int = Field(default=32, ge=1)
    micro_batch_size: int = Field(default=32, ge=1)
    micro_batch_tokens: int | None = Field(default=None, ge=1)
    checkpoints_kept: int = Field(default=2, ge=2)

    @model_validator(mode="after")
    def _batches_divide(self) -> Self:
        if self.batch_size % self.micro_batch_size:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of micro_batch_size"
                f" ({self.micro_batch_size})"
            )
        if self.warmup_steps and self.warmup_ratio:
            raise ValueError("set warmup_steps or warmup_ratio, not both")
        if self.schedule == "constant" and (self.warmup_steps or self.warmup_ratio):
            raise ValueError("schedule `constant` has no warm-up; use `constant_with_warmup`")
        if not all(0 <= beta < 1 for beta in self.betas):
            raise ValueError("each of betas must be at least 0 and below 1")
        return self

    def micro_batch_of(self, sequences: int) -> int:
        """Sequences of a micro-batch, where so many are cut into equal ones: at most `micro_batch_size`."""
        return max(size for size in range(1, self.micro_batch_size + 1) if sequences % size == 0)


class SamplingSettings(Settings):
    """How responses are sampled. `batch_size` is the unit of resuming: a finished batch is kept."""

    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(ge=1)
    batch_size: int = Field(default=256, ge=1)
