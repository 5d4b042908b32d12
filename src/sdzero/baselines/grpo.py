"""GRPO (arXiv 2402.03300) by TRL's `GRPOTrainer`, with our rollouts, verdicts and budget.

One optimizer step: G responses to each of `batch_size / G` questions are sampled with the current
weights and graded, and

    A_i = (r_i - mean of the group's r) / (standard deviation of the group's r + 1e-4)
    loss = - sum over responses i, tokens t of  min(rho A_i, clip(rho, 1 - eps, 1 + eps) A_i)  /  tokens

with rho = pi(y_t) / pi_old(y_t). What is TRL's is the advantage, the loss and the optimisation; sampling
and grading go through the same `GradedSampler` as every other method.

- Loss type `dapo`, TRL's default: normalised by the tokens of the whole batch, whatever the micro-batch
  size and the number of processes, and not by each response's length as in the paper (which favours short
  right and long wrong responses). Rewards are scaled by the group's standard deviation, as in the paper.
- Several processes: each trains on its rows of the batch. TRL gathers the rewards, so that a group may lie
  in two of them, and the number of tokens; the whole batch is sampled and counted, shared out as elsewhere.
- Fully on-policy: one generation an optimizer step, used once. The weights that sampled are the weights
  that are trained, so pi_old = pi, rho = 1, and TRL takes the log-probabilities of its own forward pass,
  detached, for pi_old. Sampling log-probabilities would be used only to correct for vLLM's rounding, so
  the rollouts hand over none. The clip can bind only where a step has several passes, which none has.
- TRL divides the logits by the sampling temperature, as the engine does. With `top_p` below 1 the
  gradient is still that of the whole distribution.
- A response whose verdict is `error` is left out: its reward is None, which TRL leaves out of the group's
  mean and deviation, and its tokens are masked, so they are in neither the KL term nor the normaliser.
- A truncated response is wrong and is trained on like any other.

Left out: TRL's own sampling, tools and images.
"""

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from torch.utils.data import Sampler
from transformers import (
    PreTrainedModel,
    PreTrainedTokenizerBase,
    PrinterCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)
from trl import GRPOConfig, GRPOTrainer  # type: ignore[attr-defined]

from sdzero.baselines.grpo_rollouts import QuestionRows, Rollouts, most_steps, verdict_reward
from sdzero.baselines.spending import TokenSpending, schedule_by_spending
from sdzero.deepspeed_settings import asks_for
from sdzero.errors import UserError
from sdzero.method.adapter_checkpoints import KeepsAdapters
from sdzero.method.alarms import alarms_for
from sdzero.method.checkpoints import DeterministicCheckpoints, last_complete_checkpoint
from sdzero.method.data_parallel import ManyProcesses
from sdzero.method.training import (
    PlainLog,
    StopWhenSpent,
    training_arguments,
)
from sdzero.recipe_baselines import GrpoSettings
from sdzero.run_context import Budget, RunContext

LOGGED = (
    *("step", "max_steps", "loss", "grad_norm", "learning_rate", "entropy", "kl", "reward"),
    *("frac_reward_zero_std", "tokens", "truncated", "verifier_errors", "passes"),
    *("rollout_seconds", "update_seconds"),
)
"""What a step's row holds; TRL has much more. `frac_reward_zero_std` is the share of groups that are all
right or all wrong and so teach nothing; `passes` counts how often the questions were gone through."""


def train_grpo(context: RunContext, name: str, settings: GrpoSettings, budget: Budget) -> None:
    """Train the base model with GRPO within the budget; the model is kept in `name`.

    A budget of responses is spent in whole batches, and a rest smaller than a batch is left. With a
    budget of tokens no step begins once it is spent, and the schedule of the learning rate runs by the
    share spent. Raises UserError for a budget that is smaller than one batch.
    """
    if context.run.is_done(name):
        return
    if asks_for("DEEPSPEED"):
        raise UserError(
            "GRPO does not train under DeepSpeed here",
            "distributed_type",
            "start it with DDP or FSDP2 (recipes/distributed), or leave `grpo` out of --methods",
        )
    steps = most_steps(budget, settings.batch_size)
    questions = context.training_questions
    context.report(f"{name}: {budget} on {len(questions)} questions, {settings.responses_per_question} each")
    model = context.load_to_train(context.recipe.model.path)
    sampler = context.sampler(model)
    prompts = [tuple(sampler.roles.generator_prompt(question)) for question in questions]
    sampler.check_fits(zip(questions, prompts, strict=True), settings.max_new_tokens)
    spending = TokenSpending(context.run, name, budget.amount) if budget.match == "tokens" else None
    rollouts = Rollouts(questions, prompts, sampler, model, settings, context.recipe.seed, name, spending)
    checkpoints = context.run.path(f"{name}/checkpoints")
    checkpoint = last_complete_checkpoint(checkpoints)
    if checkpoint is not None:
        done = int(Path(checkpoint).name.rpartition("-")[2])
        rollouts.restore(done)
        if rollouts.is_spent(done):  # killed between the last checkpoint and keeping the model
            steps = done
    with lent_to_trl(model, context.tokenizer):
        trainer = make_trainer(model, context, rollouts, steps, checkpoints, context.train_log(name))
        with without_warnings_of_errors():
            trainer.train(resume_from_checkpoint=checkpoint)
    context.keep(
        name,
        model,
        {"steps": trainer.state.global_step, "verifier_errors": rollouts.verifier_errors},
    )


class VerifiedGrpoTrainer(KeepsAdapters, ManyProcesses, GRPOTrainer):
    """TRL's trainer on our rollouts."""

    def __init__(
        self,
        model: PreTrainedModel,
        args: GRPOConfig,
        rollouts: Rollouts,
        processing_class: PreTrainedTokenizerBase,
        callbacks: list[TrainerCallback],
    ) -> None:
        self._rollouts = rollouts
        numbers = [str(number) for number in range(len(rollouts.questions))]
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="You are using 'rollout_func'")
            super().__init__(
                model=model,
                reward_funcs=verdict_reward,
                args=args,
                train_dataset=Dataset.from_dict({"prompt": numbers}),
                processing_class=processing_class,
                callbacks=callbacks,
                rollout_func=rollouts,
            )
        self.remove_callback(PrinterCallback)

    def _get_train_sampler(self, dataset: Dataset | None = None) -> Sampler[int]:
        own = self._rollouts.settings
        return QuestionRows(
            len(self._rollouts.questions),
            steps=self.args.max_steps,
            per_step=own.batch_size // own.responses_per_question,
            responses=own.responses_per_question,
            repeats=self.args.gradient_accumulation_steps,
            seed=self._rollouts.seed,
        )

    def create_scheduler(self, num_training_steps: int, optimizer: Any = None) -> Any:
        """By steps, or, for a budget of tokens, by the share of it that was spent before a step."""
        spending, own = self._rollouts.spending, self._rollouts.settings
        if self.lr_scheduler is None and spending is not None:
            trained: Any = self.optimizer if optimizer is None else optimizer
            self.lr_scheduler = schedule_by_spending(
                trained, spending, own.schedule, own.warmup_steps, own.warmup_ratio
            )
            return self.lr_scheduler
        return super().create_scheduler(num_training_steps, optimizer)

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Add the step's own metrics to TRL's."""
        super().log(logs | self._rollouts.metrics if "loss" in logs else logs, start_time)

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """Write none: checkpoints are working files of a run, not a publication."""

    def _send_telemetry(self) -> None:
        """Send none."""


class _EndOfStep(TrainerCallback):
    """Closes the account of a step."""

    def __init__(self, rollouts: Rollouts) -> None:
        self._rollouts = rollouts

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> TrainerControl:
        self._rollouts.finish_step(state)
        return control


def make_trainer(
    model: PreTrainedModel,
    context: RunContext,
    rollouts: Rollouts,
    steps: int,
    checkpoints: Path,
    log: Callable[[dict[str, Any]], None],
) -> VerifiedGrpoTrainer:
    """The trainer that the rollouts' settings stand for."""
    settings = rollouts.settings
    arguments = training_arguments(
        settings,
        checkpoints,
        epochs=1,
        checkpoint_every=settings.checkpoint_every,
        seed=context.recipe.seed,
        gradient_checkpointing=context.recipe.model.gradient_checkpointing,
        use_cpu=model.device.type == "cpu",
    )
    config = GRPOConfig(
        **arguments,
        max_steps=steps,
        num_generations=settings.responses_per_question,
        num_iterations=1,
        steps_per_generation=arguments["gradient_accumulation_steps"],
        temperature=settings.temperature,
        top_p=settings.top_p,
        max_completion_length=settings.max_new_tokens,
        beta=settings.kl_weight,
        epsilon=settings.clip,
        scale_rewards="group",
        loss_type="dapo",
        log_completions=False,
    )
    callbacks: list[TrainerCallback] = [
        _EndOfStep(rollouts),
        StopWhenSpent(rollouts.is_spent),
        DeterministicCheckpoints(settings.checkpoint_every),
        *alarms_for(context.alarms, context.recipe.model.path),
        PlainLog(lambda values: log({key: values[key] for key in LOGGED if key in values})),
    ]
    trainer = VerifiedGrpoTrainer(model, config, rollouts, context.tokenizer, callbacks)
    if trainer.ref_model is not None:
        trainer.ref_model.register_forward_pre_hook(_add_positions, with_kwargs=True)
    return trainer


def _add_positions(
    module: torch.nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Number the tokens from 0 after the padding on the left, as the engine does.

    TRL hands over the mask alone, which shifts the positions of shorter prompts: harmless where positions
    are relative, wrong where they are learnt.
    """
    if kwargs.get("fused_lm_head"):
        positions_BT = (kwargs["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        kwargs = kwargs | {"position_ids": positions_BT}
    return args, kwargs


@contextmanager
def lent_to_trl(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> Iterator[None]:
    """Give the model right positions, and take back what TRL leaves on it: forward, tags, padding tokens."""
    was_training, own_forward = model.training, model.__dict__.get("forward")
    tags = None if model.model_tags is None else list(model.model_tags)
    configs: list[Any] = [model.config.get_text_config(), model.generation_config]
    pads, pad_token = [config.pad_token_id for config in configs], tokenizer.pad_token
    positions = model.register_forward_pre_hook(_add_positions, with_kwargs=True)
    try:
        yield
    finally:
        positions.remove()
        model.__dict__.pop("forward", None)
        if own_forward is not None:
            model.__dict__["forward"] = own_forward
        model.model_tags = tags
        for config, pad in zip(configs, pads, strict=True):
            config.pad_token_id = pad
        if pad_token is None:
            tokenizer.pad_token = None
        if model.is_gradient_checkpointing:
            model.gradient_checkpointing_disable()  # type: ignore[no-untyped-call]
        model.train(was_training)


@contextmanager
def without_warnings_of_errors() -> Iterator[None]:
    """Keep TRL from printing whole responses that have no reward: they are counted as verifier_errors."""
    logger = logging.getLogger("trl.trainer.grpo_trainer")

    def other(record: logging.LogRecord) -> bool:
        return "All reward functions returned None" not in record.getMessage()

    logger.addFilter(other)
    try:
        yield
    finally:
        logger.removeFilter(other)
