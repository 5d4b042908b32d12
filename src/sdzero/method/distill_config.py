"""The settings of the on-policy trainer as `transformers` wants them, and how a recipe's become those."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import TrainingArguments

from sdzero.method.training import training_arguments
from sdzero.recipe_baselines import OnPolicySettings
from sdzero.recipe_distill import DistillSettings

SAME_NAME = (
    "temperature",
    "top_p",
    "max_new_tokens",
    "divergence",
    "divergence_backend",
    "divergence_clip",
    "clip_gradient",
    "token_share",
    "contrast",
    "policy_gradient_weight",
    "question_sampling",
    "rollouts_ahead",
    "teacher_decay",
    "chunk_tokens",
    "micro_batch_tokens",
    "normalize",
    "sync",
    "rehearsal_weight",
    "rehearsal_batch_size",
    "phrase_for_reward",
    "divergence_on",
    "false_start_markers",
    "max_context",
    "overlong",
)
"""Settings that the recipe and the trainer call the same; the baselines have some of them."""


@dataclass
class SelfDistillationConfig(TrainingArguments):
    """`TrainingArguments` and the settings of phase 2.

    `per_device_train_batch_size` x `gradient_accumulation_steps` is the number of questions a step.
    The divergence's temperature is 1 whatever the sampling temperature (design, contract 7).
    """

    temperature: float = field(default=0.7, metadata={"help": "sampling temperature of the rollouts"})
    top_p: float = field(default=1.0, metadata={"help": "nucleus of the rollouts"})
    max_new_tokens: int = field(default=256, metadata={"help": "longest response"})
    divergence: str = field(default="reverse", metadata={"help": "reverse, forward, mixed or jsd"})
    divergence_backend: str = field(default="chunked", metadata={"help": "chunked or trl"})
    divergence_clip: float | None = field(default=None, metadata={"help": "most nats a token adds"})
    clip_gradient: str = field(default="scale", metadata={"help": "scale or stop, above the clip"})
    token_share: float = field(default=1.0, metadata={"help": "share of tokens kept, by entropy"})
    contrast: float = field(default=0.0, metadata={"help": "weight of the other phrase's change"})
    policy_gradient_weight: float = field(default=0.0, metadata={"help": "weight of the policy gradient"})
    question_sampling: str = field(default="uniform", metadata={"help": "uniform or solve_rate"})
    rollouts_ahead: int = field(default=0, metadata={"help": "1: responses of the weights one update ago"})
    teacher_decay: float | None = field(default=None, metadata={"help": "EMA teacher: its decay a step"})
    chunk_tokens: int | str = field(
        default="auto", metadata={"help": "tokens whose logits exist at one time, or auto"}
    )
    micro_batch_tokens: int | None = field(default=None, metadata={"help": "most tokens in a forward pass"})
    normalize: str = field(default="tokens", metadata={"help": "tokens or sequences"})
    sync: str = field(default="never", metadata={"help": "never, epoch, steps or plateau"})
    sync_every: int = field(default=0, metadata={"help": "steps between syncs, with sync=steps"})
    rehearsal_weight: float = field(default=0.0, metadata={"help": "weight of the revision loss"})
    rehearsal_batch_size: int = field(default=16, metadata={"help": "traces rehearsed a step"})
    phrase_for_reward: str = field(default="true", metadata={"help": "true, held or flipped (ablations)"})
    divergence_on: str = field(default="all", metadata={"help": "which tokens carry the divergence"})
    false_start_markers: list[str] = field(default_factory=list, metadata={"help": "words of a false start"})
    max_context: int | None = field(default=None, metadata={"help": "longest Reviser context in tokens"})
    overlong: str = field(default="drop", metadata={"help": "drop or error"})


def distill_config(
    settings: DistillSettings,
    checkpoints: Path,
    *,
    seed: int,
    gradient_checkpointing: bool,
    use_cpu: bool,
) -> SelfDistillationConfig:
    """The trainer's configuration that a recipe's settings stand for; checkpoints go to `checkpoints`."""
    common: dict[str, Any] = training_arguments(
        settings,
        checkpoints,
        epochs=settings.epochs,
        checkpoint_every=settings.checkpoint_every,
        seed=seed,
        gradient_checkpointing=gradient_checkpointing,
        use_cpu=use_cpu,
    )
    if settings.evaluate_every:
        common |= {
            "eval_strategy": "steps",
            "eval_steps": settings.evaluate_every,
            "save_steps": settings.evaluate_every,
            "metric_for_best_model": "avg",
            "greater_is_better": True,
            "load_best_model_at_end": True,
        }
    own = {name: getattr(settings, name) for name in SAME_NAME}
    return SelfDistillationConfig(**common, **own, sync_every=settings.sync_every or 0)


def on_policy_config(
    settings: OnPolicySettings,
    checkpoints: Path,
    *,
    max_steps: int,
    seed: int,
    gradient_checkpointing: bool,
    use_cpu: bool,
) -> SelfDistillationConfig:
    """The same for a baseline with the same loop: `max_steps` steps, which may end within an epoch."""
    common: dict[str, Any] = training_arguments(
        settings,
        checkpoints,
        epochs=1,
        checkpoint_every=settings.checkpoint_every,
        seed=seed,
        gradient_checkpointing=gradient_checkpointing,
        use_cpu=use_cpu,
    )
    own = {name: getattr(settings, name) for name in SAME_NAME if name in type(settings).model_fields}
    sync_every = getattr(settings, "sync_every", None) or 0
    return SelfDistillationConfig(**common | {"max_steps": max_steps}, **own, sync_every=sync_every)
