"""The settings of the baselines. Imports no torch."""

from string import Formatter
from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdzero.recipe_base import OptimizerSettings


class RftSettings(OptimizerSettings):
    """RFT: fine-tuning on own verified-correct responses. `enabled`: part of `sdzero run`."""

    enabled: bool = True
    epochs: int = Field(default=2, ge=1)
    checkpoint_every: int = Field(default=50, ge=1)


class SftSettings(OptimizerSettings):
    """SFT on given demonstrations: the data's worked `solutions` (`data.fields.solution`), or, where there
    are none, its reference `answers`, each written into `answer_format`."""

    demonstrations: Literal["solutions", "answers"] = "solutions"
    answer_format: str = "\\boxed{{{answer}}}"
    epochs: int = Field(default=2, ge=1)
    checkpoint_every: int = Field(default=50, ge=1)

    @field_validator("answer_format")
    @classmethod
    def _has_a_place(cls, value: str) -> str:
        return _with_places(value, {"answer"})


class GrpoSettings(OptimizerSettings):
    """GRPO (arXiv 2402.03300) by TRL's trainer. `batch_size` counts responses a step, of which
    `responses_per_question` belong to one question. Sampling is untruncated unless `top_p` is lowered."""

    responses_per_question: int = Field(default=4, ge=2)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(ge=1)
    kl_weight: float = Field(default=0.0, ge=0)
    clip: float = Field(default=0.2, gt=0)
    checkpoint_every: int = Field(default=50, ge=1)

    @model_validator(mode="after")
    def _whole_groups(self) -> Self:
        if self.micro_batch_tokens is not None:
            raise ValueError("TRL's GRPO trainer has no micro_batch_tokens: lower micro_batch_size")
        if self.batch_size % self.responses_per_question:
            raise ValueError(
                f"batch_size ({self.batch_size}) must be a multiple of responses_per_question"
                f" ({self.responses_per_question})"
            )
        return self


class OnPolicySettings(OptimizerSettings):
    """What on-policy baselines share: one response a question; `batch_size` counts questions a step."""

    temperature: float = Field(default=0.7, ge=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    max_new_tokens: int = Field(ge=1)
    normalize: Literal["tokens", "sequences"] = "tokens"
    checkpoint_every: int = Field(default=50, ge=1)


class SdftSettings(OnPolicySettings):
    """SDFT (arXiv 2601.19897): self-distillation from a teacher that reads the question with a reference.

    The teacher is the base model on `template`, where `{question}` and `{reference}` are filled in: the
    reference is the data's `solution` or its `answer`. `sync` as in phase 2.
    """

    reference: Literal["solution", "answer"] = "answer"
    template: str = "{question}\n\nThe answer is {reference}."
    divergence: Literal["reverse", "forward", "mixed", "jsd"] = "reverse"
    chunk_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    sync: Literal["never", "epoch", "steps"] = "never"
    sync_every: int | None = Field(default=None, ge=1)

    @field_validator("template")
    @classmethod
    def _has_places(cls, value: str) -> str:
        return _with_places(value, {"question", "reference"})

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if (self.sync == "steps") != (self.sync_every is not None):
            raise ValueError("sync_every goes with sync: steps, and only with it")
        return self


class NegativeSettings(OnPolicySettings):
    """The control of arXiv 2608.31046: policy gradient with a constant negative `advantage` on the tokens
    of wrong responses and none on right ones; no teacher."""

    advantage: float = Field(default=-1.0, lt=0)


def _with_places(template: str, places: set[str]) -> str:
    """The template, if it has exactly these places; else ValueError."""
    try:
        found = {name for _, name, _, _ in Formatter().parse(template) if name is not None}
    except ValueError as fault:
        raise ValueError(f"{template!r} is no template: {fault}; write {{{{ and }}}} for braces") from fault
    if found != places:
        wanted = " and ".join(f"{{{name}}}" for name in sorted(places))
        raise ValueError(f"{template!r} must have the places {wanted} and no other")
    return template
