"""The settings of phase 2. Imports no torch."""

from typing import Annotated, Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from sdzero.recipe_base import OptimizerSettings, SamplingSettings
from sdzero.recipe_lora import LoraSettings

FALSE_STARTS = ("Wait", "wait", "Hmm", "hmm", "Actually", "Let me start over", "let me start over")
"""Words by which a response gives a try up."""


class DistillSettings(OptimizerSettings, SamplingSettings):
    """Phase 2: on-policy self-distillation (paper, equation 5). `batch_size` counts questions a step.

    `sync` makes the teacher the student again after each epoch, every `sync_every` steps, or with `plateau`
    when the tuning score has not risen at an evaluation; with `teacher_decay` d the teacher is instead, after
    every step, d times itself and 1 - d times the student.
    `divergence_backend` is what computes the divergence: our own chunks, or the kernel of TRL's distillation
    trainer (no `mixed`).
    `divergence_clip` (nats) bounds what a token adds; above it its gradient is scaled down, or stopped.
    `token_share` keeps that share of a response's tokens, of the highest student entropy. `contrast` takes
    the other phrase's change from the teacher; `policy_gradient_weight` adds a policy gradient.
    `question_sampling` draws questions evenly, or more often those that are solved about half of the time.
    `rollouts_ahead: 1` samples the responses of a step from the weights before the last update, so that
    sampling or grading goes on meanwhile (docs/options.md).
    `rehearsal_weight` adds the revision loss on `rehearsal_batch_size` traces beside the divergence; the
    traces are the run's own, or those of another run's file `rehearsal_traces`.
    `teacher` is a model folder to be the Reviser in place of the SRT model.
    `teacher_placement` is where its weights are: on the `device`; in the host's memory (`cpu`), from where
    each layer is brought to the device for its pass; or, with FSDP2, `sharded` over the processes as the
    student is.
    `phrase_for_reward` is for ablations: `held` gives the Reviser the phrase of r = 1 whatever the
    reward, `flipped` the other one.
    `divergence_on` keeps the divergence to a part of each response, for models that think aloud: what follows
    the last of `false_start_markers`, or the final answer.
    """

    teacher: str | None = None
    teacher_placement: Literal["device", "cpu", "sharded"] = "device"
    divergence: Literal["reverse", "forward", "mixed", "jsd"] = "reverse"
    divergence_backend: Literal["chunked", "trl"] = "chunked"
    divergence_clip: float | None = Field(default=None, gt=0)
    clip_gradient: Literal["scale", "stop"] = "scale"
    token_share: float = Field(default=1.0, gt=0, le=1)
    contrast: float = Field(default=0.0, ge=0)
    policy_gradient_weight: float = Field(default=0.0, ge=0)
    question_sampling: Literal["uniform", "solve_rate"] = "uniform"
    rollouts_ahead: Literal[0, 1] = 0
    chunk_tokens: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    normalize: Literal["tokens", "sequences"] = "tokens"
    epochs: int = Field(default=1, ge=1)
    sync: Literal["never", "epoch", "steps", "plateau"] = "never"
    sync_every: int | None = Field(default=None, ge=1)
    teacher_decay: float | None = Field(default=None, ge=0, lt=1)
    rehearsal_weight: float = Field(default=0.0, ge=0)
    rehearsal_batch_size: int = Field(default=16, ge=1)
    rehearsal_traces: str | None = None
    phrase_for_reward: Literal["true", "held", "flipped"] = "true"
    divergence_on: Literal["all", "after_last_false_start", "final_answer"] = "all"
    false_start_markers: list[str] = Field(default=list(FALSE_STARTS), min_length=1)
    max_context: int | None = Field(default=None, ge=1)
    overlong: Literal["drop", "error"] = "drop"
    evaluate_every: int | None = Field(default=None, ge=1)
    early_stop_patience: int | None = Field(default=None, ge=1)
    checkpoint_every: int = Field(default=50, ge=1)

    @field_validator("phrase_for_reward", mode="before")
    @classmethod
    def _unquoted_true(cls, value: Any) -> Any:
        """YAML reads an unquoted `true` as a boolean."""
        return "true" if value is True else value

    @field_validator("false_start_markers")
    @classmethod
    def _words(cls, value: list[str]) -> list[str]:
        if not all(marker.strip() for marker in value):
            raise ValueError("a false-start marker must not be empty")
        return value

    @model_validator(mode="after")
    def _pairs(self) -> Self:
        if (self.sync == "steps") != (self.sync_every is not None):
            raise ValueError("sync_every goes with sync: steps, and only with it")
        if self.sync == "plateau" and self.evaluate_every is None:
            raise ValueError("sync: plateau looks at the tuning score: set evaluate_every")
        if self.divergence_backend == "trl" and self.divergence == "mixed":
            raise ValueError("TRL's kernel has no mixed divergence: set divergence_backend: chunked")
        if self.sync != "never" and self.teacher_decay is not None:
            raise ValueError("a teacher with teacher_decay follows the student: set sync: never")
        if self.token_share < 1 and self.divergence_on != "all":
            raise ValueError(
                "token_share chooses among all tokens: set divergence_on: all, or token_share: 1"
            )
        if self.clip_gradient != "scale" and self.divergence_clip is None:
            raise ValueError("clip_gradient goes with divergence_clip, and only with it")
        if self.rollouts_ahead and self.policy_gradient_weight:
            raise ValueError(
                "policy_gradient_weight needs responses of the current weights, and with rollouts_ahead they"
                " are one update old: set one of them to 0"
            )
        if self.early_stop_patience is not None and self.evaluate_every is None:
            raise ValueError("early_stop_patience needs evaluate_every")
        return self


def check_placement(distill: DistillSettings, lora: LoraSettings | None) -> None:
    """Raise ValueError where the teacher's weights cannot be where `teacher_placement` says."""
    if lora is None or distill.teacher_placement == "device":
        return
    if distill.teacher_placement == "sharded":
        raise ValueError(
            "distill.teacher_placement=sharded is FSDP2's, which LoRA does not run under: set it to device or"
            " cpu, or leave the section `lora` out"
        )
    if lora.teacher == "shared" and distill.teacher is None:
        raise ValueError(
            "distill.teacher_placement=cpu: with lora.teacher=shared the teacher is an adapter on the"
            " student's own weights, and has none to be placed: set distill.teacher_placement to device, or"
            " lora.teacher to copy"
        )
